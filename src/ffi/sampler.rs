//! Samplers and their parameters.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::callback::{self, Callback, Control};
use super::error::llm_error;
use super::handle;
use super::plain::{self, Plain};
use super::ptr;
use super::session::llm_session;
use super::types::{llm_control, llm_drop_fn, llm_status, llm_token};
use crate::error::{Error, Result, Status};
use crate::sampler::{Sampler, SamplingParams, Stage, processor};

/// Chooses tokens from logits. Class X.
pub struct llm_sampler {
    _opaque: [u8; 0],
}

classes! { exclusive llm_sampler(b"samp"): Sampler; }

/// What a sampler does. Filled by llm_sampling_params_init; the defaults are in parentheses.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_sampling_params {
    /// sizeof(llm_sampling_params), set by the host.
    pub struct_size: u32,
    /// Logits are divided by it; 0 takes the likeliest token. (0)
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all. (0)
    pub top_k: u32,
    /// Keep the likeliest tokens until their probabilities reach this sum. (1)
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the likeliest. (0)
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the window. (1)
    pub repetition_penalty: f32,
    /// Taken from the logit of every token in the window. (0)
    pub presence_penalty: f32,
    /// Taken from a token's logit once per occurrence in the window. (0)
    pub frequency_penalty: f32,
    /// How many of the latest tokens the penalties look at; 0: all. (64)
    pub penalty_window: u32,
    /// Zero.
    pub reserved0: u32,
    /// Seed of the random choice. (0)
    pub seed: u64,
    /// Zero.
    pub reserved: [u32; 4],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_sampling_params {
    const NAME: &'static str = "llm_sampling_params";
    const FIRST_SIZE: usize = 64;
}

impl From<&SamplingParams> for llm_sampling_params {
    fn from(p: &SamplingParams) -> Self {
        Self {
            struct_size: size_of::<Self>() as u32,
            temperature: p.temperature,
            top_k: p.top_k,
            top_p: p.top_p,
            min_p: p.min_p,
            repetition_penalty: p.repetition_penalty,
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            penalty_window: p.penalty_window,
            reserved0: 0,
            seed: p.seed,
            reserved: [0; 4],
        }
    }
}

impl From<&llm_sampling_params> for SamplingParams {
    fn from(p: &llm_sampling_params) -> Self {
        Self {
            temperature: p.temperature,
            top_k: p.top_k,
            top_p: p.top_p,
            min_p: p.min_p,
            repetition_penalty: p.repetition_penalty,
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            penalty_window: p.penalty_window,
            seed: p.seed,
            ..Self::default()
        }
    }
}

/// On the model's logits, before the chain.
pub const LLM_STAGE_BEFORE_PENALTIES: i32 = 0;
/// Behind the last of the chain's penalties.
pub const LLM_STAGE_AFTER_PENALTIES: i32 = 1;

/// Changes logits: one for each of `logits_count` tokens, -INFINITY for those taken away. `position` is that of the
/// token to be chosen, `ids` the tokens accepted so far, borrowed for the call. Answers LLM_CONTROL_CONTINUE; anything
/// else fails the call with CANCELLED.
pub type llm_processor_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        position: u64,
        ids: *const llm_token,
        ids_count: usize,
        logits: *mut f32,
        logits_count: usize,
    ) -> llm_control,
>;
type ProcessorFn =
    unsafe extern "C" fn(*mut c_void, u64, *const llm_token, usize, *mut f32, usize) -> llm_control;

/// Fills a struct, whose struct_size the host has set, with defaults. NULL_ARG, INVALID_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampling_params_init(params: *mut llm_sampling_params) -> llm_status {
    entry!(|host| {
        plain::write(host, params, &(&SamplingParams::default()).into(), "params")?;
        Ok(Status::OK)
    })
}

