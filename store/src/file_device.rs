//! A plain image file or block device as a [`BlockDevice`], without a log: for exports of images.
//!
//! What the page cache holds is read, and everything is written, on the thread that submits; reads
//! that have to wait for the disk, and syncs, go to a few threads. One sync serves all that wait
//! for one when it starts.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use crate::block::{BlockDevice, Done, Extent, Geometry, Op, Refusal, Reply, Request, together};
use crate::disk::{Disk, DiskFile, Mode, RealDisk};
use crate::input::size_of_file;
use crate::{Error, Result, sys};

/// Offsets and lengths are multiples of it.
const MIN_BLOCK: u32 = 512;
const PREFERRED_BLOCK: u32 = 4096;
const MAX_REQUEST: u32 = 32 << 20;
/// Most extents in one answer.
const MAX_EXTENTS: usize = 1024;
/// Threads for what has to wait for the disk.
const THREADS: usize = 8;

/// An image file or block device.
pub struct FileDevice {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    /// Taken by the threads that [`Self::later`] starts.
    receiver: Receiver<Job>,
    /// How many there are.
    threads: OnceLock<usize>,
}

enum Job {
    Read { offset: u64, len: u32, done: Done },
    Sync,
}

struct Shared {
    file: File,
    /// The same file, for clearing ranges.
    disk_file: Arc<dyn DiskFile>,
    size: u64,
    read_only: bool,
    /// The file system cannot tell whether a read would wait.
    blind: AtomicBool,
    /// A sync failed: what was written before it is lost or not, nobody knows.
    lost: AtomicBool,
    /// Reads that wait for the disk. Changes of their ranges wait for them.
    reading: Mutex<Vec<(u64, u64)>>,
    read: Condvar,
    syncing: Mutex<Syncing>,
}

#[derive(Default)]
struct Syncing {
    waiting: Vec<Done>,
    running: bool,
}

