//! The diffs of one volume, and the greedy choices among them (reference: "Diff sets").
//!
//! The choices are those of the original tools, and serve merging, sending, applying and collecting
//! garbage as they do there. They can overlook a snapshot that could be restored, and offer one of a
//! half-applied base that could not: for restoring, ask [`super::restore`].
//!
//! Every choice takes the candidate with the greatest snapE.gidB, so all other candidates are too
//! old afterwards, and the next step has to look only at diffs that begin later than all seen
//! before. A listing costs O(n) for n diffs.

use std::collections::BTreeMap;

use super::{MetaDiff, MetaSnap, MetaState, Refusal, Relation, require};

/// Identity, ordered by the beginning.
type Key = [u64; 4];

const fn key(diff: &MetaDiff) -> Key {
    let (b, e) = (diff.snap_b(), diff.snap_e());
    [b.gid_b(), e.gid_b(), b.gid_e(), e.gid_e()]
}

/// A snapshot that can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestorePoint {
    /// The snapshot.
    pub gid: u64,
    /// Unix time in seconds.
    pub timestamp: u64,
    /// True if the snapshot is the newest, or a merge must not swallow it.
    pub is_explicit: bool,
}

/// Diffs of one volume and destination, no two of them equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiffSet {
    diffs: BTreeMap<Key, MetaDiff>,
}

impl DiffSet {
    /// No diffs.
    pub const fn new() -> Self {
        Self {
            diffs: BTreeMap::new(),
        }
    }

    /// Number of diffs.
    pub fn len(&self) -> usize {
        self.diffs.len()
    }

    /// True without diffs.
    pub fn is_empty(&self) -> bool {
        self.diffs.is_empty()
    }

    /// The diffs, by snapB.gidB, then by snapE.gidB.
    pub fn iter(&self) -> impl Iterator<Item = &MetaDiff> {
        self.diffs.values()
    }

    /// The stored diff with the same four gids.
    pub fn get(&self, diff: &MetaDiff) -> Option<&MetaDiff> {
        self.diffs.get(&key(diff))
    }

    /// Adds a diff. Refuses one whose four gids are there already.
    pub fn insert(&mut self, diff: MetaDiff) -> Result<(), Refusal> {
        let is_new = !self.diffs.contains_key(&key(&diff));
        require!(
            is_new,
            "diff set",
            "diffs with different gids",
            format!("{diff} twice")
        );
        self.diffs.insert(key(&diff), diff);
        Ok(())
    }

    /// Takes out the diff with the same four gids.
    pub fn remove(&mut self, diff: &MetaDiff) -> Option<MetaDiff> {
        self.diffs.remove(&key(diff))
    }

    /// The diffs that bring a snapshot as far as possible.
    pub fn applicable(&self, from: MetaSnap) -> Vec<MetaDiff> {
        self.applicable_while(from, |_, _| true)
    }

    /// As [`applicable`](Self::applicable), ending before the first diff that leads beyond `gid`.
    pub fn applicable_until(&self, from: MetaSnap, gid: u64) -> Vec<MetaDiff> {
        self.applicable_while(from, |_, snap| snap.gid_b() <= gid)
    }

    /// As [`applicable`](Self::applicable), ending before the first diff that `keep` denies; `keep`
    /// sees each diff with the snapshot it leads to.
    pub fn applicable_while(
        &self,
        from: MetaSnap,
        mut keep: impl FnMut(&MetaDiff, MetaSnap) -> bool,
    ) -> Vec<MetaDiff> {
        let mut list = Vec::new();
        let (mut snap, mut begin) = (from, 0);
        while let Some(diff) = self.farthest(begin, snap.gid_b(), |d| {
            snap.relation(d) == Relation::Applicable
        }) {
            // The search space ends at the old gidB, and the new one is greater.
            begin = snap.gid_b() + 1;
            snap = snap.after(diff);
            if !keep(diff, snap) {
                break;
            }
            list.push(*diff);
        }
        list
    }

