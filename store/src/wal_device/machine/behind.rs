//! The way onto the data: write-behind, checkpoints, and the superblock.

use bytes::Bytes;
use walkeep_wire::LOGICAL_BLOCK;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::ldev::ring::{primary_position, secondary_position};

use super::super::layer::{Payload, Piece};
use super::log::{Blocked, ZEROS};
use super::{Effect, Failure, Machine, Purpose, Target, failure};
use crate::disk::engine::FileOp;

/// Where write-behind, checkpoint and superblock stand.
#[derive(Debug)]
pub(super) struct Behind {
    /// Where the sweep over the addresses goes on.
    cursor: u64,
    /// Pieces this sweep may still take; none if no sweep runs.
    sweep: usize,
    /// Since when something is ripe that no sweep has looked at.
    ripe_since: Option<u64>,
    /// W4: `written` when the sync of the data began.
    pub(super) syncing: Option<u64>,
    superblock: Option<SuperblockWrite>,
    pub(super) last_checkpoint: u64,
    pub(super) interval: Option<u64>,
    /// Flights under way.
    pub(super) flights: usize,
}

#[derive(Debug)]
struct SuperblockWrite {
    next: Superblock,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Writing,
    /// Written; a sync of the log that begins now makes it durable.
    Written,
    /// The second copy is on its way.
    Second,
}

impl Behind {
    pub(super) const fn new(now: u64) -> Self {
        Self {
            cursor: 0,
            sweep: 0,
            ripe_since: None,
            syncing: None,
            superblock: None,
            last_checkpoint: now,
            interval: None,
            flights: 0,
        }
    }

    pub(super) fn superblock_needs_sync(&self) -> bool {
        self.superblock
            .as_ref()
            .is_some_and(|write| write.stage == Stage::Written)
    }

    /// Nothing is on its way but reads.
    pub(super) const fn is_quiet(&self) -> bool {
        self.syncing.is_none() && self.superblock.is_none() && self.flights == 0
    }

    /// The log failed: what the superblock on disk is now is unknown, so nothing is taken for done.
    pub(super) fn forget_superblock(&mut self) {
        self.superblock = None;
    }

    pub(super) const fn writes_superblock(&self) -> bool {
        self.superblock.is_some()
    }
}

impl Machine {
    /// Before it nothing is left to do on the data, and the log is durable.
    pub(super) fn written(&self) -> u64 {
        match self.pending.first_key_value() {
            Some((lsid, _)) => *lsid,
            None => self.permanent,
        }
    }

    /// W2 and W5: a permanent piece goes over the older ones, which need not be written any more.
    pub(super) fn make_ripe(&mut self, start: u64, piece: Piece, now: u64) {
        self.drop_ripe(start, piece.end);
        *self.pending.entry(piece.lsid).or_default() += piece.end - start;
        self.ripe.put(start, piece);
        self.behind.ripe_since.get_or_insert(now);
    }

    pub(super) fn drop_ripe(&mut self, start: u64, end: u64) {
        for (at, old) in self.ripe.carve(start, end, |_| false) {
            self.settle(old.lsid, old.end - at);
        }
    }

    /// Blocks of a pack are on the data, or need not be.
    fn settle(&mut self, lsid: u64, blocks: u64) {
        if let Some(left) = self.pending.get_mut(&lsid) {
            *left -= blocks;
            if *left == 0 {
                self.pending.remove(&lsid);
            }
        }
    }

    /// Somebody waits for room or for an empty log: no delay for the sake of larger writes.
    pub(super) fn is_urgent(&self) -> bool {
        let room = matches!(
            self.blocked,
            Some(Blocked::Window | Blocked::Unsynced | Blocked::Memory)
        );
        room || !self.drains.is_empty()
    }

