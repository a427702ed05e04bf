//! A client of the NBD protocol that also breaks its rules.

#![allow(dead_code)] // each test binary uses its own part

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use walkeep_store::nbd::proto::{self, command, option, option_reply};

/// A test that waits that long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Client {
    pub stream: Box<dyn Stream>,
}

/// A reply in the transmission phase.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Simple {
        error: u32,
        cookie: u64,
    },
    Data {
        cookie: u64,
        offset: u64,
        data: Vec<u8>,
    },
    Status {
        cookie: u64,
        descriptors: Vec<(u32, u32)>,
    },
    Error {
        error: u32,
        cookie: u64,
    },
}

pub fn ok(cookie: u64) -> Answer {
    Answer::Simple { error: 0, cookie }
}

pub fn refused(error: u32, cookie: u64) -> Answer {
    Answer::Simple { error, cookie }
}

impl Client {
    pub fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }

    pub fn over(stream: impl Stream + 'static) -> Self {
        let stream = Box::new(stream);
        Self { stream }
    }

    /// Connects and sends the usual client flags.
    pub fn greeted(path: &Path) -> Self {
        let mut client = Self::unix(path);
        client.greet(3);
        client
    }

    /// In transmission with an export, with all that can be negotiated.
    pub fn ready(path: &Path, name: &str) -> Self {
        let mut client = Self::greeted(path);
        client.ready_here(name);
        client
    }

    pub fn ready_here(&mut self, name: &str) {
        self.option(option::STRUCTURED_REPLY, &[]);
        self.expect_ack();
        self.option(
            option::SET_META_CONTEXT,
            &meta_query(name, &[proto::ALLOCATION]),
        );
        assert_eq!(self.reply().1, option_reply::META_CONTEXT);
        self.expect_ack();
        self.go(name);
    }

    pub fn greet(&mut self, flags: u32) {
        assert_eq!(self.read(18), proto::greeting());
        self.send(&flags.to_be_bytes());
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.read(2).try_into().unwrap())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.read(4).try_into().unwrap())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.read(8).try_into().unwrap())
    }

    /// The server has closed the connection and sent nothing more.
    pub fn expect_end(&mut self) {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("expected the end of the connection, found {other:?}"),
        }
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = proto::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    /// Option, kind and data of a reply.
    pub fn reply(&mut self) -> (u32, u32, Vec<u8>) {
        assert_eq!(self.u64(), proto::OPTION_REPLY_MAGIC);
        let (option, kind, len) = (self.u32(), self.u32(), self.u32());
        (option, kind, self.read(len as usize))
    }

    pub fn expect_ack(&mut self) {
        let (_, kind, data) = self.reply();
        assert_eq!((kind, data), (option_reply::ACK, vec![]));
    }

    /// Enters an export by GO; returns size and flags.
    pub fn go(&mut self, name: &str) -> (u64, u16) {
        self.option(option::GO, &info_request(name, &[]));
        let mut export = None;
        loop {
            let (_, kind, data) = self.reply();
            match kind {
                option_reply::INFO if data[..2] == [0, 0] => {
                    let size = u64::from_be_bytes(data[2..10].try_into().unwrap());
                    let flags = u16::from_be_bytes(data[10..].try_into().unwrap());
                    export = Some((size, flags));
                }
                option_reply::INFO => {}
                option_reply::ACK => return export.unwrap(),
                _ => panic!("{kind:x} {}", String::from_utf8_lossy(&data)),
            }
        }
    }

    pub fn request(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) {
        let mut bytes = request_bytes(command, flags, cookie, offset, len);
        bytes.extend(payload);
        self.send(&bytes);
    }

    pub fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        self.request(command::WRITE, 0, cookie, offset, data.len() as u32, data);
    }

    pub fn ask_read(&mut self, cookie: u64, offset: u64, len: u32) {
        self.request(command::READ, 0, cookie, offset, len, &[]);
    }

    /// Reads one reply.
    pub fn answer(&mut self) -> Answer {
        match self.u32() {
            proto::SIMPLE_REPLY_MAGIC => Answer::Simple {
                error: self.u32(),
                cookie: self.u64(),
            },
            proto::STRUCTURED_REPLY_MAGIC => self.chunk(),
            other => panic!("{other:x}: not a reply"),
        }
    }

    fn chunk(&mut self) -> Answer {
        assert_eq!(self.u16(), 1, "one chunk for each reply");
        let (kind, cookie, len) = (self.u16(), self.u64(), self.u32());
        match kind {
            1 => Answer::Data {
                cookie,
                offset: self.u64(),
                data: self.read(len as usize - 8),
            },
            5 => {
                assert_eq!(self.u32(), proto::ALLOCATION_ID);
                let count = (len - 4) / 8;
                Answer::Status {
                    cookie,
                    descriptors: (0..count).map(|_| (self.u32(), self.u32())).collect(),
                }
            }
            0x8001 => {
                let error = self.u32();
                assert_eq!((len, self.u16()), (6, 0));
                Answer::Error { error, cookie }
            }
            other => panic!("chunk {other:x}"),
        }
    }

    /// The data of a read that went well.
    pub fn read_at(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.ask_read(99, offset, len);
        match self.answer() {
            Answer::Data {
                cookie: 99, data, ..
            } => data,
            other => panic!("{other:?}"),
        }
    }
}

pub fn request_bytes(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub fn info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|w| bytes.extend(w.to_be_bytes()));
    bytes
}

pub fn meta_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| bytes.extend(string(query)));
    bytes
}
