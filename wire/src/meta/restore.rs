//! What can be restored, and how (reference: "Sound search").
//!
//! A gid is restorable when *some* sequence of applicable diffs leads from the base to the clean
//! snapshot of that gid, and through all of an interrupted apply. A chain of n diffs could be chosen
//! in exponentially many ways; three facts make the search cheap:
//!
//! * Whether a diff is applicable depends on the gidB of a snapshot alone, and every step increases
//!   it. So the snapshots are visited once, by ascending gidB.
//! * A smaller gidE never does worse: each step keeps the order of gidEs. So one snapshot for each
//!   gidB decides what is restorable. For one wanted gid it only matters whether the gidE has passed
//!   it, so two states for each gidB decide which chain is shortest.
//! * A diff may begin anywhere before the snapshot it is applied to, so it continues the best of all
//!   snapshots from its beginning on: a minimum over a suffix, found by bisection.
//!
//! Each search takes O(n log n) time and O(n) memory for n diffs.

use std::collections::{HashMap, HashSet};

use super::{DiffSet, MetaDiff, MetaSnap, MetaState, Refusal, RestorePoint};

/// Places by ascending gid, each with a cost; answers which one a diff had better be applied to.
#[derive(Debug)]
struct Frontier<C> {
    /// Only places that no later one undercuts.
    cheapest: Vec<(u64, C, usize)>,
    exact: HashMap<u64, usize>,
}

impl<C: Ord> Frontier<C> {
    fn new() -> Self {
        Self {
            cheapest: Vec::new(),
            exact: HashMap::new(),
        }
    }

    /// Adds a place beyond all others.
    fn push(&mut self, gid: u64, cost: C, place: usize) {
        while self
            .cheapest
            .last()
            .is_some_and(|(_, other, _)| cost < *other)
        {
            self.cheapest.pop();
        }
        self.cheapest.push((gid, cost, place));
        self.exact.insert(gid, place);
    }

    /// The cheapest place that the diff is applicable to, the earliest of equals. All places must
    /// lie before its end.
    fn before(&self, diff: &MetaDiff) -> Option<usize> {
        let begin = diff.snap_b().gid_b();
        if diff.is_comp {
            return self.exact.get(&begin).copied();
        }
        let at = self.cheapest.partition_point(|(gid, ..)| *gid < begin);
        self.cheapest.get(at).map(|(.., place)| *place)
    }
}

/// A snapshot that can be reached, with the step that leads there.
#[derive(Debug, Clone, Copy)]
struct Reached {
    snap: MetaSnap,
    timestamp: u64,
    /// Number of diffs from the base.
    steps: usize,
    /// The last diff and the place it is applied to; none for the base.
    via: Option<(MetaDiff, usize)>,
}

/// The ways to the snapshots of one search, in the order of their gidB.
#[derive(Debug)]
struct Ways {
    places: Vec<Reached>,
}

impl Ways {
    fn from_base(state: &MetaState) -> Self {
        let (snap, timestamp) = (state.snap_b(), state.timestamp);
        Self {
            places: vec![Reached {
                snap,
                timestamp,
                steps: 0,
                via: None,
            }],
        }
    }

    fn push(&mut self, place: Reached) -> usize {
        self.places.push(place);
        self.places.len() - 1
    }

    fn step(&self, diff: &MetaDiff, from: usize) -> Reached {
        let Reached { snap, steps, .. } = self.places[from];
        let (snap, timestamp) = (snap.after(diff), diff.timestamp);
        Reached {
            snap,
            timestamp,
            steps: steps + 1,
            via: Some((*diff, from)),
        }
    }

    /// The diffs from the base to a place, in the order of applying.
    fn chain(&self, place: usize) -> Vec<MetaDiff> {
        let mut chain = Vec::new();
        let mut via = self.places[place].via;
        while let Some((diff, from)) = via {
            chain.push(diff);
            via = self.places[from].via;
        }
        chain.reverse();
        chain
    }
}

impl DiffSet {
    /// All clean snapshots that can be restored, oldest first.
    ///
    /// The newest of them is explicit, and those that a diff which must not be merged begins with.
    pub fn restorable_gids(&self, state: &MetaState) -> Vec<RestorePoint> {
        let ways = self.cleanest_ways(state);
        let clean = ways
            .places
            .iter()
            .filter(|place| is_restorable(place.snap, state));
        let mut points: Vec<_> = clean
            .map(|place| RestorePoint {
                gid: place.snap.gid_b(),
                timestamp: place.timestamp,
                is_explicit: self.is_marked(place.snap.gid_b()),
            })
            .collect();
        if let Some(newest) = points.last_mut() {
            newest.is_explicit = true;
        }
        points
    }

