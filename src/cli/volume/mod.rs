//! `walkeep volume …`

mod control;
mod create;
mod list;
mod open;
mod serve;
mod status;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use walkeep_store::volume::{Home, VolumeName};

use super::Outcome;

/// What an operator does about a log that overflowed.
const OVERFLOW_HINT: &str = "take a full or hash backup, then reset the log (walkeep volume reset)";

#[derive(Args)]
pub struct Volume {
    /// Where volumes are registered [default: WALKEEP_HOME, else /var/lib/walkeep for root and the
    /// XDG state folder for others]
    #[arg(long, value_name = "DIR", global = true)]
    home: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Register a volume, and make its data and log
    Create(create::Create),
    /// Serve volumes to NBD clients until stopped
    Serve(serve::Serve),
    /// List all volumes
    List {
        /// One JSON document, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Tell how volumes are
    Status(status::Show),
    /// Bring everything pending to the data
    Checkpoint {
        /// A served volume
        name: VolumeName,
    },
    /// Grow a volume, to the size of its data unless said otherwise
    Resize(control::Resize),
    /// Begin a new, empty log: the old one is lost
    Reset(control::Reset),
    /// Hold all new writes, and bring everything pending to the data
    Freeze(control::Freeze),
    /// Let writes go on
    Melt {
        /// A served volume
        name: VolumeName,
    },
    /// Make all that was written durable, and print the lsid of this moment
    Mark {
        /// A served volume
        name: VolumeName,
    },
    /// Forget the log before an lsid: it is shipped
    SetOldest {
        /// A served volume
        name: VolumeName,
        /// Start of a pack
        lsid: u64,
    },
    /// Delete the registration of a volume
    Delete(list::Delete),
}

impl Volume {
    pub fn run(self) -> Result<Outcome> {
        let home = &Home::of_process(self.home)?;
        match self.action {
            Action::Create(arguments) => arguments.run(home)?,
            Action::Serve(arguments) => return arguments.run(home),
            Action::List { json } => list::list(home, json)?,
            Action::Status(arguments) => arguments.run(home)?,
            Action::Checkpoint { name } => control::connect(home, &name)?.checkpoint()?,
            Action::Resize(arguments) => arguments.run(home)?,
            Action::Reset(arguments) => arguments.run(home)?,
            Action::Freeze(arguments) => arguments.run(home)?,
            Action::Melt { name } => control::connect(home, &name)?.melt()?,
            Action::Mark { name } => {
                super::report::say(None, &control::connect(home, &name)?.mark()?.to_string())?;
            }
            Action::SetOldest { name, lsid } => {
                control::connect(home, &name)?.set_oldest(lsid)?;
            }
            Action::Delete(arguments) => arguments.run(home)?,
        }
        Ok(Outcome::Sound)
    }
}

/// Shows what is about to happen and asks, unless `yes`. Without a terminal to ask at, that is
/// wrong usage.
fn confirm(plan: &str, yes: bool) -> Result<bool> {
    use std::io::{IsTerminal, Write};
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        super::guard::usage(&format!(
            "{plan}\nexpected --yes, since there is nobody to ask"
        ));
    }
    let mut out = std::io::stderr();
    write!(out, "{plan}\nGo on? [y/N] ")?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .context("cannot read the answer")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Columns as wide as their widest cell, two spaces between them.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let text: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        text.trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
