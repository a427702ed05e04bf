//! Superblocks: choice, then the bytes at byte 4096 of a device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{fix, number, split};
use walkeep_wire::ldev::Superblock;

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut bytes)) = split(input) else {
        return;
    };
    if choice & 1 != 0 {
        let len = number::<4>(&bytes, 12);
        if (8..=4096).contains(&len) {
            fix(&mut bytes, 0, len, 4, 0);
        }
    }
    let device = if choice & 2 == 0 { u64::MAX } else { 1 << 20 };
    let Ok(superblock) = Superblock::decode(&bytes, device) else {
        return;
    };
    assert_eq!(
        Superblock::decode(&superblock.encode(), device).as_ref(),
        Ok(&superblock)
    );

    let (ring, lsid) = (superblock.ring, superblock.written_lsid);
    assert!(ring.end() <= device);
    let _ = (
        superblock.usage(),
        superblock.is_overflowed(),
        superblock.name.to_string(),
    );
    let blocks = ring.size().min(65536);
    let runs: Vec<_> = ring.runs(lsid, blocks).collect();
    assert!(runs.len() <= 2);
    assert_eq!(
        runs.iter().map(|run| run.bytes).sum::<u64>(),
        blocks * ring.pbs().bytes() as u64
    );
    for run in runs {
        assert!(ring.start() <= run.position && run.bytes <= ring.end() - run.position);
    }
});