    /// Sends ripe pieces to the data, by address from where the last sweep ended.
    pub(super) fn write_behind(&mut self, now: u64, out: &mut Vec<Effect>) {
        if self.is_data_stopped(now) {
            return;
        }
        #[cfg(test)]
        self.write_unsynced();
        if self.behind.sweep == 0 && self.sweep_due(now) {
            self.behind.sweep = self.ripe.len();
            self.behind.ripe_since = Some(now);
        }
        while self.behind.sweep > 0 && self.behind.flights < self.limits.flights {
            let Some(run) = self.next_run() else {
                break;
            };
            self.take_off(&run, out);
        }
        if self.ripe.is_empty() {
            (self.behind.sweep, self.behind.ripe_since) = (0, None);
        }
    }

    fn sweep_due(&self, now: u64) -> bool {
        let memory = self.limits.memory;
        !self.ripe.is_empty()
            && (self.is_urgent()
                || self.wants_room()
                || self.data_trouble.is_some()
                || self.ripe.cost() >= memory / 4
                || self.behind_due().is_some_and(|due| due <= now))
    }

    /// When ripe pieces are written because of their age.
    pub(super) fn behind_due(&self) -> Option<u64> {
        let since = self.behind.ripe_since.filter(|_| self.behind.sweep == 0)?;
        let stopped = self.data_trouble.is_some() || self.suspect.is_some();
        (!stopped).then_some(since + self.limits.behind_age)
    }

    /// The next ripe pieces that follow each other and may fly (W6), as first blocks.
    fn next_run(&self) -> Option<Vec<u64>> {
        let cursor = self.behind.cursor;
        let ahead = self.ripe.from(cursor);
        let behind = self.ripe.from(0).take_while(|(at, _)| *at < cursor);
        let (first, piece) = ahead.chain(behind).find(|(at, p)| self.may_fly(*at, p))?;
        let (mut run, mut end) = (vec![first], piece.end);
        let most = self.limits.flight / LOGICAL_BLOCK as u64;
        for (at, next) in self.ripe.from(end) {
            let joins = at == end
                && is_hole(&next.payload) == is_hole(&piece.payload)
                && (is_hole(&piece.payload) || next.end - first <= most)
                && self.may_fly(at, next);
            if !joins {
                break;
            }
            run.push(at);
            end = next.end;
        }
        Some(run)
    }

    fn may_fly(&self, start: u64, piece: &Piece) -> bool {
        #[cfg(test)]
        if self.planted(super::sim::Mutation::OverlappingFlights) {
            return true;
        }
        self.flying.overlapping(start, piece.end).next().is_none()
    }

    fn take_off(&mut self, run: &[u64], out: &mut Vec<Effect>) {
        let (mut parts, mut range, mut holes) = (vec![], None, false);
        for at in run {
            let Some(piece) = self.ripe.take(*at) else {
                continue;
            };
            let (start, _) = range.unwrap_or((*at, 0));
            range = Some((start, piece.end));
            holes = is_hole(&piece.payload);
            if !holes {
                parts.extend(parts_of(*at, &piece));
            }
            self.fly(*at, piece);
        }
        let Some((start, end)) = range else {
            return;
        };
        self.behind.sweep = self.behind.sweep.saturating_sub(run.len());
        self.behind.cursor = end;
        self.behind.flights += 1;
        let (offset, bytes) = (
            start * LOGICAL_BLOCK as u64,
            (end - start) * LOGICAL_BLOCK as u64,
        );
        let op = match holes {
            true => FileOp::Punch { offset, bytes },
            false => FileOp::Write { offset, parts },
        };
        self.written_since_sync.note(start, end);
        self.io(Purpose::Flight(start, end), Target::Data, op, out);
    }

    #[cfg(not(test))]
    fn fly(&mut self, start: u64, piece: Piece) {
        self.flying.put(start, piece);
    }

