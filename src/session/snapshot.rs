//! Snapshots: a session's tokens, pages and logits in a buffer or a file, to go on elsewhere with the same bits.
//!
//! ```text
//! 0    8  magic "llmsnap\n"            40  1  KV type        1  determinism level   1  logits there   1  reserved, 0
//! 8    4  version, 1                   44  4  tokens of a page
//! 12   4  tokens                       48  8  bytes of a page
//! 16   8  length of the whole          56  4  length told to rotary scaling, 0 where it does not matter
//! 24   4  CRC-32C of all behind 28     60  4  ids there are (vocabulary)
//! 28   4  see below                    64  8  bytes of the host's own
//! 32   8  see below                    72 32  fingerprint of the model
//! 104 32  BLAKE3 of the adapters' fingerprints, each with its scale; zeros for none
//! 136     tokens, i32 each · logits, f32 each, if there · the host's own · pages of what the next token sees
//! ```
//! Little-endian. After an overflow, at 28: the first token whose keys were moved, plus 1, or 0; at 32: tokens dropped
//! so far, and at 36 the same with all bits turned; else zeros. Everything is checked before a session changes. Pages
//! that come from a snapshot are the session's alone: they are never found by others, since nobody can tell whether
//! their bytes were computed from the tokens.

use std::path::Path;

use llm_format::crc32c;
use llm_kernels::Level;

use super::Session;
use crate::error::{Error, Result, Status};
use crate::kv::{KvType, Root};
use crate::mmap::{self, Bytes};

const MAGIC: &[u8; 8] = b"llmsnap\n";
const VERSION: u32 = 1;
const HEADER: usize = 136;
/// Bytes that the checksum does not cover: those before and in it.
const BEFORE_CHECKED: usize = 28;

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Version of the layout.
    pub version: u32,
    /// The model's [`crate::model::Model::fingerprint`].
    pub fingerprint: [u8; 32],
    /// Storage of keys and values.
    pub kv: KvType,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Determinism level it was computed with.
    pub determinism: Level,
    /// Length that rotary scaling was told; 0 where it does not matter.
    pub rope_length: u32,
    /// What names the adapters it was computed with, and their scales; zeros for none.
    pub adapters: [u8; 32],
    /// The tokens it holds.
    pub tokens: Vec<i32>,
    /// What the host put beside it, such as the state of a sampler.
    pub extra: Vec<u8>,
}

/// A snapshot whose structure is proven.
struct Parsed<'a> {
    info: SnapshotInfo,
    page_bytes: usize,
    vocab: u32,
    dropped: usize,
    moved_from: Option<usize>,
    /// As bytes; empty where there are none.
    logits: &'a [u8],
    pages: &'a [u8],
}

impl SnapshotInfo {
    /// Reads what `bytes` say about themselves; needs no model.
    ///
    /// # Errors
    /// `BAD_FORMAT`, `BAD_VERSION`, `CHECKSUM`.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        parse(bytes).map(|parsed| parsed.info)
    }
}

impl Session {
    /// Bytes of a snapshot of this session with `extra` bytes of the host's own.
    pub fn snapshot_size(&self, extra: usize) -> usize {
        let logits = if self.logits().is_ok() { self.logits.len() * 4 } else { 0 };
        let pages = self.pool.lock();
        HEADER + self.tokens.len() * 4 + logits + extra + pages.content_bytes(self.tokens.len())
    }

