//! The machine on a disk that does everything at once: laws at every place of the ring and of the
//! lsids, and against a model in memory.

use bytes::Bytes;
use proptest::prelude::*;
use walkeep_wire::ldev::ring::Ring;
use walkeep_wire::ldev::{Name, Superblock};
use walkeep_wire::logpack::{Block, Header, RecordKind, classify};
use walkeep_wire::{LOGICAL_BLOCK, PhysicalBlock, Uuid};

use super::*;

/// A volume whose effects are carried out as they come.
struct Instant {
    machine: Machine,
    log: Vec<u8>,
    data: Vec<u8>,
    marks: Vec<u64>,
    answers: Vec<(Ticket, Result<Reply, Refusal>)>,
    told: Vec<(Ticket, Result<u64, Refused>)>,
    ticket: Ticket,
    now: u64,
}

fn superblock(pbs: PhysicalBlock, ring: u64, at: u64, blocks: u64) -> Superblock {
    Superblock {
        ring: Ring::new(pbs, ring).unwrap(),
        salt: 0x1234_5678,
        uuid: Uuid([1; 16]),
        name: Name::default(),
        oldest_lsid: at,
        written_lsid: at,
        device_blocks: blocks,
    }
}

impl Instant {
    fn new(superblock: Superblock, limits: Limits) -> Self {
        let log = vec![0; superblock.ring.end() as usize];
        let data = vec![0; superblock.device_blocks as usize * LOGICAL_BLOCK];
        Self {
            machine: Machine::new(superblock, None, limits, 0),
            log,
            data,
            marks: vec![],
            answers: vec![],
            told: vec![],
            ticket: 0,
            now: 0,
        }
    }

