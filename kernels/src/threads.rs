//! Our own pool: a fork-join costs a fraction of a microsecond while the threads are awake.
//!
//! ```text
//! caller:  write job, open, bump epoch ─ take units ─ close ─ wait until nobody is inside ─ return
//! worker:  spin on epoch, then park ─ enter; if open: take units; leave ─ spin again
//! ```
//! Units of work are taken from a shared counter, several at once while many are left and fewer towards the end, so
//! that threads finish together whatever each of them was held up by. A worker that arrives late finds the job
//! closed and is not waited for; one that keeps losing its core inside of jobs is left out for a while (`rest.rs`).
//! A second caller, or a job that starts another, does its units alone. The pool does not know what a unit is.

mod rest;

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use rest::{Clock, Rests};

/// How long an idle worker spins before it begins to offer its core to others.
const SPIN: Duration = Duration::from_micros(200);
/// How long it is idle before it parks. Longer than what a host does between two tokens: waking costs tens of
/// microseconds, on a virtual machine more.
const AWAKE: Duration = Duration::from_millis(1);
/// Turns of waiting for others before the core is offered: some 50 to 100 microseconds.
const TURNS: u32 = 2000;

/// A job's function, its lifetime forgotten: callers outlive it because `run` waits.
#[derive(Clone, Copy)]
struct Job {
    f: *const (dyn Fn(Range<usize>) + Sync),
    units: usize,
    /// Units taken at once, at most.
    most: usize,
    /// Threads among which what is left is divided.
    threads: usize,
}

/// One cache line each, so that spinning on one does not slow the other down.
#[repr(align(128))]
struct Line<T>(T);

/// What caller and one worker tell each other.
#[repr(align(128))]
struct Worker {
    asleep: AtomicBool,
    /// Set by the caller: leave jobs alone and park.
    resting: AtomicBool,
    /// Whether it takes part in the job, for the caller that waits and wants to know for whom.
    inside: AtomicBool,
    clock: Clock,
}

struct Shared {
    /// Counts jobs; workers spin on it.
    epoch: Line<AtomicU32>,
    /// Whether `job` may be entered.
    open: Line<AtomicBool>,
    /// Workers inside or looking.
    inside: Line<AtomicUsize>,
    /// Next unit.
    next: Line<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    workers: Vec<Worker>,
}

// SAFETY: `job` is written by the one caller that holds the pool's lock, while `open` is false and `inside` was
// seen zero after closing; it is read only by workers that counted themselves inside and then saw `open`. A worker
// that counts itself inside after the caller saw zero finds `open` false: all four accesses are sequentially
// consistent. What workers wrote is seen by the caller that reads their leaving, what the caller wrote by workers
// that read `open`. The function the job points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is used only while its owner waits in `run`.
unsafe impl Send for Shared {}

/// Where threads of a pool run. Thread 0 is the caller's, which belongs to the host and is left as it is. What the
/// system refuses changes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement<'a> {
    /// Thread i is bound to core `cores[i mod length]`; empty: nobody is bound.
    pub cores: &'a [usize],
    /// Niceness in place of the one threads inherit, -20 (first served) to 19; 0: the inherited one.
    pub niceness: i32,
}

/// Threads that run jobs together with the caller. A child of `fork` has none of them: there the caller works alone.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose job runs.
    busy: Mutex<Rests>,
    threads: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    /// The process that has the threads. A child of `fork` has only their memory.
    process: u32,
}

impl Pool {
    /// A pool of `threads` in all, the caller's included; 0: as many as the process may use (its affinity and its
    /// cgroup's quota). Where the system refuses a thread, the pool is smaller.
    pub fn new(threads: usize) -> Pool {
        Pool::placed(threads, Placement::default())
    }

