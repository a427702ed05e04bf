//! Reads: what is pending over what is on the data.

use bytes::Bytes;
use walkeep_wire::LOGICAL_BLOCK;

use super::super::layer::{Layer, Payload};
use super::log::ZEROS;
use super::{Effect, Failure, Machine, Purpose, Target, Ticket};
use crate::block::{Refusal, Reply};
use crate::disk::engine::FileOp;

/// A read that waits for the data under its gaps.
#[derive(Debug)]
pub(super) struct Reading {
    ticket: Ticket,
    /// What is pending, taken when the read came.
    parts: Vec<Part>,
    /// First block that is read from the data.
    from: u64,
}

/// A part of a read, in order.
#[derive(Debug)]
enum Part {
    Pending(Bytes),
    /// Zeros: how many blocks, and whether they will be a hole.
    Zeros(u64, bool),
    /// Blocks of the data, from the first to the one behind the last.
    Gap(u64, u64),
}

/// Extents told at once are at most so many pending pieces.
const MAX_PENDING_EXTENTS: usize = 4096;

impl Machine {
    /// Answers a read: at once from the layers, or after the data is read under their gaps.
    ///
    /// The layers are looked at before the data is, and a piece leaves them only when its write to
    /// the data is done: a read sees every write that was answered before it came.
    pub(super) fn read(&mut self, ticket: Ticket, start: u64, len: u64, out: &mut Vec<Effect>) {
        self.counters.reads += 1;
        self.counters.read_bytes += len * LOGICAL_BLOCK as u64;
        let parts = self.parts(start, start + len);
        let gaps = || {
            parts.iter().filter_map(|part| match part {
                Part::Gap(from, to) => Some((*from, *to)),
                Part::Pending(_) | Part::Zeros(..) => None,
            })
        };
        let (Some((from, _)), Some((_, to))) = (gaps().next(), gaps().last()) else {
            let result = Ok(Reply::Data(join(parts, from_nowhere)));
            return out.push(Effect::Answer { ticket, result });
        };
        if gaps().any(|(from, to)| self.is_suspect(from, to)) {
            let result = Err(Refusal::Io);
            return out.push(Effect::Answer { ticket, result });
        }
        let op = FileOp::Read {
            offset: from * LOGICAL_BLOCK as u64,
            len: (to - from) as usize * LOGICAL_BLOCK,
        };
        let reading = Reading {
            ticket,
            parts,
            from,
        };
        self.io(Purpose::Read(reading), Target::Data, op, out);
    }

    pub(super) fn read_done(
        &self,
        reading: Reading,
        result: Result<Bytes, Failure>,
        out: &mut Vec<Effect>,
    ) {
        let Reading {
            ticket,
            parts,
            from,
        } = reading;
        let at = |block: u64| (block - from) as usize * LOGICAL_BLOCK;
        let result = match result {
            Ok(data) => Ok(Reply::Data(join(parts, |a, b| data.slice(at(a)..at(b))))),
            Err(_) => Err(Refusal::Io),
        };
        out.push(Effect::Answer { ticket, result });
    }

    /// A range as pending parts and gaps: the newest layer first.
    fn parts(&self, start: u64, end: u64) -> Vec<Part> {
        let mut parts = vec![];
        if self.fresh.is_empty() && self.ripe.is_empty() && self.flying.is_empty() {
            return vec![Part::Gap(start, end)];
        }
        collect(
            &[&self.fresh, &self.ripe, &self.flying],
            start,
            end,
            &mut parts,
        );
        parts
    }

    /// Tells the extents of the front of a range.
    pub(super) fn extents(&self, ticket: Ticket, start: u64, len: u64, out: &mut Vec<Effect>) {
        let (mut at, mut pending) = (start, vec![]);
        let mut end = start + len;
        for part in self.parts(start, start + len) {
            let (to, known) = match part {
                Part::Pending(bytes) => (at + (bytes.len() / LOGICAL_BLOCK) as u64, Some(false)),
                Part::Zeros(blocks, hole) => (at + blocks, Some(hole)),
                // What the data says of a suspect range may be wrong; a read of it says so.
                Part::Gap(from, to) => (to, self.is_suspect(from, to).then_some(false)),
            };
            pending.extend(known.map(|zero| (at, to, zero)));
            at = to;
            if pending.len() >= MAX_PENDING_EXTENTS {
                end = at;
                break;
            }
        }
        out.push(Effect::AnswerExtents {
            ticket,
            start,
            end,
            pending,
        });
    }
}

fn collect(layers: &[&Layer], start: u64, end: u64, parts: &mut Vec<Part>) {
    let Some((layer, below)) = layers.split_first() else {
        return parts.push(Part::Gap(start, end));
    };
    let mut at = start;
    for (from, piece) in layer.overlapping(start, end) {
        if from > at {
            collect(below, at, from, parts);
        }
        let (first, last) = (from.max(start), piece.end.min(end));
        parts.push(match &piece.payload {
            Payload::Data(bytes) => {
                let within = |block: u64| (block - from) as usize * LOGICAL_BLOCK;
                Part::Pending(bytes.slice(within(first)..within(last)))
            }
            Payload::Zeros { may_punch } => Part::Zeros(last - first, *may_punch),
            Payload::Discard => Part::Zeros(last - first, true),
        });
        at = last;
    }
    if at < end {
        collect(below, at, end, parts);
    }
}

fn join(parts: Vec<Part>, gap: impl Fn(u64, u64) -> Bytes) -> Vec<Bytes> {
    let mut bytes = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Part::Pending(pending) => bytes.push(pending),
            Part::Gap(from, to) => bytes.push(gap(from, to)),
            Part::Zeros(blocks, _) => {
                let mut left = blocks as usize * LOGICAL_BLOCK;
                while left > 0 {
                    let step = left.min(ZEROS.len());
                    bytes.push(ZEROS.slice(..step));
                    left -= step;
                }
            }
        }
    }
    bytes
}

const fn from_nowhere(_: u64, _: u64) -> Bytes {
    Bytes::new()
}