    /// A flight came down.
    pub(super) fn landed(
        &mut self,
        start: u64,
        end: u64,
        result: Result<Bytes, Failure>,
        now: u64,
    ) {
        self.behind.flights -= 1;
        let pieces = self.flying.carve(start, end, |_| false);
        match result {
            Ok(_) => {
                for (at, piece) in pieces {
                    self.settle(piece.lsid, piece.end - at);
                }
                let over = |trouble: &failure::DataTrouble| trouble.is_about(start, end);
                if self.data_trouble.as_ref().is_some_and(over) {
                    self.data_trouble = None;
                }
            }
            Err(failure) => {
                for (at, piece) in pieces {
                    self.put_back(at, piece);
                }
                self.behind.ripe_since.get_or_insert(now);
                self.behind.sweep = 0;
                let retry_at = now + self.limits.retry;
                let trouble = failure::DataTrouble::new(failure, (start, end), now, retry_at);
                self.data_trouble = Some(trouble);
            }
        }
    }

    /// A piece that did not get onto the data is ripe again, beneath what became ripe meanwhile.
    fn put_back(&mut self, start: u64, piece: Piece) {
        let gaps = self.ripe.gaps(start, piece.end);
        let kept: u64 = gaps.iter().map(|(from, to)| to - from).sum();
        self.settle(piece.lsid, piece.end - start - kept);
        for (from, to) in gaps {
            self.ripe.put(from, piece.part(start, from, to));
        }
    }

    /// Recovery would take long, or the ring is short of room.
    fn wants_room(&self) -> bool {
        let ring = self.superblock.ring.size();
        let limit = (self.limits.checkpoint / self.pbs().bytes() as u64).min(ring / 4);
        self.latest - self.superblock.written_lsid > limit
    }

    /// W4, first step: notes `written` and syncs the data.
    pub(super) fn checkpoint(&mut self, now: u64, out: &mut Vec<Effect>) {
        let idle = self.behind.syncing.is_none() && !self.behind.writes_superblock();
        // Held and drained: the superblock is being changed by somebody else.
        if self.is_held() && self.drains.is_empty() {
            return;
        }
        if !idle || self.is_data_stopped(now) || self.log_failed.is_some() {
            return;
        }
        let (written, before) = (self.written(), self.superblock.written_lsid);
        let due = self.checkpoint_due().is_some_and(|due| due <= now);
        if written > before {
            let drained = self.drains.iter().any(|drain| drain.upto <= written);
            let half = self.wants_room() && written - before > (self.latest - before) / 2;
            if due || drained || half || self.blocked == Some(Blocked::Window) {
                self.begin_checkpoint(written, out);
            }
        } else if due || self.closed {
            self.behind.last_checkpoint = now;
            if self.oldest != self.superblock.oldest_lsid {
                self.write_superblock(before, out);
            }
        }
    }

    fn begin_checkpoint(&mut self, written: u64, out: &mut Vec<Effect>) {
        #[cfg(test)]
        if self.planted(super::sim::Mutation::CheckpointWithoutDataSync) {
            return self.write_superblock(written, out);
        }
        self.behind.syncing = Some(written);
        self.being_synced = std::mem::take(&mut self.written_since_sync);
        // What is still flying may be missed by the sync.
        for (start, piece) in self.flying.from(0) {
            self.written_since_sync.note(start, piece.end);
        }
        self.io(Purpose::DataSync, Target::Data, FileOp::Sync, out);
    }

    /// When a checkpoint is due because of its age.
    pub(super) fn checkpoint_due(&self) -> Option<u64> {
        let moved = self.latest != self.superblock.written_lsid
            || self.oldest != self.superblock.oldest_lsid;
        let interval = self.behind.interval.unwrap_or(self.limits.checkpoint_age);
        let idle = self.behind.syncing.is_none() && !self.behind.writes_superblock();
        let well = self.data_trouble.is_none() && self.suspect.is_none() && !self.is_held();
        let interval = interval.max(super::SHORTEST_INTERVAL);
        (moved && idle && well && self.log_failed.is_none())
            .then_some(self.behind.last_checkpoint.saturating_add(interval))
    }

    pub(super) fn data_synced(
        &mut self,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(written) = self.behind.syncing.take() else {
            return;
        };
        let covered = std::mem::take(&mut self.being_synced);
        match result {
            Err(failure) => self.suspect_data(failure, covered, now),
            Ok(_) if self.log_failed.is_some() => {}
            Ok(_) => self.write_superblock(written, out),
        }
    }

