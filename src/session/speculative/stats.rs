//! What speculation did.

use std::time::Duration;

use super::MOST_DRAFT;

/// Counters of speculation. `drafted` = `accepted` + `rejected`, and the tokens told by the steps that verified are
/// `accepted` + `bonus`. Tokens that a constraint lets follow in any case count where they were drafted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecStats {
    /// Tokens guessed and given to the model.
    pub drafted: u64,
    /// Guesses that came true.
    pub accepted: u64,
    /// Guesses that did not, those behind an end or a stop among them.
    pub rejected: u64,
    /// Tokens chosen behind the last guess that came true: one for each step that verified, none where that ended with
    /// a guess.
    pub bonus: u64,
    /// Steps with guesses.
    pub verify_steps: u64,
    /// Steps of one token, without guesses.
    pub plain_steps: u64,
    /// Times that guesses were given up because they did not pay.
    pub switched_off: u64,
    /// Proposals and steps with guesses that ended with an error; generation went on without.
    pub failed: u64,
    /// Guesses by their place in the draft, first to last.
    pub drafted_at: [u64; MOST_DRAFT],
    /// Those of them that came true.
    pub accepted_at: [u64; MOST_DRAFT],
    /// Time spent guessing.
    pub draft: Duration,
    /// Time spent in steps with guesses.
    pub verify: Duration,
    /// What the tokens of those steps would have taken one by one, by the steps of one token that were measured.
    pub plain_equivalent: Duration,
}

impl SpecStats {
    pub(super) fn count(&mut self, drafted: usize, accepted: usize, bonus: bool) {
        self.verify_steps += 1;
        self.drafted += drafted as u64;
        self.accepted += accepted as u64;
        self.rejected += (drafted - accepted) as u64;
        self.bonus += u64::from(bonus);
        self.drafted_at.iter_mut().take(drafted).for_each(|n| *n += 1);
        self.accepted_at.iter_mut().take(accepted).for_each(|n| *n += 1);
    }

    /// The share of guesses that came true; 0 without any.
    pub fn acceptance(&self) -> f64 {
        if self.drafted == 0 { 0.0 } else { self.accepted as f64 / self.drafted as f64 }
    }
}
