//! From what a crash left to a volume that may serve (reference: "Crash recovery", "WAL device").
//!
//! Everything here may be cut at any call and is then begun anew: `written_lsid` moves last. It
//! runs before a machine exists, or while one is at rest.

use walkeep_wire::checksum::checksum;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::ldev::redo::{Outcome, Repair, at_bad_record, at_end};
use walkeep_wire::ldev::ring::{primary_position, secondary_position};
use walkeep_wire::logpack::{Block, Header, Record, RecordKind, classify, end_block};
use walkeep_wire::units::{INVALID_LSID, LOGICAL_BLOCK};
use walkeep_wire::{Flaw, blocks_to_bytes};

use crate::disk::DiskFile;
use crate::{Error, Result};

use std::io::{self, IoSlice};

/// An open file and what errors call it.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// The file.
    pub file: &'a dyn DiskFile,
    /// Its path.
    pub name: &'a str,
}

impl Named<'_> {
    fn fail(&self, action: &'static str, error: io::Error) -> Error {
        Error::file(self.name.as_ref(), action, error)
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_at(into, offset)
            .map_err(|e| self.fail("read", e))
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_at(&[IoSlice::new(bytes)], offset)
            .map_err(|e| self.fail("write", e))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|e| self.fail("make durable", e))
    }
}

/// What the volume knew about its log beside the superblock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// W7: the dead tail of an earlier life may be so long \[pb\]. More than the ring: unknown.
    pub window: u64,
    /// W9: lsid of the first pack that did not fit.
    pub overflow: Option<u64>,
    /// The log was closed in order there: nothing lies behind it.
    pub clean: Option<u64>,
}

/// What a recovery found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// As it is on disk now: `written_lsid` is where the next pack goes.
    pub superblock: Superblock,
    /// lsid of the first lost pack, if packs that are still needed are lost.
    pub overflow: Option<u64>,
    /// Where it began.
    pub from: u64,
    /// Packs replayed, a partly good last one included.
    pub packs: u64,
    /// Bytes of data replayed.
    pub bytes: u64,
    /// Why what stands at the end of the log is no pack.
    pub reason: String,
    /// W7: blocks that were cleared behind the end.
    pub cleared: u64,
}

/// Reads and checks the primary superblock.
///
/// # Errors
/// A bad superblock is never replaced by the secondary one: its lsids may be stale, and recovery
/// would end at once and lose data silently.
pub fn read_superblock(log: Named<'_>) -> Result<Superblock> {
    let size = log.file.size().map_err(|e| log.fail("inspect", e))?;
    let at = primary_position();
    let len = size.saturating_sub(at).min(Superblock::MAX_BYTES as u64);
    let mut bytes = vec![0; len as usize];
    log.read(&mut bytes, at)?;
    Superblock::decode(&bytes, size).map_err(|flaw| flaw.shifted(at).in_source(log.name).into())
}

/// Writes a superblock, the primary copy first, and makes it durable.
pub fn write_superblock(log: Named<'_>, superblock: &Superblock) -> Result<()> {
    let bytes = superblock.encode();
    log.write(&bytes, primary_position())?;
    log.sync()?;
    log.write(&bytes, secondary_position(superblock.pbs()))
}

/// Brings the log onto the data and makes the volume ready: replay, repair of the last pack,
/// superblock, and W7, the clearing of the dead tail.
///
/// # Errors
/// Besides I/O: a superblock or pack that breaks rules no crash breaks, data smaller than the
/// volume, and packs that go on so far behind a bad one that this is corruption and no crash.
pub fn recover(log: Named<'_>, data: Named<'_>, known: &Known) -> Result<Recovered> {
    let mut superblock = read_superblock(log)?;
    check_data_size(data, &superblock)?;
    let from = superblock.written_lsid;
    let ring = Ring {
        log,
        superblock: &superblock,
    };
    // W2 and W10 hold here, too: what is in the log's cache need not be on its disk, be it that
    // the process died before its sync or that the sync failed. So it is written again.
    let found = ring.walk(from, INVALID_LSID, Visit::Harden)?;
    let end = found.outcome.written_lsid;
    ring.check_is_tail(end, known.window)?;
    // The repair comes first: were it torn after its pack is on the data, the log would lack that.
    ring.repair(&found.outcome)?;
    log.sync()?;
    let played = ring.walk(from, end, Visit::Apply(data))?;
    ring.check_reached(&played, end)?;
    data.sync()?;
    superblock.written_lsid = end;
    write_superblock(log, &superblock)?;
    let ring = Ring {
        log,
        superblock: &superblock,
    };
    let overflow = ring.overflow(known)?;
    let cleared = match known.clean {
        Some(clean) if clean == end && from == end => 0,
        _ => ring.clear_tail(known.window, overflow.is_some())?,
    };
    Ok(Recovered {
        overflow,
        from,
        packs: found.packs,
        bytes: found.bytes,
        reason: found.reason,
        cleared,
        superblock,
    })
}

