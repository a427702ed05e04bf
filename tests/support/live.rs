//! A volume served by a process of its own, clients that load it, and what its log ships.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use walkeep_store::nbd::Address;
use walkeep_store::nbd::proto::{SIMPLE_REPLY_MAGIC, command};
use walkeep_store::volume::{ControlClient, Entry, Home};
use walkeep_wire::logpack::RecordKind;
use walkeep_wire::random::Random;
use walkeep_wire::wlog::{Reader, Step};

use super::blocks::{describe, sequences};
use super::client::{Client, PATIENCE, request_bytes};
use super::history::{BLOCK, Change};
use super::{Walkeep, text};

/// Each connection writes to a part of its own.
pub const CONNECTIONS: usize = 4;
const PART_BLOCKS: usize = 4 << 20 >> 9;
pub const BLOCKS: usize = CONNECTIONS * PART_BLOCKS;
/// Blocks of the largest request.
const LARGEST: u64 = 512;
const FUA: u16 = 1;

/// The part of a connection.
pub fn part(connection: usize) -> Range<usize> {
    connection * PART_BLOCKS..(connection + 1) * PART_BLOCKS
}

/// A volume "v" and who works on it.
pub struct Live {
    pub walkeep: Walkeep,
    pub number: u64,
}

impl Live {
    /// A log of any size: a new volume would get one of 16 MiB or more.
    pub fn create(number: u64, log_mib: u64, pbs: u32) -> Self {
        let walkeep = Walkeep::new();
        let size = (BLOCKS * BLOCK) as u64;
        for (name, bytes) in [("v.data", size), ("v.log", log_mib << 20)] {
            let file = File::create(walkeep.path(name)).unwrap();
            file.set_len(bytes).unwrap();
        }
        walkeep.ok(&format!(
            "ldev format v.log --data-size {size} --block-size {pbs}"
        ));
        walkeep.ok("volume create v --data v.data --log v.log --adopt");
        Self { walkeep, number }
    }

    pub fn entry(&self) -> Entry {
        let home = Home::of_process(Some(self.walkeep.path("home"))).unwrap();
        home.find(&"v".parse().unwrap()).unwrap()
    }

    pub fn control(&self) -> ControlClient {
        ControlClient::connect(&self.entry()).unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        match self.entry().nbd_address() {
            Address::Unix(path) => path,
            other => panic!("{other}"),
        }
    }

    /// Starts a process that serves the volume; it may not serve yet.
    pub fn start(&self) -> Server {
        let mut child = self.walkeep.command();
        let mut child = child
            .args(["volume", "serve", "v"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let lines = stdout.lines().map_while(Result::ok);
            lines
                .take_while(|line| tell.send(line.clone()).is_ok())
                .count()
        });
        Server { child, lines }
    }

    /// Starts a process that serves the volume, and returns how many packs it recovered.
    pub fn serve(&self) -> (Server, u64) {
        let server = self.start();
        let recovered = server.ready(PATIENCE);
        let recovered = recovered.unwrap_or_else(|| panic!("the volume is not served"));
        (server, recovered)
    }

    /// All of the volume, read by a client.
    pub fn image(&self) -> Vec<u64> {
        const STEP: usize = 1 << 20;
        let mut client = Client::ready(&self.socket(), "v");
        let steps = (0..BLOCKS * BLOCK).step_by(STEP);
        let read = |at: usize| {
            let bytes = client.read_at(at as u64, STEP as u32);
            sequences(self.number, at / BLOCK, &bytes)
        };
        steps.flat_map(read).collect()
    }

    /// An image file as blocks.
    pub fn blocks_of(&self, name: &str) -> Vec<u64> {
        let bytes = std::fs::read(self.walkeep.path(name)).unwrap();
        sequences(self.number, 0, &bytes)
    }

    /// An image file of zeros.
    pub fn zeros(&self, name: &str) {
        let file = File::create(self.walkeep.path(name)).unwrap();
        file.set_len((BLOCKS * BLOCK) as u64).unwrap();
    }

    /// The range of a wlog, and its changes in order. Its packs follow each other.
    pub fn wlog(&self, name: &str) -> (Range<u64>, Vec<Change>) {
        let file = File::open(self.walkeep.path(name)).unwrap();
        let mut reader = Reader::new(file, name);
        let begin = reader.file_header().unwrap().begin_lsid;
        let (mut lsid, mut changes, mut data) = (begin, vec![], vec![]);
        while let Some(step) = reader.next_step().unwrap() {
            let Step::Pack(pack) = step else {
                continue;
            };
            assert_eq!(pack.lsid, lsid, "{name}: a hole between packs");
            lsid = pack.next_lsid();
            while let Some(record) = reader.read_data(&mut data).unwrap() {
                let start = record.address as usize;
                changes.extend(match record.kind {
                    RecordKind::Padding => None,
                    RecordKind::Discard => Some(Change::zeros(start, record.blocks as usize)),
                    RecordKind::Data => Some(Change {
                        start,
                        ids: sequences(self.number, start, &data),
                    }),
                });
            }
        }
        (begin..lsid, changes)
    }
}

