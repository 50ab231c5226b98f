//! The threads that share the pieces of one pass.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of threads that run the pieces of a pass, the caller among them.
pub(super) struct Team {
    threads: usize,
}

impl Team {
    pub(super) fn new(threads: usize) -> Team {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Team { threads: if threads == 0 { available() } else { threads } }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `f` once with each of `0..pieces`.
    pub(super) fn run(&self, pieces: usize, f: &(dyn Fn(usize) + Sync)) {
        let helpers = self.threads.min(pieces).saturating_sub(1);
        if helpers == 0 {
            return (0..pieces).for_each(f);
        }
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= pieces {
                    break;
                }
                f(i);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(work);
            }
            work();
        });
    }
}
