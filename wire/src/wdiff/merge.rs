//! Merges any number of diffs: for each block, the record of the newest one that covers it
//! (reference: "Merge").
//!
//! The merge walks records only. It yields pieces that say where their data is stored, so whoever
//! writes them can copy what was not cut without decompressing it. Memory: one record an input,
//! beside what the inputs hold.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::Result;

use super::{Kind, Record, RecordSource};

/// A range of the merged diff.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The range and where its content is.
    pub record: Record,
    /// Number of the input it comes from; 0 is the oldest.
    pub input: usize,
}

impl Piece {
    /// Plain bytes of the piece's data; 0 unless data.
    pub fn data_bytes(&self) -> u64 {
        match self.record.kind() {
            Kind::Data => crate::blocks_to_bytes(self.record.blocks),
            Kind::AllZero | Kind::Discard => 0,
        }
    }
}

/// A k-way merge of inputs given oldest first.
///
/// It sweeps the addresses once. `upcoming` holds each input's next record that begins behind the
/// sweep, `active` those that began before; the newest active one owns the sweep's position. A
/// record that ended under a newer one is replaced only when it surfaces.
pub struct Merge<C> {
    inputs: Vec<C>,
    upcoming: BinaryHeap<Reverse<(u64, usize)>>,
    active: BinaryHeap<usize>,
    current: Vec<Option<Record>>,
    position: u64,
    started: bool,
    max_io: u32,
    rest: Option<Piece>,
}

impl<C: RecordSource> Merge<C> {
    /// A merge whose pieces have at most `max_io` blocks; 0 is no limit.
    pub fn new(inputs: Vec<C>, max_io: u32) -> Self {
        let count = inputs.len();
        Self {
            inputs,
            upcoming: BinaryHeap::with_capacity(count),
            active: BinaryHeap::new(),
            current: vec![None; count],
            position: 0,
            started: false,
            max_io,
            rest: None,
        }
    }

    /// The inputs, oldest first.
    pub fn inputs(&self) -> &[C] {
        &self.inputs
    }

    /// The next piece by address, or `None` at the end.
    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        if !self.started {
            self.started = true;
            for input in 0..self.inputs.len() {
                self.advance(input)?;
            }
        }
        if self.rest.is_none() {
            self.rest = self.next_uncut()?;
        }
        Ok(self.rest.take().map(|piece| self.cut_to_limit(piece)))
    }

    fn cut_to_limit(&mut self, piece: Piece) -> Piece {
        let record = piece.record;
        if self.max_io == 0 || record.blocks <= self.max_io {
            return piece;
        }
        let middle = record.address + u64::from(self.max_io);
        self.rest = Some(Piece {
            record: record.part(middle, record.end()),
            ..piece
        });
        Piece {
            record: record.part(record.address, middle),
            ..piece
        }
    }

    fn next_uncut(&mut self) -> Result<Option<Piece>> {
        loop {
            self.activate();
            let Some(&owner) = self.active.peek() else {
                let Some(&Reverse((start, _))) = self.upcoming.peek() else {
                    return Ok(None);
                };
                self.position = start;
                continue;
            };
            match self.current[owner] {
                Some(record) if record.end() > self.position => {
                    let end = self.reign_of(owner, record.end());
                    let part = record.part(self.position, end);
                    self.position = end;
                    return Ok(Some(Piece {
                        record: part,
                        input: owner,
                    }));
                }
                _ => {
                    self.active.pop();
                    self.advance(owner)?;
                }
            }
        }
    }

    /// Moves records that begin at or before the sweep from `upcoming` to `active`.
    fn activate(&mut self) {
        while let Some(&Reverse((start, input))) = self.upcoming.peek()
            && start <= self.position
        {
            self.upcoming.pop();
            self.active.push(input);
        }
    }

    /// Where the owner's record ends or a newer record begins. Older ones that begin before
    /// become active, unseen.
    fn reign_of(&mut self, owner: usize, end: u64) -> u64 {
        while let Some(&Reverse((start, input))) = self.upcoming.peek()
            && start < end
        {
            if input > owner {
                return start;
            }
            self.upcoming.pop();
            self.active.push(input);
        }
        end
    }

    /// Takes the next record of an input that ends behind the sweep.
    fn advance(&mut self, input: usize) -> Result<()> {
        loop {
            let next = self.inputs[input].next_record()?;
            self.current[input] = next;
            match next {
                None => return Ok(()),
                Some(record) if record.end() <= self.position => {}
                Some(record) => {
                    self.upcoming.push(Reverse((record.address, input)));
                    return Ok(());
                }
            }
        }
    }
}

