//! Arguments and output of the sub-commands.

mod cat;
mod guard;
mod image;
mod ldev;
mod nbd;
mod options;
mod progress;
mod report;
#[cfg(feature = "ublk")]
mod ublk;
mod volume;
mod wdiff;
mod wlog;

use clap::{Parser, Subcommand};

/// How a command ended that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All was done and is sound.
    Sound,
    /// Something had to be left out, and was reported.
    Incomplete,
}

/// Keeps every write of a block volume, and restores any moment of it.
#[derive(Parser)]
#[command(name = "walkeep", version, about, disable_help_subcommand = true)]
pub struct Command {
    #[command(subcommand)]
    area: Area,
}

#[derive(Subcommand)]
enum Area {
    /// Logs cut out of log devices
    #[command(subcommand)]
    Wlog(wlog::Wlog),
    /// Diffs between two snapshots of a volume
    #[command(subcommand)]
    Wdiff(wdiff::Wdiff),
    /// Log devices, offline
    #[command(subcommand)]
    Ldev(ldev::Ldev),
    /// Disk images
    #[command(subcommand)]
    Image(image::Image),
    /// Images as network block devices
    #[command(subcommand)]
    Nbd(nbd::Nbd),
    /// Block devices of this host
    #[cfg(feature = "ublk")]
    #[command(subcommand)]
    Ublk(ublk::Ublk),
    /// Volumes that keep every write
    Volume(volume::Volume),
}

impl Command {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Outcome> {
        match self.area {
            Area::Wlog(command) => command.run(),
            Area::Wdiff(command) => command.run(),
            Area::Ldev(command) => command.run(),
            Area::Image(command) => command.run(),
            Area::Nbd(command) => command.run(),
            #[cfg(feature = "ublk")]
            Area::Ublk(command) => command.run(),
            Area::Volume(command) => command.run(),
        }
    }
}
