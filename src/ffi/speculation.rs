//! Speculation: how tokens are guessed, and what became of it.

use std::time::Duration;

use super::error::llm_error;
use super::guard::Alive;
use super::handle;
use super::kv::llm_kv_pool;
use super::model::llm_model;
use super::plain::Plain;
use super::ptr;
use super::types::{llm_status, llm_token};
use crate::error::Status;
use crate::session::speculative::{
    Corpus, DraftOptions, Lengths, MOST_DRAFT, NgramOptions, Source, SpecOptions, SpecStats,
};

/// How tokens are guessed. Class X.
pub struct llm_spec_options {
    _opaque: [u8; 0],
}

classes! {
    exclusive llm_spec_options(b"spec"): Spec;
}

/// The choice, and what keeps the draft's runtime counted.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) options: SpecOptions,
    pub(super) alive: Option<Alive>,
}

/// What speculation did. drafted = accepted + rejected; the steps with guesses told accepted + bonus tokens.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_spec_stats {
    /// sizeof(llm_spec_stats), set by the host.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Tokens guessed and given to the model.
    pub drafted: u64,
    /// Guesses that came true.
    pub accepted: u64,
    /// Guesses that did not, those behind an end or a stop among them.
    pub rejected: u64,
    /// Tokens chosen behind the last guess that came true: one for each step with guesses, none where that ended with
    /// a guess.
    pub bonus: u64,
    /// Steps with guesses.
    pub verify_steps: u64,
    /// Steps of one token without guesses.
    pub plain_steps: u64,
    /// Times that guessing was given up for a while because it did not pay.
    pub switched_off: u64,
    /// Proposals and steps with guesses that failed; generation went on without.
    pub failed: u64,
    /// Time spent guessing, in nanoseconds.
    pub draft_ns: u64,
    /// Time spent in steps with guesses, in nanoseconds.
    pub verify_ns: u64,
    /// What the tokens of those steps would have taken one by one, by the steps without guesses, in nanoseconds.
    pub plain_equivalent_ns: u64,
    /// Guesses by their place in the draft.
    pub drafted_at: [u64; 32],
    /// Those of them that came true.
    pub accepted_at: [u64; 32],
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_spec_stats {
    const NAME: &'static str = "llm_spec_stats";
    const FIRST_SIZE: usize = 640;
}

const _: () = assert!(MOST_DRAFT == 32 && size_of::<llm_spec_stats>() == 640);

impl llm_spec_stats {
    pub(super) fn of(stats: &SpecStats) -> Self {
        let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self {
            struct_size: size_of::<Self>() as u32,
            reserved0: 0,
            drafted: stats.drafted,
            accepted: stats.accepted,
            rejected: stats.rejected,
            bonus: stats.bonus,
            verify_steps: stats.verify_steps,
            plain_steps: stats.plain_steps,
            switched_off: stats.switched_off,
            failed: stats.failed,
            draft_ns: nanoseconds(stats.draft),
            verify_ns: nanoseconds(stats.verify),
            plain_equivalent_ns: nanoseconds(stats.plain_equivalent),
            drafted_at: stats.drafted_at,
            accepted_at: stats.accepted_at,
            reserved: [0; 4],
        }
    }
}

/// Makes options with defaults: tokens are looked up in the session's own text, 1 to 8 at a time, as long as that pays.
/// NULL_ARG, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_new(out_options: *mut *mut llm_spec_options) -> llm_status {
    entry!([out_options], |host| {
        let spec = Spec { options: SpecOptions::ngram(), alive: None };
        ptr::out_handle(host, out_options, "out_options")?.put(spec)
    })
}