    /// The session as bytes, with `extra` bytes of the host's own.
    ///
    /// # Errors
    /// `UNSUPPORTED` with `rope_running`, whose keys do not follow from the tokens; `NO_MEMORY`; `KV_FULL` where a
    /// swapped session cannot come back.
    pub fn snapshot(&mut self, extra: &[u8]) -> Result<Vec<u8>> {
        let Some(root) = self.root else {
            let message = "a session whose rotary scaling follows a running length has no snapshots";
            return Err(Error::new(Status::UNSUPPORTED, message));
        };
        self.swap_in()?;
        self.recover(None)?;
        let size = self.snapshot_size(extra.len());
        let mut out = Vec::new();
        let refused = |_| Error::new(Status::NO_MEMORY, format!("a snapshot of {size} bytes: no memory"));
        out.try_reserve_exact(size).map_err(refused)?;
        let pages = self.pool.lock();
        let shape = pages.store().shape();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tokens.len() as u32).to_le_bytes());
        out.extend((size as u64).to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.moved_from.map_or(0, |from| from as u32 + 1).to_le_bytes());
        let dropped = u32::try_from(self.dropped).unwrap_or(u32::MAX).min(MOST_DROPPED);
        out.extend(dropped.to_le_bytes());
        out.extend(guard(dropped).to_le_bytes());
        let logits = self.logits().ok();
        out.extend([kv_code(self.pool.kv()), level_code(root.level), u8::from(logits.is_some()), 0]);
        out.extend((shape.tokens as u32).to_le_bytes());
        out.extend((shape.bytes as u64).to_le_bytes());
        out.extend(root.rope.to_le_bytes());
        out.extend(self.model.spec().vocab.to_le_bytes());
        out.extend((extra.len() as u64).to_le_bytes());
        out.extend(self.model.fingerprint());
        out.extend(root.adapters);
        self.tokens.iter().for_each(|id| out.extend(id.to_le_bytes()));
        logits.into_iter().flatten().for_each(|logit| out.extend(logit.to_le_bytes()));
        out.extend(extra);
        pages.export(self.table, self.tokens.len(), &mut out);
        debug_assert_eq!(out.len(), size);
        let crc = crc32c(&out[BEFORE_CHECKED..]);
        out[24..28].copy_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Writes a snapshot to `path`: to a name beside it first, then renamed.
    ///
    /// # Errors
    /// As [`Session::snapshot`], `INVALID_ARG` for a path that names no file or where there is something else,
    /// `NOT_FOUND` (of its directory), `IO`.
    pub fn snapshot_to(&mut self, path: &Path, extra: &[u8]) -> Result<()> {
        let bytes = self.snapshot(extra)?;
        Ok(llm_format::replace(path, &bytes)?)
    }

    /// Makes an empty session what `bytes` hold. Returns the host's own bytes.
    ///
    /// # Errors
    /// `BAD_STATE` if the session holds tokens; `BAD_FORMAT`, `BAD_VERSION`, `CHECKSUM` for damaged bytes;
    /// `MISMATCH` for another model, KV type, page size, determinism level, rotary length or adapters; `CONTEXT_FULL`,
    /// `KV_FULL`, `BUDGET`. Session and pool are as before then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        if !self.is_empty() {
            let message = format!("restoring into a session of {} tokens: reset it first", self.len());
            return Err(Error::new(Status::BAD_STATE, message));
        }
        let parsed = parse(bytes)?;
        self.fits(&parsed)?;
        let ids = &parsed.info.tokens;
        self.check_ids(ids)?;
        let most = parsed.moved_from.unwrap_or(ids.len());
        let mut pages = self.pool.lock();
        if let Err(e) = pages.import(self.table, ids, most, parsed.pages) {
            self.reserved = pages.reserved_again(self.table, self.reserved);
            return Err(e);
        }
        drop(pages);
        self.tokens.extend_from_slice(ids);
        (self.dropped, self.moved_from) = (parsed.dropped, parsed.moved_from);
        self.reserved = 0;
        self.logits_at = None;
        if !parsed.logits.is_empty() {
            for (logit, bytes) in self.logits.iter_mut().zip(parsed.logits.as_chunks().0) {
                *logit = f32::from_le_bytes(*bytes);
            }
            self.logits_at = Some(ids.len());
        }
        Ok(parsed.info.extra)
    }

    /// As [`Session::restore`] of the file at `path`.
    ///
    /// # Errors
    /// As [`Session::restore`], and `NOT_FOUND`, `IO`, `INVALID_ARG` for what is no file and need not end.
    pub fn restore_from(&mut self, path: &Path) -> Result<Vec<u8>> {
        let mut read = || -> Result<Vec<u8>> {
            let bytes = Bytes::read(&mmap::open(path)?, 0, 0, &mut |_, _| Ok(()))?;
            self.restore(&bytes)
        };
        read().map_err(|e| e.context(path.display()))
    }

    /// Refuses a snapshot that this session could not go on with.
    fn fits(&self, snapshot: &Parsed<'_>) -> Result<()> {
        let info = &snapshot.info;
        let differs = |what: &str, expected: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
            let message = format!("the snapshot has another {what}: expected {expected:?}, got {got:?}");
            Err(Error::new(Status::MISMATCH, message))
        };
        if info.fingerprint != self.model.fingerprint() {
            let message = "the snapshot belongs to another model: open the file it was made with";
            return Err(Error::new(Status::MISMATCH, message));
        }
        if info.kv != self.pool.kv() {
            return differs("KV type", &self.pool.kv(), &info.kv);
        }
        let (tokens, bytes, content) = {
            let pages = self.pool.lock();
            let shape = pages.store().shape();
            (shape.tokens, shape.bytes, pages.content_bytes(info.tokens.len()))
        };
        if info.page_tokens != tokens {
            return differs("page size", &tokens, &info.page_tokens);
        }
        if snapshot.page_bytes != bytes {
            return differs("size of a page in bytes", &bytes, &snapshot.page_bytes);
        }
        if snapshot.pages.len() != content {
            let message = format!(
                "the snapshot has {} bytes of pages; its tokens take {content}",
                snapshot.pages.len()
            );
            return Err(Error::new(Status::BAD_FORMAT, message));
        }
        let root = Root { rope: info.rope_length, level: info.determinism, adapters: info.adapters };
        match self.root {
            Some(own) if own == root => {}
            Some(own) if own.level != root.level => {
                return differs("determinism level", &own.level, &root.level);
            }
            Some(own) if own.adapters != root.adapters => {
                let message =
                    "the snapshot was made with other adapters, scales, or another order of them: set those";
                return Err(Error::new(Status::MISMATCH, message));
            }
            own => return differs("rotary length", &own.map(|own| own.rope), &root.rope),
        }
        if snapshot.vocab != self.model.spec().vocab {
            return differs("vocabulary", &self.model.spec().vocab, &snapshot.vocab);
        }
        Ok(())
    }
}

