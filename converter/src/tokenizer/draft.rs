//! What all importers end with: added tokens, named tokens, ends of generation, and the finished tables.

use super::Built;
use llm::mmap::Bytes;
use llm::tokenizer::Tokenizer;
use llm::{Error, Result, Status};
use llm_format::tokens::{Added, Decoder, Kind, Tables, Token, added, char_to_byte, flag, setting};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A tokenizer on its way to tables.
pub(crate) struct Draft {
    pub kind: &'static str,
    pub tables: Tables,
    /// The model's vocabulary by text, as the source writes it.
    pub vocabulary: HashMap<Vec<u8>, u32>,
    /// Added tokens by id.
    pub added: BTreeMap<u32, AddedToken>,
    /// Texts of special tokens.
    pub special: BTreeSet<Vec<u8>>,
    /// Some source named the ends of a generation.
    pub ends_known: bool,
}

/// An added token as its source describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AddedToken {
    pub content: String,
    pub normalized: bool,
    /// Bits of `llm_format::tokens::added`.
    pub flags: u32,
}

impl AddedToken {
    /// A special token, matched as it stands.
    pub(crate) fn special(content: impl Into<String>) -> AddedToken {
        AddedToken { content: content.into(), normalized: false, flags: added::SPECIAL }
    }

    /// From an object with `content`, `lstrip` and so on.
    pub(crate) fn from_json(value: &Value) -> Option<AddedToken> {
        let content = value.get("content")?.as_str()?.to_owned();
        let is = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
        let special = is("special");
        let bit = |key: &str, bit: u32| if is(key) { bit } else { 0 };
        let flags = bit("lstrip", added::LSTRIP)
            | bit("rstrip", added::RSTRIP)
            | bit("single_word", added::SINGLE_WORD)
            | if special { added::SPECIAL } else { 0 };
        let normalized = value.get("normalized").and_then(Value::as_bool).unwrap_or(!special);
        Some(AddedToken { content, normalized, flags })
    }
}

/// Ends of a turn or a text in published models, for sources that name none.
const USUAL_ENDS: [&str; 10] = [
    "</s>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
    "<|eos|>",
    "<|return|>",
];

pub(crate) fn bad(what: impl Into<String>) -> Error {
    Error::new(Status::BAD_FORMAT, what)
}

impl Draft {
    pub(crate) fn new(kind: &'static str, tables: Tables) -> Draft {
        Draft {
            kind,
            tables,
            vocabulary: HashMap::new(),
            added: BTreeMap::new(),
            special: BTreeSet::new(),
            ends_known: false,
        }
    }

    /// The slot of `id`, the table grown to it. Ids may leave gaps, but not so many that a small file makes a
    /// large table.
    pub(crate) fn slot(&mut self, id: u32) -> Result<&mut Token> {
        let at = id as usize;
        let limit = self.vocabulary.len() * 4 + (1 << 16);
        if at >= limit {
            return Err(bad(format!("token id {id} in a vocabulary of {} tokens", self.vocabulary.len())));
        }
        if self.tables.tokens.len() <= at {
            self.tables.tokens.resize_with(at + 1, Token::default);
        }
        Ok(&mut self.tables.tokens[at])
    }

