//! `walkeep volume create`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use walkeep_store::nbd::Address;
use walkeep_store::volume::{Created, Home, Options, Plan, PlannedFile, VolumeName, plan_create};
use walkeep_wire::PhysicalBlock;

use super::OVERFLOW_HINT;
use crate::cli::guard::usage;
use crate::cli::options::{Size, block_size};
use crate::cli::progress::with_progress;
use crate::cli::report::{Bytes, lb_bytes, say};

#[derive(Args)]
pub struct Create {
    /// Name: 1 to 31 of A-Z a-z 0-9 _ . -
    name: VolumeName,
    /// The data: a file, which is made if it does not exist, or with --adopt an existing file or
    /// block device
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// The log: a file, which is made if it does not exist, or with --adopt an existing log device
    #[arg(long, value_name = "PATH")]
    log: PathBuf,
    /// Size of new data
    #[arg(long)]
    size: Option<Size>,
    /// Size of a new log [default: an eighth of the volume, 64M to 8G]
    #[arg(long, value_name = "SIZE")]
    log_size: Option<Size>,
    /// Physical block size of a new log: 512 or 4096 [default: 4096]
    #[arg(long, value_parser = block_size)]
    block_size: Option<PhysicalBlock>,
    /// Take data and log that exist, as they are
    #[arg(long)]
    adopt: bool,
    /// Where NBD clients find the volume: unix:PATH or tcp:HOST:PORT [default: a socket in its
    /// folder]
    #[arg(long, value_name = "ADDRESS")]
    nbd: Option<Address>,
    /// NBD clients may not write
    #[arg(long)]
    read_only: bool,
}

impl Create {
    pub fn run(self, home: &Home) -> Result<()> {
        let block = self.block_size.unwrap_or(PhysicalBlock::B4096).bytes() as u64;
        if let Some(Size(size)) = self.size
            && (size == 0 || !size.is_multiple_of(block))
        {
            usage(&format!(
                "--size: expected a multiple of the block size {block}, at least one block"
            ));
        }
        let plan = Plan {
            name: self.name,
            data: self.data,
            log: self.log,
            size: self.size.map(|size| size.0),
            log_size: self.log_size.map(|size| size.0),
            block_size: self.block_size,
            adopt: self.adopt,
            nbd: self.nbd,
            read_only: self.read_only,
            options: Options::default(),
        };
        let checked = plan_create(home, plan)?;
        let (created, _) = with_progress("writing the log", |meter| checked.carry_out(home, meter));
        say(None, &created_text(&created?))
    }
}

fn created_text(created: &Created) -> String {
    let Created {
        entry,
        data,
        log,
        superblock,
    } = created;
    let line = |kind, path: &Path, file: PlannedFile| {
        let how = match file {
            PlannedFile::Make(_) => "made",
            PlannedFile::Take(_) => "taken as it is",
        };
        format!(
            "\n  {kind}  {}: {}, {how}",
            path.display(),
            Bytes(file.bytes())
        )
    };
    let overflow = match superblock.is_overflowed() {
        true => format!("\n  the log overflowed: {OVERFLOW_HINT}"),
        false => String::new(),
    };
    format!(
        "{}: volume of {}, blocks of {} bytes, log {}{}{}{overflow}",
        entry.name(),
        Bytes(lb_bytes(superblock.device_blocks)),
        superblock.pbs().bytes(),
        superblock.uuid,
        line("data", &entry.config.data, *data),
        line("log ", &entry.config.log, *log),
    )
}
