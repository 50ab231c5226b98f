//! From texts to token files: what goes where, and how it goes on where it was broken off.
//!
//! ```text
//! input → pieces with marks → ids → train | held_out         every so many ids: files on the disk, then the journal
//! ```
//! The journal says from which mark to read on, and behind which ids to write on. Where it does not fit what is asked for,
//! or what lies there, all begins anew. It does not know how files are read or written.

use std::fs::File;
use std::path::PathBuf;

use llm::error::{Error, Result, Status};
use serde_json::Value;

use super::journal::{self, At, Journal};
use super::writer::{TokenWriter, is_claimed, offsets, part};
use super::{optional, remove, vocabulary_hash};
use crate::chat_data::{Marker, marker};
use crate::corpus::difference;
use crate::encode::{Encoder, Place};
use crate::source::{Format, Mark, Opened, Source};

/// The token that ends documents, if nobody says another.
const END: &str = "<|endoftext|>";
/// The token files of a directory: what is trained on, what is kept apart.
pub(super) const FILES: [&str; 2] = ["train.tokens", "held_out.tokens"];
/// So much of a text whose length is not known waits for the first piece to be kept apart.
const WAITING: u64 = 64 << 20;
/// Ids between two journals: some seconds of work.
const EVERY: u64 = if cfg!(test) { 60_000 } else { 8 << 20 };

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
    /// Rows of `.jsonl` are conversations, of which answers are learned: `messages` with `role` and `content`, or with
    /// `from` and `value`; `instruction`, `input` and `output`; `prompt` and `response`.
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
    /// What [`tokenize`] writes to and no later process can go on with, for a program that ends without dropping its
    /// result (a signal) and wants to remove it.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let mut all = journal::unfinished(&self.output);
        if !journal::path(&self.output).exists() {
            let files = FILES.map(|name| self.output.join(name)).into_iter().filter(|path| is_claimed(path));
            all.extend(files.flat_map(|path| [part(&path), offsets(&path)]));
        }
        all
    }
}

/// What becomes of a preparation in the same directory that was broken off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// This one goes on with it, behind so many ids.
    Continued(u64),
    /// This one begins anew, for this reason.
    Replaced(String),
}

/// Tokenizes text files into a directory of token files. Memory stays bounded by a piece of text.
///
/// # Errors
/// Those of [`tokenize`] and [`Tokenized::settle`].
pub fn prepare(options: &PrepareOptions) -> Result<Prepared> {
    tokenize(options, &mut |_| ())?.settle()
}

/// Token files that are whole and do not have their names yet; dropped before [`Tokenized::settle`], they are removed,
/// or stay for the same preparation to go on with.
pub struct Tokenized {
    prepared: Prepared,
    output: PathBuf,
    out: [TokenWriter; 2],
    tokenizer: Vec<u8>,
    config: Option<Vec<u8>>,
}

