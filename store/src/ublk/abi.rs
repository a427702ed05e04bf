//! Numbers and layouts of the ublk driver (`include/uapi/linux/ublk_cmd.h`), and what they mean here.
//! No system calls.

use crate::block::{Geometry, Refusal};

/// What the driver must be able to do, by bit of `GET_FEATURES`.
pub(super) const USER_COPY: u64 = 1 << 7;
/// Commands are numbered as ioctls; those without are from before Linux 6.4.
pub(super) const IOCTL_ENCODE: u64 = 1 << 6;

/// Descriptors that the map of a queue has room for, whatever its depth.
pub(super) const MAX_DEPTH: usize = 4096;
/// Stands for no device, and for one that the driver shall number.
pub(super) const ANY_DEVICE: u32 = u32::MAX;
/// Sectors count 512 bytes, whatever the block size.
pub(super) const SECTOR_SHIFT: u32 = 9;

/// `_IOR('u', number, size)` or, where the driver writes back, `_IOWR`.
const fn command(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}
const READ: u32 = 2;
const READ_WRITE: u32 = 3;

const fn control(number: u32) -> u32 {
    command(READ_WRITE, number, size_of::<ControlCommand>())
}

pub(super) const GET_DEV_INFO: u32 = command(READ, 0x02, size_of::<ControlCommand>());
pub(super) const ADD_DEV: u32 = control(0x04);
pub(super) const DEL_DEV: u32 = control(0x05);
pub(super) const START_DEV: u32 = control(0x06);
pub(super) const STOP_DEV: u32 = control(0x07);
pub(super) const SET_PARAMS: u32 = control(0x08);
/// As `DEL_DEV`, without waiting until nobody has the block device open (Linux 6.9).
pub(super) const DEL_DEV_ASYNC: u32 = command(READ, 0x14, size_of::<ControlCommand>());
pub(super) const GET_FEATURES: u32 = command(READ, 0x13, size_of::<ControlCommand>());
pub(super) const FETCH_REQ: u32 = command(READ_WRITE, 0x20, size_of::<IoCommand>());
pub(super) const COMMIT_AND_FETCH_REQ: u32 = command(READ_WRITE, 0x21, size_of::<IoCommand>());

/// `struct ublksrv_ctrl_cmd`: 32 bytes within an entry of 128.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlCommand {
    pub device: u32,
    /// -1: none.
    pub queue: u16,
    pub len: u16,
    pub address: u64,
    pub data: u64,
    pub path_len: u16,
    pub pad: u16,
    pub reserved: u32,
}

/// `struct ublksrv_io_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct IoCommand {
    pub queue: u16,
    pub tag: u16,
    /// Bytes, or a negative errno.
    pub result: i32,
    /// Unused where data is copied by `pread` and `pwrite`.
    pub address: u64,
}

/// `struct ublksrv_ctrl_dev_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceInfo {
    pub queues: u16,
    pub depth: u16,
    pub state: u16,
    pub pad0: u16,
    pub max_io_bytes: u32,
    pub device: u32,
    /// Of the server that started it; -1 before and after.
    pub pid: i32,
    pub pad1: u32,
    pub flags: u64,
    /// The driver keeps it for the server: see [`owner_mark`].
    pub server_flags: u64,
    pub owner_uid: u32,
    pub owner_gid: u32,
    pub reserved: [u64; 2],
}

/// `state` of a device that nobody serves, yet or any more.
pub(super) const STATE_DEAD: u16 = 0;

/// `struct ublk_params` up to what is set here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub len: u32,
    pub types: u32,
    pub basic: Basic,
    pub discard: Discard,
    /// The begin of what newer drivers know, which `types` leaves out.
    pub rest: u32,
}

/// `struct ublk_param_basic`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Basic {
    pub attributes: u32,
    pub logical_shift: u8,
    pub physical_shift: u8,
    pub io_opt_shift: u8,
    pub io_min_shift: u8,
    pub max_sectors: u32,
    pub chunk_sectors: u32,
    pub sectors: u64,
    pub virt_boundary_mask: u64,
}

/// `struct ublk_param_discard`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Discard {
    pub alignment: u32,
    pub granularity: u32,
    pub max_discard_sectors: u32,
    pub max_zeroes_sectors: u32,
    pub max_segments: u16,
    pub reserved: u16,
}

