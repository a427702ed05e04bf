//! Snapshots as pairs of gids, and what a diff makes of them (reference: "Snapshots and diffs").

use std::fmt;

use super::{MetaDiff, Refusal, require};
use crate::error::Flaw;
use crate::serial::{Reader, Serial, Writer};
use crate::units::UNKNOWN_GID;

const PREAMBLE: u16 = 0x0311;

/// A snapshot: every block is at least as new as `gid_b` and no newer than `gid_e`.
///
/// Clean (`gid_b == gid_e`) is the image of one moment; only that can be restored. Dirty is an image
/// read while the volume changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetaSnap {
    gid_b: u64,
    gid_e: u64,
}

/// How a diff stands to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Applying the diff gives a newer snapshot.
    Applicable,
    /// All of the diff is in the snapshot already.
    TooOld,
    /// Changes between the snapshot and the diff are missing.
    TooNew,
    /// A comparison with another beginning.
    NotApplicable,
}

impl MetaSnap {
    /// The base of an archive that has no image yet.
    pub const UNKNOWN: Self = Self::clean(UNKNOWN_GID);

    /// A snapshot of one moment.
    pub const fn clean(gid: u64) -> Self {
        Self {
            gid_b: gid,
            gid_e: gid,
        }
    }

    /// Refuses `gid_b > gid_e`.
    pub fn new(gid_b: u64, gid_e: u64) -> Result<Self, Refusal> {
        require!(
            gid_b <= gid_e,
            "snapshot",
            "gidB <= gidE",
            format!("{gid_b} and {gid_e}")
        );
        Ok(Self { gid_b, gid_e })
    }

    /// The gid up to which all changes are in the image.
    pub const fn gid_b(self) -> u64 {
        self.gid_b
    }

    /// The gid after which no change is in the image.
    pub const fn gid_e(self) -> u64 {
        self.gid_e
    }

    /// True for the image of one moment.
    pub const fn is_clean(self) -> bool {
        self.gid_b == self.gid_e
    }

    /// Where `diff` stands. Only `gid_b` of the snapshot counts.
    pub const fn relation(self, diff: &MetaDiff) -> Relation {
        let (begin, end) = (diff.snap_b().gid_b, diff.snap_e().gid_b);
        if diff.is_comp {
            if begin == self.gid_b {
                Relation::Applicable
            } else {
                Relation::NotApplicable
            }
        } else if begin > self.gid_b {
            Relation::TooNew
        } else if end <= self.gid_b {
            Relation::TooOld
        } else {
            Relation::Applicable
        }
    }

    /// The snapshot after `diff`, which must be applicable.
    pub fn apply(self, diff: &MetaDiff) -> Result<Self, Refusal> {
        let relation = self.relation(diff);
        require!(
            relation == Relation::Applicable,
            "apply",
            format!("a diff applicable to {self}"),
            format!("{diff} ({relation:?})")
        );
        Ok(self.after(diff))
    }

    /// The snapshot after diffs, each of which must be applicable when its turn comes.
    pub fn apply_all(self, diffs: &[MetaDiff]) -> Result<Self, Refusal> {
        diffs.iter().try_fold(self, Self::apply)
    }

    /// The snapshot after a diff known to be applicable.
    pub(crate) fn after(self, diff: &MetaDiff) -> Self {
        let end = diff.snap_e();
        if diff.is_clean() {
            Self {
                gid_b: end.gid_b,
                gid_e: end.gid_b.max(self.gid_e),
            }
        } else {
            end
        }
    }
}

impl fmt::Display for MetaSnap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            write!(f, "|{}|", self.gid_b)
        } else {
            write!(f, "|{},{}|", self.gid_b, self.gid_e)
        }
    }
}

impl Serial for MetaSnap {
    fn put(&self, writer: &mut Writer) {
        writer.put_u16(PREAMBLE);
        writer.put_u64(self.gid_b);
        writer.put_u64(self.gid_e);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let at = reader.offset();
        reader.preamble(PREAMBLE, "snapshot preamble")?;
        let gid_b = reader.u64("snapshot gidB")?;
        let gid_e = reader.u64("snapshot gidE")?;
        Self::new(gid_b, gid_e).map_err(|refusal| refusal.at(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_diff, any_snap, diff};
    use super::*;

    #[test]
    fn text_form() {
        assert_eq!(MetaSnap::clean(3).to_string(), "|3|");
        assert_eq!(MetaSnap::new(3, 5).unwrap().to_string(), "|3,5|");
        assert!(MetaSnap::new(5, 3).is_err());
    }

    #[test]
    fn a_dirty_image_becomes_clean_once_all_changes_are_in() {
        let dirty = MetaSnap::new(0, 5).unwrap();
        let half = dirty.apply(&diff(0, 3)).unwrap();
        assert_eq!(half, MetaSnap::new(3, 5).unwrap());
        assert_eq!(half.apply(&diff(3, 7)).unwrap(), MetaSnap::clean(7));
        assert!(half.apply(&diff(4, 7)).is_err());
    }

    proptest! {
        #[test]
        fn encoding_round_trips(snap in any_snap()) {
            prop_assert_eq!(MetaSnap::from_bytes(&snap.to_bytes()), Ok(snap));
        }

        #[test]
        fn law_applying_makes_progress(snap in any_snap(), diff in any_diff()) {
            if let Ok(after) = snap.apply(&diff) {
                prop_assert!(after.gid_b() > snap.gid_b());
                prop_assert_eq!(after.gid_b(), diff.snap_e().gid_b());
            }
        }
    }
}
