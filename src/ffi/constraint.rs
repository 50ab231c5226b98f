//! Constraints, and their states for hosts that choose tokens themselves.

use std::ffi::c_char;
use std::sync::Arc;

use super::cancel::llm_cancel;
use super::error::llm_error;
use super::guard::Host;
use super::handle;
use super::ptr;
use super::sampler::llm_sampler;
use super::tokenizer::llm_tokenizer;
use super::types::{llm_status, llm_token};
use crate::cancel::Cancel;
use crate::constraint::{Constraint, Limits, State};
use crate::error::{Result, Status};
use crate::tokenizer::Tokenizer;

/// What a text must follow: a JSON schema, a regular expression, a grammar, a choice. Class S.
pub struct llm_constraint {
    _opaque: [u8; 0],
}

/// A text being written under a constraint. Class X.
pub struct llm_constraint_state {
    _opaque: [u8; 0],
}

classes! {
    shared llm_constraint(b"cons"): Constraint;
    exclusive llm_constraint_state(b"csta"): State;
}

/// The defaults with what the host gave: 0 stands for the default.
fn limits(max_bytes: usize, max_work: u64) -> Limits {
    let mut limits = Limits::default();
    if max_bytes > 0 {
        limits.text_bytes = max_bytes;
    }
    if max_work > 0 {
        limits.compile_work = max_work;
        limits.step_work = max_work;
    }
    limits
}

type Compile = fn(&Arc<Tokenizer>, &str, &Limits, Option<&Cancel>) -> Result<Constraint>;

/// Compiles a text that is there as a whole.
fn compile(
    host: Host<'_>,
    how: Compile,
    tokenizer: *const llm_tokenizer,
    (text, text_length): (*const c_char, usize),
    limits: &Limits,
    cancel: *const llm_cancel,
    out_constraint: *mut *mut llm_constraint,
) -> Result<Status> {
    let out = ptr::out_handle(host, out_constraint, "out_constraint")?;
    let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
    let text = ptr::text_required(host, text, text_length, "text")?;
    let cancel = handle::get_optional(host, cancel, "cancel")?;
    out.put(how(&tokenizer.tokenizer, text, limits, cancel.as_deref())?)
}

/// Text that is JSON and valid under a schema (JSON Schema, drafts 4 to 2020-12), with the properties in the schema's
/// order. The first compilation over a tokenizer takes time in proportion to its vocabulary. `max_bytes` limits the
/// text, `max_work` the steps of compiling and of each token; 0 for the defaults. The constraint keeps what it needs of
/// the tokenizer. SCHEMA where it is no schema or asks what cannot be held to (the message begins with the path),
/// BUDGET beyond a limit, CANCELLED, DEADLINE, UNSUPPORTED in a build without constraints, NULL_ARG, BAD_UTF8. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_compile_json_schema(
    tokenizer: *const llm_tokenizer,
    text: *const c_char,
    text_length: usize,
    max_bytes: usize,
    max_work: u64,
    cancel: *const llm_cancel,
    out_constraint: *mut *mut llm_constraint,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_constraint], out_err, |host| {
        let (text, limits) = ((text, text_length), limits(max_bytes, max_work));
        compile(host, Constraint::json_schema, tokenizer, text, &limits, cancel, out_constraint)
    })
}

/// Text that as a whole matches a regular expression, without look-around. As llm_constraint_compile_json_schema, with
/// GRAMMAR for a text that is no expression. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_compile_regex(
    tokenizer: *const llm_tokenizer,
    text: *const c_char,
    text_length: usize,
    max_bytes: usize,
    max_work: u64,
    cancel: *const llm_cancel,
    out_constraint: *mut *mut llm_constraint,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_constraint], out_err, |host| {
        let (text, limits) = ((text, text_length), limits(max_bytes, max_work));
        compile(host, Constraint::regex, tokenizer, text, &limits, cancel, out_constraint)
    })
}

/// Text that follows a grammar in Lark's notation from its rule `start` on. As llm_constraint_compile_regex. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_compile_lark(
    tokenizer: *const llm_tokenizer,
    text: *const c_char,
    text_length: usize,
    max_bytes: usize,
    max_work: u64,
    cancel: *const llm_cancel,
    out_constraint: *mut *mut llm_constraint,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_constraint], out_err, |host| {
        let (text, limits) = ((text, text_length), limits(max_bytes, max_work));
        compile(host, Constraint::lark, tokenizer, text, &limits, cancel, out_constraint)
    })
}

