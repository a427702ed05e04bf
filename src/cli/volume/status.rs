//! `walkeep volume status`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use walkeep_store::ldev::LogDevice;
use walkeep_store::volume::{ControlClient, ControlError, Entry, Home, VolumeName};
use walkeep_store::wal_device::control::{Histogram, Status};

use super::OVERFLOW_HINT;
use crate::cli::report::{Bytes, lb_bytes};

#[derive(Args)]
pub struct Show {
    /// One JSON document, for scripts
    #[arg(long)]
    json: bool,
    /// Again each second, until interrupted
    #[arg(long)]
    watch: bool,
    /// Volumes [default: all]
    names: Vec<VolumeName>,
}

const PERIOD: Duration = Duration::from_secs(1);
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

impl Show {
    pub fn run(&self, home: &Home) -> Result<()> {
        loop {
            let report = self.report(home)?;
            let mut out = std::io::stdout().lock();
            if self.watch && !self.json && out.is_terminal() {
                write!(out, "{CLEAR_SCREEN}")?;
            }
            writeln!(out, "{report}")?;
            out.flush()?;
            drop(out);
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(PERIOD);
        }
    }

    fn report(&self, home: &Home) -> Result<String> {
        let volumes = match self.names.is_empty() {
            true => home.list()?,
            false => {
                let find = |name: &VolumeName| Ok((name.clone(), Ok(home.find(name)?)));
                self.names.iter().map(find).collect::<Result<_>>()?
            }
        };
        let seen = volumes.into_iter().map(|(name, entry)| {
            let seen = match entry {
                Ok(entry) => Seen::of(&entry),
                Err(error) => Seen::Unknown(format!("{:#}", anyhow::Error::from(error))),
            };
            (name, seen)
        });
        if !self.json {
            let texts: Vec<_> = seen.map(|(name, seen)| seen.text(&name)).collect();
            return Ok(texts.join("\n"));
        }
        let documents: Vec<_> = seen.map(|(name, seen)| seen.json(&name)).collect();
        let document = json!({ "volumes": documents });
        Ok(match self.watch {
            // One line for each moment.
            true => document.to_string(),
            false => serde_json::to_string_pretty(&document)?,
        })
    }
}

/// What can be known of a volume.
enum Seen {
    Served {
        pid: u32,
        status: Box<Status>,
    },
    /// Not served; what its superblock says, or why that is not known.
    Stopped(Result<LogDevice, String>),
    Unknown(String),
}

impl Seen {
    fn of(entry: &Entry) -> Self {
        let asked = ControlClient::connect(entry)
            .and_then(|client| Ok((client.identity().pid, client.status()?)));
        match asked {
            Ok((pid, status)) => Self::Served {
                pid,
                status: Box::new(status),
            },
            Err(ControlError::NotServed(_)) => {
                let device = LogDevice::open(&entry.config.log);
                Self::Stopped(device.map_err(|e| format!("{:#}", anyhow::Error::from(e))))
            }
            Err(error) => Self::Unknown(format!("{:#}", anyhow::Error::from(error))),
        }
    }

    fn text(&self, name: &VolumeName) -> String {
        match self {
            Self::Served { pid, status } => served_text(name, *pid, status),
            Self::Stopped(Ok(device)) => {
                let superblock = device.superblock();
                let overflow = match superblock.is_overflowed() {
                    true => format!("\n  overflow    {OVERFLOW_HINT}"),
                    false => String::new(),
                };
                format!(
                    "{name}: not served{overflow}\n  size        {}, blocks of {} bytes\n  log         {}, \
                     ring {}\n  lsids       oldest {}, written {}",
                    Bytes(lb_bytes(superblock.device_blocks)),
                    superblock.pbs().bytes(),
                    superblock.uuid,
                    Bytes(ring_bytes(
                        superblock.ring.size(),
                        superblock.pbs().bytes() as u32
                    )),
                    superblock.oldest_lsid,
                    superblock.written_lsid
                )
            }
            Self::Stopped(Err(error)) => format!("{name}: not served; {error}"),
            Self::Unknown(error) => format!("{name}: {error}"),
        }
    }

    fn json(&self, name: &VolumeName) -> Value {
        match self {
            Self::Served { pid, status } => {
                json!({ "name": name, "served": true, "pid": pid, "status": status })
            }
            Self::Stopped(Ok(device)) => {
                let superblock = device.superblock();
                json!({ "name": name, "served": false, "superblock": {
                    "uuid": superblock.uuid.to_string(),
                    "salt": superblock.salt,
                    "block_size": superblock.pbs().bytes(),
                    "size": lb_bytes(superblock.device_blocks),
                    "ring_blocks": superblock.ring.size(),
                    "oldest": superblock.oldest_lsid,
                    "written": superblock.written_lsid,
                    "overflow": superblock.is_overflowed(),
                }})
            }
            Self::Stopped(Err(error)) => json!({ "name": name, "served": false, "error": error }),
            Self::Unknown(error) => json!({ "name": name, "error": error }),
        }
    }
}

