//! The interval map under reads and write-behind: disjoint pieces of the volume that are not on the
//! data yet. Insertion cuts what it covers; nothing scans.
//!
//! Addresses are logical blocks. A layer decides nothing: which piece may cover which is the
//! machine's business.

use std::collections::BTreeMap;

use bytes::Bytes;
use walkeep_wire::LOGICAL_BLOCK;

/// Parts up to this size are copied out of a buffer twice as large \[bytes\].
const SMALL_PART: usize = 64 << 10;

/// What a piece holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Bytes, `LOGICAL_BLOCK` for each block of the piece.
    Data(Bytes),
    /// Written zeros; their space on the data may be given back if `may_punch`.
    Zeros {
        /// Holes may take the place of zeros.
        may_punch: bool,
    },
    /// A discarded range, which reads as zeros.
    Discard,
}

impl Payload {
    /// The part from block `from` to block `to` of a payload.
    fn part(&self, from: u64, to: u64) -> Self {
        let Self::Data(bytes) = self else {
            return self.clone();
        };
        let at = |block: u64| block as usize * LOGICAL_BLOCK;
        let part = bytes.slice(at(from)..at(to));
        // A small rest must not keep a large buffer alive.
        let is_small = part.len() <= SMALL_PART && part.len() <= bytes.len() / 2;
        Self::Data(match is_small {
            true => Bytes::copy_from_slice(&part),
            false => part,
        })
    }
}

/// A piece of the volume, from its key in the layer to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First block behind it.
    pub end: u64,
    /// lsid of the pack it came with: recovery that begins there writes it again.
    pub lsid: u64,
    /// Number of its record since the volume was opened; greater is newer.
    pub seq: u64,
    /// When it came \[µs\].
    pub since: u64,
    /// What it holds.
    pub payload: Payload,
}

impl Piece {
    /// The part from block `from` to block `to` of a piece that begins at `start`.
    pub fn part(&self, start: u64, from: u64, to: u64) -> Self {
        Self {
            end: to,
            payload: self.payload.part(from - start, to - start),
            ..*self
        }
    }

    /// Memory that the piece stands for: its bytes, and a share for the bookkeeping.
    pub fn cost(&self) -> u64 {
        const BOOKKEEPING: u64 = 256;
        match &self.payload {
            Payload::Data(bytes) => bytes.len() as u64 + BOOKKEEPING,
            Payload::Zeros { .. } | Payload::Discard => BOOKKEEPING,
        }
    }
}

/// Disjoint pieces by their first block.
#[derive(Debug, Default)]
pub struct Layer {
    pieces: BTreeMap<u64, Piece>,
    cost: u64,
}

impl Layer {
    /// True if there is nothing.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Sum of the costs of the pieces.
    pub const fn cost(&self) -> u64 {
        self.cost
    }

    /// The pieces that overlap a range, in order, uncut.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &Piece)> {
        let before = self.pieces.range(..start).next_back();
        let before = before.filter(move |(_, piece)| piece.end > start);
        before
            .into_iter()
            .chain(self.pieces.range(start..end.max(start)))
            .map(|(at, piece)| (*at, piece))
    }

    /// The parts of a range that no piece covers, in order.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let (mut gaps, mut at) = (vec![], start);
        for (from, piece) in self.overlapping(start, end) {
            if from > at {
                gaps.push((at, from));
            }
            at = piece.end;
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// The pieces from a block on, in order.
    pub fn from(&self, block: u64) -> impl Iterator<Item = (u64, &Piece)> {
        self.pieces.range(block..).map(|(at, piece)| (*at, piece))
    }

    /// Puts a piece where nothing is: the caller has carved the range.
    pub fn put(&mut self, start: u64, piece: Piece) {
        debug_assert!(start < piece.end && self.overlapping(start, piece.end).next().is_none());
        self.cost += piece.cost();
        self.pieces.insert(start, piece);
    }

    /// Takes out the piece that begins at a block.
    pub fn take(&mut self, start: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&start)?;
        self.cost -= piece.cost();
        Some(piece)
    }

    /// Empties a range and returns what was there, cut to the range; what reaches out of it stays.
    /// `keep` may spare pieces.
    pub fn carve(
        &mut self,
        start: u64,
        end: u64,
        mut keep: impl FnMut(&Piece) -> bool,
    ) -> Vec<(u64, Piece)> {
        let mut starts = vec![];
        for (at, piece) in self.overlapping(start, end) {
            if !keep(piece) {
                starts.push(at);
            }
        }
        starts
            .into_iter()
            .filter_map(|at| self.cut_out(at, start, end))
            .collect()
    }

    fn cut_out(&mut self, at: u64, start: u64, end: u64) -> Option<(u64, Piece)> {
        let piece = self.take(at)?;
        let (from, to) = (at.max(start), piece.end.min(end));
        if at < from {
            self.put(at, piece.part(at, at, from));
        }
        if to < piece.end {
            self.put(to, piece.part(at, to, piece.end));
        }
        match (from, to) == (at, piece.end) {
            true => Some((at, piece)),
            false => Some((from, piece.part(at, from, to))),
        }
    }
}

