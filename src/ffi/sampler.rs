//! Samplers and their parameters.

use super::error::llm_error;
use super::handle;
use super::plain::{self, Plain};
use super::ptr;
use super::session::llm_session;
use super::types::{llm_status, llm_token};
use crate::error::Status;
use crate::sampler::{Sampler, SamplingParams};

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
    entry!(out_err, |host| {
        let out = ptr::out_handle(host, out_sampler, "out_sampler")?;
        let mut chosen = SamplingParams::default();
        if !params.is_null() {
            chosen = (&plain::read(host, params, (&chosen).into(), "params")?).into();
        }
        out.put(Sampler::new(&chosen)?)
    })
}

/// Forgets the accepted tokens; parameters and bias stay. NULL_ARG, BUSY. X.
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
/// the model alone; it may be NULL. BAD_STATE on an empty session, DEAD_END if bias and filters left no token,
/// NULL_ARG, BUSY. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_sample(
    sampler: *mut llm_sampler,
    session: *mut llm_session,
    out_id: *mut llm_token,
    out_log_probability: *mut f32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(compute out_err, |host| {
        let out = ptr::out(host, out_id, "out_id")?;
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        let session = handle::lock(host, session, "session")?;
        let choice = sampler.sample(session.session.logits()?, session.session.len() as u64)?;
        out.put(choice.id);
        ptr::put_optional(host, out_log_probability, choice.log_probability);
        Ok(Status::OK)
    })
}

/// Takes tokens into the history that penalties look at: each chosen one, and the prompt's if they shall count.
/// The only way a sampler's state moves on. NULL_ARG, INVALID_ARG (detail TOKEN_INDEX; those before it are taken),
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_accept(
    sampler: *mut llm_sampler,
    ids: *const llm_token,
    count: usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut sampler = handle::lock(host, sampler, "sampler")?;
        sampler.accept_prompt(ptr::slice(host, ids, count, "ids")?)?;
        Ok(Status::OK)
    })
}

/// Frees a sampler; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_sampler_free(sampler: *mut llm_sampler) {
    entry!(else (), |host| handle::free(host, sampler))
}
