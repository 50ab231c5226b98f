//! Mirostat, version 2 (Basu et al. 2020): tokens more surprising than a limit are taken away, and the limit follows
//! the surprise of what was accepted, so that the text's stays near tau.

use super::chain::{Context, Learn, value};
use super::{Candidate, Candidates, Filter, SamplingParams, math, params};
use crate::error::Result;

pub(super) const FILTER: Filter = Filter {
    name: "mirostat",
    about: "keeps tokens below a limit of surprise that steers the text's towards mirostat_tau bits",
    values: &[value!(mirostat_tau), value!(mirostat_eta)],
    check,
    apply,
    learn: Some(Learn {
        on: |p| p.mirostat_tau > 0.0,
        start: |p| (2.0 * p.mirostat_tau).min(f32::MAX), // a number, whatever is asked for: it can be saved
        accept,
    }),
};

fn check(p: &SamplingParams) -> Result<()> {
    params::at_least("mirostat_tau", 0.0, p.mirostat_tau)?;
    params::at_least("mirostat_eta", 0.0, p.mirostat_eta)
}

/// ln Σ exp(logit), summed in ascending order of id.
fn log_sum(candidates: &[Candidate]) -> f64 {
    let max = candidates.iter().fold(f32::NEG_INFINITY, |max, c| if c.logit > max { c.logit } else { max });
    let sum: f64 = candidates.iter().map(|c| f64::from(math::exp(c.logit - max))).sum();
    f64::from(max) + math::ln(sum)
}

/// Surprise in bits: −log2 p.
fn surprise(logit: f32, log_sum: f64) -> f64 {
    (log_sum - f64::from(logit)) / std::f64::consts::LN_2
}

fn apply(context: &Context, candidates: &mut Candidates) {
    if context.params.mirostat_tau == 0.0 {
        return;
    }
    let max = candidates.max();
    if max == f32::NEG_INFINITY {
        return;
    }
    let sum = log_sum(candidates.as_slice());
    let limit = f64::from(context.memory);
    // The likeliest tokens stay, whatever the limit has become.
    candidates.retain(|c| c.logit == max || surprise(c.logit, sum) <= limit);
}

fn accept(p: &SamplingParams, limit: f32, seen: &[Candidate], id: u32) -> f32 {
    let Some(c) = seen.iter().find(|c| c.id == id) else { return limit };
    let error = surprise(c.logit, log_sum(seen)) - f64::from(p.mirostat_tau);
    let next = (f64::from(limit) - f64::from(p.mirostat_eta) * error) as f32;
    if next.is_finite() { next } else { limit }
}