    /// The diffs that finish an interrupted apply; none if the state is not applying.
    pub fn minimum_applicable(&self, state: &MetaState) -> Vec<MetaDiff> {
        match state.target() {
            Some(target) => self.applicable_until(state.snap_b(), target.gid_b()),
            None => Vec::new(),
        }
    }

    /// The longest run of diffs to merge into one, from the first that begins at `gid` or later.
    pub fn mergeable_from(&self, gid: u64) -> Vec<MetaDiff> {
        let Some(first) = self
            .diffs
            .range([gid, 0, 0, 0]..)
            .next()
            .map(|(key, _)| key[0])
        else {
            return Vec::new();
        };
        let Some(first) = self.farthest(first, first, |_| true) else {
            return Vec::new();
        };
        let (mut list, mut merged, mut begin) = (vec![*first], *first, first.snap_b().gid_b());
        while let Some(next) =
            self.farthest(begin, merged.snap_e().gid_b(), |d| merged.merge(d).is_ok())
        {
            begin = merged.snap_e().gid_b() + 1;
            let Ok(longer) = merged.merge(next) else {
                break;
            };
            merged = longer;
            list.push(*next);
        }
        list
    }

    /// The applicable diffs that one merge can take, from the first on.
    pub fn applicable_and_mergeable(&self, from: MetaSnap) -> Vec<MetaDiff> {
        let mut merged: Option<MetaDiff> = None;
        self.applicable_while(from, |diff, _| {
            let longer = merged.map_or(Ok(*diff), |older| older.merge(diff));
            merged = longer.as_ref().ok().copied();
            longer.is_ok()
        })
    }

    /// The state after all applicable diffs.
    pub fn latest(&self, state: &MetaState) -> MetaState {
        state.after(&self.applicable(state.snap_b()))
    }

    /// The clean snapshots on the greedy way, oldest first: the base, and the explicit ones or all.
    pub fn restorable(&self, state: &MetaState, all: bool) -> Vec<RestorePoint> {
        let list = self.applicable(state.snap_b());
        // Both lists make the same choices, so the shorter one begins the longer one.
        let minimum = self.minimum_applicable(state).len();
        let mut reached = state.after(&list[..minimum]);
        let mut points = Vec::new();
        points.extend(point(&reached, false));
        for (i, diff) in list.iter().enumerate().skip(minimum) {
            reached = reached.after(std::slice::from_ref(diff));
            let is_explicit = list.get(i + 1).is_none_or(|next| !next.is_mergeable);
            if is_explicit || all {
                points.extend(point(&reached, is_explicit));
            }
        }
        points
    }

    /// The diffs that the original applies to restore `gid`; none if it finds no way.
    pub fn to_restore(&self, state: &MetaState, gid: u64) -> Option<Vec<MetaDiff>> {
        let list = self.applicable_until(state.snap_b(), gid);
        let reached = state.after(&list).snap_b();
        let is_finished = list.len() >= self.minimum_applicable(state).len();
        (is_finished && reached == MetaSnap::clean(gid)).then_some(list)
    }

    /// The diffs to apply to the base up to `gid`, at most `max` of them, but never less than an
    /// interrupted apply needs to be finished as a whole.
    pub fn to_apply(&self, state: &MetaState, gid: u64, max: usize) -> Vec<MetaDiff> {
        let mut list = self.applicable_until(state.snap_b(), gid);
        list.truncate(max);
        let minimum = self.minimum_applicable(state);
        if minimum.len() > list.len() {
            minimum
        } else {
            list
        }
    }

    /// What the greedy way from a snapshot does not use. May name diffs that another way needs: see
    /// [`garbage_keeping`](Self::garbage_keeping).
    pub fn gc_from(&self, from: MetaSnap) -> Vec<MetaDiff> {
        let mut rest = self.diffs.clone();
        for diff in self.applicable(from) {
            rest.remove(&key(&diff));
        }
        rest.into_values().collect()
    }

    /// The diffs inside `begin..end`, except the one that is exactly that.
    pub fn gc_range(&self, begin: u64, end: u64) -> Vec<MetaDiff> {
        let ends = |d: &MetaDiff| (d.snap_b().gid_b(), d.snap_e().gid_b());
        let inside = self.diffs.range([begin, 0, 0, 0]..).map(|(_, diff)| diff);
        inside
            .filter(|d| ends(d).1 <= end && ends(d) != (begin, end))
            .copied()
            .collect()
    }