/// `struct ublksrv_io_desc`: a request, in memory that the driver shares.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct IoDescriptor {
    pub op_flags: u32,
    pub sectors: u32,
    pub start_sector: u64,
    pub address: u64,
}

const _: () = {
    assert!(size_of::<ControlCommand>() == 32);
    assert!(size_of::<IoCommand>() == 16);
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(size_of::<Parameters>() == 64);
    assert!(size_of::<IoDescriptor>() == 24);
};

const ATTRIBUTE_READ_ONLY: u32 = 1 << 0;
const ATTRIBUTE_VOLATILE_CACHE: u32 = 1 << 2;
const ATTRIBUTE_FUA: u32 = 1 << 3;
const PARAMETERS_BASIC: u32 = 1 << 0;
const PARAMETERS_DISCARD: u32 = 1 << 1;
/// Longest trim or zeroing that is asked for at once \[bytes\].
const MAX_CLEAR: u64 = 1 << 30;

impl Parameters {
    /// What the block layer has to know of a device. `max_request` is in bytes.
    pub(super) const fn of(geometry: &Geometry, max_request: u32, read_only: bool) -> Self {
        let preferred = geometry.preferred_block.ilog2() as u8;
        let read_only = if read_only { ATTRIBUTE_READ_ONLY } else { 0 };
        let clear_sectors = (MAX_CLEAR >> SECTOR_SHIFT) as u32;
        Self {
            len: size_of::<Self>() as u32,
            types: PARAMETERS_BASIC | PARAMETERS_DISCARD,
            basic: Basic {
                attributes: ATTRIBUTE_VOLATILE_CACHE | ATTRIBUTE_FUA | read_only,
                logical_shift: geometry.min_block.ilog2() as u8,
                physical_shift: preferred,
                io_opt_shift: preferred,
                io_min_shift: preferred,
                max_sectors: max_request >> SECTOR_SHIFT,
                chunk_sectors: 0,
                sectors: geometry.size >> SECTOR_SHIFT,
                virt_boundary_mask: 0,
            },
            discard: Discard {
                alignment: 0,
                granularity: geometry.preferred_block,
                max_discard_sectors: clear_sectors,
                max_zeroes_sectors: clear_sectors,
                max_segments: 1,
                reserved: 0,
            },
            rest: 0,
        }
    }
}

const FLAG_FUA: u32 = 1 << 13;
const FLAG_NO_UNMAP: u32 = 1 << 15;

/// A request of the block layer; lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        len: u64,
    },
    Zero {
        offset: u64,
        len: u64,
        may_punch: bool,
        fua: bool,
    },
}

impl Asked {
    /// `None`: an operation that was not offered, or a transfer of 4 GiB and more.
    pub(super) fn parse(descriptor: &IoDescriptor) -> Option<Self> {
        const FLUSH: u32 = 2;
        let operation = descriptor.op_flags & 0xff;
        // Its sectors mean nothing: the block layer has -1 there.
        if operation == FLUSH {
            return Some(Self::Flush);
        }
        let offset = descriptor.start_sector.checked_mul(1 << SECTOR_SHIFT)?;
        let len = u64::from(descriptor.sectors) << SECTOR_SHIFT;
        let is_set = |flag| descriptor.op_flags & flag != 0;
        let fua = is_set(FLAG_FUA);
        Some(match operation {
            0 => Self::Read {
                offset,
                len: len.try_into().ok()?,
            },
            1 => Self::Write {
                offset,
                len: len.try_into().ok()?,
                fua,
            },
            3 => Self::Trim { offset, len },
            5 => Self::Zero {
                offset,
                len,
                may_punch: !is_set(FLAG_NO_UNMAP),
                fua,
            },
            _ => return None,
        })
    }

    /// What the driver is told when all went well: the bytes moved.
    pub(super) const fn success(&self) -> i32 {
        match self {
            // At most the longest request, which is far less than 2 GiB.
            Self::Read { len, .. } | Self::Write { len, .. } => *len as i32,
            Self::Flush | Self::Trim { .. } | Self::Zero { .. } => 0,
        }
    }
}

/// The errno by which the block layer names the failure to its callers.
pub(super) const fn errno(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::Io => libc::EIO,
        Refusal::Invalid => libc::EINVAL,
        Refusal::NoSpace => libc::ENOSPC,
        Refusal::ReadOnly => libc::EROFS,
        Refusal::ShuttingDown => libc::ENODEV,
    }
}

