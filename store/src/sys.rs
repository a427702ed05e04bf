//! The few system calls that need `unsafe`, each behind a safe wrapper.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
