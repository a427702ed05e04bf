//! A real ext4 on a WAL device whose disk loses power, 200 times: its requests are recorded once
//! and replayed onto a volume on a simulated disk, which is cut, also during recovery. What comes
//! back is a prefix of the requests, a sound file system, and has every file that was synced.
//!
//! `WALKEEP_CUTS` sets another number of cuts, `WALKEEP_SEED` another seed.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

#[path = "support/client.rs"]
mod client;
#[path = "support/history.rs"]
mod history;
#[path = "support/queue.rs"]
mod queue;
#[path = "support/recorder.rs"]
mod recorder;

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use walkeep_store::block::{BlockDevice, Op, Request};
use walkeep_store::disk::sim::SimDisk;
use walkeep_store::disk::{Disk, Mode};
use walkeep_store::wal_device::state::{Mark, State};
use walkeep_store::wal_device::{Control, Host, Limits, Paths, Volume};
use walkeep_wire::ldev::Superblock;
use walkeep_wire::ldev::ring::{primary_position, secondary_position};
use walkeep_wire::random::Random;
use walkeep_wire::{PhysicalBlock, Uuid};

use history::{BLOCK, Change, prefixes};
use queue::Queue;
use recorder::{Kept, Recording, Stream, record};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Blocks of the largest record: what is longer may be torn there.
const RECORD: usize = 1024;
const HOUR: u64 = 3_600_000_000;

/// What came about; each must.
#[derive(Debug, Default)]
struct Coverage {
    cuts: AtomicU64,
    cuts_in_recovery: AtomicU64,
    packs_recovered: AtomicU64,
    ring_wraps: AtomicU64,
    checkpoints: AtomicU64,
    /// Requests that were answered and not synced, and are gone.
    lost: AtomicU64,
    /// Requests that were not answered, and are there.
    extra: AtomicU64,
    journals_replayed: AtomicU64,
    files_read: AtomicU64,
}

