//! Bias: values added to the logits of chosen tokens, −∞ to forbid one. First in the chain, so that everything after
//! it sees the changed distribution.

use super::chain::Context;
use super::{Candidates, Filter};
use crate::error::{Error, Result, Status};
use llm_format::order;

pub(super) const FILTER: Filter = Filter {
    name: "bias",
    about: "adds the host's values to the logits of chosen tokens",
    values: &[],
    check: |_| Ok(()),
    apply,
    learn: None,
};

/// Values by token, ascending by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bias(Vec<(u32, f32)>);

impl Bias {
    /// Checks and sorts; values of one token add up.
    ///
    /// # Errors
    /// `INVALID_ARG` for a negative id, NaN or +∞.
    pub fn new(pairs: &[(i32, f32)]) -> Result<Self> {
        let mut sorted = Vec::with_capacity(pairs.len());
        for (index, &(id, value)) in pairs.iter().enumerate() {
            let wrong = |expected: &str, got: String| {
                Error::new(Status::INVALID_ARG, format!("bias entry {index}: expected {expected}, got {got}"))
                    .with("token_index", index as i64)
            };
            let id = u32::try_from(id).map_err(|_| wrong("a token id of 0 or more", id.to_string()))?;
            if value.is_nan() || value == f32::INFINITY {
                return Err(wrong("a finite value or -inf", value.to_string()));
            }
            sorted.push((id, value));
        }
        order::by_number(&mut sorted, |&(id, _)| u64::from(id));
        sorted.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 += next.1;
            }
            same
        });
        // Two large finite values may add up to +∞, which no later step could handle.
        for entry in &mut sorted {
            entry.1 = entry.1.min(f32::MAX);
        }
        Ok(Self(sorted))
    }

    /// The values, ascending by id.
    pub(super) fn pairs(&self) -> &[(u32, f32)] {
        &self.0
    }
}

fn apply(context: &Context, candidates: &mut Candidates) {
    for &(id, value) in &context.state.bias.0 {
        if let Some(c) = candidates.find(id) {
            c.logit = (c.logit + value).min(f32::MAX);
        }
    }
}
