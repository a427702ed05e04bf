//! The state file of a volume: what the superblock of the original format has no room for
//! (reference: "Volume folder").
//!
//! One line of JSON, one line with its CRC-32. It is replaced as a whole, and only ever names the
//! log whose uuid it carries: after a reset an old one means nothing.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use walkeep_wire::ldev::Superblock;

use super::recover::Known;
use crate::disk::{Disk, Mode, replace};
use crate::{Error, Result};

const FORMAT: u32 = 1;
/// No state file is longer.
const MAX_BYTES: u64 = 4096;

/// W9: the log overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// lsid of the first pack that did not fit.
    pub lsid: u64,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// What is kept about a log beside its superblock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    format: u32,
    /// uuid of the log, 32 hex digits.
    pub uuid: String,
    /// W7: greatest length of a dead tail, ever \[physical blocks\].
    pub window: u64,
    /// W9, if the log overflowed.
    pub overflow: Option<Mark>,
    /// The log was closed in order, and ends there.
    pub clean: Option<u64>,
}

impl State {
    /// Of a log that was just formatted, or emptied by a reset.
    pub fn fresh(superblock: &Superblock) -> Self {
        Self {
            format: FORMAT,
            uuid: superblock.uuid.to_string(),
            window: 0,
            overflow: None,
            clean: Some(superblock.written_lsid),
        }
    }

    /// Of a log that another program wrote: how long its dead tail may be is unknown.
    pub fn foreign(superblock: &Superblock) -> Self {
        Self {
            window: superblock.ring.size(),
            clean: None,
            ..Self::fresh(superblock)
        }
    }

    /// Reads the state for the log of `superblock`. Without a file, or with that of another log, it
    /// is that of a foreign log.
    ///
    /// # Errors
    /// A file that is damaged, or of a later format.
    pub fn load(disk: &dyn Disk, path: &Path, superblock: &Superblock) -> Result<Self> {
        let fail = |e| Error::file(path, "read", e);
        let file = match disk.open(path, Mode::Read) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::foreign(superblock));
            }
            other => other.map_err(fail)?,
        };
        let size = file.size().map_err(fail)?.min(MAX_BYTES);
        let mut bytes = vec![0; size as usize];
        file.read_at(&mut bytes, 0).map_err(fail)?;
        let state = Self::decode(&bytes).map_err(|why| {
            Error::Refused(format!(
                "{}: {why}. If it cannot be repaired, remove it: all of the free log is cleared \
                 then when the volume is opened, and an overflow is found by what the log holds",
                path.display()
            ))
        })?;
        match state.uuid == superblock.uuid.to_string() {
            true => Ok(state),
            false => Ok(Self::foreign(superblock)),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "expected text".to_owned())?;
        let mut lines = text.lines();
        let (line, sum) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let want = format!("{:08x}", crc32fast::hash(line.as_bytes()));
        if sum != want {
            return Err(format!(
                "line 2: expected the CRC-32 {want} of line 1, found {sum:?}"
            ));
        }
        let state: Self = serde_json::from_str(line).map_err(|e| format!("line 1: {e}"))?;
        match state.format {
            FORMAT => Ok(state),
            other => Err(format!("format: expected {FORMAT}, found {other}")),
        }
    }

    /// Stores the state durably.
    pub fn save(&self, disk: &dyn Disk, path: &Path) -> Result<()> {
        let line = serde_json::to_string(self)
            .map_err(|e| Error::file(path, "write", io::Error::other(e)))?;
        let text = format!("{line}\n{:08x}\n", crc32fast::hash(line.as_bytes()));
        replace(disk, path, text.as_bytes()).map_err(|e| Error::file(path, "write", e))
    }

    /// What recovery needs of it.
    pub fn known(&self) -> Known {
        Known {
            window: self.window,
            overflow: self.overflow.map(|mark| mark.lsid),
            clean: self.clean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use walkeep_wire::{PhysicalBlock, Uuid};

    #[test]
    fn it_comes_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let superblock =
            Superblock::format(Uuid([1; 16]), 5, "v", 100, 1 << 20, PhysicalBlock::B512).unwrap();
        let load = || State::load(&RealDisk, &path, &superblock);
        assert_eq!(load().unwrap(), State::foreign(&superblock));
        let state = State {
            overflow: Some(Mark { lsid: 7, time: 8 }),
            ..State::fresh(&superblock)
        };
        state.save(&RealDisk, &path).unwrap();
        assert_eq!(load().unwrap(), state);

        let other = Superblock {
            uuid: Uuid([2; 16]),
            ..superblock.clone()
        };
        let foreign = State::load(&RealDisk, &path, &other).unwrap();
        assert_eq!(foreign, State::foreign(&other));

        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(":7", ":6")).unwrap();
        let error = load().unwrap_err().to_string();
        assert!(
            error.contains("CRC-32") && error.contains("remove it"),
            "{error}"
        );
        std::fs::write(&path, "").unwrap();
        assert!(load().is_err());
    }
}