    /// The same, with threads where `placement` puts them.
    pub fn placed(threads: usize, placement: Placement) -> Pool {
        let threads = if threads == 0 { default_threads() } else { threads };
        let workers = threads - 1;
        let worker = || Worker {
            asleep: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            inside: AtomicBool::new(false),
            clock: Clock::default(),
        };
        let shared = Arc::new(Shared {
            epoch: Line(AtomicU32::new(0)),
            open: Line(AtomicBool::new(false)),
            inside: Line(AtomicUsize::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            workers: (0..workers).map(|_| worker()).collect(),
        });
        let threads: Vec<_> = (0..workers)
            .map_while(|i| {
                let shared = shared.clone();
                let Placement { cores, niceness } = placement;
                let core = (!cores.is_empty()).then(|| cores[(i + 1) % cores.len()]);
                std::thread::Builder::new()
                    .name(format!("llm-{}", i + 1))
                    .spawn(move || {
                        if let Some(core) = core {
                            bind(core);
                        }
                        if niceness != 0 {
                            set_niceness(niceness);
                        }
                        work(&shared, &shared.workers[i]);
                    })
                    .ok()
            })
            .collect();
        let handles: Vec<_> = threads.iter().map(|t| t.thread().clone()).collect();
        let rests = Rests::new(handles.len());
        Pool { shared, busy: Mutex::new(rests), threads, handles, process: process() }
    }

    /// Threads that take part, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `f(0)` .. `f(chunks - 1)`, each once, on whichever thread comes first, and returns when all are done.
    /// Floating-point control is at its default during the job. A panic in `f` ends the job and comes out here.
    pub fn run(&self, chunks: usize, f: impl Fn(usize) + Sync) {
        self.run_ranges(chunks, 1, |range| range.for_each(&f));
    }

    /// [`Pool::run`] for units that are cheaper together: calls `f` with ranges of up to `most` units that cover
    /// `0..units`, each unit once; single units at the end, where several threads share them.
    pub fn run_ranges(&self, units: usize, most: usize, f: impl Fn(Range<usize>) + Sync) {
        let _control = FloatControl::default_for_now();
        if units == 0 {
            return;
        }
        let most = most.max(1);
        let lock = if units == 1 || self.threads.is_empty() { None } else { self.busy.try_lock().ok() };
        let awake = lock.map(|mut rests| (rests.awake(&self.shared.workers[..self.threads.len()]), rests));
        let Some((awake @ 1.., mut rests)) = awake else {
            drop(awake); // a panic that unwinds through a held lock would leave the pool alone for ever
            for start in (0..units).step_by(most) {
                f(start..(start + most).min(units));
            }
            return;
        };
        let s = &*self.shared;
        let f: &(dyn Fn(Range<usize>) + Sync) = &f;
        // SAFETY: only the lifetime changes, and nobody holds the pointer once this function returns
        let f: *const (dyn Fn(Range<usize>) + Sync) = unsafe { core::mem::transmute(f) };
        let job = Job { f, units, most, threads: awake + 1 };
        // SAFETY: the lock is held, the job is closed and nobody is inside (see `Shared`)
        unsafe { *s.job.get() = Some(job) };
        s.next.0.store(0, Ordering::Relaxed);
        s.open.0.store(true, Ordering::SeqCst);
        s.epoch.0.fetch_add(1, Ordering::SeqCst);
        for (worker, thread) in s.workers.iter().zip(&self.handles) {
            if worker.asleep.load(Ordering::SeqCst) && !worker.resting.load(Ordering::Relaxed) {
                thread.unpark();
            }
        }
        take(s, job);
        s.open.0.store(false, Ordering::SeqCst);
        let mut turns = 0;
        while s.inside.0.load(Ordering::SeqCst) != 0 {
            // Spins a while, then gives the core away: on a busy machine, or under valgrind, whom we wait for needs it.
            turns += 1;
            if turns < TURNS {
                core::hint::spin_loop();
                continue;
            }
            if turns == TURNS {
                if self.process != process() {
                    // whoever was inside when the process was forked did not come along
                    s.inside.0.store(0, Ordering::SeqCst);
                    break;
                }
                rests.watch(&s.workers);
            }
            std::thread::yield_now();
        }
        if turns >= TURNS {
            rests.judge(&s.workers);
        }
        if s.panicked.swap(false, Ordering::Relaxed) {
            let payload = s.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(rests);
            if let Some(payload) = payload {
                resume_unwind(payload);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for thread in &self.handles {
            thread.unpark();
        }
        for thread in self.threads.drain(..) {
            if self.process == process() {
                let _ = thread.join(); // a worker catches its panics
            } else {
                std::mem::forget(thread); // it does not run here, and its stack may have another use by now
            }
        }
    }
}

impl Job {
    /// Takes units: an equal share of what is left, within 1..=most.
    fn take(&self, next: &AtomicUsize) -> Option<Range<usize>> {
        if self.most == 1 {
            let at = next.fetch_add(1, Ordering::Relaxed);
            return (at < self.units).then(|| at..at + 1);
        }
        let mut at = next.load(Ordering::Relaxed);
        loop {
            let left = self.units.checked_sub(at).filter(|&left| left > 0)?;
            let end = at + (left / self.threads).clamp(1, self.most);
            match next.compare_exchange_weak(at, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(at..end),
                Err(now) => at = now,
            }
        }
    }
}

fn take(s: &Shared, job: Job) {
    while let Some(range) = job.take(&s.next.0) {
        // SAFETY: the caller of `run_ranges` waits until everyone left, so the function is alive
        let f = unsafe { &*job.f };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| f(range))) {
            s.next.0.store(job.units, Ordering::Relaxed);
            let mut first = s.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
            s.panicked.store(true, Ordering::Relaxed);
            return;
        }
    }
}

fn work(s: &Shared, me: &Worker) {
    let control = FloatControl::default_for_now();
    me.clock.set();
    let mut seen = 0;
    while let Some(epoch) = wait(s, me, seen) {
        seen = epoch;
        s.inside.0.fetch_add(1, Ordering::SeqCst);
        if s.open.0.load(Ordering::SeqCst) {
            me.inside.store(true, Ordering::Relaxed);
            // SAFETY: inside and open, see `Shared`
            if let Some(job) = unsafe { *s.job.get() } {
                take(s, job);
            }
            me.inside.store(false, Ordering::Relaxed);
        }
        s.inside.0.fetch_sub(1, Ordering::SeqCst);
    }
    drop(control);
}

/// Waits for another epoch, and the end of a rest; `None` when the pool ends.
fn wait(s: &Shared, me: &Worker, seen: u32) -> Option<u32> {
    let stop = || s.stop.load(Ordering::SeqCst);
    let news = || {
        let epoch = s.epoch.0.load(Ordering::SeqCst);
        (epoch != seen && (!me.resting.load(Ordering::SeqCst) || stop())).then_some(epoch)
    };
    let mut since = None;
    let mut turns = 0u32;
    let epoch = loop {
        if let Some(epoch) = news() {
            break epoch;
        }
        turns = turns.wrapping_add(1);
        core::hint::spin_loop();
        if !turns.is_multiple_of(64) {
            continue;
        }
        if !me.resting.load(Ordering::Relaxed) {
            let idle = since.get_or_insert_with(Instant::now).elapsed();
            if idle < SPIN {
                continue;
            }
            if idle < AWAKE {
                std::thread::yield_now();
                continue;
            }
        }
        // A caller that bumps the epoch after this store sees it and wakes us; one that did so before is seen. The
        // end of a rest is always followed by a bump.
        me.asleep.store(true, Ordering::SeqCst);
        while news().is_none() {
            std::thread::park();
        }
        me.asleep.store(false, Ordering::SeqCst);
    };
    (!stop()).then_some(epoch)
}

/// The number of this process; 0 where there are no others.
fn process() -> u32 {
    if cfg!(any(unix, windows)) { std::process::id() } else { 0 }
}

/// Binds the calling thread to a core, where the system knows how and allows it.
fn bind(core: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: a set of cores is plain memory, for which zeros are the empty set; the index is inside it
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if core < libc::CPU_SETSIZE as usize {
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &set);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

/// Sets the calling thread's niceness, where the system has one for each thread and allows it.
fn set_niceness(niceness: i32) {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes three numbers; 0 stands for the calling thread
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, niceness);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = niceness;
}

/// Cores this process may use: its affinity mask and its cgroup's quota.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Sets the thread's floating-point control to the default (round to nearest even, denormals on, exceptions
/// masked) and restores what it found when dropped. Costs one register read where nothing has to change.
pub struct FloatControl {
    /// The word to put back; `None` where it was the default.
    found: Option<control::Word>,
}

impl FloatControl {
    /// Until the value is dropped.
    pub fn default_for_now() -> FloatControl {
        let found = control::read();
        if found & !control::STATUS == control::DEFAULT {
            return FloatControl { found: None };
        }
        control::write(control::DEFAULT);
        FloatControl { found: Some(found) }
    }
}

impl Drop for FloatControl {
    fn drop(&mut self) {
        if let Some(word) = self.found {
            control::write(word);
        }
    }
}

/// MXCSR.
#[cfg(target_arch = "x86_64")]
mod control {
    pub type Word = u32;
    pub const DEFAULT: Word = 0x1f80;
    /// Sticky flags, not control.
    pub const STATUS: Word = 0x3f;

