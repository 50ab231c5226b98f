//! Text as tokens arrive: whole characters only.

use super::Tokenizer;
use super::decode::State;
use crate::error::Result;
use std::sync::Arc;

/// Decodes ids one by one. What it gives, joined, is what [`Tokenizer::decode_text`] gives for all of them.
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    state: State,
    /// Bytes that do not yet make a character.
    pending: Vec<u8>,
    text: String,
}

impl TextStream {
    /// A stream at its beginning; `skip_special` leaves special tokens out.
    pub fn new(tokenizer: &Arc<Tokenizer>, skip_special: bool) -> TextStream {
        TextStream {
            tokenizer: tokenizer.clone(),
            skip_special,
            state: tokenizer.decoders.state(),
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// The text that `id` completes, often empty in the middle of a character.
    ///
    /// # Errors
    /// An id below zero or beyond the vocabulary; the stream is as before.
    pub fn push(&mut self, id: i32) -> Result<&str> {
        if let Some(known) = self.tokenizer.known(id)? {
            let view = self.tokenizer.view();
            self.tokenizer.decoders.push(&view, known, self.skip_special, &mut self.state, &mut self.pending);
        }
        self.text.clear();
        self.take_characters();
        Ok(&self.text)
    }

    /// The rest at the end: what cannot become a character any more is U+FFFD. The stream begins anew.
    pub fn finish(&mut self) -> String {
        self.text.clear();
        self.tokenizer.decoders.finish(&mut self.state, &mut self.pending);
        self.take_characters();
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        let rest = std::mem::take(&mut self.text);
        self.reset();
        rest
    }

    /// Forgets everything pushed.
    pub fn reset(&mut self) {
        self.state = self.tokenizer.decoders.state();
        self.pending.clear();
        self.text.clear();
    }

    /// Moves whole characters from `pending` to `text`, and U+FFFD for each stretch that cannot become one.
    fn take_characters(&mut self) {
        let mut from = 0;
        while from < self.pending.len() {
            let rest = &self.pending[from..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.text.push_str(text);
                    from = self.pending.len();
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.text.push_str(std::str::from_utf8(&rest[..valid]).unwrap_or_default());
                    from += valid;
                    let Some(bad) = error.error_len() else { break };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    from += bad;
                }
            }
        }
        self.pending.drain(..from);
    }
}
