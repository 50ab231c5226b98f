//! A flag that ends a running call: set from any thread or a signal handler, looked at before every layer and while
//! a call waits for its turn at a pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, Status};

/// A shared cancel flag with an optional deadline. Clones share the flag.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: AtomicBool,
    born: Instant,
    /// Microseconds after `born`; 0: no deadline.
    deadline: AtomicU64,
    /// Checks until the flag sets itself; 0: it does not.
    countdown: AtomicU64,
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl Cancel {
    /// A flag that is not set, without a deadline.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            set: AtomicBool::new(false),
            born: Instant::now(),
            deadline: AtomicU64::new(0),
            countdown: AtomicU64::new(0),
        }))
    }

    /// A flag that sets itself the `checks`-th time that it is looked at, from 1: a test that counts up from there
    /// ends a call at every place where it can end.
    pub fn after(checks: u64) -> Self {
        let cancel = Self::new();
        cancel.0.countdown.store(checks, Ordering::Release);
        cancel
    }

    /// Sets the flag. One atomic store: safe in a signal handler.
    pub fn trigger(&self) {
        self.0.set.store(true, Ordering::Release);
    }

    /// Sets a deadline `after` from now, in place of an earlier one; `None` takes it away.
    pub fn set_deadline(&self, after: Option<Duration>) {
        let micros = after.map_or(0, |d| {
            let from_birth = self.0.born.elapsed().saturating_add(d);
            u64::try_from(from_birth.as_micros()).unwrap_or(u64::MAX).max(1)
        });
        self.0.deadline.store(micros, Ordering::Release);
    }

    /// Whether the flag is set (a passed deadline is not the flag).
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Clears the flag, the deadline and the count of [`Cancel::after`].
    pub fn reset(&self) {
        self.0.set.store(false, Ordering::Release);
        self.0.deadline.store(0, Ordering::Release);
        self.0.countdown.store(0, Ordering::Release);
    }

    /// `Ok` while work may go on.
    ///
    /// # Errors
    /// `CANCELLED` once the flag is set, `DEADLINE` once the deadline has passed.
    pub fn check(&self) -> Result<()> {
        if self.0.countdown.load(Ordering::Acquire) > 0
            && self.0.countdown.fetch_sub(1, Ordering::AcqRel) == 1
        {
            self.trigger();
        }
        if self.is_set() {
            return Err(Error::new(Status::CANCELLED, "cancelled by the host"));
        }
        let deadline = self.0.deadline.load(Ordering::Acquire);
        if deadline != 0 && self.0.born.elapsed().as_micros() >= u128::from(deadline) {
            return Err(Error::new(Status::DEADLINE, "the deadline of the cancel handle has passed"));
        }
        Ok(())
    }
}
