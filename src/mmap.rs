//! Bytes that somebody keeps alive: a mapped file, a copy of one, or memory of the host; and address space for a cache.
//!
//! ```text
//! Bytes (pointer, length, owner) ──slice──▶ Bytes (part, same owner)      the last one drops the owner
//! owner = a mapping | a vector | whatever the host handed in
//! ```
//! A file that is changed or cut while it is mapped changes under us, and a read behind its new end is a signal no
//! library can answer: `docs/embedding.md` says so first, and load mode *copy* is immune. Our own writers only
//! rename. This file does not know what the bytes mean.

use std::fs::File;
use std::ops::{Deref, DerefMut, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
#[cfg(any(target_os = "linux", test))]
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapOptions};

use crate::error::{Error, Result, Status};

#[cfg(test)]
mod tests;

/// At least the size of a page of any system.
#[cfg(unix)]
const PAGE: usize = 64 << 10;

/// Opens a file to read. What is none is refused: to open a pipe would be to wait for somebody who writes to it.
///
/// # Errors
/// `NOT_FOUND`, `IO`, and `INVALID_ARG` for what is no file; none of them names it.
pub(crate) fn open(path: &Path) -> Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        let message = "expected a file, got a directory, a pipe or a device";
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    Ok(File::open(path)?)
}

/// A shared, immutable stretch of bytes. Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Bytes {
    start: *const u8,
    len: usize,
    /// Keeps `start .. start + len` alive.
    owner: Owner,
}

