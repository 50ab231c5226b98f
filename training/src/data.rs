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

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest, checksum};
use llm::error::{Error, Result, Status};
use llm::mmap::Bytes;

use crate::source::{Format, Source};

const MAGIC: &[u8; 8] = b"llmtoken";
const VERSION: u32 = 1;
const HEAD: usize = 128;
/// Of a marked id: it is not learned.
const READ: u32 = 1 << 31;

/// What `data prepare` is asked for.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Where the text is: one document in a text, one in every row of `.jsonl` and `.parquet`.
    pub inputs: Vec<Source>,
    /// The string of a row that holds the text.
    pub field: String,
    /// The `tokenizer.json` to use; it is copied beside the data.
    pub tokenizer: PathBuf,
    /// Directory that takes `train.tokens`, `held_out.tokens` and `tokenizer.json`.
    pub output: PathBuf,
    /// Share of the text kept apart: the last part of a plain text file, every n-th row, every n-th piece (about 256 KiB)
    /// of a text whose length is not known before.
    pub held_out: f64,
    /// The token that ends a document; where the tokenizer lacks it, documents follow each other directly.
    pub end: String,
    /// Rows of `.jsonl` are conversations (`messages`, `tools`), of which answers are learned.
    pub chat: bool,
    /// The chat template for them; `None`: that beside the tokenizer.
    pub template: Option<PathBuf>,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        PrepareOptions {
            inputs: Vec::new(),
            field: "text".into(),
            tokenizer: PathBuf::from("tokenizer.json"),
            output: PathBuf::from("data"),
            held_out: 0.1,
            end: "<|endoftext|>".into(),
            chat: false,
            template: None,
        }
    }
}

/// What was prepared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prepared {
    /// Ids for training.
    pub train_tokens: u64,
    /// Ids kept apart.
    pub held_out_tokens: u64,
    /// Size of the vocabulary.
    pub vocab: usize,
}

