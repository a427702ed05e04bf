//! The asking side of a control socket (reference: "Control socket").
//!
//! Each call has a connection of its own: nothing goes stale between calls, and nobody is held up
//! by a client that forgot to close.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{LINE_TIME, Lines, Marked};
use super::{
    Answer, Command, Entry, Failure, FailureKind, Identity, PROTOCOL_VERSION, Request, VolumeName,
};
use crate::ldev::{LiveLog, Window};
use crate::wal_device::control::Status;

/// Asks whoever serves a volume.
#[derive(Clone, Debug)]
pub struct ControlClient {
    name: VolumeName,
    path: PathBuf,
    identity: Identity,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("volume {0}: not served: start it (walkeep volume serve {0})")]
    NotServed(VolumeName),
    /// Somebody has the volume's lock, and nobody listens.
    #[error("volume {name}: process {pid} uses it, but does not answer yet or any more")]
    NotAnswering {
        /// The volume.
        name: VolumeName,
        /// The process, 0 if not known.
        pid: u32,
    },
    /// The volume refused, or failed.
    #[error("volume {name}: {text}")]
    Refused {
        /// The volume.
        name: VolumeName,
        /// Why.
        text: String,
    },
    /// Server and client do not understand each other.
    #[error("volume {name}: control socket: {text}: is it served by the same version of walkeep?")]
    Misunderstood {
        /// The volume.
        name: VolumeName,
        /// What was expected and found.
        text: String,
    },
    /// The connection broke. Whether the command was carried out is not known.
    #[error("{}: cannot {action}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        error: io::Error,
    },
}

type Result<T, E = ControlError> = std::result::Result<T, E>;

impl ControlClient {
    /// Meets the server of a volume.
    ///
    /// # Errors
    /// [`ControlError::NotServed`], or a server of another volume or version.
    pub fn connect(entry: &Entry) -> Result<Self> {
        let (name, path) = (entry.name().clone(), entry.control_path());
        let identity = match call(&name, &path, Command::Hello, Some(LINE_TIME)) {
            Err(ControlError::Broken { error, .. }) if is_nobody(&error) => {
                return Err(nobody(entry));
            }
            other => other?,
        };
        let client = Self {
            name,
            path,
            identity,
        };
        let found = &client.identity;
        if found.name != client.name {
            return Err(client.misunderstood(format!("found volume {}", found.name)));
        }
        Ok(client)
    }

    /// Who serves the volume, as of [`Self::connect`].
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// As of now.
    pub fn status(&self) -> Result<Status> {
        call(&self.name, &self.path, Command::Status, Some(LINE_TIME))
    }

    /// See [`Control::checkpoint`](crate::wal_device::control::Control::checkpoint), also below.
    pub fn checkpoint(&self) -> Result<()> {
        self.act(Command::Checkpoint)
    }

    /// Sets the time between checkpoints.
    pub fn set_checkpoint_interval(&self, interval: Duration) -> Result<()> {
        let milliseconds = to_millis(interval);
        self.act(Command::SetCheckpointInterval { milliseconds })
    }

    /// Forgets the packs before `lsid`.
    pub fn set_oldest(&self, lsid: u64) -> Result<()> {
        self.act(Command::SetOldest { lsid })
    }

    /// Makes the log durable up to its end, and returns that lsid.
    pub fn mark(&self) -> Result<u64> {
        let marked: Marked = call(&self.name, &self.path, Command::Mark, None)?;
        Ok(marked.lsid)
    }

    /// Grows the volume, to the size of its data if `None`.
    pub fn resize(&self, bytes: Option<u64>) -> Result<()> {
        self.act(Command::Resize { bytes })
    }

    /// Begins a new log.
    pub fn reset(&self) -> Result<()> {
        self.act(Command::Reset)
    }

    /// Holds all new writes.
    pub fn freeze(&self, timeout: Option<Duration>) -> Result<()> {
        let timeout_ms = timeout.map(to_millis);
        self.act(Command::Freeze { timeout_ms })
    }

    /// Lets writes go on.
    pub fn melt(&self) -> Result<()> {
        self.act(Command::Melt)
    }

    /// A command may take as long as the disks do.
    fn act(&self, command: Command) -> Result<()> {
        call(&self.name, &self.path, command, None).map(|_: Value| ())
    }

    fn misunderstood(&self, text: String) -> ControlError {
        let name = self.name.clone();
        ControlError::Misunderstood { name, text }
    }
}

impl LiveLog for ControlClient {
    fn window(&self) -> crate::Result<Window> {
        let status = self
            .status()
            .map_err(|e| crate::Error::Refused(e.to_string()))?;
        let positions = status.positions;
        Ok(Window {
            uuid: status.uuid,
            oldest: positions.oldest,
            permanent: positions.permanent,
            latest: positions.latest,
            overflow: status.overflow,
        })
    }
}

fn to_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn nobody(entry: &Entry) -> ControlError {
    let name = entry.name().clone();
    match entry.holder() {
        Ok(Some(pid)) => ControlError::NotAnswering { name, pid },
        _ => ControlError::NotServed(name),
    }
}

fn call<T: DeserializeOwned>(
    name: &VolumeName,
    path: &PathBuf,
    command: Command,
    patience: Option<Duration>,
) -> Result<T> {
    let broken = |action| {
        move |error| ControlError::Broken {
            path: path.clone(),
            action,
            error,
        }
    };
    let misunderstood = |text| {
        let name = name.clone();
        ControlError::Misunderstood { name, text }
    };
    let stream = UnixStream::connect(path).map_err(broken("connect to"))?;
    let mut lines = Lines::new(stream).map_err(broken("talk to"))?;
    let version = PROTOCOL_VERSION;
    lines
        .write(&Request { version, command })
        .map_err(broken("send a command to"))?;
    let line = lines.read(patience).map_err(broken("get an answer from"))?;
    let gone = || broken("get an answer from")(io::ErrorKind::UnexpectedEof.into());
    let answer: Answer = serde_json::from_slice(&line.ok_or_else(gone)?)
        .map_err(|e| misunderstood(format!("expected an answer, found: {e}")))?;
    match answer {
        Answer::Ok(value) => serde_json::from_value(value)
            .map_err(|e| misunderstood(format!("expected another answer, found: {e}"))),
        Answer::Error(Failure { kind, text }) => Err(match kind {
            FailureKind::Refused | FailureKind::Busy => ControlError::Refused {
                name: name.clone(),
                text,
            },
            FailureKind::BadRequest | FailureKind::UnsupportedVersion => misunderstood(text),
        }),
    }
}
