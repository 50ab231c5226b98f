//! The pool runs every chunk once, survives panics and nesting, and keeps floating-point control at its default.
#![allow(unsafe_code)] // reads and sets the control register and threads' cores

use llm_kernels::{Placement, Pool};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn every_chunk_runs_once_whatever_the_numbers() {
    for threads in [1, 2, 3, 5] {
        let pool = Pool::new(threads);
        for chunks in (0..70).chain([1000]) {
            let hits: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(chunks, |i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn ranges_cover_every_unit_once_and_are_single_at_the_end() {
    for (threads, most) in [(1, 4), (2, 1), (2, 4), (3, 7)] {
        let pool = Pool::new(threads);
        for units in (0..40).chain([777]) {
            let hits: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
            pool.run_ranges(units, most, |range| {
                assert!(!range.is_empty() && range.len() <= most);
                assert!(threads == 1 || range.end < units || range.len() == 1, "{range:?} of {units}");
                range.for_each(|i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn a_pool_bound_to_cores_runs_every_chunk() {
    for cores in [&[0][..], &[0, 100_000], &[usize::MAX]] {
        let n = AtomicUsize::new(0);
        Pool::placed(3, Placement { cores, ..Default::default() }).run(40, |_| {
            n.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(n.into_inner(), 40);
    }
}

/// The cores that the calling thread may use.
#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    // SAFETY: a set of cores is plain memory, for which zeros are the empty set; the call writes to it alone
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &mut set), 0);
        (0..libc::CPU_SETSIZE as usize).filter(|&core| libc::CPU_ISSET(core, &set)).collect()
    }
}

#[cfg(target_os = "linux")]
#[test]
fn cores_are_those_of_the_pools_threads_and_not_the_callers() {
    let (caller, own) = (std::thread::current().id(), allowed());
    let last = *own.last().expect("a core");
    let pool = Pool::placed(2, Placement { cores: &[last], ..Default::default() });
    let seen = AtomicUsize::new(0);
    while seen.load(Ordering::Relaxed) == 0 {
        pool.run(8, |_| {
            if std::thread::current().id() == caller {
                assert_eq!(allowed(), own);
                std::thread::sleep(std::time::Duration::from_millis(1)); // the other one has time to come
            } else {
                assert_eq!(allowed(), [last]);
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

#[cfg(target_os = "linux")]
#[test]
fn zero_threads_are_as_many_as_the_process_has_cores() {
    // what a thread may use is its own affair: the others of this test keep theirs
    let threads = std::thread::spawn(|| {
        let first = allowed()[0];
        // SAFETY: as in `allowed`, and the core was in the set
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(first, &mut set);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
        }
        Pool::new(0).threads()
    });
    assert_eq!(threads.join().expect("no panic"), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn niceness_is_that_of_the_pools_threads_and_not_the_callers() {
    /// The nineteenth field; the second, a name in brackets, may hold spaces.
    fn niceness() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(16).unwrap().parse().unwrap()
    }
    let (caller, own) = (std::thread::current().id(), niceness());
    let pool = Pool::placed(2, Placement { niceness: 19, ..Default::default() });
    let seen = AtomicUsize::new(0);
    while seen.load(Ordering::Relaxed) == 0 {
        pool.run(8, |_| {
            if std::thread::current().id() == caller {
                assert_eq!(niceness(), own);
                std::thread::sleep(std::time::Duration::from_millis(1)); // the other one has time to come
            } else {
                assert_eq!(niceness(), 19);
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

#[test]
fn many_small_jobs_and_pauses_in_between() {
    let pool = Pool::new(2);
    let sum = AtomicUsize::new(0);
    for round in 0..3000 {
        pool.run(4, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        if round % 1000 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(2)); // long enough to park
        }
    }
    assert_eq!(sum.into_inner(), 3000 * 6);
}

#[test]
fn a_panic_comes_out_at_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(3);
    for bad in [0, 7, 31] {
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(32, |i| assert!(i != bad, "chunk {bad}"))));
        let payload = caught.expect_err("a panic");
        assert_eq!(
            payload.downcast_ref::<String>().map(String::as_str),
            Some(format!("chunk {bad}").as_str())
        );
        let n = AtomicUsize::new(0);
        pool.run(32, |_| {
            n.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(n.into_inner(), 32);
    }
}

#[test]
fn nested_jobs_and_several_callers_all_finish() {
    let pool = Pool::new(2);
    let n = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for _ in 0..50 {
                    pool.run(6, |_| {
                        pool.run(3, |_| {
                            n.fetch_add(1, Ordering::Relaxed);
                        })
                    });
                }
            });
        }
    });
    assert_eq!(n.into_inner(), 3 * 50 * 18);
}

/// The control word, its default, and one that flushes denormals.
#[cfg(target_arch = "x86_64")]
mod control {
    pub const DEFAULT: u64 = 0x1f80;
    pub const FLUSHING: u64 = 0x9fc0;

    pub fn read() -> u64 {
        let mut word = 0u32;
        // SAFETY: stores the control word to a local
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack)) };
        u64::from(word & !0x3f)
    }

    pub fn write(word: u64) {
        let word = word as u32;
        // SAFETY: loads a valid control word; the test restores it
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &word, options(nostack)) }
    }
}

#[cfg(target_arch = "aarch64")]
mod control {
    pub const DEFAULT: u64 = 0;
    pub const FLUSHING: u64 = 1 << 24;

    pub fn read() -> u64 {
        let word;
        // SAFETY: reads a register that every program may read
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) word, options(nostack)) };
        word
    }

    pub fn write(word: u64) {
        // SAFETY: a valid control word; the test restores it
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) word, options(nostack)) }
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn a_host_with_flushed_denormals_gets_default_arithmetic_and_its_own_back() {
    let pool = Pool::new(2);
    let before = control::read();
    control::write(control::FLUSHING);
    pool.run(50, |_| assert_eq!(control::read(), control::DEFAULT));
    let after = control::read();
    control::write(before);
    assert_eq!(after, control::FLUSHING);
}
