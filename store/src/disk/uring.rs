//! The engine over io_uring: no thread of ours waits for a disk, only one for completions.
//!
//! Clearing ranges goes to [`Threads`]: io_uring would do it on a thread too, and [`DiskFile`] knows
//! what to do where the file system cannot. So do files without a descriptor.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use bytes::{Buf, Bytes};

use super::DiskFile;
use super::engine::{Engine, FileOp, OpDone};
use super::ring::{Call, Request, Ring};
use super::threads::Threads;

/// One ring with a thread that waits for its completions and calls back, so callbacks must be
/// short. Dropped, it finishes what it has.
pub struct Uring {
    shared: Arc<Shared>,
    reaper: Option<JoinHandle<()>>,
    threads: Threads,
}

struct Shared {
    ring: Ring,
    is_closing: AtomicBool,
}

impl Uring {
    /// Tries to make a ring and to use it.
    ///
    /// # Errors
    /// Where io_uring is missing or forbidden, as in many containers.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            ring: Ring::new()?,
            is_closing: AtomicBool::new(false),
        });
        let reaped = shared.clone();
        let builder = thread::Builder::new().name("disk-ring".to_owned());
        let reaper = builder.spawn(move || reaped.reap())?;
        Ok(Self {
            shared,
            reaper: Some(reaper),
            threads: Threads::new(),
        })
    }
}

impl Engine for Uring {
    fn submit(&self, file: &Arc<dyn DiskFile>, op: FileOp, done: OpDone) {
        match call_of(&op) {
            Some(call) if file.descriptor().is_some() => self.shared.ring.submit(Request {
                file: file.clone(),
                call,
                done,
            }),
            _ => self.threads.submit(file, op, done),
        }
    }
}

/// What the ring can do of it. Offsets that the kernel would take for something else, and
/// operations on no bytes, are left to [`DiskFile`] to judge.
fn call_of(op: &FileOp) -> Option<Call> {
    let fits = |offset: u64, bytes: u64| {
        let end = offset.checked_add(bytes);
        bytes > 0 && end.is_some_and(|end| i64::try_from(end).is_ok())
    };
    match op {
        FileOp::Write { offset, parts } => {
            let parts: Vec<Bytes> = parts.iter().filter(|p| !p.is_empty()).cloned().collect();
            let bytes = parts.iter().map(|part| part.len() as u64).sum();
            let offset = *offset;
            fits(offset, bytes).then_some(Call::Write { offset, parts })
        }
        FileOp::Read { offset, len } => fits(*offset, *len as u64).then(|| Call::Read {
            offset: *offset,
            buffer: vec![0; *len],
            filled: 0,
        }),
        // A ring hands a sync to a kernel thread, and its end to ours: one switch more than a thread.
        FileOp::Sync | FileOp::Punch { .. } | FileOp::Zero { .. } => None,
    }
}

impl Shared {
    fn reap(&self) {
        while !self.is_closing.load(Ordering::Acquire) || !self.ring.is_idle() {
            let finished = self.ring.wait();
            self.ring.flush();
            for (request, answer) in finished {
                self.go_on(request, answer);
            }
        }
    }

    fn go_on(&self, mut request: Request, answer: i32) {
        let result = match progress(&mut request.call, answer) {
            Ok(Progress::Whole(bytes)) => Ok(bytes),
            Ok(Progress::Again) => return self.ring.submit(request),
            Err(e) => Err(e),
        };
        let Request { file, done, .. } = request;
        // Closed first: whoever is told may want to open or lock it again.
        drop(file);
        // The panic has been reported, and must not end all completions.
        let _ = catch_unwind(AssertUnwindSafe(|| done(result)));
    }
}

enum Progress {
    /// Done, with these bytes.
    Whole(Bytes),
    /// The rest is to be asked for.
    Again,
}

fn progress(call: &mut Call, answer: i32) -> io::Result<Progress> {
    match -answer {
        // A thread that ends takes its requests with it: those are cancelled, not done.
        libc::EINTR | libc::EAGAIN | libc::ECANCELED => return Ok(Progress::Again),
        errno if errno > 0 => return Err(io::Error::from_raw_os_error(errno)),
        _ => {}
    }
    let moved = answer as usize;
    match call {
        Call::Write { .. } if moved == 0 => Err(io::ErrorKind::WriteZero.into()),
        Call::Write { offset, parts } => {
            *offset += moved as u64;
            skip(parts, moved);
            Ok(match parts.is_empty() {
                true => Progress::Whole(Bytes::new()),
                false => Progress::Again,
            })
        }
        Call::Read { .. } if moved == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        Call::Read { buffer, filled, .. } => {
            *filled += moved;
            Ok(match *filled == buffer.len() {
                true => Progress::Whole(std::mem::take(buffer).into()),
                false => Progress::Again,
            })
        }
    }
}

/// Removes the first `bytes` of the parts.
fn skip(parts: &mut Vec<Bytes>, mut bytes: usize) {
    parts.retain_mut(|part| {
        let step = bytes.min(part.len());
        part.advance(step);
        bytes -= step;
        !part.is_empty()
    });
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Release);
        self.shared.ring.wake();
        if let Some(reaper) = self.reaper.take()
            // The last owner may have been in a callback: a thread cannot wait for itself.
            && reaper.thread().id() != thread::current().id()
        {
            let _ = reaper.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_interrupted_writes_go_on_where_they_stopped() {
        let parts = [&b"abc"[..], b"de", b"f"].map(Bytes::from_static).to_vec();
        let mut call = Call::Write { offset: 10, parts };
        for (answer, left) in [
            (-libc::EINTR, "abcdef"),
            (1, "bcdef"),
            (3, "ef"),
            (-libc::EAGAIN, "ef"),
        ] {
            assert!(matches!(progress(&mut call, answer), Ok(Progress::Again)));
            let Call::Write { offset, parts } = &call else {
                unreachable!()
            };
            assert_eq!(parts.concat(), left.as_bytes());
            assert_eq!(*offset, 16 - left.len() as u64);
        }
        let error = progress(&mut call, -libc::ENOSPC).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(progress(&mut call, 0).is_err());
        assert!(matches!(progress(&mut call, 2), Ok(Progress::Whole(_))));
    }

    #[test]
    fn short_reads_go_on_and_the_end_is_an_error() {
        let (offset, filled) = (0, 0);
        let buffer = b"abcd".to_vec();
        let mut call = Call::Read {
            offset,
            buffer,
            filled,
        };
        assert!(matches!(progress(&mut call, 3), Ok(Progress::Again)));
        let end = progress(&mut call, 0).err().unwrap();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        let Ok(Progress::Whole(bytes)) = progress(&mut call, 1) else {
            unreachable!()
        };
        assert_eq!(bytes, b"abcd"[..]);
    }
}
