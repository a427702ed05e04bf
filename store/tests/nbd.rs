//! The NBD server as clients see it that know the protocol and keep its rules, or do not.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do: at once"
)]

#[path = "support/nbd.rs"]
mod support;

use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use support::*;
use walkeep_store::block::{BlockDevice, Geometry, Reply, Request};
use walkeep_store::nbd::proto::{self, command, command_flag, export_flag, option, option_reply};
use walkeep_store::nbd::{Address, ExportOptions, Limits, Server};

const MIB: usize = 1 << 20;

struct Setup {
    server: Server,
    device: Arc<Memory>,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new(limits: Limits, device: Memory) -> Self {
        let setup = Self {
            server: Server::new(limits),
            device: Arc::new(device),
            dir: tempfile::tempdir().unwrap(),
        };
        setup.server.listen(&Address::Unix(setup.socket())).unwrap();
        setup.export("vol", setup.device.clone());
        setup
    }

    fn usual() -> Self {
        Self::new(Limits::default(), Memory::new(MIB))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    fn export(&self, name: &str, device: Arc<dyn BlockDevice>) {
        let options = ExportOptions {
            description: format!("about {name}"),
            read_only: false,
        };
        self.server.add(name, device, options).unwrap();
    }

    fn greeted(&self) -> Client {
        Client::greeted(&self.socket())
    }

    fn ready(&self) -> Client {
        Client::ready(&self.socket(), "vol")
    }
}

#[test]
fn export_name_begins_with_and_without_zeroes() {
    let setup = Setup::usual();
    for (flags, zeroes) in [(1, 124), (3, 0), (0, 124)] {
        let mut client = Client::unix(&setup.socket());
        client.greet(flags);
        client.option(option::EXPORT_NAME, b"vol");
        assert_eq!(client.u64(), MIB as u64);
        let expected = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::SEND_TRIM
            | export_flag::SEND_WRITE_ZEROES
            | export_flag::SEND_FAST_ZERO
            | export_flag::CAN_MULTI_CONN;
        assert_eq!(client.u16(), expected);
        assert_eq!(client.read(zeroes), vec![0; zeroes]);
        client.write(1, 512, &[7; 512]);
        assert_eq!(client.answer(), ok(1));
        client.ask_read(2, 512, 512);
        assert_eq!(client.answer(), ok(2));
        assert_eq!(client.read(512), [7; 512]);
    }
}

#[test]
fn options_work_in_every_order() {
    let setup = Setup::usual();
    let all = [
        option::LIST,
        option::INFO,
        option::STARTTLS,
        option::STRUCTURED_REPLY,
        option::SET_META_CONTEXT,
        77,
    ];
    for first in 0..all.len() {
        for second in 0..all.len() {
            let mut client = setup.greeted();
            let mut structured = false;
            let mut allocation = false;
            for option in [all[first], all[second], all[first]] {
                let data = match option {
                    option::INFO => info_request("vol", &[1, 2, 3]),
                    option::SET_META_CONTEXT => meta_query("vol", &[proto::ALLOCATION]),
                    _ => Vec::new(),
                };
                client.option(option, &data);
                let mut kinds = Vec::new();
                while kinds
                    .last()
                    .is_none_or(|kind| *kind != option_reply::ACK && kind < &0x8000_0000)
                {
                    let (of, kind, _) = client.reply();
                    assert_eq!(of, option);
                    kinds.push(kind);
                }
                let expected: &[u32] = match option {
                    option::LIST => &[2, 1],
                    option::INFO => &[3, 3, 3, 3, 1],
                    option::STRUCTURED_REPLY => &[1],
                    option::SET_META_CONTEXT if structured => &[4, 1],
                    option::SET_META_CONTEXT => &[option_reply::ERR_INVALID],
                    _ => &[option_reply::ERR_UNSUP],
                };
                assert_eq!(kinds, expected, "option {option}");
                allocation |= structured && option == option::SET_META_CONTEXT;
                structured |= option == option::STRUCTURED_REPLY;
            }
            let (_, flags) = client.go("vol");
            assert_eq!(flags & export_flag::SEND_DF != 0, structured);
            client.request(command::BLOCK_STATUS, 0, 5, 0, 512, &[]);
            let found = client.answer();
            match (structured, allocation) {
                (_, true) => assert!(matches!(found, Answer::Status { .. })),
                (true, false) => assert_eq!(
                    found,
                    Answer::Error {
                        error: 22,
                        cookie: 5
                    }
                ),
                (false, false) => assert_eq!(found, refused(22, 5)),
            }
        }
    }
}

#[test]
fn a_context_holds_for_its_export_only() {
    let setup = Setup::usual();
    setup.export("other", Arc::new(Memory::new(MIB)));
    let mut client = setup.greeted();
    client.option(option::STRUCTURED_REPLY, &[]);
    client.expect_ack();
    client.option(
        option::SET_META_CONTEXT,
        &meta_query("other", &[proto::ALLOCATION]),
    );
    assert_eq!(client.reply().1, option_reply::META_CONTEXT);
    client.expect_ack();
    client.go("vol");
    client.request(command::BLOCK_STATUS, 0, 5, 0, 512, &[]);
    assert_eq!(
        client.answer(),
        Answer::Error {
            error: 22,
            cookie: 5
        }
    );
}

#[test]
fn malformed_options_are_refused_and_the_client_may_go_on() {
    let setup = Setup::usual();
    let mut client = setup.greeted();
    let malformed: [(u32, &[u8]); 6] = [
        (option::LIST, b"x"),
        (option::GO, b""),
        (option::GO, &[255; 8]),
        (option::INFO, &[0, 0, 0, 0, 0, 9]),
        (option::SET_META_CONTEXT, &[0, 0, 0, 0, 255, 255, 255, 255]),
        (option::STRUCTURED_REPLY, &[0]),
    ];
    for (option, data) in malformed {
        client.option(option, data);
        assert_eq!(client.reply().1, option_reply::ERR_INVALID, "{option}");
    }
    client.option(option::GO, &vec![0; proto::MAX_OPTION_BYTES as usize + 1]);
    assert_eq!(client.reply().1, option_reply::ERR_TOO_BIG);
    client.option(option::GO, &info_request("nobody", &[]));
    assert_eq!(client.reply().1, option_reply::ERR_UNKNOWN);
    client.option(option::SET_META_CONTEXT, &meta_query("vol", &[]));
    assert_eq!(client.reply().1, option_reply::ERR_INVALID);
    client.go("vol");
}

#[test]
fn who_is_out_of_step_is_disconnected() {
    let setup = Setup::usual();
    let mut client = Client::unix(&setup.socket());
    client.greet(1 << 2);
    client.expect_end();
    let mut client = setup.greeted();
    client.send(&[1; 16]);
    client.expect_end();
    let mut client = setup.greeted();
    client.option(option::EXPORT_NAME, b"nobody");
    client.expect_end();
    let mut client = setup.greeted();
    client.send(&proto::OPTION_MAGIC.to_be_bytes());
    client.send(&[0, 0, 0, 3, 255, 255, 255, 255]);
    client.expect_end();
    let mut client = setup.greeted();
    client.option(option::ABORT, b"whatever");
    client.expect_ack();
    client.expect_end();
    let mut client = setup.ready();
    client.send(&[2; 28]);
    client.expect_end();
    let mut client = setup.ready();
    client.request(command::WRITE, 0, 1, 0, u32::MAX, &[]);
    client.expect_end();
}

#[test]
fn a_handshake_has_a_deadline_however_busy_it_is() {
    let limits = Limits {
        handshake: Duration::from_millis(100),
        ..Limits::default()
    };
    let setup = Setup::new(limits, Memory::new(MIB));
    let mut client = setup.greeted();
    // An option every now and then, which never lets a single wait run out.
    let deadline = Instant::now() + PATIENCE;
    let option = [proto::OPTION_MAGIC.to_be_bytes(), [0, 0, 0, 77, 0, 0, 0, 0]].concat();
    while client.stream.write_all(&option).is_ok() {
        assert!(Instant::now() < deadline, "the server does not hang up");
        let _ = client.stream.read(&mut [0; 64]);
    }
    // A client in transmission may rest as long as it likes.
    let mut client = setup.ready();
    assert_eq!(client.read_at(0, 512), [0; 512]);
}

#[test]
fn too_many_clients_are_told_so_until_one_leaves() {
    let limits = Limits {
        clients: 2,
        ..Limits::default()
    };
    let setup = Setup::new(limits, Memory::new(MIB));
    let first = setup.ready();
    let _second = setup.ready();
    let mut third = setup.greeted();
    third.option(option::GO, &info_request("vol", &[]));
    let (_, kind, text) = third.reply();
    assert_eq!(kind, option_reply::ERR_POLICY);
    assert!(
        String::from_utf8(text)
            .unwrap()
            .contains("limit of 2 clients")
    );
    drop(first);
    wait_until("the first client has left", || setup.server.clients() == 1);
    third.go("vol");
}

#[test]
fn refused_requests_keep_the_stream_in_step() {
    let setup = Setup::usual();
    let mut client = setup.ready();
    let data = vec![9; 65536];
    client.request(command::WRITE, 1 << 9, 1, 0, 65536, &data);
    client.request(command::WRITE, 0, 2, 1, 512, &data[..512]);
    client.request(command::WRITE, 0, 3, 0, 0, &[]);
    client.request(command::WRITE, 0, 4, MIB as u64, 512, &data[..512]);
    client.request(99, 0, 5, 0, 512, &[]);
    client.request(command::FLUSH, 0, 6, 0, 1, &[]);
    client.request(command::TRIM, 0, 7, 0, 0, &[]);
    client.request(
        command::WRITE_ZEROES,
        command_flag::FAST_ZERO,
        8,
        0,
        512,
        &[],
    );
    client.request(command::READ, 0, 9, u64::MAX - 511, 512, &[]);
    client.request(command::READ, 0, 10, 0, (32 << 20) + 1, &[]);
    let mut found: Vec<Answer> = (0..10).map(|_| client.answer()).collect();
    found.sort_by_key(|answer| match answer {
        Answer::Simple { cookie, .. } | Answer::Error { cookie, .. } => *cookie,
        other => panic!("{other:?}"),
    });
    let mut expected: Vec<Answer> = [(22, 1), (28, 2), (22, 3), (28, 4), (22, 5), (22, 6)]
        .into_iter()
        .chain([(22, 7), (95, 8)])
        .map(|(error, cookie)| refused(error, cookie))
        .collect();
    expected.extend([9, 10].map(|cookie| Answer::Error { error: 22, cookie }));
    assert_eq!(found, expected);
    let long = vec![1; (32 << 20) + 512];
    client.request(command::WRITE, 0, 11, 0, long.len() as u32, &long);
    assert_eq!(client.answer(), refused(22, 11));
    assert_eq!(client.read_at(0, 65536), vec![0; 65536]);
}

#[test]
fn read_only_exports_refuse_changes() {
    let setup = Setup::usual();
    let options = ExportOptions {
        read_only: true,
        ..ExportOptions::default()
    };
    setup
        .server
        .add("ro", setup.device.clone(), options)
        .unwrap();
    let mut client = setup.greeted();
    let (_, flags) = client.go("ro");
    assert_eq!(flags & export_flag::READ_ONLY, export_flag::READ_ONLY);
    assert_eq!(flags & export_flag::SEND_TRIM, 0);
    client.write(1, 0, &[1; 512]);
    assert_eq!(client.answer(), refused(1, 1));
    for (cookie, command) in [(2, command::TRIM), (3, command::WRITE_ZEROES)] {
        client.request(command, 0, cookie, 0, 512, &[]);
        assert_eq!(client.answer(), refused(1, cookie));
    }
    assert_eq!(setup.device.bytes.lock()[..512], [0; 512]);
}

#[test]
fn flush_and_fua_reach_the_device() {
    let setup = Setup::usual();
    let mut client = setup.ready();
    client.request(command::WRITE, command_flag::FUA, 1, 0, 512, &[1; 512]);
    client.request(command::FLUSH, 0, 2, 0, 0, &[]);
    client.request(command::TRIM, command_flag::FUA, 3, 0, 512, &[]);
    client.request(command::WRITE_ZEROES, command_flag::FUA, 4, 0, 512, &[]);
    client.request(command::WRITE, 0, 5, 0, 512, &[1; 512]);
    for cookie in 1..=5 {
        assert_eq!(client.answer(), ok(cookie));
    }
    assert_eq!(*setup.device.syncs.lock(), 4);
}

#[test]
fn block_status_joins_neighbours() {
    let setup = Setup::usual();
    setup.device.bytes.lock()[1024..2048].fill(1);
    let mut client = setup.ready();
    let mut status = |flags, len| {
        client.request(command::BLOCK_STATUS, flags, 1, 0, len, &[]);
        match client.answer() {
            Answer::Status { descriptors, .. } => descriptors,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(status(0, 4096), [(1024, 3), (1024, 0), (2048, 3)]);
    assert_eq!(status(command_flag::REQ_ONE, 4096), [(1024, 3)]);
}

/// Answers reads with too few bytes and drops everything else.
struct Faulty;

impl BlockDevice for Faulty {
    fn geometry(&self) -> Geometry {
        Memory::new(MIB).geometry()
    }

    fn submit(&self, batch: Vec<Request>) {
        for request in batch {
            if matches!(request.op, walkeep_store::block::Op::Read { .. }) {
                (request.done)(Ok(Reply::Data(vec![vec![0; 511].into()])));
            }
        }
    }
}

#[test]
fn a_faulty_device_is_an_error_not_a_hang() {
    let setup = Setup::usual();
    setup.export("faulty", Arc::new(Faulty));
    let mut client = Client::ready(&setup.socket(), "faulty");
    client.ask_read(1, 0, 512);
    assert_eq!(
        client.answer(),
        Answer::Error {
            error: 5,
            cookie: 1
        }
    );
    client.write(2, 0, &[0; 512]);
    assert_eq!(client.answer(), refused(5, 2));
}

#[test]
fn what_was_asked_before_a_disconnect_is_answered() {
    let setup = Setup::usual();
    for half_closed in [false, true] {
        setup.device.hold();
        let stream = UnixStream::connect(setup.socket()).unwrap();
        let mut client = Client::over(stream.try_clone().unwrap());
        client.greet(3);
        client.ready_here("vol");
        for cookie in 0..20 {
            client.write(cookie, cookie * 512, &[cookie as u8; 512]);
        }
        if half_closed {
            stream.shutdown(Shutdown::Write).unwrap();
        } else {
            client.request(command::DISC, 0, 0, 0, 0, &[]);
        }
        wait_until("all requests are there", || setup.device.held() == 20);
        setup.device.release();
        for cookie in 0..20 {
            assert_eq!(client.answer(), ok(cookie));
        }
        client.expect_end();
    }
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let setup = Setup::usual();
    setup.device.hold();
    let mut client = setup.ready();
    for cookie in 0..20 {
        client.write(cookie, cookie * 512, &[5; 512]);
        client.ask_read(cookie, 0, 65536);
    }
    wait_until("all requests are there", || setup.device.held() == 40);
    drop(client);
    setup.device.release();
    wait_until("the session ends", || setup.server.clients() == 0);
    assert_eq!(setup.device.bytes.lock()[19 * 512], 5);
    assert_eq!(setup.server.remove("vol", PATIENCE), Some(0));
    assert_eq!(Arc::strong_count(&setup.device), 1);
}

#[test]
fn a_client_that_does_not_read_stops_only_itself() {
    let limits = Limits {
        bytes: 4 * MIB,
        ..Limits::default()
    };
    let setup = Setup::new(limits, Memory::new(MIB));
    let mut slow = setup.ready();
    for cookie in 0..64 {
        slow.ask_read(cookie, 0, MIB as u32);
    }
    let mut other = setup.ready();
    for i in 0..200u64 {
        other.write(1, i * 512, &[i as u8; 512]);
        assert_eq!(other.answer(), ok(1));
        assert_eq!(other.read_at(i * 512, 512), [i as u8; 512]);
    }
    let mut seen = Vec::new();
    for _ in 0..64 {
        match slow.answer() {
            Answer::Data { cookie, data, .. } if data.len() == MIB => seen.push(cookie),
            other => panic!("{other:?}"),
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..64).collect::<Vec<u64>>());
    // One that never reads is cut off in the end.
    for cookie in 0..64 {
        slow.ask_read(cookie, 0, MIB as u32);
    }
    wait_until("it is stuck", || setup.server.clients() == 2);
    assert_eq!(setup.server.stop(Duration::from_millis(200)), 1);
}

#[test]
fn requests_in_flight_are_limited() {
    let limits = Limits {
        requests: 4,
        ..Limits::default()
    };
    let setup = Setup::new(limits, Memory::new(MIB));
    setup.device.hold();
    let mut client = setup.ready();
    for cookie in 0..40 {
        client.write(cookie, cookie * 512, &[1; 512]);
    }
    // How many come depends on how the requests lay in the socket; a batch waits for room as a whole.
    wait_until("the first", || setup.device.held() > 0);
    assert!(setup.device.held() <= 4);
    // Let go, the rest follows: the held ones from here, others from the connection's thread.
    setup.device.release();
    let mut answered: Vec<_> = (0..40).map(|_| client.answer()).collect();
    for cookie in 0..40 {
        let at = answered.iter().position(|answer| *answer == ok(cookie));
        answered.swap_remove(at.unwrap());
    }
}

#[test]
fn largest_requests_pass_through_small_room() {
    let limits = Limits {
        bytes: MIB,
        ..Limits::default()
    };
    let setup = Setup::new(limits, Memory::new(64 * MIB));
    let mut client = setup.ready();
    let data: Vec<u8> = (0..32 * MIB).map(|i| (i / 512) as u8).collect();
    client.write(1, 512, &data);
    assert_eq!(client.answer(), ok(1));
    assert!(client.read_at(512, data.len() as u32) == data);
}

#[test]
fn sixteen_connections_share_a_device() {
    let setup = Setup::new(Limits::default(), Memory::new(16 * MIB));
    let tcp = "tcp:127.0.0.1:0".parse().unwrap();
    let bound = setup.server.listen(&tcp).unwrap();
    std::thread::scope(|scope| {
        for n in 0..16u64 {
            let (setup, bound) = (&setup, &bound);
            scope.spawn(move || {
                let mut client = match bound {
                    Address::Tcp { host, port } if n % 2 == 0 => {
                        let stream = TcpStream::connect((host.as_str(), *port)).unwrap();
                        let mut client = Client::over(stream);
                        client.greet(3);
                        client.ready_here("vol");
                        client
                    }
                    _ => setup.ready(),
                };
                for round in 0..50 {
                    let at = n * MIB as u64 + round * 4096;
                    for i in 0..8 {
                        client.write(i, at + i * 512, &[(n * 8 + i) as u8; 512]);
                    }
                    for i in 0..8 {
                        assert_eq!(client.answer(), ok(i));
                    }
                    let data = client.read_at(at, 4096);
                    let sound = |(i, byte): (usize, &u8)| *byte == (n * 8) as u8 + (i / 512) as u8;
                    assert!(data.iter().enumerate().all(sound));
                }
            });
        }
    });
}

#[test]
fn exports_come_and_go() {
    let setup = Setup::usual();
    let again = setup
        .server
        .add("vol", setup.device.clone(), ExportOptions::default());
    assert!(again.unwrap_err().to_string().contains("already"));
    let mut client = setup.ready();
    setup.export("second", Arc::new(Memory::new(4096)));
    let mut other = Client::ready(&setup.socket(), "second");
    assert_eq!(setup.server.remove("vol", PATIENCE), Some(0));
    client.expect_end();
    assert_eq!(setup.server.remove("vol", PATIENCE), None);
    assert_eq!(other.read_at(0, 512), [0; 512]);
    let mut late = setup.greeted();
    late.option(option::GO, &info_request("vol", &[]));
    assert_eq!(late.reply().1, option_reply::ERR_UNKNOWN);
}

#[test]
fn a_stop_answers_what_is_in_flight_or_cuts_off() {
    for patient in [true, false] {
        let setup = Setup::usual();
        setup.device.hold();
        let mut client = setup.ready();
        client.write(1, 0, &[1; 512]);
        wait_until("the request is there", || setup.device.held() == 1);
        if patient {
            std::thread::scope(|scope| {
                let stopped = scope.spawn(|| setup.server.stop(PATIENCE));
                wait_until("nobody can connect", || {
                    UnixStream::connect(setup.socket()).is_err()
                });
                setup.device.release();
                assert_eq!(client.answer(), ok(1));
                assert_eq!(stopped.join().unwrap(), 0);
            });
        } else {
            assert_eq!(setup.server.stop(Duration::ZERO), 1);
            setup.device.release();
        }
        client.expect_end();
        assert!(!setup.socket().exists());
    }
}

#[test]
fn socket_files_are_private_and_stale_ones_replaced() {
    let setup = Setup::usual();
    let path = setup.socket();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let address = Address::Unix(path.clone());
    let other = Server::new(Limits::default());
    let error = other.listen(&address).unwrap_err();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("another server")
    );
    assert_eq!(setup.server.stop(PATIENCE), 0);
    drop(UnixListener::bind(&path).unwrap());
    other.listen(&address).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
    drop(other);
    std::fs::write(&path, "precious").unwrap();
    let third = Server::new(Limits::default());
    assert!(third.listen(&address).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// A request of the model test, in blocks of 512 bytes.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, usize, bool),
    Trim(u64, usize),
    Read(u64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..192u64, 1..65usize);
    prop_oneof![
        (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        (range(), any::<bool>()).prop_map(|((at, len), punch)| Step::Zero(at, len, punch)),
        range().prop_map(|(at, len)| Step::Trim(at, len)),
        range().prop_map(|(at, len)| Step::Read(at, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Requests that are sent without waiting take effect in their order, and every byte arrives.
    #[test]
    fn data_is_as_in_a_model(steps in prop::collection::vec(step(), 1..120), structured: bool) {
        let setup = Setup::new(Limits::default(), Memory::new(256 * 512));
        let mut client = setup.greeted();
        if structured {
            client.ready_here("vol");
        } else {
            client.go("vol");
        }
        let mut model = vec![0; 256 * 512];
        let mut expected = Vec::new();
        for (cookie, step) in (0..).zip(&steps) {
            let place = |at: u64, len: usize| (at as usize * 512)..(at as usize + len) * 512;
            match *step {
                Step::Write(at, len, byte) => {
                    let data: Vec<u8> = (0..len * 512).map(|i| byte ^ (i / 7) as u8).collect();
                    model[place(at, len)].copy_from_slice(&data);
                    client.write(cookie, at * 512, &data);
                }
                Step::Zero(at, len, punch) => {
                    model[place(at, len)].fill(0);
                    let flags = if punch { 0 } else { command_flag::NO_HOLE };
                    let (at, len) = (at * 512, len as u32 * 512);
                    client.request(command::WRITE_ZEROES, flags, cookie, at, len, &[]);
                }
                Step::Trim(at, len) => {
                    model[place(at, len)].fill(0);
                    client.request(command::TRIM, 0, cookie, at * 512, len as u32 * 512, &[]);
                }
                Step::Read(at, len) => client.ask_read(cookie, at * 512, len as u32 * 512),
            }
            expected.push(match *step {
                Step::Read(at, len) => Some((at * 512, model[place(at, len)].to_vec())),
                _ => None,
            });
        }
        for (cookie, expected) in (0..).zip(expected) {
            match (client.answer(), expected) {
                (answer, None) => prop_assert_eq!(answer, ok(cookie)),
                (Answer::Data { cookie: found, offset, data }, Some(expected)) => {
                    prop_assert_eq!((found, offset, data), (cookie, expected.0, expected.1));
                }
                (answer, Some((_, expected))) => {
                    prop_assert_eq!(answer, ok(cookie));
                    prop_assert_eq!(client.read(expected.len()), expected);
                }
            }
        }
        prop_assert_eq!(&*setup.device.bytes.lock(), &model);
    }
}
