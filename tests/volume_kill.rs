//! Crash truth with real processes: a server is killed under load, again and again, also while it
//! recovers. What it answered is there, no block is torn, and the log tells the same story.
//!
//! `WALKEEP_SEED` repeats a run (as far as threads and processes can be repeated), `WALKEEP_KILLS`
//! says how often servers are killed under load.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::ops::AddAssign;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use support::live::{BLOCKS, CONNECTIONS, Live, Load, Replica, Sent, Server, Style, part};
use walkeep_store::wal_device::control::Counters;
use walkeep_wire::random::Random;

/// Kills of one volume.
const LIVES: u64 = 10;
const MIB: u64 = 1 << 20;

/// What came about; each must.
#[derive(Clone, Copy, Debug, Default)]
struct Coverage {
    kills: u64,
    kills_in_recovery: u64,
    packs_recovered: u64,
    ring_wraps: u64,
    window_waits: u64,
    overflows: u64,
    wlogs: u64,
}

impl Coverage {
    fn all(&self) -> [u64; 7] {
        [
            self.kills,
            self.kills_in_recovery,
            self.packs_recovered,
            self.ring_wraps,
            self.window_waits,
            self.overflows,
            self.wlogs,
        ]
    }
}

impl AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        self.kills += other.kills;
        self.kills_in_recovery += other.kills_in_recovery;
        self.packs_recovered += other.packs_recovered;
        self.ring_wraps += other.ring_wraps;
        self.window_waits += other.window_waits;
        self.overflows += other.overflows;
        self.wlogs += other.wlogs;
    }
}

/// One volume through its lives.
struct Series {
    live: Live,
    random: Random,
    /// The volume when nobody wrote to it.
    image: Vec<u64>,
    /// Its log is shipped, and never overflows; otherwise it overflows soon.
    replica: Option<Replica>,
    coverage: Coverage,
}

impl Series {
    fn run(seed: u64, number: u64) -> Coverage {
        let mut random = Random::new(seed ^ number << 48);
        let is_shipped = number.is_multiple_of(2);
        let log = if is_shipped { 32 } else { 2 << random.below(3) };
        let pbs = if random.one_in(2) { 512 } else { 4096 };
        println!("volume {number}: log of {log} MiB, blocks of {pbs}, shipped: {is_shipped}");
        let live = Live::create(0x5eed_0000 + number, log, pbs);
        let (mut server, _) = live.serve();
        let replica = is_shipped.then(|| Replica::of(&live));
        let mut series = Self {
            live,
            random,
            image: vec![0; BLOCKS],
            replica,
            coverage: Coverage::default(),
        };
        for life in 1..=LIVES {
            let sent = series.kill_under_load(server, life);
            series.kill_in_recovery();
            let packs;
            (server, packs) = series.live.serve();
            series.coverage.packs_recovered += packs;
            series.check(&sent);
        }
        let wlogs = series.replica.map_or(0, |replica| replica.wlogs);
        Coverage {
            wlogs,
            ..series.coverage
        }
    }

    fn kill_under_load(&mut self, server: Server, life: u64) -> Vec<Sent> {
        let style = Style {
            seed: self.random.next_u64(),
            life,
            depth: 1 + self.random.below(32) as usize,
            largest: 1 << self.random.below(10),
        };
        // Small requests do not come far in a short time.
        let most = (24 * MIB).min(style.largest << 16);
        let target = self.random.below(most);
        let (crossed, reached) = channel();
        let load = Load::start(&self.live, style, target, &crossed);
        let control = self.live.control();
        let mut counters = Counters::default();
        let gone = AtomicBool::new(false);
        let (live, replica) = (&self.live, &mut self.replica);
        std::thread::scope(|scope| {
            scope.spawn(|| ship_until(live, replica.as_mut(), &gone));
            loop {
                counters = control.status().unwrap().counters;
                match reached.recv_timeout(Duration::from_millis(2)) {
                    Err(RecvTimeoutError::Timeout) => {}
                    other => break other.unwrap(),
                }
            }
            gone.store(true, Ordering::SeqCst);
            server.kill();
        });
        self.coverage.kills += 1;
        self.coverage.ring_wraps += counters.ring_wraps;
        self.coverage.window_waits += counters.window_waits;
        load.end()
    }

    /// Starts servers and kills them before they serve.
    fn kill_in_recovery(&mut self) {
        while self.random.one_in(2) {
            let server = self.live.start();
            let entry = self.live.entry();
            support::client::wait_until("a server that has the volume", || {
                entry.holder().unwrap() == Some(server.id())
            });
            let patience = Duration::from_micros(self.random.below(20_000));
            let was_ready = server.ready(patience).is_some();
            server.kill();
            self.coverage.kills_in_recovery += u64::from(!was_ready);
        }
    }

    /// The volume is what its clients were promised, and what its log says.
    fn check(&mut self, sent: &[Sent]) {
        let found = self.live.image();
        let counts = |(connection, sent): (usize, &Sent)| {
            let counts = sent.prefixes(connection, &self.image, &found);
            counts.unwrap_or_else(|why| panic!("{why}"))
        };
        let counts: Vec<_> = sent.iter().enumerate().map(counts).collect();
        let status = self.live.control().status().unwrap();
        if status.overflow {
            // The shipper was too slow, on this machine, for a log that waits for nobody.
            self.replica = None;
        }
        if let Some(replica) = &mut self.replica {
            replica.ship(&self.live).unwrap();
            assert_eq!(replica.lsid, status.positions.latest);
            assert!(
                replica.blocks(&self.live) == found,
                "the log and the volume"
            );
            let log = std::mem::take(&mut replica.changes);
            for connection in 0..CONNECTIONS {
                let mine = part(connection);
                let mine = log.iter().filter(|change| mine.contains(&change.start));
                let mine: Vec<_> = mine.cloned().collect();
                let sent = &sent[connection].changes;
                assert!(
                    counts[connection].contains(&mine.len()) && mine[..] == sent[..mine.len()],
                    "connection {connection}: its writes in the log: expected the first of {:?}, \
                     in order, found {}",
                    counts[connection],
                    mine.len()
                );
            }
        }
        if status.overflow {
            self.coverage.overflows += 1;
            if self.random.one_in(2) {
                self.live.walkeep.ok("volume reset v --yes");
            }
        }
        self.image = found;
    }
}

/// Ships what the log has until the server is gone.
fn ship_until(live: &Live, replica: Option<&mut Replica>, gone: &AtomicBool) {
    let Some(replica) = replica else {
        return;
    };
    while !gone.load(Ordering::SeqCst) {
        if let Err(error) = replica.ship(live) {
            if error.contains("overflow") {
                return;
            }
            assert!(gone.load(Ordering::SeqCst), "{error}");
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap())
}

#[test]
fn killed_servers_lose_nothing_they_answered() {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("WALKEEP_SEED", u64::from(time.unwrap().subsec_nanos()));
    let series = number("WALKEEP_KILLS", 120).div_ceil(LIVES);
    println!("WALKEEP_SEED={seed} WALKEEP_KILLS={}", series * LIVES);
    let next = Mutex::new(0..series);
    let work = || {
        let mut coverage = Coverage::default();
        let take = || next.lock().unwrap().next();
        while let Some(number) = take() {
            coverage += Series::run(seed, number);
        }
        coverage
    };
    let mut coverage = Coverage::default();
    std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        for worker in workers {
            coverage += worker.join().unwrap();
        }
    });
    println!("{coverage:#?}");
    assert!(!coverage.all().contains(&0), "something never happened");
}
