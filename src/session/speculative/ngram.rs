//! Lookup: what followed the last tokens when they stood somewhere before is likely to follow them again.
//!
//! ```text
//! … the cat sat on the mat . then the cat sat ?        the last three tokens stood before ┐
//!       └───────────▲──────────────────────────────────── guess: on the mat .  ◀──────────┘
//! ```
//! Known from LLMA (Yang et al., "Inference with Reference", arXiv:2304.04487) and prompt lookup decoding. The places
//! are found through chains by hash, as LZ77 compressors do: `last[hash of the `least` tokens before a place]` is the
//! latest such place and `before[place]` the one before it. Adding a token and taking one back are O(1), so the index
//! follows a session that grows or is truncated, and is never built again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::{NgramOptions, Place, Proposer, refuse};
use crate::error::Result;

/// Places looked at for the longest match: bounds the work where the same few tokens stand everywhere.
const MOST_PLACES: usize = 64;
/// No place.
const NONE: u32 = u32::MAX;

/// Tokens and the places behind each run of `least` of them.
#[derive(Clone, Debug, Default)]
struct Index {
    least: usize,
    tokens: Vec<i32>,
    last: HashMap<u64, u32>,
    /// Of the place behind token i: the place before it with the same hash.
    before: Vec<u32>,
}

impl Index {
    fn new(least: usize) -> Self {
        Self { least, ..Self::default() }
    }

    /// FNV-1a over the ids.
    fn hash(ids: &[i32]) -> u64 {
        ids.iter().fold(0xcbf2_9ce4_8422_2325, |h, &id| {
            (h ^ u64::from(id.cast_unsigned())).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// Hash of the last `least` tokens, if there are so many.
    fn key(&self) -> Option<u64> {
        self.tokens.len().checked_sub(self.least).map(|from| Self::hash(&self.tokens[from..]))
    }

    fn push(&mut self, id: i32) {
        self.tokens.push(id);
        let place = self.tokens.len() as u32;
        let before = self.key().and_then(|key| self.last.insert(key, place));
        self.before.push(before.unwrap_or(NONE));
    }

    fn pop(&mut self) {
        let (key, before) = (self.key(), self.before.pop());
        if let (Some(key), Some(before)) = (key, before)
            && let Entry::Occupied(mut entry) = self.last.entry(key)
        {
            if before == NONE {
                entry.remove();
            } else {
                entry.insert(before);
            }
        }
        self.tokens.pop();
    }

    /// The tokens behind the longest match with the end of `context`, the latest of equally long ones, and its length.
    /// The match is `least` to `most` long and something follows it.
    fn find(&self, context: &[i32], most: usize) -> Option<(usize, &[i32])> {
        let tail = &context[context.len().checked_sub(self.least)?..];
        let mut place = *self.last.get(&Self::hash(tail))?;
        let mut best: Option<(usize, usize)> = None;
        for _ in 0..MOST_PLACES {
            let at = place as usize;
            if at < self.tokens.len() {
                let pairs = self.tokens[..at].iter().rev().zip(context.iter().rev());
                let length = pairs.take(most).take_while(|(a, b)| a == b).count();
                if length >= self.least && best.is_none_or(|(longest, _)| length > longest) {
                    best = Some((length, at));
                    if length == most {
                        break;
                    }
                }
            }
            match self.before.get(at.wrapping_sub(1)) {
                Some(&before) if before != NONE => place = before,
                _ => break,
            }
        }
        best.map(|(length, at)| (length, &self.tokens[at..]))
    }
}

/// Tokens to look in that are not the session's: earlier answers, a document, code. Shared by its clones.
#[derive(Clone, Debug)]
pub struct Corpus(Arc<Index>);

impl Corpus {
    /// Indexes `ids` for matches of at least `least_match` tokens, the same as in [`NgramOptions`].
    ///
    /// # Errors
    /// `INVALID_ARG` for a match length of 0, a negative id or more than 2³¹ ids.
    pub fn new(ids: &[i32], least_match: usize) -> Result<Self> {
        if least_match == 0 {
            return Err(refuse("least match", "1 or more", least_match));
        }
        if let Some(id) = ids.iter().find(|&&id| id < 0) {
            return Err(refuse("corpus", "ids of 0 or more", id));
        }
        if i32::try_from(ids.len()).is_err() {
            return Err(refuse("corpus", "fewer than 2^31 ids", ids.len()));
        }
        let mut index = Index::new(least_match);
        ids.iter().for_each(|&id| index.push(id));
        Ok(Self(Arc::new(index)))
    }

    /// The shortest match it was indexed for.
    pub fn least_match(&self) -> usize {
        self.0.least
    }
}

/// The proposer.
#[derive(Clone, Debug)]
pub struct Ngram {
    /// Over the session's own tokens.
    own: Index,
    corpus: Option<Corpus>,
    most_match: usize,
}

impl Ngram {
    /// A lookup that has seen nothing.
    ///
    /// # Errors
    /// As [`NgramOptions::check`].
    pub fn new(options: &NgramOptions) -> Result<Self> {
        options.check()?;
        let own = Index::new(options.least_match);
        Ok(Self { own, corpus: options.corpus.clone(), most_match: options.most_match })
    }
}

impl Proposer for Ngram {
    fn name(&self) -> &'static str {
        "ngram"
    }

    fn propose(&mut self, at: &Place<'_>, most: usize, out: &mut Vec<i32>) -> Result<()> {
        let agreed = at.agree(&self.own.tokens);
        while self.own.tokens.len() > agreed {
            self.own.pop();
        }
        for id in (agreed..at.position()).filter_map(|index| at.token(index)) {
            self.own.push(id);
        }
        let context = &self.own.tokens;
        let own = self.own.find(context, self.most_match);
        let corpus = self.corpus.as_ref().and_then(|corpus| corpus.0.find(context, self.most_match));
        // The session's own words before those of others, unless these agree longer.
        let found = match (own, corpus) {
            (Some(own), Some(corpus)) if corpus.0 > own.0 => Some(corpus),
            (own, corpus) => own.or(corpus),
        };
        if let Some((_, following)) = found {
            // Where it reaches the end it goes on with its own guesses: a text that repeats a short period.
            let period = following.len();
            let from = out.len();
            for i in 0..most {
                let id = if i < period { following[i] } else { out[from + i - period] };
                out.push(id);
            }
        }
        Ok(())
    }
}
