//! Constraints: text that must follow a JSON schema, a regular expression, a grammar or a list of choices.
//!
//! ```text
//! schema ─ lower ─┐
//! regex, choice ──┼─ grammar ─ compile over the vocabulary ─ Constraint ─┬─ State ─ mask ─ sampler ─ advance
//! Lark ───────────┘                                     (once, shared)   └─ State   (one per text, forks)
//! ```
//!
//! The engine is llguidance: an Earley parser over lexemes matched by derivatives of regular expressions, run over a
//! trie of the vocabulary. What is ours: schemas of all drafts and their errors by path (`schema`), the vocabulary
//! kept with its tokenizer, limits on everything an untrusted text could blow up, states that report and never panic.
//!
//! Objects are written in the order of the schema's `properties`, `format` is an assertion, whole numbers are written
//! without fraction. What it does not know: models and sessions.

mod compile;
mod limits;
mod schema;
mod state;
mod vocabulary;

pub use limits::Limits;
pub use state::State;

use std::sync::{Arc, Mutex};

use llguidance::TokenParser;

use crate::cancel::Cancel;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// A compiled constraint. Cheap to clone, shared between sessions and threads.
#[derive(Clone)]
pub struct Constraint {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: Arc<Tokenizer>,
    /// Never advanced; states begin as copies of it.
    fresh: Mutex<TokenParser>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constraint over {:?}", self.inner.tokenizer)
    }
}

impl Constraint {
    /// Text that is JSON and valid under `schema` (JSON Schema, drafts 4 to 2020-12).
    ///
    /// # Errors
    /// `SCHEMA` for a schema that is no JSON, refers beyond itself, or asserts what cannot be held to: the message
    /// names the path. `BUDGET` beyond a limit, `CANCELLED`, `DEADLINE`.
    pub fn json_schema(
        tokenizer: &Arc<Tokenizer>,
        schema: &str,
        limits: &Limits,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        compile::json_schema(tokenizer, schema, limits, cancel)
    }

    /// Text that as a whole matches `pattern` (syntax of the crate `regex`, without look-around).
    ///
    /// # Errors
    /// `GRAMMAR` for a pattern that is none, `BUDGET` beyond a limit, `CANCELLED`, `DEADLINE`.
    pub fn regex(
        tokenizer: &Arc<Tokenizer>,
        pattern: &str,
        limits: &Limits,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        compile::regex(tokenizer, pattern, limits, cancel)
    }

    /// Text that follows a grammar in llguidance's dialect of Lark, from the rule `start` on.
    ///
    /// # Errors
    /// As [`Constraint::regex`].
    pub fn lark(
        tokenizer: &Arc<Tokenizer>,
        grammar: &str,
        limits: &Limits,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        compile::lark(tokenizer, grammar, limits, cancel)
    }

    /// One of `texts`.
    ///
    /// # Errors
    /// `INVALID_ARG` without any text; else as [`Constraint::regex`].
    pub fn choice(
        tokenizer: &Arc<Tokenizer>,
        texts: &[&str],
        limits: &Limits,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        compile::choice(tokenizer, texts, limits, cancel)
    }

    /// The tokenizer it was compiled for.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.inner.tokenizer
    }
}