/// Makes a sampler; NULL params are the defaults. NULL_ARG, INVALID_ARG naming the parameter. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_new(
    params: *const llm_sampling_params,
    out_sampler: *mut *mut llm_sampler,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_sampler], out_err, |host| {
        let out = ptr::out_handle(host, out_sampler, "out_sampler")?;
        let mut chosen = SamplingParams::default();
        if !params.is_null() {
            chosen = (&plain::read(host, params, (&chosen).into(), "params")?).into();
        }
        out.put(Sampler::new(&chosen)?)
    })
}

/// Makes a sampler whose chain is given as text, such as "penalties=1.1;dry=0.8;top_k=40;temperature=0.8;mirostat=5":
/// filters in the order they act, their values behind `=`, separated by commas. The filters are bias, penalties, dry,
/// top_k, typical, top_p, min_p, xtc, temperature, mirostat, which is also the order of llm_sampler_new; values that are
/// left out are those of `params` (NULL: the defaults). NULL_ARG, BAD_UTF8, INVALID_ARG naming what is wrong. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_new_chain(
    params: *const llm_sampling_params,
    chain: *const c_char,
    chain_length: usize,
    out_sampler: *mut *mut llm_sampler,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_sampler], out_err, |host| {
        let out = ptr::out_handle(host, out_sampler, "out_sampler")?;
        let chain = ptr::text_required(host, chain, chain_length, "chain")?;
        let mut chosen = SamplingParams::default();
        if !params.is_null() {
            chosen = (&plain::read(host, params, (&chosen).into(), "params")?).into();
        }
        out.put(Sampler::with_chain(&chosen, chain)?)
    })
}

/// A sampler of its own with the same parameters, history, constraint and processors, and a stream of noise of its own.
/// NULL_ARG, BUSY, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_fork(
    sampler: *mut llm_sampler,
    out_sampler: *mut *mut llm_sampler,
) -> llm_status {
    entry!([out_sampler], |host| {
        let out = ptr::out_handle(host, out_sampler, "out_sampler")?;
        let fork = handle::lock(host, sampler, "sampler")?.fork();
        out.put(fork)
    })
}

/// Adds the host's own code at a stage, one of LLM_STAGE. `pure` is 1 where it looks at position, ids and logits alone:
/// without that nothing can be drafted for the sampler. It runs on the thread of each call that chooses a token; forks
/// share it, so that it may run on several threads. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_add_processor(
    sampler: *mut llm_sampler,
    stage: i32,
    pure: i32,
    function: llm_processor_fn,
    user_data: *mut c_void,
    drop: llm_drop_fn,
) -> llm_status {
    let callback = Callback::new(function, user_data, drop);
    entry!(|host| {
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        let stage = match stage {
            LLM_STAGE_BEFORE_PENALTIES => Stage::BeforePenalties,
            LLM_STAGE_AFTER_PENALTIES => Stage::AfterPenalties,
            other => {
                let what = format!("stage: expected an LLM_STAGE value (0 or 1), got {other}");
                return Err(Error::new(Status::INVALID_ARG, what));
            }
        };
        if !callback.is_set() {
            return Err(Error::new(Status::NULL_ARG, "`function` is NULL, expected a processor"));
        }
        sampler.add_processor(stage, pure != 0, Arc::new(move |input, row| process(&callback, input, row)));
        Ok(Status::OK)
    })
}

fn process(callback: &Callback<ProcessorFn>, input: &processor::Input, row: &mut [f32]) -> Result<()> {
    let answer = callback.call(|function, data| {
        let (ids, count) = (input.ids.as_ptr(), input.ids.len());
        // SAFETY: the host's function with its own data; ids and logits live for the call.
        unsafe { function(data, input.position, ids, count, row.as_mut_ptr(), row.len()) }
    });
    match answer.map_or(Ok(Control::Continue), callback::control)? {
        Control::Continue => Ok(()),
        Control::Stop | Control::Cancel => Err(Error::new(Status::CANCELLED, "a processor ended the call")),
    }
}

