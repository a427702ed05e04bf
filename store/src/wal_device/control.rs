//! What may be asked of a running volume besides reading and writing it, and what it tells of
//! itself. `walkeep volume`, `wdevc` and the storage role come through here, by a control socket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the log of a volume stands. All are lsids, in the order
/// `oldest ≤ prev_written ≤ written ≤ permanent ≤ completed ≤ latest` unless the log overflowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Oldest pack still needed by whoever ships the log.
    pub oldest: u64,
    /// `oldest` as the superblock on disk has it.
    pub oldest_durable: u64,
    /// Where recovery would begin: `written` as the superblock on disk has it.
    pub prev_written: u64,
    /// Before it nothing is left to do on the data.
    pub written: u64,
    /// Before it everything is durable in the log.
    pub permanent: u64,
    /// Before it everything is written to the log.
    pub completed: u64,
    /// Where the next pack goes.
    pub latest: u64,
}

/// What a volume is able to do at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// All is well.
    Serving,
    /// No new write gets into the log until it is melted; reads go on.
    Frozen,
    /// A write or sync of the log failed: writes are refused, reads go on, the log is written anew.
    LogFailed,
    /// A write of the data failed: it is tried again, writes go on while there is room for them.
    DataFailed,
    /// The data has no space left: as `DataFailed`.
    DataFull,
    /// A sync of the data failed: what was written since the last good one is replayed.
    DataSuspect,
    /// The lsids are used up: only a reset helps.
    LsidsUsedUp,
    /// The volume is closing, or has closed.
    Closed,
}

impl Condition {
    /// What the operator should do, empty when all is well.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Serving => "",
            Self::Frozen => "melt the volume to let writes go on",
            Self::LogFailed => {
                "check the log device and the folder of the volume; writes go on by themselves when they work again"
            }
            Self::DataFailed => "check the data device; writing is tried again by itself",
            Self::DataFull => "make space for the data; writing is tried again by itself",
            Self::DataSuspect => "check the data device; the log is replayed onto it by itself",
            Self::LsidsUsedUp => "ship the log, then reset it (volume reset)",
            Self::Closed => "serve the volume again",
        }
    }
}

/// Counts of durations: bucket `i` holds those below `2^i` microseconds and not below the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Number of durations by bucket; trailing zeros are left out.
    pub buckets: Vec<u64>,
    /// Sum of all durations \[µs\].
    pub total_micros: u64,
}

/// What a volume tells of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Identity of the log, 32 hex digits; changes when its continuity is lost.
    pub uuid: String,
    /// Salt of the checksums in the log.
    pub salt: u32,
    /// Physical block size \[bytes\].
    pub block_size: u32,
    /// Size of the volume \[bytes\].
    pub size: u64,
    /// Size of the ring \[physical blocks\].
    pub ring_blocks: u64,
    /// Where the log stands.
    pub positions: Positions,
    /// The log lost packs that were still needed: a hash or full backup and a reset are needed.
    pub overflow: bool,
    /// lsid of the first lost write and when, seconds since 1970, if known.
    pub overflow_mark: Option<(u64, u64)>,
    /// What the volume is able to do.
    pub condition: Condition,
    /// Cause of the condition, for people; empty when all is well.
    pub cause: String,
    /// What to do about it.
    pub hint: String,
    /// Bytes of writes in memory that are not on the data yet.
    pub pending_bytes: u64,
    /// Pieces of the data that are not on the data yet.
    pub pending_pieces: u64,
    /// Milliseconds between checkpoints.
    pub checkpoint_interval_ms: u64,
    /// Age of the last checkpoint \[ms\].
    pub checkpoint_age_ms: u64,
    /// Writes, bytes written, reads, bytes read, flushes, groups and syncs of the log since start.
    pub counters: Counters,
    /// From a flush (or a write with FUA) to its answer.
    pub flush_latency: Histogram,
    /// From a write to its answer.
    pub write_latency: Histogram,
}

/// Totals since the volume was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Counters {
    pub writes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub read_bytes: u64,
    pub flushes: u64,
    pub log_groups: u64,
    pub log_packs: u64,
    pub log_syncs: u64,
    pub checkpoints: u64,
    /// Times the ring went round.
    pub ring_wraps: u64,
    /// Times a write had to wait for the redo window of the ring.
    pub window_waits: u64,
}

/// Why a control command was refused, or failed; a refused one had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{0}")]
pub struct Refused(pub String);

/// Control of a running volume. Calls block until what they promise is durable.
pub trait Control: Send + Sync {
    /// As of now.
    fn status(&self) -> Status;
    /// Writes everything pending to the data and moves `prev_written`.
    fn checkpoint(&self) -> Result<(), Refused>;
    /// Time between checkpoints; not kept over a restart.
    fn set_checkpoint_interval(&self, interval: Duration) -> Result<(), Refused>;
    /// The packs before `lsid` are not needed any more. `lsid` is the start of a pack, not before
    /// `oldest` and not after `prev_written`; refused after an overflow.
    fn set_oldest(&self, lsid: u64) -> Result<(), Refused>;
    /// Makes the log durable up to its end and returns that lsid: everything that was answered
    /// before the call lies before it, so the moment can be restored.
    fn mark(&self) -> Result<u64, Refused>;
    /// Grows the volume, to the size of the data if `None`. Clients see it when they reconnect.
    fn resize(&self, bytes: Option<u64>) -> Result<(), Refused>;
    /// Begins a new, empty log, with a new uuid: whoever ships it needs a full or hash backup.
    fn reset(&self) -> Result<(), Refused>;
    /// Holds all new writes, brings everything pending to the data and checkpoints. Melts by itself
    /// after `timeout`.
    fn freeze(&self, timeout: Option<Duration>) -> Result<(), Refused>;
    /// Lets writes go on.
    fn melt(&self) -> Result<(), Refused>;
}
