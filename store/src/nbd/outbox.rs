//! Replies on their way to a client, and the room for requests in flight.
//!
//! Whoever has a reply queues it; if nobody is sending, he sends all that is there and all that
//! comes in the meantime, so that replies share system calls. Nobody but the writer thread waits for
//! a slow client, and that thread is only started when the socket was full for the first time.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::proto::ReplyHeader;
use super::server::Limits;
use super::socket::Socket;
use crate::block::{Gather, gather};

/// Parts of one system call: the kernel takes no more.
const MAX_PARTS: usize = 1024;

/// A reply.
pub(super) struct Outgoing {
    pub header: ReplyHeader,
    pub payload: Vec<Bytes>,
    /// What its request took of the room.
    pub cost: usize,
}

/// Replies in the order they are sent, the first one perhaps sent in part.
#[derive(Default)]
struct Sending {
    replies: VecDeque<Outgoing>,
    /// Bytes of the first reply that the socket has taken.
    sent: usize,
}

/// Requests and bytes, in flight or freed.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Room {
    requests: usize,
    bytes: usize,
}

struct State {
    queue: VecDeque<Outgoing>,
    /// With whoever sends, else here for its memory.
    sending: Sending,
    busy: bool,
    /// The socket was full: the writer thread is who sends.
    blocked: bool,
    /// The client is gone.
    broken: bool,
    closing: bool,
    in_flight: Room,
    writer: Option<JoinHandle<()>>,
}

/// The sending half of a connection.
pub(super) struct Outbox {
    socket: Arc<Socket>,
    pub limits: Limits,
    state: Mutex<State>,
    /// In-flight requests have become fewer.
    freed: Condvar,
    /// For the writer thread: `blocked` or `closing` is set.
    work: Condvar,
}

impl Outbox {
    pub fn new(socket: Arc<Socket>, limits: Limits) -> Self {
        let state = State {
            queue: VecDeque::new(),
            sending: Sending::default(),
            busy: false,
            blocked: false,
            broken: false,
            closing: false,
            in_flight: Room::default(),
            writer: None,
        };
        Self {
            socket,
            limits,
            state: Mutex::new(state),
            freed: Condvar::new(),
            work: Condvar::new(),
        }
    }

    /// Waits until there is room for more requests in flight, and takes it. A request that is
    /// greater than all room goes alone.
    pub fn admit(&self, requests: usize, bytes: usize) {
        let mut state = self.state.lock();
        loop {
            let now = state.in_flight;
            let fits = now.requests + requests <= self.limits.requests
                && now.bytes + bytes <= self.limits.bytes;
            if fits || now.requests == 0 {
                state.in_flight.requests += requests;
                state.in_flight.bytes += bytes;
                return;
            }
            self.freed.wait(&mut state);
        }
    }

    /// Queues a reply and sees to it that it is sent. Never waits for the client.
    pub fn push(self: &Arc<Self>, reply: Outgoing) {
        let mut state = self.state.lock();
        if state.broken {
            let freed = Room {
                requests: 1,
                bytes: reply.cost,
            };
            return self.free(&mut state, freed);
        }
        state.queue.push_back(reply);
        if !state.busy && !gather(self) {
            self.send_queued(state);
        }
    }

    fn free(&self, state: &mut State, freed: Room) {
        state.in_flight.requests -= freed.requests;
        state.in_flight.bytes -= freed.bytes;
        self.freed.notify_one();
    }

    /// Sends until nothing is left or the socket is full.
    fn send_queued(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        state.busy = true;
        if let Err(error) = self.send_some(&mut state, false) {
            match error.kind() {
                io::ErrorKind::WouldBlock => self.leave_to_writer(&mut state),
                _ => self.give_up(&mut state),
            }
        }
    }

