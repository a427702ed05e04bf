//! The way into the log: lsids, packs, groups, syncs and acknowledgements.

use std::sync::LazyLock;

use bytes::Bytes;
use walkeep_wire::LOGICAL_BLOCK;
use walkeep_wire::checksum::checksum;
use walkeep_wire::logpack::{Builder, Header, MAX_IO_BLOCKS, RecordKind};
use walkeep_wire::units::INVALID_LSID;

use super::super::layer::{Payload, Piece};
use super::{Effect, Failure, Machine, Purpose, Target, Ticket, count};
use crate::block::{Op, Refusal, Reply};
use crate::disk::engine::FileOp;

/// Zeros for whoever needs some.
pub(super) static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; 1 << 20]));

/// A write, trim or zeroing that has no lsid yet, or only its first records have.
#[derive(Debug)]
pub(super) struct Waiting {
    ticket: Ticket,
    fua: bool,
    pub(super) since: u64,
    /// Its next block, and what is left of it.
    address: u64,
    blocks: u64,
    payload: Payload,
}

/// A request that is answered when the log has come to `end`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    pub(super) end: u64,
    pub(super) ticket: Ticket,
    fua: bool,
    since: u64,
    kind: AckKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckKind {
    Write,
    Flush,
    /// A mark, told to an operator.
    Mark,
}

/// Packs that are written at once. They are kept until they are permanent: a log that fails is
/// written anew from them.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) begin: u64,
    pub(super) end: u64,
    /// Contiguous runs on the log device.
    pub(super) writes: Vec<(u64, Vec<Bytes>)>,
    /// Writes not finished.
    pub(super) left: usize,
    /// Records in log order, by first block.
    pub(super) records: Vec<(u64, Piece)>,
    cost: u64,
}

/// A sync of the log that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct SyncRun {
    /// `completed` when it began.
    target: u64,
    /// A superblock had been written when it began.
    superblock: bool,
    since: u64,
}

/// Why the next pack cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// W3: recovery still needs the cells.
    Window,
    /// W7: too much of the log is not durable.
    Unsynced,
    /// W8: the durable oldest lsid is behind.
    Oldest,
    /// W9: the mark is not durable.
    Mark,
    /// The budget is used up.
    Memory,
    /// No lsids are left.
    Lsids,
}

impl Machine {
    /// Puts a write behind the others (W1).
    pub(super) fn enqueue(&mut self, ticket: Ticket, op: Op, now: u64, out: &mut Vec<Effect>) {
        if self.log_failed.is_some() {
            let result = Err(Refusal::Io);
            return out.push(Effect::Answer { ticket, result });
        }
        let (offset, len, fua, payload) = match op {
            Op::Write { offset, data, fua } => {
                (offset, data.len() as u64, fua, Payload::Data(data))
            }
            Op::Trim { offset, len, fua } => (offset, len, fua, Payload::Discard),
            Op::Zero {
                offset,
                len,
                may_punch,
                fua,
            } => (offset, len, fua, Payload::Zeros { may_punch }),
            Op::Read { .. } | Op::Flush | Op::Extents { .. } => return,
        };
        self.counters.writes += 1;
        self.counters.write_bytes += len;
        self.waiting.push_back(Waiting {
            ticket,
            fua,
            since: now,
            address: offset / LOGICAL_BLOCK as u64,
            blocks: len / LOGICAL_BLOCK as u64,
            payload,
        });
    }

    /// W11: a flush waits for every write acknowledged before it, on any connection.
    pub(super) fn flush(&mut self, ticket: Ticket, now: u64, out: &mut Vec<Effect>) {
        if self.log_failed.is_some() {
            let result = Err(Refusal::Io);
            return out.push(Effect::Answer { ticket, result });
        }
        self.counters.flushes += 1;
        let ack = Ack {
            end: self.flush_target(ticket),
            ticket,
            fua: true,
            since: now,
            kind: AckKind::Flush,
        };
        if ack.end <= self.permanent {
            return self.answer(&ack, now, out);
        }
        self.wait_for_permanent(ack);
    }