    /// Takes out the diffs that end at `gid` or before, and returns them.
    pub fn erase_before(&mut self, gid: u64) -> Vec<MetaDiff> {
        let mut erased = Vec::new();
        self.diffs.retain(|_, diff| {
            let stays = diff.snap_e().gid_b() > gid;
            if !stays {
                erased.push(*diff);
            }
            stays
        });
        erased
    }

    /// Makes snapshot `gid` explicit or implicit. Returns the diffs that changed, as they were and
    /// as they are, since the flag is part of the file name.
    pub fn change_snapshot(&mut self, gid: u64, is_explicit: bool) -> Vec<(MetaDiff, MetaDiff)> {
        let mut changed = Vec::new();
        for diff in self
            .diffs
            .range_mut(starting(gid, gid))
            .map(|(_, diff)| diff)
        {
            if diff.is_mergeable == is_explicit {
                let old = *diff;
                diff.is_mergeable = !is_explicit;
                changed.push((old, *diff));
            }
        }
        changed
    }

    /// The diffs that begin at `gid`.
    pub(crate) fn beginning_at(&self, gid: u64) -> impl Iterator<Item = &MetaDiff> {
        self.diffs.range(starting(gid, gid)).map(|(_, diff)| diff)
    }

    /// Of the diffs that begin from `begin` to `end` and are candidates, the one with the greatest
    /// snapE.gidB, then snapB.gidB. Candidates must end after `end`, or not be accepted at all.
    fn farthest(
        &self,
        begin: u64,
        end: u64,
        is_candidate: impl Fn(&MetaDiff) -> bool,
    ) -> Option<&MetaDiff> {
        if begin > end {
            return None;
        }
        let found = self.diffs.range(starting(begin, end)).map(|(_, diff)| diff);
        // The first of equals: the cleaner one. `max_by_key` would take the last.
        found
            .filter(|diff| is_candidate(diff))
            .reduce(|best, diff| {
                let reach = |d: &MetaDiff| (d.snap_e().gid_b(), d.snap_b().gid_b());
                if reach(diff) > reach(best) {
                    diff
                } else {
                    best
                }
            })
    }
}

fn starting(begin: u64, end: u64) -> std::ops::RangeInclusive<Key> {
    [begin, 0, 0, 0]..=[end, u64::MAX, u64::MAX, u64::MAX]
}

