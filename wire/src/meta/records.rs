//! The smaller composite records of metadata files (reference: "Serialisation").

use super::MetaState;
use crate::error::Flaw;
use crate::serial::{Reader, Serial, Writer};
use crate::units::{INVALID_LSID, UNKNOWN_GID};

const LSID_GID_PREAMBLE: u16 = 0x0314;

/// At log position `lsid` the volume is snapshot `gid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetaLsidGid {
    /// False for an explicit snapshot.
    pub is_mergeable: bool,
    /// Unix time in seconds.
    pub timestamp: u64,
    /// Log position in physical blocks.
    pub lsid: u64,
    /// The snapshot.
    pub gid: u64,
}

impl MetaLsidGid {
    /// The `done` record of a storage that was never synchronised.
    pub const fn unknown(timestamp: u64) -> Self {
        Self {
            is_mergeable: false,
            timestamp,
            lsid: INVALID_LSID,
            gid: UNKNOWN_GID,
        }
    }

    /// The `done` record after the log was reset at snapshot `gid`. Not mergeable, so that the
    /// first diff after a full sync keeps the snapshot it begins with.
    pub const fn reset(gid: u64, timestamp: u64) -> Self {
        Self {
            is_mergeable: false,
            timestamp,
            lsid: 0,
            gid,
        }
    }
}

impl Serial for MetaLsidGid {
    fn put(&self, writer: &mut Writer) {
        writer.put_u16(LSID_GID_PREAMBLE);
        writer.put_bool(self.is_mergeable);
        writer.put_u64(self.timestamp);
        writer.put_u64(self.lsid);
        writer.put_u64(self.gid);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        reader.preamble(LSID_GID_PREAMBLE, "lsid and gid preamble")?;
        Ok(Self {
            is_mergeable: reader.bool("isMergeable")?,
            timestamp: reader.u64("timestamp")?,
            lsid: reader.u64("lsid")?,
            gid: reader.u64("gid")?,
        })
    }
}

/// How a proxy compresses what it sends, as stored: the values are not judged here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompressOpt {
    /// Number of the method.
    pub kind: u8,
    /// Level of the method.
    pub level: u8,
    /// Threads.
    pub cpus: u8,
}

impl Serial for CompressOpt {
    fn put(&self, writer: &mut Writer) {
        writer.put_raw(&[self.kind, self.level, self.cpus]);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        let [kind, level, cpus] = reader.array("compression option")?;
        Ok(Self { kind, level, cpus })
    }
}

/// A destination of a proxy (HostInfoForBkp in the reference).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostInfo {
    /// Host name or address.
    pub addr: String,
    /// TCP port.
    pub port: u16,
    /// Compression on the way.
    pub compression: CompressOpt,
    /// Seconds to wait before a diff is sent.
    pub send_delay: u32,
}

impl Serial for HostInfo {
    fn put(&self, writer: &mut Writer) {
        writer.put_string(&self.addr);
        writer.put_u16(self.port);
        self.compression.put(writer);
        writer.put_u32(self.send_delay);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        Ok(Self {
            addr: reader.string("address")?.to_owned(),
            port: reader.u16("port")?,
            compression: CompressOpt::get(reader)?,
            send_delay: reader.u32("wdiffSendDelaySec")?,
        })
    }
}

/// How far a full replication came, so that it can be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullReplState {
    /// The state that is being copied.
    pub state: MetaState,
    /// Logical blocks copied.
    pub progress: u64,
    /// Unix time in seconds.
    pub timestamp: u64,
}

impl Serial for FullReplState {
    fn put(&self, writer: &mut Writer) {
        self.state.put(writer);
        writer.put_u64(self.progress);
        writer.put_u64(self.timestamp);
    }

    fn get(reader: &mut Reader<'_>) -> Result<Self, Flaw> {
        Ok(Self {
            state: MetaState::get(reader)?,
            progress: reader.u64("progressLb")?,
            timestamp: reader.u64("timestamp")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::any_state;
    use super::*;

    proptest! {
        #[test]
        fn lsid_gid_round_trips(
            is_mergeable: bool, timestamp: u64, lsid: u64, gid: u64
        ) {
            let record = MetaLsidGid { is_mergeable, timestamp, lsid, gid };
            prop_assert_eq!(MetaLsidGid::from_bytes(&record.to_bytes()), Ok(record));
        }

        #[test]
        fn host_info_round_trips(addr in ".{0,40}", port: u16, opt: [u8; 3], send_delay: u32) {
            let compression = CompressOpt { kind: opt[0], level: opt[1], cpus: opt[2] };
            let host = HostInfo { addr, port, compression, send_delay };
            prop_assert_eq!(HostInfo::from_bytes(&host.to_bytes()), Ok(host));
        }

        #[test]
        fn full_repl_state_round_trips(state in any_state(), progress: u64, timestamp: u64) {
            let repl = FullReplState { state, progress, timestamp };
            prop_assert_eq!(FullReplState::from_bytes(&repl.to_bytes()), Ok(repl));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = HostInfo::from_bytes(&bytes);
            let _ = FullReplState::from_bytes(&bytes);
            let _ = MetaLsidGid::from_bytes(&bytes);
        }
    }
}
