//! What touches a disk: input and output files, log devices, images, and the parallel pipelines
//! over them.
//!
//! Decisions about bytes live in `walkeep-wire`; this crate reads, writes, makes durable and keeps
//! the cores busy. It knows no actors; sockets only where it exports devices (`nbd`).

pub mod block;
pub mod disk;
pub mod error;
pub mod file_device;
pub mod image;
pub mod input;
pub mod ldev;
pub mod meter;
pub mod nbd;
pub mod output;
pub mod payload;
pub mod pipeline;
mod sys;
pub mod volume;
pub mod wal_device;
pub mod wdiff;
pub mod wlog;

pub use error::{Error, Result};
pub use meter::Meter;
pub use pipeline::Workers;
pub use sys::share_heaps;
