//! A client of the NBD protocol and a device in memory.

#![allow(dead_code)] // each test binary uses its own part

#[path = "client.rs"]
mod client;

use bytes::Bytes;
use parking_lot::Mutex;
use walkeep_store::block::{BlockDevice, Extent, Geometry, Op, Refusal, Reply, Request};

pub use client::*;

/// A device in memory that can hold requests back, in blocks of 512 bytes.
pub struct Memory {
    pub bytes: Mutex<Vec<u8>>,
    pub read_only: bool,
    /// Requests that wait; `None`: they are answered at once.
    pub held: Mutex<Option<Vec<Request>>>,
    /// Flushes, and changes that have to be durable.
    pub syncs: Mutex<usize>,
}

impl Memory {
    pub fn new(size: usize) -> Self {
        Self {
            bytes: Mutex::new(vec![0; size]),
            read_only: false,
            held: Mutex::new(None),
            syncs: Mutex::new(0),
        }
    }

    pub fn hold(&self) {
        *self.held.lock() = Some(Vec::new());
    }

    pub fn held(&self) -> usize {
        self.held.lock().as_ref().map_or(0, Vec::len)
    }

    /// Answers what was held back, and holds no more.
    pub fn release(&self) {
        let held = self.held.lock().take();
        held.into_iter().flatten().for_each(|r| self.run(r));
    }

    fn run(&self, request: Request) {
        let outcome = self.outcome(&request.op);
        (request.done)(outcome);
    }

    fn outcome(&self, op: &Op) -> Result<Reply, Refusal> {
        let mut bytes = self.bytes.lock();
        let size = bytes.len();
        let range = |offset: u64, len: u64| {
            let from = usize::try_from(offset).map_err(|_| Refusal::Invalid)?;
            let to = from.checked_add(len as usize).ok_or(Refusal::Invalid)?;
            let sound = to <= size && (offset | len).is_multiple_of(512);
            sound.then_some(from..to).ok_or(Refusal::Invalid)
        };
        let mut sync = false;
        let reply = match *op {
            Op::Read { offset, len } => {
                let data = &bytes[range(offset, len.into())?];
                // In two parts, as a device that finds them in two places.
                let (a, b) = data.split_at(data.len() / 3);
                Reply::Data(vec![Bytes::copy_from_slice(a), Bytes::copy_from_slice(b)])
            }
            Op::Write {
                offset,
                ref data,
                fua,
            } => {
                let range = range(offset, data.len() as u64).map_err(|_| Refusal::NoSpace)?;
                bytes[range].copy_from_slice(data);
                sync = fua;
                Reply::Done
            }
            Op::Flush => {
                sync = true;
                Reply::Done
            }
            Op::Trim { offset, len, fua }
            | Op::Zero {
                offset, len, fua, ..
            } => {
                bytes[range(offset, len)?].fill(0);
                sync = fua;
                Reply::Done
            }
            Op::Extents { offset, len } => {
                let extents = bytes[range(offset, len)?].chunks(512).map(|block| {
                    let zero = block.iter().all(|byte| *byte == 0);
                    Extent {
                        len: 512,
                        hole: zero,
                        zero,
                    }
                });
                Reply::Extents(extents.collect())
            }
        };
        *self.syncs.lock() += usize::from(sync);
        Ok(reply)
    }
}

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.bytes.lock().len() as u64,
            min_block: 512,
            preferred_block: 4096,
            max_request: 32 << 20,
            read_only: self.read_only,
        }
    }

    fn submit(&self, batch: Vec<Request>) {
        for request in batch {
            if let Some(held) = &mut *self.held.lock() {
                held.push(request);
                continue;
            }
            self.run(request);
        }
    }
}
