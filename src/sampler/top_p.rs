//! Top-p, "nucleus" (Holtzman et al. 2019): the smallest set of likeliest tokens whose probabilities reach p.
//!
//! Probabilities are whole numbers here, exp(logit − max) in units of 2⁻⁴⁰, so that their sums are exact in any
//! order.

use super::chain::{Context, value};
use super::{Candidate, Candidates, Filter, math, params};

pub(super) const FILTER: Filter = Filter {
    name: "top_p",
    about: "keeps the likeliest tokens up to probability top_p",
    values: &[value!(top_p)],
    check: |p| params::share("top_p", p.top_p),
    apply,
    learn: None,
};

/// Probability of a logit against the highest one, in units of 2⁻⁴⁰. Sums of up to 2²⁴ of them fit; larger ones
/// saturate.
pub(super) fn weight(logit: f32, max: f32) -> u64 {
    (math::exp(logit - max) * (1u64 << 40) as f32) as u64
}

fn apply(context: &Context, candidates: &mut Candidates) {
    let p = f64::from(context.params.top_p);
    let max = candidates.max();
    if p >= 1.0 || max == f32::NEG_INFINITY {
        return;
    }
    let total = candidates.as_slice().iter().fold(0u64, |sum, c| sum.saturating_add(weight(c.logit, max)));
    candidates.keep_smallest(p, total, Candidate::by_rank, |c| weight(c.logit, max));
}