impl FileDevice {
    /// Opens an image. Writers keep everybody else of this program out.
    ///
    /// # Errors
    /// The file cannot be opened, is in use, or is not whole blocks of 512 bytes.
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|e| Error::file(path, "open", e))?;
        lock(&file, read_only).map_err(|e| Error::file(path, "lock", e))?;
        let size = size_of_file(&file).map_err(|e| Error::file(path, "inspect", e))?;
        if !size.is_multiple_of(MIN_BLOCK.into()) {
            return Err(Error::Refused(format!(
                "{}: expected a multiple of {MIN_BLOCK} bytes, found {size}",
                path.display()
            )));
        }
        let mode = if read_only { Mode::Read } else { Mode::Write };
        let disk_file = RealDisk
            .open(path, mode)
            .map_err(|e| Error::file(path, "open", e))?;
        let shared = Shared {
            file,
            disk_file,
            size,
            read_only,
            blind: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            reading: Mutex::default(),
            read: Condvar::new(),
            syncing: Mutex::default(),
        };
        let (jobs, receiver) = crossbeam_channel::unbounded();
        Ok(Self {
            shared: Arc::new(shared),
            jobs,
            receiver,
            threads: OnceLock::new(),
        })
    }

    /// Has a job done by one of the threads, which are started when they are needed first.
    fn later(&self, job: Job) {
        let start = |_: &usize| {
            let (shared, jobs) = (Arc::clone(&self.shared), self.receiver.clone());
            let worker = thread::Builder::new().name("file-device".into());
            let started = worker.spawn(move || jobs.iter().for_each(|job| shared.run(job)));
            started.is_ok()
        };
        let threads = self
            .threads
            .get_or_init(|| (0..THREADS).filter(start).count());
        if *threads == 0 {
            return self.shared.run(job);
        }
        // It cannot fail: the device holds a receiver, too.
        let _ = self.jobs.send(job);
    }

    fn start(&self, request: Request) {
        let Request { op, done } = request;
        if let Err(refusal) = self.shared.check(&op) {
            return done(Err(refusal));
        }
        match op {
            Op::Read { offset, len } => self.read(offset, len, done),
            Op::Flush => self.sync(done),
            Op::Extents { offset, len } => done(answer(self.shared.extents(offset, len))),
            op => {
                let (changed, fua) = self.shared.change(&op);
                match changed {
                    Ok(()) if fua => self.sync(done),
                    changed => done(answer(changed.map(|()| Reply::Done))),
                }
            }
        }
    }

    fn read(&self, offset: u64, len: u32, done: Done) {
        if !self.shared.blind.load(Ordering::Relaxed) {
            match sys::read_at(&self.shared.file, offset, len as usize, true) {
                Ok(data) if data.len() == len as usize => {
                    return done(Ok(Reply::Data(vec![data.into()])));
                }
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.shared.blind.store(true, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        let end = offset + u64::from(len);
        self.shared.reading.lock().push((offset, end));
        self.later(Job::Read { offset, len, done });
    }

    /// Answers when all that was written until now is durable.
    fn sync(&self, done: Done) {
        let mut syncing = self.shared.syncing.lock();
        syncing.waiting.push(done);
        if !std::mem::replace(&mut syncing.running, true) {
            drop(syncing);
            self.later(Job::Sync);
        }
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.shared.size,
            min_block: MIN_BLOCK,
            preferred_block: PREFERRED_BLOCK,
            max_request: MAX_REQUEST,
            read_only: self.shared.read_only,
        }
    }

    fn submit(&self, batch: Vec<Request>) {
        batch.into_iter().for_each(|request| self.start(request));
    }
}

impl Shared {
    fn check(&self, op: &Op) -> Result<(), Refusal> {
        let (offset, len, changes) = match *op {
            Op::Flush => return Ok(()),
            Op::Read { offset, len } => (offset, len.into(), false),
            Op::Extents { offset, len } => (offset, len, false),
            Op::Write {
                offset, ref data, ..
            } => (offset, data.len() as u64, true),
            Op::Trim { offset, len, .. } | Op::Zero { offset, len, .. } => (offset, len, true),
        };
        if changes && self.read_only {
            return Err(Refusal::ReadOnly);
        }
        let short = matches!(op, Op::Read { .. } | Op::Write { .. });
        let block = u64::from(MIN_BLOCK);
        if len == 0 || !(offset | len).is_multiple_of(block) || (short && len > MAX_REQUEST.into())
        {
            return Err(Refusal::Invalid);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ if matches!(op, Op::Write { .. } | Op::Zero { .. }) => Err(Refusal::NoSpace),
            _ => Err(Refusal::Invalid),
        }
    }

    /// Carries a change out; true if it has to be durable before it is answered.
    fn change(&self, op: &Op) -> (io::Result<()>, bool) {
        match *op {
            Op::Write {
                offset,
                ref data,
                fua,
            } => {
                self.await_reads(offset, data.len() as u64);
                (self.file.write_all_at(data, offset), fua)
            }
            Op::Trim { offset, len, fua } => (self.zero(offset, len, true), fua),
            Op::Zero {
                offset,
                len,
                may_punch,
                fua,
            } => (self.zero(offset, len, may_punch), fua),
            Op::Read { .. } | Op::Flush | Op::Extents { .. } => (Ok(()), false),
        }
    }

    fn zero(&self, offset: u64, len: u64, may_punch: bool) -> io::Result<()> {
        self.await_reads(offset, len);
        match may_punch {
            true => self.disk_file.punch(offset, len),
            false => self.disk_file.zero(offset, len),
        }
    }

    /// The order of effect is that of submission: a read must not see what came after it.
    fn await_reads(&self, offset: u64, len: u64) {
        let overlaps = |(from, to): &(u64, u64)| *from < offset + len && offset < *to;
        let mut reading = self.reading.lock();
        while reading.iter().any(overlaps) {
            self.read.wait(&mut reading);
        }
    }

    fn run(&self, job: Job) {
        match job {
            Job::Read { offset, len, done } => {
                let data = self.read(offset, len);
                self.end_read(offset, offset + u64::from(len));
                done(answer(data.map(|data| Reply::Data(vec![data]))));
            }
            Job::Sync => self.sync_all(),
        }
    }

    fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let len = len as usize;
        let mut data = sys::read_at(&self.file, offset, len, false)?;
        if data.len() < len {
            // A signal, or a file that was cut while it is served, which is an error.
            let had = data.len();
            data.resize(len, 0);
            self.file
                .read_exact_at(&mut data[had..], offset + had as u64)?;
        }
        Ok(data.into())
    }

    fn end_read(&self, from: u64, to: u64) {
        let mut reading = self.reading.lock();
        if let Some(at) = reading.iter().position(|range| *range == (from, to)) {
            reading.swap_remove(at);
        }
        self.read.notify_all();
    }

    /// Syncs until nobody waits for it.
    fn sync_all(&self) {
        loop {
            let waiting = {
                let mut syncing = self.syncing.lock();
                syncing.running = !syncing.waiting.is_empty();
                std::mem::take(&mut syncing.waiting)
            };
            if waiting.is_empty() {
                return;
            }
            let durable = self.sync();
            together(|| waiting.into_iter().for_each(|done| done(durable.clone())));
        }
    }

    fn sync(&self) -> Result<Reply, Refusal> {
        let lost = self.lost.load(Ordering::Relaxed);
        // Another sync after one that failed would succeed and prove nothing.
        if lost || self.file.sync_data().is_err() {
            self.lost.store(true, Ordering::Relaxed);
            return Err(Refusal::Io);
        }
        Ok(Reply::Done)
    }

    fn extents(&self, offset: u64, len: u64) -> io::Result<Reply> {
        let end = offset + len;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < MAX_EXTENTS {
            let data = sys::next_data(&self.file, at)?.unwrap_or(end).min(end);
            let hole = data > at;
            let until = if hole {
                data
            } else {
                sys::next_hole(&self.file, at)?.min(end)
            };
            if until <= at {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let len = until - at;
            extents.push(Extent {
                len,
                hole,
                zero: hole,
            });
            at = until;
        }
        Ok(Reply::Extents(extents))
    }
}

fn lock(file: &File, shared: bool) -> io::Result<()> {
    let locked = if shared {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    locked.map_err(|e| match e {
        TryLockError::WouldBlock => io::Error::new(
            io::ErrorKind::WouldBlock,
            "another program has it open; stop that one first",
        ),
        TryLockError::Error(e) => e,
    })
}

fn answer(outcome: io::Result<Reply>) -> Result<Reply, Refusal> {
    outcome.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Refusal::NoSpace,
        Some(libc::EROFS | libc::EPERM) => Refusal::ReadOnly,
        _ => Refusal::Io,
    })
}
