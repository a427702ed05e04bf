//! The few system calls that need `unsafe`, each behind a safe wrapper.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

mod ioctl {
    nix::ioctl_read_bad!(
        blk_get_size64,
        nix::request_code_read!(0x12, 114, size_of::<usize>()),
        u64
    );
    nix::ioctl_read_bad!(
        blk_get_pbs,
        nix::request_code_none!(0x12, 123),
        libc::c_uint
    );
    nix::ioctl_write_ptr_bad!(blk_discard, nix::request_code_none!(0x12, 119), [u64; 2]);
    nix::ioctl_write_ptr_bad!(blk_zeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// Makes all threads share two heaps. By default each has one of its own, which keeps what was
/// freed, so that memory follows the number of workers.
pub fn share_heaps() {
    // SAFETY: mallopt takes two numbers. It is a hint; other C libraries have no such heaps.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Bytes of a block device.
pub(crate) fn device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 stores one u64 at the address, which outlives the call.
    unsafe { ioctl::blk_get_size64(file.as_raw_fd(), &mut bytes) }?;
    Ok(bytes)
}

/// Physical block size of a block device.
pub(crate) fn device_block_bytes(file: &File) -> io::Result<u32> {
    let mut bytes: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET stores one unsigned int at the address, which outlives the call.
    unsafe { ioctl::blk_get_pbs(file.as_raw_fd(), &mut bytes) }?;
    Ok(bytes)
}

/// Discards a byte range of a block device.
pub(crate) fn device_discard(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let range = [offset, bytes];
    // SAFETY: BLKDISCARD reads two u64 from the address, which outlives the call.
    unsafe { ioctl::blk_discard(file.as_raw_fd(), &range) }?;
    Ok(())
}

/// Makes a byte range of a block device read as zeros.
pub(crate) fn device_zero(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let range = [offset, bytes];
    // SAFETY: BLKZEROOUT reads two u64 from the address, which outlives the call.
    unsafe { ioctl::blk_zeroout(file.as_raw_fd(), &range) }?;
    Ok(())
}

/// Begins to write a range of dirty pages to the disk, without waiting.
pub(crate) fn begin_writeback(file: BorrowedFd<'_>, offset: u64, bytes: u64) {
    let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else {
        return;
    };
    // A hint: where it fails, the sync at the end does all the work.
    // SAFETY: sync_file_range takes no pointers.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// The next byte at or after `offset` that is not in a hole; `None` if only holes follow.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, offset, libc::SEEK_DATA) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The next hole at or after `offset`; the end of the file counts as one.
pub(crate) fn next_hole(file: &File, offset: u64) -> io::Result<u64> {
    seek(file, offset, libc::SEEK_HOLE)
}

/// Buffers that one call takes (IOV_MAX).
pub(crate) const MAX_PARTS: usize = libc::UIO_MAXIOV as usize;

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: lseek64 takes no pointers.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Reads up to `len` bytes at `offset` into new memory. `cached`: only what needs no waiting; where
/// that cannot be told the error is "unsupported".
pub(crate) fn read_at(file: &File, offset: u64, len: usize, cached: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::<u8>::with_capacity(len);
    let iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: len,
    };
    let offset = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let flags = if cached { libc::RWF_NOWAIT } else { 0 };
    // SAFETY: the vector describes `len` bytes of writable memory that outlive the call.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &iov, 1, offset, flags) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written `read` bytes, which is at most the capacity.
    unsafe { bytes.set_len(read) };
    Ok(bytes)
}

/// Receives up to `wanted` bytes behind the end of `payload`, and what comes behind them into
/// `more`. Returns how many bytes went into each; 0 and 0 is the end of the stream.
///
/// # Panics
/// If `wanted` is more than the spare capacity of `payload`.
pub(crate) fn receive(
    socket: &impl AsFd,
    payload: &mut Vec<u8>,
    wanted: usize,
    more: &mut [u8],
) -> io::Result<(usize, usize)> {
    let spare = &mut payload.spare_capacity_mut()[..wanted];
    let iov = [
        libc::iovec {
            iov_base: spare.as_mut_ptr().cast(),
            iov_len: wanted,
        },
        libc::iovec {
            iov_base: more.as_mut_ptr().cast(),
            iov_len: more.len(),
        },
    ];
    // SAFETY: both vectors describe writable memory that outlives the call.
    let received = unsafe { libc::readv(socket.as_fd().as_raw_fd(), iov.as_ptr(), 2) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let first = received.min(wanted);
    // SAFETY: the kernel has filled `first` bytes behind the old end, within the capacity.
    unsafe { payload.set_len(payload.len() + first) };
    Ok((first, received - first))
}

/// Sends the parts, or some of their bytes; at most 1024 parts. `wait`: until there is room for
/// some.
pub(crate) fn send(socket: &impl AsFd, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
    let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
    // SAFETY: all zeros is a message without address, data and control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len() as _;
    // SAFETY: an IoSlice is laid out as an iovec; the kernel only reads through the message.
    let sent = unsafe {
        libc::sendmsg(
            socket.as_fd().as_raw_fd(),
            &message,
            flags | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
