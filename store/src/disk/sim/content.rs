//! The bytes of one simulated file, and what becomes of changes that were not synced.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use walkeep_wire::random::Random;

const CHUNK: u64 = 4096;
/// What a disk writes whole or not at all.
pub(super) const SECTOR: u64 = 512;

type Chunk = [u8; CHUNK as usize];

/// Bytes in chunks that copies share; chunks that are missing are holes.
#[derive(Clone, Default)]
pub(super) struct Content {
    size: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

/// Something that happens to a content.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, bytes: Bytes },
    SetSize(u64),
    Clear { offset: u64, bytes: u64 },
}

/// A range cut at the multiples of `unit`: (offset, bytes) of each piece.
fn pieces(offset: u64, bytes: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + bytes;
    let mut at = offset;
    std::iter::from_fn(move || {
        let from = at;
        at = end.min((from / unit + 1) * unit);
        (from < end).then_some((from, at - from))
    })
}

impl Content {
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Fills `into`, with zeros where nothing is.
    pub(super) fn read(&self, into: &mut [u8], offset: u64) {
        let mut rest = into;
        for (at, bytes) in pieces(offset, rest.len() as u64, CHUNK) {
            let (piece, behind) = rest.split_at_mut(bytes as usize);
            match self.chunks.get(&(at / CHUNK)) {
                Some(chunk) => {
                    piece.copy_from_slice(&chunk[(at % CHUNK) as usize..][..piece.len()])
                }
                None => piece.fill(0),
            }
            rest = behind;
        }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => self.write(bytes, *offset),
            Change::SetSize(bytes) => {
                self.clear(*bytes, self.size.saturating_sub(*bytes));
                self.size = *bytes;
            }
            Change::Clear { offset, bytes } => {
                self.clear(*offset, (*bytes).min(self.size.saturating_sub(*offset)));
            }
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut rest = bytes;
        for (at, length) in pieces(offset, bytes.len() as u64, CHUNK) {
            let (piece, behind) = rest.split_at(length as usize);
            self.chunk(at / CHUNK)[(at % CHUNK) as usize..][..piece.len()].copy_from_slice(piece);
            rest = behind;
        }
        if !bytes.is_empty() {
            self.size = self.size.max(offset + bytes.len() as u64);
        }
    }

    fn chunk(&mut self, index: u64) -> &mut Chunk {
        let zeros = || Arc::new([0; CHUNK as usize]);
        Arc::make_mut(self.chunks.entry(index).or_insert_with(zeros))
    }

    fn clear(&mut self, offset: u64, bytes: u64) {
        let end = offset + bytes;
        let whole = offset.div_ceil(CHUNK)..end / CHUNK;
        if !whole.is_empty() {
            let mut behind = self.chunks.split_off(&whole.start);
            self.chunks.append(&mut behind.split_off(&whole.end));
        }
        // At most the first and the last chunk are left.
        for index in [offset / CHUNK, end.saturating_sub(1) / CHUNK] {
            let (from, to) = (offset.max(index * CHUNK), end.min((index + 1) * CHUNK));
            if from < to && self.chunks.contains_key(&index) {
                let from = from - index * CHUNK;
                self.chunk(index)[from as usize..(to - index * CHUNK) as usize].fill(0);
            }
        }
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let (index, _) = self.chunks.range(offset / CHUNK..).next()?;
        Some(offset.max(index * CHUNK)).filter(|at| *at < self.size)
    }

    pub(super) fn next_hole(&self, offset: u64) -> u64 {
        let mut index = offset / CHUNK;
        for (found, _) in self.chunks.range(index..) {
            if *found != index {
                break;
            }
            index += 1;
        }
        offset.max(index * CHUNK).min(self.size)
    }

    /// Applies what a power cut or a failed sync lets through: an arbitrary part of the changes, in
    /// any order, each write torn at sectors. All and nothing happen too, and more often than
    /// chance would have it.
    pub(super) fn survive(&mut self, changes: &[Change], random: &mut Random) {
        const ALL: u64 = 8;
        let odds = [0, 1, 4, 7, ALL][random.below(5) as usize];
        let mut order: Vec<usize> = (0..changes.len()).collect();
        if random.one_in(2) {
            for last in (1..order.len()).rev() {
                order.swap(last, random.below(last as u64 + 1) as usize);
            }
        }
        for change in order.into_iter().map(|index| &changes[index]) {
            if random.below(ALL) < odds {
                self.apply(change);
            } else if odds > 0 && random.one_in(2) {
                self.tear(change, random);
            }
        }
    }

