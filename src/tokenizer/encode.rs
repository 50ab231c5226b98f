//! Text to ids: added tokens out, normalise, split, and the model on what is left.

use super::added::{self, Cut};
use super::bpe::{Bpe, Symbols};
use super::unigram::{Node, Unigram};
use super::{EncodeOptions, Tokenizer};
use crate::error::{Error, Result, Status};
use llm_format::tokens::{Kind, View};
use std::borrow::Cow;

/// The longest text in one call: places inside it are kept in 32 bits with room for normalisation to grow it.
const LONGEST_TEXT: usize = 1 << 28;

/// What encoding needs, kept by the tokenizer from call to call.
#[derive(Default)]
pub(crate) struct Scratch {
    pub cache: Cache,
    pub symbols: Symbols,
    pub best: Vec<Node>,
    pub ids: Vec<u32>,
}

enum Model<'a> {
    Bpe(Bpe<'a>),
    Unigram(Unigram<'a>),
}

impl Tokenizer {
    /// The ids of `text`.
    ///
    /// # Errors
    /// A text beyond 256 MiB, a character the model has no token for, a general split pattern that backtracks
    /// without end, damaged tables.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<i32>> {
        self.encode_with_breaks(text, options, &[])
    }

    /// The ids of `text`, in which no special token reaches across one of the `breaks` (ascending places in `text`)
    /// and none of a single character stands between two of them; such texts are plain. Everything else is as if
    /// there were no breaks.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_breaks(
        &self,
        text: &str,
        options: EncodeOptions,
        breaks: &[usize],
    ) -> Result<Vec<i32>> {
        let special = if options.parse_special { usize::MAX } else { 0 };
        self.encode_parts(text, options.add_special, special, breaks)
    }

    /// The ids of `context` and of the `text` behind it, encoded as the one text that they are: a SentencePiece
    /// vocabulary puts no space between them, and merges go on across the border. The first list are the leading ids
    /// that `context` has by itself; the second are all others, whichever hold something of `text`. (That is how
    /// lm-evaluation-harness divides the two, but for a token that spans the border: here it belongs to the second list
    /// whole, so that both lists together always spell what was given.) No special token comes out of `text`, and the
    /// tokens that a template puts behind a text are left out.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pair(
        &self,
        context: &str,
        text: &str,
        options: EncodeOptions,
    ) -> Result<(Vec<i32>, Vec<i32>)> {
        let special = if options.parse_special { context.len() } else { 0 };
        let behind = if options.add_special { self.view().suffix().count() } else { 0 };
        let both = [context, text].concat();
        let mut ids = self.encode_parts(&both, options.add_special, special, &[context.len()])?;
        ids.truncate(ids.len() - behind);
        let mut alone = self.encode(context, options)?;
        alone.truncate(alone.len() - behind);
        let shared = ids.iter().zip(&alone).take_while(|(a, b)| a == b).count();
        let rest = ids.split_off(shared);
        Ok((ids, rest))
    }

    /// Special tokens are recognised in the first `special` bytes.
    fn encode_parts(
        &self,
        text: &str,
        add_special: bool,
        special: usize,
        breaks: &[usize],
    ) -> Result<Vec<i32>> {
        if text.len() > LONGEST_TEXT {
            let what = format!("a text of {} bytes, at most {LONGEST_TEXT} in one call", text.len());
            return Err(Error::new(Status::INVALID_ARG, what));
        }
        let mut scratch = self.take_scratch();
        let result = self.encode_with(text, add_special, special, breaks, &mut scratch);
        let ids = result.and_then(|()| self.check(&scratch.ids));
        self.give_scratch(scratch);
        ids
    }

    fn encode_with(
        &self,
        text: &str,
        add_special: bool,
        special: usize,
        breaks: &[usize],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let view = self.view();
        let unknown = self.special_id(2);
        let settings = self.layout.settings;
        let model = match self.layout.kind {
            Kind::Bpe => Model::Bpe(Bpe { view, settings, unknown }),
            Kind::Unigram => Model::Unigram(Unigram {
                view,
                settings,
                unknown,
                unknown_score: self.layout.unknown_score,
                max_score: self.layout.max_score,
                longest: self.layout.longest,
            }),
        };
        let mut ids = std::mem::take(&mut scratch.ids);
        ids.clear();
        if add_special {
            ids.extend(view.prefix());
        }
        let mut result = Ok(());
        added::split(&view.raw, text, special, breaks, |cut| match cut {
            Cut::Token(id) => ids.push(id),
            Cut::Text(range) if result.is_ok() => {
                let first = range.start == 0;
                let of = |place: usize| breaks.partition_point(|&b| b < place);
                let inside: Vec<usize> =
                    breaks[of(range.start)..of(range.end + 1)].iter().map(|b| b - range.start).collect();
                let special = special.saturating_sub(range.start);
                let text = &text[range];
                result = self.plain(&view, &model, text, first, special, &inside, scratch, &mut ids);
            }
            Cut::Text(_) => {}
        });
        if add_special {
            ids.extend(view.suffix());
        }
        scratch.ids = ids;
        result
    }

    /// Text without raw added tokens; `first`: it begins where the input begins.
    #[allow(clippy::too_many_arguments)] // one caller, and a struct for it would only repeat the list
    fn plain(
        &self,
        view: &View,
        model: &Model,
        text: &str,
        first: bool,
        special: usize,
        breaks: &[usize],
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let normal = self.normalizers.run(view, text)?;
        // A place in the normalised text is the length of what normalising everything before it gives. Only a list
        // that has tokens asks for it.
        let place = |at: usize| {
            let before = text.get(..at).unwrap_or(text);
            Ok::<_, Error>(self.normalizers.run(view, before)?.len())
        };
        let places = match &normal {
            _ if breaks.is_empty() || view.normal.is_empty() => Vec::new(),
            Cow::Borrowed(_) => breaks.to_vec(),
            Cow::Owned(normal) => added::beside_specials(&view.normal, normal, breaks, place)?,
        };
        let special = match special {
            0 => 0,
            within if within < text.len() && !view.normal.is_empty() => place(within)?,
            _ => usize::MAX,
        };
        let text = normal;
        let mut result = Ok(());
        added::split(&view.normal, &text, special, &places, |cut| match cut {
            Cut::Token(id) => ids.push(id),
            Cut::Text(range) if result.is_ok() => {
                let first = first && range.start == 0;
                let words = self.pre_tokenizers.run(&text[range], first, |word| match model {
                    Model::Bpe(bpe) => bpe.encode(word, scratch, ids),
                    Model::Unigram(unigram) => {
                        if !unigram.encode(word, &mut scratch.best, ids) && result.is_ok() {
                            let what = format!(
                                "{word:?} has a character without a token, and there is no unknown token"
                            );
                            result = Err(Error::new(Status::UNSUPPORTED, what));
                        }
                    }
                });
                if result.is_ok() {
                    result = words;
                }
            }
            Cut::Text(_) => {}
        });
        result
    }

    /// The ids as they go out: a damaged table may have named one that does not exist.
    fn check(&self, ids: &[u32]) -> Result<Vec<i32>> {
        let size = self.layout.size;
        let mut out = Vec::with_capacity(ids.len());
        for &id in ids {
            match i32::try_from(id) {
                Ok(known) if id < size => out.push(known),
                _ => {
                    let what =
                        format!("the tokenizer tables name token {id}, of {size}: the file is damaged");
                    return Err(Error::new(Status::BAD_FORMAT, what));
                }
            }
        }
        Ok(out)
    }
}

