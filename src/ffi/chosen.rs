//! What a generation's event tells of its tokens beside their ids.

use super::generation::llm_generation;
use super::guard::Host;
use super::handle;
use super::ptr;
use super::types::{llm_status, llm_token};
use crate::error::{Error, Result, Status};
use crate::sampler::Alternative;

/// What is told of a token beside its id.
pub(super) struct Chosen {
    /// Which of the event's ids it is.
    index: usize,
    log_probability: f32,
    /// The likeliest at its place, and their log-probabilities.
    top: (Vec<llm_token>, Vec<f32>),
}

impl Chosen {
    pub(super) fn new(index: usize, log_probability: f32, top: &[Alternative]) -> Self {
        let top = top.iter().map(|token| (token.id, token.log_probability)).unzip();
        Self { index, log_probability, top }
    }
}

/// The likeliest tokens at the place of the last event's first token, and their log-probabilities under the model
/// alone, likeliest first: two arrays of `cap` entries, ask or fill. NULL_ARG, BUSY, BUFFER_SMALL. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_top(
    generation: *mut llm_generation,
    ids: *mut llm_token,
    log_probabilities: *mut f32,
    cap: usize,
    out_needed: *mut usize,
) -> llm_status {
    entry!(|host| {
        let running = handle::lock(host, generation, "generation")?;
        let top = running.places.first().map(|place| &place.top);
        fill_top(host, top, ids, log_probabilities, cap, out_needed)
    })
}

/// The log-probability (as llm_event has it of the first) and the likeliest tokens at the place of any of the last event's
/// ids, the `index`-th from 0: several are told where tokens were guessed. An id that a constraint put there, and one of an
/// echo, was not chosen: NaN, and no tokens. `out_log_probability` may be NULL, as the arrays where `cap` is 0.
/// INVALID_ARG for an index that the event does not have; else as llm_generation_top. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_top_at(
    generation: *mut llm_generation,
    index: usize,
    out_log_probability: *mut f32,
    ids: *mut llm_token,
    log_probabilities: *mut f32,
    cap: usize,
    out_needed: *mut usize,
) -> llm_status {
    entry!(|host| {
        let running = handle::lock(host, generation, "generation")?;
        if index >= running.ids.len() {
            let message = format!("id {index}: the last event has {}", running.ids.len());
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let echo = running.generation.perf().tokens == 0;
        let place = running.places.iter().find(|place| place.index == index && !echo);
        let top = place.map(|place| &place.top);
        let status = fill_top(host, top, ids, log_probabilities, cap, out_needed)?;
        let log_probability = place.map_or(f32::NAN, |place| place.log_probability);
        ptr::put_optional(host, out_log_probability, log_probability);
        Ok(status)
    })
}

/// Fills two arrays of `cap` entries, or none.
fn fill_top(
    host: Host<'_>,
    top: Option<&(Vec<llm_token>, Vec<f32>)>,
    ids: *mut llm_token,
    log_probabilities: *mut f32,
    cap: usize,
    out_needed: *mut usize,
) -> Result<Status> {
    let (top, values) = top.map_or((&[][..], &[][..]), |(top, values)| (top, values));
    if cap >= values.len() {
        ptr::check_fill(values.len(), log_probabilities, "log_probabilities")?;
    }
    ptr::fill(host, top, ids, cap, out_needed)?;
    ptr::fill(host, values, log_probabilities, cap, out_needed)
}
