//! Penalties for tokens seen lately.
//!
//! Repetition (CTRL, Keskar et al. 2019, section 4.1): a positive logit is divided by it, a negative one multiplied.
//! Presence and frequency (OpenAI's chat API): logit − presence − frequency · count. All three over the last
//! `penalty_window` accepted tokens, the prompt included if the host accepted it.

use std::collections::HashMap;

use super::chain::{Context, value};
use super::{Candidates, Filter, SamplingParams, refuse};
use crate::error::Result;

pub(super) const FILTER: Filter = Filter {
    name: "penalties",
    about: "repetition_penalty, presence_penalty, frequency_penalty over the last penalty_window tokens",
    values: &[
        value!(repetition_penalty),
        value!(presence_penalty),
        value!(frequency_penalty),
        value!(penalty_window),
    ],
    check,
    apply,
    learn: None,
};

fn check(p: &SamplingParams) -> Result<()> {
    if !(p.repetition_penalty.is_finite() && p.repetition_penalty > 0.0) {
        return Err(refuse("repetition_penalty", "a finite number above 0", p.repetition_penalty));
    }
    for (field, value) in
        [("presence_penalty", p.presence_penalty), ("frequency_penalty", p.frequency_penalty)]
    {
        if !value.is_finite() {
            return Err(refuse(field, "a finite number", value));
        }
    }
    Ok(())
}

/// The accepted tokens, and how often each occurs among those the penalties look at.
#[derive(Clone, Debug)]
pub struct History {
    /// 0: no limit.
    window: usize,
    ids: Vec<i32>,
    counts: HashMap<u32, u32>,
}

impl History {
    /// Nothing accepted yet; counts the last `window` tokens, all of them for 0.
    pub fn new(window: u32) -> Self {
        Self { window: window as usize, ids: Vec::new(), counts: HashMap::new() }
    }

    /// Takes a token in; `id` is not negative.
    pub fn push(&mut self, id: i32) {
        self.ids.push(id);
        let count = self.counts.entry(id.unsigned_abs()).or_insert(0);
        *count = count.saturating_add(1);
        if self.window == 0 || self.ids.len() <= self.window {
            return;
        }
        let old = self.ids[self.ids.len() - 1 - self.window].unsigned_abs();
        if let Some(count) = self.counts.get_mut(&old) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.counts.clear();
    }

    /// How often `id` occurs in the window.
    pub fn count(&self, id: u32) -> u32 {
        self.counts.get(&id).copied().unwrap_or(0)
    }

    /// The tokens accepted so far.
    pub fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// The last `window` of them, all for 0.
    pub fn last(&self, window: u32) -> &[i32] {
        let from = if window == 0 { 0 } else { self.ids.len().saturating_sub(window as usize) };
        &self.ids[from..]
    }
}

fn apply(context: &Context, candidates: &mut Candidates) {
    let p = context.params;
    if p.repetition_penalty == 1.0 && p.presence_penalty == 0.0 && p.frequency_penalty == 0.0 {
        return;
    }
    // The map's order does not matter: each token's logit depends on its own count alone.
    for (&id, &count) in &context.state.history.counts {
        let Some(c) = candidates.find(id) else { continue };
        let repeated =
            if c.logit > 0.0 { c.logit / p.repetition_penalty } else { c.logit * p.repetition_penalty };
        let penalised = repeated - (p.frequency_penalty * count as f32 + p.presence_penalty);
        // Extreme but valid parameters may overflow; the logit then stays a number, and only what was forbidden is.
        if !penalised.is_nan() && c.logit > f32::NEG_INFINITY {
            c.logit = penalised.clamp(f32::MIN, f32::MAX);
        }
    }
}
