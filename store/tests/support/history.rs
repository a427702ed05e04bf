//! What writes leave behind, without the code under test: an image is one number for each block of
//! 512 bytes, 0 for zeros, and a history is a list of changes to it.

#![allow(dead_code)] // each test binary uses its own part

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// What the blocks from `start` on became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub start: usize,
    pub ids: Vec<u64>,
}

impl Change {
    pub fn zeros(start: usize, blocks: usize) -> Self {
        let ids = vec![0; blocks];
        Self { start, ids }
    }

    pub fn end(&self) -> usize {
        self.start + self.ids.len()
    }

    pub fn apply(&self, image: &mut [u64]) {
        image[self.start..self.end()].copy_from_slice(&self.ids);
    }
}

/// All numbers of changes, from `least` on, after which `image` is `found`.
///
/// # Errors
/// If there is none: how near the best one comes.
pub fn prefixes(
    mut image: Vec<u64>,
    changes: &[Change],
    least: usize,
    found: &[u64],
) -> Result<Vec<usize>, String> {
    changes[..least].iter().for_each(|c| c.apply(&mut image));
    let mut wrong = count(&image, found);
    let mut best = (wrong, least);
    let mut matches: Vec<usize> = (wrong == 0).then_some(least).into_iter().collect();
    for (n, change) in (least + 1..).zip(&changes[least..]) {
        let range = change.start..change.end();
        let before = count(&image[range.clone()], &found[range.clone()]);
        change.apply(&mut image);
        wrong = wrong - before + count(&image[range.clone()], &found[range]);
        best = best.min((wrong, n));
        matches.extend((wrong == 0).then_some(n));
    }
    match matches.is_empty() {
        false => Ok(matches),
        true => Err(format!(
            "no prefix: of {} changes at least {least} must be there; after {} of them {} blocks \
             differ",
            changes.len(),
            best.1,
            best.0
        )),
    }
}

/// Blocks that differ.
fn count(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}