#[derive(Clone)]
enum Owner {
    /// Kept apart, because only a mapping takes advice.
    Mapping(#[cfg_attr(not(unix), allow(dead_code))] Arc<Mmap>), // elsewhere held for its drop alone
    /// A copy of ours, which can be locked in memory as a mapping can.
    Copy(#[cfg_attr(not(unix), allow(dead_code))] Arc<Memory>), // as above
    Other(#[allow(dead_code)] Arc<dyn Send + Sync>), // held for its drop alone
}

// SAFETY: the bytes are read-only for as long as the owner lives, and the owner itself is `Send + Sync`.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// The bytes of `owner`.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let owner = Arc::new(owner);
        // `as_ref` on a shared borrow that lasts as long as the `Arc`: nobody can move or change it meanwhile.
        let bytes: &[u8] = (*owner).as_ref();
        Self { start: bytes.as_ptr(), len: bytes.len(), owner: Owner::Other(owner) }
    }

    /// Memory of the host. `owner` is dropped, once, with the last `Bytes` over it.
    ///
    /// # Safety
    /// - `start` is valid for reads of `len` bytes, and nobody writes to them, until `owner` has been dropped.
    /// - `start` is not null, and `len` is at most `isize::MAX`.
    pub unsafe fn from_raw(start: *const u8, len: usize, owner: impl Send + Sync + 'static) -> Self {
        Self { start, len, owner: Owner::Other(Arc::new(owner)) }
    }

    /// Maps `len` bytes of `file` from `offset` on; `len` 0 means to the end of the file.
    ///
    /// # Errors
    /// `BAD_FORMAT` if the file is too short for it, or empty; `IO` if the system refuses.
    pub fn map(file: &File, offset: u64, len: u64) -> Result<Self> {
        let len = part(file, offset, len)?;
        // SAFETY: the mapping is read-only. That no other process changes the file is the contract of load mode
        // map, which the head of this file and docs/embedding.md state; all that is read from it is checked.
        let mapping = unsafe { MmapOptions::new().offset(offset).len(len).map(file) }
            .map_err(|e| Error::from(e).context("mapping the file"))?;
        // Where the system keeps files in large pages, reading makes them and mapping them costs next to nothing.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise(memmap2::Advice::HugePage); // advice that is refused changes nothing but speed
        Ok(Self { start: mapping.as_ptr(), len: mapping.len(), owner: Owner::Mapping(Arc::new(mapping)) })
    }

    /// Locks a mapping or a copy of ours in memory until it ends, which reads all of it; other bytes are left as they are.
    ///
    /// # Errors
    /// `UNSUPPORTED` where systems cannot, `IO` if this one refuses.
    pub fn lock(&self) -> Result<()> {
        #[cfg(unix)]
        {
            let locked = match &self.owner {
                Owner::Mapping(mapping) => mapping.lock(),
                Owner::Copy(memory) => memory.lock(),
                Owner::Other(_) => Ok(()),
            };
            locked.map_err(|e| {
                let what = format!(
                    "locking {} bytes in memory (the limit on locked memory, `ulimit -l`, must allow them)",
                    self.len
                );
                Error::from(e).context(&what)
            })
        }
        #[cfg(not(unix))]
        {
            if matches!(self.owner, Owner::Other(_)) {
                return Ok(());
            }
            let message = "locking a mapping in memory: expected a Unix system; map or copy it";
            Err(Error::new(Status::UNSUPPORTED, message))
        }
    }

    /// Reads `len` bytes of `file` from `offset` on into memory of our own; `len` 0 means to the end of the file.
    /// `progress` is told how many bytes there are so far, of how many, and may end it with an error.
    ///
    /// # Errors
    /// As [`Bytes::map`]; `NO_MEMORY` if there is none; what `progress` returns.
    pub fn read(
        file: &File,
        offset: u64,
        len: u64,
        progress: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Self> {
        const STEP: usize = 16 << 20;
        let len = part(file, offset, len)?;
        let mut memory = Reservation::new(len)?;
        let mut done = 0;
        while done < len {
            progress(done as u64, len as u64)?;
            let end = len.min(done + STEP);
            let target = &mut memory[done..end];
            // At offsets: a descriptor that the host shares keeps its position.
            #[cfg(unix)]
            let got = std::os::unix::fs::FileExt::read_at(file, target, offset + done as u64);
            #[cfg(windows)]
            let got = std::os::windows::fs::FileExt::seek_read(file, target, offset + done as u64);
            #[cfg(not(any(unix, windows)))]
            let got = {
                use std::io::{Read, Seek, SeekFrom};
                let mut file = file;
                file.seek(SeekFrom::Start(offset + done as u64)).and_then(|_| file.read(target))
            };
            match got {
                Ok(0) => {
                    return Err(Error::new(
                        Status::IO,
                        format!(
                            "reading the file: it ended after {done} of {len} bytes; was it cut meanwhile?"
                        ),
                    ));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from(e).context("reading the file")),
            }
        }
        progress(len as u64, len as u64)?;
        Ok(memory.freeze())
    }

    /// A copy of these bytes at a multiple of the system's page size.
    ///
    /// # Errors
    /// `NO_MEMORY`.
    pub fn aligned_copy(&self) -> Result<Self> {
        let mut memory = Reservation::new(self.len)?;
        memory[..self.len].copy_from_slice(self); // it has a byte even where there are none to copy
        Ok(memory.freeze().slice(0..self.len))
    }

    /// The part `range` of these bytes.
    ///
    /// # Panics
    /// If the range does not lie inside, as slicing does.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let part = &self[range];
        Self { start: part.as_ptr(), len: part.len(), owner: self.owner.clone() }
    }

    /// Reads these bytes in the background, from offset `first` on and then from the start, so that who uses them
    /// finds them in memory and in the page table. `None` for memory that is not a mapping, where the system has no
    /// such call, and where the bytes are more than the machine's memory.
    ///
    /// Without a `spare` core, what is in memory already is left to its users: threads that compute map its pages side by
    /// side in less time than they would lose to one more thread.
    pub(crate) fn prefetch(&self, first: usize, spare: bool) -> Option<Prefetch> {
        #[cfg(target_os = "linux")]
        if let Owner::Mapping(mapping) = &self.owner
            && self.len as u64 <= machine_memory().0
        {
            let (mapping, len) = (mapping.clone(), self.len);
            let before = self.start as usize - mapping.as_ptr() as usize;
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = stop.clone();
            let read = move || {
                let first = first.min(len) / PART;
                let parts = len.div_ceil(PART);
                let mut steps = Steps::new(parts, spare);
                while let Some(i) = steps.at() {
                    let start = (first + i) % parts * PART;
                    let part = PART.min(len - start);
                    let began = Instant::now();
                    // Unlike a read, this answers with an error where the file was cut or the disk fails.
                    if stopped.load(Ordering::Relaxed)
                        || mapping.advise_range(memmap2::Advice::PopulateRead, before + start, part).is_err()
                    {
                        return;
                    }
                    steps.took(began.elapsed());
                }
            };
            let thread = std::thread::Builder::new().name("llm-prefetch".into()).spawn(read).ok()?;
            return Some(Prefetch { stop, thread: Some(thread) });
        }
        let _ = (first, spare);
        None
    }
}

/// Which of so many parts to read next. A part that took no longer than one in memory does speaks for those behind it,
/// of which more and more are passed over; one that took longer has those read that were passed over before it.
#[cfg(any(target_os = "linux", test))]
struct Steps {
    at: usize,
    parts: usize,
    /// Parts from the last one to this one; 0 where none may be passed over.
    step: usize,
    /// A part that was read before those in front of it.
    until: usize,
}

#[cfg(any(target_os = "linux", test))]
impl Steps {
    /// The most that a look at one part speaks for.
    const MOST: usize = 16;
    /// A part in memory takes a tenth to a fifth of this, a part of a fast disk twice as much.
    const IN_MEMORY: Duration = Duration::from_micros(500);

