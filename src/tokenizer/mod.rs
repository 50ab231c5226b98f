//! Text to token ids and back, over tables that are searched where they lie in the file.
//!
//! ```text
//! text → added tokens → normalize → added tokens → pretokenize → bpe | unigram → ids
//! ids  → decode (a chain of steps) → bytes → stream (whole characters)
//! ```
//!
//! The ids are those of the implementation a tokenizer was published with: Hugging Face `tokenizers`, tiktoken or
//! SentencePiece. Opening parses a few short programs and nothing of the vocabulary. Nothing here knows of models,
//! sessions or chat templates.

mod added;
mod bpe;
mod charsmap;
mod classes;
mod cursor;
mod decode;
mod encode;
mod normalize;
pub mod oniguruma;
pub(crate) mod pattern;
mod pretokenize;
mod scan;
mod stream;
mod unigram;

pub use stream::TextStream;

use crate::error::{Error, Result, Status};
use crate::mmap::Bytes;
use decode::Decoders;
use encode::Scratch;
use llm_format::tokens::{Layout, NONE, View, added as list, flag, setting};
use normalize::Normalizers;
use pretokenize::PreTokenizers;
use std::any::Any;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Working sets kept for reuse, one per thread that encodes at the same time.
const KEPT: usize = 8;

/// A tokenizer, shared freely between threads.
pub struct Tokenizer {
    bytes: Bytes,
    layout: Layout,
    /// Ids may be below this: a model's logits may have more than there are tokens.
    ids: usize,
    normalizers: Normalizers,
    pre_tokenizers: PreTokenizers,
    decoders: Decoders,
    scratch: Mutex<Vec<Scratch>>,
    /// What another room has made of the vocabulary and wants to find again.
    derived: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// How to encode.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens of the tokenizer's template (such as a beginning of text) around the text.
    pub add_special: bool,
    /// Recognise the text of special tokens as those tokens. Without it they are plain text and no special id comes
    /// out of the text.
    pub parse_special: bool,
}

/// Tokens with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Begins a text.
    Bos = 0,
    /// Ends a text.
    Eos = 1,
    /// Stands for what the vocabulary cannot say.
    Unknown = 2,
    /// Fills up.
    Pad = 3,
}

/// What a token is.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct TokenFlags(u16);

impl TokenFlags {
    /// The id is in use.
    pub fn is_present(self) -> bool {
        self.0 & flag::PRESENT != 0
    }
    /// Left out of decoded text on request.
    pub fn is_special(self) -> bool {
        self.0 & flag::SPECIAL != 0
    }
    /// Added to the vocabulary of the model.
    pub fn is_added(self) -> bool {
        self.0 & flag::ADDED != 0
    }
    /// Stands for one byte.
    pub fn is_byte(self) -> bool {
        self.0 & flag::BYTE != 0
    }
    /// The unknown token.
    pub fn is_unknown(self) -> bool {
        self.0 & flag::UNKNOWN != 0
    }
    /// A control token without text of its own.
    pub fn is_control(self) -> bool {
        self.0 & flag::CONTROL != 0
    }
    /// Ends a generation.
    pub fn is_end(self) -> bool {
        self.0 & flag::END != 0
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({:?}, {} ids)", self.layout.kind, self.layout.size)
    }
}

impl Tokenizer {
    /// A tokenizer over the tables in `bytes`. The work does not depend on the size of the vocabulary.
    ///
    /// # Errors
    /// [`Status::BAD_FORMAT`] where a part lies outside the section or a program has unknown steps,
    /// [`Status::UNSUPPORTED`] where a regular expression has something that is not known.
    pub fn from_tables(bytes: Bytes) -> Result<Tokenizer> {
        let layout = Layout::parse(&bytes).map_err(|e| Error::new(Status::BAD_FORMAT, e.to_string()))?;
        Ok(Tokenizer {
            normalizers: Normalizers::new(&layout.normalizer)?,
            pre_tokenizers: PreTokenizers::new(&layout.pre_tokenizer)?,
            decoders: Decoders::new(&layout.decoder)?,
            scratch: Mutex::new(Vec::new()),
            derived: OnceLock::new(),
            ids: layout.size as usize,
            bytes,
            layout,
        })
    }

    /// The tokenizer of a model with `ids` logits: those behind the tokens are ids that are not in use.
    pub(crate) fn with_ids(mut self, ids: usize) -> Tokenizer {
        self.ids = self.ids.max(ids);
        self
    }

    /// The token `id`, `None` where it is not in use for being behind the last.
    fn known(&self, id: i32) -> Result<Option<u32>> {
        match u32::try_from(id) {
            Ok(known) if known < self.layout.size => Ok(Some(known)),
            Ok(behind) if (behind as usize) < self.ids => Ok(None),
            _ => Err(Error::new(Status::INVALID_ARG, format!("token {id} of a vocabulary of {}", self.ids))),
        }
    }

