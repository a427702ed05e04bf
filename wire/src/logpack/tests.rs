use proptest::prelude::*;

use super::*;
use crate::bytes::put;

fn block_size() -> impl Strategy<Value = PhysicalBlock> {
    (0..4u32).prop_map(|shift| PhysicalBlock::new(512 << shift, 0).unwrap())
}

/// IOs as a caller may push them.
fn io() -> impl Strategy<Value = (RecordKind, u64, u32, u32)> {
    let data = (0..u64::MAX / 2, 1..=70u32, any::<u32>());
    let large = (0..u64::MAX / 2, 1..=MAX_IO_BLOCKS, any::<u32>());
    prop_oneof![
        8 => data.prop_map(|(address, blocks, sum)| (RecordKind::Data, address, blocks, sum)),
        2 => large.prop_map(|(address, blocks, sum)| (RecordKind::Data, address, blocks, sum)),
        1 => (0..100u32).prop_map(|blocks| (RecordKind::Padding, 0, blocks, 0)),
        2 => (any::<u32>(), 1..u32::MAX).prop_map(|(a, n)| (RecordKind::Discard, a.into(), n, 0)),
    ]
}

fn small_pack() -> Header {
    let mut builder = Builder::new(PhysicalBlock::B512, 7, 100);
    builder.push(RecordKind::Data, 10, 3, 1).unwrap();
    builder.push(RecordKind::Padding, 0, 2, 0).unwrap();
    builder.push(RecordKind::Discard, 50, 1 << 20, 0).unwrap();
    builder.push(RecordKind::Data, 20, 1, 2).unwrap();
    builder.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn built_packs_keep_every_rule(
        pbs in block_size(), salt: u32, lsid in 0..u64::MAX / 2, max_pack in 0..70_000u32,
        ring in prop_oneof![Just(None), (65_600..70_000u64).prop_map(Some)],
        ios in prop::collection::vec(io(), 1..200),
    ) {
        let mut builder = Builder::new(pbs, salt, lsid).with_max_pack(max_pack);
        if let Some(size) = ring {
            builder = builder.with_ring(size);
        }
        let mut packs = vec![];
        for (kind, address, blocks, sum) in &ios {
            packs.extend(builder.push(*kind, *address, *blocks, *sum).unwrap());
        }
        packs.extend(builder.finish());

        let mut expected = lsid;
        for pack in &packs {
            let block = pack.encode(pbs, salt);
            prop_assert_eq!(classify(&block, pbs, salt, expected), Block::Pack(pack.clone()));
            expected = pack.next_lsid();
            prop_assert!(pack.records.len() == 1 || pack.total_pb as u32 <= max_pack
                || pack.records.iter().filter(|r| r.data_pb(pbs) > 0).count() <= 1);
            for record in pack.records.iter().filter(|r| r.kind == RecordKind::Data) {
                let Some(size) = ring else { continue };
                let last = record.lsid + u64::from(record.data_pb(pbs)) - 1;
                prop_assert_eq!(record.lsid / size, last / size, "crosses the ring end");
            }
        }
        prop_assert_eq!(expected, builder.next_lsid());
        let made: Vec<_> = packs.iter().flat_map(|p| &p.records).filter(|r| r.kind != RecordKind::Padding)
            .map(|r| (r.kind, r.address, r.blocks, r.checksum)).collect();
        let pushed: Vec<_> = ios.into_iter().filter(|io| io.0 != RecordKind::Padding).collect();
        prop_assert_eq!(made, pushed);
    }

    #[test]
    fn no_block_panics(
        mut block in prop::collection::vec(any::<u8>(), 512), n in 0..20u16, pbs in block_size(), fix: bool,
    ) {
        if fix {
            put(&mut block, 4, [3, 0]);
            put(&mut block, 16, n.to_le_bytes());
            embed(&mut block, 0, 5);
        }
        let _ = Header::decode(&block, pbs, 5);
        let _ = classify(&block, PhysicalBlock::B512, 5, 0);
        let _ = classify(&block[..100], PhysicalBlock::B512, 5, 0);
    }

    #[test]
    fn a_small_ring_holds_every_pack(size in 5..40u64, ios in prop::collection::vec(1..5u32, 1..50)) {
        let pbs = PhysicalBlock::B512;
        let mut builder = Builder::new(pbs, 0, 0).with_ring(size);
        let mut packs = vec![];
        for blocks in ios {
            packs.extend(builder.push(RecordKind::Data, 0, blocks, 0).unwrap());
        }
        packs.extend(builder.finish());
        for pack in packs {
            prop_assert!(pack.pack_bytes(pbs) / 512 <= size);
            prop_assert!(Header::decode(&pack.encode(pbs, 0), pbs, 0).is_ok());
        }
    }

    #[test]
    fn shrunk_packs_keep_every_rule(index in 0..6usize) {
        let (pbs, pack) = (PhysicalBlock::B512, small_pack());
        let Some(shrunk) = pack.shrink(index, pbs, 7) else {
            prop_assert_eq!(index, 0);
            return Ok(());
        };
        let kept = index.min(4);
        prop_assert_eq!(&shrunk.records[..], &pack.records[..kept]);
        let sizes = [(1, 3, 0), (2, 5, 1), (3, 5, 1), (4, 6, 1)];
        prop_assert_eq!((kept, shrunk.total_pb, shrunk.n_padding), sizes[kept - 1]);
        prop_assert_eq!(Header::decode(&shrunk.encode(pbs, 7), pbs, 7), Ok(shrunk));
    }
}

