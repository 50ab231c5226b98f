//! Generation: the loop of sample, accept, decode, and what a host sees of it.
//!
//! ```text
//! pull ─→ plan: the token told last, and drafts ─→ run: decode them ─→ take: sample, accept, whole characters,
//!         stop texts; on to the next place while the token chosen is the draft that was decoded ─→ event
//! ```
//!
//! Each pull computes one token and tells it at once; the token is decoded at the next pull, so that nobody waits
//! for a forward pass to see a token that is already known. With speculation ([`Generation::speculate`]) a pull may
//! tell several, the same ones in the same order; what is told is all that sampler and session have taken.
//!
//! [`Generation::next`] is a whole pull. A host that runs several sessions in one step does its parts by itself:
//! [`Generation::plan`], the step, [`Generation::take`]. When [`Event::kind`] is [`Kind::Done`]:
//!
//! * `ids` of all events, in order, are the tokens chosen, an end or stop token included.
//! * `text` of all events is their text up to, and without, the stop text. Text that could still become a stop text
//!   is held back until that is decided, so the text of an event need not belong to its ids.
//! * The session holds what it held before and every token told, but not the end or stop token; after a stop text it
//!   also holds the tokens that spelled it ([`Generation::unheld`] tells which of the last tokens it does not hold).
//!
//! Cancelling loses nothing that was told: the token that was being decoded is not held by the session, which stands
//! where it stood before the pull. What this file does not know: models and tokenizers. It drives anything that is
//! [`Evaluate`] and reads text from anything that is [`Text`].

mod step;
mod stop;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::sampler::{Alternative, Sampler};
use crate::session::speculative::{SpecStats, Speculation};
use crate::tokenizer::{TextStream, Tokenizer};
pub use step::Plan;
use stop::StopTexts;

/// How many of the session's last tokens the text stream is shown first, so that the text goes on as that of the
/// whole sequence would: enough for the leading space of a first word and for a character begun in the prompt.
const CONTEXT_TOKENS: usize = 16;

/// What a generation does with a session.
pub trait Evaluate {
    /// The tokens held, in order.
    fn tokens(&self) -> &[i32];
    /// Place of the next token: so many came before it, those no longer held among them. Never goes back as tokens
    /// are appended.
    fn position(&self) -> u64 {
        self.tokens().len() as u64
    }
    /// Logits behind the last token held.
    ///
    /// # Errors
    /// `BAD_STATE` while nothing is held.
    fn logits(&self) -> Result<&[f32]>;
    /// Appends a token and computes its logits.
    ///
    /// # Errors
    /// `CONTEXT_FULL`, `CANCELLED`, `DEADLINE` and others; the tokens held are then as before the call.
    fn decode(&mut self, id: i32, cancel: Option<&Cancel>) -> Result<()>;
    /// Appends several tokens, in one step where that is possible, and computes the logits behind the last.
    ///
    /// # Errors
    /// As [`Evaluate::decode`]; tokens held before an error stay held.
    fn decode_all(&mut self, ids: &[i32], cancel: Option<&Cancel>) -> Result<()> {
        ids.iter().try_for_each(|&id| self.decode(id, cancel))
    }
    /// How many tokens [`Evaluate::verify`] would take now; 0 where it cannot promise the bits of decoding one by one.
    fn verifiable(&self) -> usize {
        0
    }
    /// Appends several tokens in one step and computes the logits behind each of the last `rows`, which
    /// [`Evaluate::row`] then lends. [`Evaluate::keep`] has to follow.
    ///
    /// # Errors
    /// As [`Evaluate::decode`]; the tokens held are then as before the call.
    fn verify(&mut self, ids: &[i32], rows: usize, cancel: Option<&Cancel>) -> Result<()> {
        let _ = (ids, rows, cancel);
        Err(Error::new(Status::UNSUPPORTED, "this session decodes one token at a time"))
    }
    /// Row `row` of those that the last [`Evaluate::verify`] computed.
    ///
    /// # Errors
    /// `BAD_STATE` where there is no such row.
    fn row(&self, row: usize) -> Result<&[f32]> {
        Err(Error::new(Status::BAD_STATE, format!("row {row}: nothing was verified")))
    }
    /// Keeps hidden vectors from now on, where that is possible.
    fn keep_hidden(&mut self) {}
    /// As [`crate::session::Session::kept_hidden`].
    fn hidden(&self) -> Option<(usize, &[f32])> {
        None
    }
    /// Behind a verification: keeps the first `tokens` tokens and the logits behind the last of them, which are
    /// `logits` or else those computed by [`Evaluate::verify`].
    ///
    /// # Errors
    /// `BAD_STATE` where there are no such logits.
    fn keep(&mut self, tokens: usize, logits: Option<&[f32]>) -> Result<()> {
        let _ = logits;
        Err(Error::new(Status::BAD_STATE, format!("keep {tokens} tokens: nothing was verified")))
    }
}

