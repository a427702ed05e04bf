//! io_uring behind a safe interface: requests go in, requests with the kernel's answer come out.
//!
//! The only module of the seam with `unsafe`. What makes it sound:
//! * The kernel gets pointers only into what the request owns on the heap: buffers that nobody else
//!   can write, and the vector of their addresses. The request itself is leaked into the kernel's
//!   `user_data` and comes back with the completion, so it can neither move nor go before. A ring
//!   that is dropped too early leaks memory, no more.
//! * The request owns the file, so its descriptor stays open.
//! * The submission queue is written under a lock, the completion queue read under another.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use io_uring::types::Fd;
use io_uring::{IoUring, Probe, opcode, squeue};
use parking_lot::Mutex;

use super::DiskFile;
use super::engine::OpDone;
use crate::sys::MAX_PARTS;

/// Entries of the submission queue; twice as many requests are with the kernel at most.
const ENTRIES: u32 = 256;
/// Kernel threads for operations that must wait; the default of four for each processor is few for
/// many files.
const WORKERS: u32 = 32;
/// Most bytes of one read, as the kernel has it.
const MAX_READ: usize = 1 << 30;
/// Marks what no request belongs to.
const NO_REQUEST: u64 = 0;

/// An operation for the kernel. Writes and reads may come back half done.
pub(super) enum Call {
    Write {
        offset: u64,
        parts: Vec<Bytes>,
    },
    Read {
        offset: u64,
        buffer: Vec<u8>,
        filled: usize,
    },
}

/// An operation on its way. The file must have a descriptor.
pub(super) struct Request {
    pub file: Arc<dyn DiskFile>,
    pub call: Call,
    pub done: OpDone,
}

/// What the kernel has.
struct InKernel {
    request: Request,
    addresses: Vec<libc::iovec>,
}

pub(super) struct Ring {
    ring: IoUring,
    /// What does not fit into the submission queue; locked for its use as well.
    backlog: Mutex<VecDeque<Request>>,
    /// Locked for the use of the completion queue.
    completions: Mutex<()>,
    in_kernel: AtomicUsize,
}

impl Ring {
    /// # Errors
    /// Where the kernel has no io_uring, forbids it, or lacks an operation.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [
            opcode::Nop::CODE,
            opcode::Writev::CODE,
            opcode::Read::CODE,
            opcode::Fsync::CODE,
        ];
        if !codes.into_iter().all(|code| probe.is_supported(code))
            || !ring.params().is_feature_nodrop()
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Kernels before 5.15 have no such limit to set.
        let _ = ring
            .submitter()
            .register_iowq_max_workers(&mut [WORKERS, 0]);
        let ring = Self {
            ring,
            backlog: Mutex::default(),
            completions: Mutex::default(),
            in_kernel: AtomicUsize::new(0),
        };
        // Some sandboxes let a ring be made and not be entered.
        ring.push_nop();
        ring.ring.submit_and_wait(1)?;
        ring.take_completions();
        Ok(ring)
    }

    /// Takes a request; never waits.
    pub(super) fn submit(&self, request: Request) {
        self.backlog.lock().push_back(request);
        self.flush();
    }

    /// Gives the kernel what it has room for.
    pub(super) fn flush(&self) {
        if self.push_some() {
            self.enter();
        }
    }

    fn push_some(&self) -> bool {
        let mut backlog = self.backlog.lock();
        let mut is_any = false;
        while self.in_kernel.load(Ordering::Relaxed) < 2 * ENTRIES as usize
            && let Some(request) = backlog.pop_front()
        {
            if let Err(request) = self.push(request) {
                backlog.push_front(request);
                break;
            }
            is_any = true;
        }
        is_any
    }

    /// Only under the lock of the backlog.
    fn push(&self, request: Request) -> Result<(), Request> {
        // SAFETY: the lock of the backlog keeps other submission queues away.
        let mut queue = unsafe { self.ring.submission_shared() };
        if queue.is_full() {
            return Err(request);
        }
        let mut in_kernel = Box::new(InKernel {
            request,
            addresses: Vec::new(),
        });
        let Some(entry) = in_kernel.entry() else {
            return Err(in_kernel.request);
        };
        let address = Box::into_raw(in_kernel).expose_provenance() as u64;
        let entry = entry.user_data(address);
        self.in_kernel.fetch_add(1, Ordering::Relaxed);
        // SAFETY: all pointers of the entry stay valid until its completion (head of this module).
        // There is room, so it cannot fail.
        let _ = unsafe { queue.push(&entry) };
        Ok(())
    }

    fn push_nop(&self) {
        let _locked = self.backlog.lock();
        let nop = opcode::Nop::new().build().user_data(NO_REQUEST);
        loop {
            // SAFETY: the lock of the backlog keeps other submission queues away, and a nop has no
            // pointers.
            if unsafe { self.ring.submission_shared().push(&nop) }.is_ok() {
                return;
            }
            self.enter();
        }
    }

    fn enter(&self) {
        while let Err(e) = self.ring.submit() {
            match e.raw_os_error() {
                Some(libc::EINTR) => {}
                // No memory for a request, which must pass.
                Some(libc::EAGAIN) => std::thread::yield_now(),
                // Too many completions wait: who takes them submits again.
                _ => return,
            }
        }
    }

    /// Makes [`wait`](Self::wait) return.
    pub(super) fn wake(&self) {
        self.push_nop();
        self.enter();
    }

    /// Waits for completions, or for [`wake`](Self::wake). Answers are as system calls give them:
    /// bytes, or a negative errno.
    pub(super) fn wait(&self) -> Vec<(Request, i32)> {
        // Interrupted or short of memory: there may be completions all the same, and the caller
        // comes again.
        let _ = self.ring.submit_and_wait(1);
        self.take_completions()
    }

    fn take_completions(&self) -> Vec<(Request, i32)> {
        let _locked = self.completions.lock();
        // SAFETY: the lock keeps other completion queues away.
        let queue = unsafe { self.ring.completion_shared() };
        let entries = queue.filter(|entry| entry.user_data() != NO_REQUEST);
        let finished = entries.map(|entry| {
            let address =
                std::ptr::with_exposed_provenance_mut::<InKernel>(entry.user_data() as usize);
            // SAFETY: the address is from `push`, and the kernel gives each back once.
            let in_kernel = unsafe { Box::from_raw(address) };
            (in_kernel.request, entry.result())
        });
        let finished: Vec<_> = finished.collect();
        self.in_kernel.fetch_sub(finished.len(), Ordering::Relaxed);
        finished
    }

    /// True if nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.backlog.lock().is_empty() && self.in_kernel.load(Ordering::Relaxed) == 0
    }
}

impl InKernel {
    fn entry(&mut self) -> Option<squeue::Entry> {
        let fd = Fd(self.request.file.descriptor()?.as_raw_fd());
        Some(match &mut self.request.call {
            Call::Write { offset, parts } => {
                let address = |part: &Bytes| libc::iovec {
                    iov_base: part.as_ptr().cast_mut().cast(),
                    iov_len: part.len(),
                };
                self.addresses = parts.iter().take(MAX_PARTS).map(address).collect();
                let count = self.addresses.len() as u32;
                let write = opcode::Writev::new(fd, self.addresses.as_ptr(), count);
                write.offset(*offset).build()
            }
            Call::Read {
                offset,
                buffer,
                filled,
            } => {
                let rest = &mut buffer[*filled..];
                let length = rest.len().min(MAX_READ) as u32;
                let read = opcode::Read::new(fd, rest.as_mut_ptr(), length);
                read.offset(*offset + *filled as u64).build()
            }
        })
    }
}