    /// The fewest diffs that make the clean snapshot `gid` of the base; none if it cannot be made.
    /// The base itself needs no diffs.
    pub fn chain_to(&self, state: &MetaState, gid: u64) -> Option<Vec<MetaDiff>> {
        if !is_restorable(MetaSnap::clean(gid), state) {
            return None;
        }
        if state.snap_b().gid_b() == gid {
            return state.snap_b().is_clean().then(Vec::new);
        }
        let (ways, place) = self.shortest_way(state, gid)?;
        Some(ways.chain(place))
    }

    /// The diffs without which every gid of `keep` stays restorable.
    ///
    /// Refuses a gid that is not restorable to begin with. Never named are, besides the diffs of one
    /// chain to each kept gid: those that mark a kept gid as explicit, those of the greedy way from
    /// the base (which finish an interrupted apply, and lead to the newest snapshot), those of the
    /// way that leads farthest, and those beyond it: what is missing before them may still arrive.
    pub fn garbage_keeping(
        &self,
        state: &MetaState,
        keep: &[u64],
    ) -> Result<Vec<MetaDiff>, Refusal> {
        let ways = self.cleanest_ways(state);
        let farthest = ways.places.len() - 1;
        let reach = ways.places[farthest].snap.gid_b();
        let mut needed: HashSet<MetaDiff> = self.applicable(state.snap_b()).into_iter().collect();
        let mut seen = HashSet::new();
        mark_way(&ways, farthest, &mut seen, &mut needed);
        for gid in keep {
            let found = ways
                .places
                .binary_search_by_key(gid, |place| place.snap.gid_b());
            let place = found
                .ok()
                .filter(|at| is_restorable(ways.places[*at].snap, state));
            let Some(place) = place else {
                return Err(Refusal::new("snapshot to keep", "a restorable gid", gid));
            };
            mark_way(&ways, place, &mut seen, &mut needed);
            needed.extend(self.beginning_at(*gid).filter(|diff| !diff.is_mergeable));
        }
        let is_garbage = |d: &&MetaDiff| d.snap_e().gid_b() <= reach && !needed.contains(*d);
        Ok(self.iter().filter(is_garbage).copied().collect())
    }

    /// For each gidB that can be reached, the way with the smallest gidE.
    fn cleanest_ways(&self, state: &MetaState) -> Ways {
        let mut ways = Ways::from_base(state);
        let mut frontier = Frontier::new();
        frontier.push(state.snap_b().gid_b(), state.snap_b().gid_e(), 0);
        for group in self.by_end(state, u64::MAX).chunk_by(same_end) {
            let steps = group
                .iter()
                .filter_map(|d| Some(ways.step(d, frontier.before(d)?)));
            if let Some(best) = steps.min_by_key(|step| (step.snap.gid_e(), step.steps)) {
                frontier.push(best.snap.gid_b(), best.snap.gid_e(), ways.push(best));
            }
        }
        ways
    }

    /// The way with the fewest diffs to the clean snapshot `gid`, which is not the base.
    ///
    /// Two frontiers: snapshots whose gidE can still be `gid` at the end, and those beyond, which
    /// only a dirty diff brings back.
    fn shortest_way(&self, state: &MetaState, gid: u64) -> Option<(Ways, usize)> {
        let mut ways = Ways::from_base(state);
        let mut frontiers = [Frontier::new(), Frontier::new()];
        let is_beyond = |snap: MetaSnap| usize::from(snap.gid_e() > gid);
        let base = state.snap_b();
        frontiers[is_beyond(base)].push(base.gid_b(), 0, 0);
        for group in self.by_end(state, gid).chunk_by(same_end) {
            let mut best: [Option<Reached>; 2] = [None, None];
            for diff in group {
                for from in frontiers
                    .iter()
                    .filter_map(|frontier| frontier.before(diff))
                {
                    let step = ways.step(diff, from);
                    let slot = &mut best[is_beyond(step.snap)];
                    if slot.is_none_or(|other| step.steps < other.steps) {
                        *slot = Some(step);
                    }
                }
            }
            for (frontier, step) in frontiers.iter_mut().zip(best) {
                if let Some(step) = step {
                    frontier.push(step.snap.gid_b(), step.steps, ways.push(step));
                }
            }
        }
        let place = frontiers[0].exact.get(&gid).copied()?;
        Some((ways, place))
    }

