//! One request on its way: what it still has to run, and what its generation makes of that.

use super::{Ended, Event, Generation, Kind, Plan, Progress, Request, RequestId, Update};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::sampler::Sampler;
use crate::session::generate::Evaluate;
use crate::session::{Session, SessionOptions};

/// What an item does in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Part {
    /// Nothing.
    #[default]
    Rest,
    /// So many tokens of its goal.
    Prompt(usize),
    /// What its generation planned, with so many rows of logits.
    Decode(usize),
}

/// A request.
pub(super) struct Item {
    pub(super) id: RequestId,
    pub(super) priority: i32,
    pub(super) cancel: Option<Cancel>,
    pub(super) options: SessionOptions,
    /// Made when it is first admitted.
    pub(super) session: Option<Session>,
    /// Tokens that the session holds before the generation goes on: all of its prompt, or all it held once.
    pub(super) goal: Vec<i32>,
    /// Of those, tokens that the session held once, whatever became of their pages.
    once: usize,
    /// Of those, tokens that were found in the pool.
    reused: usize,
    sampler: Sampler,
    pub(super) generation: Generation,
    pub(super) part: Part,
}

/// A session before there is one.
struct Nothing;

impl Evaluate for Nothing {
    fn tokens(&self) -> &[i32] {
        &[]
    }

    fn logits(&self) -> Result<&[f32]> {
        Err(Error::new(Status::BAD_STATE, "the request has not begun"))
    }

    fn decode(&mut self, _: i32, _: Option<&Cancel>) -> Result<()> {
        Err(Error::new(Status::BAD_STATE, "the request has not begun"))
    }
}

/// Puts an item into a list by rank: higher priorities first, then those that came first.
pub(super) fn insert(list: &mut Vec<Item>, item: Item) {
    let at = list.partition_point(|other| other.rank() < item.rank());
    list.insert(at, item);
}

/// Empties a session that will hold the same tokens again. Noise belongs to a token's place among all there were.
fn empty(session: &mut Session) {
    let dropped = session.dropped;
    session.reset();
    session.dropped = dropped;
}

impl Item {
    pub(super) fn new(id: RequestId, request: Request) -> Self {
        let Request { prompt, mut session, options, sampler, generation, priority, cancel } = request;
        let mut goal = session.as_ref().map_or(Vec::new(), |session| session.tokens().to_vec());
        goal.extend(prompt);
        let once = session.as_ref().map_or(0, Session::len);
        if let Some(session) = session.as_mut().filter(|session| session.missing > 0) {
            // What windows have let go runs again in chunks like a prompt.
            session.forget_missing();
        }
        Self {
            id,
            priority,
            cancel,
            options,
            session,
            goal,
            once,
            reused: 0,
            sampler,
            generation,
            part: Part::Rest,
        }
    }

    /// The lower goes first.
    fn rank(&self) -> (std::cmp::Reverse<i32>, RequestId) {
        (std::cmp::Reverse(self.priority), self.id)
    }

    /// Tokens it holds.
    pub(super) fn held(&self) -> usize {
        self.session.as_ref().map_or(0, Session::len)
    }

    /// Tokens it has to hold, as far as is known.
    pub(super) fn length(&self) -> usize {
        self.held().max(self.goal.len())
    }

    /// What it has to run before its generation goes on.
    pub(super) fn todo(&self) -> &[i32] {
        self.goal.get(self.held()..).unwrap_or_default()
    }

    /// Rows of its part.
    pub(super) fn rows(&self) -> usize {
        match self.part {
            Part::Rest => 0,
            Part::Prompt(n) => n,
            Part::Decode(_) => self.generation.planned().len(),
        }
    }

    /// Drafts among its rows.
    pub(super) fn drafts(&self) -> usize {
        match self.part {
            Part::Decode(rows) => rows.saturating_sub(1),
            Part::Rest | Part::Prompt(_) => 0,
        }
    }

    /// Runs at most `most` drafts. Returns how many it runs.
    pub(super) fn draft_at_most(&mut self, most: usize) -> usize {
        if self.drafts() > most {
            self.part = Part::Decode(self.generation.draft_at_most(most));
        }
        self.drafts()
    }

    /// Makes sure of pages for what was told, where there are none for the drafts behind it: its part of the step then
    /// fails, and its generation decodes without them. Returns whether that helps.
    pub(super) fn reserve_told(&mut self) -> bool {
        let Part::Decode(rows) = self.part else { return false };
        let told = (self.generation.planned().len() + 1).saturating_sub(rows);
        rows > 1 && self.session.as_mut().is_some_and(|session| session.reserve(told).is_ok())
    }

