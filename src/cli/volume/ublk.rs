//! Served volumes as block devices of this host. `ublk_absent.rs` takes its place in builds without.

use std::sync::Arc;

use anyhow::{Context, Result};
use walkeep_store::ublk::{Control, Export, Options, become_io_flusher};
use walkeep_store::volume::VolumeName;
use walkeep_store::wal_device::Volume;

use crate::cli::report::say;
use crate::cli::ublk::stale_text;

/// The driver, if block devices are wanted.
pub struct Driver(Option<Arc<Control>>);

/// Volumes that are block devices.
pub struct Devices(Vec<(VolumeName, Export)>);

impl Driver {
    /// Opens it before any thread is made that serves volumes, and tells what dead servers left.
    pub fn open(is_wanted: bool) -> Result<Self> {
        if !is_wanted {
            return Ok(Self(None));
        }
        let control = Control::open()?;
        for known in control.list()?.iter().filter(|known| known.is_stale()) {
            eprintln!("walkeep: {}", stale_text(known));
        }
        if let Err(error) = become_io_flusher() {
            eprintln!(
                "walkeep: ublk: {error}: without CAP_SYS_RESOURCE a host short of memory may wait for \
                 this process, and this process for memory"
            );
        }
        Ok(Self(Some(Arc::new(control))))
    }

    /// Makes block devices of volumes, and says which.
    pub fn export<'a>(
        &self,
        volumes: impl Iterator<Item = (&'a VolumeName, &'a Arc<Volume>, bool)>,
    ) -> Result<Devices> {
        let mut devices = Devices(Vec::new());
        let Some(control) = &self.0 else {
            return Ok(devices);
        };
        for (name, volume, read_only) in volumes {
            let options = Options {
                read_only,
                ..Options::default()
            };
            let export = Export::start(control, volume.clone(), options)
                .with_context(|| format!("volume {name}"))?;
            let path = export.path();
            devices.0.push((name.clone(), export));
            say(None, &format!("{name}: served at {}", path.display()))?;
        }
        Ok(devices)
    }
}

impl Devices {
    /// Takes the block devices away; what is in their page caches is written before.
    pub fn stop(self) -> Vec<anyhow::Error> {
        let stop = |(name, export): (VolumeName, Export)| {
            let stopped = export.stop();
            stopped.with_context(|| format!("volume {name}")).err()
        };
        self.0.into_iter().filter_map(stop).collect()
    }
}
