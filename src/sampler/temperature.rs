//! Temperature: logits are divided by it. 0 stands for "the likeliest token"; the choice itself sees to that.

use super::{Candidates, Filter, SamplingParams, State, refuse};
use crate::error::Result;

pub(super) const FILTER: Filter = Filter {
    name: "temperature",
    about: "divides logits; below 1 sharper, above 1 flatter, 0 the likeliest token",
    check,
    apply,
};

fn check(p: &SamplingParams) -> Result<()> {
    if !(p.temperature.is_finite() && p.temperature >= 0.0) {
        return Err(refuse("temperature", "a finite number of 0 or more", p.temperature));
    }
    Ok(())
}

fn apply(state: &State, candidates: &mut Candidates) {
    let t = state.params.temperature;
    let max = candidates.max();
    if t == 0.0 || t == 1.0 || max == f32::NEG_INFINITY {
        return;
    }
    // Against the maximum, so that a tiny temperature drives the others to −∞ and nothing to +∞.
    for c in candidates.as_mut_slice() {
        c.logit = (c.logit - max) / t;
    }
}
