//! Reading: extents checked once, then lookups with bounds of their own.

use super::program::{self, Decoder, Normalizer, PreTokenizer};
use super::{HEADER, Kind, LONGEST, NONE, PART, PROBES, TokensError, VERSION, bad, flag, part, slot};
use super::{hash_bytes, hash_pair};
use std::ops::Range;

/// Where the parts of a section lie, and what is small enough to be read once.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The model.
    pub kind: Kind,
    /// Bits of [`super::setting`].
    pub settings: u32,
    /// Ids are below this.
    pub size: u32,
    /// The score of an unknown character (unigram).
    pub unknown_score: f64,
    /// The score per byte of a user-defined token (unigram of SentencePiece).
    pub max_score: f64,
    /// Bytes of the longest token.
    pub longest: u32,
    /// Ids of named tokens: bos, eos, unknown, pad, the rest reserved; [`NONE`] where there is none.
    pub special: [u32; 8],
    /// What text goes through before it is split.
    pub normalizer: Vec<Normalizer>,
    /// How it is split.
    pub pre_tokenizer: Vec<PreTokenizer>,
    /// From tokens to text.
    pub decoder: Vec<Decoder>,
    parts: [Range<usize>; part::COUNT],
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Layout {
    /// Checks the header, the extents of the parts and the programs. The work does not depend on the vocabulary.
    pub fn parse(bytes: &[u8]) -> Result<Layout, TokensError> {
        let short = || TokensError(format!("{} bytes, too short for a header", bytes.len()));
        let word = |at| u32_at(bytes, at).ok_or_else(short);
        let long = |at| u64_at(bytes, at).ok_or_else(short);
        let version = word(0)?;
        if version != VERSION {
            return bad(format!("version {version}, expected {VERSION}: convert the model again"));
        }
        let kind = match word(4)? {
            1 => Kind::Bpe,
            2 => Kind::Unigram,
            n => return bad(format!("unknown model kind {n}: the file needs a newer library")),
        };
        let (settings, size) = (word(8)?, word(12)?);
        let (unknown_score, max_score) = (f64::from_bits(long(16)?), f64::from_bits(long(24)?));
        let mut special = [NONE; 8];
        for (i, id) in special.iter_mut().enumerate() {
            *id = word(32 + 4 * i)?;
        }
        let (longest, count) = (word(64)?, word(68)?);
        let mut parts: [Range<usize>; part::COUNT] = std::array::from_fn(|_| 0..0);
        if count as usize > part::COUNT {
            return bad(format!("{count} parts, at most {}", part::COUNT));
        }
        for i in 0..count as usize {
            let at = HEADER + i * PART;
            let (tag, offset, len) = (word(at)? as usize, long(at + 8)?, long(at + 16)?);
            let end = offset.checked_add(len).filter(|end| *end <= bytes.len() as u64);
            let Some(end) = end else {
                return bad(format!("part {tag} reaches {offset} + {len}, beyond {} bytes", bytes.len()));
            };
            match parts.get_mut(tag) {
                Some(slot) if tag != 0 => *slot = offset as usize..end as usize,
                _ => return bad(format!("unknown part {tag}: the file needs a newer library")),
            }
        }
        let expect = |tag: u32, want: u64, what: &str| {
            let got = parts[tag as usize].len() as u64;
            if got == want { Ok(()) } else { bad(format!("{what} takes {got} bytes, expected {want}")) }
        };
        let n = u64::from(size);
        if n > 1 << 28 {
            return bad(format!("{n} ids, at most {}", 1 << 28));
        }
        expect(part::OFFSETS, 4 * (n + 1), "the table of token offsets")?;
        expect(part::FLAGS, 2 * n, "the table of token flags")?;
        if kind == Kind::Unigram {
            expect(part::SCORES, 8 * n, "the table of scores")?;
            if longest > LONGEST {
                return bad(format!("a token of {longest} bytes, at most {LONGEST}"));
            }
        }
        let take = |tag: u32| &bytes[parts[tag as usize].clone()]; // extents proven above
        Ok(Layout {
            kind,
            settings,
            size,
            unknown_score,
            max_score,
            longest,
            special,
            normalizer: program::decode(take(part::NORMALIZER))?,
            pre_tokenizer: program::decode(take(part::PRE_TOKENIZER))?,
            decoder: program::decode(take(part::DECODER))?,
            parts,
        })
    }

    /// The tables in `bytes`, which must be the bytes that were parsed (others give wrong answers, not a panic).
    pub fn view<'a>(&self, bytes: &'a [u8]) -> View<'a> {
        let take = |tag: u32| bytes.get(self.parts[tag as usize].clone()).unwrap_or(&[]);
        let text = take(part::ADDED_TEXT);
        let list = |tag: u32| {
            let (first, records) = take(tag).split_first_chunk::<32>().unwrap_or((&[0; 32], &[]));
            AddedList { first, records: records.as_chunks().0, text }
        };
        View {
            offsets: take(part::OFFSETS).as_chunks().0,
            bytes: take(part::BYTES),
            flags: take(part::FLAGS).as_chunks().0,
            index: take(part::INDEX).as_chunks().0,
            pairs: take(part::PAIRS).as_chunks().0,
            byte_ids: take(part::BYTE_IDS).as_chunks().0,
            scores: take(part::SCORES).as_chunks().0,
            raw: list(part::ADDED_RAW),
            normal: list(part::ADDED_NORMAL),
            prefix: take(part::PREFIX).as_chunks().0,
            suffix: take(part::SUFFIX).as_chunks().0,
            charsmap: take(part::CHARSMAP),
        }
    }
}

