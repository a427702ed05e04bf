//! Header blocks to headers, with every rule checked (reference: "Logpack").
//!
//! Nothing here looks beyond the one block it is given.

use super::{HEAD, Header, MAX_IO_BLOCKS, RECORD, Record, RecordKind, SECTOR_TYPE, max_records};
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::checksum::is_intact;
use crate::error::{Flaw, demand};
use crate::units::{INVALID_LSID, PhysicalBlock};

/// What a block of a log device is, when a pack with a certain lsid is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// The wanted pack.
    Pack(Header),
    /// An end block: the log ends before it.
    End,
    /// Anything else a crash or an old lap of the ring leaves: the log ends before it. The flaw
    /// says why the block was not taken for a pack.
    NotAPack(Flaw),
    /// Type, lsid and checksum are right, but a rule is broken. No crash leaves this: it must be
    /// reported, and not be taken for the end of the log.
    Broken(Flaw),
}

/// Says what `block`, found at the place of `expected_lsid` on a log device, is.
pub fn classify(block: &[u8], pbs: PhysicalBlock, salt: u32, expected_lsid: u64) -> Block {
    if is_end_block(block, pbs, salt) {
        return Block::End;
    }
    if let Err(flaw) = identify(block, pbs, salt).and_then(|()| expect_lsid(block, expected_lsid)) {
        return Block::NotAPack(flaw);
    }
    match parse(block, pbs) {
        Ok(header) => Block::Pack(header),
        Err(flaw) => Block::Broken(flaw),
    }
}

/// True for an intact end block.
pub fn is_end_block(block: &[u8], pbs: PhysicalBlock, salt: u32) -> bool {
    identify(block, pbs, salt).is_ok()
        && u64_at(block, 8) == INVALID_LSID
        && u16_at(block, 6) == 0
        && u32_at(block, 16) == 0 // both n_records and n_padding
}

impl Header {
    /// Decodes a header block of exactly one physical block. An end block is no header, see
    /// [`is_end_block`].
    ///
    /// # Errors
    /// Whatever rule is broken, at its offset in the block.
    pub fn decode(block: &[u8], pbs: PhysicalBlock, salt: u32) -> Result<Self, Flaw> {
        identify(block, pbs, salt)?;
        parse(block, pbs)
    }
}

/// Length, type and checksum.
fn identify(block: &[u8], pbs: PhysicalBlock, salt: u32) -> Result<(), Flaw> {
    let (len, want) = (block.len(), pbs.bytes());
    demand!(
        len == want,
        len.min(want),
        "logpack header",
        format!("{want} bytes"),
        len
    );
    let sector_type = u16_at(block, 4);
    demand!(
        sector_type == SECTOR_TYPE,
        4,
        "logpack sector type",
        SECTOR_TYPE,
        sector_type
    );
    let intact = is_intact(block, salt);
    demand!(
        intact,
        0,
        "logpack header checksum",
        "the checksum of the block",
        hex(block)
    );
    Ok(())
}

fn hex(block: &[u8]) -> String {
    format!("{:08x}", u32_at(block, 0))
}

fn expect_lsid(block: &[u8], expected: u64) -> Result<(), Flaw> {
    let lsid = u64_at(block, 8);
    demand!(lsid == expected, 8, "logpack lsid", expected, lsid);
    Ok(())
}

