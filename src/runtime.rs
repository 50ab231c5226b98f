//! The runtime: compute threads, the choice of instruction set, limits, and where log records go.
//!
//! Several may live side by side. Models hold theirs, so a runtime ends, and its threads with it, when the last
//! handle on it or on a model of it is dropped. It does not know models.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use llm_kernels::Placement;

use crate::backend::Backend;
use crate::device;
use crate::error::{Error, Result, Status};
use crate::importance::Importance;
use crate::mmap::machine_memory;

const MOST_THREADS: usize = 1024;

/// How much a log record matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    /// Something went wrong that no status reports.
    Error = 1,
    /// Something the host should know.
    Warn = 2,
    /// What is going on.
    Info = 3,
    /// Details for finding faults.
    Debug = 4,
}

/// Where log records go: called with whole records, from any thread, one at a time. It must not log to its own runtime,
/// nor open a model with it: it would wait for itself.
pub type LogSink = Box<dyn FnMut(LogLevel, &str) + Send>;

/// What a runtime is made with.
#[derive(Default)]
pub struct RuntimeOptions {
    /// Compute threads, the calling one included; 0: the cores that the process may use.
    pub threads: usize,
    /// Cores that the threads are bound to: thread i to `affinity[i mod length]`. Thread 0 is the calling one, which
    /// is left where it is. Empty: nobody is bound. Linux only.
    pub affinity: Vec<usize>,
    /// Niceness of the threads but the calling one, -20 (first served; the system may refuse it) to 19; 0: the one they
    /// inherit. Linux only.
    pub niceness: i32,
    /// Name of an instruction set in place of the best one (`LLM_ISA` overrides it).
    pub isa: Option<String>,
    /// The environment is not read: `LLM_ISA` means nothing.
    pub ignore_environment: bool,
    /// Log sink; `None`: silence.
    pub log: Option<LogSink>,
    /// The least level that is logged; `None`: `Warn`.
    pub log_level: Option<LogLevel>,
    /// Bytes of host memory that models and sessions may allocate (mapped weights not counted).
    pub host_limit: Option<u64>,
    /// Where to gather what the inputs of matrices are like; `None`: nowhere.
    pub importance: Option<Importance>,
}

impl fmt::Debug for RuntimeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.log.as_ref().map(|_| "sink");
        f.debug_struct("RuntimeOptions")
            .field("threads", &self.threads)
            .field("affinity", &self.affinity)
            .field("niceness", &self.niceness)
            .field("isa", &self.isa)
            .field("ignore_environment", &self.ignore_environment)
            .field("log", &log)
            .field("log_level", &self.log_level)
            .field("host_limit", &self.host_limit)
            .field("importance", &self.importance.is_some())
            .finish()
    }
}

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Memory {
    /// Weights that were copied rather than mapped.
    Weights = 0,
    /// Pages of KV caches, as far as they were ever used.
    Kv = 1,
    /// Activations and logits of sessions.
    Scratch = 2,
}

impl Memory {
    /// Every category.
    pub const ALL: [Memory; 3] = [Memory::Weights, Memory::Kv, Memory::Scratch];
}

/// Something of a runtime that can give memory back.
pub(crate) trait Cache: Send + Sync {
    /// Gives back what is not in use, and if `hard` also what would have to be computed again. Returns the bytes.
    fn trim(&self, hard: bool) -> u64;
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, with the instruction set in use.
    pub name: String,
    /// Compute threads.
    pub threads: usize,
    /// Bytes of memory it has; 0 where the system does not tell.
    pub total: u64,
    /// Bytes of it that nobody uses; 0 where the system does not tell.
    pub free: u64,
}

/// A handle on a runtime. Clones share it.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    backend: Arc<dyn Backend>,
    log: Mutex<Option<LogSink>>,
    level: AtomicU8,
    limit: Option<u64>,
    /// Live bytes by category.
    used: [AtomicU64; Memory::ALL.len()],
    /// Those of all categories, which the limit is for.
    total: AtomicU64,
    caches: Mutex<Vec<Weak<dyn Cache>>>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Runtime({})", self.0.backend.name())
    }
}

impl Runtime {
    /// Starts the compute threads.
    ///
    /// # Errors
    /// `INVALID_ARG` for more than 1024 threads, a niceness that does not exist or an instruction set that does not exist,
    /// `UNSUPPORTED` for one this machine lacks.
    pub fn new(options: RuntimeOptions) -> Result<Self> {
        let RuntimeOptions {
            threads,
            affinity,
            niceness,
            isa,
            ignore_environment,
            log,
            log_level,
            host_limit,
            importance,
        } = options;
        // Far more threads than cores take the whole process down once the system runs out of mappings.
        if threads > MOST_THREADS {
            let message = format!("{threads} threads: expected at most {MOST_THREADS}, or 0 for the cores");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        if !(-20..=19).contains(&niceness) {
            return Err(Error::new(Status::INVALID_ARG, format!("niceness {niceness}: expected -20 to 19")));
        }
        let placement = Placement { cores: &affinity, niceness };
        let variable = if ignore_environment { None } else { std::env::var_os("LLM_ISA") };
        let isa = device::named(variable.as_deref(), isa.as_deref())?;
        let backend = device::open(threads, placement, isa, importance);
        let level = log_level.unwrap_or(LogLevel::Warn);
        let runtime = Self(Arc::new(Inner {
            backend,
            log: Mutex::new(log),
            level: AtomicU8::new(level as u8),
            limit: host_limit,
            used: Default::default(),
            total: AtomicU64::new(0),
            caches: Mutex::default(),
        }));
        runtime.log(LogLevel::Info, &format!("runtime: {}", runtime.0.backend.name()));
        Ok(runtime)
    }

    /// Passes `record` to the log sink if its level is logged.
    pub fn log(&self, level: LogLevel, record: &str) {
        if level as u8 > self.0.level.load(Ordering::Relaxed) {
            return;
        }
        // A sink that panicked once is not called again: its state is unknown.
        if let Ok(mut sink) = self.0.log.lock()
            && let Some(sink) = sink.as_mut()
        {
            sink(level, record);
        }
    }

    /// Changes what is logged; `None`: nothing.
    pub fn set_log_level(&self, level: impl Into<Option<LogLevel>>) {
        self.0.level.store(level.into().map_or(0, |level| level as u8), Ordering::Relaxed);
    }

    /// Compute threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.0.backend.threads()
    }

