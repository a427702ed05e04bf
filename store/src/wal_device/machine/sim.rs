//! The machine on a simulated disk that loses power: many seeds, several lives each.
//!
//! A world has a log, data and a state file that keep any subset of what was not synced, torn at
//! 512 bytes. Clients write blocks that name themselves. After every crash the volume must be the
//! image of a prefix of all records in log order, with everything in it that was promised.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use walkeep_wire::ldev::ring::Ring;
use walkeep_wire::ldev::{Name, Superblock};
use walkeep_wire::logpack::{Block, Header, RecordKind, classify};
use walkeep_wire::{LOGICAL_BLOCK, PhysicalBlock, Uuid};

use super::super::layer::Payload;
use super::super::recover::{Known, Named, Recovered, recover, replay_again, write_superblock};
use super::*;
use crate::disk::DiskFile;

/// Bugs that tests plant, to see them found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    DataBeforePermanent,
    CheckpointWithoutDataSync,
    PrevWrittenBeforeItsSync,
    NoRedoWindow,
    SupersededByUnsynced,
    NoTailClearing,
    CompletedAtTheEndOfTheSync,
    FlushTargetPerConnection,
    IndexRemovedBeforeTheWrite,
    OverlappingFlights,
    OldestInMemory,
    MarkAfterTheWrite,
    LogSyncRepeated,
    DataSyncRepeated,
    MarkBeforePermanent,
    PaddingNotCounted,
    PackOffByOneAtTheRingEnd,
}

const SECTOR: usize = LOGICAL_BLOCK;
/// Blocks of the simulated volumes.
const BLOCKS: u64 = 48;

/// xorshift64*, good enough to choose.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn among<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// A file with a cache that loses power.
#[derive(Debug)]
struct Disk(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Vec<u8>,
    durable: Vec<u8>,
    /// Number, place and bytes of what was not synced.
    unsynced: Vec<(u64, usize, Vec<u8>)>,
    next: u64,
    /// Calls until the power is cut.
    left: Option<u64>,
}

impl Disk {
    fn new(bytes: usize) -> Self {
        Self(Mutex::new(Inner {
            cache: vec![0; bytes],
            durable: vec![0; bytes],
            unsynced: vec![],
            next: 0,
            left: None,
        }))
    }

    fn cut_after(&self, calls: Option<u64>) {
        self.0.lock().left = calls;
    }

    /// Everything written before this call is covered by a sync that begins now.
    fn sync_begin(&self) -> u64 {
        self.0.lock().next
    }

    fn sync_end(&self, covered: u64) {
        self.0.lock().harden(covered);
    }

    /// A sync that fails: what it covered is taken for clean, and is not.
    fn sync_fails(&self, covered: u64, rng: &mut Rng) {
        let mut inner = self.0.lock();
        let kept: Vec<_> = inner.unsynced.drain(..).collect();
        for (number, at, bytes) in kept {
            match number < covered {
                true if rng.chance(50) => {
                    inner.durable[at..at + bytes.len()].copy_from_slice(&bytes)
                }
                true => {}
                false => inner.unsynced.push((number, at, bytes)),
            }
        }
    }

