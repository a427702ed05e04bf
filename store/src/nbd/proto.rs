//! Structures of the NBD protocol (reference: "NBD"): what clients send is parsed, what they get is
//! encoded.
//!
//! Pure: no sockets, no devices. Numbers are big-endian. Everything here takes bytes of a stranger.

use bytes::Bytes;

use crate::block::{Extent, Geometry, Refusal};

/// First number of the greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second number of the greeting, and of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Of replies to options.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Of requests.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Of simple replies.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Of the chunks of structured replies.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of an option before its data.
pub const OPTION_HEADER: usize = 16;
/// Bytes of a request before its payload.
pub const REQUEST_HEADER: usize = 28;

/// Greatest data of an option that is looked at.
pub const MAX_OPTION_BYTES: u32 = 64 << 10;
/// Greatest data of an option, and greatest payload of a refused write, that is read and thrown
/// away. Whoever sends more is disconnected.
pub const MAX_SKIPPED_BYTES: u32 = 64 << 20;
/// Greatest length of a string.
pub const MAX_STRING_BYTES: usize = 4096;
/// Most descriptors in a block status.
pub const MAX_DESCRIPTORS: usize = 4096;

/// The only metadata context there is.
pub const ALLOCATION: &str = "base:allocation";
/// Its number in block status replies.
pub const ALLOCATION_ID: u32 = 1;

/// Handshake flags of server and client: bits 0 (fixed newstyle) and 1 (no zeroes).
pub const FIXED_NEWSTYLE: u16 = 1;
/// See [`FIXED_NEWSTYLE`].
pub const NO_ZEROES: u16 = 2;

/// Transmission flags.
pub mod export_flag {
    #![allow(missing_docs)]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Numbers of options.
pub mod option {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of option replies.
pub mod option_reply {
    #![allow(missing_docs)]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// What INFO and GO ask about and tell.
pub mod info {
    #![allow(missing_docs)]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Numbers of commands.
pub mod command {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 0x8001;

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;

/// Errors as clients see them.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    Perm = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    NotSupported = 95,
    Shutdown = 108,
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Io => Self::Io,
            Refusal::Invalid => Self::Invalid,
            Refusal::NoSpace => Self::NoSpace,
            Refusal::ReadOnly => Self::Perm,
            Refusal::ShuttingDown => Self::Shutdown,
        }
    }
}

/// Reads fields of a message one behind the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its length.
    fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        text(self.take(len)?)
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    let sound = bytes.len() <= MAX_STRING_BYTES && !bytes.contains(&0);
    sound.then(|| std::str::from_utf8(bytes).ok()).flatten()
}

/// An option without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// See [`option`].
    pub option: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// `None` if these are no option: the client is out of step.
    pub fn parse(bytes: &[u8; OPTION_HEADER]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u64()? == OPTION_MAGIC).then_some(())?;
        Some(Self {
            option: fields.u32()?,
            len: fields.u32()?,
        })
    }
}

/// What a client asks for in the negotiation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOption<'a> {
    /// Begin with this export, or be disconnected.
    ExportName(&'a str),
    /// End.
    Abort,
    /// Names of the exports.
    List,
    /// Begin TLS.
    StartTls,
    /// About an export; `go`: and begin with it.
    Info {
        /// The export.
        name: &'a str,
        /// See [`info`].
        wanted: Vec<u16>,
        /// Begin with it.
        go: bool,
    },
    /// Structured replies from now on.
    StructuredReply,
    /// Metadata contexts; `set`: and use them.
    MetaContext {
        /// The export.
        name: &'a str,
        /// Names or beginnings of names.
        queries: Vec<&'a str>,
        /// Use them.
        set: bool,
    },
    /// None of those above.
    Unknown,
}

