//! One pull in its parts: what to decode, and what follows from the logits.
//!
//! ```text
//! plan   ids   [told, not held yet][draft][draft][draft]
//! run    rows                  ▼      ▼      ▼      ▼       logits behind the last id told and behind every draft
//! take   row 0 → token = draft 0? → row 1 → token = draft 1? → row 2 → another token: told, and held at the next pull
//! ```
//! A row is that of decoding one by one as long as the drafts before it are the tokens that were chosen; the first that
//! is not ends the pull, and the session goes back to what is held. The sampler chooses and accepts once for each token,
//! in order, so that drafts change no token and nothing that the sampler remembers.

use std::time::Instant;

use super::{Evaluate, Event, Generation, Kind, Place, Reason};
use crate::cancel::Cancel;
use crate::error::{Result, Status};
use crate::sampler::{self, Sampler};
use crate::session::speculative;

/// What a pull has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing: this is the event.
    Tell(Event),
    /// Append [`Generation::planned`] to the session and compute logits, then [`Generation::take`].
    Run {
        /// Behind so many of the last ids. With 1 these become the session's logits ([`crate::session::Session::logits`]),
        /// with more the session waits for [`Evaluate::keep`]. Without ids planned there is nothing to run.
        rows: usize,
    },
}

/// The step being made.
#[derive(Default)]
pub(super) struct Step {
    /// Told and not held, then drafts.
    ids: Vec<i32>,
    /// How many are drafts.
    drafts: usize,
    /// The session's place before it.
    held: u64,
    started: Option<Instant>,
    /// Drafts that were chosen.
    accepted: usize,
    /// A token was chosen that is not a draft.
    bonus: bool,
}

impl Generation {
    /// Begins a pull: says what to run. A plan that is not run can be made again.
    ///
    /// # Errors
    /// Those of the tokenizer, for ids that it does not know.
    pub fn plan<E: Evaluate + ?Sized>(
        &mut self,
        session: &E,
        sampler: &Sampler,
        cancel: Option<&Cancel>,
    ) -> Result<Plan> {
        if let Some(reason) = self.reason {
            return Ok(Plan::Tell(Event::done(reason, String::new())));
        }
        if !self.started {
            let context = self.begin(session.tokens())?;
            self.started = true;
            if let Some(text) = context {
                let ids = session.tokens().to_vec();
                return Ok(Plan::Tell(Event { ids, ..Event::of(Kind::Text, text) }));
            }
        }
        if cancel.is_some_and(|cancel| cancel.check().is_err()) {
            return Ok(Plan::Tell(self.end(Reason::Cancelled)));
        }
        self.step.held = session.position();
        self.step.ids.clear();
        self.step.ids.extend_from_slice(&self.pending);
        self.step.drafts = 0;
        self.draft(session, sampler, cancel);
        self.step.started = Some(Instant::now());
        Ok(Plan::Run { rows: self.step.drafts + 1 })
    }

    /// The ids that the plan appends; none where the session's logits are there already.
    pub fn planned(&self) -> &[i32] {
        &self.step.ids
    }

    /// Takes drafts of the plan back until there are at most `most`. Returns how many rows of logits are left.
    pub(in crate::session) fn draft_at_most(&mut self, most: usize) -> usize {
        let fewer = self.step.drafts.saturating_sub(most);
        self.step.ids.truncate(self.step.ids.len() - fewer);
        self.step.drafts -= fewer;
        if fewer > 0
            && self.step.drafts == 0
            && let Some(speculation) = &mut self.speculation
        {
            speculation.unused();
        }
        self.step.drafts + 1
    }

    /// Ends a pull: `run` is what became of the plan's step. `rows` are its logits, `[rows, vocab]`, where they are not
    /// in the session as behind [`Evaluate::decode`] or [`Evaluate::verify`]. Where a step with drafts failed, the
    /// tokens that were told are decoded without them; where they found no room in a batch, by the session alone, which
    /// may let others go for them ([`crate::session::Overflow`]).
    ///
    /// # Errors
    /// As [`Generation::next`].
    pub fn take<E: Evaluate + ?Sized>(
        &mut self,
        session: &mut E,
        sampler: &mut Sampler,
        run: Result<()>,
        rows: Option<&[f32]>,
        cancel: Option<&Cancel>,
    ) -> Result<Event> {
        let ran = run.is_ok();
        if self.wants_hidden() {
            session.keep_hidden();
        }
        if let Some(reason) = self.settle(session, run, cancel)? {
            return Ok(self.end(reason));
        }
        let rows = rows.filter(|_| ran);
        let clock = Instant::now();
        let held = session.tokens().len().saturating_sub(self.step.drafts);
        let mut event = Event::of(Kind::Text, String::new());
        let place = session.position().saturating_sub(self.step.drafts as u64);
        let outcome = self.choose(session, place, rows, sampler, &mut event);
        self.perf.sample += clock.elapsed();
        if self.step.drafts > 0 {
            let used = self.step.accepted;
            session.keep(held + used, rows.map(|rows| self.row(rows, used)))?;
            self.perf.decoded += used as u64;
            if let Some(speculation) = &mut self.speculation {
                speculation.verified(self.step.drafts, used, self.step.bonus);
            }
        }
        let Some(reason) = outcome? else { return Ok(event) };
        // The session gets the token that completed the text, like those before it. Where it cannot take it, for
        // whatever reason, the token stays among the unheld ones: the text is complete all the same.
        self.advance(session, cancel).ok();
        if reason == Reason::StopText {
            self.reason = Some(reason);
        } else {
            event.text.push_str(&self.end(reason).text);
        }
        event.kind = Kind::Done;
        event.reason = Some(reason);
        Ok(event)
    }

