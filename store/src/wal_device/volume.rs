//! A running volume: the machine under a lock, its effects carried out, its exports answered.
//!
//! It decides nothing. Whoever brings an event in (a client, a completion, the clock) carries out
//! what comes of it: a write of a client goes to the log in the client's own thread, without any
//! hand-over. Nothing here holds the lock during a system call.

use std::collections::HashMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use walkeep_wire::LOGICAL_BLOCK;
use walkeep_wire::ldev::Superblock;

use super::control::{Control, Refused, Status};
use super::host::{Host, Sleeper};
use super::machine::{
    Command, Effect, Event, Failure, IoId, Limits, Machine, Target, Ticket, window_blocks,
};
use super::recover::{Named, Recovered, read_superblock, recover, replay_again, write_superblock};
use super::state::{Mark, State};
use crate::block::{BlockDevice, Done, Extent, Geometry, Op, Refusal, Reply, Request, together};
use crate::disk::engine::{FileOp, carry_out};
use crate::disk::{DiskFile, Mode};
use crate::{Error, Result};

/// Greatest read or write of a client \[bytes\].
pub const MAX_REQUEST: u32 = 32 << 20;
/// Reads up to this size are tried in the client's own thread, where the cache may have them.
const SMALL_READ: usize = 256 << 10;
/// Extents told at once.
const MAX_EXTENTS: usize = 8192;

/// Where a volume is kept.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The log device, a file or block device.
    pub log: PathBuf,
    /// The data, a file or block device.
    pub data: PathBuf,
    /// The state file; it need not exist.
    pub state: PathBuf,
}

/// A volume that serves. [`Volume::close`] ends it in order; dropped, it is as if it were killed.
pub struct Volume {
    host: Arc<Host>,
    paths: Paths,
    limits: Limits,
    names: (String, String),
    core: Mutex<Core>,
    log: RwLock<Arc<dyn DiskFile>>,
    data: RwLock<Arc<dyn DiskFile>>,
    state: Mutex<State>,
    /// Their locks last as long as the volume.
    _locks: [Arc<dyn DiskFile>; 2],
    me: Weak<Self>,
}

struct Core {
    machine: Machine,
    dones: HashMap<Ticket, Done>,
    tells: HashMap<Ticket, Sender<Result<u64, Refused>>>,
    next_ticket: Ticket,
    /// The clock wakes the volume then.
    alarm: Option<u64>,
}

/// Who carries effects out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// A thread that may block. `alone`: it brought one request, which waits for a sync.
    Client { alone: bool },
    /// A thread that others wait for.
    Engine,
}

/// What is left of effects after the lock is given back.
#[derive(Default)]
struct Work {
    answers: Vec<(Done, Result<Reply, Refusal>)>,
    effects: Vec<Effect>,
}

