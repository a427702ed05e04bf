//! Exports block devices to this host as `/dev/ublkbN`, by the ublk driver of Linux 6.5 and later
//! (guide: "Block devices of this host"). Feature `ublk`.
//!
//! A thread for each queue fetches requests, hands those of one wake-up to the device as one batch, and
//! commits outcomes, which come from any thread. Data is copied by `pread` and `pwrite`
//! (`UBLK_F_USER_COPY`), so no buffers are kept for idle requests. Nothing here knows what a device
//! does.

mod abi;
mod control;
mod error;
mod export;
mod queue;
mod raw;

pub use control::{Control, Known};
pub use error::{Error, Result};
pub use export::{Export, Options};
pub use raw::become_io_flusher;
