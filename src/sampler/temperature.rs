//! Temperature: logits are divided by it. 0 stands for "the likeliest token"; the choice itself sees to that.

use super::chain::{Context, value};
use super::{Candidates, Filter, params};

pub(super) const FILTER: Filter = Filter {
    name: "temperature",
    about: "divides logits; below 1 sharper, above 1 flatter, 0 the likeliest token",
    values: &[value!(temperature)],
    check: |p| params::at_least("temperature", 0.0, p.temperature),
    apply,
    learn: None,
};

fn apply(context: &Context, candidates: &mut Candidates) {
    let t = context.params.temperature;
    if t == 0.0 || t == 1.0 {
        return;
    }
    let max = candidates.max();
    if max == f32::NEG_INFINITY {
        return;
    }
    // Against the maximum, so that a tiny temperature drives the others to −∞ and nothing to +∞.
    for c in candidates.as_mut_slice() {
        c.logit = (c.logit - max) / t;
    }
}