impl Volume {
    /// Opens a volume: locks its files, recovers, and serves.
    ///
    /// # Errors
    /// Files that are missing, locked by another server, or do not belong together; a log that is
    /// corrupt (see [`recover`]).
    pub fn open(host: &Arc<Host>, paths: &Paths, limits: Limits) -> Result<(Arc<Self>, Recovered)> {
        let open = |path: &Path| {
            host.disk
                .open(path, Mode::Write)
                .map_err(|e| Error::file(path, "open", e))
        };
        let (log, data) = (open(&paths.log)?, open(&paths.data)?);
        let locks = [
            lock(&*host.disk, &paths.log)?,
            lock(&*host.disk, &paths.data)?,
        ];
        // A failed write of an earlier life, if nobody has heard of it yet, is told to whoever syncs
        // first. Recovery must not hear it: all that was not durable then is written again.
        for file in [&log, &data] {
            let _ = file.sync();
        }
        let name = |path: &Path| path.display().to_string();
        let names = (name(&paths.log), name(&paths.data));
        let named_log = named(&*log, &names.0);
        let before = read_superblock(named_log)?;
        check_block_size(&*log, &paths.log, &before)?;
        let mut state = State::load(&*host.disk, &paths.state, &before)?;
        let recovered = recover(named_log, named(&*data, &names.1), &state.known())?;
        let (superblock, overflow) = (recovered.superblock.clone(), recovered.overflow);
        let machine = Machine::new(superblock, overflow, limits, host.now());
        // Before the first request: a crash from now on is no clean end any more (W7).
        // What recovery cleared holds no dead tail any more, however long an earlier one was.
        state.window = match recovered.cleared {
            0 => state.window.max(machine.window()),
            _ => machine.window(),
        };
        state.clean = None;
        state.overflow = overflow.map(|lsid| state.overflow.unwrap_or(mark(lsid)));
        state.save(&*host.disk, &paths.state)?;
        let volume = Arc::new_cyclic(|me| Self {
            host: host.clone(),
            paths: paths.clone(),
            limits,
            names,
            core: Mutex::new(Core {
                machine,
                dones: HashMap::new(),
                tells: HashMap::new(),
                next_ticket: 1,
                alarm: None,
            }),
            log: RwLock::new(log),
            data: RwLock::new(data),
            state: Mutex::new(state),
            _locks: locks,
            me: me.clone(),
        });
        Ok((volume, recovered))
    }

    /// Ends the volume: refuses new requests, brings everything to the data, and notes that nothing
    /// is left to recover.
    ///
    /// # Errors
    /// If log or data fail meanwhile. Nothing acknowledged is lost then: recovery does the rest.
    pub fn close(&self) -> Result<(), Refused> {
        let latest = self.command(Command::Close)?;
        let mut state = self.state.lock();
        state.clean = Some(latest);
        state
            .save(&*self.host.disk, &self.paths.state)
            .map_err(|e| Refused(e.to_string()))
    }

    /// Takes events in, and carries out what comes of them.
    fn drive(&self, caller: Caller, events: impl FnOnce(&mut Core, u64, &mut Vec<Effect>)) {
        let _whole = Whole;
        let mut work = self.turn(events);
        let mut alone = caller == Caller::Client { alone: true };
        loop {
            let mut finished = vec![];
            for effect in work.effects {
                self.perform(effect, caller, alone, &mut finished);
            }
            let answers = work.answers;
            together(|| answers.into_iter().for_each(|(done, result)| done(result)));
            let synced = finished.iter().any(|(.., op)| matches!(op, FileOp::Sync));
            let inline = finished.into_iter();
            let events: Vec<_> = inline.filter_map(|io| self.carry_out(io)).collect();
            if events.is_empty() {
                return;
            }
            // One write and one sync for its own client: what others wait for is not its work.
            alone = alone && !synced;
            work = self.turn(|core, now, out| {
                for (id, result) in events {
                    core.machine.on(Event::Finished { id, result }, now, out);
                }
            });
        }
    }

    /// One turn of the machine.
    fn turn(&self, events: impl FnOnce(&mut Core, u64, &mut Vec<Effect>)) -> Work {
        let now = self.host.now();
        let (mut out, mut work) = (vec![], Work::default());
        let mut core = self.core.lock();
        events(&mut core, now, &mut out);
        core.machine.advance(now, &mut out);
        for effect in out {
            match effect {
                Effect::Answer { ticket, result } => {
                    let done = core.dones.remove(&ticket);
                    work.answers.extend(done.map(|done| (done, result)));
                }
                Effect::Tell { ticket, result } => {
                    if let Some(tell) = core.tells.remove(&ticket) {
                        // Nobody may be listening any more.
                        let _ = tell.send(result);
                    }
                }
                other => work.effects.push(other),
            }
        }
        self.set_alarm(&mut core, now);
        work
    }

    fn set_alarm(&self, core: &mut Core, now: u64) {
        let Some(deadline) = core.machine.deadline(now) else {
            return;
        };
        if core.alarm.is_none_or(|alarm| deadline < alarm) {
            core.alarm = Some(deadline);
            let me: Weak<dyn Sleeper> = self.me.clone();
            self.host.wake_at(deadline, &me);
        }
    }