impl Coverage {
    fn all(&self) -> [&AtomicU64; 9] {
        [
            &self.cuts,
            &self.cuts_in_recovery,
            &self.packs_recovered,
            &self.ring_wraps,
            &self.checkpoints,
            &self.lost,
            &self.extra,
            &self.journals_replayed,
            &self.files_read,
        ]
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// A volume's disk before the first request.
struct Template {
    disk: SimDisk,
    paths: Paths,
}

impl Template {
    fn new(image: &[u8], pbs: PhysicalBlock, ring: u64) -> Self {
        let paths = Paths {
            log: "/log".into(),
            data: "/data".into(),
            state: "/state".into(),
        };
        let disk = SimDisk::new(0);
        let create = |path: &Path, size| {
            let file = disk.open(path, Mode::Create).unwrap();
            file.set_size(size).unwrap();
            file
        };
        let data = create(&paths.data, SIZE);
        for (block, at) in image.chunks(4096).zip((0..).step_by(4096)) {
            if block.iter().any(|byte| *byte != 0) {
                data.write_at(&[IoSlice::new(block)], at).unwrap();
            }
        }
        let log = create(&paths.log, ring);
        let blocks = SIZE / BLOCK as u64;
        let superblock = Superblock::format(Uuid([7; 16]), 7, "v", blocks, ring, pbs).unwrap();
        let bytes = superblock.encode();
        for position in [primary_position(), secondary_position(pbs)] {
            log.write_at(&[IoSlice::new(&bytes)], position).unwrap();
        }
        // Nobody ships the log: it may go round and round.
        let mut state = State::fresh(&superblock);
        state.overflow = Some(Mark { lsid: 0, time: 0 });
        state.save(&disk, &paths.state).unwrap();
        data.sync().unwrap();
        log.sync().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        Self { disk, paths }
    }
}

/// Time decides nothing: what is done follows from what is asked.
fn limits(random: &mut Random) -> Limits {
    Limits {
        memory: MIB << random.below(4),
        flights: 1 + random.below(16) as usize,
        unsynced: (64 << 10) << random.below(6),
        unsynced_age: HOUR,
        behind_age: HOUR,
        checkpoint_age: HOUR,
        retry: HOUR,
        hold: HOUR,
        ..Limits::default()
    }
}

/// How far a replay came: batches asked for, and answered.
struct Progress {
    asked: usize,
    answered: usize,
}

/// Replays a stream; from batch `cut` on the disk loses power soon.
fn replay(
    volume: &Volume,
    queue: &Queue,
    stream: &Stream,
    random: &mut Random,
    (disk, cut): (&SimDisk, usize),
) -> Progress {
    for (number, batch) in stream.iter().enumerate() {
        if number == cut {
            disk.cut_after(random.below(12));
        }
        for _ in 0..random.below(3) {
            queue.step();
        }
        let outcomes = Arc::new(Mutex::new(vec![]));
        let request = |op: &Op| {
            let outcomes = outcomes.clone();
            Request {
                op: op.clone(),
                done: Box::new(move |outcome| outcomes.lock().push(outcome.is_ok())),
            }
        };
        volume.submit(batch.iter().map(request).collect());
        while outcomes.lock().len() < batch.len() && !queue.is_gone() {
            assert!(queue.step(), "batch {number}: no answer, and nothing to do");
        }
        let outcomes = outcomes.lock();
        if outcomes.len() < batch.len() || outcomes.contains(&false) {
            return Progress {
                asked: number + 1,
                answered: number,
            };
        }
    }
    Progress {
        asked: stream.len(),
        answered: stream.len(),
    }
}

/// A stream as changes of records, and where in them each batch ends.
struct Changes {
    base: Vec<u64>,
    all: Vec<Change>,
    ends: Vec<usize>,
    /// The changes that are durable when the batch was answered.
    durable: Vec<usize>,
}

impl Changes {
    fn of(recording: &Recording) -> Self {
        let mut changes = Self {
            base: ids(&recording.image),
            all: vec![],
            ends: vec![],
            durable: vec![],
        };
        let mut durable = 0;
        for batch in &recording.stream {
            let before = changes.all.len();
            for op in batch {
                let fua = changes.add(op);
                durable = match op {
                    Op::Flush => durable.max(before),
                    _ if fua => changes.all.len(),
                    _ => durable,
                };
            }
            changes.ends.push(changes.all.len());
            changes.durable.push(durable);
        }
        changes
    }

    /// Adds a request; true if it asked for durability.
    fn add(&mut self, op: &Op) -> bool {
        let (offset, ids, most, fua) = match *op {
            Op::Write {
                offset,
                ref data,
                fua,
            } => (offset, ids(data), RECORD, fua),
            Op::Zero {
                offset, len, fua, ..
            } => (offset, vec![0; len as usize / BLOCK], RECORD, fua),
            Op::Trim { offset, len, fua } => {
                (offset, vec![0; len as usize / BLOCK], usize::MAX, fua)
            }
            Op::Read { .. } | Op::Flush | Op::Extents { .. } => return false,
        };
        let mut start = offset as usize / BLOCK;
        for ids in ids.chunks(most) {
            let ids = ids.to_vec();
            let change = Change { start, ids };
            start = change.end();
            self.all.push(change);
        }
        fua
    }
}

/// What a list says of so many batches.
fn after(list: &[usize], batches: usize) -> usize {
    batches.checked_sub(1).map_or(0, |last| list[last])
}

/// A number for each block, 0 for zeros.
fn ids(bytes: &[u8]) -> Vec<u64> {
    let id = |block: &[u8]| {
        let words = block
            .as_chunks::<8>()
            .0
            .iter()
            .map(|w| u64::from_le_bytes(*w));
        let (sum, any) = words.fold((1u64, 0), |(sum, any), word| {
            let mixed = (sum.rotate_left(9) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed, any | word)
        });
        if any == 0 { 0 } else { sum | 1 }
    };
    bytes.chunks(BLOCK).map(id).collect()
}

struct Proof {
    seed: u64,
    recording: Recording,
    changes: Changes,
    templates: Vec<Template>,
    coverage: Coverage,
}

impl Proof {
    fn cut(&self, number: u64) {
        let mut random = Random::new(self.seed ^ number << 32);
        let template = &self.templates[number as usize % self.templates.len()];
        let mut disk = template.disk.power_cut(&mut random);
        let limits = limits(&mut random);
        let stream = &self.recording.stream;
        let cut = random.below(stream.len() as u64) as usize;
        let queue = Arc::new(Queue::new(random.next_u64()));
        let host = Host::with(Arc::new(disk.clone()), queue.clone()).unwrap();
        let (volume, _) = Volume::open(&host, &template.paths, limits).unwrap();
        let progress = replay(&volume, &queue, stream, &mut random, (&disk, cut));
        let counters = volume.status().counters;
        drop((volume, host));
        add(&self.coverage.cuts, 1);
        add(&self.coverage.ring_wraps, counters.ring_wraps);
        add(&self.coverage.checkpoints, counters.checkpoints);

        // Killed only, the volume has all it answered; without power, what it made durable.
        let changes = &self.changes;
        let durable = after(&changes.durable, progress.answered);
        let mut least = after(&changes.ends, progress.answered);
        let mut crash = |disk: &SimDisk, random: &mut Random| {
            if random.one_in(3) {
                return disk.kill();
            }
            least = durable;
            disk.power_cut(random)
        };
        disk = crash(&disk, &mut random);
        loop {
            let in_recovery = random.one_in(2);
            if in_recovery {
                let most = 1 << random.below(11);
                disk.cut_after(random.below(most));
            }
            let host = Host::with(Arc::new(disk.clone()), queue.clone()).unwrap();
            if let Ok((_, recovered)) = Volume::open(&host, &template.paths, limits) {
                add(&self.coverage.packs_recovered, recovered.packs);
                break;
            }
            assert!(in_recovery, "recovery failed without a reason");
            add(&self.coverage.cuts_in_recovery, 1);
            disk = crash(&disk, &mut random);
        }
        // What recovery did is durable.
        let disk = disk.power_cut(&mut random);
        let image = disk.contents(&template.paths.data).unwrap();
        self.check_prefix(&image, &progress, least);
        self.check_files(&image, &progress);
    }

    fn check_prefix(&self, image: &[u8], progress: &Progress, least: usize) {
        let changes = &self.changes;
        let answered = after(&changes.ends, progress.answered);
        let asked = after(&changes.ends, progress.asked);
        let counts = prefixes(
            changes.base.clone(),
            &changes.all[..asked],
            least,
            &ids(image),
        );
        let counts = counts.unwrap_or_else(|why| panic!("{why}"));
        add(
            &self.coverage.lost,
            u64::from(counts.iter().all(|n| *n < answered)),
        );
        add(
            &self.coverage.extra,
            u64::from(counts.iter().all(|n| *n > answered)),
        );
    }

    /// The file system is sound after its journal was replayed, and has its files.
    fn check_files(&self, image: &[u8], progress: &Progress) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len(image.len() as u64).unwrap();
        for (chunk, at) in image.chunks(4096).zip((0..).step_by(4096)) {
            if chunk.iter().any(|byte| *byte != 0) {
                file.write_all_at(chunk, at).unwrap();
            }
        }
        let journal = e2fsck(&["-y", "-E", "journal_only"], &path);
        assert!(journal.0 <= 1, "{}", journal.1);
        let replayed = journal.1.contains("recovering journal");
        add(&self.coverage.journals_replayed, u64::from(replayed));
        let check = e2fsck(&["-fn"], &path);
        assert_eq!(check.0, 0, "{}", check.1);
        let out = dir.path().join("files");
        fs::create_dir(&out).unwrap();
        let dump = format!("rdump / {}", out.display());
        recorder::run("debugfs", &["-R", &dump, path.to_str().unwrap()]).unwrap();
        for kept in &self.recording.files {
            self.check_file(kept, &out, progress);
        }
    }

    fn check_file(&self, kept: &Kept, out: &Path, progress: &Progress) {
        let Progress { asked, answered } = *progress;
        let mut names = vec![&kept.name];
        if let Some((new, span)) = &kept.renamed {
            if span.end <= answered {
                names.clear();
            }
            if span.begin < asked {
                names.push(new);
            }
        }
        let found: Vec<_> = names
            .iter()
            .filter(|name| out.join(name).exists())
            .collect();
        let is_durable = kept.made.end <= answered;
        let may_be_gone = kept.deleted.is_some_and(|span| span.begin < asked);
        let is_gone = kept.deleted.is_some_and(|span| span.end <= answered);
        assert!(found.len() <= 1, "{kept:?}: has two names");
        assert!(!is_gone || found.is_empty(), "{kept:?}: is there again");
        if let Some(name) = found.first()
            && is_durable
        {
            let content = fs::read(out.join(name)).unwrap();
            assert!(content == kept.content(), "{kept:?}: another content");
            add(&self.coverage.files_read, 1);
        } else {
            assert!(!is_durable || may_be_gone, "{kept:?}: is lost");
        }
    }
}

/// Exit status and output.
fn e2fsck(args: &[&str], image: &Path) -> (i32, String) {
    let output = Command::new("e2fsck")
        .args(args)
        .arg(image)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code().unwrap(), text)
}

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap())
}