    #[cfg(not(test))]
    const fn flush_target(&self, _ticket: Ticket) -> u64 {
        self.completed
    }

    /// A snapshot: what was acknowledged so far, and what is on its way to be, made permanent.
    pub(super) fn mark(&mut self, ticket: Ticket, now: u64, out: &mut Vec<Effect>) {
        let ack = Ack {
            end: self.latest,
            ticket,
            fua: true,
            since: now,
            kind: AckKind::Mark,
        };
        #[cfg(test)]
        if self.planted(super::sim::Mutation::MarkBeforePermanent) {
            return self.answer(&ack, now, out);
        }
        if ack.end <= self.permanent {
            return self.answer(&ack, now, out);
        }
        self.wait_for_permanent(ack);
    }

    fn wait_for_permanent(&mut self, ack: Ack) {
        let at = self.durable_acks.partition_point(|a| a.end <= ack.end);
        self.durable_acks.insert(at, ack);
    }

    /// Gives lsids to what waits, group by group, as far as the rules allow.
    pub(super) fn allocate(&mut self, now: u64, out: &mut Vec<Effect>) {
        let before = self.blocked.take();
        let stopped = self.frozen.is_some() || self.log_failed.is_some() || self.closed;
        while !stopped
            && !self.waiting.is_empty()
            && self.groups_writing < self.limits.groups
            && self.blocked.is_none()
        {
            if let Some(group) = self.build_group(now) {
                self.start_group(group, out);
            }
        }
        let waits = self.blocked == Some(Blocked::Window) && before != self.blocked;
        self.counters.window_waits += u64::from(waits);
        self.unblock(out);
    }

    /// What a blocked allocation needs beyond syncs, write-behind and checkpoints, which look at
    /// `blocked` themselves.
    fn unblock(&mut self, out: &mut Vec<Effect>) {
        match self.blocked {
            Some(Blocked::Oldest) => self.write_superblock(self.superblock.written_lsid, out),
            Some(Blocked::Mark) if !self.marking => {
                self.marking = true;
                let lsid = self.latest;
                let id = self.name(Purpose::Mark(lsid));
                out.push(Effect::SaveMark { id, lsid });
            }
            Some(Blocked::Lsids) => {
                self.lsids_used_up = true;
                self.refuse_waiting(Refusal::ReadOnly, u64::MAX, out);
            }
            _ => {}
        }
    }

    /// W9: the mark is durable, packs may be lost from now on.
    pub(super) fn marked(
        &mut self,
        lsid: u64,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        self.marking = false;
        match result {
            Ok(_) => self.overflow = Some(lsid),
            Err(failure) => self.fail_log("overflow mark", failure, now, out),
        }
    }

    /// Fills a group from the front of the queue; none if not even one record has room.
    fn build_group(&mut self, now: u64) -> Option<Group> {
        let begin = self.latest;
        let mut builder = Builder::new(self.pbs(), self.superblock.salt, begin)
            .with_ring(self.superblock.ring.size())
            .with_max_pack(self.max_pack_pb());
        let (mut headers, mut records, mut acks) = (vec![], vec![], vec![]);
        while let Some(waiting) = self.waiting.front() {
            let (kind, blocks) = self.next_record(waiting);
            let end = self.end_of(&builder, kind, blocks);
            let is_full = self.pb_bytes(end - begin) > self.limits.group;
            if is_full && !records.is_empty() {
                break;
            }
            self.blocked = self.why_blocked(end, &records);
            if self.blocked.is_some() {
                break;
            }
            let Some(record) = self.cut_record(blocks, now) else {
                break;
            };
            let Ok(full) = builder.push(kind, record.0, blocks, self.checksum_of(&record)) else {
                self.blocked = Some(Blocked::Lsids);
                break;
            };
            headers.extend(full);
            records.push(record);
            acks.extend(self.finish_request());
        }
        headers.extend(builder.finish());
        self.counters.log_packs += headers.len() as u64;
        let group = self.lay_out(begin, &headers, records)?;
        self.acks.extend(acks.into_iter().map(|ack| Ack {
            end: group.end,
            ..ack
        }));
        Some(group)
    }

