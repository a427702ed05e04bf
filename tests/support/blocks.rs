//! Self-describing blocks: what a block holds says where it belongs and which write it came with.

use walkeep_wire::random::Random;

use super::history::BLOCK;

/// Words of a block: volume, address, sequence, checksum, then noise that follows from the first
/// three, so that no part of another block passes for a part of this one.
type Words = [u64; BLOCK / 8];

fn words(volume: u64, address: usize, seq: u64) -> Words {
    let address = address as u64;
    let mut noise = Random::new(volume ^ address.rotate_left(40) ^ seq.rotate_left(20));
    let mut words = [0; BLOCK / 8];
    words[4..].fill_with(|| noise.next_u64());
    (words[0], words[1], words[2]) = (volume, address, seq);
    words[3] = checksum(&words);
    words
}

fn checksum(words: &Words) -> u64 {
    let others = words.iter().enumerate().filter(|(at, _)| *at != 3);
    others.fold(0, |sum, (_, word)| {
        (sum.rotate_left(7) ^ word).wrapping_mul(0x100_0000_01b3)
    })
}

/// The bytes of a write of `blocks` blocks with the number `seq`.
pub fn describe(volume: u64, start: usize, blocks: usize, seq: u64) -> Vec<u8> {
    let all = (start..start + blocks).flat_map(|address| words(volume, address, seq));
    all.flat_map(u64::to_le_bytes).collect()
}

/// The sequences of the blocks from `start` on, 0 for zeros.
///
/// # Panics
/// If a block is torn, stands in a wrong place, or is of another volume.
pub fn sequences(volume: u64, start: usize, bytes: &[u8]) -> Vec<u64> {
    let blocks = bytes.chunks_exact(BLOCK).zip(start..);
    let sequence = |(block, address): (&[u8], usize)| {
        let word = |at: usize| u64::from_le_bytes(block[at * 8..][..8].try_into().unwrap());
        let found: Words = std::array::from_fn(word);
        if found == [0; BLOCK / 8] {
            return 0;
        }
        let expected = words(volume, address, found[2]);
        assert!(
            found == expected,
            "block {address} is torn or misplaced: volume {:x}, address {}, sequence {:x}, \
             checksum {}",
            found[0],
            found[1],
            found[2],
            if found[3] == checksum(&found) {
                "good"
            } else {
                "bad"
            }
        );
        found[2]
    };
    blocks.map(sequence).collect()
}
