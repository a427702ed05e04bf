//! Where `walkeep volume serve` meets the WAL device and the NBD server: both are opened here, and
//! nowhere else.

use std::sync::Arc;

use anyhow::{Context, Result};
use walkeep_store::nbd::{Address, ExportOptions, Limits as ClientLimits, Server};
use walkeep_store::volume::{Entry, NbdAddress};
use walkeep_store::wal_device::{Host, Limits, Paths, Volume};

use crate::cli::report::{Bytes, say};

/// Opens the WAL device of a volume whose lock this process holds, and tells what recovery did.
pub fn open_volume(host: &Arc<Host>, entry: &Entry) -> Result<Arc<Volume>> {
    let config = &entry.config;
    let paths = Paths {
        log: config.log.clone(),
        data: config.data.clone(),
        state: entry.state_path(),
    };
    let opened = Volume::open(host, &paths, Limits::default());
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
    Ok(volume)
}

/// What NBD clients find: a volume under its name.
pub struct Export {
    pub name: String,
    pub volume: Arc<Volume>,
    pub read_only: bool,
}

/// Serves exports at an address; returns the server and where it really listens.
pub fn listen(address: &NbdAddress, exports: &[Export]) -> Result<(Server, Address)> {
    let server = Server::new(ClientLimits::default());
    for export in exports {
        let options = ExportOptions {
            description: format!("Walkeep volume {}", export.name),
            read_only: export.read_only,
        };
        server.add(&export.name, export.volume.clone(), options)?;
    }
    let address: Address = address.to_string().parse().map_err(anyhow::Error::msg)?;
    let bound = server.listen(&address)?;
    Ok((server, bound))
}
