//! WalB's bytes as types, and back.
//!
//! Everything here is pure: decoders, encoders and iterators over byte slices and over the
//! `std::io` traits a caller hands in. This crate does no I/O of its own, reads no clock, spawns no
//! thread, blocks on nothing and logs nothing; files, memory maps and worker threads live in
//! `walkeep-store`.
//!
//! No decoder panics, and none allocates by a length it has not checked against its container.
//! Errors say what was expected, what was found, and where ([`Error`], [`Flaw`]).
//!
//! The formats are described in the book, `docs/reference/`.

pub mod bytes;
pub mod checksum;
pub mod error;
pub mod ldev;
pub mod logpack;
pub mod meta;
pub mod murmur3;
pub mod random;
pub mod serial;
pub mod units;
pub mod wdiff;
pub mod wlog;

pub use error::{Error, Flaw, Result};
pub use units::{LOGICAL_BLOCK, PhysicalBlock, Uuid, blocks_to_bytes};