    /// How many tokens of its goal it runs where `most` may be: up to the end of a page, so that it can go on with pages
    /// that another session makes meanwhile.
    pub(super) fn chunk(&self, most: usize, page: usize) -> usize {
        let (held, todo) = (self.held(), self.todo().len());
        if most >= todo {
            return todo;
        }
        match ((held + most) / page * page).checked_sub(held) {
            None | Some(0) => most,
            Some(n) => n,
        }
    }

    /// Goes on with pages that the pool has, all but the last token, whose logits are wanted.
    pub(super) fn reuse(&mut self) -> Result<()> {
        let (held, end) = (self.held(), self.goal.len().saturating_sub(1));
        if let (Some(session), Some(ids)) = (&mut self.session, self.goal.get(held..end)) {
            self.reused += session.reuse(ids)?;
        }
        Ok(())
    }

    /// Gives back the pages that it found, or all it has. Returns whether there were any.
    pub(super) fn let_go(&mut self) -> bool {
        let Some(session) = self.session.as_mut().filter(|s| !s.is_empty() && !s.is_swapped_out()) else {
            return false;
        };
        if self.reused >= session.len() {
            // They stay where they can be found.
            self.reused = 0;
            empty(session);
        } else {
            self.preempt();
        }
        true
    }

    /// Gives its pages up. Returns whether they are kept beside the pool.
    pub(super) fn preempt(&mut self) -> bool {
        self.part = Part::Rest;
        let Some(session) = &mut self.session else { return false };
        if session.swap_out().is_ok() {
            return true;
        }
        if session.len() >= self.goal.len() {
            self.goal = session.tokens().to_vec();
        }
        self.once = self.once.max(session.len());
        self.reused = 0;
        empty(session);
        false
    }

    /// What its generation runs next, as rows of logits; `None` where it has ended. Events that need no step are told.
    pub(super) fn plan(&mut self, updates: &mut Vec<Update>) -> Result<Option<usize>> {
        loop {
            let Some(session) = &mut self.session else { return Ok(None) };
            let cancel = self.cancel.as_ref();
            let event = match self.generation.plan(session, &self.sampler, cancel)? {
                Plan::Tell(event) => event,
                Plan::Run { rows } if !self.generation.planned().is_empty() => return Ok(Some(rows)),
                Plan::Run { .. } => self.generation.take(session, &mut self.sampler, Ok(()), None, cancel)?,
            };
            if !self.event(event, updates) {
                return Ok(None);
            }
        }
    }

    /// Ends its part of a step. Returns whether more follows.
    pub(super) fn take(
        &mut self,
        run: Result<()>,
        rows: Option<&[f32]>,
        updates: &mut Vec<Update>,
    ) -> Result<bool> {
        let Some(session) = &mut self.session else { return Ok(false) };
        let event = self.generation.take(session, &mut self.sampler, run, rows, self.cancel.as_ref())?;
        Ok(self.event(event, updates))
    }

    /// A part of its goal was run; behind all of it the first token is chosen at once. Returns whether more follows.
    pub(super) fn advanced(&mut self, updates: &mut Vec<Update>) -> Result<bool> {
        let progress = Progress { done: self.held(), reused: self.reused, total: self.goal.len() };
        updates.push(Update::Progress(self.id, progress));
        if self.todo().is_empty() { self.plan(updates).map(|rows| rows.is_some()) } else { Ok(true) }
    }

    fn event(&self, event: Event, updates: &mut Vec<Update>) -> bool {
        let more = event.kind != Kind::Done;
        updates.push(Update::Event(self.id, event));
        more
    }

    /// Ends it because its host said so.
    pub(super) fn cancelled(mut self, updates: &mut Vec<Update>) {
        // The generation tells its end by itself. One that never began has nothing to tell but that.
        let ended = if self.session.is_some() && self.todo().is_empty() {
            self.plan(updates).map(drop)
        } else {
            self.nothing(updates)
        };
        self.ended(ended.err(), updates);
    }

    fn nothing(&mut self, updates: &mut Vec<Update>) -> Result<()> {
        while let Plan::Tell(event) = self.generation.plan(&Nothing, &self.sampler, self.cancel.as_ref())? {
            if !self.event(event, updates) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn ended(self, error: Option<Error>, updates: &mut Vec<Update>) {
        let id = self.id;
        updates.push(Update::Ended(id, Box::new(self.end(error))));
    }

    pub(super) fn end(mut self, error: Option<Error>) -> Ended {
        if let Some(session) = &mut self.session {
            session.unreserve();
            // What was not computed again yet runs again with the next call, wherever that is.
            session.miss(self.goal.get(session.len()..self.once).unwrap_or_default());
        }
        Ended { session: self.session, sampler: self.sampler, generation: self.generation, error }
    }
}
