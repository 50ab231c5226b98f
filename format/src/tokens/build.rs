//! Writing: the same tables give the same bytes, whatever order they came in.

use super::program::{self, Decoder, Normalizer, PreTokenizer};
use super::{HEADER, Kind, LONGEST, NONE, PART, PROBES, TokensError, VERSION, bad, flag, part, slot};
use super::{hash_bytes, hash_pair};
use std::collections::BTreeMap;

/// A tokenizer before it is laid out.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The model.
    pub kind: Kind,
    /// Bits of [`super::setting`].
    pub settings: u32,
    /// Tokens by id; an unused id has no [`flag::PRESENT`].
    pub tokens: Vec<Token>,
    /// Merges (BPE).
    pub merges: Vec<Merge>,
    /// The token of each byte, [`NONE`] where there is none.
    pub byte_ids: [u32; 256],
    /// What the trie of a unigram model holds: text and id. Of equal texts the last one counts.
    pub pieces: Vec<(Vec<u8>, u32)>,
    /// The score of an unknown character.
    pub unknown_score: f64,
    /// The score per byte of user-defined tokens.
    pub max_score: f64,
    /// Named tokens: bos, eos, unknown, pad.
    pub special: [Option<u32>; 4],
    /// Added tokens.
    pub added: Vec<Added>,
    /// Steps before splitting.
    pub normalizer: Vec<Normalizer>,
    /// Steps of splitting.
    pub pre_tokenizer: Vec<PreTokenizer>,
    /// Steps from tokens to text.
    pub decoder: Vec<Decoder>,
    /// Ids before a text.
    pub prefix: Vec<u32>,
    /// Ids behind a text.
    pub suffix: Vec<u32>,
    /// SentencePiece's table of replacements: u32 length of the trie, trie, strings.
    pub charsmap: Vec<u8>,
}

/// One token.
#[derive(Clone, Debug, Default)]
pub struct Token {
    /// What it decodes to, and what the index finds it by.
    pub bytes: Vec<u8>,
    /// Bits of [`flag`].
    pub flags: u16,
    /// Log probability (unigram).
    pub score: f64,
}

/// One merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// The left token.
    pub left: u32,
    /// The right token.
    pub right: u32,
    /// Lower ranks merge first.
    pub rank: u32,
    /// What they become.
    pub merged: u32,
}

/// One added token.
#[derive(Clone, Debug)]
pub struct Added {
    /// Its id.
    pub id: u32,
    /// The text it was added with.
    pub content: Vec<u8>,
    /// What is looked for, if `normalized`: the normalised content.
    pub pattern: Vec<u8>,
    /// Matched against normalised text.
    pub normalized: bool,
    /// Bits of [`super::added`].
    pub flags: u32,
}

impl Default for Tables {
    fn default() -> Self {
        Tables {
            kind: Kind::Bpe,
            settings: 0,
            tokens: Vec::new(),
            merges: Vec::new(),
            byte_ids: [NONE; 256],
            pieces: Vec::new(),
            unknown_score: 0.0,
            max_score: 0.0,
            special: [None; 4],
            added: Vec::new(),
            normalizer: Vec::new(),
            pre_tokenizer: Vec::new(),
            decoder: Vec::new(),
            prefix: Vec::new(),
            suffix: Vec::new(),
            charsmap: Vec::new(),
        }
    }
}

fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Places `items` by hash into the smallest table, from a load of 0.6 down, where none is further than [`PROBES`]
/// slots from its place; gives the item of every slot.
fn place(hashes: &[u64]) -> Result<Vec<Option<usize>>, TokensError> {
    let mut slots = (hashes.len() * 5 / 3).max(1);
    loop {
        let Ok(count) = u32::try_from(slots) else { return bad("a hash table that does not fit") };
        let mut table = vec![None; slots];
        let fits = hashes.iter().enumerate().all(|(i, &hash)| {
            let mut at = slot(hash, count) as usize;
            for _ in 0..PROBES {
                if table[at].is_none() {
                    table[at] = Some(i);
                    return true;
                }
                at = if at + 1 == slots { 0 } else { at + 1 };
            }
            false
        });
        if fits {
            return Ok(table);
        }
        if slots > hashes.len() * 64 {
            return bad("token texts that all fall on the same hash");
        }
        slots += slots / 4 + 1;
    }
}

