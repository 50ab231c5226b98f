//! Generations: pull events, or have them pushed.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use super::callback::{self, Callback, Control};
use super::cancel::llm_cancel;
use super::chosen::Chosen;
use super::error::llm_error;
use super::guard::{Alive, Host};
use super::handle::{self, Loan};
use super::plain::{self, Plain};
use super::ptr::{self, Text};
use super::sampler::llm_sampler;
use super::session::llm_session;
use super::speculation::{Spec, llm_spec_options, llm_spec_stats};
use super::types::{llm_control, llm_drop_fn, llm_status, llm_token};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::session::generate::{Event, Generation, GenerationOptions, Kind, Reason};

/// What a generation shall do. Class X.
pub struct llm_generation_options {
    _opaque: [u8; 0],
}

/// A running generation. Class X.
pub struct llm_generation {
    _opaque: [u8; 0],
}

classes! {
    exclusive llm_generation_options(b"gopt"): Wanted;
    exclusive llm_generation(b"gene"): Running;
}

/// Options, and how tokens are guessed.
#[derive(Default)]
pub(super) struct Wanted {
    options: GenerationOptions,
    spec: Option<Spec>,
}

impl std::ops::Deref for Wanted {
    type Target = GenerationOptions;
    fn deref(&self) -> &GenerationOptions {
        &self.options
    }
}

impl std::ops::DerefMut for Wanted {
    fn deref_mut(&mut self) -> &mut GenerationOptions {
        &mut self.options
    }
}

/// A generation with what it works on, and the last event as it is lent.
pub(super) struct Running {
    pub(super) generation: Generation,
    pub(super) session: Loan<llm_session>,
    pub(super) sampler: Loan<llm_sampler>,
    /// Keeps the draft's runtime counted.
    _draft: Option<Alive>,
    text: Text,
    pub(super) ids: Vec<llm_token>,
    /// Of the ids that were chosen, the first one foremost.
    pub(super) places: Vec<Chosen>,
    last: Option<llm_event>,
}

/// Tokens or text; more may follow.
pub const LLM_EVENT_TEXT: i32 = 0;
/// The last event.
pub const LLM_EVENT_DONE: i32 = 1;

/// The generation has not ended.
pub const LLM_REASON_NONE: i32 = 0;
/// The model ended its turn.
pub const LLM_REASON_END_TOKEN: i32 = 1;
/// A stop text appeared; it is withheld.
pub const LLM_REASON_STOP_TEXT: i32 = 2;
/// A stop token was chosen.
pub const LLM_REASON_STOP_TOKEN: i32 = 3;
/// The largest number of tokens was reached.
pub const LLM_REASON_LENGTH: i32 = 4;
/// The host cancelled, or a deadline passed.
pub const LLM_REASON_CANCELLED: i32 = 5;
/// The session cannot hold more.
pub const LLM_REASON_CONTEXT_FULL: i32 = 6;
/// Constraint, bias and filters left no token.
pub const LLM_REASON_DEAD_END: i32 = 7;
/// The text is complete: the constraint lets nothing follow.
pub const LLM_REASON_COMPLETE: i32 = 8;

fn reason_number(reason: Option<Reason>) -> i32 {
    match reason {
        None => LLM_REASON_NONE,
        Some(Reason::EndToken) => LLM_REASON_END_TOKEN,
        Some(Reason::StopText) => LLM_REASON_STOP_TEXT,
        Some(Reason::StopToken) => LLM_REASON_STOP_TOKEN,
        Some(Reason::Length) => LLM_REASON_LENGTH,
        Some(Reason::Cancelled) => LLM_REASON_CANCELLED,
        Some(Reason::ContextFull) => LLM_REASON_CONTEXT_FULL,
        Some(Reason::DeadEnd) => LLM_REASON_DEAD_END,
        Some(Reason::Complete) => LLM_REASON_COMPLETE,
    }
}

/// One event of a generation. Text and ids are read with llm_generation_text and llm_generation_ids.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_event {
    /// sizeof(llm_event), set by the host.
    pub struct_size: u32,
    /// One of LLM_EVENT.
    pub kind: i32,
    /// One of LLM_REASON.
    pub reason: i32,
    /// How many ids.
    pub ids_count: u32,
    /// Length of the text in bytes; it may be 0 where characters are not yet whole.
    pub text_length: u64,
    /// Natural logarithm of the chosen token's probability under the model alone.
    pub log_probability: f32,
    /// Zero.
    pub reserved: [u32; 5],
}

