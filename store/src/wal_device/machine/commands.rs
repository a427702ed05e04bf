//! What operators and the storage role ask of a volume.

use std::time::Duration;

use bytes::Bytes;
use walkeep_wire::Uuid;
use walkeep_wire::ldev::Superblock;
use walkeep_wire::logpack::{Block, classify};

use super::{Effect, Failure, Machine, Purpose, Refused, Target, Ticket, window_blocks};
use crate::block::Refusal;
use crate::disk::engine::FileOp;

/// A command. It is told `Ok` with an lsid where that means something, else with 0.
#[derive(Clone, Debug)]
pub enum Command {
    /// Bring everything to the data and move `prev_written`.
    Checkpoint,
    /// Make the log permanent; told its end.
    Mark,
    /// Forget the packs before an lsid.
    SetOldest(u64),
    /// Hold new writes, and do what a checkpoint does; melt after a time, if one is given.
    Freeze(Option<Duration>),
    /// Let writes go on.
    Melt,
    /// Change the time between checkpoints.
    Interval(Duration),
    /// Refuse new requests, and do what a checkpoint does.
    Close,
    /// As `Freeze`, for a change of the superblock by the caller, who ends it with one of the
    /// next three. Nothing is written to the log meanwhile.
    Hold,
    /// Go on with another superblock, which is durable.
    Install(Box<Superblock>),
    /// Go on as before: nothing was changed.
    Release,
    /// What the superblock on disk is now is unknown: it is written again before all else.
    Fail(String),
}

/// A command that waits for `prev_written` to come to `upto`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) ticket: Ticket,
    pub(super) upto: u64,
    since: u64,
    /// It is told only while the volume is frozen.
    freezes: bool,
}

/// A look at the log whether a pack begins where it is to be forgotten up to.
#[derive(Clone, Copy, Debug)]
pub(super) struct OldestProbe {
    ticket: Ticket,
    lsid: u64,
    log: Uuid,
}

/// No lsids are given out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frozen {
    until: Option<u64>,
    /// For a change of the superblock.
    held: bool,
}

impl Machine {
    pub(super) fn command(
        &mut self,
        ticket: Ticket,
        command: Command,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        if let Err(refused) = self.may(&command) {
            let result = Err(refused);
            return out.push(Effect::Tell { ticket, result });
        }
        match command {
            Command::Checkpoint => self.drain(ticket, false, now),
            Command::Mark => self.mark(ticket, now, out),
            Command::SetOldest(lsid) => self.set_oldest(ticket, lsid, out),
            Command::Freeze(limit) => {
                let micros = |limit: Duration| limit.as_micros().min(u64::MAX.into()) as u64;
                let until = limit.map(|limit| now.saturating_add(micros(limit)));
                self.frozen = Some(Frozen { until, held: false });
                self.drain(ticket, true, now);
            }
            Command::Hold => {
                let (until, held) = (None, true);
                self.frozen = Some(Frozen { until, held });
                self.drain(ticket, true, now);
            }
            Command::Close => {
                self.closed = true;
                self.refuse_waiting(Refusal::ShuttingDown, u64::MAX, out);
                self.drain(ticket, false, now);
            }
            Command::Melt => {
                self.melt("the volume was melted", out);
                tell(ticket, Ok(0), out);
            }
            Command::Release => {
                self.frozen = None;
                tell(ticket, Ok(0), out);
            }
            Command::Fail(cause) => {
                self.frozen = None;
                let no_space = false;
                self.fail_log(
                    "change of the superblock",
                    Failure { no_space, cause },
                    now,
                    out,
                );
                tell(ticket, Ok(0), out);
            }
            Command::Interval(interval) => {
                let micros = interval.as_micros().min(u64::MAX.into()) as u64;
                self.behind.interval = Some(micros.max(super::SHORTEST_INTERVAL));
                tell(ticket, Ok(0), out);
            }
            Command::Install(superblock) => {
                self.install(*superblock, now);
                tell(ticket, Ok(0), out);
            }
        }
    }

    fn may(&self, command: &Command) -> Result<(), Refused> {
        let refuse = |why: String| Err(Refused(why));
        match command {
            Command::Melt if self.frozen.is_none() => refuse("the volume is not frozen".into()),
            Command::Melt | Command::SetOldest(_) if self.is_held() => {
                refuse("the volume is being resized or reset; try again when that is done".into())
            }
            Command::Freeze(_) | Command::Hold if self.frozen.is_some() => {
                refuse("the volume is frozen already; melt it first".into())
            }
            Command::Install(_) if !self.is_held() || !self.is_at_rest() => {
                refuse("the volume is not held for a change".into())
            }
            Command::Interval(_)
            | Command::Melt
            | Command::Install(_)
            | Command::Release
            | Command::Fail(_) => Ok(()),
            _ if self.closed => refuse("the volume is closing".into()),
            _ => match &self.log_failed {
                Some(failed) => refuse(format!("the log has failed: {}", failed.cause)),
                None => Ok(()),
            },
        }
    }

    /// Waits until all that has an lsid is on the data and the superblock says so.
    fn drain(&mut self, ticket: Ticket, freezes: bool, now: u64) {
        self.drains.push(Drain {
            ticket,
            upto: self.latest,
            since: now,
            freezes,
        });
    }

    /// The superblock is somebody else's to write.
    pub(super) fn is_held(&self) -> bool {
        self.frozen.is_some_and(|frozen| frozen.held)
    }

