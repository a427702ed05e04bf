//! Diffs between snapshots, and how they merge (reference: "Snapshots and diffs").

use std::fmt;
use std::hash::{Hash, Hasher};

use super::{MetaSnap, Refusal, require, time};
use crate::error::Flaw;
use crate::serial::{Reader, Serial, Writer};

const PREAMBLE: u16 = 0x0312;

/// The changes that lead from one snapshot to a newer one.
///
/// Equality and hash see the four gids only: two diffs with the same ends are the same diff,
/// whatever their flags, time and size.
#[derive(Debug, Clone, Copy)]
pub struct MetaDiff {
    snap_b: MetaSnap,
    snap_e: MetaSnap,
    /// May be merged onto the diff before it. False keeps the snapshot at its *beginning*.
    pub is_mergeable: bool,
    /// Made by comparing two images: holds the blocks that differ and nothing else, so it is
    /// applicable to its very beginning only and never merges.
    pub is_comp: bool,
    /// Unix time of the snapshot reached, in seconds.
    pub timestamp: u64,
    /// Size of the file in bytes, 0 if not known.
    pub data_size: u64,
}

impl MetaDiff {
    /// A mergeable diff of unknown time and size. Refuses ends that do not advance.
    pub fn new(snap_b: MetaSnap, snap_e: MetaSnap) -> Result<Self, Refusal> {
        let advances = snap_b.gid_b() < snap_e.gid_b() && snap_b.gid_e() <= snap_e.gid_e();
        let rule = "gidB growing and gidE not shrinking";
        require!(advances, "diff", rule, format!("{snap_b}-->{snap_e}"));
        let (is_mergeable, is_comp, timestamp, data_size) = (true, false, 0, 0);
        Ok(Self {
            snap_b,
            snap_e,
            is_mergeable,
            is_comp,
            timestamp,
            data_size,
        })
    }

    /// The snapshot at the beginning.
    pub const fn snap_b(&self) -> MetaSnap {
        self.snap_b
    }

    /// The snapshot that is reached.
    pub const fn snap_e(&self) -> MetaSnap {
        self.snap_e
    }

    /// True if both ends are clean.
    pub const fn is_clean(&self) -> bool {
        self.snap_b.is_clean() && self.snap_e.is_clean()
    }

    /// True if `newer` may be merged onto this diff.
    pub const fn can_merge(&self, newer: &Self) -> bool {
        let begin = newer.snap_b.gid_b();
        newer.is_mergeable
            && !self.is_comp
            && !newer.is_comp
            && self.snap_b.gid_b() <= begin
            && begin <= self.snap_e.gid_b()
            && self.snap_e.gid_b() < newer.snap_e.gid_b()
    }

    /// This diff with `newer` merged onto it; its size is not known.
    ///
    /// Refuses what [`can_merge`](Self::can_merge) denies, and dirty diffs whose merge would end
    /// with a smaller gidE than it begins with. Longer lists merge from the left.
    pub fn merge(&self, newer: &Self) -> Result<Self, Refusal> {
        let rule = "a mergeable diff that continues the older one";
        require!(
            self.can_merge(newer),
            "merge",
            rule,
            format!("{newer} onto {self}")
        );
        let mut merged = Self::new(self.snap_b, self.snap_e.after(newer))?;
        merged.is_mergeable = self.is_mergeable;
        merged.timestamp = newer.timestamp;
        Ok(merged)
    }

    /// True if `other` is redundant where this diff exists.
    pub const fn contains(&self, other: &Self) -> bool {
        self.snap_b.gid_b() <= other.snap_b.gid_b() && other.snap_e.gid_b() <= self.snap_e.gid_b()
    }

    /// The text form with flags, UTC time and size: `|0|-->|1| (M- 2023-11-14T22:13:20 4096)`.
    pub fn verbose(&self) -> String {
        let time = time::readable(self.timestamp).unwrap_or_else(|| time::raw(self.timestamp));
        format!(
            "{self} ({}{} {time} {})",
            self.merge_mark(),
            self.comp_mark(),
            self.data_size
        )
    }

    /// `M` or `-`.
    pub(crate) const fn merge_mark(&self) -> char {
        if self.is_mergeable { 'M' } else { '-' }
    }

    /// `C` or `-`.
    pub(crate) const fn comp_mark(&self) -> char {
        if self.is_comp { 'C' } else { '-' }
    }
}

impl PartialEq for MetaDiff {
    fn eq(&self, other: &Self) -> bool {
        self.snap_b == other.snap_b && self.snap_e == other.snap_e
    }
}

impl Eq for MetaDiff {}

impl Hash for MetaDiff {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.snap_b.hash(state);
        self.snap_e.hash(state);
    }
}

impl fmt::Display for MetaDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-->{}", self.snap_b, self.snap_e)
    }
}

