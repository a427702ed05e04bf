use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Weak;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use walkeep_wire::random::Random;

use super::super::sim::{Fault, Operation, SimDisk, When};
use super::super::{Disk, Mode, RealDisk};
use super::*;

/// Longer than anything takes: a test that waits so long has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// Every engine that this machine has.
fn engines() -> Vec<Arc<dyn Engine>> {
    let mut engines: Vec<Arc<dyn Engine>> = vec![Arc::new(Threads::new())];
    match Uring::new() {
        Ok(uring) => engines.push(Arc::new(uring)),
        Err(e) => println!("no io_uring here: {e}"),
    }
    engines
}

/// An empty file on a real disk, whose directory goes with it, and one on a simulated disk.
fn files() -> [(Option<tempfile::TempDir>, Arc<dyn DiskFile>); 2] {
    let dir = tempfile::tempdir().unwrap();
    let real = RealDisk.open(&dir.path().join("file"), Mode::Create);
    let simulated = SimDisk::new(1).open(Path::new("file"), Mode::Create);
    [(Some(dir), real.unwrap()), (None, simulated.unwrap())]
}

/// Submits and waits.
fn run(engine: &dyn Engine, file: &Arc<dyn DiskFile>, op: FileOp) -> io::Result<Bytes> {
    let (tell, told) = unbounded();
    engine.submit(file, op, Box::new(move |result| tell.send(result).unwrap()));
    told.recv_timeout(DEADLINE).unwrap()
}

fn write(offset: u64, bytes: Vec<u8>) -> FileOp {
    let parts = vec![bytes.into()];
    FileOp::Write { offset, parts }
}

#[test]
fn operations_do_what_the_file_does() {
    for engine in engines() {
        for (_dir, file) in files() {
            let run = |op| run(&*engine, &file, op);
            let parts: Vec<Bytes> = (0..3000u32)
                .map(|i| vec![i as u8; i as usize % 3].into())
                .collect();
            let expected = parts.concat();
            let len = expected.len();
            assert!(run(FileOp::Write { offset: 5, parts }).unwrap().is_empty());
            assert!(run(FileOp::Sync).unwrap().is_empty());
            assert_eq!(run(FileOp::Read { offset: 5, len }).unwrap(), expected);
            assert_eq!(run(FileOp::Read { offset: 0, len: 5 }).unwrap(), [0; 5][..]);
            run(FileOp::Punch {
                offset: 6,
                bytes: 10,
            })
            .unwrap();
            run(FileOp::Zero {
                offset: 16,
                bytes: 4,
            })
            .unwrap();
            let found = run(FileOp::Read {
                offset: 0,
                len: len + 5,
            })
            .unwrap();
            assert_eq!(found[6..20], [0; 14]);
            assert_eq!(found[20..], expected[15..]);
            assert!(run(FileOp::Read { offset: 0, len: 0 }).unwrap().is_empty());
            run(FileOp::Write {
                offset: 0,
                parts: vec![Bytes::new()],
            })
            .unwrap();
        }
    }
}

#[test]
fn errors_reach_the_caller() {
    for engine in engines() {
        for (_dir, file) in files() {
            let run = |op| run(&*engine, &file, op).map_err(|e| e.kind());
            run(write(0, vec![1; 10])).unwrap();
            assert_eq!(
                run(FileOp::Read { offset: 5, len: 6 }),
                Err(ErrorKind::UnexpectedEof)
            );
            assert!(
                run(FileOp::Read {
                    offset: u64::MAX,
                    len: 1
                })
                .is_err()
            );
            assert!(run(write(u64::MAX, vec![1])).is_err());
        }
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("file"), Mode::Create).unwrap();
        disk.inject(Fault {
            path: "file".into(),
            operation: Operation::Sync,
            when: When::After(0),
            errno: libc::EIO,
        });
        let error = run(&*engine, &file, FileOp::Sync).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
}

/// More operations than any queue of an engine is long, from several threads that end at once.
#[test]
fn many_operations_from_many_threads_all_arrive() {
    const THREADS: u64 = 4;
    const EACH: u64 = 1500;
    for engine in engines() {
        for (_dir, file) in files() {
            let (tell, told) = unbounded();
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (engine, file, tell) = (&engine, &file, tell.clone());
                    scope.spawn(move || {
                        for i in (thread..THREADS * EACH).step_by(THREADS as usize) {
                            let op = match i % 100 {
                                99 => FileOp::Sync,
                                _ => write(i * 512, vec![i as u8; 512]),
                            };
                            let tell = tell.clone();
                            engine.submit(file, op, Box::new(move |r| tell.send(r).unwrap()));
                        }
                    });
                }
            });
            for _ in 0..THREADS * EACH {
                told.recv_timeout(DEADLINE).unwrap().unwrap();
            }
            assert!(told.is_empty(), "called back twice");
            for i in (0..THREADS * EACH).filter(|i| i % 100 != 99) {
                let mut found = [0; 512];
                file.read_at(&mut found, i * 512).unwrap();
                assert_eq!(found, [i as u8; 512]);
            }
        }
    }
}

