//! Mappings, copies and what the system is told of them.

use super::*;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

#[test]
fn mapped_equals_read_at_any_offset() {
    let content: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
    let file = file(&content);
    for (offset, len) in [(0, 0), (0, 10_000), (1, 9_999), (4096, 64), (4100, 0), (9_999, 1)] {
        let end = if len == 0 { content.len() } else { offset + len };
        let mapped = Bytes::map(&file, offset as u64, len as u64).unwrap();
        let read = Bytes::read(&file, offset as u64, len as u64, &mut |_, _| Ok(())).unwrap();
        assert_eq!(&*mapped, &content[offset..end]);
        assert_eq!(&*read, &content[offset..end]);
        for first in [0, 4096, mapped.len(), usize::MAX] {
            drop(mapped.prefetch(first, first % 3 == 0));
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_prefetch_keeps_the_file_no_longer_than_itself() {
    let mapped = Bytes::map(&file(&vec![7; 9 << 20]), 0, 0).unwrap();
    let prefetch = mapped.prefetch(5 << 20, true).unwrap();
    assert!(mapped.slice(4096..8192).prefetch(0, false).is_some());
    assert!(Bytes::from(vec![1u8; 10]).prefetch(0, true).is_none());
    let Owner::Mapping(mapping) = &mapped.owner else { panic!("a mapping") };
    drop(prefetch);
    assert_eq!(Arc::strong_count(mapping), 1);
}

/// Which pages of a mapping from its file's start are in memory.
#[cfg(target_os = "linux")]
fn resident(mapped: &Bytes) -> Vec<bool> {
    // SAFETY: takes and returns numbers.
    let size = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    let mut pages = vec![0u8; mapped.len().div_ceil(size)];
    // SAFETY: the mapping begins with a page and lives, and there is a byte for each of its pages.
    let failed = unsafe { libc::mincore(mapped.start.cast_mut().cast(), mapped.len(), pages.as_mut_ptr()) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    pages.iter().map(|page| page & 1 == 1).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_prefetch_brings_all_of_a_file_into_memory_wherever_it_begins() {
    use std::os::fd::AsRawFd;
    let Owner::Mapping(tried) = Bytes::map(&file(&[7]), 0, 0).unwrap().owner else { panic!("a mapping") };
    if tried.advise_range(memmap2::Advice::PopulateRead, 0, 1).is_err() {
        return llm_testdata::lacks("a system that reads mappings ahead (Linux 5.14): prefetch is not shown");
    }
    // Beside this program and not in the temporary directory, which may be memory.
    let program = std::env::current_exe().unwrap();
    for first in [0, 5 << 20] {
        let mut file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
        file.write_all(&vec![7; (9 << 20) + 100]).unwrap();
        file.sync_all().unwrap();
        // SAFETY: takes numbers; the descriptor is open.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        let mapped = Bytes::map(&file, 0, 0).unwrap();
        let before = resident(&mapped);
        if !before.contains(&false) {
            return llm_testdata::lacks("a disk whose files leave memory when asked: prefetch is not shown");
        }
        let mut prefetch = mapped.prefetch(first, true).unwrap();
        prefetch.thread.take().unwrap().join().unwrap();
        let count = |pages: &[bool]| pages.iter().filter(|page| **page).count();
        let (before, after) = (count(&before), resident(&mapped));
        assert_eq!(count(&after), after.len(), "pages in memory; before {before}");
    }
}

/// The parts that are read where `cold` ones take long.
fn read(parts: usize, all: bool, cold: impl Fn(usize) -> bool) -> Vec<usize> {
    let (mut steps, mut read) = (Steps::new(parts, all), Vec::new());
    while let Some(i) = steps.at() {
        assert!(!read.contains(&i), "{i} after {read:?}");
        read.push(i);
        steps.took(if cold(i) { Steps::IN_MEMORY } else { Duration::ZERO });
    }
    read
}

#[test]
fn parts_in_memory_are_passed_over_and_others_are_not() {
    assert_eq!(read(5, true, |_| false), [0, 1, 2, 3, 4]);
    assert_eq!(read(5, false, |_| true), [0, 1, 2, 3, 4]);
    assert_eq!(read(100, false, |_| false), [0, 2, 6, 14, 30, 46, 62, 78, 94]);
    assert!(read(0, false, |_| true).is_empty());
    for from in 0..60 {
        let seen = read(100, false, |i| i >= from);
        assert!((from..84).all(|i| seen.contains(&i)), "cold from {from} on: {seen:?}");
    }
}

#[test]
fn a_range_outside_the_file_is_refused() {
    let file = file(&[1; 100]);
    for (offset, len) in [(0, 101), (100, 0), (101, 0), (u64::MAX, 2), (50, u64::MAX)] {
        assert_eq!(Bytes::map(&file, offset, len).unwrap_err().status(), Status::BAD_FORMAT);
    }
}

#[test]
fn a_copy_of_nothing_is_nothing() {
    assert!(Bytes::from(Vec::<u8>::new()).aligned_copy().unwrap().is_empty());
}

#[test]
#[cfg(target_os = "linux")]
fn a_copy_of_ours_is_locked_as_a_mapping_is() {
    let copy = Bytes::from(vec![7u8; 1 << 20]).aligned_copy().unwrap();
    match copy.lock() {
        Ok(()) => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
            assert!(locked.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >= 1 << 10, "{locked}");
        }
        Err(e) => assert!(e.status() == Status::IO && e.message().contains("ulimit -l"), "{e}"),
    }
}

#[test]
fn the_owner_is_dropped_once_with_the_last_slice() {
    struct Hook(Arc<AtomicUsize>);
    impl Drop for Hook {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    static MEMORY: [u8; 4] = [1, 2, 3, 4];
    let drops = Arc::new(AtomicUsize::new(0));
    // SAFETY: a static lives for ever and is never written.
    let bytes = unsafe { Bytes::from_raw(MEMORY.as_ptr(), 4, Hook(drops.clone())) };
    let part = bytes.slice(1..3);
    drop(bytes);
    assert_eq!((&*part, drops.load(Ordering::Relaxed)), (&[2u8, 3][..], 0));
    drop(part);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
}
