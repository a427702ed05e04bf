//! `walkeep volume serve`: one process for any number of volumes.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use walkeep_store::nbd::{Address, Server};
use walkeep_store::volume::{ControlServer, Entry, Home, VolumeLock, VolumeName};
use walkeep_store::wal_device::{Host, Volume};

use super::open::{Export, listen, open_volume};
use super::ublk::Driver;
use crate::cli::Outcome;
use crate::cli::guard::usage;
use crate::cli::options::Size;
use crate::cli::report::say;

/// Volumes opened at a time: each mostly waits for its disk.
const OPENED_AT_ONCE: usize = 8;
/// What clients get at an orderly stop for what they have asked.
const GRACE: Duration = Duration::from_secs(10);

/// Least memory of a volume: some packs of the largest size.
const LEAST_SHARE: u64 = 4 << 20;

#[derive(Args)]
pub struct Serve {
    /// Volumes to serve
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<VolumeName>,
    /// Serve all volumes; one that cannot be served does not stop the others
    #[arg(long)]
    all: bool,
    /// Where NBD clients find all of them: unix:PATH or tcp:HOST:PORT [default: what is registered,
    /// else a socket in each volume's folder]
    #[arg(long, value_name = "ADDRESS")]
    nbd: Option<Address>,
    /// Let other hosts connect: NBD has no secrecy and no passwords
    #[arg(long)]
    insecure: bool,
    /// Memory for writes that are not on the data yet, of all volumes together
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: Size,
    /// Make each volume a block device of this host too, /dev/ublkbN (Linux 6.5 or later, as root)
    #[arg(long)]
    ublk: bool,
}

/// A volume being served. Fields are dropped in this order: commands end before the device closes,
/// and the lock is given up last.
struct Served {
    _control: ControlServer,
    device: Arc<Volume>,
    entry: Entry,
    _lock: VolumeLock,
}

impl Served {
    fn begin(host: &Arc<Host>, entry: Entry, share: u64) -> Result<Self> {
        let lock = entry.lock()?;
        let device = open_volume(host, &entry, share)?;
        let control = ControlServer::start(&entry, device.clone())?;
        Ok(Self {
            _control: control,
            device,
            entry,
            _lock: lock,
        })
    }

    /// Brings everything to the data, so that the next start has nothing to recover.
    fn end(self) -> Result<()> {
        let name = self.entry.name().clone();
        let done = self.device.close();
        done.with_context(|| format!("{name}: the orderly end failed; the next start recovers"))
    }
}

/// Begins to serve volumes, several at a time; the results are in the order of the entries.
fn begin_all(host: &Arc<Host>, entries: Vec<Entry>, memory: u64) -> Vec<Result<Served>> {
    // Each volume has its share, so that none starves another.
    let share = (memory / entries.len().max(1) as u64).max(LEAST_SHARE);
    let mut lanes: Vec<Vec<_>> = (0..OPENED_AT_ONCE).map(|_| vec![]).collect();
    for (n, entry) in entries.into_iter().enumerate() {
        lanes[n % OPENED_AT_ONCE].push((n, entry));
    }
    let begin = |lane: Vec<(usize, Entry)>| -> Vec<_> {
        let begun = lane.into_iter();
        begun
            .map(|(n, e)| (n, Served::begin(host, e, share)))
            .collect()
    };
    let mut begun: Vec<_> = thread::scope(|scope| {
        let lanes = lanes.into_iter().filter(|lane| !lane.is_empty());
        let lanes: Vec<_> = lanes.map(|lane| scope.spawn(|| begin(lane))).collect();
        let join = |lane: ScopedJoinHandle<'_, _>| lane.join().unwrap_or_else(|e| resume_unwind(e));
        lanes.into_iter().flat_map(join).collect()
    });
    begun.sort_by_key(|(n, _)| *n);
    begun.into_iter().map(|(_, result)| result).collect()
}

impl Serve {
    pub fn run(self, home: &Home) -> Result<Outcome> {
        // Before any thread is made: they inherit that signals wait for the one that takes them.
        let stop = take_signals()?;
        let mut outcome = Outcome::Sound;
        let driver = Driver::open(self.ublk)?;
        let host = Host::new().context("cannot start a thread")?;
        let mut served = Vec::new();
        let entries = self.entries(home, &mut outcome)?;
        // Wrong usage ends the process: before any volume is opened.
        for entry in &entries {
            self.check_address(&self.address(entry));
        }
        for begun in begin_all(&host, entries, self.memory.0) {
            match begun {
                Ok(volume) => served.push(volume),
                Err(error) if self.all => report(&error, &mut outcome),
                Err(error) => return Err(error),
            }
        }
        if served.is_empty() {
            bail!("{}: no volume to serve", home.path().display());
        }
        let listeners = self.listen_all(&served)?;
        let volumes = served.iter().map(|volume| {
            let config = &volume.entry.config;
            (&config.name, &volume.device, config.read_only)
        });
        let devices = driver.export(volumes)?;
        stop.recv().context("cannot wait for signals")?;
        for error in devices.stop() {
            report(&error, &mut outcome);
        }
        for server in listeners {
            server.stop(GRACE);
        }
        for volume in served {
            if let Err(error) = volume.end() {
                report(&error, &mut outcome);
            }
        }
        Ok(outcome)
    }

    fn entries(&self, home: &Home, outcome: &mut Outcome) -> Result<Vec<Entry>> {
        if !self.all {
            let mut names = self.names.clone();
            names.sort();
            names.dedup();
            return names.iter().map(|name| Ok(home.find(name)?)).collect();
        }
        let mut entries = Vec::new();
        for (_, entry) in home.list()? {
            match entry {
                Ok(entry) => entries.push(entry),
                Err(error) => report(&error.into(), outcome),
            }
        }
        Ok(entries)
    }

    fn address(&self, entry: &Entry) -> Address {
        self.nbd.clone().unwrap_or_else(|| entry.nbd_address())
    }

    fn check_address(&self, address: &Address) {
        if !self.insecure && !address.is_local() {
            usage(&format!(
                "{address}: expected an address that only this host reaches: anybody who reaches \
                 it can read and write the volume (--insecure allows it)"
            ));
        }
    }

    /// One NBD server for each address, with the exports of its volumes.
    fn listen_all(&self, served: &[Served]) -> Result<Vec<Server>> {
        let mut exports: BTreeMap<Address, Vec<Export>> = BTreeMap::new();
        for volume in served {
            let export = Export {
                name: volume.entry.name().to_string(),
                volume: volume.device.clone(),
                read_only: volume.entry.config.read_only,
            };
            let address = self.address(&volume.entry);
            exports.entry(address).or_default().push(export);
        }
        let mut listeners = Vec::new();
        for (address, exports) in &exports {
            let (server, bound) = listen(address, exports)?;
            listeners.push(server);
            for Export { name, .. } in exports {
                say(None, &format!("{name}: served at {}", bound.uri(name)))?;
            }
        }
        Ok(listeners)
    }
}

fn report(error: &anyhow::Error, outcome: &mut Outcome) {
    eprintln!("walkeep: {error:#}");
    *outcome = Outcome::Incomplete;
}

/// The first SIGTERM or SIGINT asks for an orderly stop; the second one ends the process at once,
/// which the log survives.
fn take_signals() -> Result<Receiver<()>> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot take signals")?;
    let (ask, asked) = channel();
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            if ask.send(()).is_err() {
                return;
            }
            eprintln!("walkeep: {signal}: stopping; another one stops at once");
            if signals.wait().is_ok() {
                std::process::exit(1);
            }
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(asked)
}
