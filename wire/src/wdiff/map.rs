//! What is left of a log's IOs once later ones have superseded earlier ones (reference: "Merge").
//!
//! The map holds ranges and the places of their data, never the data, so its memory is bounded by
//! the number of surviving pieces: about 100 bytes each.

use std::collections::BTreeMap;

use super::Kind;

/// A surviving range of an IO of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// First block \[lb\].
    pub address: u64,
    /// Number of blocks \[lb\].
    pub blocks: u32,
    /// Kind of content.
    pub kind: Kind,
    /// Absolute byte offset of the data in the log, for data.
    pub position: u64,
    /// First block of the IO it is a part of \[lb\]: pieces are cut relative to it.
    pub origin: u64,
}

impl LogEntry {
    const fn end(&self) -> u64 {
        self.address + self.blocks as u64
    }

    fn part(&self, from: u64, to: u64) -> Self {
        let skipped = (from - self.address) * crate::LOGICAL_BLOCK as u64;
        Self {
            address: from,
            blocks: (to - from) as u32,
            position: if self.kind == Kind::Data {
                self.position + skipped
            } else {
                self.position
            },
            ..*self
        }
    }
}

/// An ordered map of ranges without overlap, in which the last insertion wins.
#[derive(Default)]
pub struct CutMap {
    entries: BTreeMap<u64, LogEntry>,
}

impl CutMap {
    /// Inserts an IO, cutting away what it covers.
    pub fn insert(&mut self, newer: LogEntry) {
        let before = self
            .entries
            .range(..newer.address)
            .next_back()
            .map(|(_, e)| *e);
        if let Some(older) = before
            && older.end() > newer.address
        {
            self.entries
                .insert(older.address, older.part(older.address, newer.address));
            self.keep_right_of(&newer, &older);
        }
        while let Some(older) = self
            .entries
            .range(newer.address..newer.end())
            .next()
            .map(|(_, e)| *e)
        {
            self.entries.remove(&older.address);
            self.keep_right_of(&newer, &older);
        }
        self.entries.insert(newer.address, newer);
    }

    fn keep_right_of(&mut self, newer: &LogEntry, older: &LogEntry) {
        if older.end() > newer.end() {
            let right = older.part(newer.end(), older.end());
            self.entries.insert(right.address, right);
        }
    }

    /// Number of surviving ranges, before cutting to a limit.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The surviving ranges by address, cut where their IO would have been cut: every `max_io`
    /// blocks from its start (0: nowhere).
    ///
    /// Cutting only here keeps a discard of terabytes one entry in memory, and gives the same
    /// boundaries as cutting each IO before it is inserted.
    pub fn into_pieces(self, max_io: u32) -> impl Iterator<Item = LogEntry> {
        self.entries.into_values().flat_map(move |entry| {
            let mut from = entry.address;
            std::iter::from_fn(move || {
                if from >= entry.end() {
                    return None;
                }
                let to = match u64::from(max_io) {
                    0 => entry.end(),
                    step => {
                        let left = step - (from - entry.origin) % step;
                        entry.end().min(from.saturating_add(left))
                    }
                };
                let piece = entry.part(from, to);
                from = to;
                Some(piece)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn io(address: u64, blocks: u32, position: u64) -> LogEntry {
        LogEntry {
            address,
            blocks,
            kind: Kind::Data,
            position,
            origin: address,
        }
    }

    fn pieces(ios: &[LogEntry], max_io: u32) -> Vec<(u64, u32, u64)> {
        let mut map = CutMap::default();
        ios.iter().for_each(|io| map.insert(*io));
        map.into_pieces(max_io)
            .map(|e| (e.address, e.blocks, e.position))
            .collect()
    }

    #[test]
    fn a_newer_io_in_the_middle_leaves_both_ends() {
        assert_eq!(
            pieces(&[io(0, 10, 0), io(4, 2, 9000)], 0),
            [(0, 4, 0), (4, 2, 9000), (6, 4, 6 * 512)]
        );
    }

    #[test]
    fn remains_are_cut_where_their_io_was() {
        // The IO is cut at 2, 6, 10; the newer one leaves 2..3 and 5..6 of its second piece.
        assert_eq!(
            pieces(&[io(2, 10, 0), io(3, 2, 9000)], 4),
            [
                (2, 1, 0),
                (3, 2, 9000),
                (5, 1, 1536),
                (6, 4, 2048),
                (10, 2, 4096)
            ]
        );
    }

    #[test]
    fn the_last_address_is_no_trap() {
        let address = u64::MAX - 100;
        for max_io in [0, 1, 7, 99, 100, 101, 2048, u32::MAX] {
            let found = pieces(&[io(address, 100, 0)], max_io);
            let sum: u32 = found.iter().map(|(_, blocks, _)| blocks).sum();
            assert_eq!((found[0].0, sum), (address, 100), "{max_io}");
        }
    }

    /// What the reference says: each IO is cut when it comes, every `max_io` blocks from its start;
    /// what newer pieces leave of older ones is not cut again.
    fn model(ios: &[LogEntry], max_io: u64) -> Vec<(u64, u64, u64)> {
        let mut kept: Vec<(u64, u64, u64)> = vec![];
        for io in ios {
            let step = if max_io == 0 { u64::MAX } else { max_io };
            let mut from = io.address;
            while from < io.end() {
                let to = io.end().min(from.saturating_add(step));
                let mut left = vec![(from, to, io.position + (from - io.address) * 512)];
                for (begin, end, position) in kept {
                    if begin < end.min(from) {
                        left.push((begin, end.min(from), position));
                    }
                    if begin.max(to) < end {
                        let begin_right = begin.max(to);
                        left.push((begin_right, end, position + (begin_right - begin) * 512));
                    }
                }
                (kept, from) = (left, to);
            }
        }
        kept.sort_unstable();
        kept
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn cutting_at_the_end_gives_the_pieces_of_cutting_at_once(
            base in prop::sample::select(vec![0, u64::MAX - 140]),
            ios in prop::collection::vec((0..80u64, 1..61u32), 0..24),
            max_io in 0..20u32,
        ) {
            let ios: Vec<_> = ios.into_iter().zip(0u64..)
                .map(|((at, blocks), number)| io(base + at, blocks, number << 20)).collect();
            let found = pieces(&ios, max_io).into_iter()
                .map(|(address, blocks, position)| (address, address + u64::from(blocks), position));
            prop_assert_eq!(found.collect::<Vec<_>>(), model(&ios, max_io.into()));
        }
    }

    #[test]
    fn a_whole_cover_removes_all() {
        assert_eq!(
            pieces(&[io(2, 3, 0), io(6, 1, 50), io(0, 9, 100)], 0),
            [(0, 9, 100)]
        );
    }
}
