//! Logpack headers: choice, salt, then a block, which is cut or filled to the chosen size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walkeep_fuzz::{fix, number, split};
use walkeep_wire::PhysicalBlock;
use walkeep_wire::logpack::{Block, Header, classify, is_end_block};

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut block)) = split(input) else {
        return;
    };
    let Ok(pbs) = PhysicalBlock::new(512 << (choice >> 1 & 3), 0) else {
        return;
    };
    let salt = number::<4>(&block, 0) as u32;
    block.drain(..block.len().min(4));
    block.resize(pbs.bytes(), 0);
    if choice & 1 != 0 {
        fix(&mut block, 0, pbs.bytes(), 0, salt);
    }

    let is_end = is_end_block(&block, pbs, salt);
    let Ok(header) = Header::decode(&block, pbs, salt) else {
        return;
    };
    assert!(!is_end, "a header that is an end block");
    let blocks: u32 = header.records.iter().map(|r| r.data_pb(pbs)).sum();
    assert_eq!(u32::from(header.total_pb), blocks);
    assert_eq!(
        classify(&block, pbs, salt, header.lsid),
        Block::Pack(header.clone())
    );
    assert!(!matches!(
        classify(&block, pbs, salt, !header.lsid),
        Block::Pack(_)
    ));

    // Reserved bytes are not kept, so the checksum may differ.
    let again = Header::decode(&header.encode(pbs, salt), pbs, salt);
    let again = again.expect("what is encoded can be decoded");
    assert_eq!(
        Header {
            checksum: header.checksum,
            ..again
        },
        header
    );

    for index in 0..=header.records.len() {
        if let Some(shrunk) = header.shrink(index, pbs, salt) {
            assert!(shrunk.next_lsid() <= header.next_lsid());
            assert_eq!(
                Header::decode(&shrunk.encode(pbs, salt), pbs, salt),
                Ok(shrunk)
            );
        }
    }
});
