//! What a WAL device decides: events in, effects out. No I/O, no clock, no thread; a simulated disk
//! drives it as well as a real one.
//!
//! Rules are named W1 to W11 as in the book (reference: "WAL device"), where they are kept:
//!
//! * W1 order of lsids = order of effect: one queue, in [`log`].
//! * W2 data only after permanent, W5 superseded only by permanent versions, W6 no two overlapping
//!   data writes in flight: the layers, in [`behind`].
//! * W3 redo window, W7 bounded dead tail, W8 durable oldest, W9 mark before the loss: what
//!   [`log`] asks before it gives out an lsid.
//! * W4 order of a checkpoint: [`behind`].
//! * W10 a failed sync is not repeated and believed: [`failure`].
//! * W11 an acknowledgement sees everything: [`log`].

mod behind;
mod commands;
mod failure;
#[cfg(test)]
mod laws;
mod log;
mod read;
#[cfg(test)]
pub(crate) mod sim;

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::{LOGICAL_BLOCK, PhysicalBlock};

use super::control::{Condition, Counters, Histogram, Positions, Refused, Status};
use super::layer::{Layer, Ranges};
use super::state::State;
use crate::block::{Op, Refusal, Reply};
use crate::disk::engine::FileOp;

pub use commands::Command;

/// Names a request or command of a client; the driver chooses it.
pub type Ticket = u64;
/// Names an effect that will be reported by [`Event::Finished`].
pub type IoId = u64;

/// Least time between checkpoints \[µs\].
const SHORTEST_INTERVAL: u64 = 10_000;

/// Bounds of a volume. Times are microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory of writes that are not on the data yet \[bytes\].
    pub memory: u64,
    /// Greatest record and greatest pack \[bytes\].
    pub pack: u64,
    /// Greatest group of packs that are written at once \[bytes\].
    pub group: u64,
    /// Groups on their way to the log.
    pub groups: usize,
    /// Writes on their way to the data.
    pub flights: usize,
    /// Greatest write to the data \[bytes\].
    pub flight: u64,
    /// The log is synced when so much of it is not \[bytes\].
    pub unsynced: u64,
    /// Or when the oldest of it is so old.
    pub unsynced_age: u64,
    /// W7: how far the log may be ahead of what is durable of it \[bytes\].
    pub window: u64,
    /// Writes go to the data when they are so old.
    pub behind_age: u64,
    /// Between checkpoints.
    pub checkpoint_age: u64,
    /// Or when so much of the log would be replayed \[bytes\], or a quarter of the ring.
    pub checkpoint: u64,
    /// Between attempts after a failure.
    pub retry: u64,
    /// A request that waits so long on a failed device is refused.
    pub hold: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        const SECOND: u64 = 1_000_000;
        Self {
            memory: 64 * MIB,
            pack: MIB / 2,
            group: MIB,
            groups: 4,
            flights: 32,
            flight: MIB,
            unsynced: 16 * MIB,
            unsynced_age: SECOND / 10,
            window: 32 * MIB,
            behind_age: SECOND,
            checkpoint_age: 10 * SECOND,
            checkpoint: 64 * MIB,
            retry: SECOND,
            hold: 30 * SECOND,
        }
    }
}

/// Which file an effect is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The log device.
    Log,
    /// The data.
    Data,
}

/// Why an effect failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// There is no space left.
    pub no_space: bool,
    /// For people.
    pub cause: String,
}

/// What happens to a machine.
#[allow(missing_docs)]
#[derive(Debug)]
pub enum Event {
    /// A client asks.
    Request { ticket: Ticket, op: Op },
    /// An operator asks.
    Command { ticket: Ticket, command: Command },
    /// An effect came to its end; the bytes are those of a read.
    Finished {
        id: IoId,
        result: Result<Bytes, Failure>,
    },
    /// Time went by.
    Tick,
}

