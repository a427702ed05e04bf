//! Failures of the log and of the data, and the way back (W10: what a failed sync covered is not
//! durable, and a repeated sync does not make it so).

use bytes::Bytes;

use super::super::layer::Ranges;
use super::behind::write_of;
use super::{Effect, Failure, Machine, Purpose, Target};
use crate::block::Refusal;

/// A write or sync of the log failed. Everything since `permanent` is still in memory, and is
/// written again through a new descriptor.
#[derive(Debug)]
pub(super) struct LogFailure {
    pub(super) cause: String,
    stage: LogStage,
}

#[derive(Debug, PartialEq, Eq)]
enum LogStage {
    /// Until then, and until nothing is on its way any more.
    Waiting(u64),
    Reopening,
    /// The groups are on their way again.
    Rewriting,
    /// They are being made durable.
    Syncing,
}

/// A write to the data failed: it is ripe again.
#[derive(Debug)]
pub(super) struct DataTrouble {
    pub(super) no_space: bool,
    pub(super) cause: String,
    pub(super) since: u64,
    retry_at: u64,
    /// What could not be written.
    range: (u64, u64),
}

impl DataTrouble {
    pub(super) fn new(failure: Failure, range: (u64, u64), now: u64, retry_at: u64) -> Self {
        Self {
            range,
            no_space: failure.no_space,
            cause: format!("data write: {}", failure.cause),
            since: now,
            retry_at,
        }
    }
}

impl DataTrouble {
    /// True if a write of the range shows that the trouble is over.
    pub(super) const fn is_about(&self, start: u64, end: u64) -> bool {
        start < self.range.1 && self.range.0 < end
    }
}

/// A sync of the data failed: what was written since the last good one may be gone. The log from
/// `prev_written` on is replayed.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) cause: String,
    ranges: Ranges,
    since: u64,
    retry_at: u64,
    replaying: bool,
    /// A replay has begun: it goes through older versions on its way to the newest, anywhere.
    everywhere: bool,
}

impl Machine {
    /// The log failed: everything that waits for it is refused, what is in memory stays.
    pub(super) fn fail_log(
        &mut self,
        what: &str,
        failure: Failure,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let cause = format!("{what}: {}", failure.cause);
        self.log_failed = Some(LogFailure {
            stage: LogStage::Waiting(now + self.limits.retry),
            cause: cause.clone(),
        });
        self.behind.forget_superblock();
        self.refuse_all(Refusal::Io, out);
        self.refuse_drains(|_| true, &cause, out);
    }

    #[cfg(not(test))]
    pub(super) fn sync_failed(&mut self, failure: Failure, now: u64, out: &mut Vec<Effect>) {
        self.fail_log("log sync", failure, now, out);
    }

    /// Goes one step back to a working log, if one is possible.
    pub(super) fn recover_log(&mut self, now: u64, out: &mut Vec<Effect>) {
        let quiet = self.groups_writing == 0 && self.syncing.is_none() && !self.log_busy();
        let Some(failed) = self.log_failed.as_mut().filter(|_| quiet) else {
            return;
        };
        match failed.stage {
            LogStage::Waiting(until) if until <= now => {
                failed.stage = LogStage::Reopening;
                let id = self.name(Purpose::ReopenLog);
                out.push(Effect::ReopenLog { id });
            }
            LogStage::Rewriting => {
                failed.stage = LogStage::Syncing;
                self.groups_complete = self.groups.len();
                self.completed = self.latest;
                self.start_sync(now, out);
            }
            LogStage::Waiting(_) | LogStage::Reopening | LogStage::Syncing => {}
        }
    }

    /// A write of the superblock or of its second copy, or a mark, is still on its way.
    fn log_busy(&self) -> bool {
        self.ios.values().any(|purpose| {
            matches!(
                purpose,
                Purpose::Superblock
                    | Purpose::SecondSuperblock
                    | Purpose::Mark(_)
                    | Purpose::Restore
            )
        })
    }

    pub(super) fn log_reopened(
        &mut self,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        if let Err(failure) = result {
            return self.fail_log("open the log again", failure, now, out);
        }
        if let Some(failed) = &mut self.log_failed {
            failed.stage = LogStage::Rewriting;
        }
        // A write of it may have failed, or may have been done by half.
        let superblock = self.superblock.clone();
        self.io(Purpose::Restore, Target::Log, write_of(&superblock), out);
        let mut groups = std::mem::take(&mut self.groups);
        for group in &mut groups {
            group.left = group.writes.len();
            self.write_group(group, out);
        }
        self.groups = groups;
        self.groups_complete = 0;
    }

    pub(super) fn restored(
        &mut self,
        result: Result<Bytes, Failure>,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        if let Err(failure) = result {
            self.fail_log("superblock write", failure, now, out);
        }
    }

