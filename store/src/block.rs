//! A block device as its exports see it: what NBD and ublk serve, and what the WAL device is.
//!
//! Requests go in by [`BlockDevice::submit`] and come back through their [`Done`], in any order and
//! on any thread. Exports check nothing but their own protocol: range, alignment and permissions are
//! the device's to refuse.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;

/// Sizes and abilities of a device. They hold for the life of a connection: a client sees a new
/// size when it connects again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device, a multiple of `min_block`.
    pub size: u64,
    /// Every offset and length is a multiple of it: 512 or 4096.
    pub min_block: u32,
    /// What requests are best aligned to.
    pub preferred_block: u32,
    /// Greatest length of a read or write. Trims and zeroes may be longer.
    pub max_request: u32,
    /// Writes, trims and zeroes are refused.
    pub read_only: bool,
}

/// What is asked of a device. Offsets and lengths are bytes.
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub enum Op {
    /// Answered by [`Reply::Data`] of `len` bytes.
    Read { offset: u64, len: u32 },
    /// `fua`: answered when the data is durable.
    Write { offset: u64, data: Bytes, fua: bool },
    /// Answered when every write that was answered before it came, on any connection, is durable.
    Flush,
    /// The range reads as zeros from now on; its space may be given back.
    Trim { offset: u64, len: u64, fua: bool },
    /// The range is written with zeros. `may_punch`: its space may be given back.
    Zero {
        offset: u64,
        len: u64,
        may_punch: bool,
        fua: bool,
    },
    /// Answered by [`Reply::Extents`], which cover the range from its start on: wholly, or to some
    /// place the device found convenient.
    Extents { offset: u64, len: u64 },
}

/// A range that is alike, from where the one before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, more than 0.
    pub len: u64,
    /// No space is used for it.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

/// What comes back from a request that went well.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Of writes, flushes, trims and zeroes.
    Done,
    /// Of reads: the parts follow each other and sum up to the length asked for.
    Data(Vec<Bytes>),
    /// Of extents.
    Extents(Vec<Extent>),
}

/// Why a request failed. The client sees no more than the kind; the cause is in the device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The medium failed, or the device is in a state that forbids it.
    #[error("input/output error")]
    Io,
    /// Length 0, a misaligned or too long request, or a range beyond the end.
    #[error("invalid request")]
    Invalid,
    /// A write beyond the end.
    #[error("beyond the end of the device")]
    NoSpace,
    /// A change to a read-only device.
    #[error("read-only")]
    ReadOnly,
    /// The device is closing.
    #[error("shutting down")]
    ShuttingDown,
}

/// Called exactly once with the outcome of a request, from any thread, perhaps before `submit`
/// returns. It must not block.
pub type Done = Box<dyn FnOnce(Result<Reply, Refusal>) + Send>;

/// A request and whom to tell.
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Whom to tell.
    pub done: Done,
}

/// A device that exports serve.
pub trait BlockDevice: Send + Sync + 'static {
    /// Sizes and abilities as of now.
    fn geometry(&self) -> Geometry;

    /// Takes requests in this order, which is the order of effect of those that overlap. A batch is
    /// cheaper than its requests one by one: they share log packs and system calls. It may block
    /// while the device is out of memory for pending writes; that is the back-pressure of exports.
    fn submit(&self, batch: Vec<Request>);
}

/// Something that gathers outcomes and can send them.
pub trait Gather: Send + Sync {
    /// Sends what has gathered. It does not block.
    fn release(self: Arc<Self>);
}

thread_local! {
    /// Who gathers on this thread: `None` outside of [`together`].
    static GATHERING: RefCell<Option<Vec<Arc<dyn Gather>>>> = const { RefCell::new(None) };
}

/// Runs `f`; outcomes that it reports by [`Done`] on this thread go to clients when it ends, in one
/// system call for each connection. Devices that complete many requests at once call it around that.
pub fn together<T>(f: impl FnOnce() -> T) -> T {
    /// Releases also when `f` panics: other threads wait for what has gathered.
    struct Release(bool);
    impl Drop for Release {
        fn drop(&mut self) {
            if self.0 {
                let gathered = GATHERING.take();
                gathered.into_iter().flatten().for_each(Gather::release);
            }
        }
    }
    let outermost = GATHERING.with_borrow_mut(|gathering| {
        let outermost = gathering.is_none();
        gathering.get_or_insert_default();
        outermost
    });
    let _release = Release(outermost);
    f()
}

/// Leaves the sending of outcomes to the end of [`together`]; false where there is none, and the
/// caller has to send.
pub fn gather<G: Gather + 'static>(gatherer: &Arc<G>) -> bool {
    GATHERING.with_borrow_mut(|gathering| {
        let Some(all) = gathering else {
            return false;
        };
        let known =
            |other: &Arc<dyn Gather>| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(gatherer));
        if !all.iter().any(known) {
            all.push(Arc::clone(gatherer) as Arc<dyn Gather>);
        }
        true
    })
}