    /// Any subset of the sectors that were not synced stays, in any order.
    fn cut(&self, rng: &mut Rng) {
        let mut inner = self.0.lock();
        let mut writes: Vec<_> = inner.unsynced.drain(..).collect();
        let keep = rng.among(&[0, 20, 50, 80, 100]);
        while !writes.is_empty() {
            let (_, at, bytes) = writes.swap_remove(rng.below(writes.len() as u64) as usize);
            let whole = rng.chance(50);
            let stays = rng.chance(keep);
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if if whole { stays } else { rng.chance(keep) } {
                    let at = at + index * SECTOR;
                    inner.durable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        inner.cache = inner.durable.clone();
        inner.left = None;
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().cache.clone()
    }

    fn durable(&self) -> Vec<u8> {
        self.0.lock().durable.clone()
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let mut inner = self.0.lock();
        let at = at as usize;
        inner.cache[at..at + bytes.len()].copy_from_slice(bytes);
        let number = inner.next;
        inner.next += 1;
        inner.unsynced.push((number, at, bytes.to_vec()));
    }
}

impl Inner {
    fn harden(&mut self, covered: u64) {
        let (done, left) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition(|(number, ..)| *number < covered);
        self.unsynced = left;
        let done: Vec<(u64, usize, Vec<u8>)> = done;
        for (_, at, bytes) in done {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn call(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl DiskFile for Disk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.lock().cache.len() as u64)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let inner = self.0.lock();
        let at = offset as usize;
        into.copy_from_slice(&inner.cache[at..at + into.len()]);
        Ok(())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.lock().call()?;
        self.put(offset, &parts.concat_bytes());
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.0.lock();
        inner.call()?;
        let all = inner.next;
        inner.harden(all);
        Ok(())
    }

    fn set_size(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.lock().call()?;
        self.put(offset, &vec![0; bytes as usize]);
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.punch(offset, bytes)
    }

    fn link(&self, _: &std::path::Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.punch(offset, bytes)
    }

    fn physical_block(&self) -> io::Result<Option<u32>> {
        Ok(None)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    fn next_hole(&self, _: u64) -> io::Result<u64> {
        self.size()
    }

    fn lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

trait ConcatBytes {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl ConcatBytes for [IoSlice<'_>] {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|part| part.iter().copied()).collect()
    }
}

/// A record that got an lsid.
#[derive(Clone, Debug)]
struct Issued {
    pack: u64,
    /// End of its group.
    end: u64,
    start: u64,
    payload: Vec<u8>,
}

/// What a client waits for.
#[derive(Debug)]
enum Asked {
    /// Index behind its last block in the history of blocks.
    Write {
        upto: usize,
    },
    /// With the index that was acknowledged when it was asked.
    Flush {
        acked: usize,
    },
    Read {
        start: u64,
        allowed: Vec<Vec<u64>>,
    },
}

/// One block that a client wrote: address and number, 0 for zeros.
type Written = (u64, u64);

/// An effect that is not carried out yet; of a sync, what it covers once it began.
#[derive(Debug)]
struct Pending {
    effect: Effect,
    covered: Option<u64>,
}

/// Counts of what the seeds came across, over all worlds.
#[derive(Debug, Default)]
pub(crate) struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    fn add(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (what, n) in &other.0 {
            self.add(what, *n);
        }
    }
}

macro_rules! trace {
    ($world:expr, $($what:tt)*) => {
        if $world.trace {
            println!($($what)*);
        }
    };
}

type Verdict = Result<(), String>;

macro_rules! ensure {
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err(format!($($why)*));
        }
    };
}

struct World {
    rng: Rng,
    mutation: Option<Mutation>,
    faults: u64,
    limits: Limits,
    log: Disk,
    data: Disk,
    /// The state file.
    mark: Option<u64>,
    window: u64,
    clean: Option<u64>,

    machine: Machine,
    now: u64,
    pending: Vec<Pending>,
    tickets: HashMap<Ticket, Asked>,
    next_ticket: Ticket,
    marks: HashMap<Ticket, ()>,

    /// All blocks that clients wrote, in order of submission, those of this life from `life` on.
    history: Vec<Written>,
    /// Blocks of the history that have an lsid.
    logged: usize,
    /// Blocks of the history that are answered, without a gap, and which ones beyond.
    acked: Vec<bool>,
    submitted: VecDeque<(usize, u64, u64)>,
    /// Records with lsids ≥ the oldest, in log order.
    issued: Vec<Issued>,
    /// Image before `issued`.
    base: Vec<u64>,
    next_number: u64,
    /// What must survive a power cut and a kill, as lsids.
    floor: u64,
    floor_kill: u64,
    /// The last crash left the caches.
    killed: bool,
    ever_marked: bool,
    coverage: Coverage,
    /// Prints what happens; for one seed alone.
    trace: bool,
}

fn sector_of(address: u64, number: u64) -> Vec<u8> {
    if number == 0 {
        return vec![0; SECTOR];
    }
    let mut sector = Vec::with_capacity(SECTOR);
    sector.extend(number.to_le_bytes());
    // The checksum of the log is a sum: what differs must differ in more than two summands.
    let mut filling = Rng::new(number << 16 ^ address);
    while sector.len() < SECTOR {
        sector.extend(filling.next().to_le_bytes());
    }
    sector
}

/// Number of a sector that names itself; none for one that is torn or elsewhere.
fn number_of(address: u64, sector: &[u8]) -> Option<u64> {
    let mut head = [0; 8];
    head.copy_from_slice(&sector[..8]);
    let number = u64::from_le_bytes(head);
    (sector == sector_of(address, number)).then_some(number)
}

impl World {
    fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut rng = Rng::new(seed);
        let pbs = rng.among(&[
            PhysicalBlock::B512,
            PhysicalBlock::B512,
            PhysicalBlock::B4096,
        ]);
        let ring = Ring::new(pbs, 12 + rng.below(29)).unwrap();
        let begin = rng.among(&[0, 0, 5, (1 << 32) - 9, (1 << 53) + 3, u64::MAX / 2]);
        let superblock = Superblock {
            ring,
            salt: rng.next() as u32,
            uuid: Uuid([7; 16]),
            name: Name::default(),
            oldest_lsid: begin,
            written_lsid: begin,
            device_blocks: BLOCKS,
        };
        let limits = Limits {
            memory: rng.among(&[6 << 10, 24 << 10, 1 << 20]),
            pack: rng.among(&[1, 4, 64]) * pbs.bytes() as u64,
            group: rng.among(&[1, 8, 64]) * pbs.bytes() as u64,
            groups: rng.among(&[1, 2, 4]),
            flights: rng.among(&[1, 3, 8]),
            flight: rng.among(&[512, 4096]),
            unsynced: rng.among(&[2, 8, 100]) * pbs.bytes() as u64,
            unsynced_age: 20_000,
            behind_age: rng.among(&[10_000, 100_000]),
            checkpoint_age: rng.among(&[50_000, 1_000_000]),
            checkpoint: rng.among(&[4, 100]) * pbs.bytes() as u64,
            window: rng.among(&[4, 8, 100]) * pbs.bytes() as u64,
            retry: 30_000,
            hold: 3_000_000,
        };
        let log = Disk::new(ring.end() as usize);
        let data = Disk::new(BLOCKS as usize * SECTOR);
        write_superblock(named(&log), &superblock).unwrap();
        log.sync().unwrap();
        let faults = rng.among(&[0, 0, 1, 4]);
        let machine = Machine::new(superblock, None, limits, 0);
        Self {
            mutation,
            faults,
            limits,
            log,
            data,
            mark: None,
            window: 0,
            clean: None,
            machine,
            now: 0,
            pending: vec![],
            tickets: HashMap::new(),
            next_ticket: 1,
            marks: HashMap::new(),
            history: vec![],
            logged: 0,
            acked: vec![],
            submitted: VecDeque::new(),
            issued: vec![],
            base: vec![0; BLOCKS as usize],
            next_number: 1,
            floor: begin,
            floor_kill: begin,
            killed: false,
            ever_marked: false,
            coverage: Coverage::default(),
            trace: false,
            rng,
        }
    }

    fn run(&mut self, lives: u64) -> Verdict {
        for _ in 0..lives {
            self.start()?;
            // Short lives end near the dead tail of the one before.
            let most = self.rng.among(&[8, 20, 60, 250]);
            let steps = self.rng.below(most);
            for _ in 0..steps {
                self.step()?;
            }
            if self.rng.chance(15) {
                self.answer_all()?;
            }
            if self.rng.chance(15) {
                self.close()?;
            }
            self.crash();
        }
        self.start()
    }

    /// Recovers, perhaps in several attempts, checks, and starts a machine.
    fn start(&mut self) -> Verdict {
        let recovered = loop {
            if self.rng.chance(40) {
                let calls = self.rng.below(40);
                self.log.cut_after(Some(calls));
                self.data.cut_after(Some(self.rng.below(40)));
            }
            let known = Known {
                window: self.window,
                overflow: self.mark,
                clean: self.clean,
            };
            let before = self.log.bytes();
            match recover(named(&self.log), named(&self.data), &known) {
                Ok(recovered) => {
                    if self.mutation == Some(Mutation::NoTailClearing) {
                        self.undo_clearing(&recovered, &before);
                    }
                    break recovered;
                }
                Err(error) if self.log.0.lock().left.is_some() => {
                    let text = error.to_string();
                    ensure!(text.contains("cannot"), "recovery failed: {text}");
                    self.coverage.add("cuts in recovery", 1);
                    self.killed = false;
                    self.log.cut(&mut self.rng);
                    self.data.cut(&mut self.rng);
                }
                Err(error) => return Err(format!("recovery failed: {error}")),
            }
        };
        self.log.cut_after(None);
        self.data.cut_after(None);
        self.coverage.add("lives", 1);
        self.coverage.add("packs replayed", recovered.packs);
        self.coverage
            .add("tails cleared", u64::from(recovered.cleared > 0));
        self.check_recovered(&recovered)?;
        self.begin(recovered);
        Ok(())
    }

    /// Puts back what W7 cleared.
    fn undo_clearing(&self, recovered: &Recovered, before: &[u8]) {
        let Superblock {
            ring, written_lsid, ..
        } = recovered.superblock;
        for run in ring.runs(written_lsid, recovered.cleared) {
            let at = run.position as usize;
            self.log
                .put(run.position, &before[at..at + run.bytes as usize]);
        }
        self.log.sync_end(u64::MAX);
    }

    fn begin(&mut self, recovered: Recovered) {
        let at = recovered.superblock.written_lsid;
        if recovered.overflow.is_some() {
            self.mark = recovered.overflow;
        }
        self.machine = Machine::new(
            recovered.superblock,
            recovered.overflow,
            self.limits,
            self.now,
        );
        self.machine.mutation = self.mutation;
        // The state file is written before the first request is taken.
        self.window = self.window.max(self.machine.window());
        self.clean = None;
        (self.floor, self.floor_kill) = (at, at);
        self.tickets.clear();
        self.marks.clear();
        self.pending.clear();
        self.submitted.clear();
    }

    /// The heart: the volume is the image of a prefix, and the log says the same.
    fn check_recovered(&mut self, recovered: &Recovered) -> Verdict {
        trace!(self, "{recovered:?}");
        let latest = recovered.superblock.written_lsid;
        let floor = match self.killed {
            true => self.floor.max(self.floor_kill),
            false => self.floor,
        };
        ensure!(
            latest >= floor,
            "recovered to lsid {latest}, but {floor} was promised"
        );
        self.killed = false;
        let kept = self.records_before(latest)?;
        let image = self.image(kept);
        self.check_image(&self.data.bytes(), &image, "recovered")?;
        self.issued.truncate(kept);
        // What is not in the log any more never was.
        self.logged = self.issued.iter().map(|r| r.payload.len() / SECTOR).sum();
        self.history = vec![];
        self.acked = vec![];
        self.logged = 0;
        match recovered.overflow {
            None => self.check_log(&recovered.superblock, latest),
            Some(_) if self.ever_marked => Ok(()),
            Some(lsid) => Err(format!("an overflow at lsid {lsid} that never was")),
        }
    }

    /// How many issued records lie before an lsid. The pack there may have been shrunk.
    fn records_before(&self, latest: u64) -> Result<usize, String> {
        let whole = self.issued.partition_point(|r| r.pack < latest);
        let Some(last) = self.issued[..whole].last() else {
            return Ok(whole);
        };
        let header = self.pack_at(self.machine.superblock(), last.pack);
        let Some(header) = header else {
            return Err(format!(
                "no pack at lsid {}, before the end {latest}",
                last.pack
            ));
        };
        // Packs of padding only may follow.
        let mut end = header.next_lsid();
        while end < latest
            && let Some(next) = self.pack_at(self.machine.superblock(), end)
            && next.records.iter().all(|r| r.kind == RecordKind::Padding)
        {
            end = next.next_lsid();
        }
        ensure!(
            end == latest,
            "the log ends at lsid {latest}, within the pack at {}",
            last.pack
        );
        let of_pack = self.issued.partition_point(|r| r.pack < last.pack);
        let records = header.records.iter();
        Ok(of_pack + records.filter(|r| r.kind != RecordKind::Padding).count())
    }

    fn pack_at(&self, superblock: &Superblock, lsid: u64) -> Option<Header> {
        let pbs = superblock.pbs();
        let at = superblock.ring.position(lsid) as usize;
        let log = self.log.0.lock();
        match classify(&log.cache[at..at + pbs.bytes()], pbs, superblock.salt, lsid) {
            Block::Pack(header) => Some(header),
            _ => None,
        }
    }

    /// Numbers of all blocks after the first records.
    fn image(&self, records: usize) -> Vec<u64> {
        let mut image = self.base.clone();
        for record in &self.issued[..records] {
            apply(&mut image, record);
        }
        image
    }

    fn check_image(&self, bytes: &[u8], image: &[u64], what: &str) -> Verdict {
        for (address, sector) in bytes.chunks(SECTOR).enumerate() {
            let found = number_of(address as u64, sector);
            let want = image[address];
            ensure!(
                found == Some(want),
                "{what}: block {address} holds {found:?}, expected {want} ({:02x?})",
                &sector[..24]
            );
        }
        Ok(())
    }

    /// The log from the oldest lsid on holds exactly the records, in order.
    fn check_log(&self, superblock: &Superblock, upto: u64) -> Verdict {
        let mut lsid = superblock.oldest_lsid;
        let mut records = (self.issued.iter()).skip_while(|r| r.pack < superblock.oldest_lsid);
        let (pbs, log) = (superblock.pbs(), self.log.bytes());
        while lsid < upto {
            let Some(header) = self.pack_at(superblock, lsid) else {
                return Err(format!("a hole in the log at lsid {lsid}, before {upto}"));
            };
            for record in header
                .records
                .iter()
                .filter(|r| r.kind != RecordKind::Padding)
            {
                let Some(want) = records.next() else {
                    return Err(format!("a record at lsid {} nobody wrote", record.lsid));
                };
                let mut bytes: Vec<u8> = vec![];
                for run in superblock
                    .ring
                    .runs(record.lsid, u64::from(record.data_pb(pbs)))
                {
                    let at = run.position as usize;
                    bytes.extend(&log[at..at + run.bytes as usize]);
                }
                let same = match record.kind {
                    RecordKind::Data => bytes[..record.bytes() as usize] == want.payload,
                    _ => want.payload.iter().all(|byte| *byte == 0),
                };
                ensure!(
                    same && record.address == want.start,
                    "the log has other data at lsid {} than was written",
                    record.lsid
                );
            }
            lsid = header.next_lsid();
        }
        Ok(())
    }

    /// One thing happens.
    fn step(&mut self) -> Verdict {
        match self.rng.below(100) {
            0..45 => self.ask()?,
            45..85 => self.carry_out()?,
            85..92 => self.now += self.rng.below(60_000),
            92..96 => self.ship()?,
            _ => self.order()?,
        }
        self.advance()
    }

    fn advance(&mut self) -> Verdict {
        let mut out = vec![];
        self.machine.on(Event::Tick, self.now, &mut out);
        self.machine.advance(self.now, &mut out);
        let blocked = self.machine.blocked;
        self.coverage.add(
            "waits for the redo window",
            u64::from(blocked == Some(log::Blocked::Window)),
        );
        self.coverage.add(
            "waits for a durable oldest",
            u64::from(blocked == Some(log::Blocked::Oldest)),
        );
        self.coverage.add(
            "waits for a sync",
            u64::from(blocked == Some(log::Blocked::Unsynced)),
        );
        self.coverage.add(
            "waits for memory",
            u64::from(blocked == Some(log::Blocked::Memory)),
        );
        self.take_issued()?;
        self.take_effects(out)
    }

    /// Records that have got lsids: they must be those submitted, in order (W1).
    fn take_issued(&mut self) -> Verdict {
        let last = self.issued.last().map_or(0, |r| r.pack);
        let mut new = vec![];
        for group in self.machine.groups.iter().filter(|g| g.end > last) {
            for (start, piece) in &group.records {
                if piece.lsid <= last && !self.issued.is_empty() {
                    continue;
                }
                let payload = match &piece.payload {
                    Payload::Data(bytes) => bytes.to_vec(),
                    _ => vec![0; (piece.end - start) as usize * SECTOR],
                };
                new.push(Issued {
                    pack: piece.lsid,
                    end: group.end,
                    start: *start,
                    payload,
                });
            }
        }
        for record in new {
            for (index, sector) in record.payload.chunks(SECTOR).enumerate() {
                let address = record.start + index as u64;
                let want = self.history[self.logged];
                self.logged += 1;
                let found = number_of(address, sector);
                ensure!(
                    Some(want) == found.map(|number| (address, number)),
                    "record at lsid {}: block {address} holds {found:?}, next in order is {want:?}",
                    record.pack
                );
            }
            self.issued.push(record);
        }
        let ring = self.machine.superblock.ring;
        let overflows = self.machine.latest - self.machine.oldest > ring.size();
        self.ever_marked |= self.machine.overflow.is_some() || self.machine.marking;
        if overflows && self.mutation != Some(Mutation::MarkAfterTheWrite) {
            ensure!(self.mark.is_some(), "packs are lost without a durable mark");
        }
        Ok(())
    }

    fn take_effects(&mut self, out: Vec<Effect>) -> Verdict {
        for effect in out {
            trace!(self, "{:6} {}", self.now, brief(&effect));
            match effect {
                Effect::Answer { ticket, result } => self.answered(ticket, result)?,
                Effect::Tell { ticket, result } => {
                    if let (Some(()), Ok(lsid)) = (self.marks.remove(&ticket), &result) {
                        self.coverage.add("snapshots", 1);
                        self.floor = self.floor.max(*lsid);
                    }
                }
                Effect::AnswerExtents { .. } => {}
                other => self.pending.push(Pending {
                    effect: other,
                    covered: None,
                }),
            }
        }
        Ok(())
    }

    fn answered(&mut self, ticket: Ticket, result: Result<Reply, Refusal>) -> Verdict {
        let Some(asked) = self.tickets.remove(&ticket) else {
            return Err(format!(
                "ticket {ticket} was answered twice, or never given"
            ));
        };
        let Ok(reply) = result else {
            self.coverage.add("requests refused", 1);
            if let Asked::Write { .. } = asked {
                self.forget(ticket);
            }
            return Ok(());
        };
        match (asked, reply) {
            (Asked::Write { upto }, _) => {
                let (from, fua) = self.submitted_range(ticket);
                ensure!(
                    upto <= self.logged,
                    "a write was answered that is not in the log"
                );
                self.acked[from..upto].fill(true);
                let end = self.machine.completed;
                self.floor_kill = self.floor_kill.max(self.end_of(upto));
                if fua {
                    self.coverage.add("forced writes", 1);
                    self.floor = self.floor.max(self.end_of(upto));
                    ensure!(self.end_of(upto) <= end, "answered before it was written");
                }
            }
            (Asked::Flush { acked }, _) => {
                self.coverage.add("flushes", 1);
                self.floor = self.floor.max(self.end_of(acked));
            }
            (Asked::Read { start, allowed }, Reply::Data(parts)) => {
                self.coverage.add("reads", 1);
                let bytes = parts.concat();
                ensure!(
                    bytes.len() == allowed.len() * SECTOR,
                    "a read of the wrong length"
                );
                for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                    let address = start + index as u64;
                    let found = number_of(address, sector);
                    let newer = self.history.iter().filter(|(a, _)| *a == address);
                    let ok = found.is_some_and(|n| {
                        allowed[index].contains(&n)
                            || newer.clone().any(|(_, m)| {
                                *m == n
                                    && n != 0
                                    && !allowed[index].contains(&n)
                                    && self.is_newer(address, n, &allowed[index])
                            })
                    }) || (found == Some(0)
                        && self.zeroed_since(address, &allowed[index]));
                    ensure!(
                        ok,
                        "a read of block {address} returned {found:?}, allowed {:?}",
                        allowed[index]
                    );
                }
            }
            (asked, reply) => return Err(format!("{asked:?} was answered with {reply:?}")),
        }
        Ok(())
    }

