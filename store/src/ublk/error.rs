//! What can go wrong between here and the ublk driver.

use std::io;

/// What failed, and what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver is not there.
    #[error(
        "/dev/ublk-control: expected the control device of ublk, found none: load the driver as root \
         (modprobe ublk_drv; Linux 6.5 or later, built with CONFIG_BLK_DEV_UBLK), or use NBD"
    )]
    NoDriver,
    /// The control device is for root.
    #[error("/dev/ublk-control: expected the permission to make block devices: run this as root")]
    NoPermission,
    /// The driver lacks what is needed.
    #[error(
        "ublk: expected a driver that copies by read and write (Linux 6.5 or later), found {0}: run a \
         newer kernel, or use NBD"
    )]
    TooOld(String),
    /// No io_uring, by which ublk is driven.
    #[error(
        "ublk: io_uring is missing or forbidden: expected 0 in /proc/sys/kernel/io_uring_disabled and \
         no sandbox that keeps it away"
    )]
    NoRing(#[source] io::Error),
    /// A command or file of the driver failed.
    #[error("ublk: cannot {0}")]
    Failed(String, #[source] io::Error),
    /// A device that must not be deleted.
    #[error("{0}")]
    Refused(String),
}

/// Result of driving ublk.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Failed(what.into(), error)
    }
}
