//! `walkeep nbd …`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use walkeep_store::block::BlockDevice;
use walkeep_store::file_device::FileDevice;
use walkeep_store::nbd::{Address, ExportOptions, Limits, Server};

use super::Outcome;
use super::guard::usage;
use super::report::{Bytes, say};

#[derive(Subcommand)]
pub enum Nbd {
    /// Export images and block devices by the NBD protocol, until interrupted
    Serve(Serve),
}

#[derive(Args)]
pub struct Serve {
    /// Refuse changes
    #[arg(long)]
    read_only: bool,
    /// Where to listen: unix:PATH or tcp:HOST:PORT; more than once for several
    #[arg(long, required = true, value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// Listen also where other machines can connect, without encryption and passwords
    #[arg(long)]
    insecure: bool,
    /// Most clients at a time
    #[arg(long, value_name = "N", default_value_t = Limits::default().clients)]
    max_clients: usize,
    /// Seconds that clients get, after an interrupt, for what they have asked
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
    /// What to export; an empty NAME is the default export
    #[arg(required = true, value_name = "NAME=IMAGE", value_parser = export)]
    exports: Vec<(String, PathBuf)>,
}

fn export(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err(format!("{text:?}: expected NAME=IMAGE")),
    }
}

impl Nbd {
    pub fn run(self) -> Result<Outcome> {
        match self {
            Self::Serve(serve) => serve.run(),
        }
    }
}

impl Serve {
    fn run(self) -> Result<Outcome> {
        self.refuse_strangers();
        // Before any thread starts, so that all of them leave the signals to this one.
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block().context("cannot block signals")?;
        let limits = Limits {
            clients: self.max_clients,
            ..Limits::default()
        };
        let server = Server::new(limits);
        for (name, path) in &self.exports {
            self.add(&server, name, path)?;
        }
        for address in &self.listen {
            let bound = server.listen(address)?;
            for (name, _) in &self.exports {
                say(None, &format!("listening: {}", bound.uri(name)))?;
            }
        }
        let signal = signals.wait().context("cannot wait for a signal")?;
        let cut = server.stop(Duration::from_secs(self.grace));
        eprintln!("walkeep: {signal}: stopped, {cut} clients cut off");
        Ok(Outcome::Sound)
    }

    fn refuse_strangers(&self) {
        let open = self.listen.iter().find(|address| !address.is_local());
        if let (Some(address), false) = (open, self.insecure) {
            usage(&format!(
                "{address}: other machines can connect there, without encryption and passwords; \
                 expected a socket file or a loopback address, or --insecure"
            ));
        }
    }

    fn add(&self, server: &Server, name: &str, path: &Path) -> Result<()> {
        let device = FileDevice::open(path, self.read_only)?;
        let options = ExportOptions {
            description: path.display().to_string(),
            read_only: self.read_only,
        };
        let mode = if self.read_only { ", read-only" } else { "" };
        let size = Bytes(device.geometry().size);
        say(
            None,
            &format!("export {name:?}: {}, {size}{mode}", path.display()),
        )?;
        Ok(server.add(name, Arc::new(device), options)?)
    }
}
