//! `walkeep volume list`, `walkeep volume delete`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};
use walkeep_store::ldev::LogDevice;
use walkeep_store::volume::{Entry, Home, VolumeName};

use super::{confirm, table};
use crate::cli::report::{Bytes, lb_bytes, print_json, say};

#[derive(Args)]
pub struct Delete {
    /// A volume that is not served
    name: VolumeName,
    /// Remove the files of data and log too; block devices stay
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// What a list tells of a volume.
struct Row {
    entry: Entry,
    /// Sizes of the volume and of the ring \[bytes\], or why they are not known.
    sizes: Result<(u64, u64), String>,
    holder: Result<Option<u32>, String>,
}

impl Row {
    fn of(entry: Entry) -> Self {
        let sizes =
            LogDevice::open(&entry.config.log).map_err(|e| format!("{:#}", anyhow::Error::from(e)));
        let sizes = sizes.map(|device| {
            let superblock = device.superblock();
            let ring = superblock.ring.size() * superblock.pbs().bytes() as u64;
            (lb_bytes(superblock.device_blocks), ring)
        });
        let holder = entry.holder().map_err(|e| e.to_string());
        Self {
            entry,
            sizes,
            holder,
        }
    }

    fn state(&self) -> String {
        match (&self.holder, &self.sizes) {
            (Err(error), _) => error.clone(),
            (Ok(Some(pid)), _) => format!("served by process {pid}"),
            (Ok(None), Ok(_)) => "stopped".to_owned(),
            (Ok(None), Err(error)) => format!("stopped; {error}"),
        }
    }

    fn cells(&self) -> Vec<String> {
        let config = &self.entry.config;
        let [size, ring] = match self.sizes {
            Ok((size, ring)) => [size, ring].map(|bytes| Bytes(bytes).to_string()),
            Err(_) => ["?", "?"].map(str::to_owned),
        };
        let data = config.data.display().to_string();
        vec![config.name.to_string(), size, ring, data, self.state()]
    }

    fn json(&self) -> Value {
        let config = &self.entry.config;
        let (size, ring) = self.sizes.clone().ok().unzip();
        json!({
            "name": config.name,
            "folder": self.entry.folder(),
            "data": config.data,
            "log": config.log,
            "block_size": config.block_size,
            "nbd": self.entry.nbd_address(),
            "read_only": config.read_only,
            "size": size,
            "ring_bytes": ring,
            "in_use_by": self.holder.clone().ok().flatten(),
            "error": self.sizes.clone().err(),
        })
    }
}

pub fn list(home: &Home, json: bool) -> Result<()> {
    let mut rows = vec![
        ["NAME", "SIZE", "LOG", "DATA", "STATE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut documents = Vec::new();
    for (name, entry) in home.list()? {
        match entry.map(Row::of) {
            Ok(row) => {
                rows.push(row.cells());
                documents.push(row.json());
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                documents.push(json!({ "name": name, "error": error }));
                let unknown = || "?".to_owned();
                rows.push(vec![
                    name.to_string(),
                    unknown(),
                    unknown(),
                    unknown(),
                    error,
                ]);
            }
        }
    }
    if json {
        return print_json(&json!({ "home": home.path(), "volumes": documents }));
    }
    if rows.len() == 1 {
        let text = "no volumes (walkeep volume create makes one)";
        return say(None, &format!("{}: {text}", home.path().display()));
    }
    say(None, &table(&rows))
}

impl Delete {
    pub fn run(self, home: &Home) -> Result<()> {
        if self.purge {
            // What is to be lost has to be known.
            home.find(&self.name)?;
        }
        if !home.has(&self.name) {
            home.find(&self.name)?;
        }
        if !confirm(&self.plan(home), self.yes)? {
            bail!("volume {}: left as it is", self.name);
        }
        let purged = home.delete(&self.name, self.purge)?;
        let lines = |what, paths: Vec<PathBuf>| -> String {
            let line = |path: PathBuf| format!("\n  {what}  {}", path.display());
            paths.into_iter().map(line).collect()
        };
        let (removed, left) = (lines("removed", purged.removed), lines("left", purged.left));
        say(None, &format!("{}: deleted{removed}{left}", self.name))
    }

    fn plan(&self, home: &Home) -> String {
        let name = &self.name;
        match home.find(name) {
            Ok(entry) if self.purge => format!(
                "volume {name} will be deleted with its data {} and its log {}",
                entry.config.data.display(),
                entry.config.log.display()
            ),
            _ => format!("the registration of volume {name} will be deleted, not its data and log"),
        }
    }
}