    /// Reads may also see what was written after they were asked.
    fn is_newer(&self, address: u64, number: u64, allowed: &[u64]) -> bool {
        let newest = allowed.iter().max().copied().unwrap_or(0);
        debug_assert!(address < BLOCKS);
        number > newest
    }

    fn zeroed_since(&self, address: u64, allowed: &[u64]) -> bool {
        let newest = allowed.iter().copied().find(|n| *n != 0).unwrap_or(0);
        let at = self
            .history
            .iter()
            .rposition(|(a, n)| *a == address && *n == newest && newest != 0);
        self.history[at.map_or(0, |at| at + 1)..].contains(&(address, 0))
    }

    fn submitted_range(&mut self, ticket: Ticket) -> (usize, bool) {
        let at = self.submitted.iter().position(|(_, t, _)| *t == ticket);
        let (from, _, fua) = at.and_then(|at| self.submitted.remove(at)).unwrap();
        (from, fua == 1)
    }

    /// A write that was refused: what of it has no lsid never gets one.
    fn forget(&mut self, ticket: Ticket) {
        let (from, _) = self.submitted_range(ticket);
        let upto = self
            .submitted
            .iter()
            .map(|(f, ..)| *f)
            .filter(|f| *f > from)
            .min();
        let upto = upto.unwrap_or(self.history.len());
        let from = from.max(self.logged);
        if from < upto {
            self.history.drain(from..upto);
            self.acked.drain(from..upto);
            let gone = upto - from;
            for (f, ..) in &mut self.submitted {
                if *f >= upto {
                    *f -= gone;
                }
            }
            for asked in self.tickets.values_mut() {
                match asked {
                    Asked::Write { upto: u } | Asked::Flush { acked: u } if *u >= upto => {
                        *u -= gone
                    }
                    _ => {}
                }
            }
        }
    }

