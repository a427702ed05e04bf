//! An engine without threads: operations wait until the test takes one of them, by a seed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use walkeep_store::disk::DiskFile;
use walkeep_store::disk::engine::{Engine, FileOp, OpDone, carry_out};
use walkeep_store::disk::sim::PowerGone;
use walkeep_wire::random::Random;

type Submitted = (Arc<dyn DiskFile>, FileOp, OpDone);

pub struct Queue {
    waiting: Mutex<(Vec<Submitted>, Random)>,
    is_gone: AtomicBool,
}

impl Queue {
    pub fn new(seed: u64) -> Self {
        Self {
            waiting: Mutex::new((vec![], Random::new(seed))),
            is_gone: AtomicBool::new(false),
        }
    }

    /// Carries out one of the operations; false if there is none.
    pub fn step(&self) -> bool {
        let next = {
            let (waiting, random) = &mut *self.waiting.lock();
            let count = waiting.len() as u64;
            (count > 0).then(|| waiting.swap_remove(random.below(count) as usize))
        };
        let Some((file, op, done)) = next else {
            return false;
        };
        let result: io::Result<Bytes> = carry_out(&*file, op);
        if result.as_ref().is_err_and(PowerGone::is_cause_of) {
            self.is_gone.store(true, Ordering::SeqCst);
        }
        done(result);
        true
    }

    /// An operation found the power gone.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }
}

impl Engine for Queue {
    fn submit(&self, file: &Arc<dyn DiskFile>, op: FileOp, done: OpDone) {
        self.waiting.lock().0.push((file.clone(), op, done));
    }
}