    /// The sync after the groups were written again was good: the log works.
    pub(super) fn log_works_again(&mut self) {
        if self
            .log_failed
            .as_ref()
            .is_some_and(|failed| failed.stage == LogStage::Syncing)
        {
            self.log_failed = None;
        }
    }

    /// A sync of the data failed.
    pub(super) fn suspect_data(&mut self, failure: Failure, mut ranges: Ranges, now: u64) {
        #[cfg(test)]
        if self.planted(super::sim::Mutation::DataSyncRepeated) {
            return;
        }
        ranges.extend(&std::mem::take(&mut self.written_since_sync));
        self.suspect = Some(Suspect {
            cause: format!("data sync: {}", failure.cause),
            ranges,
            since: now,
            retry_at: now + self.limits.retry,
            replaying: false,
            everywhere: false,
        });
    }

    /// True if a read of the data there might return what a failed sync lost.
    pub(super) fn is_suspect(&self, start: u64, end: u64) -> bool {
        let suspect = self.suspect.as_ref();
        suspect.is_some_and(|suspect| suspect.everywhere || suspect.ranges.touches(start, end))
    }

    /// Replays the log onto the data once nothing else is on its way there.
    pub(super) fn clear_suspicion(&mut self, now: u64, out: &mut Vec<Effect>) {
        let reads = |purpose: &Purpose| matches!(purpose, Purpose::Read(_));
        let quiet = self.behind.is_quiet() && !self.ios.values().any(reads);
        let Some(suspect) = &mut self.suspect else {
            return;
        };
        if !quiet || suspect.replaying || suspect.retry_at > now {
            return;
        }
        (suspect.replaying, suspect.everywhere) = (true, true);
        let (from, to) = (self.superblock.written_lsid, self.permanent);
        let id = self.name(Purpose::Replay);
        out.push(Effect::Replay { id, from, to });
    }

    pub(super) fn replayed(&mut self, result: Result<Bytes, Failure>, now: u64) {
        let Some(suspect) = &mut self.suspect else {
            return;
        };
        // Flights that were still up when the sync failed have come down since, or failed again.
        suspect
            .ranges
            .extend(&std::mem::take(&mut self.written_since_sync));
        match result {
            Ok(_) => self.suspect = None,
            Err(failure) => {
                suspect.cause = format!("replay of the log: {}", failure.cause);
                suspect.replaying = false;
                suspect.retry_at = now + self.limits.retry;
            }
        }
    }

    /// Nothing may be written to the data now.
    pub(super) fn is_data_stopped(&self, now: u64) -> bool {
        let trouble = self.data_trouble.as_ref();
        self.suspect.is_some() || trouble.is_some_and(|trouble| trouble.retry_at > now)
    }

    /// When something is tried again.
    pub(super) fn retry_due(&self, now: u64) -> Option<u64> {
        let log = self.log_failed.as_ref().and_then(|f| match f.stage {
            LogStage::Waiting(until) => Some(until),
            LogStage::Reopening | LogStage::Rewriting | LogStage::Syncing => None,
        });
        let suspect = self.suspect.as_ref().filter(|s| !s.replaying);
        let trouble = self.data_trouble.as_ref().filter(|t| t.retry_at > now);
        let times = [
            log,
            suspect.map(|s| s.retry_at),
            trouble.map(|t| t.retry_at),
        ];
        // A time that is past waits for something to finish, which wakes the machine by itself.
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Requests that have waited too long on failed data are refused.
    pub(super) fn refuse_held(&mut self, now: u64, out: &mut Vec<Effect>) {
        if self.failing_since().is_some() && now >= self.limits.hold {
            self.refuse_waiting(Refusal::Io, now - self.limits.hold, out);
            self.refuse_held_drains(now, out);
        }
    }

    pub(super) fn hold_due(&self) -> Option<u64> {
        self.failing_since()?;
        let waiting = self.waiting.front();
        let due = waiting.map(|waiting| waiting.since.saturating_add(self.limits.hold));
        [due, self.drain_due()].into_iter().flatten().min()
    }

    fn failing_since(&self) -> Option<u64> {
        let trouble = self.data_trouble.as_ref().map(|t| t.since);
        trouble.or_else(|| self.suspect.as_ref().map(|s| s.since))
    }
}

/// Variants with planted bugs, for the tests of the tests.
#[cfg(test)]
mod planted {
    use super::super::sim::Mutation;
    use super::{Effect, Failure, Machine};

    impl Machine {
        pub(in super::super) fn sync_failed(
            &mut self,
            failure: Failure,
            now: u64,
            out: &mut Vec<Effect>,
        ) {
            if !self.planted(Mutation::LogSyncRepeated) {
                self.fail_log("log sync", failure, now, out);
            }
        }
    }
}
