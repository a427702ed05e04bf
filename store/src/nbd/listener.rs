//! Listening sockets, with a thread for each.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use super::Address;
use super::server::Inner;
use super::socket::Socket;

/// Rest after an `accept` that failed for want of descriptors or memory.
const REST: Duration = Duration::from_millis(100);

enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Kind {
    fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Unix(listener) => Ok(listener.accept()?.0.into()),
            Self::Tcp(listener) => listener.accept()?.0.try_into(),
        }
    }

    fn descriptor(&self) -> RawFd {
        match self {
            Self::Unix(listener) => listener.as_raw_fd(),
            Self::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

/// A thread that accepts connections. Dropped, it stops, and removes its socket file.
pub(super) struct Listener {
    kind: Arc<Kind>,
    thread: Option<JoinHandle<()>>,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens, and serves what comes.
    pub fn start(address: &Address, server: &Arc<Inner>) -> io::Result<(Self, Address)> {
        let (kind, bound, file) = bind(address)?;
        let kind = Arc::new(kind);
        let mut listener = Self {
            kind: Arc::clone(&kind),
            thread: None,
            file,
        };
        let server = Arc::clone(server);
        let thread = thread::Builder::new().name("nbd-listener".into());
        listener.thread = Some(thread.spawn(move || accept_all(&kind, &server))?);
        Ok((listener, bound))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Wakes `accept`, which then fails for good.
        let _ = socket::shutdown(self.kind.descriptor(), socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(file) = self.file.take() {
            file.remove();
        }
    }
}

fn accept_all(kind: &Kind, server: &Arc<Inner>) {
    loop {
        match kind.accept() {
            Ok(socket) => server.serve(socket),
            Err(e) => match e.raw_os_error() {
                // It has been shut down.
                Some(libc::EINVAL | libc::EBADF) => return,
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    thread::sleep(REST);
                }
                // The client has left before it was accepted.
                _ => {}
            },
        }
    }
}

fn bind(address: &Address) -> io::Result<(Kind, Address, Option<SocketFile>)> {
    match address {
        Address::Unix(path) => {
            let listener = bind_file(path)?;
            let file = SocketFile::of(path)?;
            // Clients may stand in another directory.
            let bound = Address::Unix(std::path::absolute(path)?);
            Ok((Kind::Unix(listener), bound, Some(file)))
        }
        Address::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port))?;
            let port = listener.local_addr()?.port();
            let host = host.clone();
            Ok((Kind::Tcp(listener), Address::Tcp { host, port }, None))
        }
    }
}

fn bind_file(path: &Path) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let family = AddressFamily::Unix;
    let descriptor: OwnedFd =
        socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Nobody can connect before it listens.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket::listen(&descriptor, Backlog::MAXCONN)?;
    Ok(descriptor.into())
}

/// Removes the socket file of a server that is no more.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            Err(e) => Err(e),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another server listens there; stop it or choose another path",
            )),
        },
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "expected a socket or nothing, found another file; choose another path",
        )),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// A socket file of ours.
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self {
            path: std::path::absolute(path)?,
            id: (meta.dev(), meta.ino()),
        })
    }

    /// Removes it, unless another server has replaced it.
    fn remove(self) {
        let ours = Self::of(&self.path).is_ok_and(|now| now.id == self.id);
        if ours {
            // Whatever stays is stale, and the next server replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