    /// Starts an effect, or leaves it in `inline` for the calling thread to carry out itself.
    fn perform(
        &self,
        effect: Effect,
        caller: Caller,
        alone: bool,
        inline: &mut Vec<(IoId, Target, FileOp)>,
    ) {
        match effect {
            Effect::Io { id, target, op } => match is_inline(target, &op, caller, alone) {
                true => inline.push((id, target, op)),
                false => self.submit(id, target, op),
            },
            Effect::SaveMark { id, lsid } => self.aside(id, move |volume| volume.save_mark(lsid)),
            Effect::ReopenLog { id } => self.aside(id, Self::reopen_log),
            Effect::Replay { id, from, to } => {
                self.aside(id, move |volume| volume.replay(from, to));
            }
            Effect::AnswerExtents {
                ticket,
                start,
                end,
                pending,
            } => self.answer_extents(ticket, start, end, &pending),
            Effect::Answer { .. } | Effect::Tell { .. } => {}
        }
    }

    fn file(&self, target: Target) -> Arc<dyn DiskFile> {
        match target {
            Target::Log => self.log.read().clone(),
            Target::Data => self.data.read().clone(),
        }
    }

    fn submit(&self, id: IoId, target: Target, op: FileOp) {
        let me = self.me.clone();
        let done = Box::new(move |result: std::io::Result<Bytes>| {
            if let Some(volume) = me.upgrade() {
                volume.finish(id, result.map_err(|e| failure(&e)));
            }
        });
        self.host.engine.submit(&self.file(target), op, done);
    }

    fn finish(&self, id: IoId, result: Result<Bytes, Failure>) {
        self.drive(Caller::Engine, |core, now, out| {
            core.machine.on(Event::Finished { id, result }, now, out);
        });
    }

    /// Carries an operation out in this thread. A read that the cache does not have is the engine's.
    fn carry_out(
        &self,
        (id, target, op): (IoId, Target, FileOp),
    ) -> Option<(IoId, Result<Bytes, Failure>)> {
        let file = self.file(target);
        let result = match op {
            FileOp::Read { offset, len } => match file.read_cached(offset, len) {
                Some(bytes) => Ok(bytes),
                None => {
                    self.submit(id, target, op);
                    return None;
                }
            },
            op => carry_out(&*file, op),
        };
        Some((id, result.map_err(|e| failure(&e))))
    }

    /// Rare work that blocks has a thread of its own.
    fn aside(&self, id: IoId, work: impl FnOnce(&Self) -> Result<()> + Send + 'static) {
        let me = self.me.clone();
        let run = move || {
            if let Some(volume) = me.upgrade() {
                let result = work(&volume).map(|()| Bytes::new());
                volume.finish(id, result.map_err(|e| described(&e)));
            }
        };
        let thread = std::thread::Builder::new().name("volume".to_owned());
        if let Err(e) = thread.spawn(run) {
            self.finish(id, Err(failure(&e)));
        }
    }

    fn save_mark(&self, lsid: u64) -> Result<()> {
        let mut state = self.state.lock();
        let mut marked = state.clone();
        marked.overflow = Some(mark(lsid));
        marked.save(&*self.host.disk, &self.paths.state)?;
        *state = marked;
        Ok(())
    }

    fn reopen(&self, path: &Path) -> Result<Arc<dyn DiskFile>> {
        let opened = self.host.disk.open(path, Mode::Write);
        opened.map_err(|e| Error::file(path, "open", e))
    }

    fn reopen_log(&self) -> Result<()> {
        let log = self.reopen(&self.paths.log)?;
        *self.log.write() = log;
        Ok(())
    }