/// Proves the structure of a snapshot. Every length is checked against the bytes there are.
fn parse(bytes: &[u8]) -> Result<Parsed<'_>> {
    let bad = |what: String| Error::new(Status::BAD_FORMAT, format!("the snapshot {what}"));
    let u32_at = |at: usize| bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b));
    let u64_at = |at: usize| bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b));
    if !bytes.starts_with(MAGIC) {
        return Err(bad("does not begin with `llmsnap`: is this another file?".into()));
    }
    let short = || bad(format!("ends after {} bytes", bytes.len()));
    let version = u32_at(8).ok_or_else(short)?;
    if version != VERSION {
        let message = format!("the snapshot has version {version}; this library reads {VERSION}");
        return Err(Error::new(Status::BAD_VERSION, message));
    }
    if bytes.len() < HEADER {
        return Err(short());
    }
    let length = u64_at(16).ok_or_else(short)?;
    if length != bytes.len() as u64 {
        return Err(bad(format!("has {} bytes; it was written with {length}", bytes.len())));
    }
    let crc = crc32c(&bytes[BEFORE_CHECKED..]);
    if u32_at(24) != Some(crc) {
        return Err(Error::new(Status::CHECKSUM, "the snapshot is damaged: its checksum does not fit"));
    }
    let count = u32_at(12).ok_or_else(short)? as usize;
    let [kv, level, has_logits, zero] = bytes[40..44] else { return Err(short()) };
    let kv = kv_of(kv).ok_or_else(|| bad(format!("has the unknown KV type {kv}")))?;
    let level = level_of(level).ok_or_else(|| bad(format!("has the unknown determinism level {level}")))?;
    if zero != 0 || has_logits > 1 {
        return Err(bad("has values where zeros are expected".into()));
    }
    let (moved_from, dropped) = (u32_at(28).ok_or_else(short)?, u32_at(32).ok_or_else(short)?);
    let dropped_badly = u32_at(36) != Some(guard(dropped)) || dropped > MOST_DROPPED;
    if dropped_badly || moved_from as usize > count || moved_from > 0 && dropped == 0 {
        return Err(bad("says what cannot be of tokens that were dropped or moved".into()));
    }
    let page_tokens = u32_at(44).ok_or_else(short)? as usize;
    if !matches!(page_tokens, 16 | 32 | 64) {
        return Err(bad(format!("has pages of {page_tokens} tokens")));
    }
    let page_bytes = u64_at(48).ok_or_else(short)?;
    let (rope_length, vocab) = (u32_at(56).ok_or_else(short)?, u32_at(60).ok_or_else(short)?);
    let extra = u64_at(64).ok_or_else(short)?;
    let fingerprint = *bytes[72..].first_chunk().ok_or_else(short)?;
    let adapters = *bytes[104..].first_chunk().ok_or_else(short)?;

    let mut rest = &bytes[HEADER..];
    let mut part = |size: Option<u64>| {
        let size = size.and_then(|size| usize::try_from(size).ok()).filter(|&size| size <= rest.len());
        let (part, after) = rest.split_at(size.ok_or_else(|| bad("is shorter than its parts".into()))?);
        rest = after;
        Ok::<_, Error>(part)
    };
    let tokens = part(Some(count as u64 * 4))?;
    let logits = part(Some(u64::from(has_logits) * u64::from(vocab) * 4))?;
    let extra = part(Some(extra))?;
    // How many pages the tokens need depends on the model's windows: see `Session::fits`.
    let pages = rest;
    if page_bytes == 0 || !(pages.len() as u64).is_multiple_of(page_bytes) {
        return Err(bad(format!("has {} bytes of pages of {page_bytes}", pages.len())));
    }
    let tokens: Vec<i32> = tokens.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
    let inside = |id: &i32| u32::try_from(*id).is_ok_and(|id| id < vocab);
    if !tokens.iter().all(inside) || has_logits > 0 && tokens.is_empty() {
        return Err(bad("holds ids outside its vocabulary".into()));
    }
    let info = SnapshotInfo {
        version,
        fingerprint,
        kv,
        page_tokens,
        determinism: level,
        rope_length,
        adapters,
        tokens,
        extra: extra.to_vec(),
    };
    // Pages are inside `bytes`, unless there are none.
    Ok(Parsed {
        info,
        page_bytes: page_bytes as usize,
        vocab,
        dropped: dropped as usize,
        moved_from: (moved_from as usize).checked_sub(1),
        logits,
        pages,
    })
}