    /// Applies some sectors of a write: the first ones or any. Other changes are whole or nothing.
    pub(super) fn tear(&mut self, change: &Change, random: &mut Random) {
        let Change::Write { offset, bytes } = change else {
            return;
        };
        let length = bytes.len() as u64;
        let first = random
            .one_in(2)
            .then(|| random.below(length / SECTOR + 2) as usize);
        for (index, (at, size)) in pieces(*offset, length, SECTOR).enumerate() {
            if first.map_or_else(|| random.one_in(2), |first| index < first) {
                let from = (at - offset) as usize;
                self.write(&bytes[from..from + size as usize], at);
            }
        }
        // A file may have grown although the bytes never came.
        if random.one_in(2) {
            self.size = self.size.max(offset + length);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 5 * CHUNK;

    fn change() -> impl Strategy<Value = Change> {
        let range = || (0..SIZE, 0..2 * CHUNK);
        prop_oneof![
            4 => (range(), any::<u8>()).prop_map(|((offset, bytes), value)| Change::Write {
                offset,
                bytes: vec![value; bytes as usize].into(),
            }),
            1 => (0..SIZE).prop_map(Change::SetSize),
            2 => range().prop_map(|(offset, bytes)| Change::Clear { offset, bytes }),
        ]
    }

    /// The same on a vector.
    fn apply_plainly(model: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write { offset, bytes } if !bytes.is_empty() => {
                let end = *offset as usize + bytes.len();
                model.resize(model.len().max(end), 0);
                model[*offset as usize..end].copy_from_slice(bytes);
            }
            Change::Write { .. } => {}
            Change::SetSize(bytes) => model.resize(*bytes as usize, 0),
            Change::Clear { offset, bytes } => {
                let end = model.len().min((offset + bytes) as usize);
                if let Some(range) = model.get_mut(*offset as usize..end) {
                    range.fill(0);
                }
            }
        }
    }

    fn all_of(content: &Content) -> Vec<u8> {
        let mut bytes = vec![1; content.size() as usize];
        content.read(&mut bytes, 0);
        bytes
    }

    proptest! {
        #[test]
        fn a_content_is_as_a_vector(changes in prop::collection::vec(change(), 0..20)) {
            let (mut content, mut model) = (Content::default(), Vec::new());
            for change in &changes {
                let before = content.clone();
                let bytes = all_of(&before);
                content.apply(change);
                apply_plainly(&mut model, change);
                prop_assert!(all_of(&content) == model);
                prop_assert!(all_of(&before) == bytes, "a copy changed");
            }
            let mut at = 0;
            while let Some(data) = content.next_data(at) {
                prop_assert!(model[at as usize..data as usize].iter().all(|b| *b == 0));
                let hole = content.next_hole(data);
                prop_assert!(hole > data);
                at = hole;
            }
            prop_assert!(model[(at as usize).min(model.len())..].iter().all(|b| *b == 0));
        }

        #[test]
        fn what_survives_is_old_or_new_in_each_sector(
            offset in 0..SIZE,
            length in 1..SIZE,
            seed in any::<u64>(),
        ) {
            let mut content = Content::default();
            content.write(&vec![1; SIZE as usize], 0);
            let bytes = vec![2; length as usize].into();
            content.survive(&[Change::Write { offset, bytes }], &mut Random::new(seed));
            let found = all_of(&content);
            for (at, size) in pieces(0, found.len() as u64, SECTOR) {
                let touched = at.max(offset)..(at + size).min(offset + length);
                let sector = &found[at as usize..(at + size) as usize];
                for (i, byte) in (at..).zip(sector) {
                    let old = u8::from(i < SIZE);
                    prop_assert!(*byte == old || *byte == 2 && touched.contains(&i));
                }
                let new = sector.iter().filter(|b| **b == 2).count() as u64;
                let length = touched.end.saturating_sub(touched.start);
                prop_assert!(new == 0 || new == length);
            }
        }
    }
}