/// Replays the packs between two lsids, which are all there, and makes the data durable.
pub fn replay_again(
    log: Named<'_>,
    data: Named<'_>,
    superblock: &Superblock,
    from: u64,
    to: u64,
) -> Result<()> {
    let ring = Ring { log, superblock };
    let played = ring.walk(from, to, Visit::Apply(data))?;
    ring.check_reached(&played, to)?;
    data.sync()
}

fn check_data_size(data: Named<'_>, superblock: &Superblock) -> Result<()> {
    let size = data.file.size().map_err(|e| data.fail("inspect", e))?;
    let blocks = superblock.device_blocks;
    if size / LOGICAL_BLOCK as u64 >= blocks {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{}: size of the data: expected at least the volume's {blocks} blocks of 512 bytes, found \
         {size} bytes; is it the data of this log?",
        data.name
    )))
}

/// How a replay ended.
struct Played {
    packs: u64,
    bytes: u64,
    outcome: Outcome,
    reason: String,
}

/// What becomes of the packs that are gone through.
#[derive(Clone, Copy)]
enum Visit<'a> {
    /// They are written to the log once more.
    Harden,
    /// Their records are applied to the data.
    Apply(Named<'a>),
}

/// The ring of a log device.
struct Ring<'a> {
    log: Named<'a>,
    superblock: &'a Superblock,
}

