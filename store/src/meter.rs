//! How far long work has come, for whoever draws a progress bar or exports a metric.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes done and bytes in all. Cheap enough to be told of every batch.
#[derive(Default, Debug)]
pub struct Meter {
    done: AtomicU64,
    total: AtomicU64,
}

impl Meter {
    /// More bytes are known to be ahead.
    pub fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// More bytes are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes done, and bytes in all.
    pub fn read(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }
}