/// A process that serves the volume; it is killed when dropped.
pub struct Server {
    child: Child,
    lines: Receiver<String>,
}

impl Server {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Packs recovered, when the volume is served; `None` if that takes longer.
    pub fn ready(&self, patience: Duration) -> Option<u64> {
        let deadline = Instant::now() + patience;
        let mut recovered = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the server is gone"),
            };
            if line.starts_with("v: served at") {
                return Some(recovered);
            }
            if let Some(rest) = line.strip_prefix("v: recovered ") {
                recovered = rest.split(' ').next().unwrap().parse().unwrap();
            }
        }
    }

    /// Kills the process as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a connection has asked for, in this order, and what of it must be there after a crash.
#[derive(Clone, Default)]
pub struct Sent {
    pub changes: Vec<Change>,
    pub least: usize,
}

/// How clients load a volume.
#[derive(Clone, Copy)]
pub struct Style {
    pub seed: u64,
    /// Distinguishes the sequences of this load from those of others.
    pub life: u64,
    /// Requests in flight on a connection.
    pub depth: usize,
    /// Blocks of the largest request.
    pub largest: u64,
}

/// Clients at work until the server is gone or they are told to stop.
pub struct Load {
    sent: Vec<Arc<Mutex<Sent>>>,
    bytes: Arc<AtomicU64>,
    stop: Sender<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Starts the clients; `crossed` is told when they have sent more than `target` bytes.
    pub fn start(live: &Live, style: Style, target: u64, crossed: &Sender<()>) -> Self {
        let sent: Vec<_> = (0..CONNECTIONS).map(|_| Arc::default()).collect();
        let bytes = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = channel();
        let stopped = Arc::new(Mutex::new(stopped));
        let start = |(connection, sent): (usize, &Arc<Mutex<Sent>>)| {
            let mut worker = Worker {
                random: Random::new(style.seed ^ (connection as u64) << 32),
                client: Client::greeted(&live.socket()),
                volume: live.number,
                connection,
                style,
                sent: sent.clone(),
                waiting: VecDeque::new(),
            };
            worker.client.go("v");
            let (bytes, crossed, stopped) = (bytes.clone(), crossed.clone(), stopped.clone());
            std::thread::spawn(move || {
                while !is_disconnected(&stopped) {
                    let Ok(sent) = worker.step() else {
                        return;
                    };
                    let before = bytes.fetch_add(sent, Ordering::Relaxed);
                    if (before..before + sent).contains(&target) {
                        let _ = crossed.send(());
                    }
                }
                let _ = worker.settle();
            })
        };
        let threads = sent.iter().enumerate().map(start).collect();
        Self {
            sent,
            bytes,
            stop,
            threads,
        }
    }

    /// What was sent so far.
    pub fn so_far(&self) -> Vec<Sent> {
        self.sent
            .iter()
            .map(|sent| sent.lock().unwrap().clone())
            .collect()
    }

    /// Bytes sent so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends the clients, after the answers to all they asked for if the server is there.
    pub fn end(self) -> Vec<Sent> {
        drop(self.stop);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.sent
            .iter()
            .map(|sent| sent.lock().unwrap().clone())
            .collect()
    }
}

fn is_disconnected(stopped: &Mutex<Receiver<()>>) -> bool {
    matches!(
        stopped.lock().unwrap().try_recv(),
        Err(std::sync::mpsc::TryRecvError::Disconnected)
    )
}

/// One connection.
struct Worker {
    random: Random,
    client: Client,
    volume: u64,
    connection: usize,
    style: Style,
    sent: Arc<Mutex<Sent>>,
    /// Cookies of requests without an answer.
    waiting: VecDeque<u64>,
}

/// Cookie of a flush.
const FLUSH: u64 = u64::MAX;

impl Worker {
    /// Sends a request and makes room for the next one; returns the bytes written.
    fn step(&mut self) -> std::io::Result<u64> {
        let bytes = match self.random.below(12) {
            0 => self.flush()?,
            1 => self.zeros(command::TRIM)?,
            2 => self.zeros(command::WRITE_ZEROES)?,
            _ => self.write()?,
        };
        while self.waiting.len() >= self.style.depth {
            self.answer()?;
        }
        Ok(bytes)
    }

