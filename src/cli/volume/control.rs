//! What is asked of a served volume through its control socket.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use walkeep_store::volume::{ControlClient, Home, VolumeName};

use super::confirm;
use crate::cli::options::Size;
use crate::cli::report::{Bytes, say};

#[derive(Args)]
pub struct Resize {
    /// A served volume
    name: VolumeName,
    /// The new size; data in a file grows with it
    #[arg(long)]
    size: Option<Size>,
}

#[derive(Args)]
pub struct Reset {
    /// A served volume
    name: VolumeName,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub struct Freeze {
    /// A served volume
    name: VolumeName,
    /// Melt by itself after this time [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
}

pub fn connect(home: &Home, name: &VolumeName) -> Result<ControlClient> {
    Ok(ControlClient::connect(&home.find(name)?)?)
}

impl Resize {
    pub fn run(self, home: &Home) -> Result<()> {
        let client = connect(home, &self.name)?;
        client.resize(self.size.map(|size| size.0))?;
        let size = Bytes(client.status()?.size);
        let text = "clients see it when they connect again";
        say(None, &format!("{}: {size}; {text}", self.name))
    }
}

impl Reset {
    pub fn run(self, home: &Home) -> Result<()> {
        let client = connect(home, &self.name)?;
        let positions = client.status()?.positions;
        let plan = format!(
            "volume {}: the log will be emptied: lsid {} to {} will be lost to backup, and only a \
             full or hash backup can follow",
            self.name, positions.oldest, positions.latest
        );
        if !confirm(&plan, self.yes)? {
            bail!("volume {}: left as it is", self.name);
        }
        client.reset()?;
        say(
            None,
            &format!("{}: new log {}", self.name, client.status()?.uuid),
        )
    }
}

impl Freeze {
    pub fn run(self, home: &Home) -> Result<()> {
        let timeout = self
            .timeout
            .map(|seconds| Duration::from_secs(seconds.into()));
        Ok(connect(home, &self.name)?.freeze(timeout)?)
    }
}
