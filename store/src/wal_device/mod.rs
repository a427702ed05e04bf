//! The WAL device: a block volume whose every write goes into a log of the original format first.

pub mod control;
mod layer;
pub mod machine;
pub mod recover;
