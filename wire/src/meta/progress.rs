//! How a storage gives out gids and chooses what to send (reference: "Queue file").
//!
//! The front of the queue is the newest snapshot, the back the oldest; `done`, up to which
//! everything has been sent, is older than all. Positions and lengths are in physical blocks.

use super::{MetaDiff, MetaLsidGid, MetaSnap, Refusal, require};
use crate::units::UNKNOWN_GID;

/// The record of a snapshot at `lsid`, the end of the log, after `newest` (the front of the queue,
/// or `done`).
///
/// The gids skipped leave room to send the log between in pieces of `max_send`. Refuses a log that
/// ends before the newest snapshot, as one that was reset or has overflowed, and gids that run out.
pub fn take_snapshot(
    newest: &MetaLsidGid,
    lsid: u64,
    max_send: u64,
    is_mergeable: bool,
    timestamp: u64,
) -> Result<MetaLsidGid, Refusal> {
    let gid = snapshot_gid(newest, lsid, max_send)?;
    Ok(MetaLsidGid {
        is_mergeable,
        timestamp,
        lsid,
        gid,
    })
}

/// The gid of [`take_snapshot`].
pub fn snapshot_gid(newest: &MetaLsidGid, lsid: u64, max_send: u64) -> Result<u64, Refusal> {
    let behind = newest.lsid;
    require!(
        behind <= lsid,
        "snapshot",
        format!("a log beyond lsid {behind}"),
        lsid
    );
    require!(
        max_send > 0,
        "transfer unit",
        "at least one block",
        max_send
    );
    let skipped = (lsid - behind) / max_send;
    let gid = newest
        .gid
        .checked_add(1)
        .and_then(|gid| gid.checked_add(skipped));
    gid.filter(|gid| *gid != UNKNOWN_GID).ok_or_else(|| {
        let found = format!("{skipped} beyond {}", newest.gid);
        Refusal::new("snapshot", "a gid of 64 bits", found)
    })
}

/// True if a record at the back of the queue is not newer than `done`, and is to be dropped.
pub const fn is_sent(record: &MetaLsidGid, done: &MetaLsidGid) -> bool {
    record.lsid < done.lsid || (record.lsid == done.lsid && record.gid <= done.gid)
}

/// True if an implicit snapshot is due before a transfer: there is no other to send, or the newest
/// is `interval` seconds old and the log, which ends at `lsid`, has advanced.
pub fn is_snapshot_due(newest: Option<&MetaLsidGid>, lsid: u64, now: u64, interval: u64) -> bool {
    newest
        .is_none_or(|record| now.saturating_sub(record.timestamp) > interval && record.lsid < lsid)
}

/// A piece of the log to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// What has been sent already.
    pub from: MetaLsidGid,
    /// The snapshot to reach.
    pub to: MetaLsidGid,
    /// The first pack that ends beyond is not sent.
    pub limit: u64,
}

/// Chooses what to send: as many mergeable snapshots at once as `max_send` blocks hold.
///
/// `queue` goes from the back (oldest) to the front. None if it is empty, or if the log is durable
/// only up to `permanent`, short of the limit.
pub fn choose_transfer(
    done: &MetaLsidGid,
    queue: impl IntoIterator<Item = MetaLsidGid>,
    max_send: u64,
    permanent: u64,
) -> Option<Transfer> {
    let mut queue = queue.into_iter();
    let full = done.lsid.saturating_add(max_send);
    let mut to = queue.next()?;
    let mut looked_at = 1;
    while to.is_mergeable {
        let Some(newer) = queue.next() else { break };
        looked_at += 1;
        if newer.lsid > full || newer.lsid > permanent {
            break;
        }
        to = newer;
    }
    // Between neighbouring gids there is none for a piece.
    let is_whole = looked_at == 1 && done.gid.checked_add(1) == Some(to.gid);
    let limit = if is_whole { to.lsid } else { full.min(to.lsid) };
    (permanent >= limit).then_some(Transfer {
        from: *done,
        to,
        limit,
    })
}

impl Transfer {
    /// The diff sent when the last whole pack ended at `lsid`.
    ///
    /// It is mergeable if the snapshot it begins with is implicit. Refuses an end outside of the
    /// transfer, and a piece for which no gid was left.
    pub fn diff(&self, lsid: u64) -> Result<MetaDiff, Refusal> {
        let reached = self.reached(lsid)?;
        let (begin, end) = (MetaSnap::clean(self.from.gid), MetaSnap::clean(reached.gid));
        let mut diff = MetaDiff::new(begin, end)?;
        (diff.is_mergeable, diff.timestamp) = (self.from.is_mergeable, self.to.timestamp);
        Ok(diff)
    }

