//! A block device served as `/dev/ublkbN`, from its making to its end.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use super::abi::Parameters;
use super::control::{Control, block_path, server_path};
use super::queue::{Outcomes, Queue};
use super::raw::QueueRing;
use super::{Error, Result};
use crate::block::BlockDevice;

/// Longest read or write \[bytes\]; the block layer splits what is longer.
const MAX_REQUEST: u32 = 1 << 20;

/// How a device is exported.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Queues, each with a thread; more than the host has processors are useless.
    pub queues: u16,
    /// Requests under way in a queue, at most 4096.
    pub depth: u16,
    /// The block device refuses changes, whatever the device would say.
    pub read_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            queues: processors.min(2) as u16,
            depth: 128,
            read_only: false,
        }
    }
}

/// A device being exported. [`Self::stop`] ends it in order, and so does dropping it, silently.
pub struct Export {
    control: Arc<Control>,
    id: u32,
    queues: Vec<JoinHandle<io::Result<()>>>,
    is_stopped: bool,
}

impl Export {
    /// Makes a block device of this host. When it returns, `/dev/ublkbN` can be opened, and its
    /// partitions have been looked for.
    ///
    /// # Errors
    /// The driver refuses it (there are 64 devices at most, unless its module was told otherwise), or
    /// threads or rings cannot be had.
    pub fn start(
        control: &Arc<Control>,
        device: Arc<dyn BlockDevice>,
        options: Options,
    ) -> Result<Self> {
        let geometry = device.geometry();
        let max_request = geometry.max_request.min(MAX_REQUEST);
        let id = control.add(options.queues, options.depth, max_request)?;
        // From here on its end deletes the device.
        let mut export = Self {
            control: Arc::clone(control),
            id,
            queues: Vec::new(),
            is_stopped: false,
        };
        let read_only = options.read_only || geometry.read_only;
        control.set_parameters(id, Parameters::of(&geometry, max_request, read_only))?;
        export.start_queues(&device, options)?;
        control.start(id)?;
        Ok(export)
    }

    /// Starts the threads and waits until each is fetching.
    fn start_queues(&mut self, device: &Arc<dyn BlockDevice>, options: Options) -> Result<()> {
        let path = server_path(self.id);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = Arc::new(file.map_err(Error::failed(format!("open {}", path.display())))?);
        let (tell, told) = channel();
        let mut spawned = Ok(());
        for queue in 0..options.queues {
            let (file, device, tell) = (Arc::clone(&file), Arc::clone(device), tell.clone());
            let serve = move || serve_queue(file, queue, options.depth, device, tell);
            let thread = thread::Builder::new().name("ublk-queue".to_owned());
            match thread.spawn(serve) {
                Ok(thread) => self.queues.push(thread),
                Err(error) => spawned = Err(error),
            }
        }
        drop(tell);
        // All of them, whatever became of one: a stop does not end those that fetch after it.
        let mut begun: Vec<_> = told.iter().collect();
        begun.push(spawned);
        let all: io::Result<()> = begun.into_iter().collect();
        all.map_err(Error::failed(format!(
            "fetch requests of device {}",
            self.id
        )))
    }

    /// `/dev/ublkbN`.
    pub fn path(&self) -> PathBuf {
        block_path(self.id)
    }

    /// Takes the block device away and deletes it. What is in its page cache is written, and what is
    /// under way is served. Whoever has it open or mounted gets errors from then on.
    ///
    /// # Errors
    /// If the driver refuses, or a queue had failed before.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_stopped, true) {
            return Ok(());
        }
        let id = self.id;
        let stopped = self.control.stop(id);
        if stopped.is_err() && !self.queues.is_empty() && !is_gone(&stopped) {
            // The threads would never end, and the device not be deleted.
            return stopped.map_err(Error::failed(format!("stop device {id}")));
        }
        let served = self.join();
        let deleted = self.control.remove(id);
        if deleted.is_err() && !is_gone(&deleted) {
            return deleted.map_err(Error::failed(format!("delete device {id}")));
        }
        served.map_err(Error::failed(format!("serve device {id} any longer")))
    }

    /// The first error of a queue, if any.
    fn join(&mut self) -> io::Result<()> {
        let panicked = |_| Err(io::Error::other("a thread has panicked"));
        let results = self
            .queues
            .drain(..)
            .map(|queue| queue.join().unwrap_or_else(panicked));
        // All of them have to end, whatever became of the first.
        let results: Vec<_> = results.collect();
        results.into_iter().collect()
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = self.end();
    }
}

/// Somebody else has stopped or deleted the device.
fn is_gone(result: &io::Result<()>) -> bool {
    matches!(result, Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)))
}

fn serve_queue(
    file: Arc<File>,
    queue: u16,
    depth: u16,
    device: Arc<dyn BlockDevice>,
    tell: Sender<io::Result<()>>,
) -> io::Result<()> {
    let begun = Outcomes::new().map(Arc::new).and_then(|outcomes| {
        let ring = QueueRing::new(file, queue, depth, outcomes.bell())?;
        Queue::begin(ring, depth, device, outcomes)
    });
    let (queue, begun) = match begun {
        Ok(queue) => (Some(queue), Ok(())),
        Err(error) => (None, Err(error)),
    };
    // Somebody waits for it. He sees the end of all senders, so this one must not last.
    let _ = tell.send(begun);
    drop(tell);
    queue.map_or(Ok(()), Queue::run)
}