/// Forgets the accepted tokens and puts the constraint back to its beginning; parameters and bias stay. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_reset(sampler: *mut llm_sampler) -> llm_status {
    entry!(|host| {
        handle::lock(host, sampler, "sampler")?.reset();
        Ok(Status::OK)
    })
}

/// Replaces the values added to the logits of `count` tokens, given as parallel arrays; -INFINITY forbids a token.
/// NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_set_bias(
    sampler: *mut llm_sampler,
    ids: *const llm_token,
    values: *const f32,
    count: usize,
) -> llm_status {
    entry!(|host| {
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        let ids = ptr::slice(host, ids, count, "ids")?;
        let values = ptr::slice(host, values, count, "values")?;
        let bias: Vec<_> = ids.iter().copied().zip(values.iter().copied()).collect();
        sampler.set_bias(&bias)?;
        Ok(Status::OK)
    })
}

/// Chooses a token from a session's current logits, without accepting it. `out_log_probability` is the token's under
/// the model alone; it may be NULL. BAD_STATE on an empty session, DEAD_END if constraint, bias and filters
/// left no token, BUDGET where the constraint meets its limits, NULL_ARG, BUSY. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_sample(
    sampler: *mut llm_sampler,
    session: *mut llm_session,
    out_id: *mut llm_token,
    out_log_probability: *mut f32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let out = ptr::out(host, out_id, "out_id")?;
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        let session = handle::lock(host, session, "session")?;
        let choice = sampler.sample(session.session.logits()?, session.session.len() as u64)?;
        out.put(choice.id);
        ptr::put_optional(host, out_log_probability, choice.log_probability);
        Ok(Status::OK)
    })
}

/// Runs the same pipeline on a row of the host's own, one logit per id, as if the token at `position` were to be chosen:
/// constraint, processors and chain change `logits` in place, -INFINITY for what they took away. Nothing is accepted.
/// `out_id` (may be NULL) gets the token that llm_sampler_sample would choose, `out_log_probability` (may be NULL) its
/// log-probability under the row as it was given. DEAD_END where no token is left, only with an `out_id`; INVALID_ARG for
/// NaN or +INFINITY (detail TOKEN_INDEX); BUDGET, CANCELLED, CALLBACK; the row is untouched then. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_apply(
    sampler: *mut llm_sampler,
    position: u64,
    logits: *mut f32,
    count: usize,
    out_id: *mut llm_token,
    out_log_probability: *mut f32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        if logits.is_null() {
            return Err(Error::new(Status::NULL_ARG, "`logits` is NULL"));
        }
        let given = ptr::slice(host, logits.cast_const(), count, "logits")?;
        let choice = if out_id.is_null() { None } else { Some(sampler.sample(given, position)?) };
        let mut row = Vec::new();
        let refused = |_| Error::new(Status::NO_MEMORY, format!("no memory for {count} logits"));
        row.try_reserve_exact(count).map_err(refused)?;
        row.resize(count, f32::NEG_INFINITY);
        for candidate in sampler.apply(given, position)? {
            row[candidate.id as usize] = candidate.logit;
        }
        ptr::fill(host, &row, logits, count, std::ptr::null_mut())?;
        if let Some(choice) = choice {
            ptr::put_optional(host, out_id, choice.id);
            ptr::put_optional(host, out_log_probability, choice.log_probability);
        }
        Ok(Status::OK)
    })
}

/// Takes tokens into the history that penalties look at, and into the constraint: each chosen one, and, before a
/// constraint is set, the prompt's if they shall count. The only way a sampler's state moves on. NULL_ARG, INVALID_ARG
/// also for a token that the constraint forbids (detail TOKEN_INDEX; those before it are taken), BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_accept(
    sampler: *mut llm_sampler,
    ids: *const llm_token,
    count: usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        sampler.accept_all(ptr::slice(host, ids, count, "ids")?)?;
        Ok(Status::OK)
    })
}

/// Frees a sampler; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_free(sampler: *mut llm_sampler) {
    entry!(else (), |host| handle::free(host, sampler))
}
