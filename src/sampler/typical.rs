//! Typical sampling (Meister et al. 2022): the smallest set of tokens whose information is closest to the
//! distribution's entropy and whose probabilities reach p.

use super::chain::{Context, value};
use super::top_p::weight;
use super::{Candidate, Candidates, Filter, params};
use std::cmp::Ordering;

pub(super) const FILTER: Filter = Filter {
    name: "typical",
    about: "keeps the tokens whose surprise is closest to the expected one, up to probability typical_p",
    values: &[value!(typical_p)],
    check: |p| params::share("typical_p", p.typical_p),
    apply,
    learn: None,
};

fn apply(context: &Context, candidates: &mut Candidates) {
    let p = f64::from(context.params.typical_p);
    let max = candidates.max();
    if p >= 1.0 || max == f32::NEG_INFINITY {
        return;
    }
    // With w = exp(logit − max) and W their sum, −ln p = ln W + max − logit and the entropy is
    // ln W + Σ w·(max − logit) / W; so the distance of both is that of (max − logit) from the second term.
    let mut total = 0u64;
    let mut moment = 0f64;
    for c in candidates.as_slice() {
        let w = weight(c.logit, max);
        total = total.saturating_add(w);
        if w > 0 {
            moment += w as f64 * f64::from(max - c.logit);
        }
    }
    let expected = moment / total as f64;
    let distance = |c: &Candidate| (f64::from(max - c.logit) - expected).abs();
    let order = |a: &Candidate, b: &Candidate| -> Ordering {
        distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id))
    };
    candidates.keep_smallest(p, total, order, |c| weight(c.logit, max));
}