/// What a generation does with a tokenizer.
pub trait Text: Send {
    /// Takes a token; the whole characters that are now known.
    ///
    /// # Errors
    /// `INVALID_ARG` for an id that the vocabulary does not have.
    fn push(&mut self, id: i32) -> Result<String>;
    /// The rest, with U+FFFD for bytes that never became a character.
    fn finish(&mut self) -> String;
    /// Whether the token ends a turn.
    fn is_end(&self, id: i32) -> bool;
}

/// What a host can ask of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationOptions {
    /// Tokens to choose at most; 0: until something else ends it.
    pub max_tokens: usize,
    /// The generation ends where one of these texts appears, whatever the tokens' borders; the text is withheld.
    pub stop_texts: Vec<String>,
    /// The generation ends at these tokens.
    pub stop_tokens: Vec<i32>,
    /// Go on past the tokenizer's end tokens.
    pub ignore_end: bool,
    /// Begin with an event that tells the tokens the session already holds.
    pub echo: bool,
    /// How many of the likeliest tokens [`Event::top`] tells of each choice; 0: none.
    pub top_logprobs: usize,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            max_tokens: 128,
            stop_texts: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_end: false,
            echo: false,
            top_logprobs: 0,
        }
    }
}

/// Whether more events follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tokens, or text, or both; more may follow.
    Text,
    /// The last event.
    Done,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model ended its turn.
    EndToken,
    /// A stop text appeared.
    StopText,
    /// A stop token was chosen.
    StopToken,
    /// `max_tokens` were chosen.
    Length,
    /// The host cancelled, or its deadline passed.
    Cancelled,
    /// The session cannot hold the last token told.
    ContextFull,
    /// Constraint, bias and filters left no token.
    DeadEnd,
    /// The text is complete: the constraint lets nothing follow.
    Complete,
}

/// What one pull tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whether more follows.
    pub kind: Kind,
    /// The token chosen by this pull, if any, those that a constraint lets follow in any case, and with speculation the
    /// tokens chosen behind these (all tokens held, for the event of `echo`).
    pub ids: Vec<i32>,
    /// The text that is now certain; may be empty.
    pub text: String,
    /// Of the first token, as [`crate::sampler::Choice::log_probability`]; 0 without one.
    pub log_probability: f32,
    /// The likeliest tokens at that place, as the model alone sees them, likeliest first.
    pub top: Vec<Alternative>,
    /// The same of the tokens chosen behind the first.
    pub further: Vec<Place>,
    /// Why it ended, with [`Kind::Done`].
    pub reason: Option<Reason>,
}

/// A token of [`Event::ids`] that was chosen, other than the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its index in [`Event::ids`].
    pub index: usize,
    /// As [`Event::log_probability`].
    pub log_probability: f32,
    /// As [`Event::top`].
    pub top: Vec<Alternative>,
}

/// Counters of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perf {
    /// Tokens chosen.
    pub tokens: u64,
    /// Tokens decoded.
    pub decoded: u64,
    /// Time spent choosing.
    pub sample: Duration,
    /// Time spent decoding.
    pub decode: Duration,
}

/// A running generation. It borrows session and sampler for each pull only.
pub struct Generation {
    options: GenerationOptions,
    text: Option<Box<dyn Text>>,
    stop: StopTexts,
    started: bool,
    /// Told, but not yet decoded.
    pending: Vec<i32>,
    /// An end or stop token, which the session does not get.
    last: Option<i32>,
    reason: Option<Reason>,
    perf: Perf,
    step: step::Step,
    speculation: Option<Speculation>,
}

/// Text by the tokenizer of the model; special tokens have none.
struct Tokens {
    stream: TextStream,
    tokenizer: Arc<Tokenizer>,
}

impl Text for Tokens {
    fn push(&mut self, id: i32) -> Result<String> {
        self.stream.push(id).map(str::to_owned)
    }

    fn finish(&mut self) -> String {
        self.stream.finish()
    }

    fn is_end(&self, id: i32) -> bool {
        self.tokenizer.is_end(id)
    }
}