impl<'a> ClientOption<'a> {
    /// Parses the data of an option; `None` if it breaks the rules of the option.
    pub fn parse(option: u32, data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let parsed = match option {
            option::EXPORT_NAME => Self::ExportName(text(fields.take(data.len())?)?),
            // Whatever it brings along: the end it is.
            option::ABORT => return Some(Self::Abort),
            option::LIST => Self::List,
            option::STARTTLS => Self::StartTls,
            option::STRUCTURED_REPLY => Self::StructuredReply,
            option::INFO | option::GO => {
                let name = fields.string()?;
                let count = fields.u16()?;
                let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
                let go = option == option::GO;
                Self::Info { name, wanted, go }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let name = fields.string()?;
                let count = fields.u32()?;
                let queries = (0..count).map(|_| fields.string()).collect::<Option<_>>()?;
                let set = option == option::SET_META_CONTEXT;
                Self::MetaContext { name, queries, set }
            }
            _ => return Some(Self::Unknown),
        };
        fields.0.is_empty().then_some(parsed)
    }
}

/// If any of the queries of a client means [`ALLOCATION`]. No query means all when contexts are
/// listed and none when they are set.
pub fn selects_allocation(queries: &[&str], set: bool) -> bool {
    let matches = |query: &&str| *query == ALLOCATION || (!set && *query == "base:");
    (queries.is_empty() && !set) || queries.iter().any(matches)
}

/// The greeting of the server.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// Appends a reply to an option.
pub fn push_option_reply(out: &mut Vec<u8>, option: u32, reply: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// Comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl RequestHeader {
    /// `None` if these are no request: the client is out of step.
    pub fn parse(bytes: &[u8; REQUEST_HEADER]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == REQUEST_MAGIC).then_some(())?;
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }

    /// Bytes of payload that follow, be the request sound or not.
    pub const fn payload(&self) -> u32 {
        match self.command {
            command::WRITE => self.len,
            _ => 0,
        }
    }
}

/// What client and server agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Structured replies.
    pub structured: bool,
    /// The context [`ALLOCATION`] was set.
    pub allocation: bool,
    /// Of the device when the client came; `read_only` also if only the export is.
    pub geometry: Geometry,
}

/// A request that the terms allow.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read {
        offset: u64,
        len: u32,
    },
    /// `len` bytes of payload follow.
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u32,
        may_punch: bool,
        fua: bool,
    },
    /// `one`: only the first extent is wanted.
    Status {
        offset: u64,
        len: u32,
        one: bool,
    },
}

impl Terms {
    /// Transmission flags of the export.
    pub const fn flags(&self) -> u16 {
        use export_flag::*;
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
        if self.structured {
            flags |= SEND_DF;
        }
        if self.geometry.read_only {
            flags | READ_ONLY
        } else {
            flags | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
        }
    }

    /// The command of a request, or how it is answered instead. Not of a disconnect: it has no
    /// answer.
    pub const fn command(&self, request: &RequestHeader) -> Result<Command, Errno> {
        let RequestHeader { offset, len, .. } = *request;
        let fua = request.flags & command_flag::FUA != 0;
        let allowed = match request.command {
            command::READ if self.structured => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        if request.flags & !(allowed | command_flag::FUA) != 0 {
            return Err(Errno::Invalid);
        }
        match request.command {
            command::FLUSH if offset == 0 && len == 0 => return Ok(Command::Flush),
            _ if len == 0 => return Err(Errno::Invalid),
            _ => {}
        }
        let changes = matches!(
            request.command,
            command::WRITE | command::TRIM | command::WRITE_ZEROES
        );
        if changes && self.geometry.read_only {
            return Err(Errno::Perm);
        }
        let short = len <= self.geometry.max_request;
        match request.command {
            command::READ if short => Ok(Command::Read { offset, len }),
            command::WRITE if short => Ok(Command::Write { offset, len, fua }),
            command::TRIM => Ok(Command::Trim { offset, len, fua }),
            // It is for clients to whom anything but a quick way is worse than none.
            command::WRITE_ZEROES if request.flags & command_flag::FAST_ZERO != 0 => {
                Err(Errno::NotSupported)
            }
            command::WRITE_ZEROES => Ok(Command::Zero {
                offset,
                len,
                may_punch: request.flags & command_flag::NO_HOLE == 0,
                fua,
            }),
            command::BLOCK_STATUS if self.allocation => {
                let one = request.flags & command_flag::REQ_ONE != 0;
                Ok(Command::Status { offset, len, one })
            }
            _ => Err(Errno::Invalid),
        }
    }
}

/// The fixed part of a reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyHeader {
    bytes: [u8; Self::MOST],
    len: u8,
}

