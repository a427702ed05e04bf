//! Log devices offline: format, inspect, cut a wlog out of one, recover after a crash
//! (reference: "Log device", "Crash recovery").

use std::fs::File;
use std::io::{BufWriter, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walkeep_wire::checksum::Checksum;
use walkeep_wire::ldev::redo::{Outcome, Repair, at_bad_record, at_end};
use walkeep_wire::ldev::ring::{primary_position, secondary_position};
use walkeep_wire::ldev::{Name, Superblock};
use walkeep_wire::logpack::{Block, Header, Record, RecordKind, classify, end_block};
use walkeep_wire::units::INVALID_LSID;
use walkeep_wire::wdiff::{Kind, Tally};
use walkeep_wire::wlog::FileHeader;
use walkeep_wire::wlog::writer::Writer;
use walkeep_wire::{Flaw, LOGICAL_BLOCK, PhysicalBlock, Uuid};

use crate::disk::{Disk, DiskFile, Mode, RealDisk};
use crate::image::ImageFile;
use crate::output::Output;
use crate::{Error, Meter, Result};

/// Log data is read in steps of this size.
const STEP: usize = 1 << 20;
/// Bytes of a live log between two looks at where its writer is.
const CHUNK: usize = 4 << 20;

/// A wlog being cut.
type WlogWriter = Writer<BufWriter<Output>>;

/// A log device open for reading, or for recovery.
pub struct LogDevice {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    name: String,
    superblock: Superblock,
}

/// How the log of a device ends.
#[derive(Clone, Debug)]
pub struct LogEnd {
    /// Packs up to the end, a partly good last one included.
    pub packs: u64,
    /// Bytes of their IOs' data.
    pub data_bytes: u64,
    /// What recovery would do there.
    pub outcome: Outcome,
    /// Index of the first record with bad data in the last pack.
    pub bad_record: Option<usize>,
    /// Why what stands at the end is no pack; not an error.
    pub reason: String,
}

/// What a recovery did.
#[derive(Clone, Debug)]
pub struct RecoveryReport {
    /// Where it began.
    pub from_lsid: u64,
    /// The end it found.
    pub end: LogEnd,
    /// IOs replayed.
    pub applied: Tally,
    /// IOs that reach past the end of the image; they were not written. If there are any, the log
    /// device was left as it is.
    pub outside: Tally,
}

/// The log of a volume that is being served, seen from outside: what may be read of it.
pub trait LiveLog {
    /// As of now.
    fn window(&self) -> Result<Window>;
}

/// What a served log is at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Identity of the log, 32 hex digits.
    pub uuid: String,
    /// Oldest pack still needed.
    pub oldest: u64,
    /// Before it everything is durable; what follows may be torn, or vanish in a crash.
    pub permanent: u64,
    /// Where the next pack goes: the ring is overwritten up to one round before it.
    pub latest: u64,
    /// Packs that were still needed are lost.
    pub overflow: bool,
}

/// Values of a new log device.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions<'a> {
    /// Size of the data device \[lb\].
    pub data_blocks: u64,
    /// Physical block size.
    pub pbs: PhysicalBlock,
    /// Name in the superblock, at most 31 bytes.
    pub name: &'a str,
    /// Format although a log device stands there.
    pub force: bool,
}

/// Formats `path`, an existing file or block device, as an empty log device.
///
/// # Errors
/// Without `force`, [`Error::Refused`] if it holds a log device already: its log would be lost.
pub fn format(path: &Path, options: &FormatOptions<'_>) -> Result<Superblock> {
    format_on(&RealDisk, path, options)
}

/// [`format`] on `disk`.
pub fn format_on(disk: &dyn Disk, path: &Path, options: &FormatOptions<'_>) -> Result<Superblock> {
    let fail = |action| move |e| Error::file(path, action, e);
    let file = disk
        .open(path, Mode::Write)
        .map_err(fail("open for reading and writing"))?;
    format_file(path, &*file, options)
}

