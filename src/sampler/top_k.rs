//! Top-k (Fan et al. 2018): the k likeliest tokens stay, the lower id first among equals.

use super::{Candidate, Candidates, Filter, State};

pub(super) const FILTER: Filter =
    Filter { name: "top_k", about: "keeps the top_k likeliest tokens", check: |_| Ok(()), apply };

fn apply(state: &State, candidates: &mut Candidates) {
    let k = state.params.top_k as usize;
    if k == 0 || k >= candidates.as_slice().len() {
        return;
    }
    // Selection, not sorting: linear in the vocabulary.
    let (_, last, _) = candidates.scratch().select_nth_unstable_by(k - 1, Candidate::by_rank);
    let last = *last;
    candidates.keep_through(last);
}
