//! wlog files: packs cut out of a log (reference: "wlog").
//!
//! [`Walk`] holds the rules of the file and does no I/O; [`Reader`] and [`Writer`] drive it over
//! the `std::io` traits of a caller. [`text`] prints, [`generate`] makes workloads for tests.

pub mod generate;
pub mod header;
pub mod reader;
pub mod text;
pub mod walk;
pub mod writer;

pub use crate::logpack::{end_block, is_end_block};
pub use header::FileHeader;
pub use reader::{Pack, Reader};
pub use walk::{Step, Walk};
pub use writer::Writer;
