//! The server: its exports, listeners and sessions.

use std::collections::{BTreeMap, HashMap};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Address;
use super::listener::Listener;
use super::negotiation::Negotiation;
use super::outbox::Outbox;
use super::proto::MAX_STRING_BYTES;
use super::socket::{Inbox, Socket};
use super::transmission::Transmission;
use crate::block::BlockDevice;
use crate::{Error, Result};

/// Connections that may negotiate beside as many clients as are allowed, so that those too many are
/// told why they are refused.
const SPARE_SESSIONS: usize = 16;

/// What a server grants.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients in transmission, over all exports.
    pub clients: usize,
    /// Requests in flight on a connection.
    pub requests: usize,
    /// Bytes of payloads in flight on a connection. A larger request goes alone.
    pub bytes: usize,
    /// Time for a client to choose an export.
    pub handshake: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 256,
            requests: 1024,
            bytes: 64 << 20,
            handshake: Duration::from_secs(10),
        }
    }
}

/// How a device is exported.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Shown to clients that ask; may be empty.
    pub description: String,
    /// Changes are refused, whatever the device would say.
    pub read_only: bool,
}

#[derive(Clone)]
pub(super) struct Export {
    pub device: Arc<dyn BlockDevice>,
    pub options: ExportOptions,
}

/// Why a client does not get an export.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoEntry {
    #[error("there is none of this name")]
    Unknown,
    #[error("the limit of {0} clients is reached; try again when another one has left")]
    Full(usize),
    #[error("the server is stopping")]
    Stopping,
}

/// A connection.
struct Session {
    socket: Arc<Socket>,
    /// In transmission with this export.
    export: Option<String>,
}

#[derive(Default)]
struct State {
    exports: BTreeMap<String, Export>,
    sessions: HashMap<u64, Session>,
    last_session: u64,
    stopping: bool,
}

impl State {
    fn find(&self, name: &str) -> Result<Export, NoEntry> {
        if self.stopping {
            return Err(NoEntry::Stopping);
        }
        self.exports.get(name).cloned().ok_or(NoEntry::Unknown)
    }
}

pub(super) struct Inner {
    pub limits: Limits,
    state: Mutex<State>,
    /// A session has ended.
    left: Condvar,
}

impl Inner {
    /// Names and descriptions of the exports.
    pub fn list(&self) -> Vec<(String, String)> {
        let state = self.state.lock();
        let exports = state.exports.iter();
        exports
            .map(|(name, export)| (name.clone(), export.options.description.clone()))
            .collect()
    }

    pub fn find(&self, name: &str) -> Result<Export, NoEntry> {
        self.state.lock().find(name)
    }

    /// Makes a session a client of an export.
    pub fn enter(&self, session: u64, name: &str) -> Result<Export, NoEntry> {
        let mut state = self.state.lock();
        let export = state.find(name)?;
        let sessions = state.sessions.values();
        let clients = sessions.filter(|session| session.export.is_some()).count();
        if clients >= self.limits.clients {
            return Err(NoEntry::Full(self.limits.clients));
        }
        // A session that is gone from the map has been cut off.
        let session = state.sessions.get_mut(&session).ok_or(NoEntry::Stopping)?;
        session.export = Some(name.to_owned());
        Ok(export)
    }

    /// Serves a connection by a thread of its own. It is closed at once if there are too many.
    pub fn serve(self: &Arc<Self>, socket: Socket) {
        let socket = Arc::new(socket);
        let Some(id) = self.open_session(&socket) else {
            return;
        };
        let inner = Arc::clone(self);
        let session = thread::Builder::new().name("nbd-reader".into());
        let started = session.spawn(move || {
            let _end = EndOfSession { inner: &inner, id };
            inner.session(id, &socket);
        });
        if started.is_err() {
            self.close_session(id);
        }
    }

    fn open_session(&self, socket: &Arc<Socket>) -> Option<u64> {
        let mut state = self.state.lock();
        let most = self.limits.clients.saturating_add(SPARE_SESSIONS);
        if state.stopping || state.sessions.len() >= most {
            return None;
        }
        state.last_session += 1;
        let id = state.last_session;
        let session = Session {
            socket: Arc::clone(socket),
            export: None,
        };
        state.sessions.insert(id, session);
        Some(id)
    }

    fn close_session(&self, id: u64) {
        self.state.lock().sessions.remove(&id);
        self.left.notify_all();
    }

