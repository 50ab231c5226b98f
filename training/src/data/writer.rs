//! Writes token files. A file has a temporary name, which one process at a time has for itself, until it is whole.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest, checksum};
use llm::error::{Error, Result, Status};

use super::{HEAD, MAGIC, READ, VERSION};

/// The temporary name of a token file.
pub(super) fn part(path: &Path) -> PathBuf {
    path.with_extension("tokens.part")
}

/// The file `part`, empty, for this process alone; what a killed one left there goes.
fn claim(part: &Path) -> Result<File> {
    let here = |e: io::Error| Error::from(e).context(part.display());
    loop {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(part).map_err(here)?;
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
            file.set_len(0).map_err(here)?;
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

/// Writes a token file under a temporary name; `finish` ends it, `settle` gives it its own.
pub(super) struct TokenWriter {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    crc: Digest,
    wide: bool,
    marked: bool,
    vocab: usize,
    hash: u64,
    pub(super) tokens: u64,
    learned: u64,
    bytes: u64,
    offsets: Vec<u64>,
    /// It has its own name.
    settled: bool,
}

impl TokenWriter {
    pub(super) fn create(path: &Path, vocab: usize, hash: u64, marked: bool) -> Result<TokenWriter> {
        let part = part(path);
        let mut file = BufWriter::new(claim(&part)?);
        file.write_all(&[0; HEAD]).map_err(|e| Error::from(e).context(part.display()))?;
        Ok(TokenWriter {
            path: path.into(),
            part,
            file,
            crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
            wide: vocab > 1 << 16 || marked,
            marked,
            vocab,
            hash,
            tokens: 0,
            learned: 0,
            bytes: 0,
            offsets: vec![0],
            settled: false,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc.update(bytes);
        self.file.write_all(bytes).map_err(|e| self.here(e))
    }

    fn here(&self, e: std::io::Error) -> Error {
        Error::from(e).context(self.part.display())
    }

    pub(super) fn push(&mut self, ids: &[u32], text_bytes: usize) -> Result<()> {
        let bytes: Vec<u8> = if self.wide {
            ids.iter().flat_map(|id| id.to_le_bytes()).collect()
        } else {
            ids.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect()
        };
        self.tokens += ids.len() as u64;
        self.bytes += text_bytes as u64;
        self.write(&bytes)
    }

    /// Ids of a conversation, of which some are learned.
    pub(super) fn push_marked(&mut self, ids: &[u32], learned: &[bool], text_bytes: usize) -> Result<()> {
        let marked: Vec<u32> =
            ids.iter().zip(learned).map(|(id, l)| if *l { *id } else { *id | READ }).collect();
        self.learned += learned.iter().filter(|l| **l).count() as u64;
        self.push(&marked, text_bytes)
    }

    pub(super) fn end_document(&mut self, end: Option<u32>) -> Result<()> {
        if self.offsets.last() == Some(&self.tokens) {
            return Ok(());
        }
        if let Some(end) = end {
            self.push(&[end], 0)?;
        }
        self.offsets.push(self.tokens);
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        let width = if self.wide { 4 } else { 2 };
        let padding = (self.tokens * width).next_multiple_of(8) - self.tokens * width;
        self.write(&[0; 8][..padding as usize])?;
        let offsets: Vec<u8> = self.offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
        self.write(&offsets)?;
        let mut head = [0u8; HEAD];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(width as u32).to_le_bytes());
        put(16, &(self.vocab as u32).to_le_bytes());
        put(20, &(self.crc.finalize() as u32).to_le_bytes());
        put(24, &self.hash.to_le_bytes());
        put(32, &self.tokens.to_le_bytes());
        put(40, &(self.offsets.len() as u64 - 1).to_le_bytes());
        put(48, &self.bytes.to_le_bytes());
        put(56, &u64::from(self.marked).to_le_bytes());
        put(64, &self.learned.to_le_bytes());
        let crc = checksum(CrcAlgorithm::Crc32Iscsi, &head[..HEAD - 4]) as u32;
        head[HEAD - 4..].copy_from_slice(&crc.to_le_bytes());
        let file = &mut self.file;
        let written =
            file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&head)).and_then(|()| file.flush());
        written.and_then(|()| self.file.get_ref().sync_all()).map_err(|e| self.here(e))
    }

    pub(super) fn settle(mut self) -> Result<()> {
        std::fs::rename(&self.part, &self.path).map_err(|e| Error::from(e).context(self.path.display()))?;
        self.settled = true;
        Ok(())
    }
}

impl Drop for TokenWriter {
    fn drop(&mut self) {
        // After a rename the temporary name may be another process's.
        if !self.settled {
            let _ = std::fs::remove_file(&self.part);
        }
    }
}
