//! Where `walkeep volume serve` meets the WAL device and the NBD server: both are opened here, and
//! nowhere else.

use std::sync::Arc;

use anyhow::{Result, bail};
use walkeep_store::volume::{Device, Entry, NbdAddress};

/// Opens the WAL device of a volume whose lock this process holds.
pub fn open_volume(entry: &Entry) -> Result<Arc<dyn Device>> {
    bail!("{}: this build has no WAL device", entry.name());
}

/// A volume under its export's name.
pub type Export = (String, Arc<dyn Device>);

/// An NBD server; dropped, it closes its listener and its connections.
pub struct NbdListener;

/// Serves exports at an address.
pub fn listen(address: &NbdAddress, _exports: &[Export]) -> Result<NbdListener> {
    bail!("{address}: this build has no NBD server");
}
