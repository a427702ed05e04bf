//! Where volumes are registered: `<home>/volumes/NAME/` (reference: "Volume folder").
//!
//! A folder appears under the name of its volume complete or not at all, and disappears at once.
//! Names that begin with a dot are folders on their way in or out; nobody looks at them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{VolumeConfig, VolumeLock, VolumeName};
use crate::nbd::Address;
use crate::nbd::MAX_SOCKET_PATH;
use crate::{Error, Result};

const CONFIG: &str = "volume.toml";
const CONTROL: &str = "control.sock";

/// The folder under which volumes are registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

/// A registered volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    folder: PathBuf,
    /// What is registered.
    pub config: VolumeConfig,
}

/// What became of data and log when a volume was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Files that were removed.
    pub removed: Vec<PathBuf>,
    /// Paths that were left: all without `purge`, with it what is no regular file.
    pub left: Vec<PathBuf>,
}

impl Home {
    /// The folder asked for, else what `WALKEEP_HOME` says, else `/var/lib/walkeep` for root, and
    /// `walkeep` in the XDG state folder for others.
    ///
    /// # Errors
    /// None of the variables `env` knows says where.
    pub fn choose(
        asked: Option<PathBuf>,
        env: impl Fn(&str) -> Option<OsString>,
        is_root: bool,
    ) -> Result<Self> {
        let set = |name: &str| {
            let value = env(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        if let Some(path) = asked.or_else(|| set("WALKEEP_HOME")) {
            let path = std::path::absolute(&path).map_err(|e| Error::file(&path, "find", e))?;
            return Ok(Self(path));
        }
        if is_root {
            return Ok(Self("/var/lib/walkeep".into()));
        }
        // The XDG specification has relative paths ignored.
        let state = set("XDG_STATE_HOME").filter(|path| path.is_absolute());
        let state = state.or_else(|| set("HOME").map(|home| home.join(".local/state")));
        let unset = "the home of volumes: expected WALKEEP_HOME, XDG_STATE_HOME or HOME to be set, \
                     found none: name it (--home DIR)";
        state
            .map(|state| Self(state.join("walkeep")))
            .ok_or_else(|| Error::Refused(unset.to_owned()))
    }

    /// As [`Self::choose`], for this process.
    pub fn of_process(asked: Option<PathBuf>) -> Result<Self> {
        let is_root = nix::unistd::geteuid().is_root();
        Self::choose(asked, |name| std::env::var_os(name), is_root)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }

    fn folder(&self, name: &VolumeName) -> PathBuf {
        self.volumes().join(name.as_str())
    }

    /// True if there is a volume of that name, even one whose registration is damaged.
    pub fn has(&self, name: &VolumeName) -> bool {
        self.folder(name).exists()
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none.
    pub fn find(&self, name: &VolumeName) -> Result<Entry> {
        let folder = self.folder(name);
        if !folder.exists() {
            return Err(Error::Refused(format!(
                "{}: expected a volume {name}, found none (`walkeep volume list` shows all)",
                self.0.display()
            )));
        }
        let config = VolumeConfig::load(&folder.join(CONFIG), name)?;
        Ok(Entry { folder, config })
    }

    /// All volumes by name. A damaged registration does not hide the others.
    pub fn list(&self) -> Result<Vec<(VolumeName, Result<Entry>)>> {
        let dir = self.volumes();
        let fail = |e| Error::file(&dir, "list", e);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(fail(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.parse::<VolumeName>().ok()),
            );
        }
        names.sort();
        let found = names.into_iter().map(|name| {
            let entry = self.find(&name);
            (name, entry)
        });
        Ok(found.collect())
    }

    /// Refuses a name that is taken, or a home so deep that sockets have no place in it.
    pub(super) fn check_free(&self, name: &VolumeName) -> Result<()> {
        let folder = self.folder(name);
        if folder.exists() {
            let folder = folder.display();
            let text = format!("{folder}: expected a new name, found that volume {name} exists");
            return Err(Error::Refused(text));
        }
        let bytes = folder.join(CONTROL).as_os_str().len();
        if bytes > MAX_SOCKET_PATH {
            return Err(Error::Refused(format!(
                "{}: expected a path of at most {MAX_SOCKET_PATH} bytes for {CONTROL}, found \
                 {bytes}: choose a shorter home",
                folder.display()
            )));
        }
        Ok(())
    }

    /// Registers a volume.
    ///
    /// # Errors
    /// The name is taken.
    pub fn register(&self, config: VolumeConfig) -> Result<Entry> {
        self.check_free(&config.name)?;
        let volumes = self.volumes();
        make_folder(&volumes).map_err(|e| Error::file(&volumes, "make", e))?;
        let fail = |e| Error::file(&volumes, "register a volume in", e);
        let staged = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&volumes)
            .map_err(fail)?;
        config.store(&staged.path().join(CONFIG))?;
        let folder = self.folder(&config.name);
        // Fails where somebody else was faster: a folder with content is not replaced.
        fs::rename(staged.path(), &folder).map_err(fail)?;
        drop(staged.keep());
        sync_folder(&volumes).map_err(fail)?;
        Ok(Entry { folder, config })
    }

    /// Deletes the registration of a volume that nobody serves, and with `purge` also the files of
    /// its data and log; block devices are never touched.
    pub fn delete(&self, name: &VolumeName, purge: bool) -> Result<Purged> {
        let folder = self.folder(name);
        // Without a lock file in a folder that is missing.
        let config = match self.find(name) {
            Err(error) if purge || !folder.exists() => return Err(error),
            found => found.ok().map(|entry| entry.config),
        };
        let _lock = VolumeLock::take(&folder.join("lock"))?;
        let mut purged = Purged::default();
        for path in config.into_iter().flat_map(|c| [c.data, c.log]) {
            if purge && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) {
                fs::remove_file(&path).map_err(|e| Error::file(&path, "remove", e))?;
                purged.removed.push(path);
            } else {
                purged.left.push(path);
            }
        }
        self.unregister(&folder)
            .map_err(|e| Error::file(&folder, "delete", e))?;
        Ok(purged)
    }