#[test]
fn dropping_an_engine_finishes_what_it_has() {
    for engine in engines() {
        let (_dir, file) = files().into_iter().next().unwrap();
        let (tell, told) = unbounded();
        for i in 0..1000 {
            let tell = tell.clone();
            engine.submit(
                &file,
                write(i * 4096, vec![1; 4096]),
                Box::new(move |r| tell.send(r).unwrap()),
            );
        }
        drop(engine);
        assert_eq!(told.try_iter().filter(Result::is_ok).count(), 1000);
    }
}

#[test]
fn the_last_owner_may_be_a_callback_and_callbacks_may_submit() {
    for engine in engines() {
        for (_dir, file) in files() {
            let (tell, told) = unbounded();
            let (owner, again) = (engine.clone(), file.clone());
            engine.submit(
                &file,
                write(0, vec![7; 10]),
                Box::new(move |first| {
                    first.unwrap();
                    owner.submit(
                        &again,
                        FileOp::Read { offset: 0, len: 10 },
                        Box::new(move |read| {
                            tell.send(read.unwrap()).unwrap();
                        }),
                    );
                }),
            );
            assert_eq!(told.recv_timeout(DEADLINE).unwrap(), [7; 10][..]);
        }
        let (_dir, file) = files().into_iter().next().unwrap();
        let (tell, told) = unbounded();
        let slot: Arc<Mutex<Option<Arc<dyn Engine>>>> = Arc::default();
        let last = slot.clone();
        let op = FileOp::Sync;
        engine.submit(
            &file,
            op,
            Box::new(move |_| {
                // Whoever put it there has let go of it.
                let engine = loop {
                    if let Some(engine) = last.lock().take() {
                        break engine;
                    }
                    std::thread::yield_now();
                };
                drop(engine);
                tell.send(()).unwrap();
            }),
        );
        *slot.lock() = Some(engine);
        told.recv_timeout(DEADLINE).unwrap();
    }
}

#[test]
fn a_callback_that_panics_ends_nothing() {
    for engine in engines() {
        let (_dir, file) = files().into_iter().next().unwrap();
        for op in [write(0, vec![1]), FileOp::Sync] {
            for _ in 0..20 {
                engine.submit(&file, op.clone(), Box::new(|_| panic!("on purpose")));
            }
            run(&*engine, &file, op).unwrap();
        }
    }
}

#[test]
fn a_file_is_closed_before_the_callback() {
    for engine in engines() {
        for (_dir, file) in files() {
            let (tell, told) = unbounded();
            let seen: Weak<dyn DiskFile> = Arc::downgrade(&file);
            engine.submit(
                &file,
                FileOp::Sync,
                Box::new(move |_| {
                    tell.send(seen.strong_count()).unwrap();
                }),
            );
            assert_eq!(told.recv_timeout(DEADLINE).unwrap(), 1);
        }
    }
}

/// Random writes without overlap, then everything is read: as with a plain vector.
#[test]
fn random_writes_equal_a_model() {
    let seed = 11;
    for engine in engines() {
        for (_dir, file) in files() {
            let mut random = Random::new(seed);
            let mut model = vec![0; 1 << 20];
            for _ in 0..200 {
                let offset = random.below(model.len() as u64 - 5000);
                let mut bytes = vec![0; 8 * (1 + random.below(600) as usize)];
                random.fill(&mut bytes);
                model[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                let cut = random.below(bytes.len() as u64) as usize;
                let mut parts = vec![Bytes::from(bytes)];
                let behind = parts[0].split_off(cut);
                parts.push(behind);
                run(&*engine, &file, FileOp::Write { offset, parts }).unwrap();
            }
            let len = file.size().unwrap() as usize;
            let found = run(&*engine, &file, FileOp::Read { offset: 0, len }).unwrap();
            assert!(found == model[..len], "seed {seed}");
        }
    }
}

/// A file whose writes and syncs say that they began, and then wait to be let go.
#[derive(Debug)]
struct Gate {
    began: Sender<&'static str>,
    go: Receiver<()>,
}

impl Gate {
    fn pass(&self, what: &'static str) -> io::Result<()> {
        self.began.send(what).unwrap();
        // An error is the end of the test, which lets everything go.
        let _ = self.go.recv();
        Ok(())
    }
}

impl DiskFile for Gate {
    fn size(&self) -> io::Result<u64> {
        Ok(0)
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
        self.pass("write")
    }
    fn sync(&self) -> io::Result<()> {
        self.pass("sync")
    }
    fn set_size(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn link(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn physical_block(&self) -> io::Result<Option<u32>> {
        Ok(None)
    }
    fn next_data(&self, _: u64) -> io::Result<Option<u64>> {
        Ok(None)
    }
    fn next_hole(&self, _: u64) -> io::Result<u64> {
        Ok(0)
    }
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn syncs_wait_neither_for_writes_nor_for_each_other() {
    for engine in engines() {
        let (began, begun) = unbounded();
        let (open, go) = unbounded::<()>();
        let file: Arc<dyn DiskFile> = Arc::new(Gate { began, go });
        for _ in 0..100 {
            engine.submit(&file, write(0, vec![1]), Box::new(|_| ()));
        }
        for _ in 0..8 {
            engine.submit(&file, FileOp::Sync, Box::new(|_| ()));
        }
        let mut syncs = 0;
        while syncs < 8 {
            syncs += usize::from(begun.recv_timeout(DEADLINE).unwrap() == "sync");
        }
        drop(open);
    }
}