/// Counters of a generation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_perf {
    /// sizeof(llm_perf), set by the host.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Tokens chosen.
    pub tokens: u64,
    /// Tokens decoded.
    pub decoded: u64,
    /// Time spent choosing, in nanoseconds.
    pub sample_ns: u64,
    /// Time spent decoding, in nanoseconds.
    pub decode_ns: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_event {
    const NAME: &'static str = "llm_event";
    const FIRST_SIZE: usize = 48;
}
// SAFETY: as above.
unsafe impl Plain for llm_perf {
    const NAME: &'static str = "llm_perf";
    const FIRST_SIZE: usize = 72;
}

/// Told each event with its text and ids, which are borrowed for the call. Answers one of LLM_CONTROL.
pub type llm_event_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        event: *const llm_event,
        text: *const c_char,
        text_length: usize,
        ids: *const llm_token,
        ids_count: usize,
    ) -> llm_control,
>;
type EventFn = unsafe extern "C" fn(
    *mut c_void,
    *const llm_event,
    *const c_char,
    usize,
    *const llm_token,
    usize,
) -> llm_control;

/// Makes options with defaults: 128 tokens, the model's own end tokens. NULL_ARG, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_new(
    out_options: *mut *mut llm_generation_options,
) -> llm_status {
    entry!([out_options], |host| ptr::out_handle(host, out_options, "out_options")?.put(Wanted::default()))
}

/// How many tokens to choose at most; 0: until something else ends it. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_set_max_tokens(
    options: *mut llm_generation_options,
    max_tokens: u32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.max_tokens = max_tokens as usize;
        Ok(Status::OK)
    })
}

/// Ends the generation where this text appears, whatever the tokens' borders; the text itself is withheld.
/// NULL_ARG, BAD_UTF8, INVALID_ARG for an empty text, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_add_stop_text(
    options: *mut llm_generation_options,
    text: *const c_char,
    text_length: usize,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        let text = ptr::text_required(host, text, text_length, "text")?;
        if text.is_empty() {
            return Err(Error::new(Status::INVALID_ARG, "a stop text has at least one character"));
        }
        options.stop_texts.push(text.to_owned());
        Ok(Status::OK)
    })
}

/// Ends the generation where this token is chosen. NULL_ARG, INVALID_ARG for a negative id, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_add_stop_token(
    options: *mut llm_generation_options,
    id: llm_token,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        if id < 0 {
            return Err(Error::new(Status::INVALID_ARG, format!("a token is 0 or more, got {id}")));
        }
        options.stop_tokens.push(id);
        Ok(Status::OK)
    })
}

/// 1: go on past the model's end tokens; 0 (default): end there. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_set_ignore_end(
    options: *mut llm_generation_options,
    ignore_end: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.ignore_end = ignore_end != 0;
        Ok(Status::OK)
    })
}

/// 1: begin with an event that tells the tokens the session holds already, and their text; 0 (default): not. NULL_ARG,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_set_echo(
    options: *mut llm_generation_options,
    echo: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.echo = echo != 0;
        Ok(Status::OK)
    })
}

/// How many of the likeliest tokens llm_generation_top tells of each choice; 0 (default): none. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_set_top_logprobs(
    options: *mut llm_generation_options,
    top_logprobs: u32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.top_logprobs = top_logprobs as usize;
        Ok(Status::OK)
    })
}

/// Guesses tokens and verifies several in one step; `spec` is copied, NULL (default) takes it away. Tokens and text are
/// those of a generation without. An event may tell several tokens then. Nothing is guessed for a sampler with an impure
/// processor. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_set_spec(
    options: *mut llm_generation_options,
    spec: *mut llm_spec_options,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        options.spec = handle::lock_optional(host, spec, "spec")?.as_deref().cloned();
        Ok(Status::OK)
    })
}

/// Frees options; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_options_free(options: *mut llm_generation_options) {
    entry!(else (), |host| handle::free(host, options))
}

