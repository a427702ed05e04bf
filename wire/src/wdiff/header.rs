//! The 32 bytes at the head of both formats (reference: "wdiff").

use crate::bytes::{put, u16_at};
use crate::checksum;
use crate::error::{Flaw, demand};
use crate::units::Uuid;

use super::FILE_HEADER;

const VERSION: u16 = 2;

/// The container of the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A stream of packs, each a header and its data.
    Sorted,
    /// Stored images, then an index.
    Indexed,
}

impl Format {
    /// The word used in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sorted => "sorted",
            Self::Indexed => "indexed",
        }
    }
}

/// The file header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHeader {
    /// Container of the records.
    pub format: Format,
    /// Uuid of the volume's log; zero when the writer did not know it.
    pub uuid: Uuid,
}

impl FileHeader {
    /// Checks and reads a header. Reserved fields are covered by the checksum only.
    pub fn decode(bytes: &[u8; FILE_HEADER]) -> Result<Self, Flaw> {
        let sum = checksum::checksum(bytes, 0);
        demand!(
            sum == 0,
            0,
            "wdiff header checksum",
            "a sum of 0",
            format!("{sum:08x}")
        );
        let version = u16_at(bytes, 4);
        demand!(version == VERSION, 4, "wdiff version", VERSION, version);
        let format = match bytes[6] {
            0 => Format::Sorted,
            1 => Format::Indexed,
            other => {
                return Err(Flaw::new(
                    6,
                    "wdiff type",
                    "0 (sorted) or 1 (indexed)",
                    other,
                ));
            }
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            format,
            uuid: Uuid(uuid),
        })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; FILE_HEADER] {
        let mut bytes = [0; FILE_HEADER];
        put(&mut bytes, 4, VERSION.to_le_bytes());
        bytes[6] = u8::from(self.format == Format::Indexed);
        put(&mut bytes, 16, self.uuid.0);
        checksum::embed(&mut bytes, 0, 0);
        bytes
    }

    /// The checksum as stored, for listings.
    pub fn checksum(&self) -> u32 {
        crate::bytes::u32_at(&self.encode(), 0)
    }
}
