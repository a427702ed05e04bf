//! Packing IOs into logpacks (reference: "Building packs").
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
    rules: Rules,
    salt: u32,
    shape: Shape,
    records: Vec<Record>,
    closed: Vec<Header>,
}

impl Builder {
    /// A builder whose first pack has its header at `lsid`. No ring, the greatest legal pack size.
    pub fn new(pbs: PhysicalBlock, salt: u32, lsid: u64) -> Self {
        Self {
            rules: Rules {
                pbs,
                ring_size: None,
                max_pack_pb: MAX_PACK_PB,
            },
            salt,
            shape: Shape::new(lsid),
            records: vec![],
            closed: vec![],
        }
    }

    /// The log is a ring of `size` physical blocks: no IO may cross its end.
    #[must_use]
    pub fn with_ring(mut self, size: u64) -> Self {
        self.rules.ring_size = Some(size);
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
        self.rules.max_pack_pb = pb.min(MAX_PACK_PB);
    }

    /// lsid of the header after the open pack: where the log would end if it were finished now.
    pub fn next_lsid(&self) -> u64 {
        self.shape.next_lsid()
    }

    /// What [`Builder::next_lsid`] would be after a push of such an IO, which must fit in the ring.
    pub fn next_lsid_after(&self, kind: RecordKind, blocks: u32) -> u64 {
        let need = match kind {
            RecordKind::Discard => 0,
            RecordKind::Data | RecordKind::Padding => self.rules.pbs.count_for(blocks),
        };
        let mut shape = self.shape;
        shape.place(&self.rules, kind, need);
        shape.next_lsid()
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
        let (need, lsid) = (io.data_pb(self.rules.pbs), self.shape.lsid);
        let ring = self.rules.ring_size.unwrap_or(u64::MAX);
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
        if !self.records.is_empty() {
            self.close();
        }
        self.closed.pop()
    }

    /// Adds the IO, after padding where it would cross the ring end; false if the pack is full.
    fn try_add(&mut self, io: Record) -> bool {
        let need = io.data_pb(self.rules.pbs);
        if let Some(rest) = self.shape.padding_before(&self.rules, io.kind, need) {
            if !self.shape.has_room(&self.rules, RecordKind::Padding, rest) {
                return false;
            }
            self.add(Record {
                kind: RecordKind::Padding,
                address: 0,
                blocks: rest * self.rules.pbs.logical(),
                lsid: 0,
                local: 0,
                checksum: 0,
            });
        }
        let room = self.shape.has_room(&self.rules, io.kind, need);
        if room {
            self.add(io);
        }
        room
    }

    fn add(&mut self, io: Record) {
        let local = self.shape.add(io.kind, io.data_pb(self.rules.pbs));
        let lsid = self.shape.lsid + u64::from(local);
        self.records.push(Record {
            lsid,
            local: local as u16,
            ..io
        });
    }

    fn close(&mut self) {
        let mut full = Header {
            lsid: self.shape.lsid,
            total_pb: 0,
            checksum: 0,
            n_padding: 0,
            records: std::mem::take(&mut self.records),
        };
        self.shape.close();
        full.recount(self.rules.pbs);
        full.seal(self.rules.pbs, self.salt);
        self.closed.push(full);
    }
}

/// What limits packs.
#[derive(Clone, Copy, Debug)]
struct Rules {
    pbs: PhysicalBlock,
    ring_size: Option<u64>,
    max_pack_pb: u32,
}

/// Size of the open pack.
#[derive(Clone, Copy, Debug)]
struct Shape {
    lsid: u64,
    used: u32,
    records: usize,
    paddings: u16,
}

impl Shape {
    const fn new(lsid: u64) -> Self {
        Self {
            lsid,
            used: 0,
            records: 0,
            paddings: 0,
        }
    }

    const fn next_lsid(&self) -> u64 {
        match self.records {
            0 => self.lsid,
            _ => self.lsid.saturating_add(1 + self.used as u64),
        }
    }

    /// Blocks of padding before an IO of `need` blocks, if it would cross the ring end.
    fn padding_before(&self, rules: &Rules, kind: RecordKind, need: u32) -> Option<u32> {
        let ring = rules.ring_size?;
        let rest = ring - (self.lsid + 1 + u64::from(self.used)) % ring;
        // Padding may cross the end itself: its blocks mean nothing.
        let crosses = kind == RecordKind::Data && rest < u64::from(need);
        crosses.then_some(rest as u32)
    }

    fn has_room(&self, rules: &Rules, kind: RecordKind, need: u32) -> bool {
        let total = self.used + need;
        let second_padding = kind == RecordKind::Padding && self.paddings > 0;
        self.records < max_records(rules.pbs)
            && !second_padding
            && total <= MAX_PACK_PB
            && self.used < MAX_PACK_PB // lsid_local, which is one more, has 16 bits
            && (self.records == 0 || total <= rules.max_pack_pb)
            && u64::from(total) < rules.ring_size.unwrap_or(u64::MAX)
    }

    /// Adds a record and returns its lsid_local.
    fn add(&mut self, kind: RecordKind, need: u32) -> u32 {
        let local = 1 + self.used;
        self.used += need;
        self.records += 1;
        self.paddings += u16::from(kind == RecordKind::Padding);
        local
    }

    fn close(&mut self) {
        *self = Self::new(self.next_lsid());
    }

    /// Adds a record where it finds room, as [`Builder::push`] does.
    fn place(&mut self, rules: &Rules, kind: RecordKind, need: u32) {
        loop {
            if let Some(rest) = self.padding_before(rules, kind, need) {
                if !self.has_room(rules, RecordKind::Padding, rest) {
                    self.close();
                    continue;
                }
                self.add(RecordKind::Padding, rest);
            }
            if self.has_room(rules, kind, need) {
                self.add(kind, need);
                return;
            }
            self.close();
        }
    }
}
