//! The serving side of a control socket (reference: "Control socket").
//!
//! A thread for each connection carries out its requests one by one; the WAL device orders those of
//! different connections.

use std::collections::HashMap;
use std::fs::Permissions;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use super::protocol::{Lines, Marked};
use super::{Answer, Command, Entry, Failure, FailureKind, Identity, PROTOCOL_VERSION, Request};
use crate::wal_device::control::{Control, Refused};
use crate::{Error, Result};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// A connection without requests is closed after this time.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// Serves the control socket of a volume until dropped. Only the holder of the volume's lock may
/// start one: it takes the place of a socket that a killed server left.
pub struct ControlServer {
    shared: Arc<Shared>,
    waker: UnixStream,
    acceptor: Option<JoinHandle<()>>,
    path: PathBuf,
}

struct Shared {
    control: Arc<dyn Control>,
    identity: Identity,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next_id: u64,
    open: HashMap<u64, (UnixStream, JoinHandle<()>)>,
}

impl ControlServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// The socket cannot be made in the volume's folder.
    pub fn start(entry: &Entry, control: Arc<dyn Control>) -> Result<Self> {
        let path = entry.control_path();
        let fail = |e| Error::file(&path, "listen on", e);
        let listener = bind(&path).map_err(fail)?;
        let (waker, woken) = UnixStream::pair().map_err(fail)?;
        let identity = Identity {
            version: PROTOCOL_VERSION,
            name: entry.name().clone(),
            uuid: String::new(),
            pid: std::process::id(),
            data: entry.config.data.clone(),
            log: entry.config.log.clone(),
        };
        let shared = Arc::new(Shared {
            control,
            identity,
            connections: Mutex::default(),
        });
        let acceptor = {
            let shared = shared.clone();
            spawn("control", move || accept_all(&shared, &listener, &woken)).map_err(fail)?
        };
        Ok(Self {
            shared,
            waker,
            acceptor: Some(acceptor),
            path,
        })
    }
}

impl Drop for ControlServer {
    /// Lets commands that are being carried out end, and closes all connections.
    fn drop(&mut self) {
        // The acceptor may be gone already.
        let _ = self.waker.shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let open = std::mem::take(&mut self.shared.connections.lock().open);
        for (stream, _) in open.values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        for (_, thread) in open.into_values() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// The folder keeps others out until the socket has its mode.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept_all(shared: &Arc<Shared>, listener: &UnixListener, woken: &UnixStream) {
    loop {
        let mut wait = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted, or out of memory: the next look is as good.
        let _ = poll(&mut wait, PollTimeout::NONE);
        if wait[1].any() != Some(false) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => Shared::begin(shared, stream),
            // Out of descriptors: the peer waits, and a spin would not help it.
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(100));
            }
            Err(_) => {}
        }
    }
}

impl Shared {
    /// A connection that cannot get a thread is dropped: the peer sees it closed.
    fn begin(shared: &Arc<Self>, stream: UnixStream) {
        let mut connections = shared.connections.lock();
        if connections.open.len() >= MAX_CONNECTIONS {
            let text = format!("expected at most {MAX_CONNECTIONS} connections: try again later");
            // A small write into an empty buffer does not block.
            let _ = Lines::new(stream).and_then(|mut l| l.write(&failure(FailureKind::Busy, text)));
            return;
        }
        let id = connections.next_id;
        connections.next_id += 1;
        let Ok(kept) = stream.try_clone() else { return };
        let own = shared.clone();
        let thread = spawn("control-client", move || {
            // Whatever ends a connection is its peer's to know.
            let _ = own.converse(stream);
            own.connections.lock().open.remove(&id);
        });
        if let Ok(thread) = thread {
            connections.open.insert(id, (kept, thread));
        }
    }

    fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let mut lines = Lines::new(stream)?;
        loop {
            match lines.read(Some(IDLE_TIME)) {
                Ok(Some(line)) => lines.write(&self.answer(&line))?,
                Ok(None) => return Ok(()),
                // What follows cannot be told from the rest of the line.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    let text = format!("expected one JSON document a line, found {e}");
                    return lines.write(&failure(FailureKind::BadRequest, text));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn answer(&self, line: &[u8]) -> Answer {
        let command = match parse(line) {
            Ok(command) => command,
            Err(failure) => return Answer::Error(failure),
        };
        match self.carry_out(command) {
            Ok(value) => Answer::Ok(value),
            Err(Refused(text)) => failure(FailureKind::Refused, text),
        }
    }

    fn carry_out(&self, command: Command) -> Result<Value, Refused> {
        let control = &self.control;
        let done = |()| json!({});
        match command {
            Command::Hello => document(&Identity {
                uuid: control.status().uuid,
                ..self.identity.clone()
            }),
            Command::Status => document(&control.status()),
            Command::Checkpoint => control.checkpoint().map(done),
            Command::SetCheckpointInterval { milliseconds } => control
                .set_checkpoint_interval(Duration::from_millis(milliseconds))
                .map(done),
            Command::SetOldest { lsid } => control.set_oldest(lsid).map(done),
            Command::Mark => document(&Marked {
                lsid: control.mark()?,
            }),
            Command::Resize { bytes } => control.resize(bytes).map(done),
            Command::Reset => control.reset().map(done),
            Command::Freeze { timeout_ms } => control
                .freeze(timeout_ms.map(Duration::from_millis))
                .map(done),
            Command::Melt => control.melt().map(done),
        }
    }
}

/// The version is looked at first: what else a request of another version says is unknown.
fn parse(line: &[u8]) -> Result<Command, Failure> {
    let bad = |e: serde_json::Error| Failure {
        kind: FailureKind::BadRequest,
        text: format!("expected a request, found: {e}"),
    };
    let document: Value = serde_json::from_slice(line).map_err(bad)?;
    match document.get("version").and_then(Value::as_u64) {
        Some(version) if version != u64::from(PROTOCOL_VERSION) => Err(Failure {
            kind: FailureKind::UnsupportedVersion,
            text: format!("version: expected {PROTOCOL_VERSION}, found {version}"),
        }),
        _ => serde_json::from_value::<Request>(document)
            .map(|request| request.command)
            .map_err(bad),
    }
}

fn document(value: &impl Serialize) -> Result<Value, Refused> {
    serde_json::to_value(value).map_err(|e| Refused(format!("cannot answer: {e}")))
}

fn failure(kind: FailureKind, text: String) -> Answer {
    Answer::Error(Failure { kind, text })
}
