//! Queues over a driver that the tests play.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::block::{Done, Geometry};

const DEADLINE: Duration = Duration::from_secs(20);
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 2;
const FUA: u32 = 1 << 13;

/// What the test and its driver share.
struct Played {
    bell: Arc<EventFd>,
    descriptors: Mutex<HashMap<u16, IoDescriptor>>,
    events: Mutex<Vec<Event>>,
    /// Data of writes by tag; others fail.
    written: Mutex<HashMap<u16, Bytes>>,
    read: Mutex<HashMap<u16, Vec<u8>>>,
}

struct PlayedDriver {
    shared: Arc<Played>,
    commits: Sender<(u16, i32)>,
    fetched: u16,
    /// What the first fetch is answered with.
    refusal: Option<i32>,
}

impl Driver for PlayedDriver {
    fn fetch(&mut self, tag: u16) -> io::Result<()> {
        assert_eq!(tag, self.fetched);
        self.fetched += 1;
        Ok(())
    }

    fn commit(&mut self, tag: u16, result: i32) -> io::Result<()> {
        self.commits.send((tag, result)).unwrap();
        Ok(())
    }

    fn submit(&mut self) -> io::Result<Vec<Event>> {
        let refusal = self.refusal.map(io::Error::from_raw_os_error);
        Ok(refusal.map(|e| Event::Ended(Some(e))).into_iter().collect())
    }

    fn wait(&mut self) -> io::Result<Vec<Event>> {
        let mut bell = [PollFd::new(
            std::os::fd::AsFd::as_fd(&*self.shared.bell),
            PollFlags::POLLIN,
        )];
        poll(&mut bell, PollTimeout::NONE)?;
        self.shared.bell.read()?;
        Ok(std::mem::take(&mut *self.shared.events.lock()))
    }

    fn descriptor(&self, tag: u16) -> IoDescriptor {
        self.shared.descriptors.lock()[&tag]
    }

    fn receive(&self, tag: u16, len: u32) -> io::Result<Bytes> {
        let written = self.shared.written.lock();
        let data = written.get(&tag).ok_or(io::ErrorKind::Other)?;
        assert_eq!(data.len(), len as usize);
        Ok(data.clone())
    }

    fn send(&self, tag: u16, parts: &[Bytes]) -> io::Result<()> {
        self.shared.read.lock().insert(tag, parts.concat());
        Ok(())
    }
}

/// Hands its requests to the test.
struct Device(Sender<Vec<(Op, Done)>>);

impl BlockDevice for Device {
    fn geometry(&self) -> Geometry {
        unreachable!("a queue does not ask")
    }

    fn submit(&self, batch: Vec<Request>) {
        let batch = batch.into_iter().map(|request| (request.op, request.done));
        self.0.send(batch.collect()).unwrap();
    }
}

