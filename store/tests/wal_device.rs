//! Volumes on real files: what is written comes back, also after the process is gone.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walkeep_store::Meter;
use walkeep_store::block::{BlockDevice, Op, Refusal, Reply};
use walkeep_store::ldev::{FormatOptions, LogDevice, format};
use walkeep_store::wal_device::recover::Recovered;
use walkeep_store::wal_device::volume::ask;
use walkeep_store::wal_device::{Control, Host, Limits, Paths, Volume};
use walkeep_wire::PhysicalBlock;

const MIB: u64 = 1 << 20;

fn make(dir: &Path, pbs: PhysicalBlock) -> Paths {
    let paths = Paths {
        log: dir.join("log"),
        data: dir.join("data"),
        state: dir.join("state"),
    };
    File::create(&paths.log).unwrap().set_len(4 * MIB).unwrap();
    File::create(&paths.data)
        .unwrap()
        .set_len(16 * MIB)
        .unwrap();
    let options = FormatOptions {
        data_blocks: 16 * MIB / 512,
        pbs,
        name: "v",
        force: false,
    };
    format(&paths.log, &options).unwrap();
    paths
}

fn open(host: &Arc<Host>, paths: &Paths) -> Arc<Volume> {
    reopen(host, paths).0
}

/// A dropped volume lets go of its files when the last completion has looked for it.
fn reopen(host: &Arc<Host>, paths: &Paths) -> (Arc<Volume>, Recovered) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Volume::open(host, paths, Limits::default()) {
            Ok(opened) => return opened,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn write(volume: &Volume, offset: u64, data: Vec<u8>, fua: bool) {
    let data = Bytes::from(data);
    let reply = ask(volume, Op::Write { offset, data, fua });
    assert!(matches!(reply, Ok(Reply::Done)), "{reply:?}");
}

fn read(volume: &Volume, offset: u64, len: u32) -> Vec<u8> {
    match ask(volume, Op::Read { offset, len }) {
        Ok(Reply::Data(parts)) => parts.concat(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn writes_come_back_before_and_after_a_restart() {
    for pbs in [PhysicalBlock::B512, PhysicalBlock::B4096] {
        let dir = tempfile::tempdir().unwrap();
        let paths = make(dir.path(), pbs);
        let host = Host::new().unwrap();
        let volume = open(&host, &paths);
        assert!(
            Volume::open(&host, &paths, Limits::default()).is_err(),
            "two servers"
        );
        write(&volume, 512, vec![1; 8192], false);
        write(&volume, 4096, vec![2; 512], true);
        write(&volume, MIB, vec![3; 3 << 20], false);
        assert!(matches!(
            ask(
                &*volume,
                Op::Trim {
                    offset: MIB,
                    len: 4096,
                    fua: false
                }
            ),
            Ok(Reply::Done)
        ));
        let check = |volume: &Volume| {
            assert_eq!(read(volume, 0, 512), vec![0; 512]);
            assert_eq!(read(volume, 512, 3584), vec![1; 3584]);
            assert_eq!(read(volume, 4096, 1024), [[2; 512], [1; 512]].concat());
            assert_eq!(read(volume, MIB, 4096), vec![0; 4096]);
            assert_eq!(read(volume, MIB + 4096, 4096), vec![3; 4096]);
        };
        check(&volume);
        let mark = volume.mark().unwrap();
        assert!(mark > 0 && volume.status().positions.permanent >= mark);
        // As if killed: nothing was brought to the data in order.
        drop(volume);
        let volume = open(&host, &paths);
        check(&volume);
        volume.close().unwrap();
        assert!(matches!(
            ask(&*volume, Op::Flush),
            Err(Refusal::ShuttingDown)
        ));
        drop(volume);
        let (volume, recovered) = reopen(&host, &paths);
        assert_eq!((recovered.packs, recovered.cleared), (0, 0));
        check(&volume);
        volume
            .set_oldest(volume.status().positions.prev_written)
            .unwrap();
        volume.reset().unwrap();
        volume.resize(Some(17 * MIB)).unwrap();
        assert_eq!(volume.geometry().size, 17 * MIB);
        write(&volume, 16 * MIB, vec![9; 512], true);
        check(&volume);
        volume.close().unwrap();
        drop(volume);
        let end = LogDevice::open(&paths.log)
            .unwrap()
            .find_end(0, &Meter::default());
        assert_eq!(end.unwrap().packs, 1);
    }
}
