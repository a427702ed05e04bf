//! The driver's commands and memory behind safe interfaces; the only module here with `unsafe`.
//!
//! What makes it sound:
//! * The driver gets a pointer only with control commands, to a copy on the heap that is leaked where
//!   the ring fails before the command has ended.
//! * Commands of queues have no pointers: data is copied by `pread` and `pwrite`. A ring owns the files
//!   that its entries name.
//! * The shared descriptors are read only, as plain numbers, within the mapped length.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::squeue::{Entry, Entry128};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use nix::sys::eventfd::EventFd;

use super::abi::{self, ControlCommand, DeviceInfo, IoCommand, IoDescriptor, Parameters};
use super::queue::{Driver, Event};
use crate::sys;

/// What control commands may point to.
///
/// # Safety
/// Plain numbers without padding.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: the layouts are checked in `abi`.
unsafe impl Plain for DeviceInfo {}
// SAFETY: as above.
unsafe impl Plain for Parameters {}
// SAFETY: a number.
unsafe impl Plain for u64 {}

/// Has the kernel write nothing back to disks on account of memory that the calling thread, or one it
/// starts from now on, asks for: to write back it might need the very device that they serve.
///
/// # Errors
/// Without `CAP_SYS_RESOURCE`.
pub fn become_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57; // linux/prctl.h
    // SAFETY: this prctl takes no pointers.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A ring for control commands, one at a time.
pub(super) struct ControlRing {
    ring: IoUring<Entry128>,
    control: File,
}

impl ControlRing {
    pub(super) fn new(control: File) -> io::Result<Self> {
        let ring = IoUring::builder().build(2)?;
        Ok(Self { ring, control })
    }

    /// Carries a command out and waits for its end. `argument` goes there, and comes back as the
    /// driver left it.
    pub(super) fn call<T: Plain>(
        &mut self,
        number: u32,
        device: u32,
        argument: &mut T,
    ) -> io::Result<()> {
        let copy = Box::into_raw(Box::new(*argument));
        let (len, address) = (size_of::<T>() as u16, copy.expose_provenance() as u64);
        self.run(number, command(device, len, address, 0))?;
        // SAFETY: the pointer is from `into_raw`, and the driver is through with it.
        *argument = *unsafe { Box::from_raw(copy) };
        Ok(())
    }

    /// A command with no more than a number.
    pub(super) fn call_with(&mut self, number: u32, device: u32, data: u64) -> io::Result<()> {
        self.run(number, command(device, 0, 0, data))
    }

    fn run(&mut self, number: u32, command: ControlCommand) -> io::Result<()> {
        let entry = opcode::UringCmd80::new(Fd(self.control.as_raw_fd()), number)
            .cmd(bytes_of(&command))
            .build();
        // SAFETY: what the command points to outlives it (head of this module).
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        loop {
            match self.ring.submit_and_wait(1) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            if let Some(completion) = self.ring.completion().next() {
                return match completion.result() {
                    error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                    _ => Ok(()),
                };
            }
        }
    }
}

const fn command(device: u32, len: u16, address: u64, data: u64) -> ControlCommand {
    ControlCommand {
        device,
        queue: u16::MAX,
        len,
        address,
        data,
        path_len: 0,
        pad: 0,
        reserved: 0,
    }
}

/// A command as the first bytes of an entry's room for it.
fn bytes_of<T: Copy, const N: usize>(command: &T) -> [u8; N] {
    const { assert!(size_of::<T>() <= N) };
    let mut bytes = [0; N];
    // SAFETY: both commands are numbers without padding, no longer than the array.
    unsafe {
        let from: *const u8 = std::ptr::from_ref(command).cast();
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), size_of::<T>());
    }
    bytes
}

/// The requests of a queue, in memory that the driver shares.
struct Descriptors {
    start: NonNull<IoDescriptor>,
    depth: u16,
    mapped: usize,
}

// SAFETY: the mapping belongs to no thread.
unsafe impl Send for Descriptors {}

