//! Queue files: choice, number of operations, operations, then the file. A file that is opened can
//! be read; and after each operation the image is one that opens with the same records.
#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{fix, number, split, sum};
use walkeep_wire::meta::queue::HEADER_LEN;
use walkeep_wire::meta::{MetaLsidGid, QueueFile};

const AREA: usize = 2 * HEADER_LEN;

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = split(input) else {
        return;
    };
    let operations = usize::from(choice >> 1 & 15).min(rest.len());
    let (operations, file) = rest.split_at(operations);
    let mut file = file.to_vec();
    if choice & 1 != 0 {
        fix_file(&mut file);
    }
    let Ok(mut queue) = QueueFile::open(&file) else {
        return;
    };
    let mut expected = queue.records().expect("an opened file has sound records");
    for operation in operations {
        apply(&mut queue, &mut expected, *operation);
        let again = QueueFile::open(queue.image()).expect("a changed file is sound");
        assert_eq!(again.records().as_ref(), Ok(&expected));
    }
});

/// Both headers, and the records between their offsets.
fn fix_file(file: &mut [u8]) {
    fix(file, 0, HEADER_LEN, 4, 0);
    fix(file, HEADER_LEN, HEADER_LEN, 4, 0);
    let salt = number::<4>(file, 8) as u32;
    let (mut at, end) = (number::<8>(file, 12), number::<8>(file, 20));
    while at < end.min(file.len()) {
        let (place, len) = (AREA + at, number::<4>(file, AREA + at + 8));
        let Some(sum) = sum(file, place + 16, len, salt) else {
            return;
        };
        file[place + 4..place + 8].copy_from_slice(&sum.to_le_bytes());
        at += 16 + len;
    }
}

fn apply(queue: &mut QueueFile, expected: &mut VecDeque<MetaLsidGid>, operation: u8) {
    let record = MetaLsidGid {
        is_mergeable: operation & 128 != 0,
        timestamp: u64::from(operation) << 40,
        lsid: u64::from(operation) << (operation >> 2),
        gid: u64::from(operation),
    };
    match operation % 5 {
        0 => {
            queue.push_front(&record);
            expected.push_front(record);
        }
        1 => {
            queue.push_back(&record);
            expected.push_back(record);
        }
        2 => assert_eq!(queue.pop_front(), Ok(expected.pop_front())),
        3 => assert_eq!(queue.pop_back(), Ok(expected.pop_back())),
        _ => {
            queue.clear();
            expected.clear();
        }
    }
}
