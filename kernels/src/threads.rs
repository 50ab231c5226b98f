//! Our own pool: a fork-join costs a fraction of a microsecond while the threads are awake.
//!
//! ```text
//! caller:  write job, open, bump epoch ─ take chunks ─ close ─ wait until nobody is inside ─ return
//! worker:  spin on epoch, then park ─ enter; if open: take chunks; leave ─ spin again
//! ```
//! Chunks are taken from a shared counter, so a thread that lost its core delays one chunk and not its share. A
//! worker that arrives late finds the job closed and is not waited for. A second caller, or a job that starts
//! another, runs its chunks alone. The pool does not know what a chunk is.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks.
const SPIN: Duration = Duration::from_micros(200);

/// A job's function, its lifetime forgotten: callers outlive it because `run` waits.
#[derive(Clone, Copy)]
struct Job {
    f: *const (dyn Fn(usize) + Sync),
    chunks: usize,
}

/// One cache line each, so that spinning on one does not slow the other down.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Counts jobs; workers spin on it.
    epoch: Line<AtomicU32>,
    /// Whether `job` may be entered.
    open: Line<AtomicBool>,
    /// Workers inside or looking.
    inside: Line<AtomicUsize>,
    /// Next chunk.
    next: Line<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the one caller that holds the pool's lock, while `open` is false and `inside` was
// seen zero after closing; it is read only by workers that counted themselves inside and then saw `open`. The
// function it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is used only while its owner waits in `run`.
unsafe impl Send for Shared {}

/// Threads that run jobs in chunks together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    busy: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
}

impl Pool {
    /// A pool of `threads` in all, the caller's included; 0: as many as the process may use (its affinity and its
    /// cgroup's quota). Where the system refuses a thread, the pool is smaller.
    pub fn new(threads: usize) -> Pool {
        let threads = if threads == 0 { default_threads() } else { threads };
        let workers = threads - 1;
        let shared = Arc::new(Shared {
            epoch: Line(AtomicU32::new(0)),
            open: Line(AtomicBool::new(false)),
            inside: Line(AtomicUsize::new(0)),
            next: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let threads: Vec<_> = (0..workers)
            .map_while(|i| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("llm-{}", i + 1))
                    .spawn(move || work(&shared, i))
                    .ok()
            })
            .collect();
        let handles = threads.iter().map(|t| t.thread().clone()).collect();
        Pool { shared, busy: Mutex::new(()), threads, handles }
    }

    /// Threads that take part, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `f(0)` .. `f(chunks - 1)`, each once, on whichever thread comes first, and returns when all are done.
    /// Floating-point control is at its default during the job. A panic in `f` ends the job and comes out here.
    pub fn run(&self, chunks: usize, f: impl Fn(usize) + Sync) {
        let _control = FloatControl::default_for_now();
        if chunks == 0 {
            return;
        }
        let lock = if chunks == 1 || self.threads.is_empty() { None } else { self.busy.try_lock().ok() };
        let Some(_lock) = lock else {
            (0..chunks).for_each(f);
            return;
        };
        let s = &*self.shared;
        let f: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime changes, and nobody holds the pointer once this function returns
        let f: *const (dyn Fn(usize) + Sync) = unsafe { core::mem::transmute(f) };
        let job = Job { f, chunks };
        // SAFETY: the lock is held, the job is closed and nobody is inside (see `Shared`)
        unsafe { *s.job.get() = Some(job) };
        s.next.0.store(0, Ordering::Relaxed);
        s.open.0.store(true, Ordering::SeqCst);
        s.epoch.0.fetch_add(1, Ordering::SeqCst);
        for (asleep, thread) in s.asleep.iter().zip(&self.handles) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        take(s, job);
        s.open.0.store(false, Ordering::SeqCst);
        let mut turns = 0u32;
        while s.inside.0.load(Ordering::SeqCst) != 0 {
            pause(&mut turns);
        }
        if s.panicked.swap(false, Ordering::Relaxed) {
            let payload = s.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(_lock);
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
            let _ = thread.join(); // a worker catches its panics
        }
    }
}

