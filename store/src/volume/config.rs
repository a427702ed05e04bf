//! `volume.toml`: what is registered of a volume (reference: "Volume folder").

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use walkeep_wire::PhysicalBlock;

use super::VolumeName;
use crate::nbd::Address;
use crate::output::Output;
use crate::{Error, Result};

/// Version of the file's format.
const VERSION: u32 = 1;
/// A file beyond this is no `volume.toml`.
const MAX_BYTES: u64 = 64 << 10;

/// What is registered of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// Version of this format: 1.
    pub(super) version: u32,
    /// The name, also that of the folder.
    pub name: VolumeName,
    /// The data: absolute path of a file or block device.
    pub data: PathBuf,
    /// The log: absolute path of a file or block device.
    pub log: PathBuf,
    /// Physical block size of the log \[bytes\].
    pub block_size: u32,
    /// Where NBD clients find it; `nbd.sock` in the volume's folder if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd: Option<Address>,
    /// Clients may not write.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// What differs from the defaults of the WAL device.
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub options: Options,
}

/// Limits of a WAL device; those that are not set have its defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Milliseconds between checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval_ms: Option<u64>,
    /// MiB of the log that may be written and not durable before it is synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_sync_mib: Option<u32>,
    /// Milliseconds that something written to the log may be not durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_sync_ms: Option<u32>,
    /// MiB of writes in memory that are not on the data yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending_mib: Option<u32>,
}

impl Options {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_false(value: &bool) -> bool {
    !*value
}

impl VolumeConfig {
    /// A volume with default options. Paths must be absolute.
    pub fn new(name: VolumeName, data: PathBuf, log: PathBuf, pbs: PhysicalBlock) -> Self {
        Self {
            version: VERSION,
            name,
            data,
            log,
            block_size: pbs.bytes() as u32,
            nbd: None,
            read_only: false,
            options: Options::default(),
        }
    }

    /// Reads the file of the volume `name`.
    ///
    /// # Errors
    /// An unknown key or version, a value of the wrong kind, a relative path, the name of another
    /// volume.
    pub fn load(path: &Path, name: &VolumeName) -> Result<Self> {
        let read = |e| Error::file(path, "read", e);
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_BYTES {
            let text = format!("expected at most {MAX_BYTES} bytes, found {bytes}");
            return Err(flawed(path, &text));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, name).map_err(|e| flawed(path, &e))
    }

    fn parse(text: &str, name: &VolumeName) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let plain = |e: toml::de::Error| e.to_string().trim_end().to_owned();
        // Before all else: the keys of another version are none of ours to judge.
        let Versioned { version } = toml::from_str(text).map_err(plain)?;
        if version != VERSION {
            return Err(format!("version: expected {VERSION}, found {version}"));
        }
        let config: Self = toml::from_str(text).map_err(plain)?;
        config.check(name).map(|()| config)
    }

    fn check(&self, name: &VolumeName) -> Result<(), String> {
        if self.name != *name {
            return Err(format!("name: expected {name}, found {}", self.name));
        }
        for (key, path) in [("data", &self.data), ("log", &self.log)] {
            if !path.is_absolute() {
                let path = path.display();
                return Err(format!("{key}: expected an absolute path, found {path}"));
            }
        }
        self.pbs().map(drop)
    }

    /// Physical block size of the log.
    ///
    /// # Errors
    /// None of the legal sizes; not from a loaded file.
    pub fn pbs(&self) -> Result<PhysicalBlock, String> {
        PhysicalBlock::new(self.block_size, 0).map_err(|_| {
            format!(
                "block_size: expected 512, 1024, 2048 or 4096, found {}",
                self.block_size
            )
        })
    }

    /// Replaces the file: after a crash it is the old one or the new one.
    pub fn store(&self, path: &Path) -> Result<()> {
        // Paths of other encodings have no place in TOML.
        let text = toml::to_string(self).map_err(|e| flawed(path, &e.to_string()))?;
        let mut output = Output::create(path)?;
        output
            .write_all(text.as_bytes())
            .map_err(|e| output.error("write", e))?;
        output.commit()
    }
}

fn flawed(path: &Path, text: &str) -> Error {
    Error::Refused(format!("{}: {text}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VolumeConfig {
        VolumeConfig {
            nbd: Some("tcp:127.0.0.1:10809".parse().unwrap()),
            read_only: true,
            options: Options {
                max_pending_mib: Some(7),
                ..Options::default()
            },
            ..VolumeConfig::new(
                "db".parse().unwrap(),
                "/a/data".into(),
                "/a/log".into(),
                PhysicalBlock::B4096,
            )
        }
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume.toml");
        let full = config();
        let plain = VolumeConfig::new(
            full.name.clone(),
            full.data.clone(),
            full.log.clone(),
            PhysicalBlock::B512,
        );
        for config in [full, plain] {
            config.store(&path).unwrap();
            assert_eq!(VolumeConfig::load(&path, &config.name).unwrap(), config);
        }
    }

    #[test]
    fn broken_files_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume.toml");
        let good = toml::to_string(&config()).unwrap();
        for (from, to, expected) in [
            ("version = 1", "version = 2", "version: expected 1, found 2"),
            ("version = 1", "", "version"),
            ("read_only", "readonly", "unknown field `readonly`"),
            ("max_pending_mib", "max", "unknown field `max`"),
            ("\"db\"", "\"other\"", "name: expected db, found other"),
            ("\"db\"", "\"../db\"", "volume name: expected"),
            ("/a/log", "log", "log: expected an absolute path, found log"),
            ("4096", "1000", "block_size: expected 512, 1024, 2048 or"),
            ("4096", "-1", "block_size"),
            ("tcp:", "udp:", "expected unix:PATH"),
        ] {
            std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let error = VolumeConfig::load(&path, &config().name).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(expected), "{to}: {error}");
            assert!(error.starts_with(&path.display().to_string()), "{error}");
        }
        std::fs::write(&path, " ".repeat(1 << 20)).unwrap();
        assert!(VolumeConfig::load(&path, &config().name).is_err());
    }
}
