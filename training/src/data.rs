//! Prepared data: a text as a file of token ids, made once, read at any offset.
//!
//! ```text
//!   0    "llmtoken"          8   version = 1          12  bytes per id, 2 or 4     16  vocabulary size
//!   20   CRC-32C of ids and offsets                   24  CRC-64/NVME of tokenizer.json
//!   32   ids                 40  documents            48  bytes of text learned    56  1: ids are marked
//!   64   marked: ids that are learned                 72  zeros
//!   124  CRC-32C of bytes 0..124
//!   128  ids, padded to 8 · then documents + 1 offsets (u64, counted in ids)        all little-endian
//! ```
//!
//! Marked ids have 4 bytes; the top bit says that a token is read and not learned, as what a user says to a model.
//! The file is mapped; each id is checked against the vocabulary when it is read.

mod journal;
mod preparation;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};
use llm::error::{Error, Result, Status};
use llm::mmap::Bytes;

pub use preparation::{Earlier, PrepareOptions, Prepared, Tokenized, prepare, tokenize};

const MAGIC: &[u8; 8] = b"llmtoken";
const VERSION: u32 = 1;
const HEAD: usize = 128;
/// Of a marked id: it is not learned.
const READ: u32 = 1 << 31;

/// A file's bytes; `None` where there is none.
pub(crate) fn optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from(e).context(path.display())),
    }
}

/// Takes a file away, if there is one.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::from(e).context(path.display())),
        _ => Ok(()),
    }
}

/// The hash that ties token files to the tokenizer that made them.
pub(crate) fn vocabulary_hash(tokenizer_json: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, tokenizer_json)
}

/// A token file, open for reading.
pub struct TokenFile {
    path: PathBuf,
    data: Bytes,
    width: u64,
    vocab: usize,
    crc: u32,
    hash: u64,
    tokens: u64,
    documents: u64,
    bytes: u64,
    marked: bool,
    learned: u64,
}

impl TokenFile {
    /// Opens a file and checks its header: magic, version, checksum, sizes against the file's length.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`, `BAD_FORMAT`, `BAD_VERSION`, `CHECKSUM`, each with the file's name.
    pub fn open(path: &Path) -> Result<TokenFile> {
        let here = |status, what: String| Error::new(status, format!("{}: {what}", path.display()));
        let io = |e: std::io::Error| Error::from(e).context(path.display());
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size < HEAD as u64 {
            return Err(here(Status::BAD_FORMAT, format!("{size} bytes: a token file has at least {HEAD}")));
        }
        let data = Bytes::map(&file, 0, size).map_err(|e| e.context(path.display()))?;
        let head = &data[..HEAD];
        let u32_at = |at: usize| head[at..at + 4].iter().rev().fold(0u32, |n, b| n << 8 | u32::from(*b));
        let u64_at = |at: usize| head[at..at + 8].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if &head[..8] != MAGIC {
            return Err(here(Status::BAD_FORMAT, "not a token file; `data prepare` makes one".into()));
        }
        if u32_at(8) != VERSION {
            return Err(here(Status::BAD_VERSION, format!("version {}, expected {VERSION}", u32_at(8))));
        }
        if checksum(CrcAlgorithm::Crc32Iscsi, &head[..HEAD - 4]) as u32 != u32_at(HEAD - 4) {
            return Err(here(
                Status::CHECKSUM,
                "the header's checksum does not match; prepare the data again".into(),
            ));
        }
        let (width, tokens, documents) = (u64::from(u32_at(12)), u64_at(32), u64_at(40));
        let need = tokens
            .checked_mul(width)
            .and_then(|n| n.checked_next_multiple_of(8))
            .and_then(|n| n.checked_add(documents.checked_add(1)?.checked_mul(8)?))
            .and_then(|n| n.checked_add(HEAD as u64));
        let marked = u64_at(56);
        if marked > 1 || (marked == 1 && width != 4) {
            return Err(here(Status::BAD_FORMAT, format!("mark {marked} with ids of {width} bytes")));
        }
        if !matches!(width, 2 | 4) || need != Some(size) {
            let message = format!(
                "{size} bytes, expected {tokens} ids of {width} bytes, {documents} offsets and header"
            );
            return Err(here(Status::BAD_FORMAT, message));
        }
        Ok(TokenFile {
            path: path.into(),
            width,
            vocab: u32_at(16) as usize,
            crc: u32_at(20),
            hash: u64_at(24),
            tokens,
            documents,
            bytes: u64_at(48),
            marked: marked == 1,
            learned: u64_at(64),
            data,
        })
    }