    /// Kind and size of the first record of what is left of a request.
    fn next_record(&self, waiting: &Waiting) -> (RecordKind, u32) {
        match waiting.payload {
            Payload::Discard => (
                RecordKind::Discard,
                waiting.blocks.min(u64::from(u32::MAX)) as u32,
            ),
            Payload::Data(_) | Payload::Zeros { .. } => (
                RecordKind::Data,
                waiting.blocks.min(self.max_record_blocks()) as u32,
            ),
        }
    }

    /// Greatest pack: below what a storage role ships, and small enough for a small ring, window
    /// and memory.
    fn max_pack_pb(&self) -> u32 {
        let wanted = self.limits.pack / self.pbs().bytes() as u64;
        let ring = self.superblock.ring.size() / 4;
        // With a pack of padding before it, and two headers, it still fits in the window.
        wanted.min(ring).min((self.window - 1) / 2).max(1) as u32
    }

    fn max_record_blocks(&self) -> u64 {
        let pack = u64::from(self.max_pack_pb()) * u64::from(self.pbs().logical());
        pack.min(u64::from(MAX_IO_BLOCKS) / 8 * 8)
    }

    /// W3, W7, W8, W9 and memory for a pack that would end at `end`.
    fn why_blocked(&self, end: u64, taken: &[(u64, Piece)]) -> Option<Blocked> {
        let ring = self.superblock.ring.size();
        let too_far = |from: u64| end.saturating_sub(from) > ring;
        // Builders keep a distance of their own from the end.
        if end >= INVALID_LSID - ring.max(1 << 21) {
            return Some(Blocked::Lsids);
        }
        if too_far(self.superblock.written_lsid) && !self.forgets_window() {
            return Some(Blocked::Window);
        }
        if end.saturating_sub(self.permanent) > self.window {
            return Some(Blocked::Unsynced);
        }
        if self.overflow.is_none() && too_far(self.durable_oldest()) {
            return match too_far(self.oldest) {
                false => Some(Blocked::Oldest),
                true => self.must_mark(),
            };
        }
        let held = self.groups_cost + self.ripe.cost() + self.flying.cost();
        let more: u64 = taken.iter().map(|(_, piece)| piece.cost()).sum();
        (held + more > self.limits.memory).then_some(Blocked::Memory)
    }

    #[cfg(not(test))]
    fn end_of(&self, builder: &Builder, kind: RecordKind, blocks: u32) -> u64 {
        builder.next_lsid_after(kind, blocks)
    }

    #[cfg(not(test))]
    const fn forgets_window(&self) -> bool {
        false
    }

    #[cfg(not(test))]
    const fn durable_oldest(&self) -> u64 {
        self.superblock.oldest_lsid
    }

    #[cfg(not(test))]
    #[allow(clippy::unnecessary_wraps)] // as the variant for tests
    const fn must_mark(&self) -> Option<Blocked> {
        Some(Blocked::Mark)
    }

    /// Takes the first `blocks` of the first request as a record.
    fn cut_record(&mut self, blocks: u32, now: u64) -> Option<(u64, Piece)> {
        let seq = self.next_seq;
        let waiting = self.waiting.front_mut()?;
        self.next_seq += 1;
        let start = waiting.address;
        let payload = match &mut waiting.payload {
            Payload::Data(bytes) => Payload::Data(bytes.split_to(blocks as usize * LOGICAL_BLOCK)),
            other => other.clone(),
        };
        waiting.address += u64::from(blocks);
        waiting.blocks -= u64::from(blocks);
        let piece = Piece {
            end: start + u64::from(blocks),
            lsid: 0,
            seq,
            since: now,
            payload,
        };
        Some((start, piece))
    }

