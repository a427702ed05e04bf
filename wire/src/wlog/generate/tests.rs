use proptest::prelude::*;

use super::*;
use crate::wlog::{Reader, Writer};

fn kind() -> impl Strategy<Value = DataKind> {
    prop_oneof![
        Just(DataKind::Random),
        Just(DataKind::Compressible),
        Just(DataKind::Zero)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_workload_is_a_readable_wlog(
        seed: u64, total_bytes in 0u64..1 << 19, shift in 0..4u32, data in kind(),
        io in (1u32..300, 0u32..300), room in 0u64..10_000, on: [bool; 3], lsid in 0..u64::MAX / 2,
    ) {
        let options = Options {
            seed,
            total_bytes,
            device_blocks: room + u64::from(io.0 + io.1),
            pbs: PhysicalBlock::new(512 << shift, 0).unwrap(),
            min_io: io.0,
            max_io: io.0 + io.1,
            data,
            discard: on[0],
            all_zero: on[1],
            padding: on[2],
            begin_lsid: lsid,
        };
        check(options)?;
    }
}

/// Writes the workload, reads it back, and checks it against the options.
fn check(options: Options) -> Result<(), TestCaseError> {
    let packs = Generator::new(options.clone()).unwrap();
    let mut writer = Writer::new(vec![], "test", packs.file_header()).unwrap();
    for pack in packs {
        writer.write_pack(&pack.header, &pack.data).unwrap();
    }
    let bytes = writer.finish().unwrap();
    let (mut reader, mut data, mut made) = (Reader::new(&bytes[..], "test"), vec![], 0);
    while reader.next_pack().unwrap().is_some() {
        while let Some(record) = reader.read_data(&mut data).unwrap() {
            prop_assert!(options.discard || record.kind != RecordKind::Discard);
            prop_assert!(options.padding || record.kind != RecordKind::Padding);
            prop_assert!(record.address + u64::from(record.blocks) <= options.device_blocks);
            made += data.len() as u64;
        }
    }
    let most = options.total_bytes + blocks_to_bytes(options.max_io);
    prop_assert!(options.total_bytes <= made && made < most);
    Ok(())
}

#[test]
fn bytes_are_stable() {
    let packs = Generator::new(Options {
        total_bytes: 1 << 20,
        ..Options::default()
    })
    .unwrap();
    let file = packs.file_header();
    assert_eq!(file.uuid.to_string(), "afcd1d7b39a820e2f465b9a16a9e786e");
    let sums: Vec<_> = packs.map(|p| (p.header.lsid, p.header.checksum)).collect();
    assert_eq!(sums, [(0, 248_051_471), (245, 3_896_728_812)]);
}

#[test]
fn everything_occurs() {
    let options = Options {
        min_io: 1,
        max_io: 16,
        ..Options::default()
    };
    let (mut data, mut discard, mut zero, mut padding, mut empty) = (0, 0, 0, 0, 0);
    for pack in Generator::new(options.clone()).unwrap() {
        assert!(pack.data.len() <= 1 << 20);
        for record in &pack.header.records {
            match record.kind {
                RecordKind::Data => data += 1,
                RecordKind::Discard => discard += 1,
                RecordKind::Padding => padding += 1,
            }
            empty += u32::from(record.blocks == 0);
            let start = record.data_offset(options.pbs) as usize - options.pbs.bytes();
            if record.kind == RecordKind::Data {
                let bytes = &pack.data[start..][..record.bytes() as usize];
                zero += u32::from(crate::bytes::is_zero(bytes));
            }
        }
    }
    for n in [discard, zero, padding] {
        assert!((data / 30..data / 12).contains(&n), "{n} of {data}");
    }
    assert!(empty > 0);
}

#[test]
fn options_are_checked() {
    let good = Options::default();
    let bad = [
        (
            "min_io",
            Options {
                min_io: 0,
                ..good.clone()
            },
        ),
        (
            "min_io",
            Options {
                min_io: 129,
                ..good.clone()
            },
        ),
        (
            "max_io",
            Options {
                max_io: 65536,
                ..good.clone()
            },
        ),
        (
            "device_blocks",
            Options {
                device_blocks: 127,
                ..good.clone()
            },
        ),
        (
            "device_blocks",
            Options {
                device_blocks: 1 << 55,
                ..good.clone()
            },
        ),
        (
            "begin_lsid",
            Options {
                begin_lsid: 7 << 61,
                total_bytes: u64::MAX,
                ..good.clone()
            },
        ),
        (
            "begin_lsid",
            Options {
                begin_lsid: u64::MAX - 10,
                ..good.clone()
            },
        ),
    ];
    for (option, options) in bad {
        assert_eq!(Generator::new(options).unwrap_err().option, option);
    }
    let huge = Options {
        max_io: 65535,
        min_io: 65535,
        total_bytes: 1,
        ..good
    };
    assert_eq!(Generator::new(huge).unwrap().count(), 1);
}
