//! Requests from a socket to a device, and outcomes back (reference: "NBD").

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::negotiation::Agreement;
use super::outbox::{Outbox, Outgoing};
use super::proto::{self, Command, Errno, REQUEST_HEADER, ReplyHeader, RequestHeader, Terms};
use super::socket::{Inbox, LARGE_BYTES};
use crate::block::{BlockDevice, Op, Refusal, Reply, Request, together};

/// A batch is handed over when it has that many requests ...
const BATCH_REQUESTS: usize = 64;
/// ... or that many bytes: the client shall not wait for the first reply until all are done.
const BATCH_BYTES: usize = 256 << 10;

/// How a reply is put together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read { offset: u64, len: u32 },
    Status { len: u32, one: bool },
    Other,
}

/// The duty to answer a request once. A device that drops it answers with an error.
struct Ticket {
    outbox: Arc<Outbox>,
    cookie: u64,
    kind: Kind,
    structured: bool,
    cost: u32,
    answered: bool,
}

impl Ticket {
    fn answer(mut self, outcome: Result<Reply, Refusal>) {
        let (header, payload) = self.encode(outcome.map_err(Errno::from));
        self.push(header, payload);
    }

    fn push(&mut self, header: ReplyHeader, payload: Vec<Bytes>) {
        self.answered = true;
        let cost = self.cost as usize;
        let reply = Outgoing {
            header,
            payload,
            cost,
        };
        self.outbox.push(reply);
    }

    fn encode(&self, outcome: Result<Reply, Errno>) -> (ReplyHeader, Vec<Bytes>) {
        let cookie = self.cookie;
        match (self.kind, outcome) {
            (Kind::Other, Ok(_)) => (ReplyHeader::simple(cookie, None), Vec::new()),
            (Kind::Read { offset, len }, Ok(Reply::Data(parts))) => {
                let found: usize = parts.iter().map(Bytes::len).sum();
                match (found == len as usize, self.structured) {
                    (true, true) => (ReplyHeader::data(cookie, offset, len), parts),
                    (true, false) => (ReplyHeader::simple(cookie, None), parts),
                    // Another length would put the client out of step.
                    (false, _) => self.error(Errno::Io),
                }
            }
            (Kind::Status { len, one }, Ok(Reply::Extents(extents))) => {
                let descriptors = proto::descriptors(&extents, len, one);
                let header = ReplyHeader::status(cookie, descriptors.len());
                (header, vec![descriptors])
            }
            (_, Ok(_)) => self.error(Errno::Io),
            (_, Err(errno)) => self.error(errno),
        }
    }

    fn error(&self, errno: Errno) -> (ReplyHeader, Vec<Bytes>) {
        // Commands whose success is a structured reply fail by one, too.
        let header = if self.structured && self.kind != Kind::Other {
            ReplyHeader::error(self.cookie, errno)
        } else {
            ReplyHeader::simple(self.cookie, Some(errno))
        };
        (header, Vec::new())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            let (header, payload) = self.error(Errno::Io);
            self.push(header, payload);
        }
    }
}

/// Requests that go to the device together, and answers that need no device.
#[derive(Default)]
struct Batch {
    requests: Vec<Request>,
    refusals: Vec<(Ticket, Errno)>,
    bytes: usize,
}

impl Batch {
    fn len(&self) -> usize {
        self.requests.len() + self.refusals.len()
    }
}

/// The receiving half of a connection.
pub(super) struct Transmission<'a, 'b> {
    inbox: &'a mut Inbox<'b>,
    outbox: Arc<Outbox>,
    device: Arc<dyn BlockDevice>,
    terms: Terms,
    /// Most requests of a batch.
    batch_requests: usize,
    batch: Batch,
}

impl<'a, 'b> Transmission<'a, 'b> {
    pub fn new(inbox: &'a mut Inbox<'b>, outbox: Outbox, agreement: &Agreement) -> Self {
        Self {
            inbox,
            batch_requests: BATCH_REQUESTS.min(outbox.limits.requests),
            outbox: Arc::new(outbox),
            device: Arc::clone(agreement.device()),
            terms: agreement.terms,
            batch: Batch::default(),
        }
    }

