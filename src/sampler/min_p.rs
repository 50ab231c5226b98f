//! Min-p (Nguyen et al. 2024): tokens stay that are at least min_p times as likely as the likeliest.

use super::chain::{Context, value};
use super::{Candidates, Filter, math, params};

pub(super) const FILTER: Filter = Filter {
    name: "min_p",
    about: "keeps tokens at least min_p times as likely as the likeliest",
    values: &[value!(min_p)],
    check: |p| params::share("min_p", p.min_p),
    apply,
    learn: None,
};

fn apply(context: &Context, candidates: &mut Candidates) {
    let min_p = context.params.min_p;
    if min_p <= 0.0 {
        return;
    }
    // p ≥ min_p · p_max is logit ≥ max + ln min_p: no exponentials.
    let least = f64::from(candidates.max()) + math::ln(f64::from(min_p));
    candidates.retain(|c| f64::from(c.logit) >= least);
}
