//! Patterns of programs: literal text, a known scanner, or a regular expression compiled at first use.

use super::scan;
use crate::error::{Error, Result, Status};
use fancy_regex::{Regex, RegexBuilder};
use llm_format::tokens::Pattern;
use std::ops::Range;
use std::sync::OnceLock;

/// The longest expression in bytes. Published ones have a few hundred.
const LONGEST: usize = 1 << 16;
/// What a compiled expression and its lazily built states may take, in bytes.
const SIZE: usize = 4 << 20;
/// Steps of backtracking per match before it counts as out of hand.
const BACKTRACK: usize = 1_000_000;

/// A pattern with its compiled form.
#[derive(Debug)]
pub(crate) struct Matcher {
    pattern: Pattern,
    regex: OnceLock<Result<Regex, String>>,
}

impl Matcher {
    pub(crate) fn new(pattern: Pattern) -> Matcher {
        Matcher { pattern, regex: OnceLock::new() }
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    fn regex(&self, source: &str) -> Result<&Regex> {
        let compiled = self.regex.get_or_init(|| {
            if source.len() > LONGEST {
                return Err(format!("it has {} bytes, at most {LONGEST}", source.len()));
            }
            let mut builder = RegexBuilder::new(source);
            builder.backtrack_limit(BACKTRACK).delegate_size_limit(SIZE).delegate_dfa_size_limit(SIZE);
            builder.build().map_err(|e| e.to_string())
        });
        compiled.as_ref().map_err(|e| {
            Error::new(
                Status::UNSUPPORTED,
                format!("the tokenizer's expression {source:?} is not usable: {e}"),
            )
        })
    }

    /// Every match from left to right, empty ones included.
    pub(crate) fn each(&self, text: &str, mut give: impl FnMut(Range<usize>)) -> Result<()> {
        match &self.pattern {
            Pattern::Literal(literal) if literal.is_empty() => {}
            Pattern::Literal(literal) => {
                text.match_indices(literal.as_str()).for_each(|(at, m)| give(at..at + m.len()));
            }
            Pattern::Known(scanner) => {
                let mut at = 0;
                scan::each_match(*scanner, text, |m| {
                    give(at..at + m.len());
                    at += m.len();
                });
            }
            Pattern::Regex(source) => {
                for found in self.regex(source)?.find_iter(text) {
                    let found = found.map_err(|e| {
                        let what = format!("the tokenizer's expression {source:?} gave up on a text: {e}");
                        Error::new(Status::UNSUPPORTED, what)
                    })?;
                    give(found.range());
                }
            }
        }
        Ok(())
    }

    /// `text` with every match replaced; `None` where there is none. A result beyond `limit` bytes ends there.
    pub(crate) fn replace(&self, text: &str, with: &str, limit: usize) -> Result<Option<String>> {
        let mut out = String::new();
        let (mut from, mut any) = (0, false);
        self.each(text, |m| {
            any = true;
            if out.len() <= limit {
                out.push_str(&text[from..m.start]);
                out.push_str(with);
            }
            from = m.end;
        })?;
        out.push_str(&text[from..]);
        Ok(any.then_some(out))
    }
}
