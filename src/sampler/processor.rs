//! Processors: logits changed by the host's own code.
//!
//! A processor sees a whole row, one logit per token of the vocabulary, −∞ for those already taken away, and may
//! change any of them. It runs before or behind the penalties. Speculation asks whether it is a pure function of the
//! tokens so far: only then does a draft see what the target will see.

use std::sync::Arc;

use super::Candidates;
use crate::error::{Error, Result, Status};

/// Where a processor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// On the model's logits, before the chain.
    BeforePenalties,
    /// Behind the last of the chain's `penalties` and `dry`; without either, before the chain.
    AfterPenalties,
}

/// What a processor is told.
pub struct Input<'a> {
    /// Absolute position of the token to be chosen.
    pub position: u64,
    /// The tokens accepted so far.
    pub ids: &'a [i32],
}

/// The host's code. Forks of a sampler share it, so it may run on several threads at once.
pub type Function = dyn Fn(&Input, &mut [f32]) -> Result<()> + Send + Sync;

/// A processor in its place.
#[derive(Clone)]
pub(super) struct Processor {
    pub(super) stage: Stage,
    pub(super) pure: bool,
    pub(super) function: Arc<Function>,
}

impl Processor {
    /// Runs it over the candidates; `row` is scratch of the vocabulary's size.
    pub(super) fn run(&self, input: &Input, candidates: &mut Candidates, row: &mut [f32]) -> Result<()> {
        row.fill(f32::NEG_INFINITY);
        for c in candidates.as_slice() {
            row[c.id as usize] = c.logit;
        }
        (self.function)(input, row)?;
        let bad = |c: &&mut super::Candidate| {
            let logit = row[c.id as usize];
            logit.is_nan() || logit == f32::INFINITY
        };
        if let Some(c) = candidates.as_mut_slice().iter_mut().find(bad) {
            let id = c.id;
            return Err(Error::new(
                Status::CALLBACK,
                format!("processor: expected finite logits or -inf, got {} for token {id}", row[id as usize]),
            )
            .with("token_index", i64::from(id)));
        }
        for c in candidates.as_mut_slice() {
            c.logit = row[c.id as usize] + 0.0;
        }
        Ok(())
    }
}
