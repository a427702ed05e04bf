use super::super::replace;
use super::*;

const CUTS: u64 = 2000;

fn at(text: &str) -> &Path {
    Path::new(text)
}

fn write(file: &dyn DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], offset)
}

/// A disk with one durable file of this content.
fn disk_with(path: &str, bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new(1);
    disk.put(at(path), bytes).unwrap();
    disk
}

fn fault(path: &str, operation: Operation, when: When, errno: i32) -> Fault {
    Fault {
        path: at(path).to_owned(),
        operation,
        when,
        errno,
    }
}

/// What many cuts of one moment leave of a file.
fn cuts_of(disk: &SimDisk, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    let mut random = Random::new(7);
    let cut = |_| disk.power_cut(&mut random).contents(at(path)).ok();
    (0..CUTS).map(cut).collect()
}

#[test]
fn what_was_synced_survives_and_the_rest_may() {
    let disk = disk_with("/a/b/file", &[1; 1024]);
    let file = disk.open(at("/a/b/file"), Mode::Write).unwrap();
    write(&*file, &[2; 512], 0).unwrap();
    file.sync().unwrap();
    write(&*file, &[3; 512], 512).unwrap();
    let cut = |last| Some([[2; 512], [last; 512]].concat());
    assert_eq!(cuts_of(&disk, "/a/b/file"), [cut(1), cut(3)].into());
    let killed = disk.kill();
    assert_eq!(killed.contents(at("/a/b/file")).ok(), cut(3));
    assert_eq!(
        cuts_of(&killed, "/a/b/file").len(),
        2,
        "a kill made it durable"
    );
    file.sync().unwrap();
    assert_eq!(cuts_of(&disk, "/a/b/file"), [cut(3)].into());
}

#[test]
fn unsynced_writes_survive_in_every_subset_and_are_torn_at_sectors() {
    let disk = disk_with("file", &[0; 2048]);
    let file = disk.open(at("file"), Mode::Write).unwrap();
    write(&*file, &[1; 1024], 0).unwrap();
    write(&*file, &[1; 1024], 1024).unwrap();
    let found = cuts_of(&disk, "file");
    let sectors = |bytes: &Option<Vec<u8>>| {
        let bytes = bytes.as_ref().unwrap();
        let sector = |s: &[u8]| {
            assert!(s.iter().all(|b| *b == s[0]), "torn within a sector");
            s[0]
        };
        bytes.chunks(512).map(sector).collect::<Vec<_>>()
    };
    assert_eq!(found.iter().map(sectors).collect::<BTreeSet<_>>().len(), 16);
}

#[test]
fn syncing_one_file_does_nothing_for_another() {
    let disk = disk_with("a", b"old");
    disk.put(at("b"), b"old").unwrap();
    let (a, b) = ["a", "b"]
        .map(|path| disk.open(at(path), Mode::Write).unwrap())
        .into();
    write(&*a, b"new", 0).unwrap();
    write(&*b, b"new", 0).unwrap();
    a.sync().unwrap();
    assert_eq!(cuts_of(&disk, "a"), [Some(b"new".to_vec())].into());
    assert_eq!(cuts_of(&disk, "b").len(), 2);
}

#[test]
fn sizes_and_holes_are_lost_as_writes_are() {
    let disk = disk_with("file", &[1; 8192]);
    let file = disk.open(at("file"), Mode::Write).unwrap();
    file.punch(0, 4096).unwrap();
    file.zero(4096, 10).unwrap();
    file.set_size(8191).unwrap();
    assert_eq!(file.next_data(0).unwrap(), Some(4096));
    assert_eq!(file.next_hole(4096).unwrap(), 8191);
    assert_eq!(cuts_of(&disk, "file").len(), 8);
    file.sync().unwrap();
    assert_eq!(cuts_of(&disk, "file").len(), 1);
}

