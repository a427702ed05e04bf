//! `walkeep ublk …`: what the ublk driver of this host knows. Only in builds with the feature `ublk`.

use anyhow::Result;
use clap::Subcommand;
use walkeep_store::ublk::{Control, Known};

use super::Outcome;
use super::report::say;

#[derive(Subcommand)]
pub enum Ublk {
    /// List the devices of ublk, of whatever server
    List,
    /// Delete devices that a killed server left
    Delete {
        /// The N of /dev/ublkcN
        #[arg(required = true)]
        ids: Vec<u32>,
    },
}

impl Ublk {
    pub fn run(self) -> Result<Outcome> {
        let control = Control::open()?;
        match self {
            Self::List => {
                for known in control.list()? {
                    say(None, &text(&known))?;
                }
            }
            Self::Delete { ids } => {
                for id in ids {
                    control.delete(id)?;
                }
            }
        }
        Ok(Outcome::Sound)
    }
}

/// What became of a device whose server is dead, and the command that removes it.
pub fn stale_text(known: &Known) -> String {
    let Known { id, maker, .. } = known;
    let maker = maker.unwrap_or_default();
    format!(
        "/dev/ublkc{id}: left by process {maker}, which is dead; remove it: walkeep ublk delete {id}"
    )
}

fn text(known: &Known) -> String {
    let id = known.id;
    match known.maker {
        _ if known.is_stale() => stale_text(known),
        Some(pid) if known.is_live => format!("/dev/ublkb{id}: served by process {pid}"),
        Some(pid) => format!("/dev/ublkc{id}: starting or stopping, process {pid}"),
        None if known.is_live => format!("/dev/ublkb{id}: served by another program"),
        None => format!("/dev/ublkc{id}: made by another program, not served"),
    }
}
