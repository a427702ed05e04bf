//! The queue of snapshots that a storage has yet to send (reference: "Queue file").
//!
//! A memory-mapped file of the original: two copies of a header, then records from the front
//! (newest) to the back (oldest), then an end stub that links back. Here it is a byte image.
//!
//! No single operation touches what the header on disk stands for, except links that are not read
//! then. So a crash leaves the old queue or the new one, if after each operation
//! [`QueueFile::take_changes`] is written and flushed, then header copy 1, then copy 2.

use std::collections::VecDeque;
use std::ops::Range;

use super::MetaLsidGid;
use crate::bytes::{put, u32_at, u64_at};
use crate::checksum::{checksum, embed, is_intact};
use crate::error::{Flaw, demand};
use crate::serial::Serial;

/// Bytes of one copy of the header. Copy 2 follows copy 1.
pub const HEADER_LEN: usize = 28;

/// Where the record area begins; all offsets in the file count from here.
const AREA: usize = 2 * HEADER_LEN;
const MAGIC: u32 = 0x119d_83a7;
const RECORD_HEADER: usize = 16;
const PAGE: usize = 4096;

/// A queue file as bytes, known to be sound.
///
/// Only what lies between the begin and the end of the queue, the end stub included, has a meaning.
#[derive(Debug, Clone)]
pub struct QueueFile {
    image: Vec<u8>,
    salt: u32,
    begin: usize,
    end: usize,
    /// Places in the image that were written since the last call of `take_changes`.
    changes: Range<usize>,
}

/// Where a record is and how long it is as a whole.
struct Record {
    at: usize,
    len: usize,
}

impl QueueFile {
    /// An empty queue. The salt, random by custom, goes into all checksums of records.
    pub fn new(salt: u32) -> Self {
        let mut queue = Self {
            image: vec![0; PAGE],
            salt,
            begin: 0,
            end: 0,
            changes: AREA..AREA,
        };
        queue.write_record(0, &[], 0);
        queue.seal();
        queue
    }

    /// Reads a file and checks all of it: a header copy, every record, the links between them.
    pub fn open(bytes: &[u8]) -> Result<Self, Flaw> {
        let least = AREA + RECORD_HEADER;
        demand!(
            bytes.len() >= least,
            0,
            "queue file",
            format!("{least} bytes"),
            bytes.len()
        );
        let copies = [&bytes[..HEADER_LEN], &bytes[HEADER_LEN..AREA]];
        let header = copies.into_iter().find(|copy| is_header(copy));
        let header = header.ok_or_else(|| {
            Flaw::new(
                0,
                "queue header",
                "a preamble and a checksum that fit",
                "two bad copies",
            )
        })?;
        let (begin, end) = (u64_at(header, 12), u64_at(header, 20));
        let most = (bytes.len() - least) as u64;
        let in_order = begin <= end && end <= most;
        demand!(
            in_order,
            12,
            "queue offsets",
            format!("begin <= end <= {most}"),
            format!("{begin}, {end}")
        );
        let mut queue = Self {
            image: bytes.to_vec(),
            salt: u32_at(header, 8),
            begin: begin as usize,
            end: end as usize,
            changes: AREA..AREA,
        };
        queue.check_records()?;
        queue.seal();
        Ok(queue)
    }

    /// The whole file, both header copies up to date.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// The header, to be written twice.
    pub fn header(&self) -> &[u8] {
        &self.image[..HEADER_LEN]
    }

    /// The part of the image beyond the headers that was written since the last call; empty if none.
    pub fn take_changes(&mut self) -> Range<usize> {
        std::mem::replace(&mut self.changes, AREA..AREA)
    }

    /// True without records.
    pub const fn is_empty(&self) -> bool {
        self.begin == self.end
    }

    /// The records from front (newest) to back (oldest).
    pub fn records(&self) -> Result<VecDeque<MetaLsidGid>, Flaw> {
        let (mut records, mut at) = (VecDeque::new(), self.begin);
        while at < self.end {
            let record = self.record_at(at)?;
            records.push_back(self.value_of(&record)?);
            at += record.len;
        }
        Ok(records)
    }