/// As [`format`], for a file that is open and perhaps has no name yet; `path` is for errors.
pub(crate) fn format_file(
    path: &Path,
    file: &dyn DiskFile,
    options: &FormatOptions<'_>,
) -> Result<Superblock> {
    let fail = |action| move |e| Error::file(path, action, e);
    let size = file.size().map_err(fail("inspect"))?;
    if !options.force && has_superblock(file).map_err(fail("inspect"))? {
        return Err(Error::Refused(format!(
            "{}: offset {}: a log device stands there, and its log would be lost (--force formats \
             it anew)",
            path.display(),
            primary_position()
        )));
    }
    let (uuid, salt) = fresh_identity().map_err(fail("draw random numbers for"))?;
    let FormatOptions {
        data_blocks,
        pbs,
        name,
        ..
    } = *options;
    let superblock = Superblock::format(uuid, salt, name, data_blocks, size, pbs)
        .map_err(|flaw| flaw.in_source(&path.display().to_string()))?;
    check_device_block(path, file, pbs)?;
    let bytes = superblock.encode();
    let write = || {
        write_at(file, &bytes, primary_position())?;
        write_at(file, &bytes, secondary_position(pbs))?;
        // What stood there before must not be taken for the first pack.
        write_at(file, &vec![0; pbs.bytes()], superblock.ring.position(0))?;
        file.sync()
    };
    write().map_err(fail("format"))?;
    Ok(superblock)
}

fn write_at(file: &dyn DiskFile, bytes: &[u8], position: u64) -> std::io::Result<()> {
    file.write_at(&[IoSlice::new(bytes)], position)
}

/// Size of a data device \[lb\] and the physical block size that suits it and its log device: the
/// greater one of block devices, else 4096 if the data has whole blocks of that size.
pub fn common_geometry(log: &Path, data: &Path) -> Result<(u64, PhysicalBlock)> {
    let inspect = |path: &Path| {
        let look = || {
            let file = RealDisk.open(path, Mode::Read)?;
            Ok((file.size()?, file.physical_block()?))
        };
        look().map_err(|e| Error::file(path, "inspect", e))
    };
    let ((_, log_block), (bytes, data_block)) = (inspect(log)?, inspect(data)?);
    let suits = if bytes.is_multiple_of(4096) {
        4096
    } else {
        512
    };
    let block = log_block.max(data_block).unwrap_or(suits);
    let name = data.display().to_string();
    let pbs = PhysicalBlock::new(block, 0).map_err(|flaw| flaw.in_source(&name))?;
    if bytes == 0 || !bytes.is_multiple_of(u64::from(block)) {
        return Err(Error::Refused(format!(
            "{name}: size: expected a multiple of the block size {block}, at least one block, \
             found {bytes}"
        )));
    }
    Ok((bytes / LOGICAL_BLOCK as u64, pbs))
}

/// Gives back all space of a log device, if it is a block device that can; a file stays as it is.
pub fn discard_device(path: &Path) -> Result<()> {
    let discard = || {
        let file = RealDisk.open(path, Mode::Write)?;
        match file.physical_block()? {
            Some(_) => file.discard(0, file.size()?),
            None => Ok(()),
        }
    };
    discard().map_err(|e| Error::file(path, "discard", e))
}

/// True where a superblock stands, even one that is damaged: its log could still be saved.
fn has_superblock(file: &dyn DiskFile) -> std::io::Result<bool> {
    const TYPE_AND_VERSION: [u8; 4] = [1, 0, 2, 0];
    let mut head = [0; TYPE_AND_VERSION.len()];
    match file.read_at(&mut head, primary_position()) {
        Ok(()) => Ok(head == TYPE_AND_VERSION),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// A random uuid and salt.
pub(crate) fn fresh_identity() -> std::io::Result<(Uuid, u32)> {
    let mut bytes = [0; 20];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let (uuid, salt) = bytes.split_at(16);
    let mut id = [0; 16];
    id.copy_from_slice(uuid);
    Ok((
        Uuid(id),
        salt.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)),
    ))
}

