//! What the words do.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use walkeep_store::Meter;
use walkeep_store::input::is_same_file;
use walkeep_store::ldev::{self, FormatOptions, LogDevice};
use walkeep_store::volume::{ControlClient, ControlError, Home, Plan, VolumeName, plan_create};
use walkeep_store::wal_device::control::{Condition, Status};
use walkeep_wire::LOGICAL_BLOCK;
use walkeep_wire::ldev::Superblock;

use crate::words::{CreateWdev, FormatLdev, Verb, Word};

pub fn run(word: Word) -> Result<()> {
    let home = &Home::of_process(None)?;
    match word {
        Word::FormatLdev(arguments) => format_ldev(home, &arguments),
        Word::CreateWdev(arguments) => create_wdev(home, arguments),
        Word::List => {
            for (name, _) in home.list()? {
                println!("0 0 {name}");
            }
            Ok(())
        }
        Word::GetVersion => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Word::Of(name, Verb::Delete) => Ok(home.delete(&name, false).map(drop)?),
        Word::Of(name, verb) => of_volume(home, &name, verb),
    }
}

/// Formats whatever stands there, as the original, except what a volume uses.
fn format_ldev(home: &Home, arguments: &FormatLdev) -> Result<()> {
    let FormatLdev { ldev, ddev, .. } = arguments;
    if is_same_file(ldev, ddev) {
        bail!(
            "{}: expected a log device beside the data device",
            ldev.display()
        );
    }
    for (name, entry) in home.list()? {
        if entry.is_ok_and(|e| {
            [&e.config.data, &e.config.log]
                .iter()
                .any(|p| is_same_file(p, ldev))
        }) {
            bail!(
                "{}: expected a log device of its own, found it used by volume {name}",
                ldev.display()
            );
        }
    }
    let (data_blocks, pbs) = ldev::common_geometry(ldev, ddev)?;
    if arguments.discard {
        ldev::discard_device(ldev)?;
    }
    let options = FormatOptions {
        data_blocks,
        pbs,
        name: &arguments.name,
        force: true,
    };
    print_superblock(ldev, &ldev::format(ldev, &options)?);
    Ok(())
}

fn print_superblock(ldev: &Path, superblock: &Superblock) {
    println!("ldev {}", ldev.display());
    println!("name {}", superblock.name);
    println!("uuid {}", superblock.uuid);
    println!("salt {:08x}", superblock.salt);
    println!("physical_bs {}", superblock.pbs().bytes());
    println!("ring_buffer_size {}", superblock.ring.size());
    println!("oldest_lsid {}", superblock.oldest_lsid);
    println!("written_lsid {}", superblock.written_lsid);
    println!("device_size {}", superblock.device_blocks);
}

/// There is no kernel device: major and minor are 0, and `walkeep volume serve` serves the volume.
fn create_wdev(home: &Home, arguments: CreateWdev) -> Result<()> {
    let device = LogDevice::open(&arguments.ldev)?;
    let name = match arguments.name {
        Some(name) => name,
        None => default_name(home, device.superblock())?,
    };
    let plan = Plan {
        name: name.clone(),
        data: arguments.ddev,
        log: arguments.ldev,
        size: None,
        log_size: None,
        block_size: None,
        adopt: true,
        nbd: None,
        read_only: false,
        options: arguments.options,
    };
    plan_create(home, plan)?.carry_out(home, &Meter::default())?;
    println!("name {name}\nmajor 0\nminor 0");
    Ok(())
}

/// The name in the superblock, if it has one that a volume may have, else the least free number.
fn default_name(home: &Home, superblock: &Superblock) -> Result<VolumeName> {
    if let Ok(name) = superblock.name.to_string().parse() {
        return Ok(name);
    }
    let mut numbers = (0u64..).filter_map(|number| number.to_string().parse().ok());
    let free = numbers.find(|name| !home.has(name));
    free.ok_or_else(|| anyhow::anyhow!("expected a name (-n NAME)"))
}

fn of_volume(home: &Home, name: &VolumeName, verb: Verb) -> Result<()> {
    let entry = home.find(name)?;
    let client = match ControlClient::connect(&entry) {
        Ok(client) => client,
        Err(error @ ControlError::NotServed(_)) => {
            let device = LogDevice::open(&entry.config.log)?;
            return match of_superblock(device.superblock(), verb) {
                Some(value) => {
                    println!("{value}");
                    Ok(())
                }
                None => Err(error.into()),
            };
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(value) = of_status(&client.status()?, verb) {
        println!("{value}");
        return Ok(());
    }
    command(&client, verb)
}

/// What is true of a volume that nobody serves: the disk says it. Where its log ends, only recovery
/// finds out.
fn of_superblock(superblock: &Superblock, verb: Verb) -> Option<u64> {
    match verb {
        Verb::GetOldest => Some(superblock.oldest_lsid),
        Verb::GetWritten => Some(superblock.written_lsid),
        Verb::GetLogCapacity => Some(superblock.ring.size()),
        Verb::IsFlushCapable => Some(1),
        // That it did not overflow, the superblock cannot say.
        Verb::IsLogOverflow if superblock.is_overflowed() => Some(1),
        _ => None,
    }
}

fn of_status(status: &Status, verb: Verb) -> Option<u64> {
    let positions = &status.positions;
    Some(match verb {
        Verb::GetCheckpointInterval => status.checkpoint_interval_ms,
        Verb::GetOldest => positions.oldest,
        Verb::GetWritten => positions.written,
        Verb::GetPermanent => positions.permanent,
        Verb::GetCompleted => positions.completed,
        Verb::GetLogUsage => positions.latest.saturating_sub(positions.oldest),
        Verb::GetLogCapacity => status.ring_blocks,
        Verb::IsFlushCapable => 1,
        Verb::IsLogOverflow => u64::from(status.overflow),
        Verb::IsFrozen => u64::from(status.condition == Condition::Frozen),
        _ => return None,
    })
}

fn command(client: &ControlClient, verb: Verb) -> Result<()> {
    let limit = |seconds| (seconds > 0).then(|| Duration::from_secs(seconds));
    match verb {
        Verb::SetCheckpointInterval(ms) => {
            client.set_checkpoint_interval(Duration::from_millis(ms))?;
        }
        Verb::ForceCheckpoint => client.checkpoint()?,
        Verb::SetOldest(lsid) => client.set_oldest(lsid)?,
        Verb::Resize(0) => client.resize(None)?,
        Verb::Resize(blocks) => match blocks.checked_mul(LOGICAL_BLOCK as u64) {
            Some(bytes) => client.resize(Some(bytes))?,
            None => bail!("{blocks}: expected blocks of {LOGICAL_BLOCK} bytes within 2^64 bytes"),
        },
        Verb::Reset => client.reset()?,
        Verb::Clear(seconds) => clear(client, limit(seconds))?,
        Verb::Freeze(seconds) => client.freeze(limit(seconds))?,
        Verb::Melt => client.melt()?,
        _ => bail!("expected a command, found a question"),
    }
    Ok(())
}

/// Forgets all of the log that is on the data when this is called.
fn clear(client: &ControlClient, limit: Option<Duration>) -> Result<()> {
    let begin = Instant::now();
    let lsid = client.mark()?;
    loop {
        client.checkpoint()?;
        let on_disk = client.status()?.positions.prev_written;
        if on_disk >= lsid {
            return Ok(client.set_oldest(lsid)?);
        }
        if limit.is_some_and(|limit| begin.elapsed() >= limit) {
            bail!("expected the data to reach lsid {lsid} in time, found {on_disk}");
        }
    }
}