    /// End of the group that holds the block before index `upto` of the history.
    fn end_of(&self, upto: usize) -> u64 {
        // The records of this life end the list of issued ones.
        let mut left = self.logged - upto.min(self.logged);
        let mut at = self.issued.len();
        while at > 0 && left >= self.issued[at - 1].payload.len() / SECTOR {
            left -= self.issued[at - 1].payload.len() / SECTOR;
            at -= 1;
        }
        match upto {
            0 => 0,
            _ => at.checked_sub(1).map_or(0, |at| self.issued[at].end),
        }
    }

    /// A client asks for something.
    fn ask(&mut self) -> Verdict {
        if self.tickets.len() > 24 {
            return Ok(());
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let start = self.rng.below(BLOCKS);
        let len = 1 + self.rng.below((BLOCKS - start).min(8));
        let (offset, bytes) = (start * SECTOR as u64, len * SECTOR as u64);
        let fua = self.rng.chance(15);
        let op = match self.rng.below(100) {
            0..50 => {
                let data = (start..start + len).flat_map(|address| {
                    let number = self.next_number;
                    self.next_number += 1;
                    self.history.push((address, number));
                    sector_of(address, number)
                });
                Op::Write {
                    offset,
                    data: data.collect(),
                    fua,
                }
            }
            50..58 => {
                self.history
                    .extend((start..start + len).map(|address| (address, 0)));
                Op::Trim {
                    offset,
                    len: bytes,
                    fua,
                }
            }
            58..65 => {
                self.history
                    .extend((start..start + len).map(|address| (address, 0)));
                Op::Zero {
                    offset,
                    len: bytes,
                    may_punch: self.rng.chance(50),
                    fua,
                }
            }
            65..85 => Op::Flush,
            _ => Op::Read {
                offset,
                len: bytes as u32,
            },
        };
        let asked = match op {
            Op::Read { .. } => Asked::Read {
                start,
                allowed: self.allowed(start, len),
            },
            Op::Flush => Asked::Flush {
                acked: self.acked_until(ticket),
            },
            _ => {
                self.submitted
                    .push_back((self.acked.len(), ticket, u64::from(fua)));
                self.acked.resize(self.history.len(), false);
                Asked::Write {
                    upto: self.history.len(),
                }
            }
        };
        self.tickets.insert(ticket, asked);
        let mut out = vec![];
        self.machine
            .on(Event::Request { ticket, op }, self.now, &mut out);
        self.take_effects(out)
    }

    /// Index behind the last answered block of the history.
    fn acked_until(&self, _: Ticket) -> usize {
        self.acked
            .iter()
            .rposition(|acked| *acked)
            .map_or(0, |at| at + 1)
    }

    /// What a read may return: the newest answered version of each block, and all after it.
    fn allowed(&self, start: u64, len: u64) -> Vec<Vec<u64>> {
        let before = self.image(self.issued.len() - self.records_of_this_life());
        (start..start + len)
            .map(|address| {
                let mut versions = vec![];
                for (index, (a, number)) in self.history.iter().enumerate().rev() {
                    if *a == address {
                        versions.push(*number);
                        if self.acked[index] {
                            return versions;
                        }
                    }
                }
                versions.push(before[address as usize]);
                versions
            })
            .collect()
    }

    fn records_of_this_life(&self) -> usize {
        let (mut left, mut records) = (self.logged, 0);
        while left > 0 {
            records += 1;
            left -= self.issued[self.issued.len() - records].payload.len() / SECTOR;
        }
        records
    }

    /// The disk does something.
    fn carry_out(&mut self) -> Verdict {
        if self.pending.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.pending.len() as u64) as usize;
        let fails = self.rng.below(1000) < self.faults * 10;
        if let Pending {
            effect:
                Effect::Io {
                    target,
                    op: FileOp::Sync,
                    ..
                },
            covered: covered @ None,
        } = &mut self.pending[at]
        {
            *covered = Some(match target {
                Target::Log => self.log.sync_begin(),
                Target::Data => self.data.sync_begin(),
            });
            return Ok(());
        }
        let Pending { effect, covered } = self.pending.swap_remove(at);
        let failure = || Failure {
            no_space: false,
            cause: "planted".into(),
        };
        let (id, result) = match effect {
            Effect::Io { id, target, op } => {
                let disk = match target {
                    Target::Log => &self.log,
                    Target::Data => &self.data,
                };
                match op {
                    FileOp::Sync if fails => {
                        disk.sync_fails(covered.unwrap(), &mut self.rng);
                        self.coverage.add("failed syncs", 1);
                        (id, Err(failure()))
                    }
                    FileOp::Sync => {
                        disk.sync_end(covered.unwrap());
                        (id, Ok(Bytes::new()))
                    }
                    _ if fails => {
                        self.coverage.add("failed reads and writes", 1);
                        half(disk, &op, &mut self.rng);
                        (id, Err(failure()))
                    }
                    op => (id, Ok(whole(disk, &op))),
                }
            }
            Effect::SaveMark { id, lsid } => {
                if !fails {
                    self.mark = Some(lsid);
                    self.coverage.add("overflows", 1);
                }
                (
                    id,
                    if fails {
                        Err(failure())
                    } else {
                        Ok(Bytes::new())
                    },
                )
            }
            Effect::ReopenLog { id } => {
                self.coverage.add("logs written again", 1);
                (id, Ok(Bytes::new()))
            }
            Effect::Replay { id, from, to } => {
                self.coverage.add("replays after a failed sync", 1);
                let superblock = self.machine.superblock().clone();
                let done = replay_again(named(&self.log), named(&self.data), &superblock, from, to);
                ensure!(done.is_ok(), "replay of a permanent log: {done:?}");
                (id, Ok(Bytes::new()))
            }
            _ => return Ok(()),
        };
        trace!(self, "{:6} done {id} {}", self.now, result.is_ok());
        let mut out = vec![];
        self.machine
            .on(Event::Finished { id, result }, self.now, &mut out);
        self.take_effects(out)
    }

