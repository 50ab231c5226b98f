//! Who sits out: workers that hold jobs up more than they help.
//!
//! ```text
//! caller waits long for a worker ─ its clock stood still meanwhile? ─ it had lost its core: a stall
//! stalls take more than a quarter of the time ─ it rests 5 ms, 10, 20 .. 320 ms; then it is tried again
//! ```
//! A foreign process on a worker's core takes it away in the middle of a unit, for milliseconds at a time, and the
//! job waits for that unit. Half a core given and taken this way is worth less than none. A worker that is held up
//! now and then is worth keeping, so what counts is the share of time. All of this happens where the caller has
//! waited long already; jobs that end together pay one branch.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use super::Worker;

/// A wait that counts.
const STALL: Duration = Duration::from_millis(1);
const FIRST_REST: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_millis(320);
/// The share of time lost to stalls above which a worker rests. Leaving out one of two threads costs up to half.
const BEARABLE: f32 = 0.25;

/// A worker's processor time, readable by the caller. Set once by the worker.
#[derive(Default)]
pub(super) struct Clock(AtomicI32);

impl Clock {
    /// Makes it the clock of the calling thread.
    pub(super) fn set(&self) {
        #[cfg(target_os = "linux")]
        {
            let mut id = 0;
            // SAFETY: writes the number of this thread's clock to a local
            if unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut id) } == 0 {
                self.0.store(id, Ordering::Relaxed);
            }
        }
    }

    /// The time; `None` where the system has no such clock.
    fn read(&self) -> Option<Duration> {
        let id = self.0.load(Ordering::Relaxed);
        #[cfg(target_os = "linux")]
        if id != 0 {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: writes to a local; a number that names no clock is an error
            if unsafe { libc::clock_gettime(id, &mut time) } == 0 {
                return Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32));
            }
        }
        let _ = id;
        None
    }
}

/// What the pool remembers of its workers.
pub(super) struct Rests {
    workers: Vec<Record>,
    /// Whether anybody rests.
    any: bool,
    /// When the present wait began to be watched.
    since: Instant,
}

struct Record {
    /// Its clock at `since`, if it was inside.
    before: Option<Duration>,
    /// End of the last stall or rest.
    last: Instant,
    /// Running mean of the share of time that stalls take.
    lost: f32,
    rest: Duration,
    until: Option<Instant>,
}

impl Rests {
    pub(super) fn new(workers: usize) -> Rests {
        let now = Instant::now();
        let record = || Record { before: None, last: now, lost: 0.0, rest: FIRST_REST, until: None };
        Rests { workers: (0..workers).map(|_| record()).collect(), any: false, since: now }
    }

    /// Ends the rests that are over; how many workers do not rest.
    pub(super) fn awake(&mut self, workers: &[Worker]) -> usize {
        if !self.any {
            return workers.len();
        }
        let now = Instant::now();
        let mut awake = 0;
        for (record, worker) in self.workers.iter_mut().zip(workers) {
            if record.until.is_some_and(|until| until <= now) {
                (record.until, record.last) = (None, now);
                worker.resting.store(false, Ordering::SeqCst);
            }
            awake += usize::from(record.until.is_none());
        }
        self.any = awake < self.workers.len();
        awake
    }

    /// The caller has waited a while: notes whose clock shows what.
    pub(super) fn watch(&mut self, workers: &[Worker]) {
        self.since = Instant::now();
        for (record, worker) in self.workers.iter_mut().zip(workers) {
            record.before = worker.inside.load(Ordering::Relaxed).then(|| worker.clock.read()).flatten();
        }
    }

    /// The wait is over: who was inside and without a core for most of it had a stall.
    pub(super) fn judge(&mut self, workers: &[Worker]) {
        let now = Instant::now();
        let waited = now - self.since;
        if waited < STALL {
            return;
        }
        for (record, worker) in self.workers.iter_mut().zip(workers) {
            let (Some(before), Some(after)) = (record.before, worker.clock.read()) else { continue };
            if after.saturating_sub(before) > waited / 2 {
                continue;
            }
            if !record.stalled(waited, now) {
                continue;
            }
            worker.resting.store(true, Ordering::SeqCst);
            self.any = true;
        }
    }
}

impl Record {
    /// Notes a stall of `waited` that ends `now`; whether it rests from now on.
    fn stalled(&mut self, waited: Duration, now: Instant) -> bool {
        let all = (now - self.last).max(waited);
        self.lost = (self.lost + waited.as_secs_f32() / all.as_secs_f32()) / 2.0;
        self.last = now;
        if self.lost <= BEARABLE {
            self.rest = FIRST_REST;
            return false;
        }
        self.until = Some(now + self.rest);
        self.rest = (self.rest * 2).min(LONGEST_REST);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Pool;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicBool;

    const MS: Duration = Duration::from_millis(1);

    fn record(now: Instant) -> Record {
        Record { before: None, last: now, lost: 0.0, rest: FIRST_REST, until: None }
    }

    #[test]
    fn a_worker_that_loses_half_its_time_rests_longer_and_longer() {
        let mut now = Instant::now();
        let mut record = record(now);
        let mut rested = Duration::ZERO;
        let mut worked = Duration::ZERO;
        for _ in 0..30 {
            now += 6 * MS;
            worked += 6 * MS;
            if record.stalled(3 * MS, now) {
                let until = record.until.take().expect("an end of the rest");
                rested += until - now;
                (record.last, now) = (until, until);
            }
        }
        assert_eq!(record.rest, LONGEST_REST);
        assert!(rested > 20 * worked, "rested {rested:?}, worked {worked:?}");
    }

    #[test]
    fn a_panic_while_all_workers_rest_leaves_the_pool_its_lock() {
        let pool = Pool::new(2);
        let mut rests = pool.busy.lock().expect("no panic yet");
        rests.any = true;
        rests.workers[0].until = Some(Instant::now() + Duration::from_secs(3600));
        drop(rests);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(4, |unit| panic!("unit {unit}"))));
        assert!(caught.is_err() && !pool.busy.is_poisoned());
    }

    #[test]
    fn a_worker_that_rests_takes_no_part_and_is_woken_when_its_time_is_over() {
        let pool = Pool::new(3);
        let resting = || std::thread::current().name() == Some("llm-1");
        let rest = |until| {
            let mut rests = pool.busy.lock().expect("no panic");
            rests.any = true;
            rests.workers[0].until = Some(until);
        };
        pool.shared.workers[0].resting.store(true, Ordering::SeqCst);
        rest(Instant::now() + Duration::from_secs(3600));
        for _ in 0..50 {
            pool.run(8, |_| assert!(!resting()));
        }
        rest(Instant::now());
        let came = AtomicBool::new(false);
        for _ in 0..10_000 {
            pool.run(3, |_| match resting() {
                true => came.store(true, Ordering::Relaxed),
                false => std::thread::sleep(MS), // it has time to come
            });
            if came.load(Ordering::Relaxed) {
                return;
            }
        }
        panic!("it never came back");
    }

    #[test]
    fn a_worker_that_is_held_up_now_and_then_keeps_working() {
        let mut now = Instant::now();
        let mut record = record(now);
        for _ in 0..100 {
            now += 20 * MS;
            assert!(!record.stalled(3 * MS, now));
        }
    }
}