    #[inline]
    pub fn read() -> Word {
        let mut word = 0;
        // SAFETY: stores the control word to a local
        unsafe { core::arch::asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack)) };
        word
    }

    #[inline]
    pub fn write(word: Word) {
        // SAFETY: loads a valid control word from a local; Rust code runs under the default or under what it found
        unsafe { core::arch::asm!("ldmxcsr [{}]", in(reg) &word, options(nostack)) };
    }
}

/// FPCR. Its flags lie in another register.
#[cfg(target_arch = "aarch64")]
mod control {
    pub type Word = u64;
    pub const DEFAULT: Word = 0;
    pub const STATUS: Word = 0;

    #[inline]
    pub fn read() -> Word {
        let word;
        // SAFETY: reads a register that every program may read
        unsafe { core::arch::asm!("mrs {}, fpcr", out(reg) word, options(nomem, nostack, preserves_flags)) };
        word
    }

    #[inline]
    pub fn write(word: Word) {
        // SAFETY: the default or a word that was there; not `nomem`, so that no sum moves across it through memory
        unsafe { core::arch::asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
    }
}

/// A machine whose arithmetic has no control word that we know.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod control {
    pub type Word = u32;
    pub const DEFAULT: Word = 0;
    pub const STATUS: Word = 0;

    pub fn read() -> Word {
        DEFAULT
    }

    pub fn write(_: Word) {}
}

#[cfg(test)]
mod tests {
    /// Where this code runs as it is: what executes another machine's code forks less surely.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn a_forked_child_computes_alone_and_ends_its_pool() {
        use super::{AtomicUsize, Ordering, Pool};
        let pool = Pool::new(3);
        pool.run(8, |_| ());
        // SAFETY: the child uses the pool and ends, without returning to whoever else was forked
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "no child");
        if child == 0 {
            // SAFETY: takes a number; a child that waits for ever is ended by the signal
            unsafe { libc::alarm(20) };
            // as where a worker looked for a job at that moment
            pool.shared.inside.0.fetch_add(1, Ordering::SeqCst);
            let sum = AtomicUsize::new(0);
            for _ in 0..2 {
                pool.run(100, |unit| {
                    sum.fetch_add(unit, Ordering::Relaxed);
                });
            }
            drop(pool);
            // SAFETY: ends this process at once
            unsafe { libc::_exit(i32::from(sum.into_inner() != 2 * 4950)) };
        }
        let mut status = -1;
        // SAFETY: waits for our own child and writes to a local
        let ended = unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!((ended, status), (child, 0));
    }
}
