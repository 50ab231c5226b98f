//! Speculation: somebody cheap guesses the next tokens, and the model checks all of them in one step.
//!
//! ```text
//! proposer ──▶ a b c ──▶ one forward pass over [told] a b c ──▶ the sampler's own choices: a b x ──▶ told: a b x
//! ```
//! A decoding step costs the reading of all weights, whether it computes one row or five. So every guess that comes true
//! saves a step. A guess is true where the sampler, with the model's logits and its own noise of that position, chooses
//! the same token; so the tokens are those of plain decoding, sampled or greedy, whatever is proposed.
//!
//! A [`Proposer`] knows the tokens so far and a sampler to imitate. [`Speculation`] asks it for as many tokens as have
//! lately paid (`pace`) and counts ([`SpecStats`]). What it does not know: the session that verifies, and text;
//! [`super::generate`] brings them together.

mod draft;
mod head;
mod ngram;
mod options;
mod pace;
mod replay;
mod stats;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::sampler::Sampler;
pub use draft::DraftModel;
pub use head::DraftHead;
pub use ngram::{Corpus, Ngram};
pub use options::{DraftOptions, Lengths, NgramOptions, Source, SpecOptions};
use pace::Pace;
pub use replay::Replay;
pub use stats::SpecStats;
pub use vocabulary::check_vocabulary;

/// The most tokens that are drafted for one step.
pub const MOST_DRAFT: usize = 32;

/// Where tokens are to be guessed.
pub struct Place<'a> {
    /// The tokens that the session holds.
    pub held: &'a [i32],
    /// Those that follow and will be computed in the same step as the drafts.
    pub pending: &'a [i32],
    /// Tokens that went before those it holds ([`crate::session::Overflow`]): noise counts them.
    pub dropped: usize,
    /// What chooses the tokens. It has accepted `held` (as far as the host showed them to it) and `pending`.
    pub sampler: &'a Sampler,
    /// Hidden vectors of the last tokens held, as [`crate::session::Session::kept_hidden`], where the proposer wants them.
    pub hidden: Option<(usize, &'a [f32])>,
    /// The host's wish to end.
    pub cancel: Option<&'a Cancel>,
}

impl Place<'_> {
    /// Tokens before the first that is to be guessed.
    pub fn position(&self) -> usize {
        self.held.len() + self.pending.len()
    }

    /// As noise counts it: the place of the first that is to be guessed among all tokens there were.
    pub fn noise_position(&self) -> u64 {
        (self.dropped + self.position()) as u64
    }

    /// The token at `index`, which is below [`Place::position`].
    pub fn token(&self, index: usize) -> Option<i32> {
        self.held.get(index).or_else(|| self.pending.get(index.checked_sub(self.held.len())?)).copied()
    }

    /// How many tokens at the beginning of `known` are those before this place.
    pub fn agree(&self, known: &[i32]) -> usize {
        let same = |a: &[i32], b: &[i32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
        match same(known, self.held) {
            n if n == self.held.len() => n + same(&known[n..], self.pending),
            n => n,
        }
    }
}

/// Guesses tokens. It sees the whole sequence each time, so that it may have been changed in between: truncated,
/// restored, forked.
pub trait Proposer: Send {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Whether it goes on from the model's hidden vectors.
    fn wants_hidden(&self) -> bool {
        false
    }

    /// Appends to `out` at most `most` tokens that may follow at this place; none where it has no idea.
    ///
    /// # Errors
    /// Whatever hinders it. Nothing is drafted then; generation goes on without.
    fn propose(&mut self, at: &Place<'_>, most: usize, out: &mut Vec<i32>) -> Result<()>;
}

/// A proposer at work in a generation.
pub struct Speculation {
    proposer: Box<dyn Proposer>,
    pace: Pace,
    stats: SpecStats,
    /// The last proposal: a buffer of its own, so that a proposer cannot touch what was told.
    guesses: Vec<i32>,
    /// What it took.
    drafting: Duration,
    /// What the last verification took, and its tokens.
    verifying: (usize, Duration),
}

impl std::fmt::Debug for Speculation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Speculation({}, {:?})", self.proposer.name(), self.stats)
    }
}

impl Speculation {
    /// Lets `proposer` guess as many tokens as `lengths` say.
    ///
    /// # Errors
    /// `INVALID_ARG` for lengths that make no sense.
    pub fn new(proposer: Box<dyn Proposer>, lengths: &Lengths) -> Result<Self> {
        lengths.check()?;
        Ok(Self {
            proposer,
            pace: Pace::new(lengths),
            stats: SpecStats::default(),
            guesses: Vec::new(),
            drafting: Duration::ZERO,
            verifying: (0, Duration::ZERO),
        })
    }

    /// Whether [`Place::hidden`] is wanted: with [`crate::session::Session::keep_hidden`] before the prefill the prompt's
    /// are there.
    pub fn wants_hidden(&self) -> bool {
        self.proposer.wants_hidden()
    }

    /// Counters so far.
    pub fn stats(&self) -> SpecStats {
        SpecStats { switched_off: self.pace.switched_off(), ..self.stats.clone() }
    }

    /// Appends to `out` at most `most` guesses, none where they would not pay.
    pub(super) fn propose(&mut self, at: &Place<'_>, most: usize, out: &mut Vec<i32>) {
        let length = self.pace.length().min(most);
        self.drafting = Duration::ZERO;
        if length == 0 {
            return;
        }
        let clock = Instant::now();
        self.guesses.clear();
        let proposed = self.proposer.propose(at, length, &mut self.guesses);
        self.drafting = clock.elapsed();
        self.stats.draft += self.drafting;
        if proposed.is_err() {
            self.stats.failed += 1;
            self.pace.failed();
        } else if self.guesses.is_empty() {
            self.pace.nothing(self.drafting);
        } else {
            out.extend(self.guesses.iter().take(length));
        }
    }

    /// There was no room for the last proposal: it cost time for nothing.
    pub(super) fn unused(&mut self) {
        self.pace.nothing(self.drafting);
    }

    /// A step without drafts decoded one token.
    pub(super) fn plain(&mut self, took: Duration) {
        self.stats.plain_steps += 1;
        self.pace.plain(took);
    }

    /// A step of `tokens` tokens, drafts among them, ran.
    pub(super) fn ran(&mut self, tokens: usize, took: Duration) {
        self.verifying = (tokens, took);
    }

    /// Of the `drafted` tokens of the last step the first `accepted` were chosen, and one more if `bonus`.
    pub(super) fn verified(&mut self, drafted: usize, accepted: usize, bonus: bool) {
        let (tokens, took) = self.verifying;
        self.pace.verified(drafted, accepted, bonus, self.drafting, (tokens, took));
        self.stats.count(drafted, accepted, bonus);
        self.stats.verify += took;
        let emitted = accepted as u32 + u32::from(bonus);
        self.stats.plain_equivalent += self.pace.plain_step().unwrap_or(took) * emitted;
    }

    /// The step with `drafted` drafts could not run.
    pub(super) fn failed(&mut self, drafted: usize) {
        self.stats.count(drafted, 0, false);
        self.stats.failed += 1;
        self.pace.failed();
    }
}

/// The error for an option out of range.
fn refuse(option: &str, expected: &str, got: impl std::fmt::Display) -> Error {
    Error::new(Status::INVALID_ARG, format!("speculation: {option}: expected {expected}, got {got}"))
}