/// Where the data of a request is found in `/dev/ublkcN`.
pub(super) const fn data_position(queue: u16, tag: u16) -> u64 {
    const BASE: u64 = 0x8000_0000;
    BASE + ((queue as u64) << 41 | (tag as u64) << 25)
}

/// What Walkeep leaves with its devices, to know them again: "WLKP" and the process.
pub(super) const fn owner_mark(pid: u32) -> u64 {
    MARK << 32 | pid as u64
}
const MARK: u64 = 0x574c_4b50;

/// The process that made a device, if that was a Walkeep.
pub(super) const fn owner(mark: u64) -> Option<u32> {
    if mark >> 32 == MARK {
        Some(mark as u32)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        size: 1 << 30,
        min_block: 512,
        preferred_block: 4096,
        max_request: 32 << 20,
        read_only: false,
    };

    #[test]
    fn commands_are_numbered_as_in_the_header() {
        // _IOR('u', 0x13, struct ublksrv_ctrl_cmd), _IOWR('u', 0x04, ...), _IOWR('u', 0x20, 16 bytes)
        assert_eq!(GET_FEATURES, 0x8020_7513);
        assert_eq!(ADD_DEV, 0xc020_7504);
        assert_eq!(FETCH_REQ, 0xc010_7520);
        assert_eq!(COMMIT_AND_FETCH_REQ, 0xc010_7521);
    }

    #[test]
    fn parameters_follow_the_geometry() {
        let parameters = Parameters::of(&GEOMETRY, 1 << 20, false);
        let basic = parameters.basic;
        assert_eq!((basic.logical_shift, basic.physical_shift), (9, 12));
        assert_eq!((basic.sectors, basic.max_sectors), (1 << 21, 2048));
        assert_eq!(basic.attributes, 0b1100);
        assert_eq!(parameters.discard.granularity, 4096);
        let blocks = Geometry {
            min_block: 4096,
            ..GEOMETRY
        };
        let basic = Parameters::of(&blocks, 1 << 20, true).basic;
        assert_eq!((basic.logical_shift, basic.attributes), (12, 0b1101));
    }

    #[test]
    fn requests_are_understood() {
        let parse = |op_flags, sectors| {
            Asked::parse(&IoDescriptor {
                op_flags,
                sectors,
                start_sector: 3,
                address: 0,
            })
        };
        let (offset, fua) = (3 * 512, true);
        assert_eq!(parse(0, 8), Some(Asked::Read { offset, len: 4096 }));
        let write = Asked::Write {
            offset,
            len: 512,
            fua,
        };
        assert_eq!(parse(1 | FLAG_FUA, 1), Some(write));
        assert_eq!(write.success(), 512);
        let no_sector = IoDescriptor {
            op_flags: 2,
            sectors: 0,
            start_sector: u64::MAX,
            address: 0,
        };
        assert_eq!(Asked::parse(&no_sector), Some(Asked::Flush));
        let len = u64::from(u32::MAX) * 512;
        assert_eq!(parse(3, u32::MAX), Some(Asked::Trim { offset, len }));
        let (len, may_punch) = (512, false);
        let zero = Asked::Zero {
            offset,
            len,
            may_punch,
            fua: false,
        };
        assert_eq!(parse(5 | FLAG_NO_UNMAP, 1), Some(zero));
        assert_eq!(zero.success(), 0);
        // WRITE_SAME was not offered, zoned operations neither.
        assert_eq!((parse(4, 1), parse(10, 1)), (None, None));
        assert_eq!(parse(1, u32::MAX), None);
    }

    #[test]
    fn data_of_each_request_has_a_place_of_its_own() {
        assert_eq!(data_position(0, 0), 0x8000_0000);
        // 32 MiB for each request, 65536 requests for each queue.
        assert_eq!(data_position(0, 1) - data_position(0, 0), 32 << 20);
        assert_eq!(
            data_position(1, 0) - data_position(0, 0),
            65536 * (32 << 20)
        );
    }

    #[test]
    fn a_device_tells_who_made_it() {
        assert_eq!(owner(owner_mark(4711)), Some(4711));
        assert_eq!(owner(0), None);
    }
}