/// Dropped tokens are told up to here: one more is what all bits of 0 turned are.
const MOST_DROPPED: u32 = u32::MAX - 1;

/// What stands behind the number of dropped tokens, which nothing else in a snapshot vouches for.
fn guard(dropped: u32) -> u32 {
    if dropped == 0 { 0 } else { !dropped }
}

/// Numbers of the KV types, never reused.
const KV_CODES: [(KvType, u8); 4] = [(KvType::F32, 1), (KvType::F16, 2), (KvType::I8F16, 3), (KvType::I8, 4)];

fn kv_code(kv: KvType) -> u8 {
    KV_CODES.iter().find(|(t, _)| *t == kv).map_or(0, |(_, code)| *code)
}

fn kv_of(code: u8) -> Option<KvType> {
    KV_CODES.iter().find(|(_, c)| *c == code).map(|(t, _)| *t)
}

/// Numbers of the determinism levels, never reused.
const LEVEL_CODES: [(Level, u8); 3] = [(Level::BatchInvariant, 1), (Level::Portable, 2), (Level::Fast, 3)];

fn level_code(level: Level) -> u8 {
    LEVEL_CODES.iter().find(|(l, _)| *l == level).map_or(0, |(_, code)| *code)
}

fn level_of(code: u8) -> Option<Level> {
    LEVEL_CODES.iter().find(|(_, c)| *c == code).map(|(l, _)| *l)
}