    fn finish_request(&mut self) -> Option<Ack> {
        let waiting = self.waiting.front().filter(|w| w.blocks == 0)?;
        let ack = Ack {
            end: 0,
            ticket: waiting.ticket,
            fua: waiting.fua,
            since: waiting.since,
            kind: AckKind::Write,
        };
        self.waiting.pop_front();
        Some(ack)
    }

    fn checksum_of(&self, (_, piece): &(u64, Piece)) -> u32 {
        let salt = self.superblock.salt;
        match &piece.payload {
            Payload::Data(bytes) => checksum(bytes, salt),
            // Zeros add nothing to the sum.
            Payload::Zeros { .. } => checksum(&[], salt),
            Payload::Discard => 0,
        }
    }

    /// The writes of a group: its packs as runs of the ring, without their padding.
    fn lay_out(
        &self,
        begin: u64,
        headers: &[Header],
        mut records: Vec<(u64, Piece)>,
    ) -> Option<Group> {
        let end = headers.last()?.next_lsid();
        let mut runs = Runs::default();
        let mut pieces = records.iter_mut();
        for header in headers {
            let block = header.encode(self.pbs(), self.superblock.salt);
            runs.add(self.superblock.ring.position(header.lsid), block.into());
            let with_data = |kind| kind != RecordKind::Padding;
            for record in header.records.iter().filter(|r| with_data(r.kind)) {
                let (_, piece) = pieces.next()?;
                piece.lsid = header.lsid;
                if record.kind == RecordKind::Data {
                    let occupied = record.data_pb(self.pbs()) as usize * self.pbs().bytes();
                    let position = self.superblock.ring.position(record.lsid);
                    runs.add_padded(position, &piece.payload, record.bytes() as usize, occupied);
                }
            }
        }
        let cost = records.iter().map(|(_, piece)| piece.cost()).sum();
        Some(Group {
            begin,
            end,
            left: runs.runs.len(),
            writes: runs.runs,
            records,
            cost,
        })
    }

    /// Reads see the records from now on; the log gets them.
    fn start_group(&mut self, group: Group, out: &mut Vec<Effect>) {
        let ring = self.superblock.ring.size();
        self.counters.log_groups += 1;
        self.counters.ring_wraps += u64::from(group.begin / ring != group.end / ring);
        self.latest = group.end;
        for (start, piece) in &group.records {
            self.fresh.carve(*start, piece.end, |_| false);
            #[cfg(test)]
            if self.planted(super::sim::Mutation::SupersededByUnsynced) {
                self.drop_ripe(*start, piece.end);
            }
            self.fresh.put(*start, piece.clone());
        }
        self.groups_cost += group.cost;
        self.write_group(&group, out);
        self.groups.push_back(group);
    }

    pub(super) fn write_group(&mut self, group: &Group, out: &mut Vec<Effect>) {
        self.groups_writing += 1;
        for (position, parts) in &group.writes {
            let op = FileOp::Write {
                offset: *position,
                parts: parts.clone(),
            };
            self.io(Purpose::Group(group.begin), Target::Log, op, out);
        }
    }

    pub(super) fn group_written(
        &mut self,
        begin: u64,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let Ok(at) = self.groups.binary_search_by_key(&begin, |g| g.begin) else {
            return;
        };
        let group = &mut self.groups[at];
        group.left -= 1;
        if group.left == 0 {
            self.groups_writing -= 1;
        }
        match result {
            Err(failure) => self.fail_log("log write", failure, now, out),
            Ok(_) if self.log_failed.is_some() => {}
            Ok(_) => self.complete(now, out),
        }
    }

    /// Moves `completed` over the written groups and acknowledges.
    pub(super) fn complete(&mut self, now: u64, out: &mut Vec<Effect>) {
        while let Some(group) = self.groups.get(self.groups_complete)
            && group.left == 0
        {
            self.completed = group.end;
            self.groups_complete += 1;
            self.dirty_since.get_or_insert(now);
        }
        while let Some(ack) = self.acks.pop_front_if(|ack| ack.end <= self.completed) {
            match ack.fua && ack.end > self.permanent {
                true => self.wait_for_permanent(ack),
                false => self.answer(&ack, now, out),
            }
        }
    }

