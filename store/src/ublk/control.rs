//! The control device of ublk: devices made, started, stopped, deleted and listed.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::abi::{self, DeviceInfo, Parameters};
use super::raw::{ControlRing, Plain};
use super::{Error, Result};

const CONTROL: &str = "/dev/ublk-control";

/// The way to the driver.
pub struct Control {
    ring: Mutex<ControlRing>,
}

/// A device that the driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The N of `/dev/ublkbN`.
    pub id: u32,
    /// It is a block device of this host now.
    pub is_live: bool,
    /// The process that made it; `None` if that was not a Walkeep.
    pub maker: Option<u32>,
    /// That process still runs.
    pub is_served: bool,
}

impl Known {
    /// Left by a Walkeep that was killed.
    pub const fn is_stale(&self) -> bool {
        self.maker.is_some() && !self.is_live && !self.is_served
    }
}

/// The block device of an id.
pub(super) fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// The device by which the server of an id serves it.
pub(super) fn server_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

impl Control {
    /// Opens the control device and asks the driver what it can do.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoPermission`], [`Error::NoRing`], [`Error::TooOld`].
    pub fn open() -> Result<Self> {
        let control = open_at(Path::new(CONTROL))?;
        let ring = ControlRing::new(control).map_err(Error::NoRing)?;
        let control = Self {
            ring: Mutex::new(ring),
        };
        let mut features = 0u64;
        let asked = control.call(abi::GET_FEATURES, abi::ANY_DEVICE, &mut features);
        check_features(asked.map(|()| features))?;
        Ok(control)
    }

    fn call<T: Plain>(&self, number: u32, device: u32, argument: &mut T) -> io::Result<()> {
        self.ring.lock().call(number, device, argument)
    }

    /// Makes a device and returns its id; it is no block device yet.
    pub(super) fn add(&self, queues: u16, depth: u16, max_request: u32) -> Result<u32> {
        let mut info = DeviceInfo {
            queues,
            depth,
            max_io_bytes: max_request,
            device: abi::ANY_DEVICE,
            flags: abi::USER_COPY | abi::IOCTL_ENCODE,
            server_flags: abi::owner_mark(std::process::id()),
            ..DeviceInfo::default()
        };
        self.call(abi::ADD_DEV, abi::ANY_DEVICE, &mut info)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Error::NoPermission,
                _ => Error::Failed("add a device".into(), e),
            })?;
        // The driver may grant less than was asked for; it says so and never more.
        if (info.queues, info.depth) != (queues, depth) {
            let _ = self.remove(info.device);
            return Err(Error::Refused(format!(
                "ublk: expected {queues} queues of {depth} requests, found {} of {}",
                info.queues, info.depth
            )));
        }
        Ok(info.device)
    }

    pub(super) fn set_parameters(&self, id: u32, mut parameters: Parameters) -> Result<()> {
        self.call(abi::SET_PARAMS, id, &mut parameters)
            .map_err(Error::failed(format!("set size and limits of device {id}")))
    }

    /// Makes the block device. All its queues must be fetching, or this waits for them.
    pub(super) fn start(&self, id: u32) -> Result<()> {
        let pid = u64::from(std::process::id());
        let started = self.ring.lock().call_with(abi::START_DEV, id, pid);
        started.map_err(Error::failed(format!("start device {id}")))
    }

    /// Removes the block device; what it has under way is served before. It need not be started.
    pub(super) fn stop(&self, id: u32) -> io::Result<()> {
        self.ring.lock().call_with(abi::STOP_DEV, id, 0)
    }

    /// Deletes a stopped device that its server has closed. Before Linux 6.9 this waits until nobody
    /// has the block device open.
    pub(super) fn remove(&self, id: u32) -> io::Result<()> {
        let mut ring = self.ring.lock();
        match ring.call_with(abi::DEL_DEV_ASYNC, id, 0) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                ring.call_with(abi::DEL_DEV, id, 0)
            }
            done => done,
        }
    }

    /// The device of an id, if there is one.
    ///
    /// # Errors
    /// If the driver does not say.
    pub fn find(&self, id: u32) -> Result<Option<Known>> {
        let mut info = DeviceInfo::default();
        match self.call(abi::GET_DEV_INFO, id, &mut info) {
            Ok(()) => Ok(Some(known(id, &info))),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => Ok(None),
            Err(e) => Err(Error::Failed(format!("inspect device {id}"), e)),
        }
    }

    /// All devices, of whatever server, by id.
    ///
    /// # Errors
    /// If `/dev` cannot be read or the driver does not answer.
    pub fn list(&self) -> Result<Vec<Known>> {
        let entries = std::fs::read_dir("/dev").map_err(Error::failed("list /dev"))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<u32> = names
            .filter_map(|name| name.strip_prefix("ublkc")?.parse().ok())
            .collect();
        ids.sort_unstable();
        let known = ids.into_iter().map(|id| self.find(id));
        known.filter_map(Result::transpose).collect()
    }

    /// Deletes a device that a killed Walkeep left.
    ///
    /// # Errors
    /// There is none of this id; another program made it; it is served.
    pub fn delete(&self, id: u32) -> Result<()> {
        let path = server_path(id);
        let refuse = |found: &str| {
            Err(Error::Refused(format!(
                "{}: expected a device that a killed walkeep left, found {found}",
                path.display()
            )))
        };
        match self.find(id)? {
            None => refuse("no device of ublk"),
            Some(Known { maker: None, .. }) => {
                refuse("one that another program made: delete it with that program's tool")
            }
            Some(known) if !known.is_stale() => {
                refuse("one that is served: stop its server, which deletes it")
            }
            Some(_) => self
                .remove(id)
                .map_err(Error::failed(format!("delete device {id}"))),
        }
    }
}

