//! `walkeep wlog cat`: from a log device, or from a volume, served or not.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use walkeep_store::ldev::{LiveLog, LogDevice};
use walkeep_store::volume::{ControlClient, ControlError, Entry, Home, VolumeName};

use super::guard::{expect_kind, refuse_same};
use super::progress::with_progress;
use super::report::{Bytes, pace, say};

#[derive(Args)]
pub struct Cat {
    /// The log device, or its image, or the name of a volume
    ldev: PathBuf,
    /// The wlog; - is standard output
    out: PathBuf,
    /// Begin with the pack of this lsid [default: the oldest]
    #[arg(long, value_name = "LSID")]
    begin: Option<u64>,
    /// Take only packs that end at or before this lsid [default: all]
    #[arg(long, value_name = "LSID")]
    end: Option<u64>,
    /// Where volumes are registered [default: as of the volume commands]
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
}

impl Cat {
    pub fn run(self) -> Result<()> {
        let Some(entry) = self.volume()? else {
            return self.cut(&self.ldev, None);
        };
        refuse_same([entry.config.data.as_path()], &self.out);
        match ControlClient::connect(&entry) {
            Ok(client) => self.cut(&entry.config.log, Some(&client)),
            Err(ControlError::NotServed(_)) => {
                // So that nobody begins to write in the middle.
                let _lock = entry.lock()?;
                self.cut(&entry.config.log, None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The volume that is meant, if it is none of the file system's names.
    fn volume(&self) -> Result<Option<Entry>> {
        let name = self.ldev.to_str().and_then(|name| name.parse().ok());
        let Some(name) = name.filter(|_: &VolumeName| !self.ldev.exists()) else {
            return Ok(None);
        };
        let home = Home::of_process(self.home.clone())?;
        match home.has(&name) {
            true => Ok(Some(home.find(&name)?)),
            false => Ok(None),
        }
    }

    fn cut(&self, ldev: &Path, live: Option<&dyn LiveLog>) -> Result<()> {
        let Self {
            out, begin, end, ..
        } = self;
        refuse_same([ldev], out);
        let device = LogDevice::open(ldev);
        let device = expect_kind(device.map_err(Into::into), ldev, "log device")?;
        let (range, time) = with_progress("cutting", |meter| match live {
            Some(live) => device.cat_live(out, *begin, *end, live, meter),
            None => device.cat(out, *begin, *end, meter),
        });
        let (from, to) = range?;
        let bytes = (to - from) * device.superblock().pbs().bytes() as u64;
        let pace = pace(bytes, time);
        let text = format!(
            "{}: lsid {from} to {to}, {} {pace}",
            out.display(),
            Bytes(bytes)
        );
        say(Some(out), &text)
    }
}