/// What a machine wants done, in any order: it waits itself where an order matters.
#[allow(missing_docs)]
#[derive(Debug)]
pub enum Effect {
    /// A file operation.
    Io {
        id: IoId,
        target: Target,
        op: FileOp,
    },
    /// Keep durably that the log overflows with the pack at `lsid`.
    SaveMark { id: IoId, lsid: u64 },
    /// Open the log anew, since a failed sync leaves its descriptor in doubt.
    ReopenLog { id: IoId },
    /// Open the data anew, replay the log onto it between the lsids, and make it durable.
    Replay { id: IoId, from: u64, to: u64 },
    /// Answer a client.
    Answer {
        ticket: Ticket,
        result: Result<Reply, Refusal>,
    },
    /// Answer a client with the extents of the data under `pending`, which are given as first block,
    /// block behind the last, and whether they read as zeros without space.
    AnswerExtents {
        ticket: Ticket,
        start: u64,
        end: u64,
        pending: Vec<(u64, u64, bool)>,
    },
    /// Answer an operator.
    Tell {
        ticket: Ticket,
        result: Result<u64, Refused>,
    },
}

/// What an unfinished effect is for.
#[derive(Debug)]
enum Purpose {
    /// A write of the group that begins there.
    Group(u64),
    LogSync,
    Superblock,
    SecondSuperblock,
    Flight(u64, u64),
    DataSync,
    Read(read::Reading),
    Mark(u64),
    ReopenLog,
    Replay,
    /// The superblock once more, after the log failed.
    Restore,
    OldestProbe(commands::OldestProbe),
}

/// The decisions of one volume.
pub struct Machine {
    limits: Limits,
    /// As it is durable on disk, hence with `oldest_durable` and `prev_written`.
    superblock: Superblock,
    oldest: u64,
    completed: u64,
    permanent: u64,
    latest: u64,
    /// W7 \[pb\].
    window: u64,
    /// lsid of the first pack that did not fit; cleared by a reset only.
    overflow: Option<u64>,
    /// The mark of W9 is being saved.
    marking: bool,
    closed: bool,
    /// No pack fits before the end of the lsids.
    lsids_used_up: bool,

    waiting: VecDeque<log::Waiting>,
    blocked: Option<log::Blocked>,
    groups: VecDeque<log::Group>,
    /// Groups from the front that are written.
    groups_complete: usize,
    groups_writing: usize,
    /// Cost of the records in `groups`.
    groups_cost: u64,
    next_seq: u64,
    acks: VecDeque<log::Ack>,
    durable_acks: VecDeque<log::Ack>,
    dirty_since: Option<u64>,
    syncing: Option<log::SyncRun>,

    /// The newest versions that are not permanent.
    fresh: Layer,
    /// The newest permanent versions that are not on the data.
    ripe: Layer,
    /// Versions on their way to the data.
    flying: Layer,
    /// Blocks in `ripe` and `flying` by the lsid of their pack.
    pending: BTreeMap<u64, u64>,
    behind: behind::Behind,
    /// What was written to the data since the last sync of it began, and what that sync covers.
    written_since_sync: Ranges,
    being_synced: Ranges,

    log_failed: Option<failure::LogFailure>,
    data_trouble: Option<failure::DataTrouble>,
    suspect: Option<failure::Suspect>,

    drains: Vec<commands::Drain>,
    frozen: Option<commands::Frozen>,

    ios: HashMap<IoId, Purpose>,
    next_io: IoId,
    counters: Counters,
    flush_latency: Histogram,
    write_latency: Histogram,
    #[cfg(test)]
    mutation: Option<sim::Mutation>,
    #[cfg(test)]
    acked_by: [u64; 2],
    #[cfg(test)]
    early: u64,
}

impl Machine {
    /// A machine for a volume whose recovery ended at `superblock.written_lsid`, which is durable.
    /// `overflow` is the lsid of the first lost pack, if packs that are still needed were lost.
    pub fn new(superblock: Superblock, overflow: Option<u64>, limits: Limits, now: u64) -> Self {
        let at = superblock.written_lsid;
        let window = window_blocks(&superblock, &limits);
        Self {
            limits,
            oldest: superblock.oldest_lsid,
            completed: at,
            permanent: at,
            latest: at,
            window,
            overflow,
            marking: false,
            closed: false,
            lsids_used_up: false,
            waiting: VecDeque::new(),
            blocked: None,
            groups: VecDeque::new(),
            groups_complete: 0,
            groups_writing: 0,
            groups_cost: 0,
            next_seq: 1,
            acks: VecDeque::new(),
            durable_acks: VecDeque::new(),
            dirty_since: None,
            syncing: None,
            fresh: Layer::default(),
            ripe: Layer::default(),
            flying: Layer::default(),
            pending: BTreeMap::new(),
            behind: behind::Behind::new(now),
            written_since_sync: Ranges::default(),
            being_synced: Ranges::default(),
            log_failed: None,
            data_trouble: None,
            suspect: None,
            drains: vec![],
            frozen: None,
            ios: HashMap::new(),
            next_io: 1,
            counters: Counters::default(),
            flush_latency: Histogram::default(),
            write_latency: Histogram::default(),
            superblock,
            #[cfg(test)]
            mutation: None,
            #[cfg(test)]
            acked_by: [0; 2],
            #[cfg(test)]
            early: 0,
        }
    }