    /// Name of the instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.0.backend.isa()
    }

    /// Live bytes of one category.
    pub fn memory_use(&self, memory: Memory) -> u64 {
        self.0.used[memory as usize].load(Ordering::Relaxed)
    }

    /// The bytes that models and sessions may allocate.
    pub fn host_limit(&self) -> Option<u64> {
        self.0.limit
    }

    /// The devices: the processor.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let (total, free) = machine_memory();
        vec![DeviceInfo { name: self.0.backend.name(), threads: self.threads(), total, free }]
    }

    /// Gives memory back: pages of KV pools that hold nothing, and if `hard` also those that only the prefix cache
    /// keeps. Waits for steps that are running. Returns the bytes.
    pub fn trim(&self, hard: bool) -> u64 {
        let caches = {
            let mut caches = self.0.caches.lock().unwrap_or_else(PoisonError::into_inner);
            caches.retain(|cache| cache.strong_count() > 0);
            caches.clone()
        };
        caches.iter().filter_map(Weak::upgrade).map(|cache| cache.trim(hard)).sum()
    }

    /// Has [`Runtime::trim`] ask `cache`, while it lives.
    pub(crate) fn add_cache(&self, cache: Weak<dyn Cache>) {
        let mut caches = self.0.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.retain(|cache| cache.strong_count() > 0);
        caches.push(cache);
    }

    /// Counts `bytes` as used until the charge is dropped.
    ///
    /// # Errors
    /// `BUDGET` if they exceed the runtime's limit together with what is in use.
    pub(crate) fn charge(&self, memory: Memory, bytes: u64) -> Result<Charge> {
        let mut charge = Charge { runtime: self.clone(), memory, bytes: 0 };
        charge.grow(bytes)?;
        Ok(charge)
    }

    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.0.backend
    }
}

/// Bytes counted against a runtime's limit.
#[derive(Debug)]
pub(crate) struct Charge {
    runtime: Runtime,
    memory: Memory,
    bytes: u64,
}

impl Charge {
    /// Adds `more` bytes.
    pub(crate) fn grow(&mut self, more: u64) -> Result<()> {
        let inner = &self.runtime.0;
        let limit = inner.limit.unwrap_or(u64::MAX);
        // Checked and counted in one step: of two threads that ask for the last bytes, one gets them.
        let within = |used: u64| used.checked_add(more).filter(|&sum| sum <= limit);
        if let Err(used) = inner.total.try_update(Ordering::Relaxed, Ordering::Relaxed, within) {
            let message =
                format!("{more} bytes more exceed the runtime's limit: {used} of {limit} bytes are in use");
            let needed = i64::try_from(more).unwrap_or(i64::MAX);
            return Err(Error::new(Status::BUDGET, message).with("needed", needed));
        }
        inner.used[self.memory as usize].fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        Ok(())
    }

    /// Takes `less` bytes away.
    pub(crate) fn shrink(&mut self, less: u64) {
        let less = less.min(self.bytes);
        let inner = &self.runtime.0;
        inner.used[self.memory as usize].fetch_sub(less, Ordering::Relaxed);
        inner.total.fetch_sub(less, Ordering::Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_for_all_categories_and_threads_together() {
        let options = RuntimeOptions { threads: 1, host_limit: Some(500), ..RuntimeOptions::default() };
        let runtime = Runtime::new(options).unwrap();
        let take = |memory| {
            let mut charge = runtime.charge(memory, 0).unwrap();
            while charge.grow(1).is_ok() {}
            charge
        };
        let take = &take;
        // Threads meet at the limit only now and then, so several times.
        let mut charges: Vec<Charge> = Vec::new();
        for _ in 0..50 {
            charges.clear();
            std::thread::scope(|scope| {
                let begun = |i: usize| scope.spawn(move || take(Memory::ALL[i % 3]));
                let threads: Vec<_> = (0..6).map(begun).collect();
                charges.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
            });
            assert_eq!(charges.iter().map(|charge| charge.bytes).sum::<u64>(), 500);
            assert_eq!(Memory::ALL.map(|memory| runtime.memory_use(memory)).iter().sum::<u64>(), 500);
        }
        let e = runtime.charge(Memory::Kv, u64::MAX).unwrap_err();
        assert_eq!((e.status(), e.detail("needed")), (Status::BUDGET, Some(i64::MAX)));
        drop(charges);
        assert_eq!(Memory::ALL.map(|memory| runtime.memory_use(memory)), [0; 3]);
        runtime.charge(Memory::Scratch, 500).unwrap();
    }
}
