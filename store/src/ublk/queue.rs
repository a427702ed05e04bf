//! A queue of a device: requests from the driver to the device, many in one batch, and outcomes back.
//!
//! One thread does both, as the driver wants it. Outcomes come in from any thread; the first one that
//! finds the queue asleep rings its bell.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::abi::{Asked, IoDescriptor, errno};
use crate::block::{BlockDevice, Op, Refusal, Reply, Request};

/// What the driver has to say.
#[derive(Debug)]
pub(super) enum Event {
    /// A tag has a request.
    Request(u16),
    /// A tag gets no more requests: the device stops, or the driver refused the command.
    Ended(Option<io::Error>),
}

/// The driver as a queue sees it. Commands are gathered, and go with the next `submit` or `wait`.
pub(super) trait Driver {
    /// Asks for the first request of a tag.
    fn fetch(&mut self, tag: u16) -> io::Result<()>;
    /// Ends the request of a tag with its bytes or a negative errno, and asks for another.
    fn commit(&mut self, tag: u16, result: i32) -> io::Result<()>;
    /// Events without waiting.
    fn submit(&mut self) -> io::Result<Vec<Event>>;
    /// Events; waits for some, or for the bell.
    fn wait(&mut self) -> io::Result<Vec<Event>>;
    /// The request of a tag.
    fn descriptor(&self, tag: u16) -> IoDescriptor;
    /// What a request wants written.
    fn receive(&self, tag: u16, len: u32) -> io::Result<Bytes>;
    /// What a request wants to read.
    fn send(&self, tag: u16, parts: &[Bytes]) -> io::Result<()>;
}

type Outcome = Result<Reply, Refusal>;

/// Outcomes on their way to the thread of their queue.
pub(super) struct Outcomes {
    state: Mutex<State>,
    bell: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    arrived: Vec<(u16, Asked, Outcome)>,
    is_asleep: bool,
}

impl Outcomes {
    pub(super) fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            state: Mutex::default(),
            bell: Arc::new(bell),
        })
    }

    pub(super) fn bell(&self) -> Arc<EventFd> {
        Arc::clone(&self.bell)
    }

    fn push(&self, tag: u16, asked: Asked, outcome: Outcome) {
        let mut state = self.state.lock();
        state.arrived.push((tag, asked, outcome));
        let was_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if was_asleep {
            // It fails only where it has been rung 2^64 times.
            let _ = self.bell.write(1);
        }
    }

    /// What has arrived. If nothing has, the caller goes to sleep: the next one rings.
    fn take(&self) -> Vec<(u16, Asked, Outcome)> {
        let mut state = self.state.lock();
        state.is_asleep = state.arrived.is_empty();
        std::mem::take(&mut state.arrived)
    }

    /// The caller comes to take what arrives, unasked.
    fn wake_up(&self) {
        self.state.lock().is_asleep = false;
    }
}

/// The duty to answer a request once. A device that drops it answers with an error.
struct Ticket {
    outcomes: Arc<Outcomes>,
    tag: u16,
    asked: Asked,
    is_answered: bool,
}

impl Ticket {
    fn answer(mut self, outcome: Outcome) {
        self.is_answered = true;
        self.outcomes.push(self.tag, self.asked, outcome);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_answered {
            self.outcomes.push(self.tag, self.asked, Err(Refusal::Io));
        }
    }
}

/// A queue that is being served.
pub(super) struct Queue<D> {
    driver: D,
    device: Arc<dyn BlockDevice>,
    outcomes: Arc<Outcomes>,
    /// Tags for which the driver may bring a request.
    fetching: usize,
    /// Tags whose request the device has.
    serving: usize,
    error: Option<io::Error>,
}

impl<D: Driver> Queue<D> {
    /// Asks for the first request of every tag.
    ///
    /// # Errors
    /// If the driver refuses one.
    pub(super) fn begin(
        mut driver: D,
        depth: u16,
        device: Arc<dyn BlockDevice>,
        outcomes: Arc<Outcomes>,
    ) -> io::Result<Self> {
        for tag in 0..depth {
            driver.fetch(tag)?;
        }
        let events = driver.submit()?;
        let mut queue = Self {
            driver,
            device,
            outcomes,
            fetching: depth.into(),
            serving: 0,
            error: None,
        };
        queue.handle(events)?;
        match queue.error.take() {
            None => Ok(queue),
            Some(error) => Err(error),
        }
    }

    /// Serves until the device is stopped.
    ///
    /// # Errors
    /// If the driver or the ring failed; the driver then fails what is under way.
    pub(super) fn run(mut self) -> io::Result<()> {
        while self.fetching + self.serving > 0 {
            loop {
                let outcomes = self.outcomes.take();
                if outcomes.is_empty() {
                    break;
                }
                for (tag, asked, outcome) in outcomes {
                    self.commit(tag, &asked, outcome)?;
                }
            }
            let events = self.driver.wait()?;
            self.outcomes.wake_up();
            self.handle(events)?;
        }
        self.error.map_or(Ok(()), Err)
    }

    fn handle(&mut self, events: Vec<Event>) -> io::Result<()> {
        let mut batch = Vec::new();
        for event in events {
            self.fetching -= 1;
            match event {
                Event::Request(tag) => {
                    self.serving += 1;
                    match self.request(tag) {
                        Ok(request) => batch.push(request),
                        Err(errno) => self.commit_result(tag, -errno)?,
                    }
                }
                Event::Ended(None) => {}
                Event::Ended(Some(error)) => self.error = Some(error),
            }
        }
        if !batch.is_empty() {
            self.device.submit(batch);
        }
        Ok(())
    }

    /// The request of a tag for the device, or the errno that answers it.
    fn request(&self, tag: u16) -> Result<Request, i32> {
        // Not EOPNOTSUPP: fsync of a block device takes that for success.
        let asked = Asked::parse(&self.driver.descriptor(tag)).ok_or(libc::EIO)?;
        let op = match asked {
            Asked::Read { offset, len } => Op::Read { offset, len },
            Asked::Write { offset, len, fua } => {
                let data = self.driver.receive(tag, len).map_err(|_| libc::EIO)?;
                Op::Write { offset, data, fua }
            }
            Asked::Flush => Op::Flush,
            Asked::Trim { offset, len } => Op::Trim {
                offset,
                len,
                fua: false,
            },
            Asked::Zero {
                offset,
                len,
                may_punch,
                fua,
            } => Op::Zero {
                offset,
                len,
                may_punch,
                fua,
            },
        };
        let ticket = Ticket {
            outcomes: Arc::clone(&self.outcomes),
            tag,
            asked,
            is_answered: false,
        };
        let done = Box::new(move |outcome| ticket.answer(outcome));
        Ok(Request { op, done })
    }

    fn commit(&mut self, tag: u16, asked: &Asked, outcome: Outcome) -> io::Result<()> {
        let result = match (asked, outcome) {
            (_, Err(refusal)) => -errno(refusal),
            (Asked::Read { len, .. }, Ok(Reply::Data(parts))) => {
                let found: usize = parts.iter().map(Bytes::len).sum();
                match found == *len as usize && self.driver.send(tag, &parts).is_ok() {
                    true => asked.success(),
                    false => -libc::EIO,
                }
            }
            (Asked::Read { .. }, Ok(_)) => -libc::EIO,
            (_, Ok(_)) => asked.success(),
        };
        self.commit_result(tag, result)
    }

    fn commit_result(&mut self, tag: u16, result: i32) -> io::Result<()> {
        self.serving -= 1;
        self.fetching += 1;
        self.driver.commit(tag, result)
    }
}

#[cfg(test)]
mod tests;
