//! Scores of tokens and vectors of texts, by a session.

use std::ffi::c_void;

use super::cancel::llm_cancel;
use super::error::llm_error;
use super::handle;
use super::ptr;
use super::session::{Told, llm_session};
use super::types::{llm_drop_fn, llm_prefill_fn, llm_status, llm_token};
use crate::error::{Error, Result, Status};
use crate::session::Pooling;

/// The mean of all tokens' hidden states.
pub const LLM_POOLING_MEAN: i32 = 0;
/// The hidden state of the last token, which has seen all others.
pub const LLM_POOLING_LAST: i32 = 1;
/// The hidden state of the first token.
pub const LLM_POOLING_FIRST: i32 = 2;

/// Appends tokens and tells how likely the model found each of them after those before it, as natural logarithms of
/// probabilities into an array of `count`; e to the mean of their negatives is the perplexity. The first token of an
/// empty session follows nothing: its score is NaN. With `top` above 0 the likeliest tokens at each place, likeliest
/// first, go to arrays of `count` times `top`; places without a token get the id -1 and NaN. Scratch is a few rows of the
/// vocabulary's size, whatever `count` is. Logits of the last token are ready afterwards. Progress as in
/// llm_session_prefill; its STOP ends with the scores of the tokens that are held then. Arrays of `top` may be NULL where
/// it is 0; so may all from `progress` on. `out_scored` gets the number of tokens scored. BAD_STATE where the session
/// holds tokens but no logits of the last one, INVALID_ARG for an id that is not in the vocabulary (detail TOKEN_INDEX),
/// CONTEXT_FULL, KV_FULL, NO_MEMORY, BUDGET, UNSUPPORTED for logits that are not finite (detail POSITION), CANCELLED,
/// DEADLINE, CALLBACK, NULL_ARG, BUSY; the session is then as before. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_score(
    session: *mut llm_session,
    ids: *const llm_token,
    count: usize,
    log_probabilities: *mut f32,
    top: usize,
    top_ids: *mut llm_token,
    top_log_probabilities: *mut f32,
    progress: llm_prefill_fn,
    user_data: *mut c_void,
    drop: llm_drop_fn,
    cancel: *const llm_cancel,
    out_scored: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    let mut progress = Told::new(progress, user_data, drop);
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let ids = ptr::slice(host, ids, count, "ids")?;
        let places = count.checked_mul(top).ok_or_else(|| {
            Error::new(Status::INVALID_ARG, format!("`top`: {top} of each of {count} tokens are impossible"))
        })?;
        ptr::check_fill(count, log_probabilities, "log_probabilities")?;
        ptr::check_fill(places, top_ids, "top_ids")?;
        ptr::check_fill(places, top_log_probabilities, "top_log_probabilities")?;
        // Before anything is computed, since the session is as before where this fails.
        let refused = |_| Error::new(Status::NO_MEMORY, format!("no memory for {places} likeliest tokens"));
        let (mut all_ids, mut all_values) = (Vec::new(), Vec::new());
        all_ids.try_reserve_exact(places).and(all_values.try_reserve_exact(places)).map_err(refused)?;
        let scored = progress.run(|tell| session.session.score(ids, top, cancel.as_deref(), tell))?;

        for top_of_one in &scored.top {
            for place in 0..top {
                let found = top_of_one.get(place);
                all_ids.push(found.map_or(-1, |found| found.id));
                all_values.push(found.map_or(f32::NAN, |found| found.log_probability));
            }
        }
        ptr::fill(host, &all_ids, top_ids, places, std::ptr::null_mut())?;
        ptr::fill(host, &all_values, top_log_probabilities, places, std::ptr::null_mut())?;
        ptr::fill(host, &scored.log_probabilities, log_probabilities, count, out_scored)
    })
}

/// Appends tokens and pools their hidden states (behind the last layer, after the final norm) into one vector of the
/// model's width, ask or fill: `pooling` is one of LLM_POOLING, `normalise` 1 makes its length 1. Tokens the session held
/// before are context and not pooled; reset it between texts. There are no logits afterwards. `cancel` and `out_needed`
/// may be NULL. BUFFER_SMALL (nothing is computed then), INVALID_ARG without tokens and for an id that is not in the
/// vocabulary (detail TOKEN_INDEX), CONTEXT_FULL, KV_FULL, NO_MEMORY, BUDGET, UNSUPPORTED for values that are not finite
/// (detail POSITION), CANCELLED, DEADLINE, NULL_ARG, BUSY; the session is then as before. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_embedding(
    session: *mut llm_session,
    ids: *const llm_token,
    count: usize,
    pooling: i32,
    normalise: i32,
    cancel: *const llm_cancel,
    buf: *mut f32,
    cap: usize,
    out_needed: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let ids = ptr::slice(host, ids, count, "ids")?;
        let pooling = match pooling {
            LLM_POOLING_MEAN => Pooling::Mean,
            LLM_POOLING_LAST => Pooling::Last,
            LLM_POOLING_FIRST => Pooling::First,
            other => {
                return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_POOLING value {other}")));
            }
        };
        let width = session.session.model().spec().width as usize;
        ptr::room(host, width, buf, cap, out_needed)?;
        let vector = session.session.embed(ids, pooling, normalise != 0, cancel.as_deref(), None)?;
        ptr::fill(host, &vector, buf, cap, out_needed)
    })
}

/// Appends tokens and gives the hidden states (behind the last layer, after the final norm) of those at the indices
/// `at`, which ascend and are below `count`: `at_count` rows of the model's width, ask or fill. There are no logits
/// afterwards. `cancel` and `out_needed` may be NULL. Statuses as llm_session_embedding. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_hidden(
    session: *mut llm_session,
    ids: *const llm_token,
    count: usize,
    at: *const usize,
    at_count: usize,
    cancel: *const llm_cancel,
    buf: *mut f32,
    cap: usize,
    out_needed: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let ids = ptr::slice(host, ids, count, "ids")?;
        let at = ptr::slice(host, at, at_count, "at")?;
        let values = rows(at_count, session.session.model().spec().width as usize)?;
        ptr::room(host, values, buf, cap, out_needed)?;
        let states = session.session.hidden(ids, at, cancel.as_deref(), None)?;
        ptr::fill(host, &states, buf, cap, out_needed)
    })
}

fn rows(count: usize, width: usize) -> Result<usize> {
    count.checked_mul(width).ok_or_else(|| {
        Error::new(Status::INVALID_ARG, format!("{count} rows of {width} values are impossible"))
    })
}
