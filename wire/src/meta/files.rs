//! What the metadata files of a volume hold (reference: "Volume files").
//!
//! Each file is one serialised value that fills it: read with [`Serial::from_bytes`], written with
//! [`Serial::to_bytes`]. Besides the types here, `done` is a [`MetaLsidGid`](super::MetaLsidGid),
//! `base` a [`MetaState`](super::MetaState), `full_repl_state` a
//! [`FullReplState`](super::FullReplState), `<archive>.archive` a [`HostInfo`](super::HostInfo), and
//! `uuid` and `archive_uuid` are [`Uuid`]s. `queue` is a [`QueueFile`](super::QueueFile).

use std::fmt;

use super::name::parse_gid;
use crate::error::{Flaw, demand};
use crate::serial::{Reader, Serial, Writer};
use crate::units::Uuid;

/// Defines the states of a kind of server with their stored names.
macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$state_doc:meta])* $state:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$state_doc])* $state,)+
        }

        impl $name {
            /// All states.
            pub const ALL: &'static [Self] = &[$(Self::$state),+];

            /// The name, as it is stored.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$state => stringify!($state)),+ }
            }

            /// The state of a name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|state| state.name() == name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl Serial for $name {
            fn put(&self, writer: &mut Writer) {
                writer.put_string(self.name());
            }

            fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
                let at = reader.offset();
                let name = reader.string("state")?;
                Self::from_name(name).ok_or_else(|| {
                    let names: Vec<_> = Self::ALL.iter().map(|state| state.name()).collect();
                    Flaw::new(at, "state", names.join(", "), name.escape_debug())
                })
            }
        }
    };
}

states! {
    /// The file `state` of a volume on a storage. Clear is a volume without directory.
    StorageState {
        /// Waits for the first synchronisation.
        SyncReady,
        /// Does not send.
        Stopped,
        /// Sends its log.
        Target,
        /// Follows, and drops its log.
        Standby,
    }
}

states! {
    /// The state of a volume on a proxy. It has no file: a directory means one of these.
    ProxyState {
        /// Receives and sends.
        Started,
        /// Does neither.
        Stopped,
    }
}

states! {
    /// The file `state` of a volume on an archive.
    ArchiveState {
        /// Waits for the first synchronisation.
        SyncReady,
        /// Has a base and receives diffs.
        Archived,
        /// Receives nothing.
        Stopped,
    }
}

/// The file `path` of a storage: where the volume's device is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DevicePath(String);

impl DevicePath {
    /// Refuses the empty path and NUL characters.
    pub fn new(path: &str) -> Result<Self, Flaw> {
        let is_path = !path.is_empty() && !path.contains('\0');
        demand!(is_path, 0, "device path", "a path", path.escape_debug());
        Ok(Self(path.to_owned()))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serial for DevicePath {
    fn put(&self, writer: &mut Writer) {
        writer.put_string(&self.0);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let at = reader.offset();
        Self::new(reader.string("device path")?).map_err(|flaw| flaw.shifted(at))
    }
}

/// The file `size` of a proxy: the size of the volume in logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeSize(pub u64);

impl Serial for VolumeSize {
    fn put(&self, writer: &mut Writer) {
        writer.put_u64(self.0);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.u64("volume size").map(Self)
    }
}

/// The file `<gid>.cold` of an archive: the Unix time of a cold snapshot, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColdTime(pub u64);

impl Serial for ColdTime {
    fn put(&self, writer: &mut Writer) {
        writer.put_u64(self.0);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.u64("cold snapshot timestamp").map(Self)
    }
}

impl Serial for Uuid {
    fn put(&self, writer: &mut Writer) {
        writer.put_raw(&self.0);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.array("uuid").map(Self)
    }
}

/// `<gid>.cold`.
pub fn cold_name(gid: u64) -> String {
    format!("{gid}.cold")
}

/// The gid of a name that [`cold_name`] gives; none for other names.
pub fn parse_cold_name(name: &str) -> Option<u64> {
    parse_gid(name.strip_suffix(".cold")?).ok()
}

/// `<archive>.archive`.
pub fn archive_name(archive: &str) -> String {
    format!("{archive}.archive")
}

/// The archive of a name that [`archive_name`] gives; none for other names.
pub fn parse_archive_name(name: &str) -> Option<&str> {
    name.strip_suffix(".archive")
        .filter(|archive| !archive.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn states_are_stored_by_name() {
        assert_eq!(StorageState::Target.to_bytes(), b"\x06Target");
        for state in StorageState::ALL {
            assert_eq!(StorageState::from_bytes(&state.to_bytes()), Ok(*state));
        }
        for state in ArchiveState::ALL {
            assert_eq!(ArchiveState::from_bytes(&state.to_bytes()), Ok(*state));
        }
        assert!(ArchiveState::from_bytes(b"\x06Target").is_err());
        assert!(StorageState::from_bytes(b"\x06Target\0").is_err());
        assert_eq!(ProxyState::from_name("Started"), Some(ProxyState::Started));
    }

    #[test]
    fn a_uuid_file_has_sixteen_bytes() {
        let uuid = Uuid(*b"0123456789abcdef");
        assert_eq!(uuid.to_bytes(), b"0123456789abcdef");
        assert_eq!(Uuid::from_bytes(b"0123456789abcdef"), Ok(uuid));
        assert!(Uuid::from_bytes(b"0123456789abcde").is_err());
        assert!(Uuid::from_bytes(b"0123456789abcdef0").is_err());
    }

    #[test]
    fn names_of_numbered_files() {
        assert_eq!(parse_cold_name(&cold_name(12)), Some(12));
        assert_eq!(parse_cold_name("012.cold"), None);
        assert_eq!(parse_cold_name(".cold"), None);
        assert_eq!(parse_archive_name(&archive_name("a0")), Some("a0"));
        assert_eq!(parse_archive_name(".archive"), None);
    }

    #[test]
    fn a_path_is_not_empty() {
        assert!(DevicePath::from_bytes(&[0]).is_err());
        assert!(DevicePath::from_bytes(&[1, 0]).is_err());
        let path = DevicePath::new("/dev/walb/0").unwrap();
        assert_eq!(DevicePath::from_bytes(&path.to_bytes()), Ok(path));
    }

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64) {
            prop_assert_eq!(ColdTime::from_bytes(&ColdTime(value).to_bytes()), Ok(ColdTime(value)));
            let size = VolumeSize(value);
            prop_assert_eq!(VolumeSize::from_bytes(&size.to_bytes()), Ok(size));
        }
    }
}
