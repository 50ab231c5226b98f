//! The state of one text under a constraint: what may follow, and whether it is complete.

use std::panic::AssertUnwindSafe;
use std::sync::PoisonError;

use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

use super::Constraint;
use crate::error::{Error, Result, Status};

/// A text being written under a constraint. It moves on by [`State::advance`] alone.
pub struct State {
    constraint: Constraint,
    parser: TokenParser,
    /// Of the present place; made when it is asked for.
    mask: Option<SimpleVob>,
    /// The engine gave up; every further question gets this answer.
    broken: Option<Error>,
}

impl Clone for State {
    /// A copy that goes its own way, without anything shared but the constraint.
    fn clone(&self) -> Self {
        Self {
            constraint: self.constraint.clone(),
            parser: self.parser.deep_clone(),
            mask: self.mask.clone(),
            broken: self.broken.clone(),
        }
    }
}

impl State {
    /// The beginning of a text.
    pub fn new(constraint: &Constraint) -> Self {
        // A panic elsewhere cannot have changed it: it is only ever copied.
        let fresh = constraint.inner.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        Self { constraint: constraint.clone(), parser: fresh.deep_clone(), mask: None, broken: None }
    }

    /// The constraint it is under.
    pub fn constraint(&self) -> &Constraint {
        &self.constraint
    }

    /// Back to the beginning.
    pub fn reset(&mut self) {
        *self = Self::new(&self.constraint);
    }

    /// The tokens that may follow, a bit per id from the lowest of the first word on; ids beyond have none. When the
    /// text is complete these are the tokenizer's end tokens.
    ///
    /// # Errors
    /// `BUDGET` where a step takes more work than the limits allow, `DEAD_END` where no token fits, `INTERNAL`.
    pub fn mask(&mut self) -> Result<&[u32]> {
        if self.mask.is_none() {
            let mask = self.guarded(|parser| {
                if parser.stopped() && parser.stop_reason().is_ok() {
                    Ok(parser.token_env.tok_trie().eos_token_set())
                } else {
                    parser.compute_mask()
                }
            })?;
            self.mask = Some(mask);
        }
        Ok(self.mask.as_ref().map(SimpleVob::as_slice).unwrap_or_default())
    }

    /// Takes a token in.
    ///
    /// # Errors
    /// `INVALID_ARG` for a token that may not follow, `BUDGET`, `INTERNAL`; the state stays as it was.
    pub fn advance(&mut self, id: i32) -> Result<()> {
        let end = self.constraint.tokenizer().is_end(id);
        if self.is_complete() {
            return if end { Ok(()) } else { Err(Self::refused(id, "the text is complete")) };
        }
        let token = u32::try_from(id).map_err(|_| Self::refused(id, "it is no token"))?;
        if !self.guarded(|parser| {
            let known = (token as usize) < parser.token_env.tok_trie().vocab_size();
            Ok(known && ((end && parser.is_accepting()) || parser.validate_token(token)?))
        })? {
            return Err(Self::refused(id, "it may not follow here"));
        }
        self.guarded(|parser| {
            parser.consume_token(token)?;
            parser.check_stop()
        })?;
        self.mask = None;
        Ok(())
    }

    /// The tokens that follow in any case, in order; empty where there is a choice.
    ///
    /// # Errors
    /// `BUDGET`, `INTERNAL`.
    pub fn forced(&mut self) -> Result<Vec<i32>> {
        if self.is_complete() {
            return Ok(Vec::new());
        }
        let tokens = self.guarded(|parser| Ok(parser.compute_ff_tokens()))?;
        Ok(tokens.into_iter().filter_map(|token| i32::try_from(token).ok()).collect())
    }

    /// Whether nothing but an end can follow.
    pub fn is_complete(&self) -> bool {
        self.broken.is_none() && self.parser.stopped() && self.parser.stop_reason().is_ok()
    }

    /// Whether the text may end here.
    ///
    /// # Errors
    /// `BUDGET`, `INTERNAL`.
    pub fn may_end(&mut self) -> Result<bool> {
        Ok(self.is_complete() || self.guarded(|parser| Ok(parser.is_accepting()))?)
    }

    /// A copy that goes its own way.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }

    fn refused(id: i32, why: &str) -> Error {
        Error::new(Status::INVALID_ARG, format!("constraint: token {id} is not allowed: {why}"))
    }

    /// Asks the engine; what it cannot answer once it cannot answer again.
    fn guarded<T>(&mut self, ask: impl FnOnce(&mut TokenParser) -> anyhow::Result<T>) -> Result<T> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let parser = &mut self.parser;
        let answer = std::panic::catch_unwind(AssertUnwindSafe(|| ask(parser)));
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(e)) => {
                let status = match self.parser.stop_reason() {
                    StopReason::LexerTooComplex | StopReason::ParserTooComplex => Status::BUDGET,
                    StopReason::NoExtensionBias => Status::DEAD_END,
                    _ => Status::INTERNAL,
                };
                let text = e.to_string();
                Error::new(status, format!("constraint: {}", text.lines().next().unwrap_or_default()))
            }
            Err(_) => Error::new(Status::INTERNAL, "constraint: the engine failed"),
        };
        self.broken = Some(error.clone());
        Err(error)
    }
}
