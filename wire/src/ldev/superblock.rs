//! The superblock of a log device (reference: "Log device").
//!
//! Only the primary copy, at byte 4096, counts; nothing here falls back to the secondary.

use std::fmt;

use super::ring::Ring;
use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::checksum::{embed, is_intact};
use crate::error::{Flaw, demand};
use crate::units::{INVALID_LSID, LOGICAL_BLOCK, PhysicalBlock, Uuid};

const SECTOR_TYPE: u16 = 1;
const VERSION: u16 = 2;
const NAME: usize = 40;
const NAME_LEN: usize = 32;
/// Bytes that have a meaning; the rest of the physical block is 0.
const USED: usize = 104;

/// Name of a device: at most 31 bytes, no NUL, any encoding.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Name([u8; NAME_LEN]);

impl Name {
    /// # Errors
    /// More than 31 bytes, or a NUL byte.
    pub fn new(name: &[u8]) -> Result<Self, Flaw> {
        demand!(
            name.len() < NAME_LEN,
            0,
            "device name",
            "at most 31 bytes",
            name.len()
        );
        demand!(!name.contains(&0), 0, "device name", "no NUL byte", "one");
        let mut field = [0; NAME_LEN];
        field[..name.len()].copy_from_slice(name);
        Ok(Self(field))
    }

    fn decode(field: &[u8]) -> Result<Self, Flaw> {
        let len = field.iter().position(|byte| *byte == 0);
        let len = len.ok_or_else(|| Flaw::new(0, "device name", "a NUL byte in 32", "none"))?;
        Self::new(&field[..len])
    }

    /// The bytes of the name, without NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let len = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(NAME_LEN);
        &self.0[..len]
    }
}

/// The name, with control characters escaped and foreign bytes replaced.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        String::from_utf8_lossy(self.as_bytes())
            .chars()
            .try_for_each(|c| match c.is_control() {
                true => write!(f, "{}", c.escape_default()),
                false => f.write_char(c),
            })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Head of a log device: identity, ring and the two lsids that are kept on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Block size and size of the ring.
    pub ring: Ring,
    /// Salt of the checksums of packs and their data.
    pub salt: u32,
    /// Names the log; changes when its continuity is lost.
    pub uuid: Uuid,
    /// Name of the device, may be empty.
    pub name: Name,
    /// lsid of the oldest pack still needed.
    pub oldest_lsid: u64,
    /// All packs before it are on the data device: recovery begins here.
    pub written_lsid: u64,
    /// Size of the data device in logical blocks.
    pub device_blocks: u64,
}

impl Superblock {
    /// Bytes to read at byte 4096 of a device, if it has them, for [`Superblock::decode`].
    pub const MAX_BYTES: usize = 4096;

    /// A fresh superblock for a log device of `ldev_bytes` bytes and a data device of
    /// `device_blocks` logical blocks. It has to be written to both places
    /// ([`super::ring::primary_position`], [`super::ring::secondary_position`]), and the block of
    /// lsid 0 should be zeroed.
    ///
    /// # Errors
    /// A bad name, or a device too small for a ring.
    pub fn format(
        uuid: Uuid,
        salt: u32,
        name: &str,
        device_blocks: u64,
        ldev_bytes: u64,
        pbs: PhysicalBlock,
    ) -> Result<Self, Flaw> {
        let (ring, name) = (
            Ring::on_device(pbs, ldev_bytes)?,
            Name::new(name.as_bytes())?,
        );
        Ok(Self {
            ring,
            salt,
            uuid,
            name,
            oldest_lsid: 0,
            written_lsid: 0,
            device_blocks,
        })
    }

    /// Decodes the bytes at byte 4096 of a device of `ldev_bytes` bytes. The slice should have
    /// [`Superblock::MAX_BYTES`], and must have one physical block.
    ///
    /// # Errors
    /// Whatever rule is broken, at its offset from byte 4096.
    pub fn decode(bytes: &[u8], ldev_bytes: u64) -> Result<Self, Flaw> {
        let block = Self::identify(bytes)?;
        let pbs = PhysicalBlock::new(u32_at(block, 12), 12)?;
        let ring = decode_ring(block, pbs, ldev_bytes)?;
        let (oldest_lsid, written_lsid) = decode_lsids(block)?;
        Ok(Self {
            ring,
            salt: u32_at(block, 20),
            uuid: decode_uuid(block),
            name: Name::decode(&block[NAME..NAME + NAME_LEN])
                .map_err(|f| f.shifted(NAME as u64))?,
            oldest_lsid,
            written_lsid,
            device_blocks: u64_at(block, 96),
        })
    }