impl Generation {
    /// A generation; without a tokenizer it works on ids and every text is empty.
    ///
    /// # Errors
    /// `INVALID_ARG` for an empty stop text, or stop texts without a tokenizer.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, options: impl Borrow<GenerationOptions>) -> Result<Self> {
        let text = tokenizer.map(|tokenizer| {
            let stream = TextStream::new(&tokenizer, true);
            Box::new(Tokens { stream, tokenizer }) as Box<dyn Text>
        });
        Self::with_text(text, options.borrow())
    }

    /// A generation that reads its text from `text`; without one it works on ids and every text is empty.
    ///
    /// # Errors
    /// `INVALID_ARG` for an empty stop text, or stop texts without a `text`.
    pub fn with_text(text: Option<Box<dyn Text>>, options: &GenerationOptions) -> Result<Self> {
        if let Some(index) = options.stop_texts.iter().position(String::is_empty) {
            return Err(Error::new(
                Status::INVALID_ARG,
                format!("stop text {index}: expected at least one character, got an empty text"),
            ));
        }
        if text.is_none() && !options.stop_texts.is_empty() {
            return Err(Error::new(
                Status::INVALID_ARG,
                "stop texts need a tokenizer, and the model has none: use stop tokens",
            ));
        }
        Ok(Self {
            stop: StopTexts::new(&options.stop_texts),
            options: options.clone(),
            text,
            started: false,
            pending: Vec::new(),
            last: None,
            reason: None,
            perf: Perf::default(),
            step: step::Step::default(),
            speculation: None,
        })
    }

    /// Drafts tokens from now on and verifies several in one step. The tokens are those that would be chosen without,
    /// and nothing is drafted for a session or a sampler that cannot promise that.
    pub fn speculate(&mut self, speculation: Speculation) {
        self.speculation = Some(speculation);
    }

    /// Whether guesses go on from hidden vectors. Where the session keeps them from the beginning
    /// ([`crate::session::Session::keep_hidden`]) the prompt's are known as well.
    pub fn wants_hidden(&self) -> bool {
        self.speculation.as_ref().is_some_and(Speculation::wants_hidden)
    }

    /// What speculation did so far; `None` without.
    pub fn spec_stats(&self) -> Option<SpecStats> {
        self.speculation.as_ref().map(Speculation::stats)
    }

    /// Why it ended; `None` while it runs.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Counters so far.
    pub fn perf(&self) -> Perf {
        self.perf
    }

    /// The tokens told that the session does not hold: one that waits to be decoded, an end or stop token. A host
    /// that continues the sequence decodes them first, if it wants them.
    pub fn unheld(&self) -> impl Iterator<Item = i32> {
        self.pending.iter().copied().chain(self.last)
    }

    /// Computes the next event. After [`Kind::Done`] it tells the same end again, without ids and text.
    ///
    /// # Errors
    /// Those of the session and the sampler other than `CANCELLED`, `DEADLINE`, `CONTEXT_FULL` and `DEAD_END`, which
    /// are ends with a [`Reason`]. After an error the pull can be repeated.
    pub fn next<E: Evaluate + ?Sized>(
        &mut self,
        session: &mut E,
        sampler: &mut Sampler,
        cancel: Option<&Cancel>,
    ) -> Result<Event> {
        let rows = match self.plan(session, sampler, cancel)? {
            Plan::Tell(event) => return Ok(event),
            Plan::Run { rows } => rows,
        };
        let run = match (self.planned(), rows) {
            ([], _) => Ok(()),
            (&[id], 1) => session.decode(id, cancel),
            (ids, 1) => session.decode_all(ids, cancel),
            (ids, rows) => session.verify(ids, rows, cancel),
        };
        self.take(session, sampler, run, None, cancel)
    }

    /// Ends it here, for a host that wants no more: tells the text that was held back. The token told last stays
    /// among the unheld ones, which saves the forward pass that a pull would run for it.
    pub fn finish(&mut self) -> Event {
        match self.reason {
            Some(reason) => Event::done(reason, String::new()),
            None => self.end(Reason::Length),
        }
    }

    /// Shows the text stream what the session holds; its text if the host wants it.
    fn begin(&mut self, held: &[i32]) -> Result<Option<String>> {
        let from = if self.options.echo { 0 } else { held.len().saturating_sub(CONTEXT_TOKENS) };
        let mut before = String::new();
        if let Some(text) = &mut self.text {
            for &id in held.get(from..).unwrap_or_default() {
                before.push_str(&text.push(id)?);
            }
        }
        Ok(self.options.echo.then_some(before))
    }

    /// Whether choosing `id` ends the generation.
    fn ends(&self, id: i32) -> Option<Reason> {
        if self.options.stop_tokens.contains(&id) {
            Some(Reason::StopToken)
        } else if !self.options.ignore_end && self.text.as_ref().is_some_and(|text| text.is_end(id)) {
            Some(Reason::EndToken)
        } else {
            None
        }
    }

    /// Ends without a stop text: all text held back is told, unless its last piece completes a stop text after all.
    fn end(&mut self, reason: Reason) -> Event {
        let rest = self.text.as_mut().map(|text| text.finish()).unwrap_or_default();
        let (mut text, stopped) = self.stop.push(&rest);
        if !stopped {
            text.push_str(&self.stop.flush());
        }
        self.reason = Some(reason);
        Event::done(reason, text)
    }
}

impl Event {
    fn of(kind: Kind, text: String) -> Self {
        Self {
            kind,
            ids: Vec::new(),
            text,
            log_probability: 0.0,
            top: Vec::new(),
            further: Vec::new(),
            reason: None,
        }
    }

    fn done(reason: Reason, text: String) -> Self {
        Self { reason: Some(reason), ..Self::of(Kind::Done, text) }
    }
}
