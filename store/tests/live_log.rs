//! Cutting a log that is written to meanwhile: only what is durable, nothing that was overwritten.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use walkeep_store::ldev::{LiveLog, LogDevice, Window};
use walkeep_store::{Error, Meter, Workers};
use walkeep_wire::PhysicalBlock;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::ldev::ring::primary_position;
use walkeep_wire::wlog::generate::{DataKind, Generator, Options};

/// A log device with packs, and the lsids after each of them.
struct Case {
    dir: tempfile::TempDir,
    superblock: Superblock,
    ends: Vec<u64>,
}

const LDEV_BYTES: u64 = 32 << 20;

fn case() -> Case {
    let options = Options {
        seed: 5,
        total_bytes: 12 << 20,
        device_blocks: 1 << 17,
        pbs: PhysicalBlock::B512,
        min_io: 8,
        max_io: 128,
        data: DataKind::Random,
        discard: true,
        all_zero: false,
        padding: true,
        begin_lsid: 0,
    };
    let generator = Generator::new(options).unwrap();
    let header = generator.file_header();
    let superblock = Superblock::format(
        header.uuid,
        header.salt,
        "live",
        1 << 17,
        LDEV_BYTES,
        header.pbs,
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("ldev")).unwrap();
    file.set_len(LDEV_BYTES).unwrap();
    file.write_all_at(&superblock.encode(), primary_position())
        .unwrap();
    let mut ends = Vec::new();
    for pack in generator {
        let at = superblock.ring.position(pack.header.lsid);
        let head = pack.header.encode(header.pbs, header.salt);
        file.write_all_at(&head, at).unwrap();
        file.write_all_at(&pack.data, at + head.len() as u64)
            .unwrap();
        ends.push(pack.header.next_lsid());
    }
    Case {
        dir,
        superblock,
        ends,
    }
}

/// Tells one window after the other; the last one again and again.
struct Script(RefCell<Vec<Window>>);

impl LiveLog for Script {
    fn window(&self) -> Result<Window, Error> {
        let mut windows = self.0.borrow_mut();
        Ok(match windows.len() {
            1 => windows[0].clone(),
            _ => windows.remove(0),
        })
    }
}

impl Case {
    fn window(&self, permanent: u64, latest: u64) -> Window {
        Window {
            uuid: self.superblock.uuid.to_string(),
            oldest: 0,
            permanent,
            latest,
            overflow: false,
        }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out.wlog")
    }

    fn cut(&self, begin: Option<u64>, windows: Vec<Window>) -> Result<(u64, u64), String> {
        let device = LogDevice::open(&self.dir.path().join("ldev")).unwrap();
        let script = Script(RefCell::new(windows));
        device
            .cat_live(&self.out(), begin, None, &script, &Meter::default())
            .map_err(|e| e.to_string())
    }

    fn spoil(&self, lsid: u64) {
        let path = self.dir.path().join("ldev");
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0x5a; 512], self.superblock.ring.position(lsid))
            .unwrap();
    }

    fn fails(&self, windows: Vec<Window>, expected: &str) {
        let error = self.cut(None, windows).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(!self.out().exists(), "a failed cut left a file");
    }
}

#[test]
fn only_what_is_durable_is_cut() {
    let case = case();
    let (middle, end) = (case.ends[case.ends.len() / 2], *case.ends.last().unwrap());
    // What is not durable may be torn.
    case.spoil(middle);
    let range = case.cut(None, vec![case.window(middle, end)]).unwrap();
    assert_eq!(range, (0, middle));
    let report =
        walkeep_store::wlog::verify(&case.out(), Workers::default(), &Meter::default()).unwrap();
    assert_eq!(report.statistics.real_end_lsid, middle);
    let from = case.ends[0];
    let range = case.cut(Some(from), vec![case.window(middle, end)]);
    assert_eq!(range.unwrap(), (from, middle));
    let range = case.cut(Some(middle), vec![case.window(middle, end)]);
    assert_eq!(range.unwrap(), (middle, middle));
}

#[test]
fn a_lapped_reader_notices() {
    let case = case();
    let end = *case.ends.last().unwrap();
    let ring = case.superblock.ring.size();
    let start = case.window(end, end);
    case.fails(
        vec![start.clone(), case.window(end, ring + 1)],
        "the log overflowed",
    );
    // Later chunks have room for longer.
    let latest = ring + 1;
    let windows = vec![start.clone(), start.clone(), case.window(latest, latest)];
    assert_eq!(case.cut(None, windows).unwrap(), (0, end));
    std::fs::remove_file(case.out()).unwrap();
    // What the writer left there is no news about the log.
    case.spoil(case.ends[0]);
    case.fails(
        vec![start.clone(), case.window(latest, latest)],
        "the log overflowed",
    );
    case.fails(vec![start], "packs are lost");
}

#[test]
fn a_reset_and_an_overflow_are_noticed() {
    let case = case();
    let end = *case.ends.last().unwrap();
    let start = case.window(end, end);
    let reset = Window {
        uuid: "0".repeat(32),
        ..start.clone()
    };
    case.fails(vec![reset.clone()], "it was reset meanwhile");
    case.fails(vec![start.clone(), reset], "it was reset meanwhile");
    let overflow = Window {
        overflow: true,
        ..start.clone()
    };
    case.fails(vec![overflow], "the log overflowed");
    let error = case.cut(Some(1), vec![start.clone()]).unwrap_err();
    assert!(error.contains("expected the lsid of a pack"), "{error}");
    let newer = Window { oldest: 9, ..start };
    let error = case.cut(Some(0), vec![newer]).unwrap_err();
    assert!(error.contains("at least the oldest lsid 9"), "{error}");
}