impl ReplyHeader {
    const MOST: usize = 28;

    /// A simple reply; `error` 0 is success. The data of a read follows.
    pub fn simple(cookie: u64, error: Option<Errno>) -> Self {
        let mut bytes = [0; Self::MOST];
        bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&error.map_or(0, |e| e as u32).to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        Self { bytes, len: 16 }
    }

    /// The last chunk of a reply, with `len` bytes in it of which `head` are the first.
    fn chunk(cookie: u64, kind: u16, len: u32, head: &[u8]) -> Self {
        let mut bytes = [0; Self::MOST];
        bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&CHUNK_DONE.to_be_bytes());
        bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        bytes[20..20 + head.len()].copy_from_slice(head);
        let len = 20 + head.len() as u8;
        Self { bytes, len }
    }

    /// The chunk of all data of a read, which follows.
    pub fn data(cookie: u64, offset: u64, len: u32) -> Self {
        Self::chunk(cookie, CHUNK_OFFSET_DATA, 8 + len, &offset.to_be_bytes())
    }

    /// An error chunk without a text.
    pub fn error(cookie: u64, error: Errno) -> Self {
        let mut head = [0; 6];
        head[..4].copy_from_slice(&(error as u32).to_be_bytes());
        Self::chunk(cookie, CHUNK_ERROR, 6, &head)
    }

    /// The chunk of a block status, whose `descriptors` bytes follow.
    pub fn status(cookie: u64, descriptors: usize) -> Self {
        let len = 4 + descriptors as u32;
        let id = ALLOCATION_ID.to_be_bytes();
        Self::chunk(cookie, CHUNK_BLOCK_STATUS, len, &id)
    }

    /// As it is sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Descriptors of a block status of `len` bytes: alike neighbours are joined, what reaches beyond
