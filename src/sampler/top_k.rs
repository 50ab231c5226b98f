//! Top-k (Fan et al. 2018): the k likeliest tokens stay, the lower id first among equals.

use super::chain::{Context, value};
use super::{Candidate, Candidates, Filter};

pub(super) const FILTER: Filter = Filter {
    name: "top_k",
    about: "keeps the top_k likeliest tokens",
    values: &[value!(top_k)],
    check: |_| Ok(()),
    apply,
    learn: None,
};

fn apply(context: &Context, candidates: &mut Candidates) {
    let k = context.params.top_k as usize;
    if k == 0 || k >= candidates.as_slice().len() {
        return;
    }
    // Selection, not sorting: linear in the vocabulary.
    let (_, last, _) = candidates.scratch().select_nth_unstable_by(k - 1, Candidate::by_rank);
    let last = *last;
    candidates.keep_through(last);
}
