//! Min-p (Nguyen et al. 2024): tokens stay that are at least min_p times as likely as the likeliest.

use super::{Candidates, Filter, SamplingParams, State, math, refuse};
use crate::error::Result;

pub(super) const FILTER: Filter = Filter {
    name: "min_p",
    about: "keeps tokens at least min_p times as likely as the likeliest",
    check,
    apply,
};

fn check(p: &SamplingParams) -> Result<()> {
    if !(0.0..=1.0).contains(&p.min_p) {
        return Err(refuse("min_p", "a number from 0 to 1", p.min_p));
    }
    Ok(())
}

fn apply(state: &State, candidates: &mut Candidates) {
    let min_p = state.params.min_p;
    if min_p <= 0.0 {
        return;
    }
    // p ≥ min_p · p_max is logit ≥ max + ln min_p: no exponentials.
    let least = f64::from(candidates.max()) + math::ln(f64::from(min_p));
    candidates.retain(|c| f64::from(c.logit) >= least);
}