#[test]
fn names_survive_in_order_up_to_some_point() {
    let disk = SimDisk::new(1);
    disk.make_dir(at("dir")).unwrap();
    disk.sync_dir(at("/")).unwrap();
    disk.open(at("dir/a"), Mode::Create).unwrap();
    disk.rename(at("dir/a"), at("dir/b")).unwrap();
    disk.open(at("dir/c"), Mode::Create).unwrap();
    disk.unlink(at("dir/b")).unwrap();
    let names = |disk: &SimDisk| {
        let mut random = Random::new(7);
        let cut = |_| disk.power_cut(&mut random).list(at("dir")).unwrap();
        (0..CUTS).map(cut).collect::<BTreeSet<_>>()
    };
    let list = |names: &[&str]| names.iter().map(OsString::from).collect::<Vec<_>>();
    let expected = [
        list(&[]),
        list(&["a"]),
        list(&["b"]),
        list(&["b", "c"]),
        list(&["c"]),
    ];
    assert_eq!(names(&disk), expected.into());
    disk.sync_dir(at("dir")).unwrap();
    assert_eq!(names(&disk), [list(&["c"])].into());
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_gone() {
    let disk = SimDisk::new(1);
    let file = disk.open(at("file"), Mode::Create).unwrap();
    write(&*file, b"text", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(
        cuts_of(&disk, "file"),
        [None, Some(b"text".to_vec())].into()
    );
    disk.sync_dir(at("/")).unwrap();
    disk.unlink(at("file")).unwrap();
    drop(file);
    assert_eq!(
        cuts_of(&disk, "file"),
        [None, Some(b"text".to_vec())].into()
    );
}

#[test]
fn unnamed_files_vanish_and_linked_ones_stay() {
    let disk = disk_with("taken", b"old");
    let file = disk.create_unnamed(at("/")).unwrap();
    write(&*file, b"text", 0).unwrap();
    let taken = file.link(at("taken")).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    drop(disk.create_unnamed(at("/")).unwrap());
    file.link(at("file")).unwrap();
    disk.sync_dir(at("/")).unwrap();
    assert_eq!(disk.state.lock().files.len(), 2);
    drop(file);
    assert_eq!(disk.contents(at("file")).unwrap(), b"text");
}

#[test]
fn after_the_cut_everything_fails_and_only_the_first_may_have_happened() {
    let mut contents = BTreeSet::new();
    for seed in 0..CUTS {
        let disk = SimDisk::new(seed);
        disk.put(at("file"), b"0000").unwrap();
        let file = disk.open(at("file"), Mode::Write).unwrap();
        disk.cut_after(2);
        write(&*file, b"1", 0).unwrap();
        file.sync().unwrap();
        let errors = [
            write(&*file, b"222", 1).unwrap_err(),
            write(&*file, b"3333", 0).unwrap_err(),
            file.sync().unwrap_err(),
            file.read_at(&mut [0], 0).unwrap_err(),
            disk.open(at("file"), Mode::Read).unwrap_err(),
            disk.sync_dir(at("/")).unwrap_err(),
        ];
        assert!(errors.iter().all(PowerGone::is_cause_of));
        let counts = disk.operations();
        assert_eq!((counts.reads, counts.writes, counts.syncs), (0, 2, 1));
        let after = disk.power_cut(&mut Random::new(seed));
        contents.insert(after.contents(at("file")).unwrap());
        let file = after.open(at("file"), Mode::Write).unwrap();
        write(&*file, b"good", 0).unwrap();
    }
    let expected = [&b"1000"[..], b"1222"].map(<[u8]>::to_vec);
    assert_eq!(contents, expected.into());
}

#[test]
fn faults_befall_the_named_file_and_operation() {
    let disk = disk_with("a", &[0; 10]);
    disk.put(at("b"), &[0; 10]).unwrap();
    let (a, b) = ["a", "b"]
        .map(|path| disk.open(at(path), Mode::Write).unwrap())
        .into();
    let errno = |done: io::Result<()>| done.err().and_then(|e| e.raw_os_error());
    disk.inject(fault("a", Operation::Write, When::After(1), libc::ENOSPC));
    disk.inject(fault("a", Operation::Read, When::OneIn(1), libc::EIO));
    write(&*a, b"1", 0).unwrap();
    write(&*b, b"1", 0).unwrap();
    assert_eq!(errno(write(&*a, b"2", 0)), Some(libc::ENOSPC));
    write(&*a, b"3", 0).unwrap();
    for _ in 0..3 {
        assert_eq!(errno(a.read_at(&mut [0], 0)), Some(libc::EIO));
    }
    b.read_at(&mut [0], 0).unwrap();
    disk.heal();
    a.read_at(&mut [0], 0).unwrap();
    disk.inject(fault("/", Operation::Sync, When::After(0), libc::EIO));
    assert_eq!(errno(disk.sync_dir(at("/"))), Some(libc::EIO));
    disk.sync_dir(at("/")).unwrap();
    disk.inject(fault("b", Operation::Write, When::OneIn(2), libc::EIO));
    let failed = (0..1000).filter(|_| write(&*b, b"x", 0).is_err()).count();
    assert!((400..600).contains(&failed), "{failed}");
}

#[test]
fn a_failed_sync_forgets_what_reads_still_show() {
    let mut kept = BTreeSet::new();
    for seed in 0..CUTS {
        let disk = SimDisk::new(seed);
        disk.put(at("file"), &[0; 512]).unwrap();
        let file = disk.open(at("file"), Mode::Write).unwrap();
        let other = disk.open(at("file"), Mode::Write).unwrap();
        write(&*file, &[1; 512], 0).unwrap();
        disk.inject(fault("file", Operation::Sync, When::After(0), libc::EIO));
        assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
        file.sync().unwrap();
        let late = disk.open(at("file"), Mode::Write).unwrap();
        late.sync().unwrap();
        // Who had it open before hears of it once.
        assert_eq!(other.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
        other.sync().unwrap();
        assert_eq!(disk.contents(at("file")).unwrap(), [1; 512]);
        disk.drop_caches();
        let found = disk.contents(at("file")).unwrap();
        let after = disk.power_cut(&mut Random::new(seed));
        assert_eq!(after.contents(at("file")).unwrap(), found);
        kept.insert(found[0]);
        write(&*late, &[1; 512], 0).unwrap();
        disk.drop_caches();
        assert_eq!(disk.contents(at("file")).unwrap(), [1; 512]);
    }
    assert_eq!(kept, [0, 1].into());
}

#[test]
fn media_rot_and_drop_writes() {
    let disk = disk_with("file", &[0; 1024]);
    let old = disk.kill();
    let file = disk.open(at("file"), Mode::Write).unwrap();
    write(&*file, &[1; 1024], 0).unwrap();
    file.sync().unwrap();
    disk.make_stale(at("file"), 512, 512, &old).unwrap();
    disk.flip_bits(at("file"), 3, 0x80).unwrap();
    let mut expected = [[1; 512], [0; 512]].concat();
    expected[3] = 0x81;
    assert_eq!(cuts_of(&disk, "file"), [Some(expected)].into());
}

#[test]
fn one_opener_has_the_lock() {
    let disk = disk_with("file", b"");
    let open = |disk: &SimDisk| disk.open(at("file"), Mode::Write).unwrap();
    let (first, second) = (open(&disk), open(&disk));
    first.lock().unwrap();
    first.lock().unwrap();
    assert_eq!(second.lock().unwrap_err().kind(), ErrorKind::WouldBlock);
    open(&disk.kill()).lock().unwrap();
    drop(first);
    second.lock().unwrap();
}

#[test]
fn files_opened_for_reading_cannot_be_written() {
    let disk = disk_with("file", b"text");
    let file = disk.open(at("file"), Mode::Read).unwrap();
    assert!(write(&*file, b"x", 0).is_err());
    assert!(file.set_size(0).is_err());
    let eof = file.read_at(&mut [0; 5], 0).unwrap_err();
    assert_eq!(eof.kind(), ErrorKind::UnexpectedEof);
    assert!(disk.open(at("file"), Mode::Create).is_err());
    assert!(disk.open(at("none"), Mode::Write).is_err());
    assert!(disk.open(at("file/x"), Mode::Create).is_err());
}

#[test]
fn a_volume_of_terabytes_costs_what_is_written_to_it() {
    let disk = disk_with("volume", b"");
    let file = disk.open(at("volume"), Mode::Write).unwrap();
    file.set_size(1 << 44).unwrap();
    write(&*file, b"text", 1 << 43).unwrap();
    file.punch(1 << 20, 1 << 42).unwrap();
    file.sync().unwrap();
    assert_eq!(file.next_data(0).unwrap(), Some(1 << 43));
    let copy = disk.kill().open(at("volume"), Mode::Read).unwrap();
    let mut found = [0; 4];
    copy.read_at(&mut found, 1 << 43).unwrap();
    assert_eq!(&found, b"text");
}

#[test]
fn the_same_calls_give_the_same_disk() {
    let run = |seed| {
        let disk = SimDisk::new(seed);
        let file = disk.open(at("file"), Mode::Create).unwrap();
        disk.inject(fault("file", Operation::Write, When::OneIn(3), libc::EIO));
        let done: Vec<bool> = (0..100)
            .map(|i| write(&*file, &[i; 2048], u64::from(i) * 1000).is_ok())
            .collect();
        let after = disk.power_cut(&mut Random::new(seed));
        (done, after.contents(at("file")).ok())
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn a_replacement_is_the_old_or_the_new_content_wherever_it_is_cut() {
    let (old, new) = (vec![1; 700], vec![2; 1700]);
    for cut in 0.. {
        let disk = disk_with("dir/state", &old);
        disk.put(at("dir/state.new"), b"left by a crash").unwrap();
        disk.cut_after(cut);
        let done = replace(&disk, at("dir/state"), &new);
        for seed in 0..50 {
            let after = disk.power_cut(&mut Random::new(seed));
            let found = after.contents(at("dir/state")).unwrap();
            assert!(
                found == new || found == old && done.is_err(),
                "{cut} {seed}"
            );
            replace(&after, at("dir/state"), b"next").unwrap();
            assert_eq!(after.list(at("dir")).unwrap(), ["state"]);
        }
        if done.is_ok() {
            return;
        }
    }
}