    fn unregister(&self, folder: &Path) -> io::Result<()> {
        let volumes = self.volumes();
        let trash = tempfile::Builder::new()
            .prefix(".old-")
            .tempdir_in(&volumes)?;
        fs::rename(folder, trash.path())?;
        sync_folder(&volumes)?;
        trash.close()
    }
}

/// Makes a folder that only its owner may look into, and those above it.
fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.ancestors()
        .take(3)
        .filter(|above| !above.as_os_str().is_empty())
        .try_for_each(sync_folder)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Entry {
    /// The name.
    pub fn name(&self) -> &VolumeName {
        &self.config.name
    }

    /// The volume's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is registered, as a file.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join(CONFIG)
    }

    /// The file of the [`VolumeLock`].
    pub fn lock_path(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// The control socket of whoever serves the volume.
    pub fn control_path(&self) -> PathBuf {
        self.folder.join(CONTROL)
    }

    /// What the WAL device remembers besides its superblock.
    pub fn state_path(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where NBD clients find the volume.
    pub fn nbd_address(&self) -> Address {
        let own = || Address::Unix(self.folder.join("nbd.sock"));
        self.config.nbd.clone().unwrap_or_else(own)
    }

    /// Takes the volume for this process.
    pub fn lock(&self) -> Result<VolumeLock> {
        VolumeLock::take(&self.lock_path())
    }

    /// The process that serves the volume, or works on it otherwise; see [`VolumeLock::holder`].
    pub fn holder(&self) -> Result<Option<u32>> {
        VolumeLock::holder(&self.lock_path())
    }
}

#[cfg(test)]
mod tests {
    use walkeep_wire::PhysicalBlock;

    use super::*;

    fn config(dir: &Path, name: &str) -> VolumeConfig {
        let [data, log] = ["data", "log"].map(|kind| dir.join(format!("{name}.{kind}")));
        VolumeConfig::new(name.parse().unwrap(), data, log, PhysicalBlock::B512)
    }

    #[test]
    fn the_home_is_what_is_said_first() {
        let all = |name: &str| Some(OsString::from(format!("/{name}")));
        let some = |known: &'static [(&str, &str)]| {
            move |name: &str| {
                let found = known.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| value.into())
            }
        };
        let path = |home: Result<Home>| home.unwrap().path().to_owned();
        assert_eq!(
            path(Home::choose(Some("/x".into()), all, true)),
            Path::new("/x")
        );
        assert_eq!(
            path(Home::choose(None, all, true)),
            Path::new("/WALKEEP_HOME")
        );
        let none = some(&[("WALKEEP_HOME", "")]);
        assert_eq!(
            path(Home::choose(None, none, true)),
            Path::new("/var/lib/walkeep")
        );
        let xdg = some(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]);
        assert_eq!(
            path(Home::choose(None, xdg, false)),
            Path::new("/s/walkeep")
        );
        let relative = some(&[("XDG_STATE_HOME", "s"), ("HOME", "/h")]);
        let default = Path::new("/h/.local/state/walkeep");
        assert_eq!(path(Home::choose(None, relative, false)), default);
        assert!(Home::choose(None, some(&[]), false).is_err());
    }

    #[test]
    fn what_is_registered_is_found_until_it_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().join("deep/home"));
        assert!(home.list().unwrap().is_empty());
        for name in ["b", "a"] {
            home.register(config(dir.path(), name)).unwrap();
        }
        let again = home.register(config(dir.path(), "a")).unwrap_err();
        assert!(again.to_string().contains("volume a exists"), "{again}");
        let names = |home: &Home| {
            let list = home.list().unwrap().into_iter();
            list.map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&home), ["a", "b"]);
        let entry = home.find(&"a".parse().unwrap()).unwrap();
        assert_eq!(entry.config, config(dir.path(), "a"));
        let purged = home.delete(entry.name(), false).unwrap();
        assert_eq!(purged.left, [entry.config.data, entry.config.log]);
        assert_eq!(names(&home), ["b"]);
        assert_eq!(fs::read_dir(home.volumes()).unwrap().count(), 1);
        let missing = home.delete(&"a".parse().unwrap(), false).unwrap_err();
        assert!(missing.to_string().contains("expected a volume a"));
    }

    #[test]
    fn a_damaged_registration_hides_no_other_and_can_be_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().to_owned());
        let broken = home.register(config(dir.path(), "a")).unwrap();
        home.register(config(dir.path(), "b")).unwrap();
        fs::write(broken.config_path(), "nonsense").unwrap();
        let list = home.list().unwrap();
        assert!(list[0].1.is_err() && list[1].1.is_ok());
        assert!(home.delete(broken.name(), true).is_err());
        home.delete(broken.name(), false).unwrap();
        assert!(!home.has(broken.name()));
    }

    #[test]
    fn a_volume_in_use_is_not_deleted_and_purging_spares_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home(dir.path().to_owned());
        let entry = home.register(config(dir.path(), "a")).unwrap();
        fs::write(&entry.config.data, "x").unwrap();
        fs::write(dir.path().join("elsewhere"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &entry.config.log).unwrap();
        let lock = entry.lock().unwrap();
        assert!(home.delete(entry.name(), true).is_err());
        assert!(entry.config.data.exists());
        drop(lock);
        let purged = home.delete(entry.name(), true).unwrap();
        assert_eq!(purged.removed, [entry.config.data]);
        assert_eq!(purged.left, [entry.config.log]);
        assert!(dir.path().join("elsewhere").exists());
    }
}
