//! MurmurHash3 (x64, 128 bits), by which bulks of images are compared (reference: "Hashes").

use crate::bytes::{put, u64_at};

const C1: u64 = 0x87c3_7b91_1142_53d5;
const C2: u64 = 0x4cf5_ad43_2745_937f;

/// Sixteen bytes: h1 then h2, little-endian, as they are stored and printed.
pub type Digest = [u8; 16];

/// Hash of `data` with a seed.
pub fn murmur3(data: &[u8], seed: u32) -> Digest {
    let (mut h1, mut h2) = (u64::from(seed), u64::from(seed));
    let mut blocks = data.chunks_exact(16);
    for block in &mut blocks {
        h1 ^= mix1(u64_at(block, 0));
        h1 = h1.rotate_left(27).wrapping_add(h2);
        h1 = h1.wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(u64_at(block, 8));
        h2 = h2.rotate_left(31).wrapping_add(h1);
        h2 = h2.wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let mut tail = [0; 16];
    tail[..blocks.remainder().len()].copy_from_slice(blocks.remainder());
    // Zeros mix to zero, so a short tail needs no cases.
    h1 ^= mix1(u64_at(&tail, 0));
    h2 ^= mix2(u64_at(&tail, 8));
    finish(h1, h2, data.len() as u64)
}

fn mix1(k: u64) -> u64 {
    k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

fn mix2(k: u64) -> u64 {
    k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

fn finish(h1: u64, h2: u64, len: u64) -> Digest {
    let (mut h1, mut h2) = (h1 ^ len, h2 ^ len);
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    (h1, h2) = (avalanche(h1), avalanche(h2));
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    let mut digest = [0; 16];
    put(&mut digest, 0, h1.to_le_bytes());
    put(&mut digest, 8, h2.to_le_bytes());
    digest
}

fn avalanche(mut k: u64) -> u64 {
    k = (k ^ (k >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    k = (k ^ (k >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

/// Hash of a whole image: the XOR of the hashes of its bulks, each seeded with its number.
///
/// The result depends on the size of the bulks; only the last one may be short.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageHash {
    digest: Digest,
    bulks: u32,
}

impl ImageHash {
    /// No bulks yet: 16 zero bytes.
    pub const fn new() -> Self {
        Self {
            digest: [0; 16],
            bulks: 0,
        }
    }

    /// Adds the next bulk.
    pub fn add(&mut self, bulk: &[u8]) {
        let hash = murmur3(bulk, self.bulks);
        self.digest
            .iter_mut()
            .zip(hash)
            .for_each(|(sum, byte)| *sum ^= byte);
        self.bulks = self.bulks.wrapping_add(1);
    }

    /// The hash of the bulks so far.
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_hashes_to_zero() {
        assert_eq!(murmur3(&[], 0), [0; 16]);
        assert_eq!(ImageHash::new().digest(), [0; 16]);
    }

    #[test]
    fn known_text() {
        let digest = murmur3(b"The quick brown fox jumps over the lazy dog", 0);
        assert_eq!(digest[..8], 0xe34b_bc7b_bc07_1b6c_u64.to_le_bytes());
        assert_eq!(digest[8..], 0x7a43_3ca9_c49a_9347_u64.to_le_bytes());
    }

    #[test]
    fn image_hash_xors_bulks_seeded_by_number() {
        let mut image = ImageHash::new();
        image.add(&[1; 64]);
        image.add(&[2; 10]);
        let (a, b) = (murmur3(&[1; 64], 0), murmur3(&[2; 10], 1));
        for i in 0..16 {
            assert_eq!(image.digest()[i], a[i] ^ b[i]);
        }
    }
}
