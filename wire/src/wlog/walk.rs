//! The rules of a wlog file as a state machine (reference: "wlog").
//!
//! A walk says where the next header stands and how long it is; whoever has the bytes feeds them.
//! So a reader of a pipe and a parallel reader of a file share the rules. The walk never sees the
//! data of the packs: the driver reads or skips it, and verifies its checksums.

use super::header::FileHeader;
use crate::error::{Flaw, demand};
use crate::logpack::{Header, is_end_block};
use crate::units::{PhysicalBlock, Uuid};

/// What a header that was fed turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A wlog file begins. Another may follow after [`Step::End`], with another salt.
    Header(FileHeader),
    /// A pack. Its data stands between [`Walk::pack_position`] and the new [`Walk::position`].
    Pack(Header),
    /// The end block of a file.
    End {
        /// The next lsid of its last pack, or where it began if it has none.
        real_end_lsid: u64,
    },
}

/// What must stand at the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// The first file header.
    First,
    /// A pack header or an end block.
    Pack(FileHeader),
    /// The end of input, or the header of a file that continues this one.
    Next(FileHeader),
}

/// A walk over one wlog, or several in a row.
#[derive(Clone, Debug)]
pub struct Walk {
    want: Want,
    position: u64,
    pack_position: u64,
    lsid: u64,
}

impl Default for Walk {
    fn default() -> Self {
        Self::new()
    }
}

impl Walk {
    /// A walk that begins with a file header at byte 0.
    pub const fn new() -> Self {
        Self {
            want: Want::First,
            position: 0,
            pack_position: 0,
            lsid: 0,
        }
    }

    /// Absolute byte offset of the bytes to feed next.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Number of bytes to feed next: 4096 for a file header, one physical block for a pack header.
    pub const fn need(&self) -> usize {
        match &self.want {
            Want::First | Want::Next(_) => FileHeader::BYTES,
            Want::Pack(file) => file.pbs.bytes(),
        }
    }

    /// True if the input may end at [`Walk::position`], which is so after an end block only.
    pub const fn may_end_here(&self) -> bool {
        matches!(self.want, Want::Next(_))
    }

    /// The header of the current file; `None` before the first.
    pub const fn header(&self) -> Option<&FileHeader> {
        match &self.want {
            Want::First => None,
            Want::Pack(file) | Want::Next(file) => Some(file),
        }
    }

    /// lsid that the next pack must have: the real end so far.
    pub const fn lsid(&self) -> u64 {
        self.lsid
    }

    /// Absolute byte offset of the header block of the last pack. Add
    /// [`crate::logpack::Record::data_offset`] for the data of a record.
    pub const fn pack_position(&self) -> u64 {
        self.pack_position
    }

    /// Takes the [`Walk::need`] bytes that stand at [`Walk::position`], or fewer where the input
    /// is cut short.
    ///
    /// # Errors
    /// Whatever rule is broken, at its absolute offset. The walk stays where it is.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step, Flaw> {
        self.demand_all(bytes)?;
        let step = match self.want {
            Want::First => self.file(bytes, None),
            Want::Next(last) => self.file(bytes, Some(last)),
            Want::Pack(file) if is_end_block(bytes, file.pbs, file.salt) => self.end(file),
            Want::Pack(file) => self.pack(bytes, file),
        };
        step.map_err(|flaw| flaw.shifted(self.position))
            .and_then(|(step, next)| self.advance(step, next))
    }

    /// To be called when the input ends at [`Walk::position`].
    ///
    /// # Errors
    /// If a header or the end block is missing there.
    pub fn finish(&self) -> Result<(), Flaw> {
        if self.may_end_here() {
            Ok(())
        } else {
            self.demand_all(&[])
        }
    }

    fn demand_all(&self, bytes: &[u8]) -> Result<(), Flaw> {
        let (len, need) = (bytes.len(), self.need());
        let at = self.position.saturating_add(len.min(need) as u64);
        let what = match self.want {
            Want::First | Want::Next(_) => "wlog header",
            Want::Pack(_) => "logpack header or end block",
        };
        let found = || format!("{len} (truncated)");
        demand!(len >= need, at, what, format!("{need} bytes"), found());
        demand!(len == need, at, what, format!("{need} bytes"), len);
        Ok(())
    }

    fn file(&self, bytes: &[u8], last: Option<FileHeader>) -> Result<(Step, Want), Flaw> {
        let file = FileHeader::decode(bytes)?;
        if let Some(last) = last {
            continues(&file, last.uuid, last.pbs, self.lsid)?;
        }
        Ok((Step::Header(file), Want::Pack(file)))
    }

    fn end(&self, file: FileHeader) -> Result<(Step, Want), Flaw> {
        Ok((
            Step::End {
                real_end_lsid: self.lsid,
            },
            Want::Next(file),
        ))
    }

    fn pack(&self, bytes: &[u8], file: FileHeader) -> Result<(Step, Want), Flaw> {
        let pack = Header::decode(bytes, file.pbs, file.salt)?;
        let (lsid, next, end) = (self.lsid, pack.next_lsid(), file.end_lsid);
        demand!(
            pack.lsid == lsid,
            8,
            "logpack lsid",
            format!("{lsid}, after the pack before"),
            pack.lsid
        );
        demand!(
            next <= end,
            8,
            "end of the logpack",
            format!("at most end_lsid {end}"),
            next
        );
        Ok((Step::Pack(pack), Want::Pack(file)))
    }

    /// Moves behind what was fed, and behind the data of a pack.
    fn advance(&mut self, step: Step, next: Want) -> Result<Step, Flaw> {
        let data = match (&step, self.want) {
            (Step::Pack(pack), Want::Pack(file)) => {
                u64::from(pack.total_pb) * file.pbs.bytes() as u64
            }
            _ => 0,
        };
        let end = self.position.checked_add(self.need() as u64 + data);
        let at = self.position;
        let end = end.ok_or_else(|| Flaw::new(at, "wlog", "less than 2^64 bytes", "more"))?;
        match &step {
            Step::Header(file) => self.lsid = file.begin_lsid,
            Step::Pack(pack) => {
                self.lsid = pack.next_lsid();
                self.pack_position = at;
            }
            Step::End { .. } => {}
        }
        (self.position, self.want) = (end, next);
        Ok(step)
    }
}

/// The rules for wlogs in a row: the same log goes on where it ended.
fn continues(file: &FileHeader, uuid: Uuid, pbs: PhysicalBlock, lsid: u64) -> Result<(), Flaw> {
    demand!(
        file.uuid == uuid,
        24,
        "uuid of the next wlog",
        uuid,
        file.uuid
    );
    let (found, want) = (file.pbs.bytes(), pbs.bytes());
    demand!(
        found == want,
        20,
        "physical block size of the next wlog",
        want,
        found
    );
    demand!(
        file.begin_lsid == lsid,
        40,
        "begin_lsid of the next wlog",
        lsid,
        file.begin_lsid
    );
    Ok(())
}

#[cfg(test)]
mod tests;