/// The tables of one section.
#[derive(Clone, Copy)]
pub struct View<'a> {
    offsets: &'a [[u8; 4]],
    bytes: &'a [u8],
    flags: &'a [[u8; 2]],
    index: &'a [[u8; 4]],
    pairs: &'a [[u8; 16]],
    byte_ids: &'a [[u8; 4]],
    scores: &'a [[u8; 8]],
    /// Added tokens matched against the text as it came.
    pub raw: AddedList<'a>,
    /// Added tokens matched against normalised text.
    pub normal: AddedList<'a>,
    prefix: &'a [[u8; 4]],
    suffix: &'a [[u8; 4]],
    /// SentencePiece's table of character replacements.
    pub charsmap: &'a [u8],
}

impl<'a> View<'a> {
    /// The bytes of a token.
    #[inline]
    pub fn token(&self, id: u32) -> Option<&'a [u8]> {
        let at = id as usize;
        let start = u32::from_le_bytes(*self.offsets.get(at)?) as usize;
        let end = u32::from_le_bytes(*self.offsets.get(at.checked_add(1)?)?) as usize;
        self.bytes.get(start..end)
    }

    /// The flags of a token, none for an id that is not in use.
    #[inline]
    pub fn flags(&self, id: u32) -> u16 {
        self.flags.get(id as usize).map_or(0, |b| u16::from_le_bytes(*b))
    }

    /// The indexed token with exactly these bytes.
    #[inline]
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        self.find_hashed(hash_bytes(bytes), bytes)
    }

    /// The same where `hash` is known to be [`hash_bytes`] of them.
    #[inline]
    pub fn find_hashed(&self, hash: u64, bytes: &[u8]) -> Option<u32> {
        let slots = self.index.len() as u32;
        let mut at = slot(hash, slots);
        for _ in 0..PROBES {
            let id = u32::from_le_bytes(*self.index.get(at as usize)?);
            if id == NONE {
                return None;
            }
            if self.token(id) == Some(bytes) {
                return Some(id);
            }
            at = if at + 1 == slots { 0 } else { at + 1 };
        }
        None
    }

    /// The two values stored for a pair: (rank, merged id) of a merge, or (token or [`NONE`], node) of a trie edge.
    #[inline]
    pub fn pair(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let slots = self.pairs.len() as u32;
        let key = u64::from(left) | u64::from(right) << 32;
        let mut at = slot(hash_pair(left, right), slots);
        for _ in 0..PROBES {
            let entry = u128::from_le_bytes(*self.pairs.get(at as usize)?);
            if entry as u64 == key {
                return Some(((entry >> 64) as u32, (entry >> 96) as u32));
            }
            if entry as u32 == NONE {
                return None;
            }
            at = if at + 1 == slots { 0 } else { at + 1 };
        }
        None
    }

    /// The token of a single byte: an initial symbol of byte-level BPE, or what stands for the byte in a fallback.
    #[inline]
    pub fn byte_id(&self, byte: u8) -> Option<u32> {
        self.byte_ids.get(usize::from(byte)).map(|b| u32::from_le_bytes(*b)).filter(|id| *id != NONE)
    }

    /// The score of a token; NaN never comes out.
    #[inline]
    pub fn score(&self, id: u32) -> f64 {
        let score = self.scores.get(id as usize).map_or(0.0, |b| f64::from_le_bytes(*b));
        if score.is_nan() { f64::MIN } else { score }
    }

    /// Ids that go before the text.
    pub fn prefix(&self) -> impl Iterator<Item = u32> + 'a {
        self.prefix.iter().map(|b| u32::from_le_bytes(*b))
    }

    /// Ids that go behind the text.
    pub fn suffix(&self) -> impl Iterator<Item = u32> + 'a {
        self.suffix.iter().map(|b| u32::from_le_bytes(*b))
    }

    /// Whether the token is left out of decoded text on request.
    pub fn is_special(&self, id: u32) -> bool {
        self.flags(id) & flag::SPECIAL != 0
    }
}