/// Spins a while, then gives the core away: on a busy machine, or under valgrind, whom we wait for needs it.
fn pause(turns: &mut u32) {
    *turns += 1;
    if *turns < 2000 {
        core::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

fn take(s: &Shared, job: Job) {
    loop {
        let i = s.next.0.fetch_add(1, Ordering::Relaxed);
        if i >= job.chunks {
            return;
        }
        // SAFETY: the caller of `run` waits until everyone left, so the function is alive
        let f = unsafe { &*job.f };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| f(i))) {
            s.next.0.store(job.chunks, Ordering::Relaxed);
            let mut first = s.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
            s.panicked.store(true, Ordering::Relaxed);
            return;
        }
    }
}

fn work(s: &Shared, me: usize) {
    let control = FloatControl::default_for_now();
    let mut seen = 0;
    while let Some(epoch) = wait(s, me, seen) {
        seen = epoch;
        s.inside.0.fetch_add(1, Ordering::SeqCst);
        if s.open.0.load(Ordering::SeqCst) {
            // SAFETY: inside and open, see `Shared`
            if let Some(job) = unsafe { *s.job.get() } {
                take(s, job);
            }
        }
        s.inside.0.fetch_sub(1, Ordering::SeqCst);
    }
    drop(control);
}

/// Waits for another epoch; `None` when the pool ends.
fn wait(s: &Shared, me: usize, seen: u32) -> Option<u32> {
    let news = || {
        let epoch = s.epoch.0.load(Ordering::SeqCst);
        (epoch != seen).then_some(epoch)
    };
    let mut since = None;
    let mut turns = 0u32;
    let epoch = loop {
        if let Some(epoch) = news() {
            break epoch;
        }
        turns += 1;
        core::hint::spin_loop();
        if turns.is_multiple_of(64) {
            if since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                continue;
            }
            // A caller that bumps the epoch after this store sees it and wakes us; one that did so before is seen.
            s.asleep[me].store(true, Ordering::SeqCst);
            while news().is_none() {
                std::thread::park();
            }
            s.asleep[me].store(false, Ordering::SeqCst);
        }
    };
    (!s.stop.load(Ordering::SeqCst)).then_some(epoch)
}

/// Cores this process may use: its affinity mask and its cgroup's quota.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Sets the thread's floating-point control to the default (round to nearest even, denormals on, exceptions
/// masked) and restores what it found when dropped. Costs one register read where nothing has to change.
pub struct FloatControl {
    #[cfg(target_arch = "x86_64")]
    found: Option<u32>,
}

impl FloatControl {
    /// Until the value is dropped.
    #[cfg(target_arch = "x86_64")]
    pub fn default_for_now() -> FloatControl {
        const DEFAULT: u32 = 0x1f80;
        const STATUS: u32 = 0x3f; // sticky flags, not control
        let mut found = 0u32;
        // SAFETY: stores the control word to a local
        unsafe { core::arch::asm!("stmxcsr [{}]", in(reg) &mut found, options(nostack)) };
        if found & !STATUS == DEFAULT {
            return FloatControl { found: None };
        }
        set_control(DEFAULT);
        FloatControl { found: Some(found) }
    }

    /// Until the value is dropped. Nothing to do on this machine.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn default_for_now() -> FloatControl {
        FloatControl {}
    }
}

#[cfg(target_arch = "x86_64")]
fn set_control(word: u32) {
    // SAFETY: loads a valid control word from a local; Rust code runs under the default or under what it found
    unsafe { core::arch::asm!("ldmxcsr [{}]", in(reg) &word, options(nostack)) };
}

impl Drop for FloatControl {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if let Some(word) = self.found {
            set_control(word);
        }
    }
}
