//! Sessions: one sequence of tokens and its logits.

use std::ffi::c_void;
use std::time::Instant;

use super::callback::{self, Callback};
use super::cancel::llm_cancel;
use super::error::llm_error;
use super::guard::Alive;
use super::handle;
use super::kv::llm_kv_pool;
use super::model::llm_model;
use super::ptr;
use super::types::{llm_control, llm_drop_fn, llm_prefill_fn, llm_status, llm_token};
use crate::error::{Error, Result, Status};
use crate::sampler;
use crate::session::{Control, Level, OnProgress, Overflow, Progress, Session, SessionOptions};

/// What a session shall be. Class X.
pub struct llm_session_options {
    _opaque: [u8; 0],
}

/// One sequence of tokens with its keys and values. Class X.
pub struct llm_session {
    _opaque: [u8; 0],
}

classes! {
    exclusive llm_session_options(b"sopt"): SessionOptions;
    exclusive llm_session(b"sess"): Held;
}

/// A session, and what keeps its runtime counted.
pub(super) struct Held {
    pub(super) session: Session,
    alive: Alive,
}

impl Held {
    pub(super) fn new(session: Session, alive: Alive) -> Self {
        Self { session, alive }
    }

    pub(super) fn alive(&self) -> Alive {
        self.alive.clone()
    }
}

/// The same bits on this machine whatever the number of threads, chunks and sessions (default).
pub const LLM_DETERMINISM_BATCH: i32 = 0;
/// Also the same bits on other instruction sets.
pub const LLM_DETERMINISM_PORTABLE: i32 = 1;
/// As LLM_DETERMINISM_BATCH on this machine, but f16 and bf16 weights may be multiplied in bf16 where the processor
/// has AMX: results then differ from those of the other levels.
pub const LLM_DETERMINISM_FAST: i32 = 2;

/// Tokens that do not fit are refused with CONTEXT_FULL (default).
pub const LLM_OVERFLOW_ERROR: i32 = 0;
/// The head and the newest tokens are kept, and the newest run again: the bits of a fresh session of these tokens, at
/// the cost of a prefill of up to half the context for every half context.
pub const LLM_OVERFLOW_RECOMPUTE: i32 = 1;
/// The head and the newest tokens are kept, and the keys of the newest are moved to their new positions: cheap,
/// approximate, and without the promise of same bits.
pub const LLM_OVERFLOW_SHIFT: i32 = 2;

const DETERMINISM: [(i32, Level); 3] = [
    (LLM_DETERMINISM_BATCH, Level::BatchInvariant),
    (LLM_DETERMINISM_PORTABLE, Level::Portable),
    (LLM_DETERMINISM_FAST, Level::Fast),
];

pub(super) fn determinism_number(level: Level) -> i32 {
    DETERMINISM.iter().find(|(_, l)| *l == level).map_or(LLM_DETERMINISM_BATCH, |(number, _)| *number)
}

/// Makes options with defaults: the model's trained context, chunks of 512, batch determinism, rollback on cancel.
/// NULL_ARG, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_new(out_options: *mut *mut llm_session_options) -> llm_status {
    entry!([out_options], |host| ptr::out_handle(host, out_options, "out_options")?
        .put(SessionOptions::default()))
}

/// How many tokens the session can hold at most; 0: as many as the model was trained for. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_set_max_tokens(
    options: *mut llm_session_options,
    max_tokens: u32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.max_tokens = max_tokens as usize;
        Ok(Status::OK)
    })
}

/// How many tokens a prefill computes at once, at least 1. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_set_chunk_tokens(
    options: *mut llm_session_options,
    chunk_tokens: u32,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        if chunk_tokens == 0 {
            return Err(Error::new(Status::INVALID_ARG, "a chunk has at least one token, got 0"));
        }
        options.chunk = chunk_tokens as usize;
        Ok(Status::OK)
    })
}

/// What the computed bits may depend on: one of LLM_DETERMINISM. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_set_determinism(
    options: *mut llm_session_options,
    determinism: i32,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        let known = DETERMINISM.iter().find(|(number, _)| *number == determinism);
        let (_, level) = known.ok_or_else(|| {
            Error::new(Status::INVALID_ARG, format!("unknown LLM_DETERMINISM value {determinism}"))
        })?;
        options.determinism = *level;
        Ok(Status::OK)
    })
}

/// 1 (default): a cancelled call leaves the session where it stood before; 0: at the last chunk that was completed.
/// NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_set_cancel_rollback(
    options: *mut llm_session_options,
    rollback: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.rollback_on_cancel = rollback != 0;
        Ok(Status::OK)
    })
}

/// Pages the session leaves in a pool with eviction PRIORITY go after those of lower priority; 0 (default). NULL_ARG,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_set_priority(
    options: *mut llm_session_options,
    priority: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.priority = priority;
        Ok(Status::OK)
    })
}