/// Bytes of a word and ids that fit in one entry of the cache.
const WORD: usize = 30;
const IDS: usize = 8;
/// Entries of the cache, 64 bytes each.
const ENTRIES: usize = 1 << 14;

/// Words met before: one place per hash, the newest word wins.
#[derive(Default)]
pub(crate) struct Cache(Vec<Entry>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Entry {
    ids: [u32; IDS],
    word: [u8; WORD],
    len: u8,
    count: u8,
}

impl Cache {
    #[inline]
    fn place(hash: u64) -> usize {
        (hash >> 40) as usize % ENTRIES
    }

    #[inline]
    pub(crate) fn get(&self, hash: u64, word: &[u8]) -> Option<&[u32]> {
        let entry = self.0.get(Self::place(hash))?;
        let same = usize::from(entry.len) == word.len() && entry.word[..word.len().min(WORD)] == *word;
        if same { entry.ids.get(..usize::from(entry.count)) } else { None }
    }

    pub(crate) fn put(&mut self, hash: u64, word: &[u8], ids: &[u32]) {
        if word.is_empty() || word.len() > WORD || ids.len() > IDS {
            return;
        }
        if self.0.is_empty() {
            self.0 = vec![Entry { ids: [0; IDS], word: [0; WORD], len: 0, count: 0 }; ENTRIES];
        }
        let entry = &mut self.0[Self::place(hash)];
        entry.word[..word.len()].copy_from_slice(word);
        entry.ids[..ids.len()].copy_from_slice(ids);
        (entry.len, entry.count) = (word.len() as u8, ids.len() as u8);
    }
}