    /// Serves until the client disconnects, leaves or breaks the protocol, and every request has
    /// been answered.
    pub fn run(mut self) {
        // However it ends, what was asked before is answered as far as somebody reads it.
        let _ = self.receive();
        self.submit();
        self.outbox.drain();
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            let Some(header) = self.inbox.peek::<REQUEST_HEADER>() else {
                self.submit();
                self.inbox.fill()?;
                continue;
            };
            let Some(header) = RequestHeader::parse(header) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            if header.command == proto::command::DISC {
                return Ok(());
            }
            let payload = header.payload() as usize;
            let missing = (REQUEST_HEADER + payload).saturating_sub(self.inbox.len());
            if missing > 0 {
                // Those before it shall not wait for the rest of this one.
                self.submit();
                if payload < LARGE_BYTES {
                    self.inbox.fill()?;
                    continue;
                }
            }
            self.inbox.skip(REQUEST_HEADER);
            self.take(&header, payload)?;
            if self.batch.len() >= self.batch_requests || self.batch.bytes >= BATCH_BYTES {
                self.submit();
            }
        }
    }

    /// Adds a request to the batch.
    fn take(&mut self, header: &RequestHeader, payload: usize) -> io::Result<()> {
        let command = match self.terms.command(header) {
            Ok(command) => command,
            Err(errno) => {
                self.discard(payload)?;
                let ticket = self.ticket(header.cookie, refused_kind(header), 0);
                self.batch.refusals.push((ticket, errno));
                return Ok(());
            }
        };
        let (op, kind, cost) = self.operation(command)?;
        self.batch.bytes += cost as usize;
        let ticket = self.ticket(header.cookie, kind, cost);
        let done = Box::new(move |outcome| ticket.answer(outcome));
        self.batch.requests.push(Request { op, done });
        Ok(())
    }

    fn discard(&mut self, payload: usize) -> io::Result<()> {
        if payload > proto::MAX_SKIPPED_BYTES as usize {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.inbox.discard(payload)
    }

    fn ticket(&self, cookie: u64, kind: Kind, cost: u32) -> Ticket {
        Ticket {
            outbox: Arc::clone(&self.outbox),
            cookie,
            kind,
            structured: self.terms.structured,
            cost,
            answered: false,
        }
    }

    /// What is asked of the device, how it is answered, and its bytes in memory.
    fn operation(&mut self, command: Command) -> io::Result<(Op, Kind, u32)> {
        let (op, kind, cost) = match command {
            Command::Read { offset, len } => {
                (Op::Read { offset, len }, Kind::Read { offset, len }, len)
            }
            Command::Write { offset, len, fua } => {
                let data = self.inbox.take(len as usize)?;
                (Op::Write { offset, data, fua }, Kind::Other, len)
            }
            Command::Flush => (Op::Flush, Kind::Other, 0),
            Command::Trim { offset, len, fua } => {
                let len = len.into();
                (Op::Trim { offset, len, fua }, Kind::Other, 0)
            }
            Command::Zero {
                offset,
                len,
                may_punch,
                fua,
            } => {
                let op = Op::Zero {
                    offset,
                    len: len.into(),
                    may_punch,
                    fua,
                };
                (op, Kind::Other, 0)
            }
            Command::Status { offset, len, one } => {
                let kind = Kind::Status { len, one };
                let len = len.into();
                (Op::Extents { offset, len }, kind, 0)
            }
        };
        Ok((op, kind, cost))
    }

    /// Hands the batch over. Outcomes that come at once leave in one system call.
    fn submit(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if batch.len() == 0 {
            return;
        }
        self.outbox.admit(batch.len(), batch.bytes);
        together(|| {
            for (mut ticket, errno) in batch.refusals {
                let (header, payload) = ticket.error(errno);
                ticket.push(header, payload);
            }
            if !batch.requests.is_empty() {
                self.device.submit(batch.requests);
            }
        });
    }
}

/// The form of the error for a refused request.
const fn refused_kind(header: &RequestHeader) -> Kind {
    let RequestHeader { offset, len, .. } = *header;
    match header.command {
        proto::command::READ => Kind::Read { offset, len },
        proto::command::BLOCK_STATUS => Kind::Status { len, one: false },
        _ => Kind::Other,
    }
}