impl Tables {
    /// The section.
    pub fn encode(&self) -> Result<Vec<u8>, TokensError> {
        let Ok(size) = u32::try_from(self.tokens.len()) else { return bad("too many tokens") };
        let mut parts: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut offsets = vec![0u32];
        let mut blob = Vec::new();
        for token in &self.tokens {
            blob.extend_from_slice(&token.bytes);
            let Ok(end) = u32::try_from(blob.len()) else { return bad("4 GiB of token text") };
            offsets.push(end);
        }
        parts.push((part::OFFSETS, words(offsets)));
        parts.push((part::BYTES, blob));
        parts.push((part::FLAGS, self.tokens.iter().flat_map(|t| t.flags.to_le_bytes()).collect()));
        parts.push((part::INDEX, self.index()?));
        let mut longest = self.tokens.iter().map(|t| t.bytes.len()).max().unwrap_or(0);
        match self.kind {
            Kind::Bpe => parts.push((part::PAIRS, pairs(&self.merges)?)),
            Kind::Unigram => {
                longest = self.pieces.iter().map(|p| p.0.len()).max().unwrap_or(0);
                if longest > LONGEST as usize {
                    return bad(format!("a token of {longest} bytes, at most {LONGEST} in a unigram model"));
                }
                parts.push((part::PAIRS, pairs(&trie(&self.pieces)?)?));
                let scores = self.tokens.iter().flat_map(|t| t.score.to_le_bytes());
                parts.push((part::SCORES, scores.collect()));
            }
        }
        parts.push((part::BYTE_IDS, words(self.byte_ids)));
        let mut text = Vec::new();
        for (tag, normalized) in [(part::ADDED_RAW, false), (part::ADDED_NORMAL, true)] {
            let list = self.added.iter().filter(|a| a.normalized == normalized);
            parts.push((tag, added_list(list, &mut text)?));
        }
        parts.push((part::ADDED_TEXT, text));
        parts.push((part::NORMALIZER, program::encode(&self.normalizer)?));
        parts.push((part::PRE_TOKENIZER, program::encode(&self.pre_tokenizer)?));
        parts.push((part::DECODER, program::encode(&self.decoder)?));
        parts.push((part::PREFIX, words(self.prefix.iter().copied())));
        parts.push((part::SUFFIX, words(self.suffix.iter().copied())));
        parts.push((part::CHARSMAP, self.charsmap.clone()));

        let kind = match self.kind {
            Kind::Bpe => 1,
            Kind::Unigram => 2,
        };
        let mut out = words([VERSION, kind, self.settings, size]);
        out.extend_from_slice(&self.unknown_score.to_le_bytes());
        out.extend_from_slice(&self.max_score.to_le_bytes());
        let mut special = [NONE; 8];
        for (slot, id) in special.iter_mut().zip(self.special) {
            *slot = id.unwrap_or(NONE);
        }
        out.extend(words(special));
        out.extend(words([longest as u32, parts.len() as u32, 0, 0]));
        debug_assert_eq!(out.len(), HEADER);
        let mut at = HEADER + parts.len() * PART;
        for (tag, bytes) in &parts {
            at = at.next_multiple_of(8);
            out.extend(words([*tag, 0]));
            out.extend_from_slice(&(at as u64).to_le_bytes());
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            at += bytes.len();
        }
        for (_, bytes) in &parts {
            out.resize(out.len().next_multiple_of(8), 0);
            out.extend_from_slice(bytes);
        }
        Ok(out)
    }

    /// Slots of ids by the hash of the bytes. The first of equal texts is found.
    fn index(&self) -> Result<Vec<u8>, TokensError> {
        let mut first: BTreeMap<&[u8], u32> = BTreeMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if token.flags & flag::INDEXED != 0 {
                first.entry(&token.bytes).or_insert(id as u32); // the count was proven to fit
            }
        }
        let mut ids: Vec<u32> = first.into_values().collect();
        ids.sort_unstable(); // low ids are the frequent tokens: they get the first slot of a chain
        let hashes: Vec<u64> = ids.iter().map(|id| hash_bytes(&self.tokens[*id as usize].bytes)).collect();
        let slots = place(&hashes)?;
        Ok(words(slots.into_iter().map(|slot| slot.map_or(NONE, |i| ids[i]))))
    }
}