    fn replay(&self, from: u64, to: u64) -> Result<()> {
        let data = self.reopen(&self.paths.data)?;
        let superblock = self.core.lock().machine.superblock().clone();
        let log = self.file(Target::Log);
        replay_again(
            named(&*log, &self.names.0),
            named(&*data, &self.names.1),
            &superblock,
            from,
            to,
        )?;
        *self.data.write() = data;
        Ok(())
    }

    fn answer_extents(&self, ticket: Ticket, start: u64, end: u64, pending: &[(u64, u64, bool)]) {
        let Some(done) = self.core.lock().dones.remove(&ticket) else {
            return;
        };
        let extents = extents(&*self.file(Target::Data), start, end, pending);
        done(extents.map(Reply::Extents).map_err(|_| Refusal::Io));
    }

    fn command(&self, command: Command) -> Result<u64, Refused> {
        let (tell, told) = channel();
        self.drive(Caller::Client { alone: false }, |core, now, out| {
            let ticket = core.ticket();
            core.tells.insert(ticket, tell);
            core.machine
                .on(Event::Command { ticket, command }, now, out);
        });
        let gone = |_| Err(Refused("the volume is gone".into()));
        told.recv().unwrap_or_else(gone)
    }

    /// Changes the superblock of a volume at rest. `prepare` does what must be done before, and
    /// returns the new one; once that is durable the change has happened, whatever comes after.
    fn administer(
        &self,
        prepare: impl FnOnce(&Superblock) -> Result<Superblock>,
        finish: impl FnOnce(&Superblock),
    ) -> Result<(), Refused> {
        self.command(Command::Hold)?;
        let before = self.core.lock().machine.superblock().clone();
        let refused = |e: &Error| Refused(with_causes(e));
        let next = match prepare(&before) {
            Ok(next) => next,
            Err(e) => {
                self.command(Command::Release)?;
                return Err(refused(&e));
            }
        };
        if let Err(e) = self.store_superblock(&next) {
            // The new one may be on the disk, or half of it: the old one must be there again before
            // anything goes on.
            let back = match self.store_superblock(&before) {
                Ok(()) => Command::Release,
                Err(e) => Command::Fail(with_causes(&e)),
            };
            self.command(back)?;
            return Err(refused(&e));
        }
        finish(&next);
        self.command(Command::Install(Box::new(next))).map(drop)
    }

    fn grow(&self, superblock: &Superblock, bytes: Option<u64>) -> Result<Superblock> {
        let data = self.file(Target::Data);
        let fail = |action| move |e| Error::file(&self.paths.data, action, e);
        let has = data.size().map_err(fail("inspect"))?;
        let bytes = bytes.unwrap_or(has);
        let unit = LOGICAL_BLOCK as u64;
        let now = superblock.device_blocks * unit;
        if bytes < now || !bytes.is_multiple_of(unit) {
            return Err(Error::Refused(format!(
                "size: expected at least the {now} bytes the volume has, and a multiple of {unit}, \
                 found {bytes}: a volume cannot shrink"
            )));
        }
        if bytes > has {
            data.set_size(bytes).map_err(fail("grow"))?;
        }
        data.sync().map_err(fail("make durable"))?;
        Ok(Superblock {
            device_blocks: bytes / unit,
            ..superblock.clone()
        })
    }

    fn store_superblock(&self, superblock: &Superblock) -> Result<()> {
        let log = self.file(Target::Log);
        write_superblock(named(&*log, &self.names.0), superblock)?;
        log.sync()
            .map_err(|e| Error::file(&self.paths.log, "make durable", e))
    }

    /// The superblock of a new, empty log: packs of the old one are invalid under its salt.
    fn new_log(&self, superblock: &Superblock) -> Result<Superblock> {
        let log = self.file(Target::Log);
        let fail = |action| move |e| Error::file(&self.paths.log, action, e);
        let (uuid, salt) =
            crate::ldev::fresh_identity().map_err(fail("draw random numbers for"))?;
        let size = log.size().map_err(fail("inspect"))?;
        let mut next = superblock.clone();
        next.reset(uuid, salt, size)
            .map_err(|flaw| flaw.in_source(&self.names.0))?;
        Ok(next)
    }