    /// The diffs that a sound way can use and that end up to `limit`, by snapE.gidB.
    fn by_end(&self, state: &MetaState, limit: u64) -> Vec<MetaDiff> {
        let base = state.snap_b().gid_b();
        let ends_inside = |d: &&MetaDiff| d.snap_e().gid_b() > base && d.snap_e().gid_b() <= limit;
        let usable = self
            .iter()
            .filter(ends_inside)
            .filter(|d| !d.is_comp || is_sound(d, state));
        let mut diffs: Vec<_> = usable.copied().collect();
        diffs.sort_by_key(|diff| diff.snap_e().gid_b());
        diffs
    }

    /// True if a diff that begins at `gid` must not be merged onto an older one.
    fn is_marked(&self, gid: u64) -> bool {
        self.beginning_at(gid).any(|diff| !diff.is_mergeable)
    }
}

/// Clean, and through all that an interrupted apply may have written.
fn is_restorable(snap: MetaSnap, state: &MetaState) -> bool {
    snap.is_clean()
        && state
            .target()
            .is_none_or(|target| snap.gid_b() >= target.gid_e())
}

/// Whether a comparison can be used on the base.
///
/// It holds only the blocks that differ between its ends. What an interrupted apply wrote meanwhile
/// to other blocks stays there, unless a later diff writes them again. So the first diff must be the
/// very one that was interrupted, and no other may begin inside of what was interrupted and end
/// beyond.
fn is_sound(comp: &MetaDiff, state: &MetaState) -> bool {
    let Some(target) = state.target() else {
        return true;
    };
    let (begin, end) = (comp.snap_b(), comp.snap_e());
    if begin.gid_b() == state.snap_b().gid_b() {
        return begin == state.snap_b() && end == target;
    }
    begin.gid_b() >= target.gid_e() || end.gid_b() <= target.gid_b()
}

fn same_end(a: &MetaDiff, b: &MetaDiff) -> bool {
    a.snap_e().gid_b() == b.snap_e().gid_b()
}