    /// Gives out lsids again. Whoever waits for the volume to be frozen is told that it is not.
    fn melt(&mut self, why: &str, out: &mut Vec<Effect>) {
        self.frozen = None;
        self.refuse_drains(|drain| drain.freezes, why, out);
    }

    /// Refuses drains; a volume that was to be frozen by one melts.
    pub(super) fn refuse_drains(
        &mut self,
        which: impl Fn(&Drain) -> bool,
        why: &str,
        out: &mut Vec<Effect>,
    ) {
        for drain in self.drains.extract_if(.., |drain| which(drain)) {
            if drain.freezes {
                self.frozen = None;
            }
            tell(drain.ticket, Err(Refused(why.to_owned())), out);
        }
    }

    /// Refuses drains that wait too long for failed data.
    pub(super) fn refuse_held_drains(&mut self, now: u64, out: &mut Vec<Effect>) {
        let limit = self.limits.hold;
        let (_, cause) = self.condition();
        let late = |drain: &Drain| drain.since.saturating_add(limit) <= now;
        self.refuse_drains(late, &cause, out);
    }

    pub(super) fn drain_due(&self) -> Option<u64> {
        let oldest = self.drains.iter().map(|drain| drain.since).min()?;
        Some(oldest.saturating_add(self.limits.hold))
    }

    /// Tells the drains that have come to their end, and melts when it is time.
    pub(super) fn settle_commands(&mut self, now: u64, out: &mut Vec<Effect>) {
        let reached = self.superblock.written_lsid;
        let quiet = !self.behind.writes_superblock()
            && !self.marking
            && (!self.closed || self.oldest == self.superblock.oldest_lsid);
        let done = |drain: &mut Drain| quiet && drain.upto <= reached;
        for drain in self.drains.extract_if(.., done) {
            tell(drain.ticket, Ok(reached), out);
        }
        let melts = |frozen: &Frozen| frozen.until.is_some_and(|until| until <= now);
        if self.frozen.as_ref().is_some_and(melts) {
            self.melt("the volume melted before it came to rest", out);
            self.allocate(now, out);
        }
    }

    pub(super) fn melt_due(&self) -> Option<u64> {
        self.frozen.and_then(|frozen| frozen.until)
    }

    /// Everything is on the data, durable, and known to be so.
    pub(super) fn is_at_rest(&self) -> bool {
        self.superblock.written_lsid == self.latest
            && self.groups.is_empty()
            && self.behind.is_quiet()
            && self.syncing.is_none()
            && !self.marking
    }

    /// An lsid may be forgotten up to `prev_written`, where a pack begins.
    fn set_oldest(&mut self, ticket: Ticket, lsid: u64, out: &mut Vec<Effect>) {
        let (from, to) = (self.oldest, self.superblock.written_lsid);
        if self.overflow.is_some() {
            let why = "the log overflowed: only a reset, and a hash or full backup, help";
            return tell(ticket, Err(Refused(why.into())), out);
        }
        if !(from..=to).contains(&lsid) {
            let why = format!(
                "oldest lsid: expected {from} (the oldest) to {to} (what a checkpoint has \
                 brought to the data), found {lsid}"
            );
            return tell(ticket, Err(Refused(why)), out);
        }
        if lsid == self.permanent || lsid == self.oldest {
            self.oldest = lsid;
            return tell(ticket, Ok(lsid), out);
        }
        let op = FileOp::Read {
            offset: self.superblock.ring.position(lsid),
            len: self.pbs().bytes(),
        };
        let probe = OldestProbe {
            ticket,
            lsid,
            log: self.superblock.uuid,
        };
        self.io(Purpose::OldestProbe(probe), Target::Log, op, out);
    }

    pub(super) fn oldest_probed(
        &mut self,
        OldestProbe { ticket, lsid, log }: OldestProbe,
        result: Result<Bytes, Failure>,
        out: &mut Vec<Effect>,
    ) {
        if log != self.superblock.uuid || self.is_held() {
            let why = "the log was reset meanwhile, or is being changed";
            return tell(ticket, Err(Refused(why.into())), out);
        }
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(failure) => {
                let why = format!("the pack at lsid {lsid} cannot be read: {}", failure.cause);
                return tell(ticket, Err(Refused(why)), out);
            }
        };
        let result = match classify(&bytes, self.pbs(), self.superblock.salt, lsid) {
            Block::Pack(_) if self.overflow.is_none() => {
                self.oldest = self.oldest.max(lsid);
                Ok(lsid)
            }
            Block::Pack(_) => Err(Refused("the log overflowed".into())),
            Block::End | Block::NotAPack(_) | Block::Broken(_) => Err(Refused(format!(
                "oldest lsid: expected the start of a pack, found none at lsid {lsid}"
            ))),
        };
        tell(ticket, result, out);
    }

    fn install(&mut self, superblock: Superblock, now: u64) {
        let restarts = superblock.uuid != self.superblock.uuid;
        if restarts {
            let at = superblock.written_lsid;
            (self.oldest, self.completed, self.permanent, self.latest) = (at, at, at, at);
            self.overflow = None;
            self.lsids_used_up = false;
            self.dirty_since = None;
        }
        self.window = window_blocks(&superblock, &self.limits);
        self.superblock = superblock;
        self.behind.last_checkpoint = now;
        self.frozen = None;
    }
}

fn tell(ticket: Ticket, result: Result<u64, Refused>, out: &mut Vec<Effect>) {
    out.push(Effect::Tell { ticket, result });
}