    /// The newest record.
    pub fn front(&self) -> Result<Option<MetaLsidGid>, Flaw> {
        if self.is_empty() {
            return Ok(None);
        }
        self.value_of(&self.record_at(self.begin)?).map(Some)
    }

    /// The oldest record.
    pub fn back(&self) -> Result<Option<MetaLsidGid>, Flaw> {
        if self.is_empty() {
            return Ok(None);
        }
        self.value_of(&self.record_at(self.last_at()?)?).map(Some)
    }

    /// Adds the newest record.
    pub fn push_front(&mut self, value: &MetaLsidGid) {
        let payload = value.to_bytes();
        let len = RECORD_HEADER + payload.len();
        if self.begin < len {
            self.make_room_before(len);
        }
        // What was first, or the end stub, now links back to the new record.
        self.write(self.begin + 12, &(len as u32).to_le_bytes());
        self.begin -= len;
        self.write_record(self.begin, &payload, 0);
        self.seal();
    }

    /// Adds the oldest record, where the end stub stands.
    pub fn push_back(&mut self, value: &MetaLsidGid) {
        let payload = value.to_bytes();
        let to_prev = if self.is_empty() {
            0
        } else {
            self.to_prev(self.end)
        };
        let stub_at = self.end + RECORD_HEADER + payload.len();
        self.grow_to(stub_at + RECORD_HEADER);
        self.write_record(self.end, &payload, to_prev);
        self.write_record(stub_at, &[], (stub_at - self.end) as u32);
        self.end = stub_at;
        self.seal();
    }

    /// Takes the newest record.
    pub fn pop_front(&mut self) -> Result<Option<MetaLsidGid>, Flaw> {
        let value = self.front()?;
        if value.is_some() {
            self.begin += self.record_at(self.begin)?.len;
            self.seal();
        }
        Ok(value)
    }

    /// Takes the oldest record. Its header becomes the end stub.
    pub fn pop_back(&mut self) -> Result<Option<MetaLsidGid>, Flaw> {
        let value = self.back()?;
        if value.is_some() {
            self.end = self.last_at()?;
            self.seal();
        }
        Ok(value)
    }

    /// Drops all records.
    pub fn clear(&mut self) {
        // The link of the stub stays: it means nothing now, but does until the header is written.
        self.begin = self.end;
        self.seal();
    }

    /// Walks over all records: payloads, links, and an end exactly where the header says.
    fn check_records(&self) -> Result<(), Flaw> {
        let (mut at, mut previous) = (self.begin, None);
        while at < self.end {
            self.check_link(at, previous)?;
            let record = self.record_at(at)?;
            self.value_of(&record)?;
            previous = Some(record.len);
            at += record.len;
        }
        self.check_link(at, previous)
    }

    /// The front record may link to one that was taken; so may the stub of an empty queue.
    fn check_link(&self, at: usize, previous: Option<usize>) -> Result<(), Flaw> {
        let found = self.to_prev(at);
        let fits = previous.is_none_or(|len| len == found as usize);
        demand!(
            fits,
            AREA + at + 12,
            "queue toPrev",
            previous.unwrap_or_default(),
            found
        );
        Ok(())
    }

    /// The record at an offset before the end, with its place checked.
    fn record_at(&self, at: usize) -> Result<Record, Flaw> {
        let place = AREA + at;
        let left = self.end - at;
        demand!(
            left >= RECORD_HEADER,
            place,
            "queue record",
            "a header before the end",
            left
        );
        let magic = u32_at(&self.image, place);
        demand!(
            magic == MAGIC,
            place,
            "queue record preamble",
            format!("{MAGIC:08x}"),
            format!("{magic:08x}")
        );
        let size = u32_at(&self.image, place + 8);
        let most = left - RECORD_HEADER;
        demand!(
            size as usize <= most,
            place + 8,
            "queue record size",
            format!("at most {most}"),
            size
        );
        Ok(Record {
            at,
            len: RECORD_HEADER + size as usize,
        })
    }

