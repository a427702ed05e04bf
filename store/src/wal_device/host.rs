//! What the volumes of a process share: the disk, the engine, and one thread that keeps the time.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::disk::engine::{Engine, best};
use crate::disk::{Disk, RealDisk};

/// Whom the clock wakes.
pub(super) trait Sleeper: Send + Sync {
    /// The time that was asked for has come.
    fn wake(&self);
}

/// Shared by the volumes of a process.
pub struct Host {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) engine: Arc<dyn Engine>,
    start: Instant,
    clock: Arc<Clock>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Host {
    /// The files of this machine, through the engine that fits it.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn new() -> std::io::Result<Arc<Self>> {
        Self::with(Arc::new(RealDisk), best())
    }

    /// Another disk or engine.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn with(disk: Arc<dyn Disk>, engine: Arc<dyn Engine>) -> std::io::Result<Arc<Self>> {
        let clock = Arc::new(Clock::default());
        let start = Instant::now();
        let ticking = clock.clone();
        let thread = std::thread::Builder::new()
            .name("clock".to_owned())
            .spawn(move || ticking.run(start))?;
        Ok(Arc::new(Self {
            disk,
            engine,
            start,
            clock,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Microseconds since the host was made.
    pub(super) fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Wakes `sleeper` at a time.
    pub(super) fn wake_at(&self, time: u64, sleeper: &Weak<dyn Sleeper>) {
        self.clock.add(time, sleeper);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.clock.stop();
        if let Some(thread) = self.thread.lock().take()
            // The last owner may have been woken by the clock itself.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct Clock {
    alarms: Mutex<Alarms>,
    changed: Condvar,
}

#[derive(Default)]
struct Alarms {
    times: BTreeSet<(u64, u64)>,
    sleepers: std::collections::HashMap<u64, Weak<dyn Sleeper>>,
    next: u64,
    stopped: bool,
}

impl Clock {
    fn add(&self, time: u64, sleeper: &Weak<dyn Sleeper>) {
        let mut alarms = self.alarms.lock();
        let id = alarms.next;
        alarms.next += 1;
        alarms.sleepers.insert(id, sleeper.clone());
        alarms.times.insert((time, id));
        if alarms.times.first() == Some(&(time, id)) {
            self.changed.notify_one();
        }
    }

    fn stop(&self) {
        self.alarms.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Sleeps until the next alarm; for ever while there is none.
    fn run(&self, start: Instant) {
        let mut alarms = self.alarms.lock();
        while !alarms.stopped {
            let Some((time, id)) = alarms.times.first().copied() else {
                self.changed.wait(&mut alarms);
                continue;
            };
            let at = start + Duration::from_micros(time);
            if Instant::now() < at {
                self.changed.wait_until(&mut alarms, at);
                continue;
            }
            alarms.times.pop_first();
            let sleeper = alarms.sleepers.remove(&id).and_then(|weak| weak.upgrade());
            if let Some(sleeper) = sleeper {
                parking_lot::MutexGuard::unlocked(&mut alarms, || sleeper.wake());
            }
        }
    }
}