#[test]
fn each_rule_is_broken_in_turn() {
    let pbs = PhysicalBlock::B512;
    let good = small_pack().encode(pbs, 7);
    // Records stand at 24, 56, 88 and 120: data, padding, discard, data.
    let bad: &[(usize, &[u8], &str, u64)] = &[
        (6, &[5, 0], "total_io_size", 6),
        (16, &[0, 0], "n_records", 16),
        (16, &[16, 0], "n_records", 16),
        (16, &[255, 255], "n_records", 16),
        (18, &[0, 0], "n_padding", 18),
        (18, &[2, 0], "n_padding", 18),
        (28, &[0], "record flags", 28),
        (28, &[2], "record flags", 28),
        (28, &[7], "record flags", 28),
        (28, &[9], "record flags", 28),
        (28, &[3], "offset of a padding record", 32),
        (28, &[5], "checksum of a record without data", 24),
        (40, &[0, 0, 0, 0], "record io_size", 40),
        (40, &[0, 0, 1, 0], "record io_size", 40),
        (72, &[0, 0, 1, 0], "record io_size", 72),
        (104, &[0, 0, 0, 0], "record io_size", 104),
        (32, &[255; 8], "record offset", 32),
        (96, &[255; 8], "record offset", 96),
        (64, &[1], "offset of a padding record", 64),
        (56, &[1], "checksum of a record without data", 56),
        (88, &[1], "checksum of a record without data", 88),
        (44, &[0, 0], "record lsid_local", 44),
        (76, &[5, 0], "record lsid_local", 76),
        (48, &[102], "record lsid", 48),
        (140, &[7], "record lsid_local", 140),
    ];
    for (at, bytes, what, offset) in bad {
        let mut block = good.clone();
        block[*at..at + bytes.len()].copy_from_slice(bytes);
        embed(&mut block, 0, 7);
        let flaw = Header::decode(&block, pbs, 7).unwrap_err();
        assert_eq!((flaw.what, flaw.offset), (*what, *offset), "{at} {bytes:?}");
        assert_eq!(classify(&block, pbs, 7, 100), Block::Broken(flaw));
    }
}

#[test]
fn two_padding_records_are_one_too_many() {
    let pbs = PhysicalBlock::B512;
    let mut pack = small_pack();
    pack.records[0] = Record {
        kind: RecordKind::Padding,
        address: 0,
        checksum: 0,
        ..pack.records[0]
    };
    pack.n_padding = 2;
    assert_eq!(
        Header::decode(&pack.encode(pbs, 7), pbs, 7)
            .unwrap_err()
            .what,
        "padding records"
    );
}

#[test]
fn lsids_end_below_the_invalid_one() {
    let pbs = PhysicalBlock::B512;
    let at = |lsid: u64| {
        let record = |r: &Record| Record {
            lsid: lsid.wrapping_add(r.local.into()),
            ..*r
        };
        let pack = small_pack();
        Header {
            lsid,
            records: pack.records.iter().map(record).collect(),
            ..pack
        }
    };
    let last = at(u64::MAX - 7);
    assert_eq!(
        Header::decode(&last.encode(pbs, 7), pbs, 7)
            .unwrap()
            .next_lsid(),
        u64::MAX
    );
    assert!(Header::decode(&at(u64::MAX - 6).encode(pbs, 7), pbs, 7).is_err());

    let mut discard = at(u64::MAX - 2);
    discard.records = vec![Record {
        local: 1,
        lsid: u64::MAX - 1,
        ..discard.records[2]
    }];
    (discard.total_pb, discard.n_padding) = (0, 0);
    assert!(Header::decode(&discard.encode(pbs, 7), pbs, 7).is_ok());
    (discard.lsid, discard.records[0].lsid) = (u64::MAX - 1, u64::MAX);
    assert_eq!(
        Header::decode(&discard.encode(pbs, 7), pbs, 7)
            .unwrap_err()
            .what,
        "record lsid"
    );
}