    /// What else belongs to a new log. None of it is needed: the salt alone makes old packs invalid,
    /// and a state file of another log is taken for none, which is the safe side.
    fn begin_log(&self, next: &Superblock) {
        let log = self.file(Target::Log);
        let invalid = vec![0; next.pbs().bytes()];
        let cleared = log.write_at(&[IoSlice::new(&invalid)], next.ring.position(0));
        drop(cleared.and_then(|()| log.sync()));
        let mut state = self.state.lock();
        let window = window_blocks(next, &self.limits);
        let mut fresh = State::fresh(next);
        (fresh.clean, fresh.window) = (None, window.max(state.window));
        drop(fresh.save(&*self.host.disk, &self.paths.state));
        *state = fresh;
    }
}

impl BlockDevice for Volume {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.core.lock().machine.size(),
            min_block: LOGICAL_BLOCK as u32,
            preferred_block: 4096,
            max_request: MAX_REQUEST,
            read_only: false,
        }
    }

    fn submit(&self, batch: Vec<Request>) {
        let alone = batch.len() == 1 && batch.iter().all(|request| waits_for_a_sync(&request.op));
        self.drive(Caller::Client { alone }, |core, now, out| {
            for Request { op, done } in batch {
                let ticket = core.ticket();
                core.dones.insert(ticket, done);
                core.machine.on(Event::Request { ticket, op }, now, out);
            }
        });
    }
}

impl Control for Volume {
    fn status(&self) -> Status {
        let state = self.state.lock().clone();
        let now = self.host.now();
        let core = self.core.lock();
        core.machine.status(&state, now)
    }

    fn checkpoint(&self) -> Result<(), Refused> {
        self.command(Command::Checkpoint).map(drop)
    }

    fn set_checkpoint_interval(&self, interval: Duration) -> Result<(), Refused> {
        self.command(Command::Interval(interval)).map(drop)
    }

    fn set_oldest(&self, lsid: u64) -> Result<(), Refused> {
        self.command(Command::SetOldest(lsid)).map(drop)
    }

    fn mark(&self) -> Result<u64, Refused> {
        self.command(Command::Mark)
    }

    fn resize(&self, bytes: Option<u64>) -> Result<(), Refused> {
        self.administer(|superblock| self.grow(superblock, bytes), |_| {})
    }

    fn reset(&self) -> Result<(), Refused> {
        self.administer(
            |superblock| self.new_log(superblock),
            |next| self.begin_log(next),
        )
    }

    fn freeze(&self, timeout: Option<Duration>) -> Result<(), Refused> {
        self.command(Command::Freeze(timeout)).map(drop)
    }

    fn melt(&self) -> Result<(), Refused> {
        self.command(Command::Melt).map(drop)
    }
}

impl Sleeper for Volume {
    fn wake(&self) {
        self.drive(Caller::Engine, |core, now, out| {
            // Another alarm than this one may be the next.
            if core.alarm.is_some_and(|at| at <= now) {
                core.alarm = None;
            }
            core.machine.on(Event::Tick, now, out);
        });
    }
}

/// A panic in the middle of a turn leaves a volume that nobody can trust; a killed process leaves a
/// log that anybody can.
struct Whole;

impl Drop for Whole {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "walkeep: a volume is in doubt; the process ends, and recovery does the rest"
            );
            std::process::abort();
        }
    }
}

impl Core {
    fn ticket(&mut self) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        ticket
    }
}

/// What a client's thread does itself. A write to the log is a copy into the cache: cheaper than
/// any hand-over. A sync takes long, so only a client that has nothing else under way does it.
fn is_inline(target: Target, op: &FileOp, caller: Caller, alone: bool) -> bool {
    let Caller::Client { .. } = caller else {
        return false;
    };
    match (target, op) {
        (Target::Log, FileOp::Write { .. }) => true,
        (Target::Log, FileOp::Sync) => alone,
        (Target::Data, FileOp::Read { len, .. }) => *len <= SMALL_READ,
        _ => false,
    }
}