    fn event(&mut self, event: Event) {
        let mut out = vec![];
        self.machine.on(event, self.now, &mut out);
        self.machine.advance(self.now, &mut out);
        while !out.is_empty() {
            for effect in std::mem::take(&mut out) {
                if let Some((id, bytes)) = self.carry_out(effect) {
                    let result = Ok(bytes);
                    self.machine
                        .on(Event::Finished { id, result }, self.now, &mut out);
                }
            }
            self.machine.advance(self.now, &mut out);
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<(IoId, Bytes)> {
        match effect {
            Effect::Io { id, target, op } => {
                let file = match target {
                    Target::Log => &mut self.log,
                    Target::Data => &mut self.data,
                };
                let done = match op {
                    FileOp::Write { offset, parts } => {
                        let (at, bytes) = (offset as usize, parts.concat());
                        file[at..at + bytes.len()].copy_from_slice(&bytes);
                        Bytes::new()
                    }
                    FileOp::Read { offset, len } => {
                        Bytes::copy_from_slice(&file[offset as usize..offset as usize + len])
                    }
                    FileOp::Punch { offset, bytes } | FileOp::Zero { offset, bytes } => {
                        file[offset as usize..(offset + bytes) as usize].fill(0);
                        Bytes::new()
                    }
                    FileOp::Sync => Bytes::new(),
                };
                return Some((id, done));
            }
            Effect::SaveMark { id, lsid } => {
                self.marks.push(lsid);
                return Some((id, Bytes::new()));
            }
            Effect::ReopenLog { id } | Effect::Replay { id, .. } => {
                return Some((id, Bytes::new()));
            }
            Effect::Answer { ticket, result } => self.answers.push((ticket, result)),
            Effect::Tell { ticket, result } => self.told.push((ticket, result)),
            Effect::AnswerExtents { .. } => {}
        }
        None
    }

    fn ask(&mut self, op: Op) -> Option<Result<Reply, Refusal>> {
        self.ticket += 1;
        let ticket = self.ticket;
        self.event(Event::Request { ticket, op });
        let at = self.answers.iter().position(|(t, _)| *t == ticket)?;
        Some(self.answers.swap_remove(at).1)
    }

    fn write(&mut self, block: u64, data: &[u8], fua: bool) -> Option<Result<Reply, Refusal>> {
        let (offset, data) = (block * LOGICAL_BLOCK as u64, Bytes::copy_from_slice(data));
        self.ask(Op::Write { offset, data, fua })
    }

    fn read(&mut self, block: u64, blocks: u64) -> Vec<u8> {
        let unit = LOGICAL_BLOCK as u64;
        let op = Op::Read {
            offset: block * unit,
            len: (blocks * unit) as u32,
        };
        match self.ask(op) {
            Some(Ok(Reply::Data(parts))) => parts.concat(),
            other => panic!("{other:?}"),
        }
    }

    fn command(&mut self, command: Command) -> Result<u64, Refused> {
        self.ticket += 1;
        let ticket = self.ticket;
        self.event(Event::Command { ticket, command });
        let at = self.told.iter().position(|(t, _)| *t == ticket).unwrap();
        self.told.swap_remove(at).1
    }

    /// Lets time go by until nothing more is due; the machine must come to rest.
    fn settle(&mut self) {
        for _ in 0..1000 {
            match self.machine.deadline(self.now) {
                Some(due) => self.now = due.max(self.now),
                None => return,
            }
            self.event(Event::Tick);
        }
        panic!("never at rest: {:?}", self.machine.positions());
    }

    /// The packs of the log between two lsids.
    fn packs(&self, from: u64, to: u64) -> Vec<Header> {
        let (mut lsid, mut packs) = (from, vec![]);
        let Superblock { ring, salt, .. } = *self.machine.superblock();
        while lsid < to {
            let at = ring.position(lsid) as usize;
            let block = &self.log[at..at + ring.pbs().bytes()];
            match classify(block, ring.pbs(), salt, lsid) {
                Block::Pack(header) => {
                    lsid = header.next_lsid();
                    packs.push(header);
                }
                other => panic!("at lsid {lsid}: {other:?}"),
            }
        }
        assert_eq!(lsid, to);
        packs
    }
}

fn block_of(byte: u8, blocks: u64) -> Vec<u8> {
    vec![byte; blocks as usize * LOGICAL_BLOCK]
}

#[test]
fn the_ring_wraps_at_every_place() {
    for pbs in [PhysicalBlock::B512, PhysicalBlock::B4096] {
        for ring in [24, 25, 31] {
            for at in 0..ring {
                let begin = (1 << 32) - 40 + at;
                let mut volume = Instant::new(superblock(pbs, ring, begin, 64), Limits::default());
                let mut from = begin;
                for round in 0..20u8 {
                    let blocks = 1 + u64::from(round) % 7;
                    let data = block_of(round + 1, blocks);
                    assert!(volume.write(3, &data, true).unwrap().is_ok());
                    let positions = volume.machine.positions();
                    // What the log says is what was written, and a record never crosses the end.
                    for pack in volume.packs(from, positions.permanent) {
                        for record in pack.records.iter().filter(|r| r.kind == RecordKind::Data) {
                            let runs = volume.machine.superblock().ring;
                            let runs: Vec<_> = runs
                                .runs(record.lsid, u64::from(record.data_pb(pbs)))
                                .collect();
                            assert_eq!(runs.len(), 1, "a record crosses the ring's end");
                            let start = runs[0].position as usize;
                            let len = record.bytes() as usize;
                            assert_eq!(volume.log[start..start + len], data[..len]);
                        }
                    }
                    from = positions.permanent;
                    assert_eq!(volume.read(3, blocks), data);
                    volume.command(Command::Checkpoint).unwrap();
                    volume.command(Command::SetOldest(from)).unwrap();
                }
                assert!(volume.machine.overflow().is_none() && volume.marks.is_empty());
            }
        }
    }
}

#[test]
fn a_log_may_be_exactly_full_and_one_block_more_is_an_overflow() {
    // A pack of one block of data has two blocks: 12 of them fill a ring of 24.
    let pbs = PhysicalBlock::B512;
    let mut volume = Instant::new(superblock(pbs, 24, 0, 64), Limits::default());
    for byte in 1..=12 {
        assert!(volume.write(0, &block_of(byte, 1), true).unwrap().is_ok());
    }
    let positions = volume.machine.positions();
    assert_eq!(positions.latest - positions.oldest, 24);
    assert!(volume.marks.is_empty());
    // The mark names the first pack that did not fit; the write goes on all the same.
    assert!(volume.write(0, &block_of(13, 1), true).unwrap().is_ok());
    assert_eq!(
        (volume.marks.as_slice(), volume.machine.overflow()),
        (&[24][..], Some(24))
    );
    assert_eq!(volume.read(0, 1), block_of(13, 1));
    let refused = volume.command(Command::SetOldest(24)).unwrap_err();
    assert!(refused.0.contains("overflow"), "{refused}");
}

#[test]
fn a_shipped_log_overflows_never() {
    let pbs = PhysicalBlock::B512;
    let mut volume = Instant::new(superblock(pbs, 24, 0, 64), Limits::default());
    for byte in 0..200u8 {
        assert!(volume.write(0, &block_of(byte, 3), false).unwrap().is_ok());
        volume.command(Command::Checkpoint).unwrap();
        let written = volume.machine.positions().prev_written;
        volume.command(Command::SetOldest(written)).unwrap();
    }
    assert!(volume.marks.is_empty() && volume.machine.overflow().is_none());
}

#[test]
fn lsids_run_out_cleanly() {
    let pbs = PhysicalBlock::B512;
    for below in [0, 1, 23, 24, 25, 47, 48, 49, 100] {
        let begin = u64::MAX - 1 - below;
        let mut volume = Instant::new(superblock(pbs, 24, begin, 64), Limits::default());
        let mut refused = 0;
        for byte in 0..100u8 {
            let answer = volume.write(0, &block_of(byte, 1), true).unwrap();
            match answer {
                Ok(_) => assert_eq!(volume.read(0, 1), block_of(byte, 1)),
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::ReadOnly);
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{below}");
        assert_eq!(volume.machine.condition().0, Condition::LsidsUsedUp);
        volume.settle();
    }
}

#[test]
fn discards_alone_take_one_block() {
    let pbs = PhysicalBlock::B4096;
    let mut volume = Instant::new(superblock(pbs, 24, 7, 64), Limits::default());
    assert!(volume.write(0, &block_of(1, 8), true).unwrap().is_ok());
    let before = volume.machine.positions().latest;
    let (offset, len) = (0, 64 * 512);
    let trim = Op::Trim {
        offset,
        len,
        fua: true,
    };
    assert!(volume.ask(trim).unwrap().is_ok());
    let packs = volume.packs(before, volume.machine.positions().latest);
    assert_eq!((packs.len(), packs[0].total_pb), (1, 0));
    assert_eq!(volume.read(0, 64), block_of(0, 64));
    volume.command(Command::Checkpoint).unwrap();
    assert_eq!(volume.data, block_of(0, 64));
}

#[test]
fn the_largest_write_goes_through_a_ring_much_smaller() {
    const MIB: u64 = 1 << 20;
    let pbs = PhysicalBlock::B4096;
    let blocks = 40 * MIB / 512;
    let mut volume = Instant::new(superblock(pbs, 1024, 0, blocks), Limits::default());
    let data: Vec<u8> = (0..32 * MIB).map(|n| (n / 512 % 251) as u8).collect();
    assert!(volume.write(5, &data, true).unwrap().is_ok());
    assert_eq!(volume.read(5, 32 * MIB / 512), data);
    assert!(volume.machine.counters.ring_wraps > 4);
    // Packs stay below what a storage role ships.
    let latest = volume.machine.positions().latest;
    let last = volume.packs(latest - 129, latest);
    assert!(
        last.iter()
            .all(|pack| pack.pack_bytes(pbs) <= MIB / 2 + 4096)
    );
}

#[test]
fn an_idle_volume_has_no_deadline() {
    let pbs = PhysicalBlock::B512;
    let mut volume = Instant::new(superblock(pbs, 64, 0, 64), Limits::default());
    assert_eq!(volume.machine.deadline(0), None);
    assert!(volume.write(1, &block_of(1, 2), false).unwrap().is_ok());
    volume.settle();
    let positions = volume.machine.positions();
    assert_eq!(positions.prev_written, positions.latest);
    assert_eq!(volume.data[512..1536], block_of(1, 2));
    volume
        .command(Command::SetOldest(positions.latest))
        .unwrap();
    volume.settle();
    assert_eq!(volume.machine.positions().oldest_durable, positions.latest);
    assert!(volume.machine.is_at_rest());
    // Flushes of a volume at rest cost no sync.
    let syncs = volume.machine.counters.log_syncs;
    assert!(volume.ask(Op::Flush).unwrap().is_ok());
    assert_eq!(volume.machine.counters.log_syncs, syncs);
}

#[test]
fn what_is_wrong_has_no_effect() {
    let pbs = PhysicalBlock::B512;
    let mut volume = Instant::new(superblock(pbs, 64, 0, 64), Limits::default());
    let end = 64 * 512;
    let data = |n: usize| Bytes::from(vec![1; n]);
    let write = |offset, n| Op::Write {
        offset,
        data: data(n),
        fua: false,
    };
    let cases = [
        (write(0, 0), Refusal::Invalid),
        (write(1, 512), Refusal::Invalid),
        (write(0, 511), Refusal::Invalid),
        (write(end, 512), Refusal::NoSpace),
        (write(u64::MAX - 511, 512), Refusal::NoSpace),
        (
            Op::Read {
                offset: end - 512,
                len: 1024,
            },
            Refusal::Invalid,
        ),
        (Op::Read { offset: 0, len: 0 }, Refusal::Invalid),
        (
            Op::Trim {
                offset: 0,
                len: end + 512,
                fua: false,
            },
            Refusal::NoSpace,
        ),
    ];
    for (op, want) in cases {
        let what = format!("{op:?}");
        assert_eq!(volume.ask(op).unwrap().unwrap_err(), want, "{what}");
    }
    assert_eq!(volume.machine.positions().latest, 0);
    assert!(volume.machine.is_at_rest());
}

/// Effects are carried out by hand; `fails` says which ones do not succeed.
struct Hand {
    machine: Machine,
    now: u64,
    pending: Vec<Effect>,
    told: Vec<(Ticket, Result<u64, Refused>)>,
    answered: Vec<Ticket>,
}

impl Hand {
    fn new(limits: Limits) -> Self {
        let superblock = superblock(PhysicalBlock::B4096, 10_000, 0, 1 << 20);
        let mut hand = Self {
            machine: Machine::new(superblock, None, limits, 0),
            now: 1,
            pending: vec![],
            told: vec![],
            answered: vec![],
        };
        hand.write(1);
        hand.run(|_| false);
        hand
    }

    fn event(&mut self, event: Event) {
        let mut out = vec![];
        self.machine.on(event, self.now, &mut out);
        self.machine.advance(self.now, &mut out);
        for effect in out {
            match effect {
                Effect::Answer { ticket, .. } => self.answered.push(ticket),
                Effect::Tell { ticket, result } => self.told.push((ticket, result)),
                other => self.pending.push(other),
            }
        }
    }

    fn write(&mut self, ticket: Ticket) {
        let (offset, data) = (0, block_of(5, 8).into());
        let op = Op::Write {
            offset,
            data,
            fua: true,
        };
        self.event(Event::Request { ticket, op });
    }

    fn command(&mut self, ticket: Ticket, command: Command) {
        self.event(Event::Command { ticket, command });
    }

    fn run(&mut self, fails: impl Fn(&Effect) -> bool) {
        while !self.pending.is_empty() {
            let effect = self.pending.remove(0);
            let failed = fails(&effect);
            let (id, len) = match effect {
                Effect::Io {
                    id,
                    op: FileOp::Read { len, .. },
                    ..
                } => (id, len),
                Effect::Io { id, .. }
                | Effect::SaveMark { id, .. }
                | Effect::ReopenLog { id }
                | Effect::Replay { id, .. } => (id, 0),
                _ => continue,
            };
            let failure = || Failure {
                no_space: false,
                cause: "planted".into(),
            };
            let result = match failed {
                true => Err(failure()),
                false => Ok(Bytes::from(vec![0; len])),
            };
            self.event(Event::Finished { id, result });
        }
    }

    fn pass(&mut self, seconds: u64, fails: impl Fn(&Effect) -> bool) {
        for _ in 0..seconds {
            self.now += 1_000_000;
            self.event(Event::Tick);
            self.run(&fails);
        }
    }

    fn is_told(&self, ticket: Ticket) -> Option<bool> {
        let told = self.told.iter().find(|(t, _)| *t == ticket);
        told.map(|(_, result)| result.is_ok())
    }
}

fn to_data(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Io {
            target: Target::Data,
            ..
        }
    )
}

fn syncs(target: Target) -> impl Fn(&Effect) -> bool {
    move |effect| matches!(effect, Effect::Io { target: t, op: FileOp::Sync, .. } if *t == target)
}

#[test]
fn a_freeze_that_fails_leaves_nothing_frozen() {
    let mut hand = Hand::new(Limits::default());
    hand.write(2);
    hand.command(3, Command::Freeze(None));
    hand.run(syncs(Target::Log));
    assert_eq!(hand.is_told(3), Some(false));
    hand.pass(20, |_| false);
    assert_eq!(hand.machine.condition().0, Condition::Serving);
    hand.write(4);
    hand.run(|_| false);
    assert!(hand.answered.contains(&4));
}

#[test]
fn a_freeze_is_not_told_after_it_melted() {
    let mut hand = Hand::new(Limits::default());
    let second = std::time::Duration::from_secs(1);
    hand.command(2, Command::Freeze(Some(second)));
    hand.run(to_data);
    hand.pass(5, to_data);
    assert_eq!(hand.is_told(2), Some(false));
    hand.pass(5, |_| false);
    assert_eq!(hand.machine.condition().0, Condition::Serving);
}

#[test]
fn a_held_volume_leaves_its_superblock_alone() {
    let mut hand = Hand::new(Limits::default());
    hand.command(2, Command::Checkpoint);
    hand.run(|_| false);
    let end = hand.machine.positions().permanent;
    hand.command(3, Command::SetOldest(end));
    hand.run(|_| false);
    hand.pass(9, |_| false);
    hand.command(4, Command::Hold);
    hand.run(|_| false);
    assert_eq!(hand.is_told(4), Some(true));
    hand.now += 20_000_000;
    hand.event(Event::Tick);
    hand.command(5, Command::SetOldest(end));
    hand.command(6, Command::Melt);
    assert_eq!(
        (hand.is_told(5), hand.is_told(6)),
        (Some(false), Some(false))
    );
    assert!(hand.pending.is_empty(), "{:?}", hand.pending);
    let mut next = hand.machine.superblock().clone();
    next.uuid = Uuid([9; 16]);
    (next.oldest_lsid, next.written_lsid) = (0, 0);
    hand.command(7, Command::Install(Box::new(next)));
    assert_eq!(hand.is_told(7), Some(true));
    hand.write(8);
    hand.run(|_| false);
    assert!(hand.answered.contains(&8) && hand.machine.positions().latest == 2);
}

#[test]
fn an_unknown_superblock_is_written_before_all_else() {
    let mut hand = Hand::new(Limits::default());
    hand.command(2, Command::Hold);
    hand.run(|_| false);
    hand.command(3, Command::Fail("planted".into()));
    hand.write(4);
    assert!(hand.answered.contains(&4) && hand.machine.condition().0 == Condition::LogFailed);
    hand.now += 2_000_000;
    hand.event(Event::Tick);
    hand.run(|_| false);
    assert_eq!(hand.machine.condition().0, Condition::Serving);
}

#[test]
fn a_close_ends_though_the_data_fails() {
    let mut hand = Hand::new(Limits::default());
    hand.command(2, Command::Close);
    hand.pass(60, to_data);
    assert_eq!(hand.is_told(2), Some(false));
    assert_eq!(hand.machine.condition().0, Condition::DataFailed);
}

#[test]
fn intervals_have_their_bounds() {
    for (age, most) in [(0, 100), (u64::MAX, 10)] {
        let limits = Limits {
            checkpoint_age: age,
            ..Limits::default()
        };
        let mut hand = Hand::new(limits);
        let (mut turns, end) = (0, hand.now + 900_000);
        while hand.now < end && turns < 1000 {
            let next = hand.machine.deadline(hand.now).unwrap_or(end);
            hand.now = next.clamp(hand.now, end);
            hand.event(Event::Tick);
            turns += 1;
        }
        assert!(turns <= most, "{turns} turns for an interval of {age}");
    }
}

#[test]
fn suspect_data_has_no_holes_and_no_answers() {
    let mut hand = Hand::new(Limits::default());
    hand.command(2, Command::Checkpoint);
    hand.run(syncs(Target::Data));
    assert_eq!(hand.machine.condition().0, Condition::DataSuspect);
    let (offset, len) = (0, 4096);
    let op = Op::Extents { offset, len };
    hand.event(Event::Request { ticket: 3, op });
    let told = hand.pending.pop();
    let Some(Effect::AnswerExtents { pending, .. }) = &told else {
        panic!("{told:?}");
    };
    assert_eq!(pending[..], [(0, 8, false)]);
    // While the log is replayed, older versions pass by everywhere.
    hand.now += 2_000_000;
    hand.event(Event::Tick);
    let replays = |effect: &Effect| matches!(effect, Effect::Replay { .. });
    assert!(hand.pending.iter().any(replays));
    let (offset, len) = (1 << 20, 512);
    let op = Op::Read { offset, len };
    hand.event(Event::Request { ticket: 4, op });
    assert!(hand.answered.contains(&4));
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, bool),
    Trim(u64, u64),
    Zero(u64, u64, bool),
    Read(u64, u64),
    Wait,
    Checkpoint,
    Freeze,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..100u64, 1..28u64);
    let step = prop_oneof![
        4 => (range(), any::<bool>()).prop_map(|((at, len), fua)| Step::Write(at, len, fua)),
        1 => range().prop_map(|(at, len)| Step::Trim(at, len)),
        1 => (range(), any::<bool>()).prop_map(|((at, len), punch)| Step::Zero(at, len, punch)),
        3 => range().prop_map(|(at, len)| Step::Read(at, len)),
        1 => Just(Step::Wait),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Freeze),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the ring and the limits, a volume is an array of blocks.
    #[test]
    fn a_volume_is_an_array(steps in steps(), ring in 12..80u64, small in any::<bool>(), begin in 0..200u64) {
        let pbs = if small { PhysicalBlock::B512 } else { PhysicalBlock::B4096 };
        let limits = Limits { memory: 20_000, flight: 2048, flights: 2, ..Limits::default() };
        let mut volume = Instant::new(superblock(pbs, ring, begin, 128), limits);
        let mut model = block_of(0, 128);
        let mut byte = 0u8;
        for step in steps {
            let unit = LOGICAL_BLOCK as u64;
            let span = |at: u64, len: u64| (at * unit) as usize..((at + len) * unit) as usize;
            match step {
                Step::Write(at, len, fua) => {
                    byte = byte.wrapping_add(1);
                    prop_assert!(volume.write(at, &block_of(byte, len), fua).unwrap().is_ok());
                    model[span(at, len)].fill(byte);
                }
                Step::Trim(at, len) => {
                    let op = Op::Trim { offset: at * unit, len: len * unit, fua: false };
                    prop_assert!(volume.ask(op).unwrap().is_ok());
                    model[span(at, len)].fill(0);
                }
                Step::Zero(at, len, may_punch) => {
                    let op = Op::Zero { offset: at * unit, len: len * unit, may_punch, fua: true };
                    prop_assert!(volume.ask(op).unwrap().is_ok());
                    model[span(at, len)].fill(0);
                }
                Step::Read(at, len) => prop_assert_eq!(volume.read(at, len), &model[span(at, len)]),
                Step::Wait => volume.settle(),
                Step::Checkpoint => {
                    volume.command(Command::Checkpoint).unwrap();
                    prop_assert_eq!(&volume.data, &model);
                }
                Step::Freeze => {
                    volume.command(Command::Freeze(None)).unwrap();
                    prop_assert!(volume.machine.is_at_rest());
                    // A write waits, and goes on after the melt.
                    byte = byte.wrapping_add(1);
                    prop_assert!(volume.write(0, &block_of(byte, 1), true).is_none());
                    volume.command(Command::Melt).unwrap();
                    prop_assert_eq!(volume.answers.pop().map(|(_, r)| r.is_ok()), Some(true));
                    model[span(0, 1)].fill(byte);
                }
            }
        }
        volume.command(Command::Close).unwrap();
        prop_assert_eq!(&volume.data, &model);
        prop_assert!(volume.answers.is_empty() && volume.told.is_empty());
    }
}