    /// Whether ids say which of them are learned.
    pub fn masked(&self) -> bool {
        self.marked
    }

    /// The number of ids that are learned.
    pub fn learned(&self) -> u64 {
        if self.marked { self.learned } else { self.tokens }
    }

    /// The file's name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where document `index` begins, counted in ids; the number of ids behind the last one. A damaged file's offsets
    /// stay within it.
    pub(crate) fn offset(&self, index: u64) -> u64 {
        let from = HEAD as u64 + (self.tokens * self.width).next_multiple_of(8);
        let at = (from + index.min(self.documents) * 8) as usize;
        let raw = self.data[at..at + 8].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if index >= self.documents { self.tokens } else { raw.min(self.tokens) }
    }

    /// The document that id `at` belongs to.
    pub(crate) fn document_at(&self, at: u64) -> u64 {
        let (mut low, mut high) = (0, self.documents);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.offset(middle) <= at { low = middle } else { high = middle }
        }
        low
    }

    /// As [`TokenFile::read`], and which of the ids are learned.
    ///
    /// # Errors
    /// As [`TokenFile::read`].
    pub fn read_learned(&self, start: u64, out: &mut [u32], learned: &mut Vec<bool>) -> Result<()> {
        self.read(start, out)?;
        let at = HEAD + (start * self.width) as usize + 3;
        learned.clear();
        learned.extend((0..out.len()).map(|i| !self.marked || self.data[at + 4 * i] & 0x80 == 0));
        Ok(())
    }

    /// The number of ids.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// The bytes of text behind the ids.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The size of the vocabulary; every id is below it.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The hash of the `tokenizer.json` that made the ids.
    pub fn vocabulary_hash(&self) -> u64 {
        self.hash
    }

    /// Reads `out.len()` ids from `start` on.
    ///
    /// # Errors
    /// `INVALID_ARG` beyond the end, `BAD_FORMAT` for an id outside the vocabulary.
    pub fn read(&self, start: u64, out: &mut [u32]) -> Result<()> {
        let n = out.len() as u64;
        if start.checked_add(n).is_none_or(|end| end > self.tokens) {
            let message = format!("{}: ids {start} + {n} of {}", self.path.display(), self.tokens);
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let at = HEAD + (start * self.width) as usize;
        let bytes = &self.data[at..at + out.len() * self.width as usize];
        for (i, (id, raw)) in out.iter_mut().zip(bytes.chunks_exact(self.width as usize)).enumerate() {
            *id = raw.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
            if self.marked {
                *id &= !READ;
            }
            if *id as usize >= self.vocab {
                let place = start + i as u64;
                let message =
                    format!("{}: id {id} at {place}, vocabulary of {}", self.path.display(), self.vocab);
                return Err(Error::new(Status::BAD_FORMAT, message));
            }
        }
        Ok(())
    }

    /// Reads the whole file and compares its checksum.
    ///
    /// # Errors
    /// `CHECKSUM`.
    pub fn verify(&self) -> Result<()> {
        if checksum(CrcAlgorithm::Crc32Iscsi, &self.data[HEAD..]) as u32 != self.crc {
            let message = format!("{}: checksum does not match; prepare the data again", self.path.display());
            return Err(Error::new(Status::CHECKSUM, message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