#[test]
fn blocks_of_a_log_device() {
    let pbs = PhysicalBlock::B512;
    let block = small_pack().encode(pbs, 7);
    assert_eq!(classify(&block, pbs, 7, 100), Block::Pack(small_pack()));
    let reason = |block: &[u8], salt, lsid| match classify(block, pbs, salt, lsid) {
        Block::NotAPack(flaw) => flaw.what,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&block, 7, 163), "logpack lsid");
    assert_eq!(reason(&block, 8, 100), "logpack header checksum");
    assert_eq!(reason(&[0; 512], 7, 100), "logpack sector type");
    assert_eq!(reason(&block[..511], 7, 100), "logpack header");
    assert_eq!(classify(&end_block(pbs, 7), pbs, 7, 100), Block::End);
    assert_eq!(
        reason(&end_block(pbs, 8), 7, 100),
        "logpack header checksum"
    );
    // No records, but the wanted lsid: neither an end nor a pack.
    let empty = Header {
        records: vec![],
        total_pb: 0,
        n_padding: 0,
        ..small_pack()
    };
    assert!(matches!(
        classify(&empty.encode(pbs, 7), pbs, 7, 100),
        Block::Broken(_)
    ));
}

#[test]
fn the_end_block_is_the_documented_one() {
    let block = end_block(PhysicalBlock::B4096, 0xcfa0_8b82);
    let head = [
        0x7d, 0x74, 0x5f, 0x30, 3, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0,
    ];
    assert_eq!(block[..20], head);
    assert!(crate::bytes::is_zero(&block[20..]));
    assert!(is_end_block(&block, PhysicalBlock::B4096, 0xcfa0_8b82));
    assert!(!is_end_block(
        &block[..512],
        PhysicalBlock::B4096,
        0xcfa0_8b82
    ));
}

#[test]
fn an_end_block_that_counts_something_is_none() {
    let pbs = PhysicalBlock::B512;
    for (at, what) in [
        (6, "n_records"),     // total_io_size
        (16, "logpack lsid"), // n_records: a pack at the invalid lsid
        (18, "n_records"),    // n_padding
    ] {
        let mut block = end_block(pbs, 7);
        block[at] = 1;
        embed(&mut block, 0, 7);
        assert!(!is_end_block(&block, pbs, 7), "{what}");
        assert_eq!(Header::decode(&block, pbs, 7).unwrap_err().what, what);
        assert!(matches!(classify(&block, pbs, 7, 100), Block::NotAPack(_)));
    }
}

#[test]
fn a_large_io_goes_alone_and_a_ring_must_hold_it() {
    let pbs = PhysicalBlock::B512;
    let mut builder = Builder::new(pbs, 0, 0).with_max_pack(8).with_ring(100);
    assert_eq!(builder.push(RecordKind::Data, 0, 1, 0), Ok(vec![]));
    assert_eq!(builder.push(RecordKind::Data, 0, 9, 0).unwrap().len(), 1);
    assert_eq!(
        builder.push(RecordKind::Data, 0, 1, 0).unwrap()[0].total_pb,
        9
    );
    assert!(builder.push(RecordKind::Data, 0, 100, 0).is_err());
    assert!(builder.push(RecordKind::Data, 0, 0, 0).is_err());
    assert_eq!(builder.finish().unwrap().records.len(), 1);
    assert_eq!(builder.finish(), None);
    assert!(
        Builder::new(pbs, 0, u64::MAX - 5)
            .push(RecordKind::Data, 0, 1, 0)
            .is_err()
    );
}

#[test]
fn a_full_pack_takes_no_discard_whose_place_has_no_number() {
    let mut builder = Builder::new(PhysicalBlock::B512, 0, 0);
    assert_eq!(
        builder.push(RecordKind::Data, 0, MAX_IO_BLOCKS, 0),
        Ok(vec![])
    );
    assert_eq!(builder.push(RecordKind::Discard, 0, 1, 0).unwrap().len(), 1);
}