    fn value_of(&self, record: &Record) -> Result<MetaLsidGid, Flaw> {
        let start = AREA + record.at;
        let payload = &self.image[start + RECORD_HEADER..start + record.len];
        let (stored, sum) = (u32_at(&self.image, start + 4), checksum(payload, self.salt));
        demand!(
            stored == sum,
            start + 4,
            "queue record checksum",
            format!("{sum:08x}"),
            format!("{stored:08x}")
        );
        MetaLsidGid::from_bytes(payload)
            .map_err(|flaw| flaw.shifted((start + RECORD_HEADER) as u64))
    }

    /// Where the last record begins, by the link of the end stub.
    fn last_at(&self) -> Result<usize, Flaw> {
        let (to_prev, most) = (self.to_prev(self.end) as usize, self.end - self.begin);
        let at = self
            .end
            .checked_sub(to_prev)
            .filter(|at| *at >= self.begin && *at < self.end);
        at.ok_or_else(|| {
            Flaw::new(
                (AREA + self.end + 12) as u64,
                "queue toPrev",
                format!("1 to {most}"),
                to_prev,
            )
        })
    }

    fn to_prev(&self, at: usize) -> u32 {
        u32_at(&self.image, AREA + at + 12)
    }

    /// Moves the records and the stub so far behind their old place that neither they nor the new
    /// record touch it: it counts until the header is written.
    fn make_room_before(&mut self, needed: usize) {
        let begin = self.end + RECORD_HEADER + needed;
        let end = begin + (self.end - self.begin);
        self.grow_to(end + RECORD_HEADER);
        let all = self.image[AREA + self.begin..AREA + self.end + RECORD_HEADER].to_vec();
        self.write(begin, &all);
        (self.begin, self.end) = (begin, end);
    }

    /// Makes the record area at least `len` bytes long, the file whole pages.
    fn grow_to(&mut self, len: usize) {
        let whole = (AREA + len).next_multiple_of(PAGE);
        if self.image.len() < AREA + len {
            self.image.resize(whole, 0);
        }
    }

    fn write_record(&mut self, at: usize, payload: &[u8], to_prev: u32) {
        let sum = checksum(payload, self.salt);
        let fields = [MAGIC, sum, payload.len() as u32, to_prev];
        self.write(at, &fields.map(u32::to_le_bytes).concat());
        self.write(at + RECORD_HEADER, payload);
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let (from, to) = (AREA + at, AREA + at + bytes.len());
        self.image[from..to].copy_from_slice(bytes);
        if self.changes.is_empty() {
            self.changes = from..to;
        } else {
            self.changes = self.changes.start.min(from)..self.changes.end.max(to);
        }
    }

    /// Puts both copies of the header into the image.
    fn seal(&mut self) {
        let (copy1, rest) = self.image.split_at_mut(HEADER_LEN);
        put(copy1, 0, MAGIC.to_le_bytes());
        put(copy1, 8, self.salt.to_le_bytes());
        put(copy1, 12, (self.begin as u64).to_le_bytes());
        put(copy1, 20, (self.end as u64).to_le_bytes());
        embed(copy1, 4, 0);
        rest[..HEADER_LEN].copy_from_slice(copy1);
    }
}

