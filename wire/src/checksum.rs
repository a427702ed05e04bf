//! The salted 32-bit sum that guards logs and diffs (reference: "Checksum").
//!
//! It is an integrity hint, not a hash: the order of words does not matter.

/// A running checksum. Pieces may come one after the other, but only the last piece may have a
/// length that is no multiple of 4.
#[derive(Clone, Copy, Debug)]
pub struct Checksum(u32);

impl Checksum {
    /// Starts with a salt: the log's own for logpacks and log data, 0 elsewhere.
    pub const fn new(salt: u32) -> Self {
        Self(salt)
    }

    /// Adds the words of `data`, little-endian, the last one padded with zeros.
    pub fn update(&mut self, data: &[u8]) {
        let mut words = data.chunks_exact(4);
        let mut sum = self.0;
        for word in &mut words {
            sum = sum.wrapping_add(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
        let mut last = [0; 4];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        self.0 = sum.wrapping_add(u32::from_le_bytes(last));
    }

    /// The checksum: the negated sum, so that a structure that embeds it sums up to 0.
    pub const fn finish(self) -> u32 {
        self.0.wrapping_neg()
    }
}

/// Checksum of one piece of data.
pub fn checksum(data: &[u8], salt: u32) -> u32 {
    let mut sum = Checksum::new(salt);
    sum.update(data);
    sum.finish()
}

/// Zeroes the `u32` at `at`, computes the checksum of the whole structure and stores it there.
pub fn embed(structure: &mut [u8], at: usize, salt: u32) {
    structure[at..at + 4].fill(0);
    let sum = checksum(structure, salt);
    structure[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// True if the structure, its embedded checksum included, is intact.
pub fn is_intact(structure: &[u8], salt: u32) -> bool {
    checksum(structure, salt) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_values() {
        assert_eq!(checksum(&[], 0), 0);
        assert_eq!(checksum(&[], 1), u32::MAX);
        assert_eq!(checksum(&[1, 2, 3, 4, 0xff], 0), 0xfbfc_fd00);
        assert_eq!(checksum(&[0; 512], 0x1234_5678), 0xedcb_a988);
    }

    #[test]
    fn pieces_add_up_and_a_flipped_bit_shows() {
        let mut data: Vec<u8> = (0..200).collect();
        embed(&mut data, 8, 7);
        assert!(is_intact(&data, 7));
        let mut sum = Checksum::new(7);
        sum.update(&data[..64]);
        sum.update(&data[64..]);
        assert_eq!(sum.finish(), 0);
        data[100] ^= 1;
        assert!(!is_intact(&data, 7));
    }
}
