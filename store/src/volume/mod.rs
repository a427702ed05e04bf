//! What stands around a WAL device: where volumes are registered, who may serve one, and how other
//! processes talk to the one that does (reference: "Volume folder", "Control socket").
//!
//! Nothing here reads or writes the content of a volume, and nothing decides about its log.

mod client;
mod config;
mod create;
mod lock;
mod name;
mod protocol;
mod registry;
mod server;

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

#[cfg(test)]
mod tests;