struct Test {
    shared: Arc<Played>,
    commits: Receiver<(u16, i32)>,
    batches: Receiver<Vec<(Op, Done)>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Test {
    fn start(depth: u16) -> Self {
        let outcomes = Arc::new(Outcomes::new().unwrap());
        let shared = Arc::new(Played {
            bell: outcomes.bell(),
            descriptors: Mutex::default(),
            events: Mutex::default(),
            written: Mutex::default(),
            read: Mutex::default(),
        });
        let (commits, committed) = channel();
        let (submit, batches) = channel();
        let driver = PlayedDriver {
            shared: shared.clone(),
            commits,
            fetched: 0,
            refusal: None,
        };
        let queue = Queue::begin(driver, depth, Arc::new(Device(submit)), outcomes).unwrap();
        Self {
            shared,
            commits: committed,
            batches,
            thread: thread::spawn(move || queue.run()),
        }
    }

    /// The driver brings requests of one block each, all at once.
    fn ask(&self, requests: &[(u16, u32)]) {
        for (tag, op_flags) in requests {
            let descriptor = IoDescriptor {
                op_flags: *op_flags,
                sectors: 1,
                start_sector: (*tag).into(),
                address: 0,
            };
            self.shared.descriptors.lock().insert(*tag, descriptor);
        }
        let events = requests.iter().map(|(tag, _)| Event::Request(*tag));
        self.bring(events);
    }

    fn bring(&self, events: impl Iterator<Item = Event>) {
        self.shared.events.lock().extend(events);
        self.shared.bell.write(1).unwrap();
    }

    fn batch(&self) -> Vec<(Op, Done)> {
        self.batches.recv_timeout(DEADLINE).unwrap()
    }

    fn commit(&self) -> (u16, i32) {
        self.commits.recv_timeout(DEADLINE).unwrap()
    }

    /// All tags end; so does the queue.
    fn stop(self, depth: u16) -> io::Result<()> {
        self.bring((0..depth).map(|_| Event::Ended(None)));
        self.thread.join().unwrap()
    }
}

#[test]
fn requests_of_one_wake_up_are_one_batch_and_outcomes_come_from_any_thread() {
    let test = Test::start(4);
    let data = Bytes::from(vec![7; 512]);
    test.shared.written.lock().insert(1, data.clone());
    test.ask(&[(0, READ), (1, WRITE | FUA), (2, FLUSH)]);
    let mut batch = test.batch();
    let (flush, write, read) = (batch.pop(), batch.pop(), batch.pop());
    assert!(batch.is_empty());
    let (op, done) = flush.unwrap();
    assert!(matches!(op, Op::Flush));
    thread::spawn(move || done(Ok(Reply::Done))).join().unwrap();
    assert_eq!(test.commit(), (2, 0));
    let (op, done) = write.unwrap();
    assert!(matches!(op, Op::Write { offset: 512, data: found, fua: true } if found == data));
    thread::spawn(move || done(Ok(Reply::Done))).join().unwrap();
    assert_eq!(test.commit(), (1, 512));
    let (op, done) = read.unwrap();
    assert!(matches!(
        op,
        Op::Read {
            offset: 0,
            len: 512
        }
    ));
    let parts = [vec![1; 500], vec![2; 12]].map(Bytes::from).to_vec();
    done(Ok(Reply::Data(parts.clone())));
    assert_eq!(test.commit(), (0, 512));
    assert_eq!(test.shared.read.lock()[&0], parts.concat());
    // A tag is used again.
    test.ask(&[(2, FLUSH)]);
    test.batch().pop().unwrap().1(Ok(Reply::Done));
    assert_eq!(test.commit(), (2, 0));
    test.stop(4).unwrap();
}

#[test]
fn failures_become_errnos() {
    let test = Test::start(1);
    type Answer = Box<dyn FnOnce(Done)>;
    let answers: [(Answer, i32); 5] = [
        (Box::new(|done| done(Err(Refusal::NoSpace))), libc::ENOSPC),
        (Box::new(|done| done(Err(Refusal::Io))), libc::EIO),
        (Box::new(drop), libc::EIO),
        // A read that is short, or none.
        (Box::new(|done| done(Ok(Reply::Data(vec![])))), libc::EIO),
        (Box::new(|done| done(Ok(Reply::Done))), libc::EIO),
    ];
    for (answer, errno) in answers {
        test.ask(&[(0, READ)]);
        answer(test.batch().pop().unwrap().1);
        assert_eq!(test.commit(), (0, -errno));
    }
    // An unknown operation, and a write whose data cannot be had, are not the device's business. Never
    // EOPNOTSUPP, which fsync takes for success.
    for op in [99, WRITE] {
        test.ask(&[(0, op)]);
        assert_eq!(test.commit(), (0, -libc::EIO));
    }
    assert!(test.batches.try_recv().is_err());
    test.stop(1).unwrap();
}

#[test]
fn a_stop_waits_for_what_the_device_has() {
    let test = Test::start(2);
    test.ask(&[(0, FLUSH)]);
    let done = test.batch().pop().unwrap().1;
    test.bring([Event::Ended(None)].into_iter());
    done(Ok(Reply::Done));
    assert_eq!(test.commit(), (0, 0));
    // The commit asked for another request; that ends, too.
    test.bring([Event::Ended(None)].into_iter());
    test.thread.join().unwrap().unwrap();
}

#[test]
fn a_driver_that_refuses_is_reported() {
    let outcomes = Arc::new(Outcomes::new().unwrap());
    let shared = Test::start(0).shared;
    let driver = PlayedDriver {
        shared,
        commits: channel().0,
        fetched: 0,
        refusal: Some(libc::EBUSY),
    };
    let device = Arc::new(Device(channel().0));
    let error = Queue::begin(driver, 2, device, outcomes).err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));

    let test = Test::start(1);
    let refused = io::Error::from_raw_os_error(libc::EINVAL);
    test.bring([Event::Ended(Some(refused))].into_iter());
    let error = test.thread.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}
