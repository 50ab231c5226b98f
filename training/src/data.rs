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

mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, checksum};
use llm::error::{Error, Result, Status};
use llm::mmap::Bytes;

use crate::encode::{Encoder, Place};
use crate::source::{Format, Source};

use writer::{TokenWriter, part};

const MAGIC: &[u8; 8] = b"llmtoken";
const VERSION: u32 = 1;
const HEAD: usize = 128;
/// Of a marked id: it is not learned.
const READ: u32 = 1 << 31;
/// The token that ends documents, if nobody says another.
const END: &str = "<|endoftext|>";
/// The token files of a directory.
const FILES: [&str; 2] = ["train.tokens", "held_out.tokens"];
/// So much of a text whose length is not known waits for the first piece to be kept apart.
const WAITING: u64 = 64 << 20;

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
    /// of a text whose length is not known before, the last part of one that has fewer pieces.
    pub held_out: f64,
    /// The token of the tokenizer that ends every document, whatever the text came in; the empty text: documents follow each
    /// other directly. `None`: `<|endoftext|>`, else the `eos_token` that `tokenizer_config.json` beside the tokenizer names,
    /// else the first special token of a tokenizer that was trained here, else nothing. Conversations end as their template
    /// says.
    pub end: Option<String>,
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
            end: None,
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

impl PrepareOptions {
    /// What [`tokenize`] writes to, for a program that ends without dropping its result (a signal) and wants to remove it.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        FILES.iter().map(|name| part(&self.output.join(name))).collect()
    }
}

/// Tokenizes text files into a directory of token files. Memory stays bounded by a piece of text.
///
/// # Errors
/// Those of [`tokenize`] and [`Tokenized::settle`].
pub fn prepare(options: &PrepareOptions) -> Result<Prepared> {
    tokenize(options)?.settle()
}

/// Token files that are whole and do not have their names yet; dropped before [`Tokenized::settle`], they are removed.
pub struct Tokenized {
    prepared: Prepared,
    output: PathBuf,
    train: TokenWriter,
    held_out: TokenWriter,
    tokenizer: Vec<u8>,
    config: Option<Vec<u8>>,
}

/// The long part of [`prepare`]: everything but what takes the place of older files.
///
/// # Errors
/// Those of reading and writing files, `INVALID_ARG` for a share outside 0..1 and for an `end` that the tokenizer lacks.
pub fn tokenize(options: &PrepareOptions) -> Result<Tokenized> {
    if !(0.0..1.0).contains(&options.held_out) {
        let message = format!("held-out share {}: expected 0 or more and less than 1", options.held_out);
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let tokenizer = crate::bpe::load(&options.tokenizer)?;
    let file =
        std::fs::read(&options.tokenizer).map_err(|e| Error::from(e).context(options.tokenizer.display()))?;
    let beside = optional(&options.tokenizer.with_file_name("tokenizer_config.json"))?;
    let end = end_of_documents(&tokenizer, options, beside.as_deref())?;
    let here = |e: std::io::Error| Error::from(e).context(options.output.display());
    std::fs::create_dir_all(&options.output).map_err(here)?;
    // ids may have gaps: what counts is the greatest
    let vocab = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
    let hash = vocabulary_hash(&file);
    let writer = |name: &str| TokenWriter::create(&options.output.join(name), vocab, hash, options.chat);
    let (mut train, mut held_out) = (writer(FILES[0])?, writer(FILES[1])?);
    let encoder = Encoder::new(tokenizer)?;
    let encode = |text: &str, first: bool, out: &mut TokenWriter| -> Result<()> {
        let place = if first { Place::Beginning } else { Place::Inside };
        out.push(encoder.encode(text, place)?.get_ids(), text.len())
    };
    let border = |size: u64| size - (size as f64 * options.held_out) as u64;
    // Item n is kept apart where a multiple of 1/share lies in (n−1, n].
    let share = |n: u64| (n as f64 * options.held_out) as u64;
    let kept_apart = |n: u64| share(n) > share(n - 1);
    let mut number = 0u64;
    let mut config = beside;
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
        // the model that comes of this data brings the template it was trained with
        let tree = config.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        let mut tree = tree.filter(serde_json::Value::is_object).unwrap_or_else(|| serde_json::json!({}));
        tree["chat_template"] = marker.source().into();
        config = Some(format!("{tree:#}\n").into_bytes());
    }
    for source in options.inputs.iter().filter(|_| !options.chat) {
        if let Some(size) = source.text_bytes()? {
            let mut seen = 0u64;
            source.documents(&options.field, &mut |text, _| {
                divide(text, &mut seen, border(size), [&mut train, &mut held_out], &encode)
            })?;
        } else if matches!(source.format(), Format::Text(_)) {
            let before = number;
            let mut waiting = (options.held_out > 0.0).then(Vec::new);
            let mut size = 0;
            source.documents(&options.field, &mut |text, _| {
                number += 1;
                let first = size == 0;
                size += text.len() as u64;
                let apart = kept_apart(number);
                if let Some(pieces) = &mut waiting
                    && !apart
                    && size <= WAITING
                {
                    pieces.push(text.to_string());
                    return Ok(());
                }
                for (i, piece) in waiting.take().iter().flatten().enumerate() {
                    encode(piece, i == 0, &mut train)?;
                }
                encode(text, first, if apart { &mut held_out } else { &mut train })
            })?;
            // it ended before the first piece to be kept apart: now its length is known
            if let Some(pieces) = waiting {
                number = before;
                let mut seen = 0;
                for piece in pieces {
                    divide(&piece, &mut seen, border(size), [&mut train, &mut held_out], &encode)?;
                }
            }
        } else {
            source.documents(&options.field, &mut |text, _| {
                number += 1;
                let out = if kept_apart(number) { &mut held_out } else { &mut train };
                encode(text, true, out)?;
                out.end_document(end)
            })?;
            continue;
        }
        for out in [&mut train, &mut held_out] {
            out.end_document(end)?;
        }
    }
    let prepared = Prepared { train_tokens: train.tokens, held_out_tokens: held_out.tokens, vocab };
    held_out.finish()?;
    train.finish()?;
    Ok(Tokenized { prepared, output: options.output.clone(), train, held_out, tokenizer: file, config })
}