    /// The shipper reads the log and forgets a part of it.
    fn ship(&mut self) -> Verdict {
        let positions = self.machine.positions();
        if self.machine.overflow().is_some() {
            return Ok(());
        }
        let mut superblock = self.machine.superblock().clone();
        superblock.oldest_lsid = positions.oldest;
        if self.mutation != Some(Mutation::OldestInMemory) {
            self.check_log(&superblock, positions.permanent)?;
        }
        let packs: Vec<u64> = (self.issued.iter().map(|r| r.pack))
            .filter(|lsid| (positions.oldest..=positions.prev_written).contains(lsid))
            .chain([positions.prev_written])
            .collect();
        let lsid = self.rng.among(&packs);
        self.command(Command::SetOldest(lsid))?;
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<Ticket, String> {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let mut out = vec![];
        self.machine
            .on(Event::Command { ticket, command }, self.now, &mut out);
        self.take_effects(out)?;
        Ok(ticket)
    }

    fn order(&mut self) -> Verdict {
        let mut out = vec![];
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let command = match self.rng.below(10) {
            0..5 => {
                self.marks.insert(ticket, ());
                Command::Mark
            }
            5..8 => Command::Checkpoint,
            _ => Command::Freeze(Some(std::time::Duration::from_millis(20))),
        };
        self.machine
            .on(Event::Command { ticket, command }, self.now, &mut out);
        self.take_effects(out)
    }

    /// Without further faults every request is answered in the end.
    fn answer_all(&mut self) -> Verdict {
        let faults = std::mem::take(&mut self.faults);
        for _ in 0..20_000 {
            if self.tickets.is_empty() && self.marks.is_empty() {
                self.faults = faults;
                return Ok(());
            }
            self.advance()?;
            self.carry_out()?;
            self.now += 100;
        }
        Err(format!(
            "requests are not answered: {:?}, blocked {:?}",
            self.machine.positions(),
            self.machine.blocked
        ))
    }

    /// An orderly stop: everything is on the data, durable.
    fn close(&mut self) -> Verdict {
        self.faults = 0;
        self.command(Command::Close)?;
        for _ in 0..20_000 {
            self.advance()?;
            self.carry_out()?;
            self.now += 100;
            if self.machine.is_at_rest()
                && self.pending.is_empty()
                && self.machine.log_failed.is_none()
            {
                self.coverage.add("orderly stops", 1);
                let image = self.image(self.issued.len());
                self.check_image(&self.data.durable(), &image, "stopped")?;
                self.clean = Some(self.machine.superblock().written_lsid);
                ensure!(
                    self.tickets.is_empty(),
                    "closed with {:?} unanswered",
                    self.tickets
                );
                return Ok(());
            }
        }
        Err(format!(
            "does not come to rest: {:?} {:?}",
            self.machine.positions(),
            self.pending
        ))
    }

    /// The process dies; or the power goes, too.
    fn crash(&mut self) {
        let killed = self.rng.chance(25);
        trace!(
            self,
            "crash, killed: {killed}; {:?}, floor {}",
            self.machine.positions(),
            self.floor
        );
        for Pending { effect, covered } in std::mem::take(&mut self.pending) {
            match effect {
                Effect::Io { target, op, .. } => {
                    let disk = if target == Target::Log {
                        &self.log
                    } else {
                        &self.data
                    };
                    match (op, covered) {
                        (FileOp::Sync, Some(covered)) if self.rng.chance(30) => {
                            disk.sync_end(covered)
                        }
                        (op, _) => half(disk, &op, &mut self.rng),
                    }
                }
                Effect::SaveMark { lsid, .. } if self.rng.chance(50) => self.mark = Some(lsid),
                _ => {}
            }
        }
        self.coverage
            .add("ring wraps", self.machine.counters.ring_wraps);
        if killed {
            self.coverage.add("kills", 1);
            self.killed = true;
            return;
        }
        self.coverage.add("power cuts", 1);
        self.log.cut(&mut self.rng);
        self.data.cut(&mut self.rng);
    }
}

fn apply(image: &mut [u64], record: &Issued) {
    for (index, sector) in record.payload.chunks(SECTOR).enumerate() {
        let address = record.start + index as u64;
        image[address as usize] = number_of(address, sector).unwrap();
    }
}

fn named(disk: &Disk) -> Named<'_> {
    Named {
        file: disk,
        name: "simulated",
    }
}

