//! Byte-pair encoding over the merge table: of all neighbouring pairs the one with the lowest rank merges first, of
//! equal ranks the leftmost.
//!
//! Most words never get here: a word that is a token and encodes to itself is one lookup, and the rest are met again
//! in the cache. Short words look for the lowest rank by going over all pairs, long ones keep a heap over a linked
//! list, so that a text of one repeated letter costs n log n and not n².

use super::encode::Scratch;
use llm_format::tokens::{NONE, View, flag, setting};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Words of more symbols than this use the heap.
const SHORT: usize = 48;

/// The model.
#[derive(Clone, Copy)]
pub(crate) struct Bpe<'a> {
    pub view: View<'a>,
    pub settings: u32,
    pub unknown: Option<u32>,
}

/// What merging needs, kept from word to word.
#[derive(Default)]
pub(crate) struct Symbols {
    ids: Vec<u32>,
    /// Of the pair that begins at a symbol: the rank ([`NONE`]: no merge) and the result.
    pairs: Vec<(u32, u32)>,
    /// Neighbours in the linked list of long words; [`NONE`] at the ends.
    links: Vec<(u32, u32)>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Bpe<'_> {
    fn has(&self, bit: u32) -> bool {
        self.settings & bit != 0
    }

    /// Appends the ids of one piece of text as the pre-tokenizer left it.
    pub(crate) fn encode(&self, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if !self.has(setting::WORDS) {
            return self.word(text.as_bytes(), scratch, out);
        }
        // No token goes from another character over to U+2581, so neither does a merge.
        let mark = '\u{2581}';
        let mut rest = text;
        while !rest.is_empty() {
            let marks = rest.len() - rest.trim_start_matches(mark).len();
            let end = rest[marks..].find(mark).map_or(rest.len(), |at| marks + at);
            let (word, tail) = rest.split_at(end);
            self.word(word.as_bytes(), scratch, out);
            rest = tail;
        }
    }

    fn word(&self, word: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        let hash = llm_format::tokens::hash_bytes(word);
        if let Some(ids) = scratch.cache.get(hash, word) {
            return out.extend_from_slice(ids);
        }
        let from = out.len();
        match self.view.find_hashed(hash, word) {
            Some(id) if self.has(setting::IGNORE_MERGES) || self.view.flags(id) & flag::WHOLE != 0 => {
                out.push(id);
            }
            _ => {
                let symbols = &mut scratch.symbols;
                self.symbols(word, &mut symbols.ids);
                self.merge(symbols);
                out.extend_from_slice(&symbols.ids);
            }
        }
        scratch.cache.put(hash, word, &out[from..]);
    }

    /// The initial symbols of a word.
    fn symbols(&self, word: &[u8], ids: &mut Vec<u32>) {
        ids.clear();
        let mut unknown = false; // the last symbol is an unknown token
        let give_unknown = |ids: &mut Vec<u32>, unknown: &mut bool| {
            if let Some(id) = self.unknown
                && !(*unknown && self.has(setting::FUSE_UNKNOWN))
            {
                ids.push(id);
            }
            *unknown = true;
        };
        if self.has(setting::BYTE_LEVEL) {
            for &byte in word {
                match self.view.byte_id(byte) {
                    Some(id) => {
                        ids.push(id);
                        unknown = false;
                    }
                    None => give_unknown(ids, &mut unknown),
                }
            }
            return;
        }
        for character in characters(word) {
            if let Some(id) = self.view.find(character) {
                ids.push(id);
                unknown = false;
                continue;
            }
            let bytes = || character.iter().map_while(|b| self.view.byte_id(*b));
            if self.has(setting::BYTE_FALLBACK) && bytes().count() == character.len() {
                ids.extend(bytes());
                unknown = false;
            } else {
                give_unknown(ids, &mut unknown);
            }
        }
    }

    fn pair(&self, left: u32, right: u32) -> (u32, u32) {
        self.view.pair(left, right).unwrap_or((NONE, NONE))
    }

    fn merge(&self, symbols: &mut Symbols) {
        let Symbols { ids, pairs, .. } = symbols;
        pairs.clear();
        pairs.extend(ids.windows(2).map(|w| self.pair(w[0], w[1])));
        if ids.len() > SHORT {
            return self.merge_long(symbols);
        }
        loop {
            let mut best = (NONE, 0);
            for (at, &(rank, _)) in pairs.iter().enumerate() {
                if rank < best.0 {
                    best = (rank, at);
                }
            }
            let (rank, at) = best;
            if rank == NONE {
                return;
            }
            ids[at] = pairs[at].1;
            ids.remove(at + 1);
            pairs.remove(at);
            if at < pairs.len() {
                pairs[at] = self.pair(ids[at], ids[at + 1]);
            }
            if at > 0 {
                pairs[at - 1] = self.pair(ids[at - 1], ids[at]);
            }
        }
    }

    fn merge_long(&self, symbols: &mut Symbols) {
        let Symbols { ids, pairs, links, heap } = symbols;
        let count = ids.len() as u32; // the text was proven shorter than 4 GiB
        links.clear();
        links.extend((0..count).map(|i| (i.wrapping_sub(1), if i + 1 < count { i + 1 } else { NONE })));
        pairs.push((NONE, NONE)); // no pair begins at the last symbol
        heap.clear();
        let live = pairs.iter().enumerate().filter(|(_, p)| p.0 != NONE);
        heap.extend(live.map(|(at, p)| Reverse((p.0, at as u32))));
        while let Some(Reverse((rank, at))) = heap.pop() {
            let left = at as usize;
            // An entry is out of date if the pair at its place has changed or gone.
            if pairs[left].0 != rank {
                continue;
            }
            let right = links[left].1 as usize;
            ids[left] = pairs[left].1;
            pairs[right] = (NONE, NONE);
            let next = links[right].1;
            links[left].1 = next;
            pairs[left] = (NONE, NONE);
            if next != NONE {
                links[next as usize].0 = at;
                pairs[left] = self.pair(ids[left], ids[next as usize]);
                if pairs[left].0 != NONE {
                    heap.push(Reverse((pairs[left].0, at)));
                }
            }
            let previous = links[left].0;
            if previous != NONE {
                let before = previous as usize;
                pairs[before] = self.pair(ids[before], ids[left]);
                if pairs[before].0 != NONE {
                    heap.push(Reverse((pairs[before].0, previous)));
                }
            }
        }
        let mut at = 0u32;
        let mut kept = 0;
        while at != NONE {
            ids[kept] = ids[at as usize];
            kept += 1;
            at = links[at as usize].1;
        }
        ids.truncate(kept);
    }
}

/// The characters of UTF-8 text, as bytes.
pub(crate) fn characters(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let len = width(*rest.first()?).min(rest.len());
        let (head, tail) = rest.split_at(len);
        rest = tail;
        Some(head)
    })
}

/// Bytes of the character that begins with `byte`.
pub(crate) fn width(byte: u8) -> usize {
    match byte {
        0..0xC0 => 1,
        0xC0..0xE0 => 2,
        0xE0..0xF0 => 3,
        _ => 4,
    }
}
