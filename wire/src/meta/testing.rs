//! Small snapshots, diffs and sets for the tests of this module.

use proptest::prelude::*;

use super::{DiffSet, MetaDiff, MetaSnap, MetaState};

/// A clean mergeable diff.
pub(crate) fn diff(begin: u64, end: u64) -> MetaDiff {
    MetaDiff::new(MetaSnap::clean(begin), MetaSnap::clean(end)).expect("ascending gids")
}

/// Snapshots among a few gids, so that they meet.
pub(crate) fn any_snap() -> impl Strategy<Value = MetaSnap> {
    (0u64..8, prop_oneof![3 => Just(0u64), 1 => 0u64..4])
        .prop_map(|(gid, spread)| MetaSnap::new(gid, gid + spread).expect("ascending gids"))
}

/// Any diff among a few gids.
pub(crate) fn any_diff() -> impl Strategy<Value = MetaDiff> {
    let ends = (any_snap(), any_snap());
    let rest = (
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.15),
        0u64..5_000_000_000,
    );
    (ends, rest).prop_filter_map("ends out of order", |((b, e), (merges, comp, time))| {
        let mut diff = MetaDiff::new(b, e).ok()?;
        (diff.is_mergeable, diff.is_comp, diff.timestamp) = (merges, comp, time);
        diff.data_size = time / 3;
        Some(diff)
    })
}

/// A clean diff that is no comparison.
pub(crate) fn clean_diff() -> impl Strategy<Value = MetaDiff> {
    (0u64..8, 1u64..5, any::<u32>()).prop_map(|(begin, len, time)| {
        let mut diff = diff(begin, begin + len);
        diff.timestamp = time.into();
        diff
    })
}

/// States, applying or not.
pub(crate) fn any_state() -> impl Strategy<Value = MetaState> {
    (any_snap(), any_snap(), any::<bool>(), any::<u32>()).prop_map(|(b, e, applying, time)| {
        let plain = MetaState::new(b, time.into());
        if applying {
            MetaState::applying(b, e, time.into()).unwrap_or(plain)
        } else {
            plain
        }
    })
}

/// Up to `max` diffs, duplicates left out.
pub(crate) fn any_set(max: usize) -> impl Strategy<Value = DiffSet> {
    prop::collection::vec(any_diff(), 0..=max).prop_map(|diffs| {
        let mut set = DiffSet::new();
        for diff in diffs {
            let _ = set.insert(diff);
        }
        set
    })
}