/// The long part of [`prepare`]: everything but what takes the place of older files. One that was broken off, even by
/// SIGKILL, goes on to the same files; `tell` hears of it.
///
/// # Errors
/// Those of reading and writing files, `INVALID_ARG` for a share outside 0..1 and for an `end` that the tokenizer lacks.
pub fn tokenize(options: &PrepareOptions, tell: &mut dyn FnMut(Earlier)) -> Result<Tokenized> {
    if !(0.0..1.0).contains(&options.held_out) {
        let message = format!("held-out share {}: expected 0 or more and less than 1", options.held_out);
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let tokenizer = crate::bpe::load(&options.tokenizer)?;
    let file =
        std::fs::read(&options.tokenizer).map_err(|e| Error::from(e).context(options.tokenizer.display()))?;
    let beside = optional(&options.tokenizer.with_file_name("tokenizer_config.json"))?;
    let end = end_of_documents(&tokenizer, options, beside.as_deref())?;
    let marker = options.chat.then(|| marker(&options.tokenizer, options.template.as_deref())).transpose()?;
    let hash = vocabulary_hash(&file);
    let template = marker.as_ref().map(Marker::source);
    let asked = journal::asked(options, hash, beside.as_deref(), template, end)?;
    let here = |e: std::io::Error| Error::from(e).context(options.output.display());
    std::fs::create_dir_all(&options.output).map_err(here)?;
    // ids may have gaps: what counts is the greatest
    let vocab = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
    let encoder = Encoder::new(tokenizer)?;
    let writer = |name: &str| TokenWriter::claim(&options.output.join(name), vocab, hash, options.chat);
    let out = [writer(FILES[0])?, writer(FILES[1])?];
    let mut work = Work { options, encoder, end, out, asked, at: At::default(), noted: 0 };
    work.begin(tell)?;
    while let Some(source) = options.inputs.get(work.at.input) {
        work.read(source, marker.as_ref())?;
        work.at = At { input: work.at.input + 1, number: work.at.number, ..At::default() };
        work.done(Mark::default())?;
    }
    let config = match &marker {
        None => beside,
        // the model that comes of this data brings the template it was trained with
        Some(marker) => {
            let tree = beside.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            let mut tree = tree.filter(Value::is_object).unwrap_or_else(|| serde_json::json!({}));
            tree["chat_template"] = marker.source().into();
            Some(format!("{tree:#}\n").into_bytes())
        }
    };
    let [mut train, mut held_out] = work.out;
    let (train_tokens, held_out_tokens) = (train.written.tokens, held_out.written.tokens);
    held_out.finish()?;
    train.finish()?;
    let prepared = Prepared { train_tokens, held_out_tokens, vocab };
    let (output, out) = (options.output.clone(), [train, held_out]);
    Ok(Tokenized { prepared, output, out, tokenizer: file, config })
}

impl Tokenized {
    /// What was prepared.
    pub fn prepared(&self) -> Prepared {
        self.prepared
    }

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
            None => remove(&path)?,
        }
        let [train, held_out] = self.out;
        held_out.settle()?;
        train.settle()?;
        remove(&journal::path(&self.output))?;
        // The names are durable once their directory is. Not every file system can sync one; the files are whole either way.
        if cfg!(unix)
            && let Ok(directory) = File::open(&self.output)
        {
            let _ = directory.sync_all();
        }
        Ok(self.prepared)
    }
}

/// A preparation under way.
struct Work<'o> {
    options: &'o PrepareOptions,
    encoder: Encoder,
    end: Option<u32>,
    /// What is trained on, what is kept apart.
    out: [TokenWriter; 2],
    /// What the ids depend on.
    asked: Value,
    at: At,
    /// Ids that were written when the last journal was.
    noted: u64,
}