    /// The id of a text, added or not.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        let added = self.added.iter().find(|(_, t)| t.content == text).map(|(id, _)| *id);
        added.or_else(|| self.vocabulary.get(text.as_bytes()).copied())
    }

    /// Adds a token under `id`; a second one of the same id takes its place.
    pub(crate) fn add(&mut self, id: u32, token: AddedToken) -> Result<()> {
        if token.content.is_empty() {
            return Ok(());
        }
        self.slot(id)?;
        if token.flags & added::SPECIAL != 0 {
            self.special.insert(token.content.clone().into_bytes());
        }
        self.added.insert(id, token);
        Ok(())
    }

    /// Adds tokens as Hugging Face does when it loads a list: a text of the vocabulary keeps its id, others get the
    /// next free one, whatever the list says.
    pub(crate) fn add_in_order(&mut self, tokens: impl IntoIterator<Item = AddedToken>) -> Result<()> {
        // What that library counts: texts, but of a Unigram model lines. Bounded by the size of the file.
        let count = match self.tables.kind {
            Kind::Bpe => self.vocabulary.len() as u32,
            Kind::Unigram => self.tables.tokens.len() as u32,
        };
        let mut next = self.added.keys().next_back().map_or(count, |last| count.max(last + 1));
        let mut known: HashMap<String, u32> =
            self.added.iter().map(|(id, t)| (t.content.clone(), *id)).collect();
        for token in tokens {
            let found = known.get(&token.content).or_else(|| self.vocabulary.get(token.content.as_bytes()));
            let id = found.copied().unwrap_or(next);
            if id == next && found.is_none() && !token.content.is_empty() {
                next += 1;
            }
            known.insert(token.content.clone(), id);
            self.add(id, token)?;
        }
        Ok(())
    }

    /// Marks a token as an end of generation.
    pub(crate) fn end(&mut self, id: u32) {
        if let Some(token) = self.tables.tokens.get_mut(id as usize) {
            token.flags |= flag::END;
            self.ends_known = true;
        }
    }

    fn maps_bytes(&self) -> bool {
        self.tables.settings & setting::BYTE_LEVEL != 0 || self.tables.decoder.contains(&Decoder::ByteLevel)
    }

    /// The tables.
    pub(crate) fn finish(mut self) -> Result<Built> {
        let failed = |e: llm_format::tokens::TokensError| bad(e.to_string());
        // Added tokens are looked for in normalised text in their normalised form. The library itself normalises.
        let mut patterns: BTreeMap<u32, String> = BTreeMap::new();
        if !self.tables.normalizer.is_empty() && self.added.values().any(|t| t.normalized) {
            let bare = Tokenizer::from_tables(Bytes::from(self.tables.encode().map_err(failed)?))?;
            for (id, token) in self.added.iter().filter(|(_, t)| t.normalized) {
                patterns.insert(*id, bare.normalize(&token.content)?);
            }
        }
        let maps = self.maps_bytes();
        let mut apart = BTreeSet::new();
        let added = std::mem::take(&mut self.added);
        for (&id, token) in &added {
            let pattern = patterns.get(&id).unwrap_or(&token.content);
            self.tables.added.push(Added {
                id,
                content: token.content.clone().into_bytes(),
                pattern: pattern.clone().into_bytes(),
                normalized: token.normalized,
                flags: token.flags,
            });
            let Some(slot) = self.tables.tokens.get_mut(id as usize) else { continue };
            let mapped =
                maps.then(|| pattern.chars().map(char_to_byte).collect::<Option<Vec<u8>>>()).flatten();
            slot.flags |= flag::PRESENT | flag::ADDED;
            slot.flags &= !flag::MAPPED;
            let bytes = match mapped {
                Some(bytes) => {
                    slot.flags |= flag::MAPPED;
                    bytes
                }
                None => pattern.clone().into_bytes(),
            };
            if bytes != slot.bytes {
                slot.flags &= !(flag::INDEXED | flag::WHOLE); // the model knew it by another text
                slot.bytes = bytes;
            }
            // Decoding leaves out by the text that would be shown, which normalising may have changed.
            if self.special.contains(pattern.as_bytes()) {
                slot.flags |= flag::SPECIAL;
            }
            if token.flags & llm_format::tokens::added::SPECIAL != 0 {
                // Never made from plain text: neither found whole, nor merged to, nor on a path.
                slot.flags &= !(flag::INDEXED | flag::WHOLE);
                apart.insert(id);
            }
        }
        self.tables.merges.retain(|m| !apart.contains(&m.merged));
        self.tables.pieces.retain(|p| !apart.contains(&p.1));
        if let Some(id) = self.tables.special[2]
            && let Some(token) = self.tables.tokens.get_mut(id as usize)
        {
            token.flags |= flag::UNKNOWN;
        }
        if let Some(eos) = self.tables.special[1] {
            self.end(eos);
        }
        if !self.ends_known {
            for (id, token) in &added {
                if USUAL_ENDS.contains(&token.content.as_str()) {
                    self.end(*id);
                }
            }
        }
        if self.tables.settings & (setting::BYTE_LEVEL | setting::IGNORE_MERGES) == 0 && self.words_apart() {
            self.tables.settings |= setting::WORDS;
        }
        let tables = self.tables.encode().map_err(failed)?;
        // What the library will not open, such as an expression it does not know, is refused here.
        Tokenizer::from_tables(Bytes::from(tables.clone()))?;
        Ok(Built { tables, kind: self.kind })
    }

    /// Whether no merge makes a token with U+2581 behind another character.
    fn words_apart(&self) -> bool {
        let mark = "\u{2581}".as_bytes();
        let crosses = |text: &[u8]| {
            let marks = text.chunks(mark.len()).take_while(|c| *c == mark).count();
            let rest = &text[(marks * mark.len()).min(text.len())..];
            rest.windows(mark.len()).any(|w| w == mark)
        };
        let text = |id: u32| self.tables.tokens.get(id as usize).map_or(&[][..], |t| &t.bytes);
        !self.tables.merges.iter().any(|m| crosses(text(m.merged)))
    }
}
