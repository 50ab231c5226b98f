//! Generation: the loop of sample, accept, decode, and what a host sees of it.
//!
//! ```text
//! pull ─→ decode the token told last ─→ sample ─→ accept ─→ whole characters ─→ stop texts ─→ event
//! ```
//!
//! Each pull computes one token and tells it at once; the token is decoded at the next pull, so that nobody waits
//! for a forward pass to see a token that is already known. When [`Event::kind`] is [`Kind::Done`]:
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

mod stop;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::sampler::{self, Alternative, Sampler};
use crate::tokenizer::{TextStream, Tokenizer};
use stop::StopTexts;

/// How many of the session's last tokens the text stream is shown first, so that the text goes on as that of the
/// whole sequence would: enough for the leading space of a first word and for a character begun in the prompt.
const CONTEXT_TOKENS: usize = 16;

/// What a generation does with a session.
pub trait Evaluate {
    /// The tokens held, in order.
    fn tokens(&self) -> &[i32];
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
    /// The token chosen by this pull, if any, and those that a constraint lets follow in any case (all tokens held, for
    /// the event of `echo`).
    pub ids: Vec<i32>,
    /// The text that is now certain; may be empty.
    pub text: String,
    /// Of the first token, as [`crate::sampler::Choice::log_probability`]; 0 without one.
    pub log_probability: f32,
    /// The likeliest tokens at that place, as the model alone sees them, likeliest first.
    pub top: Vec<Alternative>,
    /// Why it ended, with [`Kind::Done`].
    pub reason: Option<Reason>,
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
        })
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
        if let Some(reason) = self.reason {
            return Ok(Event::done(reason, String::new()));
        }
        if !self.started {
            let context = self.begin(session.tokens())?;
            self.started = true;
            if let Some(text) = context {
                let ids = session.tokens().to_vec();
                return Ok(Event { ids, ..Event::of(Kind::Text, text) });
            }
        }
        if let Some(reason) = self.advance(session, cancel)? {
            return Ok(self.end(reason));
        }
        if self.options.max_tokens > 0 && self.perf.tokens >= self.options.max_tokens as u64 {
            return Ok(self.end(Reason::Length));
        }

        if sampler.is_complete() {
            return Ok(self.end(Reason::Complete));
        }

        let clock = Instant::now();
        let position = session.tokens().len() as u64;
        let logits = session.logits()?;
        let choice = match sampler.sample(logits, position) {
            Err(e) if e.status() == Status::DEAD_END => return Ok(self.end(Reason::DeadEnd)),
            choice => choice?,
        };
        let top = match self.options.top_logprobs {
            0 => Vec::new(),
            n => sampler::top(logits, n)?,
        };
        // Before accepting: an id without text must leave the sampler as it was.
        let ends = self.ends(choice.id);
        let text = match (&mut self.text, ends) {
            (Some(text), None) => text.push(choice.id)?,
            _ => String::new(),
        };
        sampler.accept(choice.id)?;
        self.perf.sample += clock.elapsed();
        self.perf.tokens += 1;

        let mut event = if let Some(reason) = ends {
            self.last = Some(choice.id);
            self.end(reason)
        } else {
            self.take(choice.id, &text, session, sampler, cancel)?
        };
        event.ids.insert(0, choice.id);
        event.log_probability = choice.log_probability;
        event.top = top;
        Ok(event)
    }

    /// The event of a token that was accepted and does not end the generation by itself, with the tokens that follow it
    /// in any case. Those are told at once and decoded together with it at the next pull; they are the tokens that
    /// would have been chosen one by one.
    fn take<E: Evaluate + ?Sized>(
        &mut self,
        id: i32,
        text: &str,
        session: &mut E,
        sampler: &mut Sampler,
        cancel: Option<&Cancel>,
    ) -> Result<Event> {
        self.pending.push(id);
        let (mut text, mut stopped) = self.stop.push(text);
        let mut event = Event::of(Kind::Text, String::new());
        let mut ended = None;
        let room = match self.options.max_tokens as u64 {
            0 => usize::MAX,
            most => most.saturating_sub(self.perf.tokens) as usize,
        };
        for next in sampler.forced()?.into_iter().take(room) {
            ended = self.ends(next);
            if stopped || ended.is_some() {
                break;
            }
            let piece = self.text.as_mut().map_or(Ok(String::new()), |text| text.push(next))?;
            sampler.accept(next)?;
            self.perf.tokens += 1;
            event.ids.push(next);
            self.pending.push(next);
            let (more, now) = self.stop.push(&piece);
            text.push_str(&more);
            stopped = now;
        }
        if stopped || (ended.is_none() && sampler.is_complete()) {
            // The session gets the token that completed the text, like those before it. Where it cannot take it, for
            // whatever reason, the token stays among the unheld ones: the text is complete all the same.
            self.advance(session, cancel).ok();
            if stopped {
                self.reason = Some(Reason::StopText);
                event.reason = self.reason;
                event.kind = Kind::Done;
            } else {
                let ids = std::mem::take(&mut event.ids);
                event = self.end(Reason::Complete);
                text.push_str(&event.text);
                event.ids = ids;
            }
        }
        event.text = text;
        Ok(event)
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

    /// Decodes the token told last; the reason to end, if it could not be.
    fn advance<E: Evaluate + ?Sized>(
        &mut self,
        session: &mut E,
        cancel: Option<&Cancel>,
    ) -> Result<Option<Reason>> {
        if let Some(cancel) = cancel
            && cancel.check().is_err()
        {
            return Ok(Some(Reason::Cancelled));
        }
        if self.pending.is_empty() {
            return Ok(None);
        }
        let clock = Instant::now();
        let before = session.tokens().len();
        let outcome = match self.pending[..] {
            [id] => session.decode(id, cancel),
            _ => session.decode_all(&self.pending, cancel),
        };
        self.perf.decode += clock.elapsed();
        // Of several tokens the first ones may be held although the last ones cannot be.
        let held = session.tokens().len().saturating_sub(before).min(self.pending.len());
        self.pending.drain(..held);
        self.perf.decoded += held as u64;
        match outcome {
            Ok(()) => Ok(None),
            Err(e) => match e.status() {
                Status::CANCELLED | Status::DEADLINE => Ok(Some(Reason::Cancelled)),
                Status::CONTEXT_FULL => Ok(Some(Reason::ContextFull)),
                _ => Err(e),
            },
        }
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
        Self { kind, ids: Vec::new(), text, log_probability: 0.0, top: Vec::new(), reason: None }
    }

    fn done(reason: Reason, text: String) -> Self {
        Self { reason: Some(reason), ..Self::of(Kind::Done, text) }
    }
}