/// Counts of pieces and blocks by kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Data, all-zero and discard records.
    pub records: [u64; 3],
    /// Their blocks \[lb\].
    pub blocks: [u64; 3],
}

impl Tally {
    /// Counts a range.
    pub fn add(&mut self, kind: Kind, blocks: u32) {
        let slot = match kind {
            Kind::Data => 0,
            Kind::AllZero => 1,
            Kind::Discard => 2,
        };
        self.records[slot] += 1;
        self.blocks[slot] += u64::from(blocks);
    }

    /// Adds another count.
    pub fn join(&mut self, other: &Self) {
        for kind in 0..3 {
            self.records[kind] += other.records[kind];
            self.blocks[kind] += other.blocks[kind];
        }
    }

    /// Records of all kinds.
    pub fn total(&self) -> u64 {
        self.records.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::{Body, Compression, Stored};
    use super::*;

    impl RecordSource for std::vec::IntoIter<Record> {
        fn next_record(&mut self) -> Result<Option<Record>> {
            Ok(self.next())
        }
    }

    type Blocks = BTreeMap<u64, (usize, Kind, u32)>;

    /// Block map of records: owner, kind and place in the stored image.
    fn blocks_of(records: &[Record], input: usize, map: &mut Blocks) {
        for record in records {
            for i in 0..record.blocks {
                let place = match record.body {
                    Body::Data(stored) => stored.image_offset + i,
                    _ => 0,
                };
                map.insert(record.address + u64::from(i), (input, record.kind(), place));
            }
        }
    }

    fn diff() -> impl Strategy<Value = Vec<Record>> {
        proptest::collection::vec((0u64..6, 1u32..9, 0u8..3), 0..12).prop_map(|spans| {
            let mut address = 0;
            spans
                .into_iter()
                .map(|(gap, blocks, kind)| {
                    let body = match kind {
                        0 => Body::AllZero,
                        1 => Body::Discard,
                        _ => Body::Data(Stored {
                            position: 32,
                            size: blocks * 512,
                            compression: Compression::None,
                            checksum: 0,
                            image_offset: 0,
                            image_blocks: blocks,
                        }),
                    };
                    let record = Record {
                        address: address + gap,
                        blocks,
                        body,
                    };
                    address = record.end();
                    record
                })
                .collect()
        })
    }

    fn merged(diffs: &[Vec<Record>], max_io: u32) -> Vec<Piece> {
        let inputs = diffs.iter().map(|d| d.clone().into_iter()).collect();
        let mut merge = Merge::new(inputs, max_io);
        std::iter::from_fn(|| merge.next_piece().unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn the_newest_wins_every_block(
            diffs in proptest::collection::vec(diff(), 0..7),
            max_io in 0u32..5,
        ) {
            let mut expected = Blocks::new();
            for (input, diff) in diffs.iter().enumerate() {
                blocks_of(diff, input, &mut expected);
            }
            let pieces = merged(&diffs, max_io);
            let mut found = Blocks::new();
            let mut last_end = 0;
            for piece in &pieces {
                prop_assert!(piece.record.address >= last_end && piece.record.blocks > 0);
                prop_assert!(max_io == 0 || piece.record.blocks <= max_io);
                last_end = piece.record.end();
                blocks_of(&[piece.record], piece.input, &mut found);
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_limit_cuts_each_piece_of_the_unlimited_merge(
            diffs in proptest::collection::vec(diff(), 0..7),
            max_io in 1u32..5,
        ) {
            let mut expected = vec![];
            for piece in merged(&diffs, 0) {
                let (mut from, end) = (piece.record.address, piece.record.end());
                while from < end {
                    let to = end.min(from + u64::from(max_io));
                    expected.push(Piece { record: piece.record.part(from, to), ..piece });
                    from = to;
                }
            }
            prop_assert_eq!(merged(&diffs, max_io), expected);
        }

        #[test]
        fn merging_is_associative_as_a_block_map(a in diff(), b in diff(), c in diff()) {
            let kinds = |diffs: &[Vec<Record>]| {
                let mut map = Blocks::new();
                for piece in merged(diffs, 0) {
                    blocks_of(&[piece.record], 0, &mut map);
                }
                map
            };
            let flat = |diffs: &[Vec<Record>]| -> Vec<Record> {
                merged(diffs, 0).into_iter().map(|p| p.record).collect()
            };
            let left = kinds(&[flat(&[a.clone(), b.clone()]), c.clone()]);
            let right = kinds(&[a.clone(), flat(&[b.clone(), c.clone()])]);
            prop_assert_eq!(&left, &right);
            prop_assert_eq!(left, kinds(&[a, b, c]));
        }
    }
}