    fn session(&self, id: u64, socket: &Arc<Socket>) {
        let mut inbox = Inbox::new(socket);
        let negotiation = Negotiation::new(self, id, socket, &mut inbox);
        // What went wrong in the negotiation has been told to the client, as far as it listens.
        if let Ok(Some(agreement)) = negotiation.run() {
            let outbox = Outbox::new(Arc::clone(socket), self.limits);
            Transmission::new(&mut inbox, outbox, &agreement).run();
        }
        socket.shutdown(Shutdown::Both);
    }

    /// Ends the sessions that `which` names, by their export: what has been asked is answered as far
    /// as that is done within `grace`, then they are cut off. Returns how many were.
    fn end(&self, which: impl Fn(Option<&str>) -> bool, grace: Duration) -> usize {
        let deadline = Instant::now().checked_add(grace);
        let mut state = self.state.lock();
        let sessions = state.sessions.iter();
        let ending: Vec<u64> = sessions
            .filter(|(_, session)| which(session.export.as_deref()))
            .map(|(id, _)| *id)
            .collect();
        let shut = |state: &State, how| {
            let sessions = ending.iter().filter_map(|id| state.sessions.get(id));
            sessions.map(|s| s.socket.shutdown(how)).count()
        };
        let mut left = shut(&state, Shutdown::Read);
        while left > 0 {
            let timed_out = match deadline {
                Some(deadline) => self.left.wait_until(&mut state, deadline).timed_out(),
                None => {
                    self.left.wait(&mut state);
                    false
                }
            };
            left = ending
                .iter()
                .filter(|id| state.sessions.contains_key(id))
                .count();
            if timed_out {
                return shut(&state, Shutdown::Both);
            }
        }
        0
    }
}

/// Takes the session off the list, also if its thread panics.
struct EndOfSession<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for EndOfSession<'_> {
    fn drop(&mut self) {
        self.inner.close_session(self.id);
    }
}

/// Serves block devices by NBD at any number of addresses. Dropped, it cuts off its clients.
pub struct Server {
    inner: Arc<Inner>,
    listeners: Mutex<Vec<Listener>>,
}

impl Server {
    /// A server without exports and listeners.
    pub fn new(limits: Limits) -> Self {
        let inner = Inner {
            limits,
            state: Mutex::default(),
            left: Condvar::new(),
        };
        Self {
            inner: Arc::new(inner),
            listeners: Mutex::default(),
        }
    }

    /// Exports a device; the empty name is the default export.
    ///
    /// # Errors
    /// A name in use, longer than 4096 bytes, or with NUL in it; a description of more than 4096
    /// bytes.
    pub fn add(
        &self,
        name: &str,
        device: Arc<dyn BlockDevice>,
        options: ExportOptions,
    ) -> Result<()> {
        for text in [name, &options.description] {
            if text.len() > MAX_STRING_BYTES || text.contains('\0') {
                return Err(Error::Refused(format!(
                    "export {name:?}: expected name and description of at most \
                     {MAX_STRING_BYTES} bytes without NUL"
                )));
            }
        }
        let mut state = self.inner.state.lock();
        if state.exports.contains_key(name) {
            return Err(Error::Refused(format!(
                "export {name:?}: there is already one of this name"
            )));
        }
        let export = Export { device, options };
        state.exports.insert(name.to_owned(), export);
        Ok(())
    }

    /// Ends an export: no client enters; what its clients have asked is answered as far as that is
    /// done within `grace`, then they are cut off. Returns how many were; `None` if there is no such
    /// export. Unless clients were cut off, the server has given the device back when it returns.
    pub fn remove(&self, name: &str, grace: Duration) -> Option<usize> {
        self.inner.state.lock().exports.remove(name)?;
        Some(self.inner.end(|export| export == Some(name), grace))
    }

    /// Number of clients in transmission.
    pub fn clients(&self) -> usize {
        let state = self.inner.state.lock();
        let sessions = state.sessions.values();
        sessions.filter(|session| session.export.is_some()).count()
    }

    /// Listens at an address and returns it, with the port that it got. A socket file is only for
    /// its owner; one that a dead server left is replaced.
    ///
    /// # Errors
    /// The address is in use or cannot be bound.
    pub fn listen(&self, address: &Address) -> Result<Address> {
        let (listener, bound) = Listener::start(address, &self.inner)
            .map_err(|e| Error::Listen(address.to_string(), e))?;
        self.listeners.lock().push(listener);
        Ok(bound)
    }

    /// Stops: no client enters, and the sessions end as in [`Self::remove`]. Returns how many were
    /// cut off.
    pub fn stop(&self, grace: Duration) -> usize {
        self.inner.state.lock().stopping = true;
        self.listeners.lock().clear();
        self.inner.end(|_| true, grace)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
