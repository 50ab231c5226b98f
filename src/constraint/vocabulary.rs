//! A tokenizer's vocabulary as a trie of bytes, over which grammars are matched.
//!
//! Building it takes time in proportion to the vocabulary, so it is done when the first constraint is compiled, once
//! per tokenizer, and shared by all that follow.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::error::{Error, Result, Status};
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// What is kept with a tokenizer.
pub(super) struct Vocabulary {
    pub(super) factory: ParserFactory,
}

/// The tokenizer as the grammar engine sees it.
struct Environment {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
    /// Every byte has a token, so that any bytes can be spelled and forced bytes can become tokens.
    complete: bool,
}

impl Vocabulary {
    /// The vocabulary of `tokenizer`, built at the first call.
    pub(super) fn of(tokenizer: &Arc<Tokenizer>) -> Result<Arc<Self>> {
        if let Some(there) = tokenizer.derived::<Self>() {
            return Ok(there);
        }
        let made = Arc::new(Self::build(Arc::clone(tokenizer))?);
        Ok(tokenizer.keep_derived(made))
    }

    fn build(tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let words: Vec<Vec<u8>> = (0..tokenizer.size()).map(|id| word(&tokenizer, id as i32)).collect();
        let ends: Vec<u32> =
            (0..tokenizer.size() as i32).filter(|&id| tokenizer.is_end(id)).map(|id| id as u32).collect();
        let info = TokRxInfo::new(words.len() as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        // Bytes that occur in no UTF-8 text need no token.
        let complete =
            (0..0xf5u8).filter(|b| ![0xc0, 0xc1].contains(b)).all(|b| trie.token_id_at_bytes(&[b]).is_some());
        // The environment owns the tokenizer and the tokenizer keeps the vocabulary: the circle is broken by holding
        // the tables, not the tokenizer that keeps us.
        let tokenizer = Arc::new(tokenizer.without_derived()?);
        let environment: TokEnv = Arc::new(Environment { trie, tokenizer, complete });
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|e| {
                Error::new(Status::INTERNAL, format!("constraint: preparing the vocabulary: {e}"))
            })?;
        factory.quiet();
        Ok(Self { factory })
    }
}

/// The longest word that the engine's trie takes, in bytes. A longer token is never written under a constraint.
const LONGEST: usize = 1024;

/// The bytes of a token; special tokens are marked, so that no text matches them; empty for an id not in use.
fn word(tokenizer: &Tokenizer, id: i32) -> Vec<u8> {
    let flags = tokenizer.flags(id);
    let Some(bytes) = tokenizer.token_bytes(id) else { return Vec::new() };
    let mut word = bytes.into_owned();
    if flags.is_special() || flags.is_control() || flags.is_unknown() || tokenizer.is_end(id) {
        word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
    }
    if word.len() > LONGEST { Vec::new() } else { word }
}

impl Environment {
    /// The ids of `text` in the middle of a text, if the tokenizer has such.
    fn encode(&self, text: &str) -> Option<Vec<u32>> {
        // Some tokenizers put a space before the first word. Behind a line end they do not.
        for lead in ["", "\n"] {
            let ids = self.tokenizer.encode(&format!("{lead}{text}"), EncodeOptions::default()).ok()?;
            let ids: Vec<u32> = ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
            // The tail of the ids that spells exactly the text.
            let mut rest = text.as_bytes();
            let mut from = ids.len();
            while from > 0 && !rest.is_empty() {
                let Some(shorter) = rest.strip_suffix(self.trie.token(ids[from - 1])) else { break };
                if shorter.len() == rest.len() {
                    break;
                }
                rest = shorter;
                from -= 1;
            }
            if rest.is_empty() {
                return Some(ids[from..].to_vec());
            }
        }
        None
    }
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let text = std::str::from_utf8(bytes).ok();
        text.and_then(|text| self.encode(text)).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.complete
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Constraint, Limits, State};
    use super::*;
    use crate::mmap::Bytes;
    use llm_format::tokens::{Tables, Token, flag, setting};

    #[test]
    fn a_token_too_long_for_the_trie_is_left_out() {
        let token = |bytes: Vec<u8>, flags: u16| Token { bytes, flags, ..Token::default() };
        let mut tokens: Vec<Token> = (0..=255u8).map(|b| token(vec![b], flag::PRESENT)).collect();
        tokens.push(token(vec![b'a'; 5000], flag::PRESENT));
        tokens.push(token(vec![b'a'; LONGEST], flag::PRESENT));
        tokens.push(token(b"</s>".to_vec(), flag::PRESENT | flag::SPECIAL | flag::END));
        let mut byte_ids = [0; 256];
        (0..).zip(&mut byte_ids).for_each(|(id, slot)| *slot = id);
        let tables = Tables { settings: setting::BYTE_LEVEL, tokens, byte_ids, ..Tables::default() };
        let bytes = Bytes::from_owner(tables.encode().unwrap());
        let tokenizer = Arc::new(Tokenizer::from_tables(bytes).unwrap());
        let constraint = Constraint::regex(&tokenizer, "a+", &Limits::default(), None).unwrap();
        let mut state = State::new(&constraint);
        let mask = state.mask().unwrap();
        let may = |id: usize| mask[id / 32] >> (id % 32) & 1 == 1;
        assert!(may(usize::from(b'a')) && may(257) && !may(256) && !may(usize::from(b'b')));
    }
}