    /// Appends drafts to the step, as many as can be verified and told.
    fn draft<E: Evaluate + ?Sized>(&mut self, session: &E, sampler: &Sampler, cancel: Option<&Cancel>) {
        let Some(speculation) = &mut self.speculation else { return };
        // One more than the drafts is told, so the last token told is never a draft.
        let tell = match self.options.max_tokens as u64 {
            0 => usize::MAX,
            most => most.saturating_sub(self.perf.tokens).saturating_sub(1) as usize,
        };
        let most = tell.min(session.verifiable().saturating_sub(self.pending.len()));
        if self.pending.is_empty() || most == 0 || !sampler.is_pure() {
            return;
        }
        let told = self.step.ids.len();
        let at = speculative::Place {
            held: session.tokens(),
            pending: &self.pending,
            dropped: (session.position() as usize).saturating_sub(session.tokens().len()),
            sampler,
            hidden: session.hidden(),
            cancel,
        };
        speculation.propose(&at, most, &mut self.step.ids);
        // An end token need not be decoded to be chosen.
        let ends = self.step.ids[told..].iter().position(|&id| id < 0 || self.ends(id).is_some());
        self.step.ids.truncate(told + ends.unwrap_or(most).min(most));
        self.step.drafts = self.step.ids.len() - told;
    }

    /// Counts what the session holds behind the step; the reason to end, if it could not hold what was told.
    fn settle<E: Evaluate + ?Sized>(
        &mut self,
        session: &mut E,
        mut run: Result<()>,
        cancel: Option<&Cancel>,
    ) -> Result<Option<Reason>> {
        let elapsed = |step: &Step| step.started.map(|at| at.elapsed()).unwrap_or_default();
        let ended = |e: &crate::Error| matches!(e.status(), Status::CANCELLED | Status::DEADLINE);
        if self.step.drafts > 0 {
            if let Err(e) = &run {
                let drafts = std::mem::take(&mut self.step.drafts);
                if let Some(speculation) = &mut self.speculation {
                    speculation.failed(drafts);
                }
                if !ended(e) {
                    run = session.decode_all(&self.pending, cancel);
                }
            } else if let Some(speculation) = &mut self.speculation {
                speculation.ran(self.step.drafts + self.pending.len(), elapsed(&self.step));
            }
        } else if !self.pending.is_empty()
            && run.as_ref().is_err_and(|e| e.status() == Status::CONTEXT_FULL)
            && session.position() == self.step.held
        {
            // As many as there is room for. A session may make some, which a batch does not.
            run = session.decode_all(&self.pending, cancel);
        } else if let (Ok(()), Some(speculation), [_]) = (&run, &mut self.speculation, &self.pending[..]) {
            speculation.plain(elapsed(&self.step));
        }
        self.perf.decode += elapsed(&self.step);
        self.hold(session, self.step.held);
        match run {
            Ok(()) => Ok(None),
            Err(e) if ended(&e) => Ok(Some(Reason::Cancelled)),
            Err(e) if e.status() == Status::CONTEXT_FULL => Ok(Some(Reason::ContextFull)),
            Err(e) => Err(e),
        }
    }

    /// Of several tokens told the first ones may be held although the last ones cannot be.
    fn hold<E: Evaluate + ?Sized>(&mut self, session: &E, before: u64) {
        let held = (session.position().saturating_sub(before) as usize).min(self.pending.len());
        self.pending.drain(..held);
        self.perf.decoded += held as u64;
    }

