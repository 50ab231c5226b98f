//! Top-p, "nucleus" (Holtzman et al. 2019): the smallest set of likeliest tokens whose probabilities reach p.
//!
//! Probabilities are whole numbers here, exp(logit − max) in units of 2⁻⁴⁰, so that their sums are exact in any
//! order. The border is found by halving: select the median by rank, weigh the upper half, go on in the half that
//! holds the border. That is linear in the number of candidates, where sorting a vocabulary would not be.

use super::{Candidate, Candidates, Filter, SamplingParams, State, math, refuse};
use crate::error::Result;

pub(super) const FILTER: Filter =
    Filter { name: "top_p", about: "keeps the likeliest tokens up to probability top_p", check, apply };

fn check(p: &SamplingParams) -> Result<()> {
    if !(0.0..=1.0).contains(&p.top_p) {
        return Err(refuse("top_p", "a number from 0 to 1", p.top_p));
    }
    Ok(())
}

/// Probability of a logit against the highest one, in units of 2⁻⁴⁰. Sums of up to 2²⁴ of them fit; larger ones
/// saturate.
pub(super) fn weight(logit: f32, max: f32) -> u64 {
    (math::exp(logit - max) * (1u64 << 40) as f32) as u64
}

fn apply(state: &State, candidates: &mut Candidates) {
    let p = f64::from(state.params.top_p);
    let max = candidates.max();
    if p >= 1.0 || max == f32::NEG_INFINITY {
        return;
    }
    let total = candidates.as_slice().iter().fold(0u64, |sum, c| sum.saturating_add(weight(c.logit, max)));
    let target = ((p * total as f64).ceil() as u64).max(1);
    let mut rest = candidates.scratch();
    // Weight of everything ranked before `rest`; always below the target.
    let mut before = 0u64;
    let last = loop {
        let middle = rest.len() / 2;
        let (upper, median, _) = rest.select_nth_unstable_by(middle, Candidate::by_rank);
        let median = *median;
        let upper = upper.iter().fold(0u64, |sum, c| sum.saturating_add(weight(c.logit, max)));
        if before.saturating_add(upper) >= target {
            rest = &mut rest[..middle];
        } else {
            before += upper + weight(median.logit, max);
            if before >= target || middle + 1 == rest.len() {
                break median;
            }
            rest = &mut rest[middle + 1..];
        }
    };
    candidates.keep_through(last);
}