const fn ring_bytes(blocks: u64, block_size: u32) -> u64 {
    blocks.saturating_mul(block_size as u64)
}

fn served_text(name: &VolumeName, pid: u32, status: &Status) -> String {
    let (positions, counters) = (&status.positions, &status.counters);
    let bytes = |blocks| Bytes(ring_bytes(blocks, status.block_size));
    let used = positions.latest.saturating_sub(positions.oldest);
    let percent = used.saturating_mul(100) / status.ring_blocks.max(1);
    let condition = serde_json::to_value(status.condition).unwrap_or_default();
    let mut text = format!(
        "{name}: {}, process {pid}",
        condition.as_str().unwrap_or("in an unknown condition")
    );
    for (what, why) in [("cause", &status.cause), ("hint", &status.hint)] {
        if !why.is_empty() {
            text += &format!("\n  {what:10}  {why}");
        }
    }
    if status.overflow {
        text += &format!("\n  overflow    {}", overflow_text(status.overflow_mark));
    }
    text += &format!(
        "\n  size        {}, blocks of {} bytes\n  log         {}, ring {}, used {} ({percent}%)\n  \
         lsids       oldest {} (on disk {}), written {} (on disk {}), permanent {}, completed {}, \
         latest {}\n  pending     {} in {} pieces\n  checkpoint  {} ago, every {}\n  writes      \
         {} ({}), {}\n  flushes     {}, {}\n  reads       {} ({})\n  log writes  {} groups, {} \
         packs, {} syncs, {} rounds, {} waits for room",
        Bytes(status.size),
        status.block_size,
        status.uuid,
        bytes(status.ring_blocks),
        bytes(used),
        positions.oldest,
        positions.oldest_durable,
        positions.written,
        positions.prev_written,
        positions.permanent,
        positions.completed,
        positions.latest,
        Bytes(status.pending_bytes),
        status.pending_pieces,
        age(status.checkpoint_age_ms),
        age(status.checkpoint_interval_ms),
        counters.writes,
        Bytes(counters.write_bytes),
        latency(&status.write_latency),
        counters.flushes,
        latency(&status.flush_latency),
        counters.reads,
        Bytes(counters.read_bytes),
        counters.log_groups,
        counters.log_packs,
        counters.log_syncs,
        counters.ring_wraps,
        counters.window_waits,
    );
    text
}

fn overflow_text(mark: Option<(u64, u64)>) -> String {
    let since = mark.map(|(lsid, seconds)| {
        let time = i64::try_from(seconds)
            .ok()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        let time = time.map_or_else(|| format!("{seconds} s after 1970"), |t| t.to_string());
        format!("at lsid {lsid}, {time}: ")
    });
    format!("{}{OVERFLOW_HINT}", since.unwrap_or_default())
}

/// `350 ms`, `4.2 s`, `3 min`, `5 h`, `2 d`.
fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..120 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// `mean 210 us, 99% below 512 us`.
fn latency(histogram: &Histogram) -> String {
    let total: u64 = histogram.buckets.iter().sum();
    let Some(mean) = histogram.total_micros.checked_div(total) else {
        return "none timed".to_owned();
    };
    let wanted = total - total / 100;
    let mut seen = 0;
    let bucket = histogram.buckets.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    let below = 1u64
        .checked_shl(bucket.unwrap_or(0) as u32)
        .unwrap_or(u64::MAX);
    format!("mean {mean} us, 99% below {below} us")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_latencies_are_short() {
        let ages = [0, 999, 1000, 119_950, 120_000, 7_200_000, 172_800_000].map(age);
        assert_eq!(
            ages,
            ["0 ms", "999 ms", "1.0 s", "119.9 s", "2 min", "2 h", "2 d"]
        );
        let mut histogram = Histogram::default();
        assert_eq!(latency(&histogram), "none timed");
        histogram.buckets = vec![0, 0, 99, 0, 1];
        histogram.total_micros = 350;
        assert_eq!(latency(&histogram), "mean 3 us, 99% below 4 us");
        histogram.buckets[4] = 2;
        assert_eq!(latency(&histogram), "mean 3 us, 99% below 16 us");
    }
}