/// Carries an operation out.
fn whole(disk: &Disk, op: &FileOp) -> Bytes {
    match op {
        FileOp::Write { offset, parts } => disk.put(*offset, &parts.concat()),
        FileOp::Punch { offset, bytes } | FileOp::Zero { offset, bytes } => {
            disk.put(*offset, &vec![0; *bytes as usize]);
        }
        FileOp::Read { offset, len } => {
            let at = *offset as usize;
            return disk.0.lock().cache[at..at + len].to_vec().into();
        }
        FileOp::Sync => {}
    }
    Bytes::new()
}

/// Carries out any part of an operation.
fn half(disk: &Disk, op: &FileOp, rng: &mut Rng) {
    match op {
        FileOp::Write { offset, parts } => {
            for (index, sector) in parts.concat().chunks(SECTOR).enumerate() {
                if rng.chance(50) {
                    disk.put(*offset + (index * SECTOR) as u64, sector);
                }
            }
        }
        other if rng.chance(50) => drop(whole(disk, other)),
        _ => {}
    }
}

/// An effect in a line.
fn brief(effect: &Effect) -> String {
    match effect {
        Effect::Io { id, target, op } => match op {
            FileOp::Write { offset, parts } => {
                let bytes: usize = parts.iter().map(Bytes::len).sum();
                format!("{id} {target:?} write {offset} +{bytes}")
            }
            other => format!("{id} {target:?} {other:?}"),
        },
        other => format!("{other:.200?}"),
    }
}