/// Slots of 16 bytes: left, right, rank, merged.
fn pairs(merges: &[Merge]) -> Result<Vec<u8>, TokensError> {
    // Of equal pairs the one with the lowest rank counts; frequent merges come first in their chain.
    let mut by_pair: BTreeMap<(u32, u32), Merge> = BTreeMap::new();
    for merge in merges {
        let kept = by_pair.entry((merge.left, merge.right)).or_insert(*merge);
        if (merge.rank, merge.merged) < (kept.rank, kept.merged) {
            *kept = *merge;
        }
    }
    let mut list: Vec<Merge> = by_pair.into_values().collect();
    list.sort_by_key(|m| (m.rank, m.left, m.right));
    let hashes: Vec<u64> = list.iter().map(|m| hash_pair(m.left, m.right)).collect();
    let slots = place(&hashes)?;
    let empty = Merge { left: NONE, right: NONE, rank: NONE, merged: NONE };
    let entries = slots.into_iter().map(|slot| slot.map_or(empty, |i| list[i]));
    Ok(entries.flat_map(|m| [m.left, m.right, m.rank, m.merged]).flat_map(u32::to_le_bytes).collect())
}

/// Edges of a trie over `pieces`: node, byte → token ending at the child or [`NONE`], child. The root is 0.
fn trie(pieces: &[(Vec<u8>, u32)]) -> Result<Vec<Merge>, TokensError> {
    let sorted: BTreeMap<&[u8], u32> = pieces.iter().map(|(text, id)| (text.as_slice(), *id)).collect();
    let mut edges: Vec<Merge> = Vec::new();
    let mut path: Vec<usize> = Vec::new(); // edges from the root to the previous piece
    let mut previous: &[u8] = &[];
    for (text, id) in sorted {
        let shared = text.iter().zip(previous).take_while(|(a, b)| a == b).count();
        path.truncate(shared);
        for &byte in &text[shared..] {
            let left = path.last().map_or(0, |e| edges[*e].merged);
            let Ok(child) = u32::try_from(edges.len() + 1) else { return bad("a trie that does not fit") };
            path.push(edges.len());
            edges.push(Merge { left, right: u32::from(byte), rank: NONE, merged: child });
        }
        if let Some(last) = path.last() {
            edges[*last].rank = id;
        }
        previous = text;
    }
    Ok(edges)
}

/// A bitmap of first bytes and then the records in ascending order of their patterns.
fn added_list<'a>(list: impl Iterator<Item = &'a Added>, text: &mut Vec<u8>) -> Result<Vec<u8>, TokensError> {
    // Of equal patterns the first by id counts.
    let mut sorted: BTreeMap<&[u8], &Added> = BTreeMap::new();
    for token in list {
        let pattern = if token.normalized { &token.pattern } else { &token.content };
        if pattern.is_empty() {
            continue;
        }
        let kept = sorted.entry(pattern).or_insert(token);
        if token.id < kept.id {
            *kept = token;
        }
    }
    if sorted.is_empty() {
        return Ok(Vec::new());
    }
    let mut put = |bytes: &[u8]| match u32::try_from(text.len()) {
        Ok(start) => {
            text.extend_from_slice(bytes);
            Ok([start, bytes.len() as u32])
        }
        Err(_) => bad("4 GiB of added text"),
    };
    let mut out = vec![0u8; 32];
    for (pattern, token) in sorted {
        out[usize::from(pattern[0] >> 3)] |= 1 << (pattern[0] & 7);
        let [at, len] = put(pattern)?;
        let [start, long] = if pattern == token.content { [at, len] } else { put(&token.content)? };
        out.extend(words([token.id, at, len, start, long, token.flags]));
    }
    Ok(out)
}
