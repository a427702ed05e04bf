//! `--ublk` in builds without the feature: says how to get it. In the others `ublk.rs` takes its place.

use std::sync::Arc;

use anyhow::Result;
use walkeep_store::volume::VolumeName;
use walkeep_store::wal_device::Volume;

use crate::cli::guard::usage;

pub struct Driver;
pub struct Devices;

impl Driver {
    pub fn open(is_wanted: bool) -> Result<Self> {
        if is_wanted {
            usage(
                "--ublk: expected a walkeep that was built with it, found one without: build it by \
                 cargo build --release --features ublk, or use NBD",
            );
        }
        Ok(Self)
    }

    pub fn export<'a>(
        &self,
        _volumes: impl Iterator<Item = (&'a VolumeName, &'a Arc<Volume>, bool)>,
    ) -> Result<Devices> {
        Ok(Devices)
    }
}

impl Devices {
    pub fn stop(self) -> Vec<anyhow::Error> {
        Vec::new()
    }
}