    /// Takes an event in. Its effects come now or with the next [`Machine::advance`], which must
    /// follow; several events may go before it, and share log packs then.
    pub fn on(&mut self, event: Event, now: u64, out: &mut Vec<Effect>) {
        match event {
            Event::Request { ticket, op } => self.request(ticket, op, now, out),
            Event::Command { ticket, command } => self.command(ticket, command, now, out),
            Event::Finished { id, result } => self.finished(id, result, now, out),
            Event::Tick => {}
        }
    }

    /// Does what has become possible or due.
    pub fn advance(&mut self, now: u64, out: &mut Vec<Effect>) {
        self.recover_log(now, out);
        self.allocate(now, out);
        self.sync_log(now, out);
        self.write_behind(now, out);
        self.checkpoint(now, out);
        self.clear_suspicion(now, out);
        self.settle_commands(now, out);
        self.refuse_held(now, out);
    }

    /// When the next [`Event::Tick`] is due at the latest; never, while nothing happens.
    pub fn deadline(&self, now: u64) -> Option<u64> {
        let times = [
            self.sync_due(),
            self.behind_due(),
            self.checkpoint_due(),
            self.retry_due(now),
            self.hold_due(),
            self.melt_due(),
        ];
        times.into_iter().flatten().min()
    }

    fn finished(
        &mut self,
        id: IoId,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(purpose) = self.ios.remove(&id) else {
            return;
        };
        match purpose {
            Purpose::Group(begin) => self.group_written(begin, result, now, out),
            Purpose::LogSync => self.log_synced(result, now, out),
            Purpose::Superblock => self.superblock_written(result, now, out),
            Purpose::SecondSuperblock => self.second_written(result, now, out),
            Purpose::Flight(start, end) => self.landed(start, end, result, now),
            Purpose::DataSync => self.data_synced(result, now, out),
            Purpose::Read(reading) => self.read_done(reading, result, out),
            Purpose::Mark(lsid) => self.marked(lsid, result, now, out),
            Purpose::ReopenLog => self.log_reopened(result, now, out),
            Purpose::Replay => self.replayed(result, now),
            Purpose::Restore => self.restored(result, now, out),
            Purpose::OldestProbe(probe) => self.oldest_probed(probe, result, out),
        }
    }

    fn request(&mut self, ticket: Ticket, op: Op, now: u64, out: &mut Vec<Effect>) {
        let result = match self.check(&op) {
            Err(refusal) => Err(refusal),
            Ok(()) if self.closed => Err(Refusal::ShuttingDown),
            Ok(()) => return self.take(ticket, op, now, out),
        };
        out.push(Effect::Answer { ticket, result });
    }

    fn take(&mut self, ticket: Ticket, op: Op, now: u64, out: &mut Vec<Effect>) {
        match op {
            Op::Read { offset, len } => self.read(ticket, blocks(offset), blocks(len.into()), out),
            Op::Extents { offset, len } => self.extents(ticket, blocks(offset), blocks(len), out),
            Op::Flush => self.flush(ticket, now, out),
            Op::Write { .. } | Op::Trim { .. } | Op::Zero { .. } => {
                self.enqueue(ticket, op, now, out);
            }
        }
    }

    /// Range, alignment and size.
    fn check(&self, op: &Op) -> Result<(), Refusal> {
        let (offset, len, writes) = match *op {
            Op::Flush => return Ok(()),
            Op::Read { offset, len } => (offset, u64::from(len), false),
            Op::Extents { offset, len } => (offset, len, false),
            Op::Write {
                offset, ref data, ..
            } => (offset, data.len() as u64, true),
            Op::Trim { offset, len, .. } | Op::Zero { offset, len, .. } => (offset, len, true),
        };
        let unit = LOGICAL_BLOCK as u64;
        if len == 0 || offset % unit != 0 || len % unit != 0 {
            return Err(Refusal::Invalid);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ if writes => Err(Refusal::NoSpace),
            _ => Err(Refusal::Invalid),
        }
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.superblock.device_blocks * LOGICAL_BLOCK as u64
    }