impl Serial for MetaDiff {
    fn put(&self, writer: &mut Writer) {
        writer.put_u16(PREAMBLE);
        writer.put_bool(self.is_mergeable);
        writer.put_bool(self.is_comp);
        writer.put_u64(self.timestamp);
        self.snap_b.put(writer);
        self.snap_e.put(writer);
        writer.put_u64(self.data_size);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let at = reader.offset();
        reader.preamble(PREAMBLE, "diff preamble")?;
        let is_mergeable = reader.bool("diff isMergeable")?;
        let is_comp = reader.bool("diff isCompDiff")?;
        let timestamp = reader.u64("diff timestamp")?;
        let (snap_b, snap_e) = (MetaSnap::get(reader)?, MetaSnap::get(reader)?);
        let data_size = reader.u64("diff dataSize")?;
        let diff = Self::new(snap_b, snap_e).map_err(|refusal| refusal.at(at))?;
        Ok(Self {
            is_mergeable,
            is_comp,
            timestamp,
            data_size,
            ..diff
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_diff, any_snap, clean_diff, diff};
    use super::*;

    fn dirty(b: (u64, u64), e: (u64, u64)) -> MetaDiff {
        MetaDiff::new(
            MetaSnap::new(b.0, b.1).unwrap(),
            MetaSnap::new(e.0, e.1).unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn text_forms() {
        let mut diff = dirty((0, 0), (1, 5));
        (diff.timestamp, diff.data_size) = (1_700_000_000, 4096);
        assert_eq!(diff.to_string(), "|0|-->|1,5|");
        assert_eq!(diff.verbose(), "|0|-->|1,5| (M- 2023-11-14T22:13:20 4096)");
        (diff.is_mergeable, diff.is_comp, diff.timestamp) = (false, true, u64::MAX);
        assert_eq!(
            diff.verbose(),
            "|0|-->|1,5| (-C @18446744073709551615 4096)"
        );
    }

    #[test]
    fn a_merge_that_breaks_the_ends_is_refused() {
        let (older, newer) = (dirty((0, 3), (1, 4)), dirty((0, 1), (2, 2)));
        assert!(older.can_merge(&newer));
        assert!(older.merge(&newer).is_err());
    }

    #[test]
    fn a_merge_keeps_the_greatest_end_that_is_dirty() {
        let older = dirty((0, 2), (1, 5));
        let end = |newer: &MetaDiff| older.merge(newer).unwrap().snap_e().to_string();
        // A clean diff leaves what lies beyond its own end dirty, and cleans what it reaches.
        assert_eq!(end(&diff(1, 3)), "|3,5|");
        assert_eq!(end(&diff(0, 4)), "|4,5|");
        assert_eq!(end(&diff(1, 5)), "|5|");
        assert_eq!(end(&diff(1, 9)), "|9|");
        // A dirty one says itself how far its end is dirty.
        assert_eq!(end(&dirty((1, 1), (3, 4))), "|3,4|");
        assert_eq!(end(&dirty((1, 7), (3, 8))), "|3,8|");
        let merged = older.merge(&diff(1, 3)).unwrap();
        assert_eq!(merged.to_string(), "|0,2|-->|3,5|");
        let longer = merged.merge(&diff(3, 4)).unwrap();
        assert_eq!(longer.to_string(), "|0,2|-->|4,5|");
    }

    #[test]
    fn the_first_operand_decides_on_its_own_beginning() {
        let (mut older, newer) = (diff(0, 1), diff(1, 2));
        older.is_mergeable = false;
        assert!(!older.merge(&newer).unwrap().is_mergeable);
        assert!(!newer.can_merge(&older));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn encoding_round_trips(diff in any_diff()) {
            let back = MetaDiff::from_bytes(&diff.to_bytes()).unwrap();
            prop_assert_eq!(format!("{back:?}"), format!("{diff:?}"));
        }

        #[test]
        fn law_apply_then_apply_equals_apply_merged(
            snap in any_snap(), d0 in clean_diff(), d1 in clean_diff()
        ) {
            if let (Ok(step), Ok(merged)) = (snap.apply(&d0), d0.merge(&d1)) {
                prop_assert_eq!(step.apply(&d1), snap.apply(&merged));
            }
        }

        #[test]
        fn law_merge_reaches_same_gid(
            snap in any_snap(), mut d0 in any_diff(), mut d1 in any_diff()
        ) {
            (d0.is_comp, d1.is_comp) = (false, false);
            if let (Ok(step), Ok(merged)) = (snap.apply(&d0), d0.merge(&d1)) {
                let both = step.apply(&d1).unwrap();
                prop_assert_eq!(both.gid_b(), snap.apply(&merged).unwrap().gid_b());
            }
        }

        #[test]
        fn law_merge_is_associative_for_clean(
            d0 in clean_diff(), d1 in clean_diff(), d2 in clean_diff()
        ) {
            let left = d0.merge(&d1).and_then(|d| d.merge(&d2));
            let right = d1.merge(&d2).and_then(|d| d0.merge(&d));
            if let (Ok(left), Ok(right)) = (left, right) {
                prop_assert_eq!(format!("{left:?}"), format!("{right:?}"));
            }
        }

        #[test]
        fn law_merge_of_clean_is_clean_and_contains_its_parts(
            d0 in clean_diff(), d1 in clean_diff()
        ) {
            if let Ok(merged) = d0.merge(&d1) {
                prop_assert!(merged.is_clean());
                prop_assert!(merged.contains(&d0) && merged.contains(&d1));
            }
        }
    }
}