fn run_seed(seed: u64, mutation: Option<Mutation>, trace: bool) -> Result<Coverage, String> {
    let mut world = World::new(seed, mutation);
    world.trace = trace;
    let lives = 3 + world.rng.below(6);
    match world.run(lives) {
        Ok(()) => Ok(world.coverage),
        Err(why) => Err(format!("seed {seed}: {why}")),
    }
}

/// Runs seeds on all cores; the lowest bad one is the answer.
fn run_seeds(seeds: u64, mutation: Option<Mutation>) -> Result<Coverage, String> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let (next, coverage, bad) = (
        AtomicU64::new(0),
        Mutex::new(Coverage::default()),
        Mutex::new(None::<(u64, String)>),
    );
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = Coverage::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || bad.lock().is_some() {
                        break;
                    }
                    match run_seed(seed, mutation, false) {
                        Ok(seen) => own.merge(&seen),
                        Err(why) => {
                            bad.lock().get_or_insert((seed, why));
                        }
                    }
                }
                coverage.lock().merge(&own);
            });
        }
    });
    match bad.into_inner() {
        Some((_, why)) => Err(why),
        None => Ok(coverage.into_inner()),
    }
}

/// `WALKEEP_SEEDS` asks for more.
fn seeds(default: u64) -> u64 {
    let asked = std::env::var("WALKEEP_SEEDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// `WALKEEP_SEED` runs one seed alone.
#[test]
fn one_seed_alone() {
    let seed = std::env::var("WALKEEP_SEED")
        .ok()
        .and_then(|n| n.parse().ok());
    run_seed(seed.unwrap_or(0), None, true).unwrap();
}

#[test]
fn every_crash_leaves_a_prefix() {
    let coverage = run_seeds(seeds(10_000), None).unwrap();
    println!("{coverage:#?}");
    for (what, n) in &coverage.0 {
        assert!(*n > 0, "nothing came across: {what}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    use Mutation::*;
    let all = [
        DataBeforePermanent,
        CheckpointWithoutDataSync,
        PrevWrittenBeforeItsSync,
        NoRedoWindow,
        SupersededByUnsynced,
        NoTailClearing,
        CompletedAtTheEndOfTheSync,
        FlushTargetPerConnection,
        IndexRemovedBeforeTheWrite,
        OverlappingFlights,
        OldestInMemory,
        MarkAfterTheWrite,
        LogSyncRepeated,
        DataSyncRepeated,
        MarkBeforePermanent,
        PaddingNotCounted,
        PackOffByOneAtTheRingEnd,
    ];
    let mut missed = vec![];
    for mutation in all {
        match run_seeds(5_000, Some(mutation)) {
            Ok(_) => missed.push(mutation),
            Err(why) => println!("{mutation:?}: {why}"),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
