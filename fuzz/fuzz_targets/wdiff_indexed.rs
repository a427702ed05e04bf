//! Indexed diffs: choice, then the file. With bit 1 of the choice the index is looked for right
//! before the super at the end, however long the file has become.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{Payloads, fix, number, split, sum};
use walkeep_wire::wdiff::{Body, Cursor, FILE_HEADER, RecordSource};

const RECORD: usize = 48;
const SUPER: usize = 24;

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut file)) = split(input) else {
        return;
    };
    if choice & 1 != 0 && file.len() >= FILE_HEADER + SUPER {
        fix_file(&mut file, choice & 2 != 0);
    }
    let sound = walk(&file);
    if sound.is_ok() {
        assert!(
            walk(&file[..file.len() - 1]).is_err(),
            "a truncated diff was read"
        );
    }
    if let Ok(mut cursor) = Cursor::open(&file[..], "input") {
        while let Ok(Some(_)) = cursor.next_index() {}
        while let Ok(Some(_)) = cursor.next_pack() {}
        let _ = cursor.progress();
    }
});

fn fix_file(file: &mut [u8], place_index: bool) {
    file[6] = 1;
    fix(file, 0, FILE_HEADER, 0, 0);
    let end = file.len() - SUPER;
    if place_index {
        let most = (end - FILE_HEADER) / RECORD;
        let records = number::<4>(file, end + 8).min(most);
        file[end..end + 8].copy_from_slice(&((end - records * RECORD) as u64).to_le_bytes());
        file[end + 8..end + 12].copy_from_slice(&(records as u32).to_le_bytes());
    }
    let index = number::<8>(file, end);
    for slot in (index..end)
        .step_by(RECORD)
        .take(number::<4>(file, end + 8))
    {
        if slot + RECORD > end {
            break;
        }
        let (data, len) = (number::<8>(file, slot + 16), number::<4>(file, slot + 24));
        if let Some(sum) = sum(file, data, len, 0) {
            file[slot + 40..slot + 44].copy_from_slice(&sum.to_le_bytes());
        }
        fix(file, slot, RECORD, 44, 0);
    }
    fix(file, end, SUPER, 20, 0);
}

/// Reads all records and their payloads; records must be in order and within their images.
fn walk(file: &[u8]) -> Result<(), ()> {
    let (mut payloads, mut stored, mut last_end) = (Payloads::default(), Vec::new(), 0);
    let mut cursor = Cursor::open(file, "input").map_err(drop)?;
    while let Some(record) = cursor.next_record().map_err(drop)? {
        assert!(record.blocks > 0 && record.address >= last_end);
        last_end = record.end();
        if let Body::Data(data) = record.body {
            assert!(data.image_blocks - data.image_offset >= record.blocks);
            stored.clear();
            data.load(file, "input", &mut stored).map_err(drop)?;
            payloads.decompress(&data, &stored);
        }
    }
    Ok(())
}