    fn answer(&mut self, ack: &Ack, now: u64, out: &mut Vec<Effect>) {
        let (ticket, took) = (ack.ticket, now.saturating_sub(ack.since));
        match ack.kind {
            AckKind::Mark => {
                let result = Ok(ack.end);
                return out.push(Effect::Tell { ticket, result });
            }
            AckKind::Flush => count(&mut self.flush_latency, took),
            AckKind::Write if ack.fua => count(&mut self.flush_latency, took),
            AckKind::Write => count(&mut self.write_latency, took),
        }
        #[cfg(test)]
        if ack.kind == AckKind::Write {
            let own = &mut self.acked_by[(ticket % 2) as usize];
            *own = ack.end.max(*own);
        }
        let result = Ok(Reply::Done);
        out.push(Effect::Answer { ticket, result });
    }

    /// Starts the one sync of the log if somebody waits for it, or if it is due.
    pub(super) fn sync_log(&mut self, now: u64, out: &mut Vec<Effect>) {
        if self.syncing.is_some() || self.log_failed.is_some() || !self.wants_sync(now) {
            return;
        }
        self.start_sync(now, out);
    }

    pub(super) fn start_sync(&mut self, now: u64, out: &mut Vec<Effect>) {
        self.syncing = Some(SyncRun {
            target: self.completed,
            superblock: self.behind.superblock_needs_sync(),
            since: now,
        });
        self.counters.log_syncs += 1;
        self.io(Purpose::LogSync, Target::Log, FileOp::Sync, out);
    }

    fn wants_sync(&self, now: u64) -> bool {
        if self.behind.superblock_needs_sync() {
            return true;
        }
        let waited_for = self.durable_acks.front().map(|ack| ack.end);
        self.completed > self.permanent
            && (waited_for.is_some_and(|end| end <= self.completed)
                || self.is_urgent()
                || self.pb_bytes(self.completed - self.permanent) >= self.limits.unsynced
                || self.sync_due().is_some_and(|due| due <= now))
    }

    /// When the log is synced though nobody waits for it.
    pub(super) fn sync_due(&self) -> Option<u64> {
        let idle = self.syncing.is_none() && self.log_failed.is_none();
        let since = self.dirty_since.filter(|_| idle)?;
        Some(since + self.limits.unsynced_age)
    }

    pub(super) fn log_synced(
        &mut self,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let Some(run) = self.syncing.take() else {
            return;
        };
        if let Err(failure) = result {
            return self.sync_failed(failure, now, out);
        }
        self.log_works_again();
        if self.log_failed.is_some() {
            return;
        }
        self.permanent = self.permanent_after(&run);
        self.dirty_since = (self.completed > self.permanent).then_some(run.since);
        while let Some(group) = self.groups.pop_front_if(|g| g.end <= self.permanent) {
            self.groups_complete -= 1;
            self.ripen(group, now);
        }
        self.answer_durable(now, out);
        if run.superblock {
            self.superblock_synced(now, out);
        }
    }

    #[cfg(not(test))]
    const fn permanent_after(&self, run: &SyncRun) -> u64 {
        run.target
    }

    fn answer_durable(&mut self, now: u64, out: &mut Vec<Effect>) {
        let permanent = self.permanent;
        while let Some(ack) = self.durable_acks.pop_front_if(|ack| ack.end <= permanent) {
            self.answer(&ack, now, out);
        }
    }

    /// The records of a group are permanent now: they leave the fresh layer for the ripe one.
    fn ripen(&mut self, group: Group, now: u64) {
        self.groups_cost -= group.cost;
        for (start, piece) in group.records {
            let seq = piece.seq;
            self.fresh.carve(start, piece.end, |other| other.seq != seq);
            self.make_ripe(start, piece, now);
        }
    }