/// A block device must have the physical block size of its log.
fn check_device_block(path: &Path, file: &dyn DiskFile, pbs: PhysicalBlock) -> Result<()> {
    let device = file.physical_block();
    let device = device.map_err(|e| Error::file(path, "inspect", e))?;
    let Some(device) = device.filter(|device| *device as usize > pbs.bytes()) else {
        return Ok(());
    };
    Err(Error::Refused(format!(
        "{}: physical block size of the log: expected at least the device's {device}, found {}",
        path.display(),
        pbs.bytes()
    )))
}

impl LogDevice {
    /// Opens a log device for reading.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_on(&RealDisk, path, Mode::Read)
    }

    /// Opens a log device for recovery.
    pub fn open_for_recovery(path: &Path) -> Result<Self> {
        Self::open_on(&RealDisk, path, Mode::Write)
    }

    /// Opens a log device on `disk`; recovery needs [`Mode::Write`].
    pub fn open_on(disk: &dyn Disk, path: &Path, mode: Mode) -> Result<Self> {
        let file = disk
            .open(path, mode)
            .map_err(|e| Error::file(path, "open", e))?;
        let size = file.size().map_err(|e| Error::file(path, "inspect", e))?;
        let name = path.display().to_string();
        let at = primary_position();
        let mut bytes =
            vec![0; (size.saturating_sub(at)).min(Superblock::MAX_BYTES as u64) as usize];
        file.read_at(&mut bytes, at)
            .map_err(|e| walkeep_wire::Error::io(&name, at, "superblock", e))?;
        let superblock =
            Superblock::decode(&bytes, size).map_err(|flaw| flaw.shifted(at).in_source(&name))?;
        check_device_block(path, &*file, superblock.pbs())?;
        Ok(Self {
            file,
            path: path.to_owned(),
            name,
            superblock,
        })
    }

    /// The superblock.
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The label of errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands at the place of `lsid`, and the block itself.
    fn block_at(&self, lsid: u64) -> Result<(Block, Vec<u8>)> {
        let Superblock { ring, salt, .. } = self.superblock;
        let mut block = vec![0; ring.pbs().bytes()];
        let position = ring.position(lsid);
        self.read(&mut block, position)?;
        Ok((classify(&block, ring.pbs(), salt, lsid), block))
    }

    fn read(&self, into: &mut [u8], position: u64) -> Result<()> {
        self.file
            .read_at(into, position)
            .map_err(|e| walkeep_wire::Error::io(&self.name, position, "log", e).into())
    }

    /// The pack at `lsid`, or why the log ends there.
    ///
    /// # Errors
    /// A header with the right type, lsid and checksum that breaks a rule: no crash leaves that.
    fn pack_at(&self, lsid: u64) -> Result<std::result::Result<Header, String>> {
        let located = |flaw: Flaw| {
            flaw.shifted(self.superblock.ring.position(lsid))
                .in_source(&self.name)
        };
        let ring = &self.superblock.ring;
        match self.block_at(lsid)?.0 {
            Block::Pack(pack) if u64::from(pack.total_pb) >= ring.size() => {
                let expected = format!("less than the ring's {} blocks", ring.size());
                Err(located(Flaw::new(6, "logpack size", expected, pack.total_pb)).into())
            }
            Block::Pack(pack) if pack.next_lsid() == INVALID_LSID => {
                let flaw = Flaw::new(
                    8,
                    "lsid after the logpack",
                    "less than 2^64-1",
                    INVALID_LSID,
                );
                Err(located(flaw).into())
            }
            Block::Pack(pack) => Ok(Ok(pack)),
            Block::End => Ok(Err("an end block".to_owned())),
            Block::NotAPack(flaw) => Ok(Err(flaw.shifted(ring.position(lsid)).to_string())),
            Block::Broken(flaw) => Err(located(flaw).into()),
        }
    }

    /// Hands the log's blocks of a record to `each` in pieces. Returns the checksum of its data if
    /// that is not what the record says.
    fn read_record(
        &self,
        record: &Record,
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Option<u32>> {
        let Superblock { ring, salt, .. } = self.superblock;
        let mut sum = Checksum::new(salt);
        let mut covered = record.bytes();
        let mut buffer =
            vec![0; STEP.min(record.data_pb(ring.pbs()) as usize * ring.pbs().bytes())];
        for run in ring.runs(record.lsid, u64::from(record.data_pb(ring.pbs()))) {
            let mut position = run.position;
            let end = run.position + run.bytes;
            while position < end {
                let piece = &mut buffer[..(STEP as u64).min(end - position) as usize];
                self.read(piece, position)?;
                let with_sum = covered.min(piece.len() as u64);
                sum.update(&piece[..with_sum as usize]);
                covered -= with_sum;
                each(piece)?;
                position += piece.len() as u64;
            }
        }
        let found = sum.finish();
        let is_bad = record.kind == RecordKind::Data && found != record.checksum;
        Ok(is_bad.then_some(found))
    }

    /// Finds the end of the log that begins at `from`, checking all data.
    pub fn find_end(&self, from: u64, meter: &Meter) -> Result<LogEnd> {
        let Superblock { ring, salt, .. } = self.superblock;
        let mut lsid = from;
        let (mut packs, mut data_bytes) = (0, 0);
        let end = |packs, data_bytes, outcome, bad_record, reason| {
            Ok(LogEnd {
                packs,
                data_bytes,
                outcome,
                bad_record,
                reason,
            })
        };
        loop {
            let pack = match self.pack_at(lsid)? {
                Ok(pack) => pack,
                Err(reason) => return end(packs, data_bytes, at_end(lsid), None, reason),
            };
            for (index, record) in pack.records.iter().enumerate() {
                if let Some(found) = self.read_record(record, |_| Ok(()))? {
                    let outcome = at_bad_record(from, &pack, index, ring.pbs(), salt);
                    let reason = self.bad_data(record, found).to_string();
                    return end(packs + 1, data_bytes, outcome, Some(index), reason);
                }
                if record.kind == RecordKind::Data {
                    data_bytes += record.bytes();
                }
            }
            meter.add(pack.pack_bytes(ring.pbs()));
            packs += 1;
            lsid = pack.next_lsid();
            if lsid - from > ring.size() {
                let flaw = Flaw::new(
                    ring.position(lsid),
                    "length of the log",
                    format!("at most the ring's {} blocks", ring.size()),
                    lsid - from,
                );
                return Err(flaw.in_source(&self.name).into());
            }
        }
    }

    /// Cuts the log from `begin` (or the oldest lsid) to `end` (or its end) into a wlog. Only whole
    /// packs are taken. Returns the lsids of the first pack and of the one that would follow.
    ///
    /// # Errors
    /// [`Error::Refused`] for a `begin` where no pack stands or that is older than the oldest; a
    /// record whose data is bad: such a log needs recovery first.
    pub fn cat(
        &self,
        output: &Path,
        begin: Option<u64>,
        end: Option<u64>,
        meter: &Meter,
    ) -> Result<(u64, u64)> {
        self.check_overflow()?;
        let Superblock {
            oldest_lsid,
            written_lsid,
            ..
        } = self.superblock;
        let end = end.unwrap_or(INVALID_LSID);
        let asked = begin.is_some();
        let begin = begin.unwrap_or(oldest_lsid);
        self.check_range(begin, end, oldest_lsid)?;
        if asked {
            self.check_begin(begin)?;
        }
        let mut writer = self.begin_wlog(output, begin, end)?;
        let mut lsid = begin;
        while let Some(next) = self.copy_pack(&mut writer, lsid, end, written_lsid, meter)? {
            lsid = next;
            if lsid - begin > self.superblock.ring.size() {
                break;
            }
        }
        finish_wlog(writer, output)?;
        Ok((begin, lsid))
    }

    /// As [`Self::cat`], from a log that is written to meanwhile: only what is durable is taken, and
    /// nothing that was overwritten while it was read.
    ///
    /// # Errors
    /// [`Error::Refused`] if the log overflowed before its packs were read, or was reset.
    pub fn cat_live(
        &self,
        output: &Path,
        begin: Option<u64>,
        end: Option<u64>,
        live: &dyn LiveLog,
        meter: &Meter,
    ) -> Result<(u64, u64)> {
        let window = live.window()?;
        let end = end.unwrap_or(INVALID_LSID);
        let asked = begin.is_some();
        let begin = begin.unwrap_or(window.oldest);
        self.check_range(begin, end, window.oldest)?;
        self.check_window(&window, begin)?;
        if asked && begin != window.permanent {
            self.check_begin(begin)?;
        }
        let limit = end.min(window.permanent);
        let mut writer = self.begin_wlog(output, begin, end)?;
        let mut lsid = begin;
        while lsid < limit {
            // A chunk is trusted when it stood there until after it was read. What was overwritten
            // meanwhile may look like anything, so that is asked before errors are believed.
            let chunk = self.copy_chunk(&mut writer, lsid, limit, meter);
            self.check_window(&live.window()?, lsid)?;
            match chunk? {
                next if next == lsid => break,
                next => lsid = next,
            }
        }
        finish_wlog(writer, output)?;
        Ok((begin, lsid))
    }

    /// Copies packs of a few MiB, all before `limit`. Returns the lsid that follows.
    fn copy_chunk(
        &self,
        writer: &mut WlogWriter,
        begin: u64,
        limit: u64,
        meter: &Meter,
    ) -> Result<u64> {
        let mut lsid = begin;
        let blocks = (CHUNK / self.superblock.pbs().bytes()) as u64;
        while lsid < limit && lsid - begin < blocks {
            match self.copy_pack(writer, lsid, limit, limit, meter)? {
                Some(next) => lsid = next,
                None => break,
            }
        }
        Ok(lsid)
    }

    /// The packs from `lsid` on are those of the log that was opened, and were not overwritten.
    fn check_window(&self, window: &Window, lsid: u64) -> Result<()> {
        let Superblock { ring, uuid, .. } = self.superblock;
        let name = &self.name;
        if window.uuid != uuid.to_string() {
            return Err(Error::Refused(format!(
                "{name}: log: expected {uuid}, found {}: it was reset meanwhile; take a full or \
                 hash backup",
                window.uuid
            )));
        }
        if window.overflow || ring.overflows(lsid, window.latest) {
            return Err(Error::Refused(format!(
                "{name}: the log overflowed: expected at most {} blocks between lsid {lsid} and \
                 the latest lsid {}; only a reset of the log and a full or hash backup help",
                ring.size(),
                window.latest
            )));
        }
        Ok(())
    }

    fn begin_wlog(&self, output: &Path, begin: u64, end: u64) -> Result<WlogWriter> {
        let Superblock {
            ring, salt, uuid, ..
        } = self.superblock;
        let header = FileHeader {
            salt,
            pbs: ring.pbs(),
            uuid,
            begin_lsid: begin,
            end_lsid: end,
        };
        let label = output.display().to_string();
        let out = BufWriter::with_capacity(STEP, Output::create(output)?);
        Ok(Writer::new(out, &label, header)?)
    }

    /// Copies the pack at `lsid` with its data if it ends at or before `end`, and returns the lsid
    /// that follows. A log that ends before `least` lost packs.
    fn copy_pack(
        &self,
        writer: &mut WlogWriter,
        lsid: u64,
        end: u64,
        least: u64,
        meter: &Meter,
    ) -> Result<Option<u64>> {
        let pack = match self.pack_at(lsid)? {
            Ok(pack) if pack.next_lsid() > end => return Ok(None),
            Ok(pack) => pack,
            Err(reason) => {
                check_end_at(&self.name, lsid, least.min(end), &reason)?;
                return Ok(None);
            }
        };
        writer.begin_pack(&self.block_at(lsid)?.1)?;
        for record in &pack.records {
            let bad = self.read_record(record, |piece| Ok(writer.write_data(piece)?))?;
            if let Some(found) = bad {
                let flaw = self.bad_data(record, found);
                return Err(flaw.in_source(&self.name).into());
            }
        }
        meter.add(pack.pack_bytes(self.superblock.ring.pbs()));
        Ok(Some(pack.next_lsid()))
    }

    /// Refuses an overflowed log: its oldest packs are overwritten.
    pub fn check_overflow(&self) -> Result<()> {
        let superblock = &self.superblock;
        if !superblock.is_overflowed() {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "{}: the log overflowed: expected at most {} blocks between oldest lsid {} and written \
             lsid {}, found {}; only a reset of the log and a full or hash backup help",
            self.name,
            superblock.ring.size(),
            superblock.oldest_lsid,
            superblock.written_lsid,
            superblock.usage()
        )))
    }

    /// A log that ends before what is known to be written (or before the wanted end, if that is
    /// less) lost packs.
    pub fn check_end(&self, lsid: u64, wanted: u64, reason: &str) -> Result<()> {
        let least = self.superblock.written_lsid.min(wanted);
        check_end_at(&self.name, lsid, least, reason)
    }

    fn bad_data(&self, record: &Record, found: u32) -> Flaw {
        let position = self.superblock.ring.position(record.lsid);
        Flaw::new(
            position,
            "checksum of log data",
            format!("{:08x} (lsid {})", record.checksum, record.lsid),
            format!("{found:08x}"),
        )
    }

    fn check_range(&self, begin: u64, end: u64, oldest: u64) -> Result<()> {
        let name = &self.name;
        if begin < oldest {
            return Err(Error::Refused(format!(
                "{name}: begin lsid: expected at least the oldest lsid {oldest}, found {begin}"
            )));
        }
        if begin >= end {
            return Err(Error::Refused(format!(
                "{name}: end lsid: expected more than {begin}, where the log begins, found {end}"
            )));
        }
        Ok(())
    }

    fn check_begin(&self, begin: u64) -> Result<()> {
        match self.pack_at(begin)? {
            Ok(_) => Ok(()),
            Err(why) => Err(Error::Refused(format!(
                "{}: begin lsid: expected the lsid of a pack (there: {why}), found {begin}",
                self.name
            ))),
        }
    }

    /// Replays the log from the written lsid onto `image`, repairs the end of the log, and notes
    /// how far it came. Everything is checked before anything is written.
    pub fn recover(&mut self, image: &ImageFile, meter: &Meter) -> Result<RecoveryReport> {
        let from_lsid = self.superblock.written_lsid;
        let end = self.find_end(from_lsid, meter)?;
        let (applied, outside) = self.replay(from_lsid, &end, image)?;
        image.sync()?;
        // With the wrong image the log stays as it is, to be replayed onto the right one.
        if outside.total() == 0 {
            self.finish(&end.outcome)
                .map_err(|e| Error::file(&self.path, "update", e))?;
        }
        Ok(RecoveryReport {
            from_lsid,
            end,
            applied,
            outside,
        })
    }

    fn replay(&self, from: u64, end: &LogEnd, image: &ImageFile) -> Result<(Tally, Tally)> {
        let (mut applied, mut outside) = (Tally::default(), Tally::default());
        let mut lsid = from;
        let mut data = Vec::new();
        for number in 1..=end.packs {
            let Ok(pack) = self.pack_at(lsid)? else {
                return Err(Error::Refused(format!(
                    "{}: changed during recovery",
                    self.name
                )));
            };
            let good = match end.bad_record {
                Some(index) if number == end.packs => index,
                _ => pack.records.len(),
            };
            for record in pack.records.iter().take(good) {
                let kind = match record.kind {
                    RecordKind::Padding => continue,
                    RecordKind::Data => Kind::Data,
                    RecordKind::Discard => Kind::Discard,
                };
                if !image.holds(record.address, record.blocks) {
                    outside.add(kind, record.blocks);
                    continue;
                }
                applied.add(kind, record.blocks);
                if kind == Kind::Discard {
                    image.clear(record.address, record.blocks, kind)?;
                    continue;
                }
                data.clear();
                let bad = self.read_record(record, |piece| {
                    data.extend_from_slice(piece);
                    Ok(())
                })?;
                if let Some(found) = bad {
                    let flaw = self.bad_data(record, found);
                    return Err(flaw.in_source(&self.name).into());
                }
                image.write(record.address, &data[..record.bytes() as usize])?;
            }
            lsid = pack.next_lsid();
        }
        Ok((applied, outside))
    }

    /// The data is durable: repairs the end of the log, then moves the written lsid.
    fn finish(&mut self, outcome: &Outcome) -> std::io::Result<()> {
        let Superblock { ring, salt, .. } = self.superblock;
        let repaired = match &outcome.repair {
            Repair::None => None,
            Repair::Shrink(header) => Some(header.encode(ring.pbs(), salt)),
            Repair::EndBlock => Some(end_block(ring.pbs(), salt)),
        };
        if let Some(block) = repaired {
            write_at(&*self.file, &block, ring.position(outcome.lsid))?;
            self.file.sync()?;
        }
        self.superblock.written_lsid = outcome.written_lsid;
        let superblock = self.superblock.encode();
        write_at(&*self.file, &superblock, primary_position())?;
        self.file.sync()
    }
}