fn point(state: &MetaState, is_explicit: bool) -> Option<RestorePoint> {
    let (snap, timestamp) = (state.snap_b(), state.timestamp);
    snap.is_clean().then_some(RestorePoint {
        gid: snap.gid_b(),
        timestamp,
        is_explicit,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_set, any_snap, any_state, diff};
    use super::*;

    fn set(ends: &[(u64, u64)]) -> DiffSet {
        let mut set = DiffSet::new();
        ends.iter()
            .for_each(|(b, e)| set.insert(diff(*b, *e)).unwrap());
        set
    }

    /// The applicable list as the reference words it: all candidates at every step.
    fn applicable_by_definition(set: &DiffSet, from: MetaSnap) -> Vec<MetaDiff> {
        let (mut list, mut snap) = (Vec::new(), from);
        loop {
            let candidates = set.iter().filter(|d| {
                d.snap_b().gid_b() <= snap.gid_b()
                    && snap.gid_b() < d.snap_e().gid_b()
                    && snap.apply(d).is_ok()
            });
            let reach = |d: &&MetaDiff| (d.snap_e().gid_b(), d.snap_b().gid_b());
            let Some(best) = candidates.max_by_key(reach) else {
                return list;
            };
            snap = snap.apply(best).unwrap();
            list.push(*best);
        }
    }

    /// The ends that the choice is about: equal candidates may be taken in any order.
    fn reaches(diffs: &[MetaDiff]) -> Vec<(u64, u64)> {
        diffs
            .iter()
            .map(|d| (d.snap_b().gid_b(), d.snap_e().gid_b()))
            .collect()
    }

    #[test]
    fn equal_diffs_are_refused() {
        let mut set = set(&[(0, 1)]);
        assert!(set.insert(diff(0, 1)).is_err());
        assert_eq!(set.remove(&diff(0, 1)), Some(diff(0, 1)));
        assert!(set.is_empty());
    }

    #[test]
    fn garbage_of_a_merge_and_of_an_apply() {
        let mut set = set(&[(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)]);
        assert_eq!(set.gc_range(0, 3), [diff(0, 1), diff(1, 2), diff(2, 3)]);
        assert_eq!(
            set.gc_from(MetaSnap::clean(0)),
            [diff(0, 1), diff(1, 2), diff(2, 3)]
        );
        assert_eq!(set.erase_before(2), [diff(0, 1), diff(1, 2)]);
        assert_eq!(set.len(), 3);
    }

    #[test]
    fn a_snapshot_is_marked_on_the_diffs_that_begin_there() {
        let mut set = set(&[(0, 1), (1, 2), (1, 3)]);
        assert_eq!(set.change_snapshot(1, true).len(), 2);
        assert_eq!(set.change_snapshot(1, true).len(), 0);
        assert!(set.get(&diff(0, 1)).unwrap().is_mergeable);
        assert_eq!(set.mergeable_from(0), [diff(0, 1)]);
        let base = MetaState::new(MetaSnap::clean(0), 0);
        let gids = |all| {
            set.restorable(&base, all)
                .iter()
                .map(|p| p.gid)
                .collect::<Vec<_>>()
        };
        assert_eq!(gids(false), [0, 1, 3]);
    }

    #[test]
    fn an_interrupted_apply_is_not_cut_short() {
        let set = set(&[(0, 1), (1, 2), (2, 3)]);
        let half = MetaState::applying(MetaSnap::clean(0), MetaSnap::clean(2), 0).expect("growing");
        assert_eq!(set.to_apply(&half, 1, 100), [diff(0, 1), diff(1, 2)]);
        assert_eq!(set.to_apply(&half, 3, 1), [diff(0, 1), diff(1, 2)]);
        assert_eq!(set.to_apply(&half, 3, 100).len(), 3);
        assert_eq!(set.to_restore(&half, 1), None);
    }

    #[test]
    fn the_greatest_gids_do_not_overflow() {
        let set = set(&[(0, u64::MAX), (u64::MAX - 1, u64::MAX)]);
        assert_eq!(set.applicable(MetaSnap::clean(0)), [diff(0, u64::MAX)]);
        assert_eq!(set.applicable(MetaSnap::UNKNOWN), []);
        assert_eq!(set.mergeable_from(0), [diff(0, u64::MAX)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn applicable_is_what_its_definition_says(set in any_set(12), from in any_snap()) {
            let list = set.applicable(from);
            prop_assert!(from.apply_all(&list).is_ok());
            prop_assert_eq!(reaches(&list), reaches(&applicable_by_definition(&set, from)));
        }

        #[test]
        fn law_mergeable_lists_merge(set in any_set(12), gid in 0u64..8) {
            let list = set.mergeable_from(gid);
            let merged = list.iter().skip(1).try_fold(*list.first().unwrap_or(&diff(0, 1)),
                |older, newer| older.merge(newer));
            prop_assert!(merged.is_ok());
        }

        #[test]
        fn law_an_applicable_and_mergeable_list_applies_as_its_merge(
            set in any_set(12), from in any_snap()
        ) {
            let list = set.applicable_and_mergeable(from);
            if let Some((first, rest)) = list.split_first() {
                let merged = rest.iter().try_fold(*first, |older, d| older.merge(d)).unwrap();
                let (steps, once) = (from.apply_all(&list).unwrap(), from.apply(&merged).unwrap());
                prop_assert_eq!(steps.gid_b(), once.gid_b());
            }
        }

        #[test]
        fn the_minimum_begins_every_longer_list(set in any_set(12), state in any_state()) {
            let (minimum, list) = (set.minimum_applicable(&state), set.applicable(state.snap_b()));
            prop_assert!(list.starts_with(&minimum));
        }
    }
}
