//! The file header of a wlog (reference: "wlog").
//!
//! Always 4096 bytes, whatever the block size of the log. The packs behind it are not looked at.

use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::checksum::{embed, is_intact};
use crate::error::{Flaw, demand};
use crate::units::{LOGICAL_BLOCK, PhysicalBlock, Uuid};

const SECTOR_TYPE: u16 = 4;
pub(super) const VERSION: u16 = 2;

/// Head of a wlog file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Salt of the checksums of packs and their data.
    pub salt: u32,
    /// Block size of the log.
    pub pbs: PhysicalBlock,
    /// Names the log the packs come from.
    pub uuid: Uuid,
    /// lsid of the first pack.
    pub begin_lsid: u64,
    /// Upper bound of the lsids, often 2^64 - 1. Greater than `begin_lsid`.
    pub end_lsid: u64,
}

impl FileHeader {
    /// Bytes of the header.
    pub const BYTES: usize = 4096;

    /// Decodes exactly [`FileHeader::BYTES`] bytes.
    ///
    /// # Errors
    /// Whatever rule is broken, at its offset in the header.
    pub fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        identify(bytes)?;
        let (begin_lsid, end_lsid) = (u64_at(bytes, 40), u64_at(bytes, 48));
        demand!(
            begin_lsid < end_lsid,
            48,
            "end_lsid",
            format!("more than begin_lsid {begin_lsid}"),
            end_lsid
        );
        let mut uuid = Uuid::ZERO;
        uuid.0.copy_from_slice(&bytes[24..40]);
        let pbs = PhysicalBlock::new(u32_at(bytes, 20), 20)?;
        Ok(Self {
            salt: u32_at(bytes, 12),
            pbs,
            uuid,
            begin_lsid,
            end_lsid,
        })
    }

    /// The bytes of the header, with its checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::BYTES];
        put(&mut bytes, 0, SECTOR_TYPE.to_le_bytes());
        put(&mut bytes, 2, VERSION.to_le_bytes());
        put(&mut bytes, 4, (Self::BYTES as u16).to_le_bytes());
        put(&mut bytes, 12, self.salt.to_le_bytes());
        put(&mut bytes, 16, (LOGICAL_BLOCK as u32).to_le_bytes());
        put(&mut bytes, 20, (self.pbs.bytes() as u32).to_le_bytes());
        put(&mut bytes, 24, self.uuid.0);
        put(&mut bytes, 40, self.begin_lsid.to_le_bytes());
        put(&mut bytes, 48, self.end_lsid.to_le_bytes());
        embed(&mut bytes, 8, 0);
        bytes
    }
}

/// Length, type, version, checksum and the fields with a single legal value.
fn identify(bytes: &[u8]) -> Result<(), Flaw> {
    let (len, want) = (bytes.len(), FileHeader::BYTES);
    demand!(
        len == want,
        len.min(want),
        "wlog header",
        format!("{want} bytes"),
        len
    );
    let sector_type = u16_at(bytes, 0);
    demand!(
        sector_type == SECTOR_TYPE,
        0,
        "wlog sector type",
        SECTOR_TYPE,
        sector_type
    );
    let version = u16_at(bytes, 2);
    demand!(
        version == VERSION,
        2,
        "log format version",
        VERSION,
        version
    );
    let sum = u32_at(bytes, 8);
    demand!(
        is_intact(bytes, 0),
        8,
        "wlog header checksum",
        "the checksum of the header",
        format!("{sum:08x}")
    );
    let size = u16_at(bytes, 4);
    demand!(usize::from(size) == want, 4, "header_size", want, size);
    let lbs = u32_at(bytes, 16);
    demand!(
        lbs == LOGICAL_BLOCK as u32,
        16,
        "logical block size",
        LOGICAL_BLOCK,
        lbs
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn encoded_is_decoded(shift in 0..4u32, salt: u32, uuid: [u8; 16], lsids: [u64; 2]) {
            prop_assume!(lsids[0] != lsids[1]);
            let pbs = PhysicalBlock::new(512 << shift, 0).unwrap();
            let (begin_lsid, end_lsid) = (lsids[0].min(lsids[1]), lsids[0].max(lsids[1]));
            let header = FileHeader { salt, pbs, uuid: Uuid(uuid), begin_lsid, end_lsid };
            prop_assert_eq!(FileHeader::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn lengths_and_ranges_are_checked() {
        let pbs = PhysicalBlock::B512;
        let header = FileHeader {
            salt: 1,
            pbs,
            uuid: Uuid::ZERO,
            begin_lsid: 5,
            end_lsid: 5,
        };
        assert_eq!(FileHeader::decode(&header.encode()).unwrap_err().offset, 48);
        let good = FileHeader {
            end_lsid: 6,
            ..header
        }
        .encode();
        for len in [0, 55, 4095] {
            assert_eq!(
                FileHeader::decode(&good[..len]).unwrap_err().offset,
                len as u64
            );
        }
    }
}