/// What happens when tokens do not fit behind those a session holds: one of LLM_OVERFLOW. The first `head_tokens`
/// tokens always stay; they must be fewer than the session can hold. Not used with LLM_OVERFLOW_ERROR. NULL_ARG,
/// INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_set_overflow(
    options: *mut llm_session_options,
    overflow: i32,
    head_tokens: u32,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        let head = head_tokens as usize;
        options.overflow = match overflow {
            LLM_OVERFLOW_ERROR => Overflow::Error,
            LLM_OVERFLOW_RECOMPUTE => Overflow::Recompute { head },
            LLM_OVERFLOW_SHIFT => Overflow::Shift { head },
            other => {
                return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_OVERFLOW value {other}")));
            }
        };
        Ok(Status::OK)
    })
}

/// Frees options; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_options_free(options: *mut llm_session_options) {
    entry!(else (), |host| handle::free(host, options))
}

/// Makes an empty session, which keeps model and pool alive. Without a pool (NULL) it has pages of its own, as many as
/// its largest number of tokens takes. NULL options are the defaults. NULL_ARG, INVALID_ARG, MISMATCH for a pool of
/// another model, UNSUPPORTED for LLM_OVERFLOW_SHIFT with learned positions,
/// NO_MEMORY, BUDGET, BUSY. S on the model, I on the pool, X on the options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_new(
    model: *const llm_model,
    pool: *const llm_kv_pool,
    options: *mut llm_session_options,
    out_session: *mut *mut llm_session,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_session], out_err, |host| {
        let out = ptr::out_handle(host, out_session, "out_session")?;
        let model = handle::get(host, model, "model")?;
        let pool = handle::get_optional(host, pool, "pool")?;
        let options = handle::lock_optional(host, options, "options")?;
        let options = options.as_deref().cloned().unwrap_or_default();
        let session = match pool {
            None => Session::new(&model.model, options)?,
            Some(pool) if pool.pool.model().is(&model.model) => Session::in_pool(&pool.pool, options)?,
            Some(_) => {
                let message = "the pool was made for another model, or for another opening of its file";
                return Err(Error::new(Status::MISMATCH, message));
            }
        };
        out.put(Held::new(session, model.alive()))
    })
}

/// How many tokens the session holds. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_length(session: *mut llm_session, out_length: *mut u32) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_length, "out_length")?;
        out.put(handle::lock(host, session, "session")?.session.len() as u32);
        Ok(Status::OK)
    })
}

/// The ids the session holds, ask or fill. NULL_ARG, BUFFER_SMALL, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_copy_tokens(
    session: *mut llm_session,
    ids: *mut llm_token,
    cap: usize,
    out_needed: *mut usize,
) -> llm_status {
    entry!(|host| {
        let session = handle::lock(host, session, "session")?;
        ptr::fill(host, session.session.tokens(), ids, cap, out_needed)
    })
}

/// How many tokens the session had to drop since it was empty, under LLM_OVERFLOW_RECOMPUTE or LLM_OVERFLOW_SHIFT.
/// NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_dropped(session: *mut llm_session, out_dropped: *mut u64) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_dropped, "out_dropped")?;
        out.put(handle::lock(host, session, "session")?.session.dropped() as u64);
        Ok(Status::OK)
    })
}

/// Makes room for `tokens` tokens more as the options' overflow says, if there is none: prefilling and decoding do it
/// by themselves, a batch does not. `cancel` and `out_dropped`, the number of tokens that went, may be NULL. Statuses
/// as llm_session_prefill. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_make_room(
    session: *mut llm_session,
    tokens: u32,
    cancel: *const llm_cancel,
    out_dropped: *mut u32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let dropped = session.session.make_room(tokens as usize, cancel.as_deref())?;
        ptr::put_optional(host, out_dropped, dropped as u32);
        Ok(Status::OK)
    })
}

/// Keeps the first `length` tokens. Logits are there again after the next prefill or decode. NULL_ARG, INVALID_ARG
/// if the session holds fewer, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_truncate(
    session: *mut llm_session,
    length: u32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        handle::lock(host, session, "session")?.session.truncate(length as usize)?;
        Ok(Status::OK)
    })
}

/// Empties the session. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_reset(session: *mut llm_session) -> llm_status {
    entry!(|host| {
        handle::lock(host, session, "session")?.session.reset();
        Ok(Status::OK)
    })
}