/// A set of blocks, as ranges. It may grow coarser when it has very many.
#[derive(Debug, Default)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    const MOST: usize = 1 << 16;

    /// Adds a range.
    pub fn note(&mut self, mut start: u64, mut end: u64) {
        if let Some((&at, &to)) = self.0.range(..=start).next_back()
            && to >= start
        {
            (start, end) = (at, end.max(to));
        }
        while let Some((&at, &to)) = self.0.range(start..=end).next() {
            end = end.max(to);
            self.0.remove(&at);
        }
        self.0.insert(start, end);
        if self.0.len() > Self::MOST
            && let (Some(first), Some(last)) = (self.0.first_key_value(), self.0.last_key_value())
        {
            self.0 = BTreeMap::from([(*first.0, *last.1)]);
        }
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        for (start, end) in &other.0 {
            self.note(*start, *end);
        }
    }

    /// True if a block of the range is in the set.
    pub fn touches(&self, start: u64, end: u64) -> bool {
        let last = self.0.range(..end).next_back();
        last.is_some_and(|(_, to)| *to > start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(start: u64, end: u64, seq: u64) -> Piece {
        let blocks = (start..end).flat_map(|b| [(b * 7 + seq) as u8; LOGICAL_BLOCK]);
        let payload = Payload::Data(blocks.collect());
        Piece {
            end,
            lsid: seq,
            seq,
            since: 0,
            payload,
        }
    }

    proptest! {
        #[test]
        fn ranges_are_a_set(steps in prop::collection::vec((0..40u64, 1..9u64), 1..30)) {
            let (mut ranges, mut cells) = (Ranges::default(), [false; 64]);
            for (start, len) in steps {
                ranges.note(start, start + len);
                cells[start as usize..(start + len) as usize].fill(true);
            }
            for start in 0..60 {
                for end in start + 1..60 {
                    let want = cells[start..end].contains(&true);
                    prop_assert_eq!(ranges.touches(start as u64, end as u64), want);
                }
            }
        }

        /// Against an array with one cell a block.
        #[test]
        fn a_layer_is_an_array(steps in prop::collection::vec((0..40u64, 1..12u64, prop::bool::ANY), 1..60)) {
            let (mut layer, mut cells) = (Layer::default(), vec![None; 64]);
            for (seq, (start, len, put)) in steps.into_iter().enumerate() {
                let (end, seq) = (start + len, seq as u64 + 1);
                let removed: u64 = layer.carve(start, end, |_| false).iter().map(|(at, p)| p.end - at).sum();
                let was = cells[start as usize..end as usize].iter().flatten().count();
                prop_assert_eq!(removed, was as u64);
                cells[start as usize..end as usize].fill(put.then_some(seq));
                if put {
                    layer.put(start, piece(start, end, seq));
                }
                for (block, cell) in cells.iter().enumerate() {
                    let block = block as u64;
                    let found = layer.overlapping(block, block + 1).next();
                    prop_assert_eq!(found.map(|(_, p)| p.seq), *cell);
                    if let Some((at, found)) = found {
                        let Payload::Data(bytes) = &found.payload else { panic!() };
                        let byte = bytes[(block - at) as usize * LOGICAL_BLOCK];
                        prop_assert_eq!(byte, (block * 7 + found.seq) as u8);
                        prop_assert_eq!(bytes.len() as u64, (found.end - at) * LOGICAL_BLOCK as u64);
                    }
                }
                let covered: u64 = layer.gaps(0, 64).iter().map(|(from, to)| to - from).sum();
                prop_assert_eq!(covered, cells.iter().filter(|c| c.is_none()).count() as u64);
                let cost: u64 = layer.overlapping(0, 64).map(|(_, p)| p.cost()).sum();
                prop_assert_eq!(cost, layer.cost());
            }
        }
    }
}