    /// The physical block of the superblock, if type, version, sizes and checksum are right.
    fn identify(bytes: &[u8]) -> Result<&[u8], Flaw> {
        demand!(
            bytes.len() >= USED,
            bytes.len(),
            "superblock",
            "at least 512 bytes",
            bytes.len()
        );
        let (sector_type, version) = (u16_at(bytes, 0), u16_at(bytes, 2));
        demand!(
            sector_type == SECTOR_TYPE,
            0,
            "superblock sector type",
            SECTOR_TYPE,
            sector_type
        );
        demand!(
            version == VERSION,
            2,
            "log format version",
            VERSION,
            version
        );
        let lbs = u32_at(bytes, 8);
        demand!(
            lbs == LOGICAL_BLOCK as u32,
            8,
            "logical block size",
            LOGICAL_BLOCK,
            lbs
        );
        let pb = PhysicalBlock::new(u32_at(bytes, 12), 12)?.bytes();
        let len = bytes.len();
        let block = bytes.get(..pb);
        let block =
            block.ok_or_else(|| Flaw::new(len as u64, "superblock", format!("{pb} bytes"), len))?;
        let found = u32_at(block, 4);
        demand!(
            is_intact(block, 0),
            4,
            "superblock checksum",
            "the checksum of the block",
            format!("{found:08x}")
        );
        let metadata = u32_at(block, 16);
        demand!(
            metadata == 0,
            16,
            "metadata_size",
            "0, as there is no metadata area in this version",
            metadata
        );
        Ok(block)
    }

    /// The block to write: one physical block, with its checksum.
    pub fn encode(&self) -> Vec<u8> {
        let pb = self.ring.pbs().bytes();
        let mut block = vec![0; pb];
        put(&mut block, 0, SECTOR_TYPE.to_le_bytes());
        put(&mut block, 2, VERSION.to_le_bytes());
        put(&mut block, 8, (LOGICAL_BLOCK as u32).to_le_bytes());
        put(&mut block, 12, (pb as u32).to_le_bytes());
        put(&mut block, 20, self.salt.to_le_bytes());
        put(&mut block, 24, self.uuid.0);
        put(&mut block, NAME, self.name.0);
        put(&mut block, 72, self.ring.size().to_le_bytes());
        put(&mut block, 80, self.oldest_lsid.to_le_bytes());
        put(&mut block, 88, self.written_lsid.to_le_bytes());
        put(&mut block, 96, self.device_blocks.to_le_bytes());
        embed(&mut block, 4, 0);
        block
    }

    /// Block size of the log and of its data device.
    pub const fn pbs(&self) -> PhysicalBlock {
        self.ring.pbs()
    }

    /// Physical blocks between `oldest_lsid` and `written_lsid`.
    pub const fn usage(&self) -> u64 {
        Ring::usage(self.oldest_lsid, self.written_lsid)
    }

    /// True if packs that are still needed were overwritten. Legal on disk.
    pub const fn is_overflowed(&self) -> bool {
        self.ring.overflows(self.oldest_lsid, self.written_lsid)
    }

    /// Forgets the packs before `lsid`. If the log reaches beyond `lsid`, the caller must have seen
    /// a valid pack there.
    ///
    /// # Errors
    /// An lsid outside oldest to written.
    pub fn advance_oldest(&mut self, lsid: u64) -> Result<(), Flaw> {
        let (from, to) = (self.oldest_lsid, self.written_lsid);
        demand!(
            (from..=to).contains(&lsid),
            80,
            "oldest_lsid",
            format!("{from} to {to}"),
            lsid
        );
        self.oldest_lsid = lsid;
        Ok(())
    }

    /// Records that all packs before `lsid` are durable on the data device.
    ///
    /// # Errors
    /// An lsid below the current one, or the invalid one.
    pub fn advance_written(&mut self, lsid: u64) -> Result<(), Flaw> {
        let range = self.written_lsid..INVALID_LSID;
        demand!(
            range.contains(&lsid),
            88,
            "written_lsid",
            format!("at least {}", range.start),
            lsid
        );
        self.written_lsid = lsid;
        Ok(())
    }

    /// Empties the log. Uuid and salt must be fresh: the old packs become invalid by the salt, and
    /// the uuid tells that continuity was lost. The ring grows or shrinks to the device.
    ///
    /// # Errors
    /// A device too small for a ring.
    pub fn reset(&mut self, uuid: Uuid, salt: u32, ldev_bytes: u64) -> Result<(), Flaw> {
        let ring = Ring::on_device(self.pbs(), ldev_bytes)?;
        *self = Self {
            ring,
            uuid,
            salt,
            oldest_lsid: 0,
            written_lsid: 0,
            ..*self
        };
        Ok(())
    }
}

fn decode_uuid(block: &[u8]) -> Uuid {
    let mut uuid = Uuid::ZERO;
    uuid.0.copy_from_slice(&block[24..40]);
    uuid
}