    /// The superblock as it is durable on disk.
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Where the log stands.
    pub fn positions(&self) -> Positions {
        Positions {
            oldest: self.oldest,
            oldest_durable: self.superblock.oldest_lsid,
            prev_written: self.superblock.written_lsid,
            written: self.written(),
            permanent: self.permanent,
            completed: self.completed,
            latest: self.latest,
        }
    }

    /// What the volume is able to do, and why.
    pub fn condition(&self) -> (Condition, String) {
        let all_well = || (Condition::Serving, String::new());
        if let Some(failure) = &self.log_failed {
            return (Condition::LogFailed, failure.cause.clone());
        }
        if let Some(suspect) = &self.suspect {
            return (Condition::DataSuspect, suspect.cause.clone());
        }
        if let Some(trouble) = &self.data_trouble {
            let condition = match trouble.no_space {
                true => Condition::DataFull,
                false => Condition::DataFailed,
            };
            return (condition, trouble.cause.clone());
        }
        if self.closed {
            return (Condition::Closed, String::new());
        }
        if self.lsids_used_up {
            return (Condition::LsidsUsedUp, String::new());
        }
        match self.frozen {
            Some(_) => (Condition::Frozen, String::new()),
            None => all_well(),
        }
    }

    /// lsid of the first pack that did not fit, if the log overflowed.
    pub const fn overflow(&self) -> Option<u64> {
        self.overflow
    }

    /// W7: the dead tail that a crash leaves is at most so many blocks.
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Everything a volume tells of itself.
    pub fn status(&self, state: &State, now: u64) -> Status {
        let (condition, cause) = self.condition();
        let records = self.groups.iter().map(|g| g.records.len()).sum::<usize>();
        let interval = self.behind.interval.unwrap_or(self.limits.checkpoint_age);
        Status {
            uuid: self.superblock.uuid.to_string(),
            salt: self.superblock.salt,
            block_size: self.pbs().bytes() as u32,
            size: self.size(),
            ring_blocks: self.superblock.ring.size(),
            positions: self.positions(),
            overflow: self.overflow.is_some(),
            overflow_mark: state.overflow.map(|mark| (mark.lsid, mark.time)),
            condition,
            cause,
            hint: condition.hint().to_owned(),
            pending_bytes: self.ripe.cost() + self.flying.cost() + self.groups_cost,
            pending_pieces: (self.ripe.len() + self.flying.len() + records) as u64,
            checkpoint_interval_ms: interval / 1000,
            checkpoint_age_ms: now.saturating_sub(self.behind.last_checkpoint) / 1000,
            counters: self.counters,
            flush_latency: self.flush_latency.clone(),
            write_latency: self.write_latency.clone(),
        }
    }

    const fn pbs(&self) -> PhysicalBlock {
        self.superblock.pbs()
    }

    fn pb_bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.pbs().bytes() as u64)
    }

    fn io(&mut self, purpose: Purpose, target: Target, op: FileOp, out: &mut Vec<Effect>) {
        let id = self.name(purpose);
        out.push(Effect::Io { id, target, op });
    }

    fn name(&mut self, purpose: Purpose) -> IoId {
        let id = self.next_io;
        self.next_io += 1;
        self.ios.insert(id, purpose);
        id
    }

    /// True if the test plants this bug.
    #[cfg(test)]
    fn planted(&self, mutation: sim::Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// W7 in blocks: the configured window, but never more than a third of a small ring.
pub(super) fn window_blocks(superblock: &Superblock, limits: &Limits) -> u64 {
    let wanted = limits.window / superblock.pbs().bytes() as u64;
    wanted.min(superblock.ring.size() / 3).max(4)
}

const fn blocks(bytes: u64) -> u64 {
    bytes / LOGICAL_BLOCK as u64
}

/// Adds a duration to a histogram.
fn count(histogram: &mut Histogram, micros: u64) {
    let bucket = (u64::BITS - micros.leading_zeros()) as usize;
    if histogram.buckets.len() <= bucket {
        histogram.buckets.resize(bucket + 1, 0);
    }
    histogram.buckets[bucket] += 1;
    histogram.total_micros += micros;
}