fn is_header(copy: &[u8]) -> bool {
    u32_at(copy, 0) == MAGIC && is_intact(copy, 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(gid: u64) -> MetaLsidGid {
        MetaLsidGid {
            is_mergeable: gid.is_multiple_of(2),
            timestamp: gid << 20,
            lsid: gid * 97,
            gid,
        }
    }

    fn full(count: u64) -> QueueFile {
        let mut queue = QueueFile::new(0x1234_5678);
        (0..count).for_each(|gid| queue.push_front(&record(gid)));
        queue
    }

    #[test]
    fn a_fresh_file_is_one_page() {
        let queue = QueueFile::open(QueueFile::new(7).image()).unwrap();
        assert_eq!(queue.image().len(), PAGE);
        assert!(queue.is_empty());
        assert_eq!(queue.back(), Ok(None));
    }

    #[test]
    fn a_crash_before_the_header_leaves_the_old_queue() {
        let mut queue = full(3);
        let mut disk = queue.image().to_vec();
        let _ = queue.take_changes();
        for gid in 3..600 {
            let old = QueueFile::open(&disk).unwrap().records().unwrap();
            match gid % 8 {
                0 => drop(queue.pop_back().unwrap()),
                1 => drop(queue.pop_front().unwrap()),
                2 if gid % 5 == 0 => queue.clear(),
                2 | 3 => queue.push_back(&record(gid)),
                _ => queue.push_front(&record(gid)),
            }
            let changes = queue.take_changes();
            disk.resize(queue.image().len(), 0);
            disk[changes.clone()].copy_from_slice(&queue.image()[changes]);
            assert_eq!(QueueFile::open(&disk).unwrap().records(), Ok(old));
            disk[..HEADER_LEN].copy_from_slice(queue.header());
            assert_eq!(QueueFile::open(&disk).unwrap().records(), queue.records());
        }
        assert!(queue.take_changes().is_empty());
    }

    #[test]
    fn a_walk_that_misses_the_end_is_refused() {
        for change in [-1_i64, 1] {
            let mut image = full(3).image().to_vec();
            let end = u64_at(&image, 20).wrapping_add_signed(change);
            put(&mut image, 20, end.to_le_bytes());
            embed(&mut image[..HEADER_LEN], 4, 0);
            assert!(QueueFile::open(&image).is_err());
        }
    }

    #[test]
    fn wrong_links_are_refused_except_at_the_front() {
        let queue = full(3);
        let second = queue.begin + queue.record_at(queue.begin).unwrap().len;
        for (at, is_sound) in [(queue.begin, true), (second, false), (queue.end, false)] {
            let mut image = queue.image().to_vec();
            image[AREA + at + 12] ^= 1;
            assert_eq!(QueueFile::open(&image).is_ok(), is_sound);
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        PushFront(u64),
        PushBack(u64),
        PopFront,
        PopBack,
        Clear,
        Reopen,
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u64..1 << 40).prop_map(Op::PushFront),
            4 => (0u64..1 << 40).prop_map(Op::PushBack),
            3 => Just(Op::PopFront),
            3 => Just(Op::PopBack),
            1 => Just(Op::Clear),
            2 => Just(Op::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn it_behaves_as_a_deque(ops in prop::collection::vec(any_op(), 0..120)) {
            let (mut queue, mut model) = (QueueFile::new(99), VecDeque::new());
            for op in ops {
                match op {
                    Op::PushFront(gid) => {
                        queue.push_front(&record(gid));
                        model.push_front(record(gid));
                    }
                    Op::PushBack(gid) => {
                        queue.push_back(&record(gid));
                        model.push_back(record(gid));
                    }
                    Op::PopFront => prop_assert_eq!(queue.pop_front(), Ok(model.pop_front())),
                    Op::PopBack => prop_assert_eq!(queue.pop_back(), Ok(model.pop_back())),
                    Op::Clear => {
                        queue.clear();
                        model.clear();
                    }
                    Op::Reopen => queue = QueueFile::open(queue.image()).unwrap(),
                }
                prop_assert_eq!(queue.front(), Ok(model.front().copied()));
                prop_assert_eq!(queue.back(), Ok(model.back().copied()));
            }
            let reopened = QueueFile::open(queue.image()).unwrap();
            prop_assert_eq!(reopened.records(), Ok(model));
        }

        #[test]
        fn damage_is_refused_or_harmless(at in 0usize..400, bit in 0u8..8) {
            let queue = full(8);
            let mut image = queue.image().to_vec();
            image[at] ^= 1 << bit;
            if let Ok(opened) = QueueFile::open(&image) {
                prop_assert_eq!(opened.records(), queue.records());
            }
        }
    }
}
