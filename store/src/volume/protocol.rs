//! What goes over a control socket: one JSON document a line (reference: "Control socket").
//!
//! Reading is bounded in bytes and time: neither a hostile nor a hung peer holds more than its own
//! connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VolumeName;

/// Version of the protocol. Answers may get new keys without a new version.
pub const PROTOCOL_VERSION: u32 = 1;
/// Bytes of a line, without its end.
pub const MAX_LINE: usize = 64 << 10;
/// A line that was begun has to be complete after this time, in both directions.
pub(super) const LINE_TIME: Duration = Duration::from_secs(10);

/// A line to the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// What to do.
    pub command: Command,
}

/// What a server of a volume does when asked; see
/// [`Control`](crate::wal_device::control::Control).
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Answered by [`Identity`].
    Hello,
    /// Answered by [`Status`](crate::wal_device::control::Status).
    Status,
    Checkpoint,
    SetCheckpointInterval {
        milliseconds: u64,
    },
    SetOldest {
        lsid: u64,
    },
    /// Answered by [`Marked`].
    Mark,
    Resize {
        bytes: Option<u64>,
    },
    Reset,
    Freeze {
        timeout_ms: Option<u64>,
    },
    Melt,
}

/// A line from the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// What the command tells; an empty object if that is nothing.
    Ok(Value),
    /// Why there is nothing to tell.
    Error(Failure),
}

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub text: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// No request of this protocol.
    BadRequest,
    /// A request of another version.
    UnsupportedVersion,
    /// The volume refused the command, or failed at it.
    Refused,
    /// Too many connections.
    Busy,
}

/// Who serves which volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// [`PROTOCOL_VERSION`] of the server.
    pub version: u32,
    /// Name of the volume.
    pub name: VolumeName,
    /// Uuid of its log, 32 hex digits.
    pub uuid: String,
    /// Process that serves it.
    pub pid: u32,
    /// Path of the data.
    pub data: PathBuf,
    /// Path of the log.
    pub log: PathBuf,
}

/// Answer to [`Command::Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marked {
    pub lsid: u64,
}

/// The lines of a connection.
pub(super) struct Lines {
    stream: UnixStream,
    /// Bytes after the last line.
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(LINE_TIME))?;
        let rest = Vec::new();
        Ok(Self { stream, rest })
    }

    /// The next line, without its end; `None` after the last. `patience` is how long to wait for
    /// its first byte.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a line that is too long or cut off,
    /// [`io::ErrorKind::WouldBlock`] for one that takes too long.
    pub(super) fn read(&mut self, patience: Option<Duration>) -> io::Result<Option<Vec<u8>>> {
        let mut seen = 0;
        let mut deadline = (!self.rest.is_empty()).then(|| Instant::now() + LINE_TIME);
        loop {
            let end = self.rest[seen..].iter().position(|byte| *byte == b'\n');
            let length = end.map_or(self.rest.len(), |end| seen + end);
            if length > MAX_LINE {
                return Err(invalid(&format!("a line of more than {MAX_LINE} bytes")));
            }
            if end.is_some() {
                let mut line: Vec<u8> = self.rest.drain(..=length).collect();
                line.pop();
                return Ok(Some(line));
            }
            seen = length;
            if self.fill(deadline, patience)? == 0 {
                return match seen {
                    0 => Ok(None),
                    _ => Err(invalid("a line without end")),
                };
            }
            deadline = deadline.or_else(|| Some(Instant::now() + LINE_TIME));
        }
    }

    fn fill(&mut self, deadline: Option<Instant>, patience: Option<Duration>) -> io::Result<usize> {
        let limit = match deadline {
            Some(deadline) => Some(deadline.saturating_duration_since(Instant::now())),
            None => patience,
        };
        // A time-out of zero would mean none.
        if limit == Some(Duration::ZERO) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.stream.set_read_timeout(limit)?;
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(bytes) => {
                    self.rest.extend_from_slice(&buffer[..bytes]);
                    return Ok(bytes);
                }
            }
        }
    }

    /// Sends a document as one line.
    pub(super) fn write(&mut self, document: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(document)?;
        line.push(b'\n');
        self.stream.write_all(&line)
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_look_as_documented() {
        for (command, expected) in [
            (Command::Status, json!("status")),
            (
                Command::SetOldest { lsid: 7 },
                json!({"set-oldest": {"lsid": 7}}),
            ),
            (
                Command::Resize { bytes: None },
                json!({"resize": {"bytes": null}}),
            ),
            (
                Command::Freeze {
                    timeout_ms: Some(5),
                },
                json!({"freeze": {"timeout_ms": 5}}),
            ),
        ] {
            let request = Request {
                version: 1,
                command,
            };
            let document = serde_json::to_value(&request).unwrap();
            assert_eq!(document, json!({"version": 1, "command": expected}));
            assert_eq!(
                serde_json::from_value::<Request>(document).unwrap(),
                request
            );
        }
        for bad in [
            json!({"version": 1}),
            json!({"version": 1, "command": "fly"}),
            json!({"version": 1, "command": "status", "more": 1}),
            json!({"version": 1, "command": {"set-oldest": {}}}),
            json!({"version": 1, "command": {"set-oldest": {"lsid": -1}}}),
            json!({"version": 1, "command": {"set-oldest": {"lsid": 1, "lsids": 1}}}),
        ] {
            assert!(
                serde_json::from_value::<Request>(bad.clone()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn lines_come_in_any_pieces_and_are_bounded() {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(stream).unwrap();
        peer.write_all(b"one\n\ntw").unwrap();
        let mut next = || lines.read(None);
        assert_eq!(next().unwrap().unwrap(), b"one");
        assert_eq!(next().unwrap().unwrap(), b"");
        peer.write_all(b"o\ncut").unwrap();
        assert_eq!(next().unwrap().unwrap(), b"two");
        drop(peer);
        assert_eq!(next().unwrap_err().kind(), io::ErrorKind::InvalidData);

        for (length, fits) in [(MAX_LINE, true), (MAX_LINE + 1, false)] {
            let (mut peer, stream) = UnixStream::pair().unwrap();
            // Open to the end: not the end of the stream ends the line.
            let _open = peer.try_clone().unwrap();
            let line = [vec![b'x'; length], vec![b'\n']].concat();
            let writer = std::thread::spawn(move || peer.write_all(&line));
            let read = Lines::new(stream).unwrap().read(None);
            let read = read.map(Option::unwrap_or_default).map_err(|e| e.kind());
            let expected = if fits {
                Ok(length)
            } else {
                Err(io::ErrorKind::InvalidData)
            };
            assert_eq!(read.map(|line| line.len()), expected);
            let _ = writer.join();
        }
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let _open = peer.try_clone().unwrap();
        let writer = std::thread::spawn(move || peer.write_all(&vec![b'x'; 2 * MAX_LINE]));
        let error = Lines::new(stream).unwrap().read(None).unwrap_err();
        assert!(
            error.to_string().contains("more than 65536 bytes"),
            "{error}"
        );
        let _ = writer.join();

        let (peer, stream) = UnixStream::pair().unwrap();
        drop(peer);
        assert_eq!(Lines::new(stream).unwrap().read(None).unwrap(), None);
    }

    #[test]
    fn a_silent_peer_is_given_up() {
        let (_peer, stream) = UnixStream::pair().unwrap();
        let patience = Some(Duration::from_millis(1));
        let error = Lines::new(stream).unwrap().read(patience).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