    fn new(parts: usize, all: bool) -> Self {
        Self { at: 0, parts, step: usize::from(!all), until: 0 }
    }

    fn at(&self) -> Option<usize> {
        (self.at < self.parts).then_some(self.at)
    }

    fn took(&mut self, time: Duration) {
        if self.step == 0 || self.at < self.until {
            self.at += 1;
            if self.at == self.until {
                self.at += 1;
            }
        } else if time < Self::IN_MEMORY {
            self.step = (self.step * 2).min(Self::MOST);
            self.at += self.step;
        } else {
            self.until = self.at;
            self.at = if self.step > 1 { self.at + 1 - self.step } else { self.at + 1 };
            self.step = 1;
        }
    }
}

/// Bytes that are read before anybody looks whether the reading shall end: a few milliseconds of a slow disk.
#[cfg(target_os = "linux")]
const PART: usize = 4 << 20;

/// Bytes of the machine's memory, and those of them that nobody uses.
#[cfg(target_os = "linux")]
pub(crate) fn machine_memory() -> (u64, u64) {
    let number = |name| {
        // SAFETY: takes and returns numbers.
        u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(0)
    };
    let size = number(libc::_SC_PAGESIZE);
    let bytes = |pages: u64| pages.saturating_mul(size);
    (bytes(number(libc::_SC_PHYS_PAGES)), bytes(number(libc::_SC_AVPHYS_PAGES)))
}

/// Bytes of the machine's memory, and those of them that nobody uses: 0 for not known.
#[cfg(not(target_os = "linux"))]
pub(crate) fn machine_memory() -> (u64, u64) {
    (0, 0)
}

/// A thread that reads a mapping ahead of its use. It ends by itself when all is read, and when this is dropped.
#[derive(Debug)]
pub(crate) struct Prefetch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has nothing that panics
        }
    }
}

/// Checks that `offset .. offset + len` lies in `file`, 0 meaning its rest, and returns the length.
fn part(file: &File, offset: u64, len: u64) -> Result<usize> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(Error::new(Status::INVALID_ARG, "expected a file, got a directory"));
    }
    let size = metadata.len();
    if size == 0 {
        return Err(Error::new(Status::BAD_FORMAT, "the file is empty"));
    }
    let rest = size.checked_sub(offset).filter(|&rest| rest > 0 && len <= rest).ok_or_else(|| {
        Error::new(
            Status::BAD_FORMAT,
            format!("the file has {size} bytes; asked for {len} from offset {offset} on (0: the rest)"),
        )
    })?;
    let len = if len == 0 { rest } else { len };
    usize::try_from(len).ok().filter(|&len| isize::try_from(len).is_ok()).ok_or_else(|| {
        Error::new(Status::NO_MEMORY, format!("{len} bytes do not fit the address space"))
            .with("needed", len as i64)
    })
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: every constructor proves `start` valid for reads of `len` bytes while `owner` lives.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_owner(bytes)
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} bytes)", self.len)
    }
}

