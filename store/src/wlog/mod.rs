//! Work over wlog files: verify, redo, convert to a diff.

mod convert;
mod redo;
mod scan;

pub use convert::{ConvertOptions, ConvertReport, convert};
pub use redo::{RedoReport, redo};
pub use scan::{LogFile, Scan, VerifyReport, verify};