/// Begins a generation behind the tokens a session holds. The generation has session and sampler for its lifetime:
/// meanwhile calls on them return BUSY (they may be freed; they go when the generation does). Without a tokenizer in
/// the file all texts are empty. NULL options are the defaults. NULL_ARG, BUSY, UNSUPPORTED, BAD_FORMAT for a damaged
/// tokenizer, INVALID_ARG for stop texts without a tokenizer and for a pool that is not the draft's, MISMATCH for a draft
/// of another vocabulary, NO_MEMORY, BUDGET. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_new(
    session: *mut llm_session,
    sampler: *mut llm_sampler,
    options: *mut llm_generation_options,
    out_generation: *mut *mut llm_generation,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_generation], out_err, |host| {
        let out = ptr::out_handle(host, out_generation, "out_generation")?;
        let session = handle::lock(host, session, "session")?;
        let sampler = handle::lock(host, sampler, "sampler")?;
        let options = handle::lock_optional(host, options, "options")?;
        let defaults = Wanted::default();
        let chosen = options.as_deref().unwrap_or(&defaults);
        let tokenizer = match session.session.model().tokenizer() {
            Ok(tokenizer) => Some(Arc::clone(tokenizer)),
            Err(e) if e.status() == Status::NOT_FOUND => None,
            Err(e) => return Err(e),
        };
        let mut generation = Generation::new(tokenizer, &chosen.options)?;
        let spec = chosen.spec.clone();
        if let Some(spec) = &spec {
            generation.speculate(spec.options.start(session.session.model())?);
        }
        let (session, sampler) = (session.lend(), sampler.lend());
        out.put(Running {
            generation,
            session,
            sampler,
            _draft: spec.and_then(|spec| spec.alive),
            text: Text::new(b""),
            ids: Vec::new(),
            places: Vec::new(),
            last: None,
        })
    })
}

/// One pull: fills the lent text and ids, and describes them.
fn pull(running: &mut Running, cancel: Option<&Cancel>) -> Result<(Status, llm_event)> {
    let Running { generation, session, sampler, .. } = running;
    let event = session
        .with(|session| sampler.with(|sampler| generation.next(&mut session.session, sampler, cancel)))?;
    Ok(running.tell(&event))
}

impl Running {
    /// Fills the lent text and ids with an event's, and describes it.
    pub(super) fn tell(&mut self, event: &Event) -> (Status, llm_event) {
        self.text.set(event.text.as_bytes());
        self.ids.clear();
        self.ids.extend_from_slice(&event.ids);
        self.places.clear();
        self.places.push(Chosen::new(0, event.log_probability, &event.top));
        let further = event.further.iter();
        self.places.extend(further.map(|place| Chosen::new(place.index, place.log_probability, &place.top)));
        let (kind, status) = match event.kind {
            Kind::Text => (LLM_EVENT_TEXT, Status::MORE),
            Kind::Done => (LLM_EVENT_DONE, Status::DONE),
        };
        let event = llm_event {
            struct_size: size_of::<llm_event>() as u32,
            kind,
            reason: reason_number(event.reason),
            ids_count: self.ids.len() as u32,
            text_length: self.text.len() as u64,
            log_probability: event.log_probability,
            reserved: [0; 5],
        };
        self.last = Some(event);
        (status, event)
    }
}

/// Computes the next event. Returns MORE, or DONE with the last event. A cancel handle (may be NULL) ends the
/// generation with DONE and the reason CANCELLED; the session then stands where it stood before the call.
/// `out_event` may be NULL. After a failure the call can be repeated. NULL_ARG, BUSY, INVALID_ARG, BAD_STATE on
/// an empty session, NO_MEMORY, BUDGET, KV_FULL, UNSUPPORTED for logits that are not finite (detail POSITION), and what a
/// processor failed with. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_next(
    generation: *mut llm_generation,
    cancel: *const llm_cancel,
    out_event: *mut llm_event,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut running = handle::lock(host, generation, "generation")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        if !out_event.is_null() {
            plain::check(host, out_event, "out_event")?;
        }
        let (status, event) = pull(&mut running, cancel.as_deref())?;
        if !out_event.is_null() {
            plain::write(host, out_event, &event, "out_event")?;
        }
        Ok(status)
    })
}

/// Pushes events through a callback until the last one was told (DONE), the callback answers STOP (MORE: the
/// generation can go on later) or CANCEL (CANCELLED; the generation is ended), or a call fails. A cancel handle ends it
/// as in llm_generation_next. Statuses as there, and CALLBACK. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_run(
    generation: *mut llm_generation,
    on_event: llm_event_fn,
    user_data: *mut c_void,
    drop: llm_drop_fn,
    cancel: *const llm_cancel,
    out_err: *mut *mut llm_error,
) -> llm_status {
    let on_event = Callback::new(on_event, user_data, drop);
    entry!(out_err, |host| {
        let mut running = handle::lock(host, generation, "generation")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        run(host, &mut running, &on_event, cancel.as_deref())
    })
}

