//! Stop texts, found across the borders of tokens.
//!
//! Text goes in piece by piece. What comes out is certain: it is not part of a stop text and cannot become one. A
//! stop text counts at the character that completes it, and of those completed there the longest, so the outcome does
//! not depend on where the pieces were cut.

/// The texts, and what is held back because it could be the beginning of one.
pub(super) struct StopTexts {
    texts: Vec<String>,
    held: String,
}

impl StopTexts {
    /// Watches for `texts`, none of them empty.
    pub(super) fn new(texts: &[String]) -> Self {
        Self { texts: texts.to_vec(), held: String::new() }
    }

    /// Takes a piece of text; the text that is now certain, and whether a stop text was completed. What follows the
    /// stop text is dropped with it.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        let mut certain = String::new();
        for c in piece.chars() {
            self.held.push(c);
            let completed = self.texts.iter().filter(|text| self.held.ends_with(text.as_str()));
            if let Some(length) = completed.map(String::len).max() {
                self.held.truncate(self.held.len() - length);
                certain.push_str(&self.held);
                self.held.clear();
                return (certain, true);
            }
            let keep = self.undecided();
            certain.extend(self.held.drain(..self.held.len() - keep));
        }
        (certain, false)
    }

    /// Everything held back: nothing follows that could complete a stop text.
    pub(super) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of what is held that begin a stop text.
    fn undecided(&self) -> usize {
        let held = self.held.as_str();
        held.char_indices()
            .map(|(at, _)| at)
            .find(|&at| self.texts.iter().any(|text| text.starts_with(&held[at..])))
            .map_or(0, |at| held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The slow twin: looks at every prefix of the whole text.
    fn twin(texts: &[String], whole: &str) -> (String, bool) {
        for end in (0..=whole.len()).filter(|&i| whole.is_char_boundary(i)) {
            let longest = texts.iter().filter(|t| whole[..end].ends_with(t.as_str())).map(String::len).max();
            if let Some(length) = longest {
                return (whole[..end - length].to_owned(), true);
            }
        }
        (whole.to_owned(), false)
    }

    proptest! {
        #[test]
        fn any_cutting_gives_what_the_whole_text_gives(
            texts in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,3}", 0..12),
        ) {
            let whole = pieces.concat();
            let (want, want_stop) = twin(&texts, &whole);
            let mut stop = StopTexts::new(&texts);
            let mut got = String::new();
            let mut stopped = false;
            let mut seen = String::new();
            for piece in &pieces {
                seen.push_str(piece);
                let (text, now) = stop.push(piece);
                got.push_str(&text);
                if now { stopped = true; break; }
                // Nothing is held back that could not become a stop text.
                let held = &seen[got.len()..];
                prop_assert!(held.is_empty() || texts.iter().any(|t| t.starts_with(held)));
            }
            if !stopped { got.push_str(&stop.flush()); }
            prop_assert_eq!((got, stopped), (want, want_stop));
        }
    }
}
