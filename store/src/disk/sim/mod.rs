//! A simulated disk, in memory: for tests, and for whoever wants to see a volume fail on purpose.
//!
//! It keeps no more promises than a real disk behind a page cache:
//! * A write is visible at once. It is durable when a later sync *of that file* has returned.
//! * A name is durable when a later [`Disk::sync_dir`] of its directory has returned.
//! * A power cut leaves of all else what it likes ([`SimDisk::power_cut`]).
//! * A failed sync forgets: what it was to write counts as written, some of it never is, and yet
//!   reads show it until the cache is dropped ([`SimDisk::drop_caches`]). The next sync succeeds.
//!
//! Everything random comes from one seed: the same calls in the same order give the same disk.
//! Nothing here knows what the files mean.

mod content;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use walkeep_wire::random::Random;

use self::content::{Change, Content, SECTOR};
use super::{Disk, DiskFile, Mode, directory_of};

/// A simulated disk with one root directory, which relative paths begin at too. Clones are the same
/// disk; [`kill`](Self::kill) makes a copy.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads of a file.
    Read,
    /// All that changes a file or a name, without the syncs. A failed write leaves some of its
    /// sectors behind.
    Write,
    /// Syncs of a file or a directory.
    Sync,
}

/// Which operations a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// One of them, after so many more that are spared.
    After(u64),
    /// Each by chance, once in so many times; 1 is always.
    OneIn(u64),
}

/// An error to come.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The file, by the path it was opened by.
    pub path: PathBuf,
    /// What fails.
    pub operation: Operation,
    /// Which of them fail.
    pub when: When,
    /// The error, such as `libc::EIO` or `libc::ENOSPC`.
    pub errno: i32,
}

/// Operations since the disk was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Reads of files.
    pub reads: u64,
    /// All that changes a file or a name, without the syncs.
    pub writes: u64,
    /// Syncs of files and directories.
    pub syncs: u64,
}

/// The cause of every error after the power went ([`SimDisk::cut_after`]).
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the power of the simulated disk is gone")]
pub struct PowerGone;