/// Lets a second model guess, from `least` to `most` tokens at a time (1 ≤ least ≤ most ≤ 32). Its vocabulary has to be
/// that of the model it guesses for (llm_spec_check). Keys and values go to `pool`, a pool of the draft; NULL: each
/// generation has pages of its own. Model and pool are kept. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_set_draft_model(
    options: *mut llm_spec_options,
    draft: *const llm_model,
    pool: *const llm_kv_pool,
    least: u32,
    most: u32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut spec = handle::lock(host, options, "options")?;
        let draft = handle::get(host, draft, "draft")?;
        let pool = handle::get_optional(host, pool, "pool")?.map(|pool| pool.pool.clone());
        let lengths = Lengths { least: least as usize, most: most as usize, ..spec.options.lengths.clone() };
        lengths.check()?;
        spec.options.source = Source::Draft(DraftOptions { model: draft.model.clone(), pool });
        spec.options.lengths = lengths;
        spec.alive = Some(draft.alive());
        Ok(Status::OK)
    })
}

/// Looks up what followed the last tokens before, in the session's own tokens and in a corpus (copied; NULL for none).
/// A match is `least_match` to `most_match` tokens long (1 ≤ least ≤ most ≤ 1024); 3 to 16 are the defaults. NULL_ARG,
/// INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_set_ngram(
    options: *mut llm_spec_options,
    least_match: u32,
    most_match: u32,
    corpus: *const llm_token,
    corpus_count: usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut spec = handle::lock(host, options, "options")?;
        let (least_match, most_match) = (least_match as usize, most_match as usize);
        let mut ngram = NgramOptions { least_match, most_match, corpus: None };
        ngram.check()?;
        if corpus_count > 0 {
            let corpus = ptr::slice(host, corpus, corpus_count, "corpus")?;
            ngram.corpus = Some(Corpus::new(corpus, least_match)?);
        }
        spec.options.source = Source::Ngram(ngram);
        spec.alive = None;
        Ok(Status::OK)
    })
}

/// Lets the second model in the model's own file guess: a self-drafting head, or a small model that `libllm convert
/// --draft` put there. llm_spec_check answers UNSUPPORTED for a file without one. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_set_self(options: *mut llm_spec_options) -> llm_status {
    entry!(|host| {
        let mut spec = handle::lock(host, options, "options")?;
        spec.options.source = Source::Own;
        spec.alive = None;
        Ok(Status::OK)
    })
}

/// Guesses from `least` to `most` tokens at a time (1 ≤ least ≤ most ≤ 32). NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_set_lengths(
    options: *mut llm_spec_options,
    least: u32,
    most: u32,
) -> llm_status {
    entry!(|host| {
        let mut spec = handle::lock(host, options, "options")?;
        let lengths = Lengths { least: least as usize, most: most as usize, ..spec.options.lengths.clone() };
        lengths.check()?;
        spec.options.lengths = lengths;
        Ok(Status::OK)
    })
}

/// 1 (default): as many guesses as lately brought the most tokens by time, and none for a while where they do not pay;
/// 0: the most at every step. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_set_adaptive(
    options: *mut llm_spec_options,
    adaptive: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.options.lengths.adaptive = adaptive != 0;
        Ok(Status::OK)
    })
}

/// What guessing has to reach to go on, in tokens by time over those without, 0 to 100; 1.03 is the default. NULL_ARG,
/// INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_set_min_gain(
    options: *mut llm_spec_options,
    min_gain: f32,
) -> llm_status {
    entry!(|host| {
        let mut spec = handle::lock(host, options, "options")?;
        let lengths = Lengths { min_gain: f64::from(min_gain), ..spec.options.lengths.clone() };
        lengths.check()?;
        spec.options.lengths = lengths;
        Ok(Status::OK)
    })
}

/// Frees options; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_options_free(options: *mut llm_spec_options) {
    entry!(else (), |host| handle::free(host, options))
}

/// Whether tokens can be guessed so for a model: OK, UNSUPPORTED without the second model that was asked for, or MISMATCH naming the first difference of the draft's vocabulary
/// (number of ids, special token, text of a token). NULL_ARG, INVALID_ARG, BUSY. S; the options X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_spec_check(
    target: *const llm_model,
    options: *mut llm_spec_options,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let target = handle::get(host, target, "target")?;
        handle::lock(host, options, "options")?.options.check(&target.model)?;
        Ok(Status::OK)
    })
}