impl Ring<'_> {
    /// Goes through the packs from an lsid on, up to another one or the end of the log.
    fn walk(&self, from: u64, to: u64, visit: Visit<'_>) -> Result<Played> {
        let mut played = Played {
            packs: 0,
            bytes: 0,
            outcome: at_end(from),
            reason: "the end asked for".into(),
        };
        let mut lsid = from;
        while lsid < to {
            let (pack, block) = match self.pack_at(lsid)? {
                Ok(pack) => pack,
                Err(reason) => {
                    played.reason = reason;
                    break;
                }
            };
            let body = self.body(&pack)?;
            if matches!(visit, Visit::Harden) {
                self.write_again(&pack, &block, &body)?;
            }
            played.packs += 1;
            for (index, record) in pack.records.iter().enumerate() {
                let io = self.io(record, &body);
                if record.kind == RecordKind::Data
                    && checksum(io, self.superblock.salt) != record.checksum
                {
                    let (pbs, salt) = (self.superblock.pbs(), self.superblock.salt);
                    played.outcome = at_bad_record(from, &pack, index, pbs, salt);
                    played.reason =
                        format!("bad data of record {index} of the pack at lsid {lsid}");
                    return Ok(played);
                }
                if let Visit::Apply(data) = visit {
                    self.apply(data, record, io)?;
                }
                played.bytes += io.len() as u64;
            }
            lsid = pack.next_lsid();
            played.outcome = at_end(lsid);
            if lsid - from > self.superblock.ring.size() {
                return Err(self.flaw(lsid, "length of the log", "less than the ring"));
            }
        }
        Ok(played)
    }

    /// Writes a pack where it stands already.
    fn write_again(&self, pack: &Header, block: &[u8], body: &[u8]) -> Result<()> {
        let ring = &self.superblock.ring;
        self.log.write(block, ring.position(pack.lsid))?;
        let mut rest = body;
        for run in ring.runs(pack.lsid + 1, u64::from(pack.total_pb)) {
            let (now, later) = rest.split_at(run.bytes as usize);
            self.log.write(now, run.position)?;
            rest = later;
        }
        Ok(())
    }

    /// The packs before `to` are known to be there.
    fn check_reached(&self, played: &Played, to: u64) -> Result<()> {
        let end = played.outcome.written_lsid;
        if end == to {
            return Ok(());
        }
        let flaw = Flaw::new(
            self.superblock.ring.position(end),
            "log",
            format!("packs up to lsid {to}"),
            format!("{} at lsid {end}", played.reason),
        );
        Err(flaw.in_source(self.log.name).into())
    }

    fn flaw(&self, lsid: u64, what: &'static str, expected: impl ToString) -> Error {
        let found = format!("lsid {lsid}");
        let position = self.superblock.ring.position(lsid);
        Flaw::new(position, what, expected.to_string(), found)
            .in_source(self.log.name)
            .into()
    }

    /// The pack at an lsid with its header block, or why the log ends there.
    fn pack_at(&self, lsid: u64) -> Result<std::result::Result<(Header, Vec<u8>), String>> {
        let Superblock { ring, salt, .. } = self.superblock;
        let mut block = vec![0; ring.pbs().bytes()];
        self.log.read(&mut block, ring.position(lsid))?;
        match classify(&block, ring.pbs(), *salt, lsid) {
            Block::Pack(pack) if u64::from(pack.total_pb) >= ring.size() => {
                Err(self.flaw(lsid, "logpack size", "less than the ring"))
            }
            Block::Pack(pack) => Ok(Ok((pack, block))),
            Block::End => Ok(Err("an end block".into())),
            Block::NotAPack(flaw) => Ok(Err(flaw.shifted(ring.position(lsid)).to_string())),
            // No crash leaves a header with a good checksum that breaks a rule.
            Block::Broken(flaw) => {
                let flaw = flaw.shifted(ring.position(lsid));
                Err(flaw.in_source(self.log.name).into())
            }
        }
    }

    /// The blocks behind the header of a pack.
    fn body(&self, pack: &Header) -> Result<Vec<u8>> {
        let pb = self.superblock.pbs().bytes();
        let mut body = vec![0; usize::from(pack.total_pb) * pb];
        let mut rest = &mut body[..];
        let runs = self
            .superblock
            .ring
            .runs(pack.lsid + 1, u64::from(pack.total_pb));
        for run in runs {
            let (now, later) = rest.split_at_mut(run.bytes as usize);
            self.log.read(now, run.position)?;
            rest = later;
        }
        Ok(body)
    }

    /// The data of a record, empty unless it has some.
    fn io<'b>(&self, record: &Record, body: &'b [u8]) -> &'b [u8] {
        let pb = self.superblock.pbs().bytes();
        let start = (usize::from(record.local) - 1) * pb;
        match record.kind {
            RecordKind::Data => &body[start..start + record.bytes() as usize],
            RecordKind::Padding | RecordKind::Discard => &[],
        }
    }

    fn apply(&self, data: Named<'_>, record: &Record, io: &[u8]) -> Result<()> {
        if record.kind == RecordKind::Padding {
            return Ok(());
        }
        let end = record.address.checked_add(u64::from(record.blocks));
        if end.is_none_or(|end| end > self.superblock.device_blocks) {
            let expected = format!("an end within {} blocks", self.superblock.device_blocks);
            return Err(self.flaw(record.lsid, "range of an IO", expected));
        }
        let offset = record.address * LOGICAL_BLOCK as u64;
        if record.kind == RecordKind::Data {
            return data.write(io, offset);
        }
        data.file
            .punch(offset, blocks_to_bytes(record.blocks))
            .map_err(|e| data.fail("discard a range of", e))
    }

    fn repair(&self, outcome: &Outcome) -> Result<()> {
        let (pbs, salt) = (self.superblock.pbs(), self.superblock.salt);
        let block = match &outcome.repair {
            Repair::None => return Ok(()),
            Repair::Shrink(header) => header.encode(pbs, salt),
            Repair::EndBlock => end_block(pbs, salt),
        };
        let position = self.superblock.ring.position(outcome.lsid);
        self.log.write(&block, position)
    }

    /// A log is never further ahead of what is durable than the window. A pack that far behind the
    /// end was durable once, and so was what is bad before it.
    fn check_is_tail(&self, end: u64, window: u64) -> Result<()> {
        let ring = self.superblock.ring.size();
        // No pack is longer: one that reaches there begins after the window or ends within this.
        let longest = (1 << 20) / self.superblock.pbs().bytes() as u64;
        let first = end.saturating_add(window).saturating_add(1);
        let last = first.saturating_add(longest).min(end + ring);
        for lsid in first..last {
            if self.pack_at(lsid)?.is_ok() {
                return Err(Error::Refused(format!(
                    "{}: the log is corrupt at lsid {end} (byte {}): it goes on at lsid {lsid}, \
                     further behind than a crash can leave it. Copy log and data, then either \
                     restore the volume from a backup, or give up the writes from lsid {end} on \
                     (walkeep ldev redo) and take a hash backup",
                    self.log.name,
                    self.superblock.ring.position(end),
                )));
            }
        }
        Ok(())
    }

    /// W9 on attach: the mark, the positions, or what stands in the cell of the oldest lsid.
    fn overflow(&self, known: &Known) -> Result<Option<u64>> {
        let Superblock {
            ring,
            oldest_lsid: oldest,
            written_lsid: latest,
            ..
        } = *self.superblock;
        let lost = known.overflow;
        if lost.is_some() || ring.overflows(oldest, latest) {
            return Ok(lost.or(Some(oldest.saturating_add(ring.size()))));
        }
        if oldest < latest && self.pack_at(oldest)?.is_err() {
            return Ok(Some(latest));
        }
        Ok(None)
    }

    /// W7: clears what an earlier life may have left behind the end, as far as nobody needs it.
    fn clear_tail(&self, window: u64, overflow: bool) -> Result<u64> {
        let Superblock {
            ring,
            oldest_lsid: oldest,
            written_lsid: latest,
            ..
        } = *self.superblock;
        let free = match overflow {
            true => ring.size(),
            false => oldest + ring.size() - latest,
        };
        let blocks = window.min(free);
        let zeros = vec![0; 1 << 20];
        for run in ring.runs(latest, blocks) {
            let mut at = run.position;
            while at < run.position + run.bytes {
                let step = (run.position + run.bytes - at).min(zeros.len() as u64);
                self.log.write(&zeros[..step as usize], at)?;
                at += step;
            }
        }
        self.log.sync()?;
        Ok(blocks)
    }
}
