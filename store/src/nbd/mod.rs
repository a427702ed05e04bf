//! Exports block devices by the NBD protocol (reference: "NBD").
//!
//! No async runtime: a thread for each connection reads requests, many with one system call, hands
//! them to the device as one batch, and sends the replies that have come in the meantime with one
//! system call, too. Devices answer from any thread. Nothing here knows what a device does.

mod address;
mod listener;
mod negotiation;
mod outbox;
pub mod proto;
mod server;
mod socket;
mod transmission;

pub use address::Address;
pub(crate) use address::MAX_SOCKET_PATH;
pub use server::{ExportOptions, Limits, Server};