/// The counters, then the records. The caller has checked the length.
fn parse(block: &[u8], pbs: PhysicalBlock) -> Result<Header, Flaw> {
    let lsid = u64_at(block, 8);
    let total_pb = u16_at(block, 6);
    let n_padding = u16_at(block, 18);
    let n_records = usize::from(u16_at(block, 16));
    let max = max_records(pbs);
    demand!(
        (1..=max).contains(&n_records),
        16,
        "n_records",
        format!("1 to {max}"),
        n_records
    );
    let ends = lsid.checked_add(1 + u64::from(total_pb));
    demand!(
        ends.is_some(),
        8,
        "logpack lsid",
        format!("room for {total_pb} blocks of data"),
        lsid
    );

    let mut records = Vec::with_capacity(n_records);
    let mut used = 0;
    for (slot, at) in block[HEAD..]
        .chunks_exact(RECORD)
        .take(n_records)
        .zip((HEAD..).step_by(RECORD))
    {
        let record = parse_record(slot, lsid, used).map_err(|flaw| flaw.shifted(at as u64))?;
        used += record.data_pb(pbs);
        records.push(record);
    }
    demand!(
        used == u32::from(total_pb),
        6,
        "total_io_size",
        format!("{used}, the sum of the records"),
        total_pb
    );
    let padding = records
        .iter()
        .filter(|r| r.kind == RecordKind::Padding)
        .count();
    demand!(padding <= 1, 18, "padding records", "at most 1", padding);
    demand!(
        padding == usize::from(n_padding),
        18,
        "n_padding",
        padding,
        n_padding
    );
    Ok(Header {
        lsid,
        total_pb,
        checksum: u32_at(block, 0),
        n_padding,
        records,
    })
}

/// Decodes one record, before which the pack has `used` physical blocks of data.
fn parse_record(slot: &[u8], pack_lsid: u64, used: u32) -> Result<Record, Flaw> {
    let record = Record {
        kind: parse_kind(u32_at(slot, 4))?,
        address: u64_at(slot, 8),
        blocks: u32_at(slot, 16),
        lsid: u64_at(slot, 24),
        local: u16_at(slot, 20),
        checksum: u32_at(slot, 0),
    };
    check_io(&record)?;
    check_place(&record, pack_lsid, used)?;
    Ok(record)
}

fn parse_kind(flags: u32) -> Result<RecordKind, Flaw> {
    let kinds = [RecordKind::Data, RecordKind::Padding, RecordKind::Discard];
    let kind = kinds.into_iter().find(|kind| kind.flags() == flags);
    kind.ok_or_else(|| {
        Flaw::new(
            4,
            "record flags",
            "1 (data), 3 (padding) or 5 (discard)",
            flags,
        )
    })
}

/// The rules about the IO itself, which every maker of records has to keep too.
pub(super) fn check_io(r: &Record) -> Result<(), Flaw> {
    let (kind, blocks) = (r.kind, r.blocks);
    demand!(
        blocks > 0 || kind == RecordKind::Padding,
        16,
        "record io_size",
        "more than 0",
        blocks
    );
    let fits = blocks <= MAX_IO_BLOCKS || kind == RecordKind::Discard;
    demand!(
        fits,
        16,
        "record io_size",
        format!("at most {MAX_IO_BLOCKS}"),
        blocks
    );
    let ends = r.address.checked_add(u64::from(blocks));
    demand!(
        ends.is_some(),
        8,
        "record offset",
        format!("room for {blocks} blocks"),
        r.address
    );
    let padding = kind == RecordKind::Padding;
    demand!(
        !padding || r.address == 0,
        8,
        "offset of a padding record",
        0,
        r.address
    );
    let summed = kind == RecordKind::Data;
    demand!(
        summed || r.checksum == 0,
        0,
        "checksum of a record without data",
        0,
        r.checksum
    );
    Ok(())
}

/// The rules about the place of the record's data in the log.
fn check_place(r: &Record, pack_lsid: u64, used: u32) -> Result<(), Flaw> {
    let local = 1 + u64::from(used);
    let follows = local == u64::from(r.local);
    demand!(
        follows,
        20,
        "record lsid_local",
        format!("{local}, after the records before it"),
        r.local
    );
    let matches = pack_lsid.checked_add(local) == Some(r.lsid);
    demand!(
        matches,
        24,
        "record lsid",
        format!("{pack_lsid} + {local}"),
        r.lsid
    );
    demand!(
        r.lsid != INVALID_LSID,
        24,
        "record lsid",
        format!("less than {INVALID_LSID}"),
        r.lsid
    );
    Ok(())
}