/// is cut off. `one`: the first only.
pub fn descriptors(extents: &[Extent], len: u32, one: bool) -> Bytes {
    let mut joined: Vec<(u32, u32)> = Vec::new();
    let mut left = len;
    let most = if one { 1 } else { MAX_DESCRIPTORS };
    for extent in extents {
        let part = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        let state = u32::from(extent.hole) * STATE_HOLE + u32::from(extent.zero) * STATE_ZERO;
        left -= part;
        let full = joined.len() == most;
        match joined.last_mut() {
            _ if part == 0 => {}
            Some((before, alike)) if *alike == state => *before += part,
            _ if full => break,
            _ => joined.push((part, state)),
        }
    }
    if joined.is_empty() {
        // Nothing known is always a legal answer.
        joined.push((len, 0));
    }
    let fields = joined.iter().flat_map(|(len, state)| [*len, *state]);
    fields.flat_map(u32::to_be_bytes).collect()
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

    fn terms() -> Terms {
        Terms {
            structured: true,
            allocation: true,
            geometry: GEOMETRY,
        }
    }

    fn request(command: u16, flags: u16, len: u32) -> RequestHeader {
        RequestHeader {
            flags,
            command,
            cookie: 7,
            offset: 4096,
            len,
        }
    }

    #[test]
    fn flags_are_refused_where_they_mean_nothing() {
        let all = [
            command_flag::NO_HOLE,
            command_flag::DF,
            command_flag::REQ_ONE,
            1 << 5,
            1 << 15,
        ];
        let allowed = |command| match command {
            command::READ => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        for command in [0, 1, 4, 6, 7] {
            for flag in all {
                let found = terms().command(&request(command, flag, 512));
                assert_eq!(found.is_ok(), flag == allowed(command), "{command} {flag}");
            }
            let fua = terms().command(&request(command, command_flag::FUA, 512));
            assert!(fua.is_ok(), "{command}");
        }
        let mut simple = terms();
        simple.structured = false;
        let df = simple.command(&request(command::READ, command_flag::DF, 512));
        assert_eq!(df, Err(Errno::Invalid));
    }

    #[test]
    fn limits_and_permissions() {
        let mut terms = terms();
        let invalid = Err(Errno::Invalid);
        for command in [0, 1, 4, 6, 7] {
            assert_eq!(terms.command(&request(command, 0, 0)), invalid);
        }
        assert_eq!(terms.command(&request(0, 0, (32 << 20) + 1)), invalid);
        assert_eq!(terms.command(&request(1, 0, (32 << 20) + 1)), invalid);
        assert!(terms.command(&request(4, 0, u32::MAX)).is_ok());
        assert_eq!(
            terms.command(&request(3, 0, 0)),
            invalid,
            "offset of a flush"
        );
        assert_eq!(
            terms.command(&request(5, 0, 512)),
            invalid,
            "not advertised"
        );
        let fast = request(6, command_flag::FAST_ZERO, 512);
        assert_eq!(terms.command(&fast), Err(Errno::NotSupported));
        terms.geometry.read_only = true;
        for command in [1, 4, 6] {
            assert_eq!(terms.command(&request(command, 0, 512)), Err(Errno::Perm));
        }
        terms.allocation = false;
        assert_eq!(terms.command(&request(7, 0, 512)), invalid);
    }

    #[test]
    fn strings_of_options_are_checked() {
        let go = |len: u32, name: &[u8], rest: &[u8]| {
            let data = [&len.to_be_bytes()[..], name, rest].concat();
            ClientOption::parse(option::GO, &data).is_some()
        };
        assert!(go(1, b"a", &[0, 1, 0, 3]));
        assert!(!go(1, b"a", &[0, 2, 0, 3]), "fewer items than announced");
        assert!(!go(1, b"a", &[0, 0, 0]), "bytes behind the end");
        assert!(!go(1, b"\0", &[0, 0]), "NUL");
        assert!(!go(1, b"\xff", &[0, 0]), "not UTF-8");
        assert!(!go(u32::MAX, b"a", &[0, 0]));
        assert!(!go(4097, &[b'a'; 4097], &[0, 0]));
        assert!(ClientOption::parse(option::LIST, b"x").is_none());
        let huge = [0, 0, 0, 0, 255, 255, 255, 255];
        assert!(ClientOption::parse(option::SET_META_CONTEXT, &huge).is_none());
    }

    #[test]
    fn queries_select() {
        assert!(selects_allocation(&[], false));
        assert!(!selects_allocation(&[], true));
        assert!(selects_allocation(&["base:"], false));
        assert!(!selects_allocation(&["base:"], true));
        assert!(selects_allocation(&["x-other:y", ALLOCATION], true));
        assert!(!selects_allocation(&["base:alloc"], false));
    }

    #[test]
    fn descriptors_join_and_stay_within_the_request() {
        let extent = |len, hole| Extent {
            len,
            hole,
            zero: hole,
        };
        let extents = [extent(512, true), extent(512, true), extent(1 << 40, false)];
        let fields = |len, one| -> Vec<u32> {
            let bytes = descriptors(&extents, len, one);
            let chunks = bytes.chunks_exact(4);
            chunks
                .map(|c| u32::from_be_bytes(c.try_into().unwrap()))
                .collect()
        };
        assert_eq!(fields(4096, false), [1024, 3, 3072, 0]);
        assert_eq!(fields(4096, true), [1024, 3]);
        assert_eq!(fields(700, false), [700, 3]);
        assert_eq!(fields(u32::MAX, false), [1024, 3, u32::MAX - 1024, 0]);
        assert_eq!(&descriptors(&[], 512, false)[..], &[0, 0, 2, 0, 0, 0, 0, 0]);
    }
}
