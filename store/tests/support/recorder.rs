//! A real file system on a device that records what is asked of it, and what its files were
//! promised.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use parking_lot::Mutex;
use walkeep_store::block::{BlockDevice, Geometry, Op, Refusal, Reply, Request};
use walkeep_store::nbd::{Address, ExportOptions, Limits, Server};
use walkeep_wire::random::Random;

use super::client::wait_until;

/// Writes, trims, zeroes and flushes, each batch answered before the next one came.
pub type Stream = Vec<Vec<Op>>;

/// A device in memory.
struct Recorder {
    state: Mutex<(Vec<u8>, Stream)>,
}

impl Recorder {
    fn new(size: usize) -> Self {
        Self {
            state: Mutex::new((vec![0; size], vec![])),
        }
    }

    /// Batches so far.
    fn count(&self) -> usize {
        self.state.lock().1.len()
    }
}

/// What an operation does to an image, or reads of it.
pub fn apply(image: &mut [u8], op: &Op) -> Reply {
    let range = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
    match *op {
        Op::Read { offset, len } => {
            let bytes = image[range(offset, len.into())].to_vec();
            return Reply::Data(vec![bytes.into()]);
        }
        Op::Write {
            offset, ref data, ..
        } => image[range(offset, data.len() as u64)].copy_from_slice(data),
        Op::Trim { offset, len, .. } | Op::Zero { offset, len, .. } => {
            image[range(offset, len)].fill(0);
        }
        Op::Flush => {}
        Op::Extents { len, .. } => {
            return Reply::Extents(vec![walkeep_store::block::Extent {
                len,
                hole: false,
                zero: false,
            }]);
        }
    }
    Reply::Done
}

impl BlockDevice for Recorder {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.state.lock().0.len() as u64,
            min_block: 512,
            preferred_block: 4096,
            max_request: 32 << 20,
            read_only: false,
        }
    }

    fn submit(&self, batch: Vec<Request>) {
        let replies: Vec<Reply> = {
            let (image, stream) = &mut *self.state.lock();
            let is_change = |op: &Op| !matches!(op, Op::Read { .. } | Op::Extents { .. });
            let changes = batch.iter().map(|request| request.op.clone());
            let changes: Vec<Op> = changes.filter(is_change).collect();
            stream.extend((!changes.is_empty()).then_some(changes));
            batch.iter().map(|r| apply(image, &r.op)).collect()
        };
        for (request, reply) in batch.into_iter().zip(replies) {
            (request.done)(Ok::<_, Refusal>(reply));
        }
    }
}

/// Something that was begun and made durable while so many batches had come.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub begin: usize,
    pub end: usize,
}

/// A file, its content known by its number.
#[derive(Clone, Debug)]
pub struct Kept {
    pub number: u64,
    pub len: usize,
    pub name: String,
    pub made: Span,
    pub renamed: Option<(String, Span)>,
    pub deleted: Option<Span>,
}

impl Kept {
    pub fn content(&self) -> Vec<u8> {
        let mut bytes = format!("file {} of {} bytes\n", self.number, self.len).into_bytes();
        let mut noise = Random::new(self.number);
        while bytes.len() < self.len {
            bytes.extend(noise.next_u64().to_le_bytes());
        }
        bytes.truncate(self.len);
        bytes
    }
}

/// A recorded life of a file system.
pub struct Recording {
    /// The device when the file system was made.
    pub image: Vec<u8>,
    /// What was asked since.
    pub stream: Stream,
    pub files: Vec<Kept>,
}

/// Runs a program that must end well.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!(
            "{program} {args:?}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        )),
    }
}

/// A mounted ext4 over a recorder; taken down in order when dropped.
struct Mounted {
    recorder: Arc<Recorder>,
    _server: Server,
    dir: tempfile::TempDir,
    fuse: Child,
    device: Option<String>,
    is_mounted: bool,
}

impl Mounted {
    /// The recorder as a loop device.
    fn new(size: usize) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::new(size));
        let server = Server::new(Limits::default());
        let socket = dir.path().join("nbd.sock");
        let options = ExportOptions::default();
        server.add("vol", recorder.clone(), options).unwrap();
        server.listen(&Address::Unix(socket.clone())).unwrap();
        for name in ["fuse", "mount"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let fuse = Command::new("nbdfuse")
            .arg(dir.path().join("fuse"))
            .arg(format!("nbd+unix:///vol?socket={}", socket.display()))
            .spawn()
            .map_err(|e| format!("nbdfuse: {e}"))?;
        let mut mounted = Self {
            recorder,
            _server: server,
            dir,
            fuse,
            device: None,
            is_mounted: false,
        };
        let file = mounted.path("fuse/nbd");
        let mut ended = None;
        while !file.exists() && ended.is_none() {
            ended = mounted.fuse.try_wait().unwrap();
            std::thread::yield_now();
        }
        if let Some(status) = ended {
            return Err(format!("nbdfuse: {status}"));
        }
        let device = run("losetup", &["-f", "--show", file.to_str().unwrap()])?;
        mounted.device = Some(device.trim().to_owned());
        Ok(mounted)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the file system; returns the device's content.
    fn make(&mut self) -> Result<Vec<u8>, String> {
        let device = self.device.clone().unwrap();
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        run("mkfs.ext4", &["-q", "-F", "-E", options, &device])?;
        File::open(&device).unwrap().sync_all().unwrap();
        let image = {
            let (image, stream) = &mut *self.recorder.state.lock();
            stream.clear();
            image.clone()
        };
        let mount = self.path("mount");
        run("mount", &["-t", "ext4", &device, mount.to_str().unwrap()])?;
        self.is_mounted = true;
        Ok(image)
    }

    fn unmount(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.is_mounted) {
            run("umount", &[self.path("mount").to_str().unwrap()])?;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.unmount();
        if let Some(device) = &self.device {
            let _ = run("losetup", &["-d", device]);
        }
        let fuse = self.path("fuse");
        wait_until("nbdfuse to let go", || {
            run("fusermount3", &["-u", fuse.to_str().unwrap()]).is_ok()
                || !fuse.join("nbd").exists()
        });
        let _ = self.fuse.wait();
    }
}