    /// Sends until nothing is left. Whoever calls has set `busy`, and has it after an error.
    fn send_some(&self, state: &mut MutexGuard<'_, State>, wait: bool) -> io::Result<()> {
        loop {
            let mut sending = std::mem::take(&mut state.sending);
            sending.replies.append(&mut state.queue);
            if sending.replies.is_empty() {
                state.sending = sending;
                state.busy = false;
                return Ok(());
            }
            let (freed, result) =
                MutexGuard::unlocked(state, || sending.transmit(&self.socket, wait));
            state.sending = sending;
            self.free(state, freed);
            result?;
        }
    }

    fn leave_to_writer(self: &Arc<Self>, state: &mut State) {
        state.blocked = true;
        if state.writer.is_some() {
            self.work.notify_one();
            return;
        }
        let outbox = Arc::clone(self);
        let writer = thread::Builder::new().name("nbd-writer".into());
        match writer.spawn(move || outbox.write()) {
            Ok(writer) => state.writer = Some(writer),
            Err(_) => self.give_up(state),
        }
    }

    /// The writer thread.
    fn write(self: Arc<Self>) {
        let mut state = self.state.lock();
        loop {
            if state.blocked {
                state.blocked = false;
                if self.send_some(&mut state, true).is_err() {
                    self.give_up(&mut state);
                }
            } else if state.closing {
                return;
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    /// The client is gone: nobody waits for what is queued, and the reader shall see the end.
    fn give_up(&self, state: &mut State) {
        state.busy = false;
        state.blocked = false;
        state.broken = true;
        let sending = std::mem::take(&mut state.sending);
        let queue = std::mem::take(&mut state.queue);
        let mut freed = Room::default();
        for reply in sending.replies.iter().chain(&queue) {
            freed.requests += 1;
            freed.bytes += reply.cost;
        }
        self.free(state, freed);
        self.socket.shutdown(Shutdown::Both);
    }

    /// Waits until every request has been answered, and ends the writer thread.
    pub fn drain(&self) {
        let mut state = self.state.lock();
        while state.in_flight.requests > 0 {
            self.freed.wait(&mut state);
        }
        state.closing = true;
        self.work.notify_one();
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            // It does not panic; and if it did, there is nothing left to send.
            let _ = writer.join();
        }
    }
}

impl Gather for Outbox {
    fn release(self: Arc<Self>) {
        let state = self.state.lock();
        if !state.busy && !state.broken && !state.queue.is_empty() {
            self.send_queued(state);
        }
    }
}

impl Sending {
    /// Sends until nothing is left or an error comes; returns what became free.
    fn transmit(&mut self, socket: &Socket, wait: bool) -> (Room, io::Result<()>) {
        let mut freed = Room::default();
        while !self.replies.is_empty() {
            match socket.send(&self.parts(), wait) {
                Ok(sent) => self.advance(sent, &mut freed),
                Err(e) => return (freed, Err(e)),
            }
        }
        (freed, Ok(()))
    }

    fn parts(&self) -> Vec<IoSlice<'_>> {
        let mut skip = self.sent;
        let mut parts = Vec::with_capacity((2 * self.replies.len()).min(MAX_PARTS));
        let all = self.replies.iter().flat_map(|reply| {
            let payload = reply.payload.iter().map(|part| &part[..]);
            std::iter::once(reply.header.as_bytes()).chain(payload)
        });
        for part in all {
            let rest = part.get(skip..).unwrap_or_default();
            skip -= part.len() - rest.len();
            if !rest.is_empty() {
                parts.push(IoSlice::new(rest));
            }
            if parts.len() == MAX_PARTS {
                break;
            }
        }
        parts
    }

    fn advance(&mut self, sent: usize, freed: &mut Room) {
        self.sent += sent;
        while let Some(first) = self.replies.front() {
            let payload: usize = first.payload.iter().map(Bytes::len).sum();
            let len = first.header.as_bytes().len() + payload;
            if self.sent < len {
                return;
            }
            self.sent -= len;
            freed.requests += 1;
            freed.bytes += first.cost;
            self.replies.pop_front();
        }
    }
}
