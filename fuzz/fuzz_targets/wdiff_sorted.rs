//! Sorted diffs: choice, then the file. Stream reader and cursor must agree; payloads are
//! decompressed; and what was read can be written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{Payloads, fix, number, split, sum};
use walkeep_wire::wdiff::{
    Body, Cursor, FILE_HEADER, OutRecord, PACK_HEADER, PACK_RECORDS, Record, RecordSource,
    SortedReader, SortedWriter,
};

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut file)) = split(input) else {
        return;
    };
    if choice & 1 != 0 {
        fix_file(&mut file);
    }
    let streamed = stream(&file);
    let by_cursor = walk(&file);
    let Ok(streamed) = streamed else { return };
    assert_eq!(
        by_cursor.as_ref().ok(),
        Some(&streamed.iter().map(|(r, _)| *r).collect())
    );
    let end = end_of(&file);
    for cut in [end - 1, end * usize::from(choice >> 1) / 128] {
        assert!(stream(&file[..cut]).is_err(), "a truncated diff was read");
    }
    let written = write(&streamed);
    let again = stream(&written).expect("what is written can be read");
    assert!(
        again
            .iter()
            .map(without_place)
            .eq(streamed.iter().map(without_place))
    );
});

fn fix_file(file: &mut [u8]) {
    if let Some(kind) = file.get_mut(6) {
        *kind = 0;
    }
    fix(file, 0, FILE_HEADER, 0, 0);
    let mut at = FILE_HEADER;
    while at < file.len() {
        let records = number::<2>(file, at + 4).min(PACK_RECORDS);
        for slot in (0..records).map(|i| at + 16 + i * 32) {
            let data = at + PACK_HEADER + number::<4>(file, slot + 16);
            if let Some(sum) = sum(file, data, number::<4>(file, slot + 20), 0) {
                file[slot + 24..slot + 28].copy_from_slice(&sum.to_le_bytes());
            }
        }
        fix(file, at, PACK_HEADER, 0, 0);
        at += PACK_HEADER + number::<4>(file, at + 8);
    }
}

type WithData = (Record, Vec<u8>);

fn stream(file: &[u8]) -> Result<Vec<WithData>, ()> {
    let (mut records, mut stored, mut payloads) = (Vec::new(), Vec::new(), Payloads::default());
    let mut reader = SortedReader::open(file, "input").map_err(drop)?;
    while let Some(record) = reader.next(&mut stored).map_err(drop)? {
        if let Body::Data(data) = record.body {
            payloads.decompress(&data, &stored);
        }
        records.push((record, stored.clone()));
    }
    Ok(records)
}

fn walk(file: &[u8]) -> Result<Vec<Record>, ()> {
    let (mut records, mut stored) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::open(file, "input").map_err(drop)?;
    while let Some(record) = cursor.next_record().map_err(drop)? {
        if let Body::Data(data) = record.body {
            stored.clear();
            data.load(file, "input", &mut stored).map_err(drop)?;
        }
        records.push(record);
    }
    Ok(records)
}

/// Where the end pack of a sound diff ends; bytes may follow it.
fn end_of(file: &[u8]) -> usize {
    let mut cursor = Cursor::open(file, "input").expect("a sound diff");
    let mut end = 0;
    while let Some((position, pack)) = cursor.next_pack().expect("a sound pack") {
        end = position as usize + PACK_HEADER + pack.total_size as usize;
    }
    end
}

fn write(records: &[WithData]) -> Vec<u8> {
    let memory = std::io::Cursor::new(Vec::new());
    let mut writer = SortedWriter::create(memory, Default::default()).expect("memory");
    for (record, stored) in records {
        let out = match record.body {
            Body::Data(data) => {
                OutRecord::data(record.address, record.blocks, data.compression, stored)
            }
            _ => OutRecord::empty(record.address, record.blocks, record.kind()),
        };
        writer
            .push(&[out], &stored)
            .expect("records in order");
    }
    writer.finish().expect("memory").into_inner()
}

fn without_place((record, stored): &WithData) -> (u64, u32, u8, &[u8]) {
    let how = match record.body {
        Body::Data(data) => data.compression as u8,
        Body::AllZero => 254,
        Body::Discard => 255,
    };
    (record.address, record.blocks, how, stored)
}
