//! Writes token files. A file has a temporary name, which one process at a time has for itself, until it is whole.
//!
//! ```text
//! NAME.tokens.part   header, ids  ┐ both only grow; cut back to what a journal says was there, with the
//! NAME.offsets.tmp   offsets      ┘ checksums it says, they are as they were then, and the writing goes on
//! ```

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crc_fast::{CrcAlgorithm, Digest, checksum};
use llm::error::{Error, Result, Status};
use serde::{Deserialize, Serialize};

use super::{HEAD, MAGIC, READ, VERSION};

/// Bytes read at once.
const BUFFER: usize = 1 << 20;

/// The temporary name of a token file.
pub(super) fn part(path: &Path) -> PathBuf {
    path.with_extension("tokens.part")
}

/// The name under which offsets wait until all ids are there.
pub(super) fn offsets(path: &Path) -> PathBuf {
    path.with_extension("offsets.tmp")
}

/// Token files whose temporary names this process has for itself.
static CLAIMED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn claimed() -> MutexGuard<'static, Vec<PathBuf>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process writes the token file `path`.
pub(super) fn is_claimed(path: &Path) -> bool {
    claimed().iter().any(|claimed| claimed == path)
}

/// Opens a file as it is, or a new one.
fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    file.map_err(|e| Error::from(e).context(path.display()))
}

