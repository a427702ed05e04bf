//! Packing IOs into logpacks (reference: "How packs are built").
//!
//! The builder places IOs and makes headers. It never holds data: the caller keeps the data of the
//! IOs it has pushed, in order, and writes it behind the headers that come out.

use super::decode::check_io;
use super::{Header, MAX_PACK_PB, Record, RecordKind, max_records};
use crate::error::{Flaw, demand};
use crate::units::PhysicalBlock;

/// lsids that are left unused at the top of the range, so that no sum of a few packs overflows.
const HEADROOM: u64 = 1 << 20;

/// Collects IOs and yields the headers of full packs.
///
/// Headers hold the records in the order of the pushes. With a ring, padding records appear in
/// between: they stand for blocks whose content does not matter.
#[derive(Clone, Debug)]
pub struct Builder {
    pbs: PhysicalBlock,
    salt: u32,
    ring_size: Option<u64>,
    max_pack_pb: u32,
    open: Header,
    used: u32,
    closed: Vec<Header>,
}

impl Builder {
    /// A builder whose first pack has its header at `lsid`. No ring, the greatest legal pack size.
    pub fn new(pbs: PhysicalBlock, salt: u32, lsid: u64) -> Self {
        let open = Header {
            lsid,
            total_pb: 0,
            checksum: 0,
            n_padding: 0,
            records: vec![],
        };
        Self {
            pbs,
            salt,
            ring_size: None,
            max_pack_pb: MAX_PACK_PB,
            open,
            used: 0,
            closed: vec![],
        }
    }

    /// The log is a ring of `size` physical blocks: no IO may cross its end.
    #[must_use]
    pub fn with_ring(mut self, size: u64) -> Self {
        self.ring_size = Some(size);
        self
    }

    /// Limits the data of a pack, in physical blocks. An IO that is larger goes alone in a pack.
    #[must_use]
    pub fn with_max_pack(mut self, pb: u32) -> Self {
        self.set_max_pack(pb);
        self
    }

    /// Changes the limit of [`Builder::with_max_pack`], for the open pack too.
    pub fn set_max_pack(&mut self, pb: u32) {
        self.max_pack_pb = pb.min(MAX_PACK_PB);
    }

    /// lsid of the header after the open pack: where the log would end if it were finished now.
    pub fn next_lsid(&self) -> u64 {
        match self.open.records.is_empty() {
            true => self.open.lsid,
            false => self.open.lsid.saturating_add(1 + u64::from(self.used)),
        }
    }

    /// Adds an IO and returns the packs that were closed before it: none, one or two (a pack that
    /// ends with padding). `checksum` is that of the data, 0 for padding and discards; addresses
    /// and sizes are logical blocks.
    ///
    /// # Errors
    /// A broken rule for records, an IO that does not fit in the ring, or a log at the end of the
    /// lsid range. The builder is unchanged then.
    pub fn push(
        &mut self,
        kind: RecordKind,
        address: u64,
        blocks: u32,
        checksum: u32,
    ) -> Result<Vec<Header>, Flaw> {
        let io = Record {
            kind,
            address,
            blocks,
            lsid: 0,
            local: 0,
            checksum,
        };
        check_io(&io)?;
        let (need, lsid) = (io.data_pb(self.pbs), self.open.lsid);
        let ring = self.ring_size.unwrap_or(u64::MAX);
        // The header of the pack needs a block of the ring too.
        let fits = u64::from(need) < ring;
        demand!(
            fits,
            0,
            "IO in the log",
            format!("less than the ring of {ring} blocks"),
            need
        );
        demand!(
            lsid <= u64::MAX - HEADROOM,
            0,
            "logpack lsid",
            "lsids left for another pack",
            lsid
        );

        while !self.try_add(io) {
            self.close();
        }
        Ok(std::mem::take(&mut self.closed))
    }

    /// Ends the open pack and returns it, if it holds anything. The builder goes on behind it.
    pub fn finish(&mut self) -> Option<Header> {
        if !self.open.records.is_empty() {
            self.close();
        }
        self.closed.pop()
    }

    /// Adds the IO, after padding where it would cross the ring end; false if the pack is full.
    fn try_add(&mut self, io: Record) -> bool {
        if let Some(padding) = self.padding_before(&io) {
            if !self.has_room(&padding) {
                return false;
            }
            self.add(padding);
        }
        let room = self.has_room(&io);
        if room {
            self.add(io);
        }
        room
    }

    fn padding_before(&self, io: &Record) -> Option<Record> {
        let ring = self.ring_size?;
        let rest = ring - (self.open.lsid + 1 + u64::from(self.used)) % ring;
        // Padding may cross the end itself: its blocks mean nothing.
        let crosses = io.kind == RecordKind::Data && rest < u64::from(io.data_pb(self.pbs));
        crosses.then(|| Record {
            kind: RecordKind::Padding,
            address: 0,
            blocks: rest as u32 * self.pbs.logical(),
            lsid: 0,
            local: 0,
            checksum: 0,
        })
    }

    fn has_room(&self, io: &Record) -> bool {
        let total = self.used + io.data_pb(self.pbs);
        let first = self.open.records.is_empty();
        let second_padding = io.kind == RecordKind::Padding && self.open.n_padding > 0;
        self.open.records.len() < max_records(self.pbs)
            && !second_padding
            && total <= MAX_PACK_PB
            && self.used < MAX_PACK_PB // lsid_local, which is one more, has 16 bits
            && (first || total <= self.max_pack_pb)
            && u64::from(total) < self.ring_size.unwrap_or(u64::MAX)
    }

    fn add(&mut self, io: Record) {
        let local = 1 + self.used;
        let lsid = self.open.lsid + u64::from(local);
        self.used += io.data_pb(self.pbs);
        self.open.n_padding += u16::from(io.kind == RecordKind::Padding);
        self.open.records.push(Record {
            lsid,
            local: local as u16,
            ..io
        });
    }

    fn close(&mut self) {
        let lsid = self.next_lsid();
        let next = Header {
            lsid,
            total_pb: 0,
            checksum: 0,
            n_padding: 0,
            records: vec![],
        };
        let mut full = std::mem::replace(&mut self.open, next);
        self.used = 0;
        full.recount(self.pbs);
        full.seal(self.pbs, self.salt);
        self.closed.push(full);
    }
}