/// Tokenizes text files into a directory of token files. Memory stays bounded by a piece of text.
///
/// # Errors
/// Those of reading and writing files, `INVALID_ARG` for a share outside 0..1.
pub fn prepare(options: &PrepareOptions) -> Result<Prepared> {
    if !(0.0..1.0).contains(&options.held_out) {
        let message = format!("held-out share {}: expected 0 or more and less than 1", options.held_out);
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let tokenizer = crate::bpe::load(&options.tokenizer)?;
    let file = std::fs::read(&options.tokenizer)?;
    let here = |e: std::io::Error| Error::from(e).context(options.output.display());
    std::fs::create_dir_all(&options.output).map_err(here)?;
    let vocab = tokenizer.get_vocab_size(true);
    let end = tokenizer.token_to_id(&options.end);
    let hash = vocabulary_hash(&file);
    let writer = |name: &str| TokenWriter::create(&options.output.join(name), vocab, hash, options.chat);
    let (mut train, mut held_out) = (writer("train.tokens")?, writer("held_out.tokens")?);
    let encode = |text: &str, out: &mut TokenWriter| {
        let wrong = |e: tokenizers::Error| Error::new(Status::BAD_FORMAT, format!("tokenizing: {e}"));
        out.push(tokenizer.encode_fast(text, false).map_err(wrong)?.get_ids(), text.len())
    };
    // Item n is kept apart where a multiple of 1/share lies in (n−1, n].
    let share = |n: u64| (n as f64 * options.held_out) as u64;
    let kept_apart = |n: u64| share(n) > share(n - 1);
    let mut number = 0u64;
    if options.chat {
        let marker = crate::chat_data::marker(&options.tokenizer, options.template.as_deref())?;
        for source in &options.inputs {
            source.rows(&mut |place, row| {
                number += 1;
                let out = if kept_apart(number) { &mut held_out } else { &mut train };
                let marked = marker.row(row).map_err(|e| e.context(format_args!("{source}:{place}")))?;
                for (ids, learned, bytes) in marked {
                    out.push_marked(&ids, &learned, bytes)?;
                    out.end_document(None)?;
                }
                Ok(())
            })?;
        }
        let config = options.tokenizer.with_file_name("tokenizer_config.json");
        let mut config: serde_json::Value = std::fs::read(&config)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_else(|| serde_json::json!({}));
        // the model that comes of this data brings the template it was trained with
        config["chat_template"] = marker.source().into();
        let text = format!("{config:#}\n");
        crate::checkpoint::write_file(&options.output.join("tokenizer_config.json"), text.as_bytes())?;
    }
    for source in options.inputs.iter().filter(|_| !options.chat) {
        if let Some(size) = source.text_bytes()? {
            let border = size - (size as f64 * options.held_out) as u64;
            let mut seen = 0u64;
            source.documents(&options.field, &mut |text, _| {
                let cut = usize::try_from(border.saturating_sub(seen)).unwrap_or(usize::MAX).min(text.len());
                let cut = (cut..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
                seen += text.len() as u64;
                for (part, out) in [(&text[..cut], &mut train), (&text[cut..], &mut held_out)] {
                    if !part.is_empty() {
                        encode(part, out)?;
                    }
                }
                Ok(())
            })?;
        } else {
            let rows = !matches!(source.format(), Format::Text(_));
            source.documents(&options.field, &mut |text, _| {
                number += 1;
                let out = if kept_apart(number) { &mut held_out } else { &mut train };
                encode(text, out)?;
                if rows { out.end_document(end) } else { Ok(()) }
            })?;
            if rows {
                continue;
            }
        }
        for out in [&mut train, &mut held_out] {
            out.end_document(end)?;
        }
    }
    let prepared = Prepared { train_tokens: train.tokens, held_out_tokens: held_out.tokens, vocab };
    // All are whole on the disk before any takes the place of an older one.
    held_out.finish()?;
    train.finish()?;
    crate::checkpoint::write_file(&options.output.join("tokenizer.json"), &file)?;
    held_out.settle()?;
    train.settle()?;
    Ok(prepared)
}

/// The hash that ties token files to the tokenizer that made them.
pub(crate) fn vocabulary_hash(tokenizer_json: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, tokenizer_json)
}

/// Writes a token file under a temporary name; `finish` ends it, `settle` gives it its own.
struct TokenWriter {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    crc: Digest,
    wide: bool,
    marked: bool,
    vocab: usize,
    hash: u64,
    tokens: u64,
    learned: u64,
    bytes: u64,
    offsets: Vec<u64>,
}

impl TokenWriter {
    fn create(path: &Path, vocab: usize, hash: u64, marked: bool) -> Result<TokenWriter> {
        let part = path.with_extension("tokens.part");
        let mut file =
            BufWriter::new(File::create(&part).map_err(|e| Error::from(e).context(part.display()))?);
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
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.crc.update(bytes);
        self.file.write_all(bytes).map_err(|e| self.here(e))
    }

    fn here(&self, e: std::io::Error) -> Error {
        Error::from(e).context(self.part.display())
    }

    fn push(&mut self, ids: &[u32], text_bytes: usize) -> Result<()> {
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
    fn push_marked(&mut self, ids: &[u32], learned: &[bool], text_bytes: usize) -> Result<()> {
        let marked: Vec<u32> =
            ids.iter().zip(learned).map(|(id, l)| if *l { *id } else { *id | READ }).collect();
        self.learned += learned.iter().filter(|l| **l).count() as u64;
        self.push(&marked, text_bytes)
    }

    fn end_document(&mut self, end: Option<u32>) -> Result<()> {
        if self.offsets.last() == Some(&self.tokens) {
            return Ok(());
        }
        if let Some(end) = end {
            self.push(&[end], 0)?;
        }
        self.offsets.push(self.tokens);
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
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

    fn settle(self) -> Result<()> {
        std::fs::rename(&self.part, &self.path).map_err(|e| Error::from(e).context(self.path.display()))
    }
}

impl Drop for TokenWriter {
    fn drop(&mut self) {
        // After a rename there is nothing left under the temporary name.
        let _ = std::fs::remove_file(&self.part);
    }
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
mod tests {
    use super::*;
    use crate::bpe::{TokenizerOptions, train_tokenizer};

    fn prepared(dir: &Path) -> Prepared {
        let text: String = (0..400).map(|i| format!("line {i} of the text\n")).collect();
        std::fs::write(dir.join("a.txt"), &text).unwrap();
        let rows: String = (0..20).map(|i| format!("{{\"text\": \"row {i}\"}}\n")).collect();
        std::fs::write(dir.join("b.jsonl"), rows).unwrap();
        let inputs = ["a.txt", "b.jsonl"].map(|name| dir.join(name).into()).to_vec();
        let tokenizer = dir.join("tokenizer.json");
        let options = TokenizerOptions {
            inputs: inputs.clone(),
            vocab: 300,
            output: tokenizer.clone(),
            ..Default::default()
        };
        train_tokenizer(&options).unwrap();
        prepare(&PrepareOptions { inputs, tokenizer, output: dir.join("data"), ..Default::default() })
            .unwrap()
    }

    #[test]
    fn prepared_ids_decode_to_the_text_and_the_split_is_a_tenth() {
        let dir = tempfile::tempdir().unwrap();
        let result = prepared(dir.path());
        let tokenizer = crate::bpe::load(&dir.path().join("tokenizer.json")).unwrap();
        let mut texts = Vec::new();
        for name in ["train", "held_out"] {
            let file = TokenFile::open(&dir.path().join(format!("data/{name}.tokens"))).unwrap();
            file.verify().unwrap();
            assert_eq!(file.documents(), if name == "train" { 19 } else { 3 });
            let mut ids = vec![0; file.tokens() as usize];
            file.read(0, &mut ids).unwrap();
            let text = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(text.replace("<|endoftext|>", "").len() as u64, file.bytes());
            texts.push(text);
        }
        assert!(
            result.held_out_tokens * 5 < result.train_tokens
                && result.held_out_tokens * 15 > result.train_tokens
        );
        let whole = std::fs::read_to_string(dir.path().join("a.txt")).unwrap();
        let first = |t: &str| t.split("<|endoftext|>").next().unwrap().to_string();
        assert_eq!(first(&texts[0]) + &first(&texts[1]), whole);
    }

    #[test]
    fn a_damaged_token_file_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        prepared(dir.path());
        let good = std::fs::read(dir.path().join("data/train.tokens")).unwrap();
        let path = dir.path().join("bad.tokens");
        for at in 0..HEAD {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert!(TokenFile::open(&path).is_err(), "bit of byte {at}");
        }
        for len in [0, 1, HEAD - 1, HEAD, good.len() - 1] {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(TokenFile::open(&path).is_err(), "cut to {len}");
        }
        let mut bad = good.clone();
        bad[HEAD + 1] = 0xff;
        std::fs::write(&path, &bad).unwrap();
        let file = TokenFile::open(&path).unwrap();
        assert_eq!(file.read(0, &mut [0]).unwrap_err().status(), Status::BAD_FORMAT);
        assert_eq!(file.verify().unwrap_err().status(), Status::CHECKSUM);
    }
}