/// The file `part` for this process alone, as a killed one left it.
fn claim(part: &Path) -> Result<File> {
    let here = |e: io::Error| Error::from(e).context(part.display());
    loop {
        let file = open(part)?;
        let opened = file.metadata().map_err(here)?;
        if !opened.is_file() {
            return Ok(file);
        }
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "{}: another process prepares data in this directory; wait for its end or give another one",
                    part.display()
                );
                return Err(Error::new(Status::BUSY, message));
            }
            // a file system without locks
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // whoever had it may have given it its own name since it was opened
        if std::fs::metadata(part).is_ok_and(|now| same(&opened, &now)) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn same(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// A file that only grows, and the checksum of what lies behind its head.
struct Growing {
    path: PathBuf,
    file: BufWriter<File>,
    head: u64,
    crc: Digest,
}

impl Growing {
    fn new(path: PathBuf, file: File, head: u64) -> Growing {
        Growing { path, file: BufWriter::new(file), head, crc: Digest::new(CrcAlgorithm::Crc32Iscsi) }
    }

    fn here(&self, e: io::Error) -> Error {
        Error::from(e).context(self.path.display())
    }

    /// Makes it a head of zeros and nothing else.
    fn clear(&mut self) -> Result<()> {
        self.crc = Digest::new(CrcAlgorithm::Crc32Iscsi);
        let file = self.file.get_mut();
        let cleared = match file.metadata() {
            Ok(metadata) if metadata.is_file() => file.set_len(0),
            other => other.map(drop),
        };
        let cleared = cleared.and_then(|()| self.file.seek(SeekFrom::Start(0)));
        let zeros = vec![0; self.head as usize];
        cleared.and_then(|_| self.file.write_all(&zeros)).map_err(|e| self.here(e))
    }

    /// Cuts it behind its first `len` bytes, if they have the checksum `crc`; else it stays as it is.
    fn cut(&mut self, len: u64, crc: u32) -> Result<bool> {
        let (mut digest, mut left, mut buffer) =
            (Digest::new(CrcAlgorithm::Crc32Iscsi), len, vec![0; BUFFER]);
        let file = self.file.get_mut();
        let mut read = file.seek(SeekFrom::Start(self.head)).map(drop);
        while left > 0 && read.is_ok() {
            let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            match file.read(&mut buffer[..most]) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    digest.update(&buffer[..n]);
                    left -= n as u64;
                }
                Err(e) => read = Err(e),
            }
        }
        if read.is_ok() && digest.finalize() as u32 != crc {
            return Ok(false);
        }
        let cut = read.and_then(|()| file.set_len(self.head + len));
        self.crc = digest;
        cut.map(|()| true).map_err(|e| self.here(e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc.update(bytes);
        self.file.write_all(bytes).map_err(|e| self.here(e))
    }

    /// The checksum of what is on the disk then.
    fn sync(&mut self) -> Result<u32> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map(|()| self.crc.finalize() as u32).map_err(|e| self.here(e))
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Written {
    pub tokens: u64,
    learned: u64,
    /// Of text.
    bytes: u64,
    documents: u64,
    /// Where the last document ends, counted in ids.
    end: u64,
    /// Checksums of ids and offsets, when they were last on the disk.
    ids_crc: u32,
    offsets_crc: u32,
}

/// Writes a token file under a temporary name; `finish` ends it, `settle` gives it its own.
pub(super) struct TokenWriter {
    path: PathBuf,
    ids: Growing,
    offsets: Growing,
    wide: bool,
    marked: bool,
    vocab: usize,
    hash: u64,
    pub(super) written: Written,
    /// The temporary files outlive the writer: they are another process's, or a journal says how to go on with them.
    pub(super) kept: bool,
}

impl TokenWriter {
    /// Has the temporary files for this process alone, as they are; next comes [`TokenWriter::begin`] or
    /// [`TokenWriter::go_on`].
    pub(super) fn claim(path: &Path, vocab: usize, hash: u64, marked: bool) -> Result<TokenWriter> {
        let (part, beside) = (part(path), offsets(path));
        let file = claim(&part)?;
        let beside = Growing::new(beside.clone(), open(&beside)?, 0);
        claimed().push(path.into());
        Ok(TokenWriter {
            path: path.into(),
            ids: Growing::new(part, file, HEAD as u64),
            offsets: beside,
            wide: vocab > 1 << 16 || marked,
            marked,
            vocab,
            hash,
            written: Written::default(),
            kept: true,
        })
    }

    /// Begins the files.
    pub(super) fn begin(&mut self) -> Result<()> {
        (self.kept, self.written) = (false, Written::default());
        self.ids.clear()?;
        self.offsets.clear()?;
        self.offsets.write(&0u64.to_le_bytes())
    }

    /// Goes on behind what was written, if the files hold it.
    pub(super) fn go_on(&mut self, written: &Written) -> Result<bool> {
        self.written = *written;
        let ids = written.tokens.saturating_mul(self.width());
        let offsets = written.documents.saturating_add(1).saturating_mul(8);
        Ok(self.ids.cut(ids, written.ids_crc)? && self.offsets.cut(offsets, written.offsets_crc)?)
    }

    /// What is written, once all of it is on the disk.
    pub(super) fn sync(&mut self) -> Result<Written> {
        (self.written.ids_crc, self.written.offsets_crc) = (self.ids.sync()?, self.offsets.sync()?);
        Ok(self.written)
    }

    fn width(&self) -> u64 {
        if self.wide { 4 } else { 2 }
    }

    pub(super) fn push(&mut self, ids: &[u32], text_bytes: usize) -> Result<()> {
        let bytes: Vec<u8> = if self.wide {
            ids.iter().flat_map(|id| id.to_le_bytes()).collect()
        } else {
            ids.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect()
        };
        self.written.tokens += ids.len() as u64;
        self.written.bytes += text_bytes as u64;
        self.ids.write(&bytes)
    }

    /// Ids of a conversation, of which some are learned.
    pub(super) fn push_marked(&mut self, ids: &[u32], learned: &[bool], text_bytes: usize) -> Result<()> {
        let marked: Vec<u32> =
            ids.iter().zip(learned).map(|(id, l)| if *l { *id } else { *id | READ }).collect();
        self.written.learned += learned.iter().filter(|l| **l).count() as u64;
        self.push(&marked, text_bytes)
    }

    pub(super) fn end_document(&mut self, end: Option<u32>) -> Result<()> {
        if self.written.end == self.written.tokens {
            return Ok(());
        }
        if let Some(end) = end {
            self.push(&[end], 0)?;
        }
        (self.written.end, self.written.documents) = (self.written.tokens, self.written.documents + 1);
        self.offsets.write(&self.written.end.to_le_bytes())
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        let (width, written) = (self.width(), self.written);
        let padding = (written.tokens * width).next_multiple_of(8) - written.tokens * width;
        self.ids.write(&[0; 8][..padding as usize])?;
        self.offsets.sync()?;
        let (offsets, mut buffer) = (self.offsets.file.get_mut(), vec![0; BUFFER]);
        let here = |e: io::Error| Error::from(e).context(self.offsets.path.display());
        offsets.seek(SeekFrom::Start(0)).map_err(here)?;
        loop {
            match offsets.read(&mut buffer).map_err(here)? {
                0 => break,
                n => self.ids.write(&buffer[..n])?,
            }
        }
        let mut head = [0u8; HEAD];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(width as u32).to_le_bytes());
        put(16, &(self.vocab as u32).to_le_bytes());
        put(20, &(self.ids.crc.finalize() as u32).to_le_bytes());
        put(24, &self.hash.to_le_bytes());
        put(32, &written.tokens.to_le_bytes());
        put(40, &written.documents.to_le_bytes());
        put(48, &written.bytes.to_le_bytes());
        put(56, &u64::from(self.marked).to_le_bytes());
        put(64, &written.learned.to_le_bytes());
        let crc = checksum(CrcAlgorithm::Crc32Iscsi, &head[..HEAD - 4]) as u32;
        head[HEAD - 4..].copy_from_slice(&crc.to_le_bytes());
        let file = &mut self.ids.file;
        let ended =
            file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&head)).and_then(|()| file.flush());
        ended.and_then(|()| file.get_ref().sync_all()).map_err(|e| self.ids.here(e))
    }

    pub(super) fn settle(mut self) -> Result<()> {
        // before the rename: after it the temporary names may be another process's
        let _ = std::fs::remove_file(&self.offsets.path);
        let named = std::fs::rename(&self.ids.path, &self.path);
        named.map_err(|e| Error::from(e).context(self.path.display()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for TokenWriter {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.ids.path);
            let _ = std::fs::remove_file(&self.offsets.path);
        }
        claimed().retain(|claimed| *claimed != self.path);
    }
}