/// Adds the diffs of the way to a place. Ways share their beginnings, so a known place ends it.
fn mark_way(
    ways: &Ways,
    mut place: usize,
    seen: &mut HashSet<usize>,
    needed: &mut HashSet<MetaDiff>,
) {
    while seen.insert(place) {
        let Some((diff, from)) = ways.places[place].via else {
            return;
        };
        needed.insert(diff);
        place = from;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::testing::{any_set, any_state, diff};
    use super::*;

    /// The least number of diffs to each clean snapshot, by trying every sequence.
    fn brute_force(set: &DiffSet, state: &MetaState) -> BTreeMap<u64, usize> {
        fn walk(
            set: &DiffSet,
            state: &MetaState,
            snap: MetaSnap,
            depth: usize,
            found: &mut BTreeMap<u64, usize>,
        ) {
            if is_restorable(snap, state) {
                let least = found.entry(snap.gid_b()).or_insert(depth);
                *least = depth.min(*least);
            }
            for diff in set.iter().filter(|d| !d.is_comp || is_sound(d, state)) {
                if let Ok(after) = snap.apply(diff) {
                    walk(set, state, after, depth + 1, found);
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(set, state, state.snap_b(), 0, &mut found);
        found
    }

    fn gids(points: &[RestorePoint]) -> Vec<u64> {
        points.iter().map(|point| point.gid).collect()
    }

    fn comp(begin: u64, end: u64) -> MetaDiff {
        let mut comp = diff(begin, end);
        comp.is_comp = true;
        comp
    }

    fn set(diffs: &[MetaDiff]) -> DiffSet {
        let mut set = DiffSet::new();
        diffs.iter().for_each(|diff| set.insert(*diff).unwrap());
        set
    }

    #[test]
    fn a_merged_diff_does_not_hide_its_parts() {
        let set = set(&[diff(0, 1), diff(0, 3)]);
        let base = MetaState::new(MetaSnap::clean(0), 0);
        assert_eq!(gids(&set.restorable(&base, true)), [0, 3]);
        assert_eq!(gids(&set.restorable_gids(&base)), [0, 1, 3]);
        assert_eq!(set.chain_to(&base, 1), Some(vec![diff(0, 1)]));
        assert_eq!(set.chain_to(&base, 2), None);
    }

    #[test]
    fn a_half_applied_base_is_no_snapshot() {
        let half = MetaState::applying(MetaSnap::clean(1), MetaSnap::clean(3), 0).unwrap();
        assert_eq!(DiffSet::new().restorable_gids(&half), []);
        assert_eq!(DiffSet::new().chain_to(&half, 1), None);
        assert_eq!(
            gids(&set(&[diff(1, 2), diff(2, 4)]).restorable_gids(&half)),
            [4]
        );
    }

    #[test]
    fn a_comparison_does_not_repair_a_half_applied_base() {
        let half = MetaState::applying(MetaSnap::clean(1), MetaSnap::clean(6), 0).unwrap();
        let found = |diffs: &[MetaDiff]| gids(&set(diffs).restorable_gids(&half));
        assert_eq!(found(&[comp(1, 8)]), []);
        assert_eq!(found(&[comp(1, 6)]), [6]);
        assert_eq!(found(&[diff(1, 3), comp(3, 8)]), []);
        assert_eq!(found(&[diff(1, 3), comp(3, 6)]), [6]);
        assert_eq!(found(&[diff(1, 7), comp(7, 8)]), [7, 8]);
    }

    #[test]
    fn garbage_is_what_no_kept_snapshot_needs() {
        let set = set(&[diff(0, 1), diff(1, 2), diff(2, 3), diff(0, 3), diff(5, 6)]);
        let base = MetaState::new(MetaSnap::clean(0), 0);
        assert_eq!(
            set.garbage_keeping(&base, &[3]),
            Ok(vec![diff(0, 1), diff(1, 2), diff(2, 3)])
        );
        assert_eq!(
            set.garbage_keeping(&base, &[1, 3]),
            Ok(vec![diff(1, 2), diff(2, 3)])
        );
        assert!(set.garbage_keeping(&base, &[5]).is_err());
    }

    #[test]
    fn a_hundred_thousand_diffs_are_searched_at_once() {
        const N: u64 = 100_000;
        let mut set = DiffSet::new();
        for gid in 0..N {
            set.insert(diff(gid, gid + 1)).unwrap();
            if gid % 10 == 0 {
                set.insert(diff(gid, gid + 10)).unwrap();
            }
        }
        let base = MetaState::new(MetaSnap::clean(0), 0);
        let points = set.restorable_gids(&base);
        assert_eq!(points.len() as u64, N + 1);
        assert_eq!(
            set.chain_to(&base, N).map(|chain| chain.len() as u64),
            Some(N / 10)
        );
        // Only the last part of each merged diff is not on the way to a snapshot of its own.
        let garbage = set.garbage_keeping(&base, &gids(&points)).unwrap();
        assert_eq!(garbage.len() as u64, N / 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn the_search_finds_what_brute_force_finds(set in any_set(9), state in any_state()) {
            let found = brute_force(&set, &state);
            let points = set.restorable_gids(&state);
            prop_assert_eq!(gids(&points), found.keys().copied().collect::<Vec<_>>());
            for gid in 0..14 {
                let chain = set.chain_to(&state, gid);
                prop_assert_eq!(chain.as_ref().map(Vec::len), found.get(&gid).copied());
                if let Some(chain) = chain {
                    let reached = state.snap_b().apply_all(&chain);
                    prop_assert_eq!(reached, Ok(MetaSnap::clean(gid)));
                }
            }
        }

        #[test]
        fn law_collecting_garbage_keeps_what_it_was_told(
            mut set in any_set(10), state in any_state(), choice: u64
        ) {
            let points = gids(&set.restorable_gids(&state));
            let keep: Vec<_> = points.into_iter().filter(|gid| choice >> gid & 1 == 1).collect();
            let greedy = set.applicable(state.snap_b());
            for diff in set.garbage_keeping(&state, &keep).unwrap() {
                prop_assert!(set.remove(&diff).is_some());
            }
            let left = gids(&set.restorable_gids(&state));
            prop_assert!(keep.iter().all(|gid| left.contains(gid)));
            prop_assert_eq!(set.applicable(state.snap_b()), greedy);
        }
    }
}
