use proptest::prelude::*;

use super::*;
use crate::checksum::embed;
use crate::logpack::{Builder, RecordKind, end_block};
use crate::wlog::generate::{Generator, Options};
use crate::wlog::{Reader, Writer};

const FILE: FileHeader = FileHeader {
    salt: 7,
    pbs: PhysicalBlock::B512,
    uuid: Uuid([1; 16]),
    begin_lsid: 100,
    end_lsid: u64::MAX,
};

fn pack(lsid: u64) -> Vec<u8> {
    let mut builder = Builder::new(FILE.pbs, FILE.salt, lsid);
    builder.push(RecordKind::Data, 0, 3, 0).unwrap();
    builder.finish().unwrap().encode(FILE.pbs, FILE.salt)
}

fn begun(file: FileHeader) -> Walk {
    let mut walk = Walk::new();
    walk.feed(&file.encode()).unwrap();
    walk
}

fn workload(seed: u64, pbs: PhysicalBlock) -> Vec<u8> {
    let options = Options {
        seed,
        pbs,
        min_io: 1,
        max_io: 20,
        total_bytes: 20_000,
        ..Options::default()
    };
    let packs = Generator::new(options).unwrap();
    let mut writer = Writer::new(vec![], "test", packs.file_header()).unwrap();
    packs.for_each(|pack| writer.write_pack(&pack.header, &pack.data).unwrap());
    writer.finish().unwrap()
}

fn read_all(bytes: &[u8]) -> crate::Result<()> {
    let mut reader = Reader::new(bytes, "test");
    while reader.next_pack()?.is_some() {}
    Ok(())
}

#[test]
fn positions_lsids_and_ends() {
    let mut walk = Walk::new();
    assert_eq!(
        (walk.position(), walk.need(), walk.may_end_here()),
        (0, 4096, false)
    );
    assert_eq!(walk.feed(&FILE.encode()), Ok(Step::Header(FILE)));
    assert_eq!(
        (walk.position(), walk.need(), walk.lsid()),
        (4096, 512, 100)
    );
    assert!(matches!(walk.feed(&pack(100)), Ok(Step::Pack(_))));
    assert_eq!(
        (walk.pack_position(), walk.position(), walk.lsid()),
        (4096, 6144, 104)
    );
    assert_eq!(walk.finish().unwrap_err().offset, 6144);
    let end = end_block(FILE.pbs, FILE.salt);
    assert_eq!(walk.feed(&end), Ok(Step::End { real_end_lsid: 104 }));
    assert_eq!((walk.position(), walk.need()), (6656, 4096));
    assert_eq!(walk.finish(), Ok(()));
    let next = FileHeader {
        begin_lsid: 104,
        salt: 8,
        ..FILE
    };
    assert_eq!(walk.feed(&next.encode()), Ok(Step::Header(next)));
    assert!(walk.finish().is_err());
}

#[test]
fn a_gap_a_bound_and_foreign_blocks_are_flaws_at_their_place() {
    let mut walk = begun(FILE);
    let flaw = walk.feed(&pack(101)).unwrap_err();
    assert_eq!((flaw.offset, flaw.what), (4096 + 8, "logpack lsid"));
    let flaw = walk.feed(&[0; 512]).unwrap_err();
    assert_eq!((flaw.offset, flaw.what), (4096 + 4, "logpack sector type"));
    let flaw = walk.feed(&pack(100)[..100]).unwrap_err();
    assert_eq!(flaw.offset, 4196);
    // No flaw has moved the walk.
    assert!(walk.feed(&pack(100)).is_ok());

    assert!(
        begun(FileHeader {
            end_lsid: 104,
            ..FILE
        })
        .feed(&pack(100))
        .is_ok()
    );
    let flaw = begun(FileHeader {
        end_lsid: 103,
        ..FILE
    })
    .feed(&pack(100))
    .unwrap_err();
    assert_eq!(flaw.what, "end of the logpack");
}