fn check_end_at(name: &str, lsid: u64, least: u64, reason: &str) -> Result<()> {
    if lsid >= least {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{name}: end of the log: expected at least the written lsid {least}, found lsid {lsid}: \
         {reason}; packs are lost: take a full or hash backup"
    )))
}

fn finish_wlog(writer: WlogWriter, path: &Path) -> Result<()> {
    let mut out = writer.finish()?;
    out.flush().map_err(|e| Error::file(path, "write", e))?;
    out.into_inner()
        .map_err(|e| Error::file(path, "write", e.into_error()))?
        .commit()
}

/// The name as text, for listings.
pub fn name_text(name: &Name) -> String {
    String::from_utf8_lossy(name.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use walkeep_wire::random::Random;
    use walkeep_wire::wlog::generate::{GeneratedPack, Generator, Options};

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::image::DiscardPolicy;

    const LOG: &str = "log";
    const IMAGE: &str = "image";
    const LOG_BYTES: usize = 1 << 20;
    const IMAGE_BLOCKS: u64 = 512;

    /// Picks a record of a pack.
    type Pick = fn(&[Record]) -> &Record;
    /// The record with bad data, and whether the repair is the right one for that.
    type End = (Option<Pick>, fn(&Repair) -> bool);

    /// Packs of which the last begins and ends with data and is not the first, if the seed has such.
    fn packs(seed: u64) -> Option<(FileHeader, Vec<GeneratedPack>)> {
        let options = Options {
            seed,
            total_bytes: 128 << 10,
            device_blocks: IMAGE_BLOCKS,
            pbs: PhysicalBlock::B512,
            min_io: 1,
            max_io: 32,
            ..Options::default()
        };
        let generator = Generator::new(options).unwrap();
        let header = generator.file_header();
        let mut packs: Vec<_> = generator.collect();
        let is_data = |record: &Record| record.kind == RecordKind::Data;
        let last = packs.iter().rposition(|pack| {
            let records = &pack.header.records;
            pack.header.lsid > 0
                && records.len() > 1
                && is_data(&records[0])
                && is_data(&records[records.len() - 1])
        });
        packs.truncate(last? + 1);
        Some((header, packs))
    }

    /// A log with those packs and an image that has none of them. `bad` picks the record of the
    /// last pack whose data is bad.
    fn disk_with_log(seed: u64, bad: Option<Pick>) -> SimDisk {
        let (header, packs) = packs(seed).unwrap();
        let FileHeader {
            uuid, salt, pbs, ..
        } = header;
        let size = LOG_BYTES as u64;
        let superblock = Superblock::format(uuid, salt, "", IMAGE_BLOCKS, size, pbs).unwrap();
        let mut log = vec![0; LOG_BYTES];
        let mut put = |at: u64, bytes: &[u8]| {
            log[at as usize..][..bytes.len()].copy_from_slice(bytes);
        };
        put(primary_position(), &superblock.encode());
        put(secondary_position(pbs), &superblock.encode());
        for pack in &packs {
            put(
                superblock.ring.position(pack.header.lsid),
                &pack.header.encode(pbs, salt),
            );
            put(superblock.ring.position(pack.header.lsid + 1), &pack.data);
        }
        let disk = SimDisk::new(seed);
        disk.put(Path::new(LOG), &log).unwrap();
        disk.put(Path::new(IMAGE), &vec![7; IMAGE_BLOCKS as usize * 512])
            .unwrap();
        if let Some(bad) = bad {
            let record = bad(&packs[packs.len() - 1].header.records);
            let position = superblock.ring.position(record.lsid);
            disk.flip_bits(Path::new(LOG), position, 1).unwrap();
        }
        disk
    }

    fn recover(disk: &SimDisk) -> Result<RecoveryReport> {
        let mut log = LogDevice::open_on(disk, Path::new(LOG), Mode::Write)?;
        let image = ImageFile::open_on(disk, Path::new(IMAGE), DiscardPolicy::Zero)?;
        log.recover(&image, &Meter::default())
    }

    /// What a recovered disk has: the image, where the log goes on, and how it ends when it is read
    /// from the beginning.
    fn recovered(disk: &SimDisk) -> (Vec<u8>, u64, Outcome) {
        let log = LogDevice::open_on(disk, Path::new(LOG), Mode::Read).unwrap();
        let image = disk.contents(Path::new(IMAGE)).unwrap();
        let end = log.find_end(0, &Meter::default()).unwrap();
        (image, log.superblock().written_lsid, end.outcome)
    }

    /// Power cuts at every operation of a recovery, each in many ways, and again in the recovery
    /// after that: the last one always ends where the uncut one does.
    fn cut_everywhere(seed: u64, base: &SimDisk) {
        let uncut = base.kill();
        recover(&uncut).unwrap();
        let expected = recovered(&uncut);
        for cut in 0.. {
            let disk = base.kill();
            disk.cut_after(cut);
            let done = recover(&disk);
            for way in 0..20 {
                let mut random = Random::new(seed << 32 | cut << 16 | way);
                let after = disk.power_cut(&mut random);
                if done.is_ok() {
                    assert!(recovered(&after) == expected, "seed {seed}: not durable");
                }
                if recovered(&after).1 == expected.1 {
                    assert!(
                        recovered(&after) == expected,
                        "seed {seed}, {cut}, {way}: too early"
                    );
                }
                after.cut_after(random.below(cut + 1));
                let again = recover(&after);
                let last = after.power_cut(&mut random);
                recover(&last).unwrap();
                assert!(
                    recovered(&last) == expected,
                    "seed {seed}, {cut}, {way}: {again:?}"
                );
            }
            if done.is_ok() {
                return;
            }
        }
    }

    #[test]
    fn recovery_survives_power_cuts_at_every_operation() {
        for seed in (0..).filter(|seed| packs(*seed).is_some()).take(3) {
            let ends: [End; 3] = [
                (None, |repair| *repair == Repair::None),
                (Some(|r| &r[r.len() - 1]), |repair| {
                    matches!(repair, Repair::Shrink(_))
                }),
                (Some(|r| &r[0]), |repair| *repair == Repair::EndBlock),
            ];
            for (bad, is_expected) in ends {
                let base = disk_with_log(seed, bad);
                let repair = recover(&base.kill()).unwrap().end.outcome.repair;
                assert!(is_expected(&repair), "seed {seed}: {repair:?}");
                cut_everywhere(seed, &base);
            }
        }
    }
}