fn run(
    _host: Host<'_>,
    running: &mut Running,
    on_event: &Callback<EventFn>,
    cancel: Option<&Cancel>,
) -> Result<Status> {
    loop {
        let (status, event) = pull(running, cancel)?;
        let (text, ids) = (&running.text, &running.ids);
        let answer = on_event.call(|function, data| {
            // SAFETY: the host's function with its own data; event, text and ids live for the call.
            unsafe { function(data, &raw const event, text.as_ptr(), text.len(), ids.as_ptr(), ids.len()) }
        });
        let control = answer.map_or(Ok(Control::Continue), callback::control)?;
        if status == Status::DONE {
            return Ok(Status::DONE);
        }
        match control {
            Control::Continue => {}
            Control::Stop => return Ok(Status::MORE),
            Control::Cancel => {
                let cancel = Cancel::new();
                cancel.trigger();
                pull(running, Some(&cancel))?;
                return Err(Error::new(Status::CANCELLED, "the event callback answered CANCEL"));
            }
        }
    }
}

/// The last event again, into a struct whose struct_size the host has set; after llm_batch_clear that of the batch's
/// step. BAD_STATE before the first, NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_event(
    generation: *mut llm_generation,
    out_event: *mut llm_event,
) -> llm_status {
    entry!(|host| {
        let running = handle::lock(host, generation, "generation")?;
        plain::check(host, out_event, "out_event")?;
        let event = running.last.ok_or_else(|| Error::new(Status::BAD_STATE, "there was no event yet"))?;
        plain::write(host, out_event, &event, "out_event")?;
        Ok(Status::OK)
    })
}

/// Ids that were told and that the session does not hold, ask or fill: one that waits to be decoded, an end or stop token.
/// A host that goes on with the sequence by itself decodes them first, if it wants them. NULL_ARG, BUFFER_SMALL, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_unheld(
    generation: *mut llm_generation,
    ids: *mut llm_token,
    cap: usize,
    out_needed: *mut usize,
) -> llm_status {
    entry!(|host| {
        let running = handle::lock(host, generation, "generation")?;
        let unheld: Vec<_> = running.generation.unheld().collect();
        ptr::fill(host, &unheld, ids, cap, out_needed)
    })
}

/// Text of the last event, borrowed until the next call on the generation. `out_length` may be NULL. NULL_ARG,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_text(
    generation: *mut llm_generation,
    out_text: *mut *const c_char,
    out_length: *mut usize,
) -> llm_status {
    entry!([out_text], |host| {
        let out = ptr::out_borrowed(host, out_text, out_length, "out_text")?;
        out.put_text(&handle::lock(host, generation, "generation")?.text);
        Ok(Status::OK)
    })
}

/// Ids of the last event, borrowed until the next call on the generation. `out_count` may be NULL. NULL_ARG,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_ids(
    generation: *mut llm_generation,
    out_ids: *mut *const llm_token,
    out_count: *mut usize,
) -> llm_status {
    entry!([out_ids], |host| {
        let out = ptr::out_borrowed(host, out_ids, out_count, "out_ids")?;
        out.put(&handle::lock(host, generation, "generation")?.ids);
        Ok(Status::OK)
    })
}

/// Why it ended: one of LLM_REASON. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_reason(
    generation: *mut llm_generation,
    out_reason: *mut i32,
) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_reason, "out_reason")?;
        out.put(reason_number(handle::lock(host, generation, "generation")?.generation.reason()));
        Ok(Status::OK)
    })
}

/// Counters so far, into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_perf(
    generation: *mut llm_generation,
    out_perf: *mut llm_perf,
) -> llm_status {
    entry!(|host| {
        let perf = handle::lock(host, generation, "generation")?.generation.perf();
        let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let perf = llm_perf {
            struct_size: size_of::<llm_perf>() as u32,
            reserved0: 0,
            tokens: perf.tokens,
            decoded: perf.decoded,
            sample_ns: nanoseconds(perf.sample),
            decode_ns: nanoseconds(perf.decode),
            reserved: [0; 4],
        };
        plain::write(host, out_perf, &perf, "out_perf")?;
        Ok(Status::OK)
    })
}

/// What guessing did so far, into a struct whose struct_size the host has set; zeros where llm_generation_options_set_spec
/// was not called. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_spec_stats(
    generation: *mut llm_generation,
    out_stats: *mut llm_spec_stats,
) -> llm_status {
    entry!(|host| {
        let stats = handle::lock(host, generation, "generation")?.generation.spec_stats().unwrap_or_default();
        plain::write(host, out_stats, &llm_spec_stats::of(&stats), "out_stats")?;
        Ok(Status::OK)
    })
}

/// Ends a generation and gives session and sampler back; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_generation_free(generation: *mut llm_generation) {
    entry!(else (), |host| handle::free(host, generation))
}