#[test]
fn an_end_block_that_counts_something_is_refused() {
    let whole = workload(3, PhysicalBlock::B512);
    let FileHeader { salt, pbs, .. } = FileHeader::decode(&whole[..FileHeader::BYTES]).unwrap();
    let (packs, end) = whole.split_at(whole.len() - pbs.bytes());
    assert_eq!(end, end_block(pbs, salt));
    // total_io_size, n_records and n_padding, and the offset of what is then wrong.
    for (at, offset) in [(6, 16), (16, 8), (18, 16)] {
        let mut bad = end.to_vec();
        bad[at] = 1;
        embed(&mut bad, 0, salt);
        let place = format!("test: offset {}: ", packs.len() + offset);
        // Data after it, as much as total_io_size says, makes it no better.
        for file in [[packs, &bad].concat(), [packs, &bad, &[0; 512]].concat()] {
            let error = read_all(&file).unwrap_err().to_string();
            assert!(error.starts_with(&place), "{error}");
        }
    }
}

#[test]
fn a_wlog_that_does_not_continue_is_refused() {
    let bad = [
        (
            "begin_lsid of the next wlog",
            FileHeader {
                begin_lsid: 101,
                ..FILE
            },
        ),
        (
            "uuid of the next wlog",
            FileHeader {
                uuid: Uuid([2; 16]),
                ..FILE
            },
        ),
        (
            "physical block size of the next wlog",
            FileHeader {
                pbs: PhysicalBlock::B4096,
                ..FILE
            },
        ),
    ];
    for (what, file) in bad {
        let mut walk = begun(FILE);
        walk.feed(&end_block(FILE.pbs, FILE.salt)).unwrap();
        assert_eq!(walk.feed(&file.encode()).unwrap_err().what, what);
    }
}

#[test]
fn a_writer_makes_no_bad_file() {
    let header = crate::logpack::Header::decode(&pack(100), FILE.pbs, FILE.salt).unwrap();
    let new = || Writer::new(vec![], "test", FILE).unwrap();
    assert!(
        Writer::new(
            vec![],
            "test",
            FileHeader {
                end_lsid: 100,
                ..FILE
            }
        )
        .is_err()
    );
    assert!(new().write_pack(&header, &[0; 512]).is_err());
    assert!(new().begin_pack(&pack(101)).is_err());
    assert!(new().begin_pack(&end_block(FILE.pbs, FILE.salt)).is_err());
    let mut writer = new();
    writer.begin_pack(&pack(100)).unwrap();
    assert!(writer.begin_pack(&pack(104)).is_err());
    writer.write_data(&[0; 1000]).unwrap();
    assert!(writer.write_data(&[0; 537]).is_err());
    assert!(writer.finish().is_err());
    let empty = new().finish().unwrap();
    assert!(read_all(&empty).is_ok());
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = workload(3, PhysicalBlock::B512);
    assert!(read_all(&bytes).is_ok());
    for len in (0..bytes.len()).step_by(64).chain([bytes.len() - 1]) {
        let error = read_all(&bytes[..len]).unwrap_err().to_string();
        assert!(error.contains("truncated"), "{len}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..5)) {
        let (mut first, mut walk) = (Walk::new(), begun(FILE));
        for chunk in chunks {
            let _ = first.feed(&chunk);
            let _ = walk.feed(&chunk);
        }
        let _ = (first.finish(), walk.finish());
    }

    /// A flipped bit is found, unless it stands where nothing has a meaning (padding, tails).
    #[test]
    fn a_flipped_bit_never_panics(seed in 0..8u64, at: prop::sample::Index, bit in 0..8u8, cut in 0..4u32) {
        let mut bytes = workload(seed, PhysicalBlock::new(512 << cut, 0).unwrap());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let read = read_all(&bytes);
        prop_assert!(read.is_err() || at >= 4096 + 512);
    }
}