    /// Refuses everything that waits for the log.
    pub(super) fn refuse_all(&mut self, refusal: Refusal, out: &mut Vec<Effect>) {
        let waiting = self.waiting.drain(..).map(|w| (w.ticket, AckKind::Write));
        let acks = self.acks.drain(..).chain(self.durable_acks.drain(..));
        let all = waiting.chain(acks.map(|ack| (ack.ticket, ack.kind)));
        out.extend(all.map(|(ticket, kind)| match kind {
            AckKind::Mark => Effect::Tell {
                ticket,
                result: Err(super::Refused(format!("the log failed ({refusal})"))),
            },
            AckKind::Write | AckKind::Flush => Effect::Answer {
                ticket,
                result: Err(refusal),
            },
        }));
    }

    /// Refuses the requests that came before a time and have no lsid yet, at least for a part. What
    /// has one goes on without an answer.
    pub(super) fn refuse_waiting(&mut self, refusal: Refusal, before: u64, out: &mut Vec<Effect>) {
        while let Some(waiting) = self.waiting.pop_front_if(|w| w.since <= before) {
            out.push(Effect::Answer {
                ticket: waiting.ticket,
                result: Err(refusal),
            });
        }
    }
}

/// Contiguous runs on the log device.
#[derive(Default)]
struct Runs {
    runs: Vec<(u64, Vec<Bytes>)>,
    end: u64,
}

impl Runs {
    fn add(&mut self, position: u64, bytes: Bytes) {
        let continues = position == self.end;
        self.end = position + bytes.len() as u64;
        match self.runs.last_mut() {
            Some((_, parts)) if continues => parts.push(bytes),
            _ => self.runs.push((position, vec![bytes])),
        }
    }

    /// Adds a payload and zeros up to whole blocks.
    fn add_padded(&mut self, position: u64, payload: &Payload, bytes: usize, occupied: usize) {
        let filled = match payload {
            Payload::Data(data) => {
                self.add(position, data.clone());
                bytes
            }
            Payload::Zeros { .. } | Payload::Discard => 0,
        };
        if filled < occupied {
            self.add(position + filled as u64, ZEROS.slice(..occupied - filled));
        }
    }
}

/// Variants with planted bugs, for the tests of the tests.
#[cfg(test)]
mod planted {
    use super::super::sim::Mutation;
    use super::{Blocked, Builder, Machine, RecordKind, SyncRun, Ticket};

    impl Machine {
        /// Odd and even tickets stand for two connections.
        pub(super) fn flush_target(&self, ticket: Ticket) -> u64 {
            match self.planted(Mutation::FlushTargetPerConnection) {
                true => self.acked_by[(ticket % 2) as usize],
                false => self.completed,
            }
        }

        pub(super) fn end_of(&self, builder: &Builder, kind: RecordKind, blocks: u32) -> u64 {
            let end = builder.next_lsid_after(kind, blocks);
            let crosses =
                end / self.superblock.ring.size() != self.latest / self.superblock.ring.size();
            if self.planted(Mutation::PackOffByOneAtTheRingEnd) && crosses {
                return end - 1;
            }
            match self.planted(Mutation::PaddingNotCounted) {
                true => builder.next_lsid() + 1 + u64::from(self.pbs().count_for(blocks)),
                false => end,
            }
        }

        pub(super) fn forgets_window(&self) -> bool {
            self.planted(Mutation::NoRedoWindow)
        }

        pub(super) fn durable_oldest(&self) -> u64 {
            match self.planted(Mutation::OldestInMemory) {
                true => self.oldest,
                false => self.superblock.oldest_lsid,
            }
        }

        pub(super) fn must_mark(&self) -> Option<Blocked> {
            (!self.planted(Mutation::MarkAfterTheWrite)).then_some(Blocked::Mark)
        }

        pub(super) fn permanent_after(&self, run: &SyncRun) -> u64 {
            match self.planted(Mutation::CompletedAtTheEndOfTheSync) {
                true => self.completed,
                false => run.target,
            }
        }
    }
}