const fn waits_for_a_sync(op: &Op) -> bool {
    match op {
        Op::Flush => true,
        Op::Write { fua, .. } | Op::Trim { fua, .. } | Op::Zero { fua, .. } => *fua,
        Op::Read { .. } | Op::Extents { .. } => false,
    }
}

fn named<'a>(file: &'a dyn DiskFile, name: &'a str) -> Named<'a> {
    Named { file, name }
}

fn lock(disk: &dyn crate::disk::Disk, path: &Path) -> Result<Arc<dyn DiskFile>> {
    let fail = |e| Error::file(path, "open", e);
    let file = disk.open(path, Mode::Read).map_err(fail)?;
    match file.lock() {
        Ok(()) => Ok(file),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(Error::Refused(format!(
            "{}: another process uses it: a volume has one server",
            path.display()
        ))),
        Err(e) => Err(Error::file(path, "lock", e)),
    }
}

/// A block device must not have larger blocks than the log is made for: it would tear them.
fn check_block_size(log: &dyn DiskFile, path: &Path, superblock: &Superblock) -> Result<()> {
    let device = log
        .physical_block()
        .map_err(|e| Error::file(path, "inspect", e))?;
    let own = superblock.pbs().bytes();
    match device {
        Some(device) if device as usize > own => Err(Error::Refused(format!(
            "{}: physical block size of the log: expected at least the device's {device}, found \
             {own}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn mark(lsid: u64) -> Mark {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Mark {
        lsid,
        time: since.map_or(0, |since| since.as_secs()),
    }
}

fn failure(error: &std::io::Error) -> Failure {
    Failure {
        no_space: matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)),
        cause: error.to_string(),
    }
}

fn described(error: &Error) -> Failure {
    Failure {
        no_space: false,
        cause: with_causes(error),
    }
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The extents of a range of blocks: what is pending, and what the data has beneath.
fn extents(
    data: &dyn DiskFile,
    start: u64,
    end: u64,
    pending: &[(u64, u64, bool)],
) -> std::io::Result<Vec<Extent>> {
    let unit = LOGICAL_BLOCK as u64;
    let (mut extents, mut at) = (Extents(vec![]), start * unit);
    for (from, to, zero) in pending {
        beneath(data, at, from * unit, &mut extents)?;
        extents.add((to - from) * unit, *zero);
        at = to * unit;
    }
    beneath(data, at, end * unit, &mut extents)?;
    extents.0.truncate(MAX_EXTENTS);
    Ok(extents.0)
}

fn beneath(
    data: &dyn DiskFile,
    mut at: u64,
    end: u64,
    extents: &mut Extents,
) -> std::io::Result<()> {
    while at < end && extents.0.len() <= MAX_EXTENTS {
        let data_at = data.next_data(at)?.unwrap_or(end).min(end);
        extents.add(data_at - at, true);
        let hole_at = match data_at < end {
            true => data.next_hole(data_at)?.min(end),
            false => end,
        };
        extents.add(hole_at - data_at, false);
        at = hole_at;
    }
    Ok(())
}

struct Extents(Vec<Extent>);

impl Extents {
    fn add(&mut self, len: u64, hole: bool) {
        match self.0.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.hole == hole => last.len += len,
            _ => self.0.push(Extent {
                len,
                hole,
                zero: hole,
            }),
        }
    }
}

/// Answers one operation; for callers without a queue of their own.
pub fn ask(device: &dyn BlockDevice, op: Op) -> Result<Reply, Refusal> {
    let (tell, told) = channel();
    let done: Done = Box::new(move |result| drop(tell.send(result)));
    device.submit(vec![Request { op, done }]);
    told.recv().unwrap_or(Err(Refusal::ShuttingDown))
}
