//! Where `walkeep volume serve` meets the WAL device and the NBD server: both are opened here, and
//! nowhere else.

use std::sync::Arc;

use anyhow::{Context, Result};
use walkeep_store::nbd::{Address, ExportOptions, Limits as ClientLimits, Server};
use walkeep_store::volume::{Entry, Options};
use walkeep_store::wal_device::{Host, Limits, Paths, Volume};

use super::OVERFLOW_HINT;
use crate::cli::report::{Bytes, say};

/// Opens the WAL device of a volume whose lock this process holds, and tells what recovery did.
pub fn open_volume(host: &Arc<Host>, entry: &Entry, memory: u64) -> Result<Arc<Volume>> {
    let config = &entry.config;
    let paths = Paths {
        log: config.log.clone(),
        data: config.data.clone(),
        state: entry.state_path(),
    };
    let opened = Volume::open(host, &paths, limits(&config.options, memory));
    let (volume, recovered) = opened.with_context(|| format!("volume {}", entry.name()))?;
    if recovered.packs > 0 {
        say(
            None,
            &format!(
                "{}: recovered {} packs, {}, from lsid {} to {}",
                entry.name(),
                recovered.packs,
                Bytes(recovered.bytes),
                recovered.from,
                recovered.superblock.written_lsid
            ),
        )?;
    }
    if let Some(lsid) = recovered.overflow {
        let name = entry.name();
        eprintln!("walkeep: {name}: the log overflowed at lsid {lsid}: {OVERFLOW_HINT}");
    }
    Ok(volume)
}

/// What NBD clients find: a volume under its name.
pub struct Export {
    pub name: String,
    pub volume: Arc<Volume>,
    pub read_only: bool,
}

/// Serves exports at an address; returns the server and where it really listens.
pub fn listen(address: &Address, exports: &[Export]) -> Result<(Server, Address)> {
    let server = Server::new(ClientLimits::default());
    for export in exports {
        let options = ExportOptions {
            description: format!("Walkeep volume {}", export.name),
            read_only: export.read_only,
        };
        server.add(&export.name, export.volume.clone(), options)?;
    }
    let bound = server.listen(address)?;
    Ok((server, bound))
}

/// The defaults, but for what the volume's file says and the memory it may have.
fn limits(options: &Options, memory: u64) -> Limits {
    let mut limits = Limits::default();
    let mib = |value: Option<u32>, or: u64| value.map_or(or, |n| u64::from(n) << 20);
    limits.memory = mib(options.max_pending_mib, limits.memory).min(memory);
    limits.unsynced = mib(options.log_sync_mib, limits.unsynced);
    if let Some(ms) = options.log_sync_ms {
        limits.unsynced_age = u64::from(ms) * 1000;
    }
    if let Some(ms) = options.checkpoint_interval_ms {
        limits.checkpoint_age = ms.saturating_mul(1000);
    }
    limits
}
