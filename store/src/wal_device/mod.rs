//! The WAL device: a block volume whose every write goes first into a log of the original format,
//! from where it is shipped and written to the data (reference: "WAL device").
//!
//! [`machine`] decides and touches nothing, [`recover`] brings a volume up after a crash,
//! [`volume`] runs it. What must be durable before what is decided in these three alone.

pub mod control;
pub mod host;
mod layer;
pub mod machine;
pub mod recover;
pub mod state;
pub mod volume;

pub use control::{Control, Status};
pub use host::Host;
pub use machine::Limits;
pub use volume::{Paths, Volume};