    /// The new `done`, when the last whole pack ended at `lsid`. Refuses as [`diff`](Self::diff).
    pub fn reached(&self, lsid: u64) -> Result<MetaLsidGid, Refusal> {
        if lsid == self.to.lsid {
            return Ok(self.to);
        }
        let range = format!("a log position from {} to {}", self.from.lsid, self.to.lsid);
        require!(
            self.from.lsid <= lsid && lsid < self.to.lsid,
            "transfer",
            range,
            lsid
        );
        let gid = self.from.gid.saturating_add(1);
        require!(
            gid < self.to.gid,
            "transfer",
            "a gid for a piece",
            format!("none before {gid}")
        );
        Ok(MetaLsidGid {
            is_mergeable: true,
            timestamp: self.from.timestamp,
            lsid,
            gid,
        })
    }
}

/// The oldest lsid that a device must keep once `done` was sent.
pub fn oldest_lsid(done: &MetaLsidGid, prev_written: u64) -> u64 {
    done.lsid.min(prev_written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lsid: u64, gid: u64, is_mergeable: bool) -> MetaLsidGid {
        MetaLsidGid {
            is_mergeable,
            timestamp: gid.saturating_add(1000),
            lsid,
            gid,
        }
    }

    #[test]
    fn gids_leave_room_for_pieces() {
        let done = record(100, 5, false);
        assert_eq!(snapshot_gid(&done, 100, 10), Ok(6));
        assert_eq!(snapshot_gid(&done, 109, 10), Ok(6));
        assert_eq!(snapshot_gid(&done, 130, 10), Ok(9));
        assert!(snapshot_gid(&done, 99, 10).is_err());
        assert!(snapshot_gid(&done, 100, 0).is_err());
        assert!(snapshot_gid(&record(0, u64::MAX - 1, false), 0, 10).is_err());
        assert!(snapshot_gid(&MetaLsidGid::unknown(0), u64::MAX - 1, 10).is_err());
    }

    #[test]
    fn what_is_not_newer_than_done_is_dropped() {
        let done = record(100, 5, true);
        assert!(is_sent(&record(99, 9, true), &done));
        assert!(is_sent(&record(100, 5, true), &done));
        assert!(!is_sent(&record(100, 6, true), &done));
    }

    #[test]
    fn implicit_snapshots_come_at_intervals() {
        let newest = record(50, 5, true);
        assert!(is_snapshot_due(None, 50, 0, 10));
        assert!(!is_snapshot_due(Some(&newest), 60, 1015, 10));
        assert!(is_snapshot_due(Some(&newest), 60, 1016, 10));
        assert!(!is_snapshot_due(Some(&newest), 50, 2000, 10));
    }

    #[test]
    fn mergeable_snapshots_travel_together_up_to_an_explicit_one() {
        let done = record(0, 0, false);
        let queue = [
            record(10, 1, true),
            record(20, 2, false),
            record(30, 3, true),
        ];
        let transfer = choose_transfer(&done, queue, 100, 1000).unwrap();
        assert_eq!((transfer.to.gid, transfer.limit), (2, 20));
        let short = choose_transfer(&done, queue, 15, 1000).unwrap();
        assert_eq!((short.to.gid, short.limit), (1, 10));
        assert_eq!(choose_transfer(&done, queue, 100, 9), None);
        assert_eq!(choose_transfer(&done, [], 100, 9), None);
    }

    #[test]
    fn a_piece_takes_a_gid_between() {
        let done = record(0, 0, false);
        let transfer = choose_transfer(&done, [record(250, 3, false)], 100, 1000).unwrap();
        assert_eq!(transfer.limit, 100);
        let diff = transfer.diff(96).unwrap();
        assert_eq!(
            (diff.to_string().as_str(), diff.is_mergeable),
            ("|0|-->|1|", false)
        );
        let done = transfer.reached(96).unwrap();
        let piece = MetaLsidGid {
            is_mergeable: true,
            timestamp: 1000,
            lsid: 96,
            gid: 1,
        };
        assert_eq!(done, piece);
        assert_eq!(transfer.diff(250).unwrap().to_string(), "|0|-->|3|");
        assert!(transfer.diff(251).is_err());
        assert_eq!(oldest_lsid(&done, 90), 90);
    }

    #[test]
    fn neighbouring_gids_are_sent_whole() {
        let transfer = choose_transfer(&record(0, 0, true), [record(250, 1, false)], 100, 1000);
        assert_eq!(transfer.unwrap().limit, 250);
        assert!(transfer.unwrap().reached(100).is_err());
    }
}