fn open_at(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|e| match e.raw_os_error() {
        // A node may outlive its driver.
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Error::NoDriver,
        Some(libc::EACCES | libc::EPERM) => Error::NoPermission,
        _ => Error::Failed(format!("open {}", path.display()), e),
    })
}

fn check_features(features: io::Result<u64>) -> Result<()> {
    const NEEDED: u64 = abi::USER_COPY | abi::IOCTL_ENCODE;
    match features {
        Ok(features) if features & NEEDED == NEEDED => Ok(()),
        Ok(features) => Err(Error::TooOld(format!("features {features:#x}"))),
        Err(e) => match e.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Err(Error::NoPermission),
            // Asking is younger than the driver, and so is the way of asking.
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENODEV) => {
                Err(Error::TooOld("one that cannot tell its features".into()))
            }
            _ => Err(Error::Failed("ask the driver for its features".into(), e)),
        },
    }
}

fn known(id: u32, info: &DeviceInfo) -> Known {
    let maker = abi::owner(info.server_flags);
    Known {
        id,
        is_live: info.state != abi::STATE_DEAD,
        maker,
        is_served: maker.is_some_and(is_running),
    }
}

fn is_running(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else {
        return false;
    };
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_missing_forbidden_or_old_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let missing = open_at(&folder.path().join("control"));
        assert!(matches!(missing, Err(Error::NoDriver)));
        assert!(check_features(Ok(0x1fe)).is_ok());
        let text = |features| check_features(features).unwrap_err().to_string();
        assert!(text(Ok(0x7e)).contains("found features 0x7e"));
        let failed = |errno| Err(io::Error::from_raw_os_error(errno));
        assert!(text(failed(libc::EOPNOTSUPP)).contains("Linux 6.5"));
        assert!(text(failed(libc::EPERM)).contains("as root"));
    }

    #[test]
    fn only_what_a_dead_walkeep_left_is_stale() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let me = std::process::id();
        let stale = |state, server_flags| {
            let info = DeviceInfo {
                state,
                server_flags,
                ..DeviceInfo::default()
            };
            known(0, &info).is_stale()
        };
        assert!(stale(abi::STATE_DEAD, abi::owner_mark(dead)));
        assert!(!stale(1, abi::owner_mark(dead)));
        assert!(!stale(abi::STATE_DEAD, abi::owner_mark(me)));
        assert!(!stale(abi::STATE_DEAD, 0));
    }
}