impl Tokenized {
    /// Gives the files their names, in place of older ones: all are whole on the disk before.
    ///
    /// # Errors
    /// Those of writing and naming files.
    pub fn settle(self) -> Result<Prepared> {
        crate::checkpoint::write_file(&self.output.join("tokenizer.json"), &self.tokenizer)?;
        let path = self.output.join("tokenizer_config.json");
        match &self.config {
            Some(config) => crate::checkpoint::write_file(&path, config)?,
            // that of data that was here before says nothing about this
            None => match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::from(e).context(path.display()));
                }
                _ => {}
            },
        }
        self.held_out.settle()?;
        self.train.settle()?;
        // The names are durable once their directory is. Not every file system can sync one; the files are whole either way.
        if cfg!(unix)
            && let Ok(directory) = File::open(&self.output)
        {
            let _ = directory.sync_all();
        }
        Ok(self.prepared)
    }
}

/// Tokenizes a piece of a text, of which `seen` bytes came before; what lies from `border` on goes to the second writer.
fn divide(
    text: &str,
    seen: &mut u64,
    border: u64,
    to: [&mut TokenWriter; 2],
    encode: &dyn Fn(&str, bool, &mut TokenWriter) -> Result<()>,
) -> Result<()> {
    let cut = usize::try_from(border.saturating_sub(*seen)).unwrap_or(usize::MAX).min(text.len());
    let cut = text.ceil_char_boundary(cut);
    for (part, out) in [&text[..cut], &text[cut..]].into_iter().zip(to) {
        if !part.is_empty() {
            encode(part, *seen == 0, out)?;
        }
        *seen += part.len() as u64;
    }
    Ok(())
}

/// The token that ends a document: the one asked for; else the default, that of `tokenizer_config.json`, or the first
/// special token of a tokenizer whose added tokens are special and take the first ids, as those have that are trained here.
fn end_of_documents(
    tokenizer: &tokenizers::Tokenizer,
    options: &PrepareOptions,
    config: Option<&[u8]>,
) -> Result<Option<u32>> {
    if let Some(named) = &options.end {
        let place = options.tokenizer.display();
        let refused = match tokenizer.token_to_id(named) {
            _ if options.chat => {
                format!("{named:?} as the end of documents: conversations end as their template says")
            }
            _ if named.is_empty() => return Ok(None),
            Some(id) => return Ok(Some(id)),
            None => format!(
                "{place}: no token {named:?} to end documents with; name one of its own, or an empty text for none"
            ),
        };
        return Err(Error::new(Status::INVALID_ARG, refused));
    }
    let of_config = || {
        let config: serde_json::Value = serde_json::from_slice(config?).ok()?;
        let end = config.get("eos_token")?;
        tokenizer.token_to_id(end.as_str().or_else(|| end.get("content")?.as_str())?)
    };
    let first = || {
        let added = tokenizer.get_added_tokens_decoder();
        let own = (0..added.len() as u32).all(|id| added.get(&id).is_some_and(|t| t.special));
        let name = added.get(&0).filter(|_| own)?.content.to_lowercase();
        // what other makers put first
        let other = ["unk", "pad", "bos", "begin", "cls", "mask", "<s>"].iter().any(|n| name.contains(n));
        (!other).then_some(0)
    };
    Ok(tokenizer.token_to_id(END).or_else(of_config).or_else(first))
}

/// A file's bytes; `None` where there is none.
pub(crate) fn optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from(e).context(path.display())),
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