impl Work<'_> {
    /// Goes on with what was broken off, or begins.
    fn begin(&mut self, tell: &mut dyn FnMut(Earlier)) -> Result<()> {
        let options = self.options;
        if let Some(journal) = Journal::read(&options.output)? {
            let refused = match journal {
                Ok(journal) => self.go_on(journal)?,
                Err(damaged) => Some(damaged),
            };
            match refused {
                None => {
                    self.noted = self.tokens();
                    tell(Earlier::Continued(self.noted));
                    return Ok(());
                }
                Some(reason) => tell(Earlier::Replaced(reason)),
            }
        }
        remove(&journal::path(&options.output))?;
        self.out.iter_mut().try_for_each(TokenWriter::begin)
    }

    /// Goes on where a journal says, or tells why that cannot be.
    fn go_on(&mut self, journal: Journal) -> Result<Option<String>> {
        let Journal { asked, at, written, .. } = journal;
        if let Some((place, before, now)) = difference(&asked, &self.asked, "") {
            return Ok(Some(format!("{place} was {before} and is {now}")));
        }
        let inside = self.options.inputs.get(at.input).filter(|_| at.mark != Mark::default());
        if let Some(source) = inside
            && source.open()?.identity() != at.identity
        {
            return Ok(Some(format!("{source} is not the file that it was")));
        }
        for ((out, written), name) in self.out.iter_mut().zip(&written).zip(FILES) {
            if !out.go_on(written)? {
                let path = part(&self.options.output.join(name));
                return Ok(Some(format!("{} does not hold what was written", path.display())));
            }
        }
        self.at = at;
        Ok(None)
    }

    fn tokens(&self) -> u64 {
        self.out.iter().map(|out| out.written.tokens).sum()
    }

    /// Reads an input from where the work is.
    fn read(&mut self, source: &Source, marker: Option<&Marker>) -> Result<()> {
        let opened = source.open()?;
        let now = opened.identity();
        if self.at.mark != Mark::default() && now != self.at.identity {
            let message = format!("{source} became another file meanwhile; the same command begins anew");
            return Err(Error::new(Status::MISMATCH, message));
        }
        self.at.identity = now;
        if let Some(marker) = marker {
            return self.conversations(source, &opened, marker);
        }
        match (source.text_bytes()?, source.format()) {
            (Some(size), _) => self.text(&opened, size)?,
            (None, Format::Text(_)) => self.pieces(&opened)?,
            _ => return self.rows(&opened),
        }
        let end = self.end;
        self.out.iter_mut().try_for_each(|out| out.end_document(end))
    }

    fn conversations(&mut self, source: &Source, opened: &Opened<'_>, marker: &Marker) -> Result<()> {
        opened.rows(self.at.mark, &mut |line, row, mark| {
            let side = self.side();
            let marked = marker.row(row).map_err(|e| e.context(format_args!("{source}:{line}")))?;
            for (ids, learned, bytes) in marked {
                self.out[side].push_marked(&ids, &learned, bytes)?;
                self.out[side].end_document(None)?;
            }
            self.done(mark)
        })
    }

    fn rows(&mut self, opened: &Opened<'_>) -> Result<()> {
        let options = self.options;
        opened.documents(self.at.mark, &options.field, &mut |text, _, mark| {
            let side = self.side();
            self.encode(text, true, side)?;
            self.out[side].end_document(self.end)?;
            self.done(mark)
        })
    }

    /// A text of `size` bytes.
    fn text(&mut self, opened: &Opened<'_>, size: u64) -> Result<()> {
        let (options, border) = (self.options, self.border(size));
        opened.documents(self.at.mark, &options.field, &mut |text, last, mark| {
            self.divide(text, border)?;
            if last { Ok(()) } else { self.done(mark) }
        })
    }

    /// A text whose length is not known.
    fn pieces(&mut self, opened: &Opened<'_>) -> Result<()> {
        let (options, before) = (self.options, self.at.number);
        let mut waiting = (options.held_out > 0.0 && self.at.seen == 0).then(Vec::new);
        opened.documents(self.at.mark, &options.field, &mut |text, last, mark| {
            let (side, first) = (self.side(), self.at.seen == 0);
            self.at.seen += text.len() as u64;
            if let Some(pieces) = &mut waiting
                && side == 0
                && self.at.seen <= WAITING
            {
                pieces.push(text.to_string());
                return Ok(());
            }
            for (i, piece) in waiting.take().iter().flatten().enumerate() {
                self.encode(piece, i == 0, 0)?;
            }
            self.encode(text, first, side)?;
            if last { Ok(()) } else { self.done(mark) }
        })?;
        // it ended before the first piece to be kept apart: now its length is known
        if let Some(pieces) = waiting {
            self.at.number = before;
            let border = self.border(self.at.seen);
            self.at.seen = 0;
            for piece in pieces {
                self.divide(&piece, border)?;
            }
        }
        Ok(())
    }

    /// Counts a row or a piece, and says where it goes: number n is kept apart where a multiple of 1/share lies in
    /// (n−1, n].
    fn side(&mut self) -> usize {
        let held_out = self.options.held_out;
        let share = |n: u64| (n as f64 * held_out) as u64;
        self.at.number += 1;
        usize::from(share(self.at.number) > share(self.at.number - 1))
    }

    /// Where the part of a text of `size` bytes begins that is kept apart.
    fn border(&self, size: u64) -> u64 {
        size - (size as f64 * self.options.held_out) as u64
    }

    /// Tokenizes a piece of a text; what lies from byte `border` of the text on is kept apart.
    fn divide(&mut self, text: &str, border: u64) -> Result<()> {
        let cut = usize::try_from(border.saturating_sub(self.at.seen)).unwrap_or(usize::MAX).min(text.len());
        let cut = text.ceil_char_boundary(cut);
        for (side, part) in [&text[..cut], &text[cut..]].into_iter().enumerate() {
            if !part.is_empty() {
                self.encode(part, self.at.seen == 0, side)?;
            }
            self.at.seen += part.len() as u64;
        }
        Ok(())
    }

    fn encode(&mut self, text: &str, first: bool, side: usize) -> Result<()> {
        let place = if first { Place::Beginning } else { Place::Inside };
        self.out[side].push(self.encoder.encode(text, place)?.get_ids(), text.len())
    }

    /// Everything before `mark` is written; now and then the journal says so.
    fn done(&mut self, mark: Mark) -> Result<()> {
        self.at.mark = mark;
        let tokens = self.tokens();
        if tokens - self.noted < EVERY {
            return Ok(());
        }
        let [train, held_out] = &mut self.out;
        let written = [train.sync()?, held_out.sync()?];
        Journal::new(&self.asked, &self.at, written).write(&self.options.output)?;
        self.out.iter_mut().for_each(|out| out.kept = true);
        self.noted = tokens;
        Ok(())
    }
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
