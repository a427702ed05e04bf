//! What the targets have in common.
//!
//! A checksum stops a fuzzer at the first field it guards. So the first byte of each input is a
//! choice: with bit 0 set, the target puts the right checksums into the bytes before it decodes
//! them. Without it the bytes are taken as they are, which exercises the checks themselves.

use walkeep_wire::checksum::{checksum, embed};
use walkeep_wire::wdiff::{Codec, MAX_RECORD_BYTES, Stored};

/// Plain bytes that one input may decompress to in all, so that it stays quick. Declared sizes are
/// checked against the limit of the format before that.
const PLAIN_BUDGET: u64 = 4 << 20;

/// The choice and the bytes it applies to.
pub fn split(input: &[u8]) -> Option<(u8, Vec<u8>)> {
    input
        .split_first()
        .map(|(choice, rest)| (*choice, rest.to_vec()))
}

/// Puts the right checksum at `at` of a structure within `bytes`, if it is there as a whole.
pub fn fix(bytes: &mut [u8], from: usize, len: usize, at: usize, salt: u32) {
    if let Some(structure) = from
        .checked_add(len)
        .and_then(|end| bytes.get_mut(from..end))
    {
        embed(structure, at, salt);
    }
}

/// The checksum of a part of `bytes`, if it is there as a whole.
pub fn sum(bytes: &[u8], from: usize, len: usize, salt: u32) -> Option<u32> {
    let part = bytes.get(from..from.checked_add(len)?)?;
    Some(checksum(part, salt))
}

/// The little-endian number at `at`, 0 beyond the end.
pub fn number<const N: usize>(bytes: &[u8], at: usize) -> usize {
    let field = at.checked_add(N).and_then(|end| bytes.get(at..end));
    let field = field.unwrap_or_default();
    field
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | usize::from(*byte))
}

/// Decompresses payloads until the budget of an input is spent.
pub struct Payloads {
    codec: Codec,
    left: u64,
}

impl Default for Payloads {
    fn default() -> Self {
        Self {
            codec: Codec::default(),
            left: PLAIN_BUDGET,
        }
    }
}

impl Payloads {
    /// Sizes that a reader let pass must be within the limits of the format, and the bytes intact.
    pub fn decompress(&mut self, stored: &Stored, bytes: &[u8]) {
        let plain = stored.image_bytes();
        assert!(plain <= MAX_RECORD_BYTES && bytes.len() as u64 <= MAX_RECORD_BYTES);
        assert_eq!(checksum(bytes, 0), stored.checksum);
        if plain > self.left {
            return;
        }
        self.left -= plain;
        let mut image = vec![0; plain as usize];
        let _ = self.codec.decompress(stored.compression, bytes, &mut image);
    }
}
