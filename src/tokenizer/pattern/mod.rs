//! Patterns of programs: literal text, a known scanner, or a regular expression.
//!
//! ```text
//! text ──parse──▶ tree ──compile──▶ steps ──run, for each text──▶ matches
//!            └── classes ──set──▶ bits
//! ```
//!
//! Expressions come from a file, so their length, their depth, their classes and what they are written out to are
//! bounded, and so is the time a text may take. They match as backtracking engines do: the leftmost match, of
//! alternatives the first that works. Published vocabularies have a scanner; this is for all others.

mod compile;
mod parse;
mod run;
mod set;
#[cfg(test)]
mod tests;

use super::scan;
use crate::error::{Error, Result, Status};
use compile::Program;
use llm_format::tokens::Pattern;
use run::Search;
use std::ops::Range;

/// The longest expression in bytes. Published ones have up to two thousand.
pub(super) const LONGEST: usize = 1 << 16;

/// A pattern with its compiled form.
pub(crate) struct Matcher {
    pattern: Pattern,
    program: Option<Program>,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matcher({:?})", self.pattern)
    }
}

impl Matcher {
    /// # Errors
    /// [`Status::UNSUPPORTED`] for an expression that has something the dialect does not know, or too much of it.
    pub(crate) fn new(pattern: Pattern) -> Result<Matcher> {
        let program = match &pattern {
            Pattern::Regex(text) => Some(compiled(text)?),
            _ => None,
        };
        Ok(Matcher { pattern, program })
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
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
                let Some(program) = &self.program else { return Ok(()) };
                let gave_up = |why| {
                    let what = format!("the tokenizer's expression {source:?} gave up on a text: {why}");
                    Error::new(Status::UNSUPPORTED, what)
                };
                let mut search = Search::new(program, text);
                let (mut from, mut last) = (0, None);
                while let Some(found) = search.find(from).map_err(gave_up)? {
                    // An empty match counts only where no match has just ended.
                    let skip =
                        found.is_empty().then(|| text[found.end..].chars().next().map_or(1, char::len_utf8));
                    from = found.end + skip.unwrap_or(0);
                    if skip.is_none() || last != Some(found.end) {
                        last = Some(found.end);
                        give(found);
                    }
                    if from > text.len() {
                        break;
                    }
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

/// An expression that a name has or has not: a small one, of which a file may have many.
pub(crate) struct Expression(Program);

impl Expression {
    /// The most steps, and bytes of texts.
    const MOST: usize = 4096;
    /// Steps that a search may take.
    const BUDGET: u64 = 100_000;

    /// # Errors
    /// What about the expression is not known, or what is too large.
    pub(crate) fn new(text: &str) -> std::result::Result<Expression, String> {
        let program = program(text)?;
        if program.steps.len() > Expression::MOST || program.text.len() > Expression::MOST {
            return Err(format!("written out it takes more than {} steps or bytes", Expression::MOST));
        }
        Ok(Expression(program))
    }

    /// Whether there is a match anywhere in `text`.
    ///
    /// # Errors
    /// Why it gave up.
    pub(crate) fn is_in(&self, text: &str) -> std::result::Result<bool, String> {
        Ok(Search::new(&self.0, text).within(Expression::BUDGET).find(0)?.is_some())
    }
}

fn program(text: &str) -> std::result::Result<Program, String> {
    match text.len() {
        0..=LONGEST => Program::new(text),
        length => Err(format!("it has {length} bytes, at most {LONGEST}")),
    }
}

fn compiled(text: &str) -> Result<Program> {
    program(text).map_err(|why| {
        let shown: String = text.chars().take(200).collect();
        let what = format!("the tokenizer's expression {shown:?} is not usable: {why}");
        Error::new(Status::UNSUPPORTED, what)
    })
}
