//! Constraints in a library that was built without them: compiling answers `UNSUPPORTED`, and nothing else can be
//! reached.

mod limits;

pub use limits::Limits;

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::tokenizer::Tokenizer;

/// A compiled constraint; there is none.
#[derive(Clone, Debug)]
pub enum Constraint {}

/// The state of a text under a constraint; there is none.
#[derive(Clone, Debug)]
pub enum State {}

fn absent() -> Result<Constraint> {
    Err(Error::new(
        Status::UNSUPPORTED,
        "this build of the library has no constraints (cargo feature `constraints`)",
    ))
}

impl Constraint {
    /// Compiles a JSON schema.
    ///
    /// # Errors
    /// `UNSUPPORTED`.
    pub fn json_schema(_: &Arc<Tokenizer>, _: &str, _: &Limits, _: Option<&Cancel>) -> Result<Self> {
        absent()
    }

    /// Compiles a regular expression.
    ///
    /// # Errors
    /// `UNSUPPORTED`.
    pub fn regex(_: &Arc<Tokenizer>, _: &str, _: &Limits, _: Option<&Cancel>) -> Result<Self> {
        absent()
    }

    /// Compiles a grammar.
    ///
    /// # Errors
    /// `UNSUPPORTED`.
    pub fn lark(_: &Arc<Tokenizer>, _: &str, _: &Limits, _: Option<&Cancel>) -> Result<Self> {
        absent()
    }

    /// Compiles a list of choices.
    ///
    /// # Errors
    /// `UNSUPPORTED`.
    pub fn choice(_: &Arc<Tokenizer>, _: &[&str], _: &Limits, _: Option<&Cancel>) -> Result<Self> {
        absent()
    }

    /// The tokenizer it was compiled for.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        match *self {}
    }
}

impl State {
    /// The beginning of a text.
    pub fn new(constraint: &Constraint) -> Self {
        match *constraint {}
    }

    /// The constraint it is under.
    pub fn constraint(&self) -> &Constraint {
        match *self {}
    }

    /// Back to the beginning.
    pub fn reset(&mut self) {
        match *self {}
    }

    /// The tokens that may follow.
    ///
    /// # Errors
    /// None.
    pub fn mask(&mut self) -> Result<&[u32]> {
        match *self {}
    }

    /// Takes a token in.
    ///
    /// # Errors
    /// None.
    pub fn advance(&mut self, _: i32) -> Result<()> {
        match *self {}
    }

    /// The tokens that follow in any case.
    ///
    /// # Errors
    /// None.
    pub fn forced(&mut self) -> Result<Vec<i32>> {
        match *self {}
    }

    /// Whether nothing but an end can follow.
    pub fn is_complete(&self) -> bool {
        match *self {}
    }

    /// Whether the text may end here.
    ///
    /// # Errors
    /// None.
    pub fn may_end(&mut self) -> Result<bool> {
        match *self {}
    }

    /// A copy that goes its own way.
    #[must_use]
    pub fn fork(&self) -> Self {
        match *self {}
    }
}
