//! The engine that works everywhere: threads that do one operation after the other.
//!
//! Syncs have threads of their own. They take long and do nothing, and neither may they wait behind
//! writes nor writes behind them; several at once let the block layer join their flushes.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::DiskFile;
use super::engine::{Engine, FileOp, OpDone, carry_out};

/// Most threads for reads and writes, which wait for the disk and copy. More gained nothing.
const DATA_THREADS: usize = 8;
/// Most syncs at once.
const SYNC_THREADS: usize = 16;

/// Threads, started when they are needed first. Dropped, it finishes what it has.
#[derive(Debug)]
pub struct Threads {
    data: Pool,
    syncs: Pool,
}

impl Threads {
    /// No thread is started yet.
    pub fn new() -> Self {
        Self {
            data: Pool::new("disk-data", DATA_THREADS),
            syncs: Pool::new("disk-sync", SYNC_THREADS),
        }
    }
}

impl Default for Threads {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine for Threads {
    /// If not even one thread can be started, the error comes from this very call.
    fn submit(&self, file: &Arc<dyn DiskFile>, op: FileOp, done: OpDone) {
        let pool = match op {
            FileOp::Sync => &self.syncs,
            _ => &self.data,
        };
        pool.submit(Job {
            file: file.clone(),
            op,
            done,
        });
    }
}

struct Job {
    file: Arc<dyn DiskFile>,
    op: FileOp,
    done: OpDone,
}

impl Job {
    fn run(self) {
        let Self { file, op, done } = self;
        let result = carry_out(&*file, op);
        // Closed first: whoever is told may want to open or lock it again.
        drop(file);
        done(result);
    }
}

#[derive(Debug)]
struct Pool {
    name: &'static str,
    limit: usize,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    is_closed: bool,
}

impl Pool {
    fn new(name: &'static str, limit: usize) -> Self {
        Self {
            name,
            limit,
            shared: Arc::default(),
            threads: Mutex::default(),
        }
    }

    fn submit(&self, job: Job) {
        let is_short_of_threads = {
            let mut queue = self.shared.queue.lock();
            queue.jobs.push_back(job);
            // Who was woken but did not come yet still counts as idle; its job is still counted too.
            queue.jobs.len() > queue.idle
        };
        self.shared.wake.notify_one();
        if is_short_of_threads && let Err(error) = self.start_one() {
            self.refuse(error);
        }
    }

    fn start_one(&self) -> io::Result<()> {
        let mut threads = self.threads.lock();
        if threads.len() >= self.limit {
            return Ok(());
        }
        let shared = self.shared.clone();
        let builder = thread::Builder::new().name(self.name.to_owned());
        match builder.spawn(move || shared.work()) {
            Ok(thread) => threads.push(thread),
            // The others will do it.
            Err(_) if !threads.is_empty() => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// There is no thread at all: nobody would ever come for the jobs.
    fn refuse(&self, error: io::Error) {
        let jobs = std::mem::take(&mut self.shared.queue.lock().jobs);
        for job in jobs {
            (job.done)(Err(io::Error::new(
                error.kind(),
                format!("no thread: {error}"),
            )));
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(job) = self.next() {
            // The panic has been reported, and must not cost a thread.
            let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
        }
    }

    /// Waits for a job; none when the pool is closed and empty.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.is_closed {
                return None;
            }
            queue.idle += 1;
            self.wake.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().is_closed = true;
        self.shared.wake.notify_all();
        for thread in self.threads.get_mut().drain(..) {
            // The last owner may have been in a callback: a thread cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