    /// Decodes what was told and is not held.
    fn advance<E: Evaluate + ?Sized>(&mut self, session: &mut E, cancel: Option<&Cancel>) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (clock, before) = (Instant::now(), session.position());
        let run = session.decode_all(&self.pending, cancel);
        self.perf.decode += clock.elapsed();
        self.hold(session, before);
        run
    }

    /// Chooses tokens as long as they are the drafts that the session holds from `place` on, and one more.
    fn choose<E: Evaluate + ?Sized>(
        &mut self,
        session: &E,
        place: u64,
        rows: Option<&[f32]>,
        sampler: &mut Sampler,
        event: &mut Event,
    ) -> Result<Option<Reason>> {
        (self.step.accepted, self.step.bonus) = (0, false);
        loop {
            let row = self.step.accepted;
            let logits = match rows {
                Some(rows) => Ok(self.row(rows, row)),
                None if self.step.drafts > 0 => session.row(row),
                None => session.logits(),
            };
            let position = place + row as u64;
            match logits.and_then(|logits| self.choose_one(logits, position, sampler, event)) {
                Ok(None) if self.pending.is_empty() => {}
                // What was told must come out; the next pull meets the error again.
                Err(_) if !event.ids.is_empty() => return Ok(None),
                outcome => return outcome,
            }
        }
    }

    /// Row `row` of a step's logits.
    fn row<'a>(&self, rows: &'a [f32], row: usize) -> &'a [f32] {
        let vocab = rows.len() / (self.step.drafts + 1);
        rows.get(row * vocab..(row + 1) * vocab).unwrap_or_default()
    }

    /// Chooses a token and tells it, with the tokens that follow it in any case. Those are told at once; they are the
    /// tokens that would have been chosen one by one.
    fn choose_one(
        &mut self,
        logits: &[f32],
        position: u64,
        sampler: &mut Sampler,
        event: &mut Event,
    ) -> Result<Option<Reason>> {
        if self.remaining() == 0 {
            return Ok(Some(Reason::Length));
        }
        if sampler.is_complete() {
            return Ok(Some(Reason::Complete));
        }
        let choice = match sampler.sample(logits, position) {
            Err(e) if e.status() == Status::DEAD_END => return Ok(Some(Reason::DeadEnd)),
            choice => choice?,
        };
        let top = match self.options.top_logprobs {
            0 => Vec::new(),
            n => sampler::top(logits, n)?,
        };
        // Before accepting: an id without text must leave the sampler as it was.
        let ends = self.ends(choice.id);
        let piece = match (&mut self.text, ends) {
            (Some(text), None) => text.push(choice.id)?,
            _ => String::new(),
        };
        sampler.accept(choice.id)?;
        self.perf.tokens += 1;
        if event.ids.is_empty() {
            event.log_probability = choice.log_probability;
            event.top = top;
        } else {
            let index = event.ids.len();
            event.further.push(Place { index, log_probability: choice.log_probability, top });
        }
        event.ids.push(choice.id);
        if ends.is_some() {
            self.step.bonus = true;
            self.last = Some(choice.id);
            return Ok(ends);
        }
        self.step.bonus |= !self.place(choice.id);
        let mut stopped = self.tell(&piece, event);
        let mut ended = false;
        // An error here is met again by the next choice.
        for next in sampler.forced().unwrap_or_default().into_iter().take(self.remaining()) {
            ended = self.ends(next).is_some();
            if stopped || ended {
                break;
            }
            let Ok(piece) = self.text.as_mut().map_or(Ok(String::new()), |text| text.push(next)) else {
                break;
            };
            if sampler.accept(next).is_err() {
                break;
            }
            self.perf.tokens += 1;
            event.ids.push(next);
            self.place(next);
            stopped = self.tell(&piece, event);
        }
        Ok(if stopped {
            Some(Reason::StopText)
        } else {
            (!ended && sampler.is_complete()).then_some(Reason::Complete)
        })
    }

    /// Tokens that may still be told.
    fn remaining(&self) -> usize {
        match self.options.max_tokens as u64 {
            0 => usize::MAX,
            most => most.saturating_sub(self.perf.tokens) as usize,
        }
    }

    /// Adds what is certain of the text; whether a stop text is complete.
    fn tell(&mut self, piece: &str, event: &mut Event) -> bool {
        let (text, stopped) = self.stop.push(piece);
        event.text.push_str(&text);
        stopped
    }

    /// Whether the session holds a token just accepted, as the next draft; else it has to be decoded.
    fn place(&mut self, id: i32) -> bool {
        let drafts = &self.step.ids[self.step.ids.len() - self.step.drafts..];
        let held = self.pending.is_empty() && drafts.get(self.step.accepted) == Some(&id);
        if held {
            self.step.accepted += 1;
        } else {
            self.pending.push(id);
        }
        held
    }
}
