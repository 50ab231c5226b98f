//! A file that appears under its name whole or not at all.
//!
//! ```text
//! create: a name beside the target, in the same directory   ->   write   ->   persist: fsync, rename, fsync of the directory
//! ```
//! Until the rename an older file of the name stays as it is; a failure or a drop removes what was written. A process that
//! is killed leaves the temporary file, `.NAME.PID-N.tmp`; nobody stumbles over it, whatever process has its number later.

use crate::error::{Error, ErrorKind, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that go to the system at once. It keeps what is written in pieces of at most that size; of pieces of 2 MiB
/// and more it makes page-table entries of their own kind, 500 times fewer.
const PIECE: u64 = 4 << 20;

/// What temporary names end with.
const END: &str = ".tmp";

/// Temporary names that are tried where files of these names are there.
const TRIES: u32 = 10_000;

/// A file that has a temporary name until it is complete; dropped before that, it is removed. See the module's head.
pub struct TempFile {
    file: File,
    /// What is not written yet, and where it goes.
    piece: Vec<u8>,
    at: u64,
    temp: PathBuf,
    target: PathBuf,
    /// A write failed half-way: what is on the disk is not known any more.
    broken: bool,
    done: bool,
}

impl TempFile {
    /// Starts the file `target` under a temporary name beside it, with the permissions of any new file.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a path that names no file (`..`, `models/`) or where there is something else than a file:
    /// what is written could never be renamed onto it, or would take a device away. [`ErrorKind::NotFound`] where the
    /// directory of `target` is not there, [`ErrorKind::Io`] where it takes no new file.
    pub fn create(target: impl AsRef<Path>) -> Result<TempFile> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let target = target.as_ref();
        let name = names_a_file(target)?;
        let mut tries = 0;
        loop {
            let mut temp_name = begin(name);
            temp_name.push(format!("{}{END}", NEXT.fetch_add(1, Ordering::Relaxed)));
            let temp = target.with_file_name(temp_name);
            match File::create_new(&temp) {
                Ok(file) => {
                    let target = target.to_owned();
                    let (piece, at) = (Vec::new(), 0);
                    return Ok(TempFile { file, piece, at, temp, target, broken: false, done: false });
                }
                // Left by a killed process of the same number; in a container the first one is always number 1.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => tries += 1,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let doing = format!("creating {}: its directory is not there", target.display());
                    return Err(Error::io(doing, &e));
                }
                Err(e) => return Err(Error::io(format!("creating {}", temp.display()), &e)),
            }
        }
    }

    /// The temporary name, for a program that ends without dropping the file (a signal) and wants to remove it.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// What is there under temporary names that this process gives for `target`: the same for a program that does not
    /// have the `TempFile` at hand.
    pub fn unfinished(target: &Path) -> Vec<PathBuf> {
        let Some(name) = target.file_name() else { return Vec::new() };
        let begin = begin(name);
        let ours = |name: &OsStr| {
            let rest = name.as_encoded_bytes().strip_prefix(begin.as_encoded_bytes());
            rest.is_some_and(|rest| rest.ends_with(END.as_bytes()))
        };
        let beside = std::fs::read_dir(directory_of(target)).into_iter().flatten().flatten();
        beside.filter(|entry| ours(&entry.file_name())).map(|entry| entry.path()).collect()
    }

    /// Makes the bytes durable, then gives the file its name, in place of an older one.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], and [`ErrorKind::Invalid`] after a write that failed. The file is gone then, and an older one is
    /// as it was.
    pub fn persist(mut self) -> Result<()> {
        if self.broken {
            let message = format!("{}: a write to it failed before; start it again", self.target.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.flush().map_err(|e| self.failed("writing", &e))?;
        self.file.sync_all().map_err(|e| self.failed("syncing", &e))?;
        std::fs::rename(&self.temp, &self.target).map_err(|e| self.failed("naming", &e))?;
        self.done = true;
        // The name itself is durable once its directory is. Not every file system can sync one; the file is whole
        // either way.
        if cfg!(unix)
            && let Ok(directory) = File::open(directory_of(&self.target))
        {
            let _ = directory.sync_all();
        }
        Ok(())
    }

    fn failed(&self, doing: &str, e: &io::Error) -> Error {
        Error::io(format!("{doing} {}", self.target.display()), e)
    }

    /// Hands `bytes` to the system.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).inspect_err(|_| self.broken = true)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// What the temporary names begin with that this process gives for `name`.
fn begin(name: &OsStr) -> OsString {
    let mut begin = OsString::from(".");
    begin.push(name);
    begin.push(format!(".{}-", std::process::id()));
    begin
}

/// The directory of a file. The parent of a bare file name is empty, which no call takes for the current directory.
pub fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name of the file that `path` names, for work whose result will be written there: refuses at once what a
/// [`TempFile`] could not be renamed onto.
///
/// # Errors
/// [`ErrorKind::Invalid`], as [`TempFile::create`].
pub fn names_a_file(path: &Path) -> Result<&OsStr> {
    let invalid = |what: &str| Error::new(ErrorKind::Invalid, format!("{} {what}", path.display()));
    let Some(name) = path.file_name() else {
        return Err(invalid("names no file, expected the name of a file"));
    };
    // The last name of `models/` and `models/.` is `models`, but only a directory can be meant.
    if !path.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes()) {
        return Err(invalid("names a directory, expected the name of a file"));
    }
    // Renaming onto a device or a pipe would take it away.
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(invalid("exists and is not a file"));
    }
    Ok(name)
}

/// Writes `bytes` as the file `path`, whole or not at all: a [`TempFile`] in one call.
///
/// # Errors
/// Those of [`TempFile::create`] and [`TempFile::persist`].
pub fn replace(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let mut file = TempFile::create(path)?;
    file.write_all(bytes).map_err(|e| file.failed("writing", &e))?;
    file.persist()
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.temp);
        }
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A piece ends at a multiple of its size in the file.
        let room = (PIECE - (self.at + self.piece.len() as u64) % PIECE) as usize;
        let taken = bytes.len().min(room);
        if taken == room && self.piece.is_empty() {
            // What is a piece already is not copied into one.
            self.put(&bytes[..taken])?;
            return Ok(taken);
        }
        self.piece.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut piece = std::mem::take(&mut self.piece);
        let written = self.put(&piece);
        piece.clear();
        self.piece = piece;
        written
    }
}

impl Seek for TempFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.flush()?;
        self.at = self.file.seek(to)?;
        Ok(self.at)
    }
}
