//! What stands around a WAL device: where volumes are registered, who may serve one, and how other
//! processes talk to the one that does (reference: "Volume folder", "Control socket").
//!
//! Nothing here reads or writes the content of a volume, and nothing decides about its log.

mod address;
mod client;
mod config;
mod create;
mod lock;
mod name;
mod protocol;
mod registry;
mod server;

use crate::block::BlockDevice;
use crate::wal_device::control::Control;

pub use address::NbdAddress;
pub use client::{ControlClient, ControlError};
pub use config::{Options, VolumeConfig};
pub use create::{Checked, Created, Plan, PlannedFile, default_log_bytes, plan_create};
pub use lock::VolumeLock;
pub use name::VolumeName;
pub use protocol::{
    Answer, Command, Failure, FailureKind, Identity, MAX_LINE, PROTOCOL_VERSION, Request,
};
pub use registry::{Entry, Home, Purged};
pub use server::ControlServer;

/// A running volume: what exports serve and what the control socket commands.
pub trait Device: BlockDevice + Control {}

impl<T: BlockDevice + Control> Device for T {}

#[cfg(test)]
mod tests;