/// Appends tokens, in chunks; logits of the last one are ready afterwards. Progress is told after each chunk; its
/// STOP ends with OK and what was computed, its CANCEL like the cancel handle. All but the tokens may be NULL.
/// `out_length` gets the number of tokens now held, also on failure. INVALID_ARG for an id that is not in the
/// vocabulary (detail TOKEN_INDEX), CONTEXT_FULL, KV_FULL, NO_MEMORY, BUDGET, UNSUPPORTED for logits that are not finite
/// (detail POSITION), CANCELLED, DEADLINE, CALLBACK, NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_prefill(
    session: *mut llm_session,
    ids: *const llm_token,
    count: usize,
    progress: llm_prefill_fn,
    user_data: *mut c_void,
    drop: llm_drop_fn,
    cancel: *const llm_cancel,
    out_length: *mut u32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    let mut progress = Told::new(progress, user_data, drop);
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let ids = ptr::slice(host, ids, count, "ids")?;
        let result = progress.run(|tell| session.session.prefill(ids, cancel.as_deref(), tell));
        ptr::put_optional(host, out_length, session.session.len() as u32);
        result.map(|()| Status::OK)
    })
}

/// A host's progress function of a prefill.
pub(super) struct Told(Callback<unsafe extern "C" fn(*mut c_void, u32, u32, u32, u64) -> llm_control>);

impl Told {
    pub(super) fn new(progress: llm_prefill_fn, user_data: *mut c_void, drop: llm_drop_fn) -> Self {
        Self(Callback::new(progress, user_data, drop))
    }

    /// Runs what tells it how far it is.
    pub(super) fn run<T>(&mut self, run: impl FnOnce(Option<OnProgress<'_>>) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let mut wrong = None;
        let mut tell = |p: Progress| {
            let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let answer = self.0.call(|function, data| {
                // SAFETY: the host's function with its own data.
                unsafe { function(data, p.total as u32, p.reused as u32, p.done as u32, milliseconds) }
            });
            match answer.map_or(Ok(callback::Control::Continue), callback::control) {
                Ok(callback::Control::Continue) => Control::Continue,
                Ok(callback::Control::Stop) => Control::Stop,
                Ok(callback::Control::Cancel) => Control::Cancel,
                Err(e) => {
                    wrong = Some(e);
                    Control::Cancel
                }
            }
        };
        let result = run(self.0.is_set().then_some(&mut tell as OnProgress<'_>));
        wrong.map_or(result, Err)
    }
}

/// Appends one token; its logits are ready afterwards. Statuses as llm_session_prefill. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_decode(
    session: *mut llm_session,
    id: llm_token,
    cancel: *const llm_cancel,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        session.session.decode(id, cancel.as_deref())?;
        Ok(Status::OK)
    })
}

/// Lends the logits behind the last token, one per id of the vocabulary, until the next call on the session.
/// `out_count` may be NULL. BAD_STATE on an empty session, NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_logits(
    session: *mut llm_session,
    out_logits: *mut *const f32,
    out_count: *mut usize,
) -> llm_status {
    entry!([out_logits], |host| {
        let out = ptr::out_borrowed(host, out_logits, out_count, "out_logits")?;
        out.put(handle::lock(host, session, "session")?.session.logits()?);
        Ok(Status::OK)
    })
}

/// Copies the logits behind the last token, ask or fill. BAD_STATE on an empty session, NULL_ARG, BUFFER_SMALL,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_copy_logits(
    session: *mut llm_session,
    buf: *mut f32,
    cap: usize,
    out_needed: *mut usize,
) -> llm_status {
    entry!(|host| {
        let session = handle::lock(host, session, "session")?;
        ptr::fill(host, session.session.logits()?, buf, cap, out_needed)
    })
}

/// The `count` likeliest next tokens, likeliest first, with the natural logarithms of their probabilities, into
/// arrays of `count`. Fewer than `count` are written only if the vocabulary is smaller; `out_count` (may be NULL) tells
/// how many. BAD_STATE on an empty session, NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_top(
    session: *mut llm_session,
    ids: *mut llm_token,
    log_probabilities: *mut f32,
    count: usize,
    out_count: *mut usize,
) -> llm_status {
    entry!(|host| {
        let session = handle::lock(host, session, "session")?;
        let logits = session.session.logits()?;
        let top = sampler::top(logits, count)?;
        let (top_ids, top_values): (Vec<llm_token>, Vec<f32>) =
            top.iter().map(|alternative| (alternative.id, alternative.log_probability)).unzip();
        ptr::check_fill(top.len(), ids, "ids")?;
        ptr::fill(host, &top_values, log_probabilities, count, std::ptr::null_mut())?;
        ptr::fill(host, &top_ids, ids, count, out_count)
    })
}

/// Keeps the hidden vectors of the tokens computed from now on, the last 512 of them, for a self-drafting head: called
/// before the prefill, a generation that guesses with the model's own head (llm_spec_options_set_self) begins with what the
/// head can know of the prompt; else it knows only the tokens that follow. The results of the session stay the same; each
/// token takes a vector of the model's width. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_keep_hidden(session: *mut llm_session) -> llm_status {
    entry!(|host| {
        handle::lock(host, session, "session")?.session.keep_hidden();
        Ok(Status::OK)
    })
}

/// Frees a session; NULL is allowed. One that a generation has goes when the generation does. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_free(session: *mut llm_session) {
    entry!(else (), |host| handle::free(host, session))
}