/// Another descriptor of the file behind `fd`, closed with the `File`.
///
/// # Errors
/// `IO` if `fd` is not an open descriptor.
#[cfg(unix)]
pub fn duplicate(fd: std::os::fd::RawFd) -> Result<File> {
    use std::os::fd::FromRawFd;
    // SAFETY: takes numbers only; a descriptor that is not open is an error.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor was just made, is open, and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(copy) })
}

/// Zeroed memory of our own whose pages the system commits when they are first written.
#[derive(Debug)]
pub struct Reservation(Memory);

#[cfg(any(unix, windows))]
type Memory = memmap2::MmapMut;
#[cfg(not(any(unix, windows)))]
type Memory = heap::Memory;

impl Reservation {
    /// Reserves `len` bytes (at least one).
    ///
    /// # Errors
    /// `NO_MEMORY`.
    pub fn new(len: usize) -> Result<Self> {
        #[cfg(any(unix, windows))]
        let memory = MmapOptions::new().len(len.max(1)).no_reserve_swap().map_anon();
        #[cfg(not(any(unix, windows)))]
        let memory = heap::Memory::new(len);
        // Pages of a KV cache lie in any order, and each ordinary page of the system is looked up on its own.
        #[cfg(target_os = "linux")]
        let memory = memory.inspect(|m| drop(m.advise(memmap2::Advice::HugePage)));
        memory.map(Self).map_err(|e| {
            Error::new(Status::NO_MEMORY, format!("reserving {len} bytes: {e}")).with("needed", len as i64)
        })
    }

    /// Gives the memory behind the first `from` bytes back to the system; what lay there is lost, the address space
    /// stays. Returns whether the system took it.
    pub fn discard(&mut self, from: usize) -> bool {
        #[cfg(unix)]
        {
            // The system takes whole pages of its own.
            let from = from.next_multiple_of(PAGE);
            let Some(len) = self.0.len().checked_sub(from).filter(|&len| len > 0) else { return true };
            // SAFETY: anonymous private memory that is borrowed exclusively; any content of it is valid bytes.
            unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, len) }.is_ok()
        }
        #[cfg(not(unix))]
        {
            let _ = from;
            false
        }
    }

    /// Makes it read-only.
    fn freeze(self) -> Bytes {
        let memory = Arc::new(self.0);
        Bytes { start: memory.as_ptr(), len: memory.len(), owner: Owner::Copy(memory) }
    }
}

impl Deref for Reservation {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Reservation {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// A system without mappings: memory of the heap.
#[cfg(not(any(unix, windows)))]
mod heap {
    use std::collections::TryReserveError;
    use std::ops::{Deref, DerefMut};

    #[derive(Clone)]
    #[repr(C, align(64))]
    struct Line([u8; 64]);

    /// Zeroed bytes at a multiple of 64.
    pub struct Memory {
        lines: Vec<Line>,
        len: usize,
    }

    impl Memory {
        pub fn new(len: usize) -> Result<Self, TryReserveError> {
            let mut lines = Vec::new();
            lines.try_reserve_exact(len.div_ceil(64))?;
            lines.resize(len.div_ceil(64), Line([0; 64]));
            Ok(Self { lines, len })
        }
    }

    impl Deref for Memory {
        type Target = [u8];

        fn deref(&self) -> &[u8] {
            // SAFETY: the lines are at least `len` bytes one after the other, written by `new`.
            unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
        }
    }

    impl DerefMut for Memory {
        fn deref_mut(&mut self) -> &mut [u8] {
            // SAFETY: as `deref`, and borrowed for us alone.
            unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
        }
    }

    impl std::fmt::Debug for Memory {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "Memory({} bytes)", self.len)
        }
    }
}