/// One of `count` texts, given as parallel arrays of pointers and lengths. As llm_constraint_compile_regex, and
/// INVALID_ARG without any text. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_compile_choice(
    tokenizer: *const llm_tokenizer,
    texts: *const *const c_char,
    text_lengths: *const usize,
    count: usize,
    max_bytes: usize,
    max_work: u64,
    cancel: *const llm_cancel,
    out_constraint: *mut *mut llm_constraint,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_constraint], out_err, |host| {
        let out = ptr::out_handle(host, out_constraint, "out_constraint")?;
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        let texts = ptr::slice(host, texts, count, "texts")?;
        let lengths = ptr::slice(host, text_lengths, count, "text_lengths")?;
        let text =
            |(text, length): (&*const c_char, &usize)| ptr::text_required(host, *text, *length, "texts");
        let texts = texts.iter().zip(lengths).map(text).collect::<Result<Vec<_>>>()?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let limits = limits(max_bytes, max_work);
        out.put(Constraint::choice(&tokenizer.tokenizer, &texts, &limits, cancel.as_deref())?)
    })
}

/// Frees a constraint; NULL is allowed. What was made from it goes on. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_free(constraint: *mut llm_constraint) {
    entry!(else (), |host| handle::free(host, constraint))
}

/// Puts the tokens that a sampler accepts from now on under a constraint, from its beginning; NULL takes it away. The
/// prompt is to be accepted before. A generation ends with LLM_REASON_COMPLETE where nothing more may follow. NULL_ARG,
/// BUSY. X on the sampler, S on the constraint.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_set_constraint(
    sampler: *mut llm_sampler,
    constraint: *const llm_constraint,
) -> llm_status {
    entry!(|host| {
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        let constraint = handle::get_optional(host, constraint, "constraint")?;
        sampler.set_constraint(constraint.as_deref());
        Ok(Status::OK)
    })
}

/// The beginning of a text under a constraint. NULL_ARG, NO_MEMORY. S on the constraint.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_state_new(
    constraint: *const llm_constraint,
    out_state: *mut *mut llm_constraint_state,
) -> llm_status {
    entry!([out_state], |host| {
        let out = ptr::out_handle(host, out_state, "out_state")?;
        out.put(State::new(&*handle::get(host, constraint, "constraint")?))
    })
}

/// The tokens that may follow, ask or fill: one bit per id, from the lowest of the first word on; ids beyond may not.
/// BUDGET where the limits are met, DEAD_END where nothing fits, NULL_ARG, BUSY, BUFFER_SMALL. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_state_mask(
    state: *mut llm_constraint_state,
    words: *mut u32,
    cap: usize,
    out_needed: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut state = handle::lock(host, state, "state")?;
        ptr::fill(host, state.mask()?, words, cap, out_needed)
    })
}

/// Takes a token in. INVALID_ARG for one that may not follow (nothing changes), BUDGET, NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_state_advance(
    state: *mut llm_constraint_state,
    id: llm_token,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        handle::lock(host, state, "state")?.advance(id)?;
        Ok(Status::OK)
    })
}

/// The tokens that follow in any case, in order, ask or fill; none where there is a choice. BUDGET, NULL_ARG, BUSY,
/// BUFFER_SMALL. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_state_forced(
    state: *mut llm_constraint_state,
    ids: *mut llm_token,
    cap: usize,
    out_needed: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut state = handle::lock(host, state, "state")?;
        ptr::fill(host, &state.forced()?, ids, cap, out_needed)
    })
}

/// Whether nothing but an end can follow: 1 or 0. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_state_is_complete(
    state: *mut llm_constraint_state,
    out_complete: *mut i32,
) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_complete, "out_complete")?;
        out.put(i32::from(handle::lock(host, state, "state")?.is_complete()));
        Ok(Status::OK)
    })
}

/// A state of its own at the same place. NULL_ARG, BUSY, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_state_fork(
    state: *mut llm_constraint_state,
    out_state: *mut *mut llm_constraint_state,
) -> llm_status {
    entry!([out_state], |host| {
        let out = ptr::out_handle(host, out_state, "out_state")?;
        let fork = handle::lock(host, state, "state")?.fork();
        out.put(fork)
    })
}

/// Frees a state; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_constraint_state_free(state: *mut llm_constraint_state) {
    entry!(else (), |host| handle::free(host, state))
}
