//! wlog files: choice, then the file. The reader of a stream, with all data verified, and the walk
//! must agree; and a log that can be read must not be readable when it was cut short, wherever that
//! is: within a block, between two packs, before the end block.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{fix, number, split, sum};
use walkeep_wire::checksum::checksum;
use walkeep_wire::logpack::RecordKind;
use walkeep_wire::wlog::{FileHeader, Reader, Step, Walk};

const HEAD: usize = FileHeader::BYTES;

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut file)) = split(input) else {
        return;
    };
    if choice & 1 != 0 {
        fix_file(&mut file, 0);
    }
    let steps = read(&file);
    let (walked, starts, end) = walk(&file);
    match steps {
        Ok(steps) => {
            assert_eq!(steps, walked);
            assert_eq!(end, Ok(()));
            // One cut anywhere, one at the start of a step. Only between two files it is none.
            let part = usize::from(choice >> 1);
            let cuts = [file.len() * part / 128, starts[starts.len() * part / 128]];
            for cut in cuts.into_iter().chain(starts.last().copied()) {
                let step = starts.iter().position(|start| *start == cut);
                let between = step.is_some_and(|at| at > 0 && is_end(&walked[at - 1]));
                assert!(
                    between || read(&file[..cut]).is_err(),
                    "a log without its end was read"
                );
            }
        }
        Err(read) => assert!(
            walked.starts_with(&read),
            "a step that the walk does not know"
        ),
    }
});

/// Fixes a file and those that follow it.
fn fix_file(file: &mut [u8], mut at: usize) {
    while at < file.len() {
        fix(file, at, HEAD, 8, 0);
        let (salt, pbs) = (
            number::<4>(file, at + 12) as u32,
            number::<4>(file, at + 20),
        );
        at += HEAD;
        if !matches!(pbs, 512 | 1024 | 2048 | 4096) {
            return;
        }
        while at < file.len() {
            let is_end = number::<8>(file, at + 8) == usize::MAX;
            let blocks = fix_pack(file, at, pbs, salt);
            at += (1 + blocks) * pbs;
            if is_end {
                break;
            }
        }
    }
}

/// Fixes a pack and the data of its records, and returns its blocks of data.
fn fix_pack(file: &mut [u8], at: usize, pbs: usize, salt: u32) -> usize {
    let records = number::<2>(file, at + 16).min((pbs - 24) / 32);
    for slot in (0..records).map(|i| at + 24 + i * 32) {
        let data = at + number::<2>(file, slot + 20) * pbs;
        let len = number::<4>(file, slot + 16) * 512;
        if number::<4>(file, slot + 4) == 1
            && let Some(sum) = sum(file, data, len, salt)
        {
            file[slot..slot + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }
    fix(file, at, pbs, 0, salt);
    number::<2>(file, at + 6)
}

/// All steps of a stream; the steps before the error if there is one.
fn read(file: &[u8]) -> Result<Vec<Step>, Vec<Step>> {
    let (mut steps, mut data) = (Vec::new(), Vec::new());
    let mut reader = Reader::new(file, "input");
    loop {
        match reader.next_step() {
            Ok(Some(step)) => steps.push(step),
            Ok(None) => return Ok(steps),
            Err(_) => return Err(steps),
        }
        loop {
            match reader.read_data(&mut data) {
                Ok(Some(record)) if record.kind == RecordKind::Data => {
                    assert_eq!(data.len() as u64, record.bytes());
                    let salt = reader.walk().header().map_or(0, |file| file.salt);
                    assert_eq!(checksum(&data, salt), record.checksum);
                }
                Ok(Some(_)) => assert!(data.is_empty()),
                Ok(None) => break,
                Err(_) => return Err(steps),
            }
        }
    }
}

const fn is_end(step: &Step) -> bool {
    matches!(step, Step::End { .. })
}

/// All steps of a walk, which does not look at data, where they start, and how it ends.
fn walk(file: &[u8]) -> (Vec<Step>, Vec<usize>, Result<(), ()>) {
    let (mut steps, mut starts, mut walk) = (Vec::new(), Vec::new(), Walk::new());
    loop {
        let at = usize::try_from(walk.position()).unwrap_or(usize::MAX);
        let rest = file.get(at..).unwrap_or_default();
        if rest.is_empty() {
            let whole = at <= file.len() && walk.finish().is_ok();
            return (steps, starts, if whole { Ok(()) } else { Err(()) });
        }
        match walk.feed(&rest[..rest.len().min(walk.need())]) {
            Ok(step) => {
                steps.push(step);
                starts.push(at);
            }
            Err(_) => return (steps, starts, Err(())),
        }
    }
}