/// Added tokens in ascending order of the text they match.
#[derive(Clone, Copy)]
pub struct AddedList<'a> {
    first: &'a [u8; 32],
    records: &'a [[u8; 24]],
    text: &'a [u8],
}

/// One added token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedToken<'a> {
    /// Its id.
    pub id: u32,
    /// Bits of [`super::added`].
    pub flags: u32,
    /// What is looked for: the content, normalised where the list is for normalised text.
    pub pattern: &'a [u8],
    /// The text it was added with.
    pub content: &'a [u8],
}

impl<'a> AddedList<'a> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether some token may begin with `byte`.
    #[inline]
    pub fn may_start(&self, byte: u8) -> bool {
        self.first[usize::from(byte >> 3)] & 1 << (byte & 7) != 0
    }

    /// The token at `at`.
    pub fn get(&self, at: usize) -> Option<AddedToken<'a>> {
        let record = self.records.get(at)?;
        let word = |i: usize| u32_at(record, 4 * i);
        let text = |i: usize| {
            let start = word(i)? as usize;
            self.text.get(start..start.checked_add(word(i + 1)? as usize)?)
        };
        Some(AddedToken { id: word(0)?, flags: word(5)?, pattern: text(1)?, content: text(3)? })
    }

    fn pattern(&self, at: usize) -> &'a [u8] {
        self.get(at).map_or(&[], |t| t.pattern)
    }

    /// The longest token that `text` begins with.
    pub fn longest_prefix(&self, text: &[u8]) -> Option<AddedToken<'a>> {
        if !self.may_start(*text.first()?) {
            return None;
        }
        let (mut low, mut high) = (0, self.records.len());
        let mut best = None;
        for (depth, &byte) in text.iter().enumerate() {
            // Entries of low..high share text[..depth]; keep those that go on with `byte`.
            let next = |at: usize| self.pattern(at).get(depth).copied();
            low = lower(low, high, |at| next(at) < Some(byte));
            high = lower(low, high, |at| next(at) <= Some(byte));
            if low >= high {
                break;
            }
            // Sorted: the one that ends here, if any, is the first.
            if self.pattern(low).len() == depth + 1 {
                best = Some(low);
            }
        }
        self.get(best?)
    }

    /// The token that was added with this text.
    pub fn by_content(&self, text: &[u8]) -> Option<AddedToken<'a>> {
        let at = lower(0, self.records.len(), |at| self.pattern(at) < text);
        // Where nothing was normalised the pattern is the content; else the lists are short.
        let exact = self.get(at).filter(|t| t.content == text);
        exact.or_else(|| (0..self.len()).filter_map(|at| self.get(at)).find(|t| t.content == text))
    }
}

/// The first of `low..high` that is not `before`.
fn lower(mut low: usize, mut high: usize, before: impl Fn(usize) -> bool) -> usize {
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
