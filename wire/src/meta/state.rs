//! The state of a base image (reference: "Snapshots and diffs").

use std::fmt;

use super::{MetaDiff, MetaSnap, Refusal, Relation, require, time};
use crate::error::Flaw;
use crate::serial::{Reader, Serial, Writer};

const PREAMBLE: u16 = 0x0313;

/// What a base image holds: a snapshot, or something between two while diffs are being applied.
///
/// Equality leaves the timestamp out.
#[derive(Debug, Clone, Copy)]
pub struct MetaState {
    snap_b: MetaSnap,
    target: Option<MetaSnap>,
    /// Unix time of the snapshot, or of the one that is being reached, in seconds.
    pub timestamp: u64,
}

impl MetaState {
    /// The image is `snap`.
    pub const fn new(snap: MetaSnap, timestamp: u64) -> Self {
        Self {
            snap_b: snap,
            target: None,
            timestamp,
        }
    }

    /// The image is on its way from `snap_b` to `snap_e`, whose gidB must be greater.
    pub fn applying(snap_b: MetaSnap, snap_e: MetaSnap, timestamp: u64) -> Result<Self, Refusal> {
        let advances = snap_b.gid_b() < snap_e.gid_b();
        require!(
            advances,
            "applying state",
            "a growing gidB",
            format!("{snap_b}-->{snap_e}")
        );
        Ok(Self {
            snap_b,
            target: Some(snap_e),
            timestamp,
        })
    }

    /// The snapshot the image is, or was when applying began.
    pub const fn snap_b(&self) -> MetaSnap {
        self.snap_b
    }

    /// The snapshot that is being reached, when applying.
    pub const fn target(&self) -> Option<MetaSnap> {
        self.target
    }

    /// True while diffs are being written on the image.
    pub const fn is_applying(&self) -> bool {
        self.target.is_some()
    }

    /// True if `diff` is applicable and, when applying, reaches at least the target.
    pub fn can_apply(&self, diff: &MetaDiff) -> bool {
        self.snap_b.relation(diff) == Relation::Applicable
            && self
                .target
                .is_none_or(|target| target.gid_b() <= diff.snap_e().gid_b())
    }

    /// The state while `diffs` are being applied; the same state if there are none.
    ///
    /// Refuses a list that is not applicable in order, or does not finish an interrupted one.
    pub fn begin_applying(&self, diffs: &[MetaDiff]) -> Result<Self, Refusal> {
        match diffs.last() {
            None => Ok(*self),
            Some(last) => Self::applying(self.snap_b, self.reached_by(diffs)?, last.timestamp),
        }
    }

    /// The state once `diffs` are applied; the same state if there are none. Refuses as
    /// [`begin_applying`](Self::begin_applying) does.
    pub fn end_applying(&self, diffs: &[MetaDiff]) -> Result<Self, Refusal> {
        match diffs.last() {
            None => Ok(*self),
            Some(last) => Ok(Self::new(self.reached_by(diffs)?, last.timestamp)),
        }
    }

    /// [`end_applying`](Self::end_applying) of a listed, thus applicable, chain that may end before
    /// the target.
    pub(crate) fn after(&self, diffs: &[MetaDiff]) -> Self {
        let step =
            |state: Self, diff: &MetaDiff| Self::new(state.snap_b.after(diff), diff.timestamp);
        diffs.iter().fold(*self, step)
    }

    /// The form with the UTC time: `<|3|-->|7|>-20231114221320`.
    pub fn with_time(&self) -> String {
        let time = time::compact(self.timestamp).unwrap_or_else(|| time::raw(self.timestamp));
        format!("{self}-{time}")
    }

    fn reached_by(&self, diffs: &[MetaDiff]) -> Result<MetaSnap, Refusal> {
        let snap = self.snap_b.apply_all(diffs)?;
        let finishes = self
            .target
            .is_none_or(|target| target.gid_b() <= snap.gid_b());
        require!(
            finishes,
            "apply",
            format!("diffs that finish {self}"),
            format!("an end at {snap}")
        );
        Ok(snap)
    }
}

impl PartialEq for MetaState {
    fn eq(&self, other: &Self) -> bool {
        self.snap_b == other.snap_b && self.target == other.target
    }
}

impl Eq for MetaState {}

impl fmt::Display for MetaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            None => write!(f, "<{}>", self.snap_b),
            Some(target) => write!(f, "<{}-->{target}>", self.snap_b),
        }
    }
}

impl Serial for MetaState {
    fn put(&self, writer: &mut Writer) {
        writer.put_u16(PREAMBLE);
        writer.put_bool(self.is_applying());
        writer.put_u64(self.timestamp);
        self.snap_b.put(writer);
        self.target.unwrap_or(self.snap_b).put(writer);
    }

    /// The second snapshot means nothing unless applying, but must be one.
    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let at = reader.offset();
        reader.preamble(PREAMBLE, "state preamble")?;
        let is_applying = reader.bool("state isApplying")?;
        let timestamp = reader.u64("state timestamp")?;
        let (snap_b, snap_e) = (MetaSnap::get(reader)?, MetaSnap::get(reader)?);
        if !is_applying {
            return Ok(Self::new(snap_b, timestamp));
        }
        Self::applying(snap_b, snap_e, timestamp).map_err(|refusal| refusal.at(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_state, diff};
    use super::*;

    #[test]
    fn text_forms() {
        let (three, seven) = (MetaSnap::clean(3), MetaSnap::clean(7));
        let state = MetaState::new(MetaSnap::new(3, 5).unwrap(), 0);
        assert_eq!(state.to_string(), "<|3,5|>");
        let state = MetaState::applying(three, seven, 1_700_000_000).unwrap();
        assert_eq!(state.to_string(), "<|3|-->|7|>");
        assert_eq!(state.with_time(), "<|3|-->|7|>-20231114221320");
    }

    #[test]
    fn an_interrupted_apply_is_finished_as_a_whole() {
        let base = MetaState::new(MetaSnap::clean(0), 0);
        let half = base.begin_applying(&[diff(0, 2), diff(2, 5)]).unwrap();
        assert_eq!(half.target(), Some(MetaSnap::clean(5)));
        assert!(half.end_applying(&[diff(0, 2)]).is_err());
        assert!(half.begin_applying(&[diff(0, 2), diff(3, 5)]).is_err());
        assert!(!half.can_apply(&diff(0, 4)));
        assert!(half.can_apply(&diff(0, 6)));
        let done = half.end_applying(&[diff(0, 6)]).unwrap();
        assert_eq!(done, MetaState::new(MetaSnap::clean(6), 1));
        assert_eq!(half.begin_applying(&[]), Ok(half));
    }

    #[test]
    fn the_initial_state_of_an_archive() {
        let state = MetaState::new(MetaSnap::UNKNOWN, 0);
        let bytes = [0x13, 3, 0, 0, 0x11, 3, 0xff, 0xff, 0x11, 3, 0xff, 0xff];
        assert_eq!(state.to_bytes(), bytes);
        assert_eq!(MetaState::from_bytes(&bytes), Ok(state));
    }

    proptest! {
        #[test]
        fn encoding_round_trips(state in any_state()) {
            let back = MetaState::from_bytes(&state.to_bytes()).unwrap();
            prop_assert_eq!(format!("{back:?}"), format!("{state:?}"));
        }
    }
}
