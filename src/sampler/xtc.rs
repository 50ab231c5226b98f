//! XTC, "exclude top choices" (P. E. Weidmann 2024): now and then all tokens that are likely enough are taken away,
//! but the least likely of them. One of two rules for more varied text; the other is temperature.

use super::chain::{Context, value};
use super::top_p::weight;
use super::{Candidates, Filter, SamplingParams, noise, params};
use crate::error::Result;

pub(super) const FILTER: Filter = Filter {
    name: "xtc",
    about: "with probability xtc_probability excludes all but the least likely of the tokens above xtc_threshold",
    values: &[value!(xtc_probability), value!(xtc_threshold)],
    check,
    apply,
    learn: None,
};

fn check(p: &SamplingParams) -> Result<()> {
    params::share("xtc_probability", p.xtc_probability)?;
    params::share("xtc_threshold", p.xtc_threshold)
}

fn apply(context: &Context, candidates: &mut Candidates) {
    let p = context.params;
    if p.xtc_probability <= 0.0 {
        return;
    }
    let max = candidates.max();
    if max == f32::NEG_INFINITY {
        return;
    }
    // u = (r + ½)·2⁻²³ of the filter's own noise.
    let r = noise::own(context.key, noise::Tag::Xtc);
    if (f64::from(r) + 0.5) / f64::from(1u32 << 23) >= f64::from(p.xtc_probability) {
        return;
    }
    let total = candidates.as_slice().iter().fold(0u64, |sum, c| sum.saturating_add(weight(c.logit, max)));
    let least = f64::from(p.xtc_threshold) * total as f64;
    // A forbidden token is no top choice, even where the threshold is 0: it must not be the one that is spared.
    let top = |logit: f32| logit > f32::NEG_INFINITY && weight(logit, max) as f64 >= least;
    let spared = candidates.as_slice().iter().filter(|c| top(c.logit)).max_by(|a, b| a.by_rank(b)).copied();
    if let Some(spared) = spared {
        candidates.retain(|c| !top(c.logit) || c.id == spared.id);
    }
}