    fn settle(&mut self) -> std::io::Result<()> {
        while !self.waiting.is_empty() {
            self.answer()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<u64> {
        self.send(command::FLUSH, 0, FLUSH, 0..0, &[])?;
        Ok(0)
    }

    fn zeros(&mut self, command: u16) -> std::io::Result<u64> {
        let range = self.range();
        let cookie = self.note(Change::zeros(range.start, range.len()));
        self.send(command, 0, cookie, range, &[])?;
        Ok(0)
    }

    fn write(&mut self) -> std::io::Result<u64> {
        let range = self.range();
        let count = self.sent.lock().unwrap().changes.len() as u64;
        let seq = self.style.life << 40 | (self.connection as u64) << 32 | (count + 1);
        let payload = describe(self.volume, range.start, range.len(), seq);
        let ids = vec![seq; range.len()];
        let start = range.start;
        let cookie = self.note(Change { start, ids });
        let fua = if self.random.one_in(10) { FUA } else { 0 };
        self.send(command::WRITE, fua, cookie, range, &payload)?;
        Ok(payload.len() as u64)
    }

    /// Mostly small, sometimes large.
    fn range(&mut self) -> Range<usize> {
        let part = part(self.connection);
        let most = match self.random.below(3) {
            0 => 8,
            1 => 64,
            _ => LARGEST,
        };
        let blocks = 1 + self.random.below(most.min(self.style.largest)) as usize;
        let room = (part.len() - blocks) as u64 + 1;
        let start = part.start + self.random.below(room) as usize;
        start..start + blocks
    }

    fn note(&self, change: Change) -> u64 {
        let mut sent = self.sent.lock().unwrap();
        sent.changes.push(change);
        sent.changes.len() as u64
    }

    fn send(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        range: Range<usize>,
        payload: &[u8],
    ) -> std::io::Result<()> {
        let (offset, len) = ((range.start * BLOCK) as u64, (range.len() * BLOCK) as u32);
        let mut bytes = request_bytes(command, flags, cookie, offset, len);
        bytes.extend(payload);
        self.waiting.push_back(cookie);
        self.client.stream.write_all(&bytes)
    }

    fn answer(&mut self) -> std::io::Result<()> {
        let mut reply = [0; 16];
        self.client.stream.read_exact(&mut reply)?;
        let word = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
        assert_eq!(
            (word(0), word(4)),
            (SIMPLE_REPLY_MAGIC, 0),
            "a refused request"
        );
        let cookie = u64::from_be_bytes(reply[8..].try_into().unwrap());
        let at = self.waiting.iter().position(|other| *other == cookie);
        self.waiting.remove(at.unwrap());
        if cookie != FLUSH {
            // The log is in order: with a write, all before it are there.
            let mut sent = self.sent.lock().unwrap();
            sent.least = sent.least.max(cookie as usize);
        }
        Ok(())
    }
}

/// An image that is kept by what the log ships.
pub struct Replica {
    /// Up to where it is.
    pub lsid: u64,
    /// What came, since it was last asked for.
    pub changes: Vec<Change>,
    pub wlogs: u64,
}

impl Replica {
    const IMAGE: &str = "replica";

    /// Begins anew, with a full copy of a volume that nobody writes to.
    pub fn of(live: &Live) -> Self {
        std::fs::copy(live.walkeep.path("v.data"), live.walkeep.path(Self::IMAGE)).unwrap();
        Self {
            lsid: live.control().status().unwrap().positions.latest,
            changes: vec![],
            wlogs: 0,
        }
    }

    /// Cuts what the log has, checks it, replays it, and lets the log forget it.
    ///
    /// # Errors
    /// If the volume does not let go of its log, be it that its server is gone.
    pub fn ship(&mut self, live: &Live) -> Result<(), String> {
        let walkeep = &live.walkeep;
        let cat = walkeep.run(&format!("wlog cat v cut.wlog --begin {}", self.lsid));
        if !cat.status.success() {
            return Err(text(&cat));
        }
        walkeep.ok("wlog verify cut.wlog");
        let (range, changes) = live.wlog("cut.wlog");
        assert_eq!(range.start, self.lsid, "{}", text(&cat));
        walkeep.ok(&format!("wlog redo cut.wlog {}", Self::IMAGE));
        self.lsid = range.end;
        self.changes.extend(changes);
        self.wlogs += 1;
        let forget = || {
            let client = ControlClient::connect(&live.entry())?;
            let written = client.status()?.positions.prev_written;
            client.set_oldest(written.min(self.lsid))
        };
        forget().map_err(|e| e.to_string())
    }

    pub fn blocks(&self, live: &Live) -> Vec<u64> {
        live.blocks_of(Self::IMAGE)
    }
}
