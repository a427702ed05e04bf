//! Log devices: the superblock, the ring of packs behind it, and the rules of recovery
//! (reference: "Log device", "Crash recovery").
//!
//! Only bytes, positions and decisions; whoever holds the device reads, writes and flushes.

pub mod redo;
pub mod ring;
pub mod superblock;

pub use ring::{Ring, Run};
pub use superblock::{Name, Superblock};
