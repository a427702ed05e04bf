//! Little-endian fields at fixed offsets of structures whose length was checked once.
//!
//! These helpers are for fixed layouts only: the caller must have a slice of the structure's full
//! length. They panic beyond it, as any index does.

/// The `u16` at `at`.
#[inline]
pub fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

/// The `u32` at `at`.
#[inline]
pub fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The `u64` at `at`.
#[inline]
pub fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

/// Stores the little-endian bytes of a field at `at`.
#[inline]
pub fn put<const N: usize>(b: &mut [u8], at: usize, field: [u8; N]) {
    b[at..at + N].copy_from_slice(&field);
}

/// True if all bytes are zero. Stops at the first 64-byte line that is not.
pub fn is_zero(b: &[u8]) -> bool {
    let mut lines = b.chunks_exact(64);
    lines.all(|line| line.iter().fold(0, |seen, x| seen | x) == 0)
        && lines.remainder().iter().all(|x| *x == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_seen_wherever_it_ends() {
        for len in [0, 1, 63, 64, 65, 511, 512] {
            let mut b = vec![0; len];
            assert!(is_zero(&b));
            for at in [0, len / 2, len.saturating_sub(1)] {
                if at < len {
                    b[at] = 1;
                    assert!(!is_zero(&b), "byte {at} of {len}");
                    b[at] = 0;
                }
            }
        }
    }
}
