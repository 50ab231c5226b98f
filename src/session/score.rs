//! Scores: how likely the model finds given tokens, each after all those before it.
//!
//! Perplexity is the exponential of the mean of −ln p. Scratch is a few rows of logits, whatever the length of the
//! text.

use llm_kernels::FloatControl;

use super::outputs::Asked;
use super::{OnProgress, Session};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::sampler::{self, Alternative, math};

/// How likely tokens were.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Natural logarithm of each token's probability under the softmax of the logits before it. NaN for the first token
    /// of an empty session, which follows nothing.
    pub log_probabilities: Vec<f32>,
    /// As many of the likeliest tokens at each place as were asked for, likeliest first; empty where the score is NaN,
    /// and the whole list empty if none were asked for.
    pub top: Vec<Vec<Alternative>>,
}

impl Scores {
    /// The sum of −ln p in nats, and of how many tokens.
    pub fn nats(&self) -> (f64, usize) {
        let known = self.log_probabilities.iter().filter(|p| !p.is_nan());
        known.fold((0.0, 0), |(sum, count), &p| (sum - f64::from(p), count + 1))
    }

    /// e to the mean of −ln p; NaN where no token follows another.
    pub fn perplexity(&self) -> f64 {
        let (nats, count) = self.nats();
        (nats / count as f64).exp()
    }

    fn add(&mut self, logits: &[f32], id: i32, top: usize) -> Result<()> {
        let probability = f64::from(logits[id as usize]) - math::log_sum_exp(logits);
        self.log_probabilities.push(probability as f32);
        if top > 0 {
            self.top.push(sampler::top(logits, top)?);
        }
        Ok(())
    }
}

impl Session {
    /// Appends `ids` and tells how likely each of them was, with the `top` likeliest tokens at its place. Logits of
    /// the last one are ready afterwards. A progress function's `Stop` ends with the scores of the tokens that are
    /// held then.
    ///
    /// # Errors
    /// As [`Session::prefill_outputs`]; `BAD_STATE` if the session holds tokens but no logits behind the last.
    pub fn score(
        &mut self,
        ids: &[i32],
        top: usize,
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
    ) -> Result<Scores> {
        let _float = FloatControl::default_for_now();
        self.check_ids(ids)?;
        let mut scores = Scores::default();
        let refused = |_| Error::new(Status::NO_MEMORY, format!("no memory for {} scores", ids.len()));
        scores.log_probabilities.try_reserve_exact(ids.len()).map_err(refused)?;
        match ids.first() {
            None => return Ok(scores),
            Some(_) if self.is_empty() => {
                scores.log_probabilities.push(f32::NAN);
                scores.top.resize(usize::from(top > 0), Vec::new());
            }
            Some(&first) => scores.add(self.logits()?, first, top)?,
        }
        let before = self.len();
        let asked = Asked { at: None, logits: true };
        self.prefill_outputs(ids, asked, cancel, progress, &mut |output| match ids.get(output.index + 1) {
            Some(&next) => scores.add(output.logits, next, top),
            None => Ok(()),
        })?;
        let held = self.len() - before;
        scores.log_probabilities.truncate(held);
        scores.top.truncate(held);
        Ok(scores)
    }
}