    /// W4, second step (and W8): writes the superblock with `written` and the newest oldest lsid.
    pub(super) fn write_superblock(&mut self, written: u64, out: &mut Vec<Effect>) {
        if self.behind.writes_superblock() || self.log_failed.is_some() {
            return;
        }
        let next = Superblock {
            written_lsid: written,
            oldest_lsid: self.oldest,
            ..self.superblock.clone()
        };
        let op = write_of(&next);
        #[cfg(test)]
        if self.planted(super::sim::Mutation::PrevWrittenBeforeItsSync) {
            self.superblock = next.clone();
        }
        self.behind.superblock = Some(SuperblockWrite {
            next,
            stage: Stage::Writing,
        });
        self.io(Purpose::Superblock, Target::Log, op, out);
    }

    pub(super) fn superblock_written(
        &mut self,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        match (result, &mut self.behind.superblock) {
            (Err(failure), _) => self.fail_log("superblock write", failure, now, out),
            (Ok(_), Some(write)) => write.stage = Stage::Written,
            (Ok(_), None) => {}
        }
    }

    /// W4, last step: only what is durable counts. The second copy follows; nobody waits for it.
    pub(super) fn superblock_synced(&mut self, now: u64, out: &mut Vec<Effect>) {
        let Some(done) = &mut self.behind.superblock else {
            return;
        };
        if done.next.written_lsid > self.superblock.written_lsid {
            self.counters.checkpoints += 1;
            self.behind.last_checkpoint = now;
        }
        self.superblock = done.next.clone();
        done.stage = Stage::Second;
        let op = write(secondary_position(self.pbs()), &self.superblock);
        self.io(Purpose::SecondSuperblock, Target::Log, op, out);
    }

    pub(super) fn second_written(
        &mut self,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        self.behind.superblock = None;
        if let Err(failure) = result {
            self.fail_log("second superblock write", failure, now, out);
        }
    }
}

/// The write of the primary copy.
pub(super) fn write_of(superblock: &Superblock) -> FileOp {
    write(primary_position(), superblock)
}

fn write(position: u64, superblock: &Superblock) -> FileOp {
    FileOp::Write {
        offset: position,
        parts: vec![superblock.encode().into()],
    }
}

/// Pieces that become holes of the data.
const fn is_hole(payload: &Payload) -> bool {
    matches!(
        payload,
        Payload::Discard | Payload::Zeros { may_punch: true }
    )
}

fn parts_of(start: u64, piece: &Piece) -> Vec<Bytes> {
    if let Payload::Data(bytes) = &piece.payload {
        return vec![bytes.clone()];
    }
    let (mut parts, mut left) = (vec![], (piece.end - start) as usize * LOGICAL_BLOCK);
    while left > 0 {
        let step = left.min(ZEROS.len());
        parts.push(ZEROS.slice(..step));
        left -= step;
    }
    parts
}

/// Variants with planted bugs, for the tests of the tests.
#[cfg(test)]
mod planted {
    use super::super::sim::Mutation;
    use super::{Machine, Piece};

    impl Machine {
        /// Without W2: pieces go to the data although the log does not have them.
        pub(super) fn write_unsynced(&mut self) {
            if !self.planted(Mutation::DataBeforePermanent) {
                return;
            }
            let early = self.early;
            let records: Vec<_> = (self.groups.iter())
                .flat_map(|group| group.records.iter())
                .filter(|(_, piece)| piece.seq > early)
                .cloned()
                .collect();
            for (start, piece) in records {
                self.early = piece.seq;
                self.make_ripe(start, piece, 0);
            }
        }

        pub(super) fn fly(&mut self, start: u64, piece: Piece) {
            if self.planted(Mutation::OverlappingFlights) {
                self.flying.carve(start, piece.end, |_| false);
            }
            if self.planted(Mutation::IndexRemovedBeforeTheWrite) {
                return self.settle(piece.lsid, piece.end - start);
            }
            self.flying.put(start, piece);
        }
    }
}