impl PowerGone {
    /// True if that is what an error is about.
    pub fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Self>())
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self::from_state(State {
            random: Random::new(seed),
            files: BTreeMap::new(),
            dirs: BTreeMap::from([(ROOT, Dir::default())]),
            next_id: ROOT + 1,
            faults: Vec::new(),
            counts: Operations::default(),
            left: None,
            is_gone: false,
        })
    }

    fn from_state(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// A copy of the disk as it may be after a power cut now: each file with all that was synced and
    /// any part of the rest, in any order, writes torn at sectors of 512 bytes; each directory with
    /// any first part of its changes.
    ///
    /// This disk stays as it is, so one moment can be cut in many ways.
    pub fn power_cut(&self, random: &mut Random) -> Self {
        let mut state = self.state.lock().restarted();
        state.random = Random::new(random.next_u64());
        for dir in state.dirs.values_mut() {
            let kept = random.below(dir.pending.len() as u64 + 1) as usize;
            dir.make_durable(kept);
            dir.pending.clear();
            dir.names = dir.durable.clone();
        }
        for file in state.files.values_mut() {
            let pending = std::mem::take(&mut file.pending);
            file.durable.survive(&pending, random);
            file.cached = file.durable.clone();
        }
        state.collect();
        Self::from_state(state)
    }

    /// A copy of the disk as it is when its user is killed now: everything written is there, and
    /// still not durable. No file is open, no fault is set, and the power is on.
    pub fn kill(&self) -> Self {
        let mut state = self.state.lock().restarted();
        state.collect();
        Self::from_state(state)
    }

    /// After so many more writes and syncs ([`Operations`]) the power goes: the next one and all
    /// operations after it fail with [`PowerGone`], and the next one may have had an effect.
    pub fn cut_after(&self, operations: u64) {
        self.state.lock().left = Some(operations);
    }

    /// Counts since the disk was made.
    pub fn operations(&self) -> Operations {
        self.state.lock().counts
    }

    /// Lets operations fail.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// No more faults.
    pub fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// Reads come from the disk from now on: what a failed sync lost is gone.
    pub fn drop_caches(&self) {
        for file in self.state.lock().files.values_mut() {
            file.cached = file.durable.clone();
            for change in &file.pending {
                file.cached.apply(change);
            }
        }
    }

    /// Inverts the bits of `mask` in one byte, as a rotting medium does.
    pub fn flip_bits(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        self.damage(path, |content| {
            let mut byte = [0];
            content.read(&mut byte, offset);
            content.write(&[byte[0] ^ mask], offset);
        })
    }

    /// Puts a range back to what it was on an older copy of the disk, as a disk does that drops a
    /// write and says nothing.
    pub fn make_stale(&self, path: &Path, offset: u64, bytes: u64, old: &Self) -> io::Result<()> {
        let mut stale = vec![0; bytes as usize];
        {
            let old = old.state.lock();
            old.file_at(path)?.cached.read(&mut stale, offset);
        }
        self.damage(path, |content| content.write(&stale, offset))
    }

    fn damage(&self, path: &Path, change: impl Fn(&mut Content)) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.file_id(path)?;
        let file = state.file_mut(id)?;
        change(&mut file.cached);
        change(&mut file.durable);
        Ok(())
    }

    /// Puts a file there, durable at once, with its name and its directories; not an operation.
    pub fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let mut dir = ROOT;
        for name in names(directory_of(path))? {
            let id = state.next_id;
            let entry = state.dir_mut(dir)?.durable_entry(name, Entry::Dir(id));
            state.next_id += 1;
            let Entry::Dir(found) = entry else {
                return Err(ErrorKind::NotADirectory.into());
            };
            state.dirs.entry(found).or_default();
            dir = found;
        }
        let id = state.next_id;
        state.next_id += 1;
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        let Entry::File(id) = state.dir_mut(dir)?.durable_entry(name, Entry::File(id)) else {
            return Err(ErrorKind::IsADirectory.into());
        };
        let mut content = Content::default();
        content.write(bytes, 0);
        let file = state.files.entry(id).or_default();
        file.cached = content.clone();
        file.durable = content;
        file.pending.clear();
        Ok(())
    }

    /// All bytes of a file as reads show them; not an operation.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let content = &state.file_at(path)?.cached;
        let mut bytes = vec![0; content.size() as usize];
        content.read(&mut bytes, 0);
        Ok(bytes)
    }

    fn handle(&self, state: &mut State, id: u64, path: &Path, mode: Mode) -> io::Result<SimFile> {
        let opener = state.new_id();
        let file = state.file_mut(id)?;
        file.openers += 1;
        Ok(SimFile {
            disk: self.clone(),
            id,
            opener,
            path: path.to_owned(),
            is_writable: mode != Mode::Read,
            seen_failures: AtomicU64::new(file.failures),
        })
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

const ROOT: u64 = 0;

#[derive(Clone)]
struct State {
    random: Random,
    files: BTreeMap<u64, File>,
    dirs: BTreeMap<u64, Dir>,
    next_id: u64,
    faults: Vec<Fault>,
    counts: Operations,
    /// Changes until the power goes.
    left: Option<u64>,
    is_gone: bool,
}

#[derive(Clone, Default)]
struct File {
    /// What reads show.
    cached: Content,
    durable: Content,
    /// Changes since the last sync.
    pending: Vec<Change>,
    /// Failed syncs, and the error of the last one. Every descriptor hears of it once.
    failures: u64,
    failure: i32,
    locked_by: Option<u64>,
    openers: u64,
}

impl File {
    fn change(&mut self, change: Change) {
        self.cached.apply(&change);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            self.durable.apply(&change);
        }
    }

    fn fail_sync(&mut self, errno: i32, random: &mut Random) {
        let pending = std::mem::take(&mut self.pending);
        self.durable.survive(&pending, random);
        self.failures += 1;
        self.failure = errno;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(u64),
    Dir(u64),
}

type Names = BTreeMap<OsString, Entry>;

/// Names set and removed together.
type NameChange = Vec<(OsString, Option<Entry>)>;

#[derive(Clone, Default)]
struct Dir {
    names: Names,
    durable: Names,
    pending: Vec<NameChange>,
}

impl Dir {
    fn change(&mut self, change: NameChange) {
        apply_names(&mut self.names, change.clone());
        self.pending.push(change);
    }

    /// Makes the first `count` of the pending changes durable.
    fn make_durable(&mut self, count: usize) {
        for change in self.pending.drain(..count) {
            apply_names(&mut self.durable, change);
        }
    }

    /// The entry of a name, or a new one, as if it had always been there.
    fn durable_entry(&mut self, name: OsString, new: Entry) -> Entry {
        let entry = *self.names.entry(name.clone()).or_insert(new);
        self.durable.insert(name, entry);
        entry
    }

    /// Everything that is under a name now or may be after a power cut.
    fn entries(&self) -> impl Iterator<Item = Entry> {
        let pending = self
            .pending
            .iter()
            .flatten()
            .filter_map(|(_, entry)| *entry);
        let names = self.names.values().chain(self.durable.values());
        names.copied().chain(pending)
    }
}

fn apply_names(names: &mut Names, change: NameChange) {
    for (name, entry) in change {
        match entry {
            Some(entry) => names.insert(name, entry),
            None => names.remove(&name),
        };
    }
}

/// The names a path is made of.
fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let steps = path.components().filter_map(|step| match step {
        Component::Normal(name) => Some(Ok(name.to_owned())),
        Component::RootDir | Component::CurDir => None,
        Component::ParentDir | Component::Prefix(_) => Some(Err(ErrorKind::InvalidInput.into())),
    });
    steps.collect()
}

