//! Sockets of both kinds as one: what a connection reads, and the buffer it reads into.

use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::socket::{self, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::sys;

/// Bytes received at once. Requests of a deep queue come in one system call.
const RECEIVE_BYTES: usize = 256 << 10;
/// Bytes received at once while payloads are large: what is received here of those is copied again.
const NARROW_BYTES: usize = 4 << 10;
/// Payloads from this size on are large.
pub(super) const LARGE_BYTES: usize = 32 << 10;
/// Asked for as buffer of a socket file, so that a large reply or request fits in; the default is
/// less than one of 256 KiB. The kernel gives what its limits allow.
const UNIX_BUFFER_BYTES: usize = 2 << 20;

/// A connected stream.
pub(super) struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        // A hint: with smaller buffers it works as well, in more steps.
        let _ = setsockopt(&stream, sockopt::SndBuf, &UNIX_BUFFER_BYTES);
        Self(stream.into())
    }
}

impl TryFrom<TcpStream> for Socket {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        Ok(Self(stream.into()))
    }
}

impl Socket {
    /// Ends a direction. Threads that wait in it see the end.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => socket::Shutdown::Read,
            Shutdown::Write => socket::Shutdown::Write,
            Shutdown::Both => socket::Shutdown::Both,
        };
        // It fails if the other side has left, and then there is nothing to end.
        let _ = socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&self.0), how);
    }

    /// Lets waits in either direction fail after `limit`; `None`: never.
    pub fn set_time_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        let seconds = limit.map_or(0, |l| l.as_secs() as i64);
        let micros = limit.map_or(0, |l| i64::from(l.subsec_micros().max(1)));
        let limit = TimeVal::new(seconds, micros);
        setsockopt(self, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(self, sockopt::SendTimeout, &limit)?;
        Ok(())
    }

    /// Sends some bytes of the parts; see [`sys::send`].
    pub fn send(&self, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        loop {
            match sys::send(self, parts, wait) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Sends all, waiting as long as the time limit lets it.
    pub fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send(&[IoSlice::new(bytes)], true)?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    fn receive(
        &self,
        payload: &mut Vec<u8>,
        wanted: usize,
        more: &mut [u8],
    ) -> io::Result<(usize, usize)> {
        loop {
            match sys::receive(self, payload, wanted, more) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok((0, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                other => return other,
            }
        }
    }
}

/// What has been received and not been taken yet.
pub(super) struct Inbox<'a> {
    socket: &'a Socket,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes received at once.
    window: usize,
    deadline: Option<Instant>,
}

impl<'a> Inbox<'a> {
    pub fn new(socket: &'a Socket) -> Self {
        Self {
            socket,
            bytes: vec![0; RECEIVE_BYTES],
            start: 0,
            end: 0,
            window: RECEIVE_BYTES,
            deadline: None,
        }
    }

    /// Receiving fails after this time, however little is missing.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.deadline = deadline;
        self.renew_time_limit()
    }

    fn renew_time_limit(&self) -> io::Result<()> {
        let limit = self
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if limit == Some(Duration::ZERO) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_time_limit(limit)
    }

    /// Bytes that can be taken without waiting.
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// The first bytes, if that many are there.
    pub fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.bytes[self.start..self.end].first_chunk()
    }

    /// Drops bytes that are there.
    pub fn skip(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Waits for more bytes, up to the size of the buffer.
    pub fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.deadline.is_some() {
            self.renew_time_limit()?;
        }
        let until = RECEIVE_BYTES.min(self.end + self.window);
        let free = &mut self.bytes[self.end..until];
        let (_, received) = self.socket.receive(&mut Vec::new(), 0, free)?;
        self.end += received;
        if self.end == until {
            self.window = RECEIVE_BYTES;
        }
        Ok(())
    }

    /// Takes bytes, waiting for those that are missing, which go straight to their own memory. What
    /// comes behind the last byte stays here.
    pub fn take(&mut self, len: usize) -> io::Result<Bytes> {
        if len >= LARGE_BYTES {
            self.window = NARROW_BYTES;
        }
        let here = len.min(self.len());
        let mut payload = Vec::with_capacity(len);
        payload.extend_from_slice(&self.bytes[self.start..self.start + here]);
        self.skip(here);
        while payload.len() < len {
            if self.deadline.is_some() {
                self.renew_time_limit()?;
            }
            let wanted = len - payload.len();
            let more = &mut self.bytes[..NARROW_BYTES];
            let (_, more) = self.socket.receive(&mut payload, wanted, more)?;
            self.end = more;
        }
        Ok(payload.into())
    }

    /// Reads bytes and throws them away.
    pub fn discard(&mut self, mut len: usize) -> io::Result<()> {
        loop {
            let here = len.min(self.len());
            self.skip(here);
            len -= here;
            if len == 0 {
                return Ok(());
            }
            self.fill()?;
        }
    }
}
