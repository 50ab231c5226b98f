//! DRY, "don't repeat yourself" (P. E. Weidmann 2024): a token that would continue a repetition is penalised, the
//! more the longer the repetition already is.
//!
//! ```text
//! … a b c X … a b c ?      the last 3 tokens occurred before and X followed: X costs multiplier · base^(3 − allowed)
//! ```
//!
//! Repetitions are not followed across breakers, tokens the host names (line ends, quotation marks).

use super::candidates::Repetitions;
use super::chain::{Context, State, value};
use super::{Candidates, Filter, SamplingParams, params};
use crate::error::Result;

pub(super) const FILTER: Filter = Filter {
    name: "dry",
    about: "penalises tokens that lengthen a repeated sequence by dry_multiplier times a power of dry_base",
    values: &[value!(dry_multiplier), value!(dry_base), value!(dry_allowed_length), value!(dry_window)],
    check,
    apply,
    learn: None,
};

fn check(p: &SamplingParams) -> Result<()> {
    params::at_least("dry_multiplier", 0.0, p.dry_multiplier)?;
    params::at_least("dry_base", 1.0, p.dry_base)
}

/// `multiplier · base^over`, at most the largest f32. Powers by multiplication: the same on every machine.
pub(super) fn penalty(p: &SamplingParams, over: u32) -> f32 {
    let mut power = f64::from(p.dry_multiplier);
    for _ in 0..over {
        power *= f64::from(p.dry_base);
        if power > f64::from(f32::MAX) || p.dry_base == 1.0 {
            break;
        }
    }
    power.min(f64::from(f32::MAX)) as f32
}

fn apply(context: &Context, candidates: &mut Candidates) {
    let p = context.params;
    if p.dry_multiplier == 0.0 {
        return;
    }
    let mut scratch = std::mem::take(&mut candidates.repetitions);
    let State { history, breakers, .. } = context.state;
    let ids = history.last(p.dry_window);
    let Repetitions { lengths, worst } = &mut scratch;
    matches(ids, breakers, lengths);
    // The longest repetition that each token would continue; a token costs once.
    worst.clear();
    for (&id, &length) in ids.iter().zip(lengths.iter()) {
        if length >= p.dry_allowed_length && length > 0 {
            worst.push(u64::from(id.unsigned_abs()) << 32 | u64::from(length));
        }
    }
    worst.sort_unstable();
    for (index, &both) in worst.iter().enumerate() {
        let (id, length) = ((both >> 32) as u32, both as u32);
        if worst.get(index + 1).is_some_and(|next| next >> 32 == both >> 32) {
            continue;
        }
        if let Some(c) = candidates.find(id) {
            // −∞ only where it was before: the largest penalty is a number.
            c.logit = (c.logit - penalty(p, length - p.dry_allowed_length)).max(f32::MIN).min(c.logit);
        }
    }
    candidates.repetitions = scratch;
}

/// For every place, how many of the tokens before it equal the last tokens of all, in order, without a breaker.
/// Linear: the Z-function of the reversed tokens (Gusfield 1997, section 1.3).
pub(super) fn matches(ids: &[i32], breakers: &[i32], lengths: &mut Vec<u32>) {
    let n = ids.len();
    lengths.clear();
    lengths.resize(n, 0);
    let whole = ids.iter().rev().position(|id| breakers.binary_search(id).is_ok()).unwrap_or(n);
    let reversed = |at: usize| ids[n - 1 - at];
    // Z of the reversed list: z(k) is how much of it from k on equals its beginning. Kept at the place n − k.
    let (mut left, mut right) = (0, 0);
    for k in 1..n {
        let mut z = if k < right { (lengths[n - (k - left)] as usize).min(right - k) } else { 0 };
        while k + z < n && reversed(z) == reversed(k + z) {
            z += 1;
        }
        if k + z > right {
            (left, right) = (k, k + z);
        }
        lengths[n - k] = z as u32;
    }
    for length in lengths.iter_mut() {
        *length = (*length).min(whole as u32);
    }
}