/// What becomes of a change.
enum Fate {
    Good,
    /// It fails with this error.
    Bad(i32),
    /// The power goes while it is under way.
    Cut,
}

fn power_gone() -> io::Error {
    io::Error::other(PowerGone)
}

impl State {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn dir_mut(&mut self, id: u64) -> io::Result<&mut Dir> {
        self.dirs
            .get_mut(&id)
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn file_mut(&mut self, id: u64) -> io::Result<&mut File> {
        self.files
            .get_mut(&id)
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn file(&self, id: u64) -> io::Result<&File> {
        self.files
            .get(&id)
            .ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn dir_id(&self, path: &Path) -> io::Result<u64> {
        let mut id = ROOT;
        for name in names(path)? {
            match self.dirs.get(&id).and_then(|dir| dir.names.get(&name)) {
                Some(Entry::Dir(next)) => id = *next,
                Some(Entry::File(_)) => return Err(ErrorKind::NotADirectory.into()),
                None => return Err(ErrorKind::NotFound.into()),
            }
        }
        Ok(id)
    }

    /// The directory of a path, its name there, and what has that name.
    fn place(&self, path: &Path) -> io::Result<(u64, OsString, Option<Entry>)> {
        let dir = self.dir_id(directory_of(path))?;
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        let entry = self.dirs.get(&dir).and_then(|dir| dir.names.get(&name));
        Ok((dir, name, entry.copied()))
    }

    fn file_id(&self, path: &Path) -> io::Result<u64> {
        match self.place(path)?.2 {
            Some(Entry::File(id)) => Ok(id),
            Some(Entry::Dir(_)) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn file_at(&self, path: &Path) -> io::Result<&File> {
        self.file(self.file_id(path)?)
    }

    fn check_power(&self) -> io::Result<()> {
        if self.is_gone {
            Err(power_gone())
        } else {
            Ok(())
        }
    }

    /// The error of the first fault that befalls an operation.
    fn fault(&mut self, operation: Operation, path: &Path) -> Option<i32> {
        let Self { faults, random, .. } = self;
        let found = faults.iter_mut().position(|fault| {
            fault.operation == operation
                && fault.path == path
                && match &mut fault.when {
                    When::After(0) => true,
                    When::After(left) => {
                        *left -= 1;
                        false
                    }
                    When::OneIn(times) => random.one_in(*times),
                }
        })?;
        let errno = faults[found].errno;
        if faults[found].when == When::After(0) {
            faults.remove(found);
        }
        Some(errno)
    }

    fn begin_read(&mut self, path: &Path) -> io::Result<()> {
        self.check_power()?;
        self.counts.reads += 1;
        match self.fault(Operation::Read, path) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    fn begin(&mut self, operation: Operation, path: &Path) -> io::Result<Fate> {
        self.check_power()?;
        match operation {
            Operation::Sync => self.counts.syncs += 1,
            _ => self.counts.writes += 1,
        }
        match &mut self.left {
            Some(0) => {
                self.is_gone = true;
                return Ok(Fate::Cut);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(self.fault(operation, path).map_or(Fate::Good, Fate::Bad))
    }

    /// A change that happens as a whole or not at all.
    fn change(
        &mut self,
        path: &Path,
        apply: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.begin(Operation::Write, path)? {
            Fate::Good => apply(self),
            Fate::Bad(errno) => Err(io::Error::from_raw_os_error(errno)),
            Fate::Cut => {
                if self.random.one_in(2) {
                    apply(self)?;
                }
                Err(power_gone())
            }
        }
    }

    fn write(&mut self, id: u64, path: &Path, change: Change) -> io::Result<()> {
        let error = match self.begin(Operation::Write, path)? {
            Fate::Good => {
                self.file_mut(id)?.change(change);
                return Ok(());
            }
            Fate::Bad(errno) => io::Error::from_raw_os_error(errno),
            Fate::Cut => power_gone(),
        };
        let Change::Write { offset, bytes } = change else {
            return Err(error);
        };
        // The first sectors came through, or all; a later cut may still tear that.
        let whole = offset + bytes.len() as u64;
        let end = offset + self.random.below(bytes.len() as u64 + SECTOR + 1);
        let end = if end < whole {
            end - end % SECTOR
        } else {
            whole
        };
        let bytes = bytes.slice(..end.saturating_sub(offset) as usize);
        self.file_mut(id)?.change(Change::Write { offset, bytes });
        Err(error)
    }

    fn sync(&mut self, id: u64, path: &Path) -> io::Result<u64> {
        match self.begin(Operation::Sync, path)? {
            Fate::Good => self.file_mut(id)?.sync(),
            Fate::Bad(errno) => {
                let mut random = Random::new(self.random.next_u64());
                self.file_mut(id)?.fail_sync(errno, &mut random);
            }
            // What is pending may or may not survive, as with any cut.
            Fate::Cut => return Err(power_gone()),
        }
        Ok(self.file(id)?.failures)
    }

    /// The same without those who use it.
    fn restarted(&self) -> Self {
        let mut state = self.clone();
        for file in state.files.values_mut() {
            (file.locked_by, file.openers, file.failures) = (None, 0, 0);
        }
        state.faults.clear();
        (state.left, state.is_gone) = (None, false);
        state.counts = Operations::default();
        state
    }

    /// Forgets what has no name, can get none back, and is not open.
    fn collect(&mut self) {
        let mut kept = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            let Some(dir) = self.dirs.get(&id) else {
                continue;
            };
            for entry in dir.entries() {
                match entry {
                    Entry::File(id) => {
                        kept.insert(id);
                    }
                    Entry::Dir(id) if kept.insert(id) => open.push(id),
                    Entry::Dir(_) => {}
                }
            }
        }
        self.dirs.retain(|id, _| kept.contains(id));
        self.files
            .retain(|id, file| kept.contains(id) || file.openers > 0);
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_power()?;
        if mode == Mode::Create {
            let (dir, name, entry) = state.place(path)?;
            if entry.is_some() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            state.change(path, |state| {
                let id = state.new_id();
                state.files.insert(id, File::default());
                state
                    .dir_mut(dir)?
                    .change(vec![(name, Some(Entry::File(id)))]);
                Ok(())
            })?;
        }
        let id = state.file_id(path)?;
        Ok(Arc::new(self.handle(&mut state, id, path, mode)?))
    }

    fn create_unnamed(&self, dir: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_power()?;
        state.dir_id(dir)?;
        let id = state.new_id();
        state.files.insert(id, File::default());
        Ok(Arc::new(self.handle(&mut state, id, dir, Mode::Create)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let (from_dir, from_name, entry) = state.place(from)?;
        let (to_dir, to_name, old) = state.place(to)?;
        let entry = entry.ok_or(ErrorKind::NotFound)?;
        if matches!(old, Some(Entry::Dir(_))) {
            return Err(ErrorKind::IsADirectory.into());
        }
        if old == Some(entry) {
            return Ok(());
        }
        state.change(to, |state| {
            let (removed, set) = ((from_name, None), (to_name, Some(entry)));
            if from_dir == to_dir {
                state.dir_mut(to_dir)?.change(vec![removed, set]);
                return Ok(());
            }
            state.dir_mut(from_dir)?.change(vec![removed]);
            state.dir_mut(to_dir)?.change(vec![set]);
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.file_id(path)?;
        let (dir, name, _) = state.place(path)?;
        state.change(path, |state| {
            state.dir_mut(dir)?.change(vec![(name, None)]);
            Ok(())
        })
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let (dir, name, entry) = state.place(path)?;
        if entry.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.change(path, |state| {
            let id = state.new_id();
            state.dirs.insert(id, Dir::default());
            state
                .dir_mut(dir)?
                .change(vec![(name, Some(Entry::Dir(id)))]);
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let id = state.dir_id(path)?;
        match state.begin(Operation::Sync, path)? {
            Fate::Good => {}
            Fate::Bad(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Fate::Cut => return Err(power_gone()),
        }
        let dir = state.dir_mut(id)?;
        dir.make_durable(dir.pending.len());
        state.collect();
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.state.lock();
        state.begin_read(path)?;
        let id = state.dir_id(path)?;
        Ok(state.dir_mut(id)?.names.keys().cloned().collect())
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
    opener: u64,
    path: PathBuf,
    is_writable: bool,
    seen_failures: AtomicU64,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::EBADF))
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.disk.state.lock();
        state.change(&self.path, |state| {
            state.file_mut(self.id)?.change(change);
            Ok(())
        })
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimFile").field(&self.path).finish()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Ok(file) = self.disk.state.lock().file_mut(self.id) {
            file.openers -= 1;
            file.locked_by = file.locked_by.filter(|opener| *opener != self.opener);
        }
    }
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        let state = self.disk.state.lock();
        state.check_power()?;
        Ok(state.file(self.id)?.cached.size())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.begin_read(&self.path)?;
        let content = &state.file(self.id)?.cached;
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > content.size()) && !into.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        content.read(into, offset);
        Ok(())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let bytes = parts.iter().flat_map(|part| part.iter().copied());
        let bytes: Bytes = bytes.collect::<Vec<u8>>().into();
        if offset
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut state = self.disk.state.lock();
        state.write(self.id, &self.path, Change::Write { offset, bytes })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let failures = state.sync(self.id, &self.path)?;
        if self.seen_failures.swap(failures, Ordering::Relaxed) == failures {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(state.file(self.id)?.failure))
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.change(Change::SetSize(bytes))
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let (dir, name, entry) = state.place(path)?;
        if entry.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.change(path, |state| {
            state
                .dir_mut(dir)?
                .change(vec![(name, Some(Entry::File(self.id)))]);
            Ok(())
        })
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(Change::Clear { offset, bytes })
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(Change::Clear { offset, bytes })
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(Change::Clear { offset, bytes })
    }

    fn physical_block(&self) -> io::Result<Option<u32>> {
        self.size().map(|_| None)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let state = self.disk.state.lock();
        state.check_power()?;
        Ok(state.file(self.id)?.cached.next_data(offset))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let state = self.disk.state.lock();
        state.check_power()?;
        Ok(state.file(self.id)?.cached.next_hole(offset))
    }

    fn lock(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.check_power()?;
        let file = state.file_mut(self.id)?;
        if file.locked_by.is_some_and(|opener| opener != self.opener) {
            return Err(ErrorKind::WouldBlock.into());
        }
        file.locked_by = Some(self.opener);
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests;