impl Descriptors {
    fn map(device: &File, queue: u16, depth: u16) -> io::Result<Self> {
        // SAFETY: sysconf takes no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
        let bytes = |depth: usize| (depth * size_of::<IoDescriptor>()).next_multiple_of(page);
        let mapped = bytes(depth.into());
        let offset = usize::from(queue) * bytes(abi::MAX_DEPTH);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                device.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            start,
            depth,
            mapped,
        })
    }

    fn get(&self, tag: u16) -> IoDescriptor {
        assert!(tag < self.depth, "tag {tag} of a queue of {}", self.depth);
        // SAFETY: within the mapping, as the assertion has it. The driver does not write a descriptor
        // while its request is ours.
        unsafe { self.start.add(tag.into()).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nothing refers to it any more. It cannot fail.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

/// Marks that the event has been rung, among tags.
const RUNG: u64 = u64::MAX;

/// The driver's end of a queue. It must be made and used by one thread: the driver holds to the one
/// that fetches first.
pub(super) struct QueueRing {
    ring: IoUring<Entry>,
    device: Arc<File>,
    descriptors: Descriptors,
    queue: u16,
    bell: Arc<EventFd>,
    is_watched: bool,
}

impl QueueRing {
    pub(super) fn new(
        device: Arc<File>,
        queue: u16,
        depth: u16,
        bell: Arc<EventFd>,
    ) -> io::Result<Self> {
        // Requests are handed over when this thread waits, many together, without an interrupt.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            // One for each tag, and the bell.
            .build(u32::from(depth) + 1)?;
        let descriptors = Descriptors::map(&device, queue, depth)?;
        Ok(Self {
            ring,
            device,
            descriptors,
            queue,
            bell,
            is_watched: false,
        })
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: no entry of this ring has a pointer, and it owns the files they name.
        unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)
    }

    fn push_command(&mut self, number: u32, tag: u16, result: i32) -> io::Result<()> {
        let command = IoCommand {
            queue: self.queue,
            tag,
            result,
            address: 0,
        };
        let entry = opcode::UringCmd16::new(Fd(self.device.as_raw_fd()), number)
            .cmd(bytes_of(&command))
            .build()
            .user_data(tag.into());
        self.push(&entry)
    }

    fn watch_bell(&mut self) -> io::Result<()> {
        if self.is_watched {
            return Ok(());
        }
        self.is_watched = true;
        let fd = Fd(self.bell.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        self.push(&entry.user_data(RUNG))
    }

    fn events(&mut self) -> Vec<Event> {
        let mut is_rung = false;
        let completions = self.ring.completion();
        let events = completions.filter_map(|entry| match (entry.user_data(), entry.result()) {
            (RUNG, _) => {
                is_rung = true;
                None
            }
            (tag, 0) => Some(Event::Request(tag as u16)),
            (_, result) if result == -libc::ENODEV => Some(Event::Ended(None)),
            (_, result) => Some(Event::Ended(Some(io::Error::from_raw_os_error(-result)))),
        });
        let events = events.collect();
        if is_rung {
            self.is_watched = false;
            // Silent again; the outcomes are looked at in any case.
            let _ = self.bell.read();
        }
        events
    }
}

impl Driver for QueueRing {
    fn fetch(&mut self, tag: u16) -> io::Result<()> {
        self.push_command(abi::FETCH_REQ, tag, 0)
    }

    fn commit(&mut self, tag: u16, result: i32) -> io::Result<()> {
        self.push_command(abi::COMMIT_AND_FETCH_REQ, tag, result)
    }

    fn submit(&mut self) -> io::Result<Vec<Event>> {
        self.ring.submit()?;
        Ok(self.events())
    }

    fn wait(&mut self) -> io::Result<Vec<Event>> {
        self.watch_bell()?;
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            // What has been submitted is; the rest goes with the next call.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) => {}
            Err(e) => return Err(e),
        }
        Ok(self.events())
    }

    fn descriptor(&self, tag: u16) -> IoDescriptor {
        self.descriptors.get(tag)
    }

    fn receive(&self, tag: u16, len: u32) -> io::Result<Bytes> {
        let position = abi::data_position(self.queue, tag);
        let data = sys::read_at(&self.device, position, len as usize, false)?;
        match data.len() == len as usize {
            true => Ok(data.into()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn send(&self, tag: u16, parts: &[Bytes]) -> io::Result<()> {
        let mut position = abi::data_position(self.queue, tag);
        for part in parts {
            self.device.write_all_at(part, position)?;
            position += part.len() as u64;
        }
        Ok(())
    }
}