#[test]
fn ext4_survives_power_cuts() {
    let (seed, cuts) = (number("WALKEEP_SEED", 1), number("WALKEEP_CUTS", 200));
    println!("WALKEEP_SEED={seed} WALKEEP_CUTS={cuts}");
    let recording = match record(SIZE as usize, seed) {
        Ok(recording) => recording,
        Err(missing) => {
            println!("skipped: no ext4 can be mounted over nbdfuse here: {missing}");
            return;
        }
    };
    let count = |kind: fn(&Op) -> bool| {
        recording
            .stream
            .iter()
            .flatten()
            .filter(|op| kind(op))
            .count()
    };
    let flushes = count(|op| matches!(op, Op::Flush));
    let trims = count(|op| matches!(op, Op::Trim { .. } | Op::Zero { .. }));
    println!(
        "{} batches, {} requests, {flushes} flushes, {trims} trims, {} files",
        recording.stream.len(),
        count(|_| true),
        recording.files.len()
    );
    assert!(flushes > 0 && trims > 0);
    let rings = [4, 8].map(|mib| mib * MIB);
    let sizes = [PhysicalBlock::B512, PhysicalBlock::B4096];
    let templates = rings
        .iter()
        .flat_map(|ring| sizes.map(|pbs| Template::new(&recording.image, pbs, *ring)));
    let proof = Proof {
        seed,
        changes: Changes::of(&recording),
        templates: templates.collect(),
        recording,
        coverage: Coverage::default(),
    };
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= cuts {
                        return;
                    }
                    proof.cut(number);
                }
            });
        }
    });
    println!("{:#?}", proof.coverage);
    let is_zero = |counter: &&AtomicU64| counter.load(Ordering::Relaxed) == 0;
    assert!(
        !proof.coverage.all().iter().any(is_zero),
        "something never happened"
    );
}