fn decode_ring(block: &[u8], pbs: PhysicalBlock, ldev_bytes: u64) -> Result<Ring, Flaw> {
    let ring = Ring::new(pbs, u64_at(block, 72)).map_err(|flaw| flaw.shifted(72))?;
    let fits = ring.end() <= ldev_bytes;
    let want = || format!("a ring that ends within {ldev_bytes} bytes");
    demand!(
        fits,
        72,
        "ring_buffer_size",
        want(),
        format!("{} blocks", ring.size())
    );
    Ok(ring)
}

fn decode_lsids(block: &[u8]) -> Result<(u64, u64), Flaw> {
    let (oldest, written) = (u64_at(block, 80), u64_at(block, 88));
    demand!(
        oldest != INVALID_LSID,
        80,
        "oldest_lsid",
        "a valid lsid",
        oldest
    );
    demand!(
        written != INVALID_LSID,
        88,
        "written_lsid",
        "a valid lsid",
        written
    );
    demand!(
        oldest <= written,
        80,
        "oldest_lsid",
        format!("at most written_lsid {written}"),
        oldest
    );
    Ok((oldest, written))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fresh(pbs: PhysicalBlock) -> Superblock {
        Superblock::format(Uuid([7; 16]), 9, "vol", 512, 1 << 20, pbs).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn encoded_is_decoded(
            shift in 0..4u32, salt: u32, uuid: [u8; 16], name in "[a-z0-9é]{0,12}",
            blocks: u64, ldev in 16384u64..1 << 40, lsids: [u64; 2],
        ) {
            let pbs = PhysicalBlock::new(512 << shift, 0).unwrap();
            let mut sb = Superblock::format(Uuid(uuid), salt, &name, blocks, ldev, pbs).unwrap();
            let lsids = lsids.map(|lsid| lsid.min(INVALID_LSID - 1));
            sb.advance_written(lsids[0].max(lsids[1])).unwrap();
            sb.advance_oldest(lsids[0].min(lsids[1])).unwrap();
            let block = sb.encode();
            prop_assert_eq!(block.len(), pbs.bytes());
            prop_assert_eq!(Superblock::decode(&block, ldev).unwrap(), sb);
        }

        #[test]
        fn no_bytes_panic(mut block in prop::collection::vec(any::<u8>(), 0..4097), patch: bool, ldev: u64) {
            if patch && block.len() >= 512 {
                put(&mut block, 0, [1, 0, 2, 0]);
                put(&mut block, 8, [0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
                embed(&mut block[..512], 4, 0);
            }
            let _ = Superblock::decode(&block, ldev);
        }
    }

    #[test]
    fn overflow_is_legal_but_a_ring_beyond_the_device_is_not() {
        let mut sb = fresh(PhysicalBlock::B4096);
        sb.advance_written(1 << 40).unwrap();
        assert!(sb.is_overflowed());
        assert_eq!(Superblock::decode(&sb.encode(), 1 << 20), Ok(sb.clone()));
        let flaw = Superblock::decode(&sb.encode(), (1 << 20) - 1).unwrap_err();
        assert_eq!((flaw.offset, flaw.what), (72, "ring_buffer_size"));
    }

    #[test]
    fn a_metadata_area_is_refused() {
        for metadata_size in [1u32, 4096, u32::MAX] {
            let mut block = fresh(PhysicalBlock::B512).encode();
            put(&mut block, 16, metadata_size.to_le_bytes());
            embed(&mut block, 4, 0);
            let flaw = Superblock::decode(&block, 1 << 20).unwrap_err();
            let expected = format!(
                "offset 16: metadata_size: expected 0, as there is no metadata area in this \
                 version, found {metadata_size}"
            );
            assert_eq!(flaw.to_string(), expected);
        }
    }

    #[test]
    fn lsids_move_forward_only() {
        let mut sb = fresh(PhysicalBlock::B512);
        sb.advance_written(10).unwrap();
        assert!(sb.advance_written(9).is_err());
        assert!(sb.advance_written(INVALID_LSID).is_err());
        assert!(sb.advance_oldest(11).is_err());
        sb.advance_oldest(10).unwrap();
        assert!(sb.advance_oldest(9).is_err());
        sb.reset(Uuid::ZERO, 1, 1 << 20).unwrap();
        assert_eq!(
            (sb.oldest_lsid, sb.written_lsid, sb.name.as_bytes()),
            (0, 0, &b"vol"[..])
        );
    }

    #[test]
    fn names_are_bounded_and_harmless() {
        assert!(Name::new(&[b'a'; 31]).is_ok());
        assert!(Name::new(&[b'a'; 32]).is_err());
        assert!(Name::new(b"a\0b").is_err());
        assert_eq!(
            Name::new(b"a\x1b[1m\xff").unwrap().to_string(),
            "a\\u{1b}[1m\u{fffd}"
        );
    }
}