/// What is done to a file system, and noted.
struct Work {
    mounted: Mounted,
    random: Random,
    files: Vec<Kept>,
}

/// Directories of the file system.
const DIRS: u64 = 5;
const STEPS: u64 = 220;

/// Records the life of an ext4 on a device of `size` bytes.
///
/// # Errors
/// Where this machine cannot mount one: what is missing.
pub fn record(size: usize, seed: u64) -> Result<Recording, String> {
    let mut mounted = Mounted::new(size)?;
    let image = mounted.make()?;
    let mut work = Work {
        mounted,
        random: Random::new(seed),
        files: vec![],
    };
    for dir in 0..DIRS {
        fs::create_dir(work.path(&format!("dir{dir}"))).unwrap();
    }
    sync(&work.path(""));
    for number in 0..STEPS {
        work.step(number)?;
    }
    work.mounted.unmount()?;
    let stream = std::mem::take(&mut work.mounted.recorder.state.lock().1);
    Ok(Recording {
        image,
        stream,
        files: work.files,
    })
}

impl Work {
    fn path(&self, name: &str) -> PathBuf {
        self.mounted.path("mount").join(name)
    }

    fn step(&mut self, number: u64) -> Result<(), String> {
        match self.random.below(8) {
            0 => self.rename(number),
            1 | 2 => self.delete(),
            3 => self.scribble(),
            _ => self.create(number),
        }
        if number % 20 == 19 {
            run("fstrim", &[self.path("").to_str().unwrap()])?;
        }
        Ok(())
    }

    /// Runs something that ends with a sync, and notes when.
    fn span(&self, work: impl FnOnce()) -> Span {
        let begin = self.mounted.recorder.count();
        work();
        let end = self.mounted.recorder.count();
        Span { begin, end }
    }

    fn create(&mut self, number: u64) {
        let name = format!("dir{}/f{number}", self.random.below(DIRS));
        let most = 1 << (8 + self.random.below(11));
        let mut kept = Kept {
            number,
            len: 1 + self.random.below(most) as usize,
            name,
            made: Span { begin: 0, end: 0 },
            renamed: None,
            deleted: None,
        };
        let path = self.path(&kept.name);
        kept.made = self.span(|| {
            let mut file = File::create(&path).unwrap();
            file.write_all(&kept.content()).unwrap();
            file.sync_all().unwrap();
            sync(path.parent().unwrap());
        });
        self.files.push(kept);
    }

    /// One of the files that are still as they were made.
    fn pick(&mut self) -> Option<usize> {
        let is_free = |kept: &Kept| kept.renamed.is_none() && kept.deleted.is_none();
        let all = self.files.iter().enumerate();
        let free: Vec<usize> = all.filter(|(_, k)| is_free(k)).map(|(at, _)| at).collect();
        (free.len() > 10).then(|| free[self.random.below(free.len() as u64) as usize])
    }

    fn rename(&mut self, number: u64) {
        let Some(at) = self.pick() else {
            return;
        };
        let new = format!("dir{}/r{number}", self.random.below(DIRS));
        let (from, to) = (self.path(&self.files[at].name), self.path(&new));
        let span = self.span(|| {
            fs::rename(&from, &to).unwrap();
            sync(to.parent().unwrap());
            sync(from.parent().unwrap());
        });
        self.files[at].renamed = Some((new, span));
    }

    fn delete(&mut self) {
        let Some(at) = self.pick() else {
            return;
        };
        let path = self.path(&self.files[at].name);
        let span = self.span(|| {
            fs::remove_file(&path).unwrap();
            sync(path.parent().unwrap());
        });
        self.files[at].deleted = Some(span);
    }

    /// Writes that nobody waits for.
    fn scribble(&mut self) {
        let bytes = vec![self.random.next_u64() as u8; 1 << (12 + self.random.below(9))];
        let name = format!("noise{}", self.random.below(4));
        fs::write(self.path(&name), bytes).unwrap();
    }
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}
