//! What recovery does at the end of the log it finds (reference: "Crash recovery").
//!
//! Decisions only. The caller replays the records before the bad one, makes the data device
//! durable, writes the repair back (flushed), and stores `written_lsid` last.

use crate::logpack::Header;
use crate::units::PhysicalBlock;

/// What to write at the place of the last pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    None,
    /// This header, over the one of the pack.
    Shrink(Header),
    /// An end block ([`crate::logpack::end_block`]), over the header of the pack.
    EndBlock,
}

/// How recovery ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// lsid of the block to repair.
    pub lsid: u64,
    /// What becomes of that block.
    pub repair: Repair,
    /// The new `written_lsid` of the superblock, where the next pack will go.
    pub written_lsid: u64,
}

/// The log ended at `lsid`, where no acceptable header stands, and every record before it is good.
pub const fn at_end(lsid: u64) -> Outcome {
    Outcome {
        lsid,
        repair: Repair::None,
        written_lsid: lsid,
    }
}

/// The data of the record at `index` of `pack` does not match its checksum.
///
/// `first_lsid` is where recovery began: the `written_lsid` of the superblock. A first pack without
/// a good record is left as it is; any other becomes an end block.
pub fn at_bad_record(
    first_lsid: u64,
    pack: &Header,
    index: usize,
    pbs: PhysicalBlock,
    salt: u32,
) -> Outcome {
    let lsid = pack.lsid;
    match pack.shrink(index, pbs, salt) {
        Some(shrunk) => Outcome {
            lsid,
            written_lsid: shrunk.next_lsid(),
            repair: Repair::Shrink(shrunk),
        },
        None if lsid == first_lsid => at_end(lsid),
        None => Outcome {
            lsid,
            repair: Repair::EndBlock,
            written_lsid: lsid,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logpack::{Builder, RecordKind};

    #[test]
    fn the_three_ends() {
        let pbs = PhysicalBlock::B512;
        let mut builder = Builder::new(pbs, 7, 100);
        builder.push(RecordKind::Data, 0, 3, 1).unwrap();
        builder.push(RecordKind::Discard, 9, 9, 0).unwrap();
        builder.push(RecordKind::Data, 5, 2, 1).unwrap();
        let pack = builder.finish().unwrap();
        assert_eq!(pack.next_lsid(), 106);

        let shrunk = at_bad_record(100, &pack, 2, pbs, 7);
        assert_eq!(shrunk.written_lsid, 104);
        let Repair::Shrink(header) = shrunk.repair else {
            panic!("{shrunk:?}")
        };
        assert_eq!(
            Header::decode(&header.encode(pbs, 7), pbs, 7).unwrap(),
            header
        );

        assert_eq!(at_bad_record(100, &pack, 0, pbs, 7), at_end(100));
        let lost = at_bad_record(50, &pack, 0, pbs, 7);
        assert_eq!((lost.repair, lost.written_lsid), (Repair::EndBlock, 100));
    }
}