    /// The same tokenizer over the same tables, with nothing derived from it.
    ///
    /// # Errors
    /// None that opening it the first time did not have.
    pub(crate) fn without_derived(&self) -> Result<Tokenizer> {
        Ok(Self::from_tables(self.bytes.clone())?.with_ids(self.ids))
    }

    /// What [`Tokenizer::keep_derived`] keeps.
    pub(crate) fn derived<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.derived.get()?).downcast().ok()
    }

    /// Keeps what was made of the vocabulary for as long as the tokenizer lives, and gives back what is kept: of two
    /// threads that made the same, the first one's.
    pub(crate) fn keep_derived<T: Any + Send + Sync>(&self, made: Arc<T>) -> Arc<T> {
        let kept = Arc::clone(self.derived.get_or_init(|| Arc::clone(&made) as Arc<dyn Any + Send + Sync>));
        kept.downcast().unwrap_or(made)
    }

    fn view(&self) -> View<'_> {
        self.layout.view(&self.bytes)
    }

    fn take_scratch(&self) -> Scratch {
        // A panic elsewhere leaves the list itself whole.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_scratch(&self, scratch: Scratch) {
        let mut kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(scratch);
        }
    }

    fn special_id(&self, at: usize) -> Option<u32> {
        self.layout.special.get(at).copied().filter(|id| *id != NONE)
    }

    /// Whether the other one was made from the same bytes, and so is the same.
    pub(crate) fn same_tables(&self, other: &Self) -> bool {
        self.bytes[..] == other.bytes[..]
    }

    /// Its tokens' ids are below this; its model's may go beyond.
    pub fn size(&self) -> usize {
        self.layout.size as usize
    }

    /// What the implementation the tokenizer comes from does: Hugging Face recognises special tokens in the text
    /// always, SentencePiece and tiktoken only where special tokens are wanted at all.
    pub fn options(&self, add_special: bool) -> EncodeOptions {
        let parse_special = add_special || self.layout.settings & setting::SPECIAL_TEXT != 0;
        EncodeOptions { add_special, parse_special }
    }

    /// The bytes of all `ids` together; not always UTF-8. Ids that are not in use add nothing.
    ///
    /// # Errors
    /// [`Status::INVALID_ARG`] for an id below zero or beyond the vocabulary, with its place as `token_index`.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> Result<Vec<u8>> {
        let view = self.view();
        let mut state = self.decoders.state();
        let mut out = Vec::with_capacity(ids.len() * 4);
        for (at, &id) in ids.iter().enumerate() {
            let known = self.known(id).map_err(|e| e.with("token_index", at as i64))?;
            if let Some(known) = known {
                self.decoders.push(&view, known, skip_special, &mut state, &mut out);
            }
        }
        self.decoders.finish(&mut state, &mut out);
        Ok(out)
    }

    /// The text of `ids`, with U+FFFD for bytes that spell no character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_text(&self, ids: &[i32], skip_special: bool) -> Result<String> {
        let bytes = self.decode(ids, skip_special)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// What a token adds in the middle of a text; `None` for an id that is not in use.
    pub fn token_bytes(&self, id: i32) -> Option<Cow<'_, [u8]>> {
        let view = self.view();
        let id = u32::try_from(id).ok()?;
        let flags = view.flags(id);
        let bytes = view.token(id).filter(|_| flags & flag::PRESENT != 0)?;
        Some(self.decoders.alone(bytes, flags))
    }

    /// The token with a name.
    pub fn special(&self, name: Special) -> Option<i32> {
        self.special_id(name as usize).and_then(|id| i32::try_from(id).ok())
    }

    /// What a token is; nothing for an id outside the vocabulary.
    pub fn flags(&self, id: i32) -> TokenFlags {
        u32::try_from(id).map_or(TokenFlags(0), |id| TokenFlags(self.view().flags(id)))
    }

    /// Whether a token ends a generation.
    pub fn is_end(&self, id: i32) -> bool {
        self.flags(id).is_end()
    }

    /// The token that was added, or stands in the vocabulary, with exactly this text.
    pub fn find(&self, text: &[u8]) -> Option<i32> {
        let view = self.view();
        let added = view.raw.by_content(text).or_else(|| view.normal.by_content(text));
        let id = added.map(|t| t.id).or_else(|| view.find(text))?;
        i32::try_from(id).ok()
    }

    /// The texts that become special tokens where special tokens are recognised, in no particular order.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        let view = self.view();
        [view.raw, view.normal].into_iter().flat_map(|tokens| {
            (0..tokens.len())
                .filter_map(move |at| tokens.get(at))
                .filter(|token| token.flags & list::SPECIAL != 0 && !token.content.is_empty())
                .filter_map(|token| std::str::from_utf8(token.content).ok())
        })
    }

    /// The text after normalisation, as the model's words are cut from it. For the converter, which stores added
    /// tokens in the form they are looked for.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn normalize(&self, text: &str) -> Result<String> {
        self.normalizers.run(&self.view(), text).map(Cow::into_owned)
    }
}
