//! A scheduler for servers: many requests over one pool of pages, one step of all that run at a time.
//!
//! ```text
//! submit ─▶ queue, by priority and arrival ──pages are there──▶ running ──last event──▶ ended
//!               ▲                                                  │
//!               └────────── preempted: pages swapped out, or dropped and computed again
//!
//! step = [a token of each that generates][a chunk of prompts, shared fairly] in one forward pass
//! ```
//! Everything that generates has a part in every step and all prompts together have at most one chunk of it, so nobody's
//! next token waits for more than that. What a request is told is what it would be told alone, to the bit: a step changes
//! nothing of what a session computes, and neither does being out for a while.
//!
//! It has no thread: a server calls [`Scheduler::step`] while there is work, and submits and removes in between. It does
//! not know text, tokenizers or connections; [`Generation`] does the talking.

mod item;
mod room;

use super::batch::{Batch, Slot, Want};
use super::generate::{Event, Generation, Kind, Plan};
use super::{Overflow, Progress, Session, SessionOptions, check_vocab};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::kv::KvPool;
use crate::kv::shape::PageShape;
use crate::sampler::Sampler;
use item::{Item, Part};
use llm_format::order;
use llm_kernels::Level;

/// How much is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleOptions {
    /// Tokens of prompts in a step, all requests together: the longest that a running generation waits between two of
    /// its tokens is a step with so many rows more.
    pub chunk: usize,
    /// Rows of a step: its tokens of prompts, its tokens of generations and their drafts. Generations go first; prompts
    /// have one row at least.
    pub rows: usize,
    /// Requests that run at once.
    pub sessions: usize,
    /// Requests that may wait; more are refused.
    pub waiting: usize,
    /// How far results agree; that of all sessions.
    pub determinism: Level,
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self { chunk: 256, rows: 512, sessions: 64, waiting: 1024, determinism: Level::default() }
    }
}

/// What shall be done.
pub struct Request {
    /// Tokens to append before the generation begins. May be empty for a session that has logits.
    pub prompt: Vec<i32>,
    /// A session of the scheduler's pool to go on with; none: an empty one of `options`.
    pub session: Option<Session>,
    /// What a new session shall be; its level is the scheduler's.
    pub options: SessionOptions,
    /// Chooses the tokens. What it shall know of the prompt it knows already ([`Sampler::accept_prompt`]).
    pub sampler: Sampler,
    /// What is told, and when it ends.
    pub generation: Generation,
    /// Requests of higher priority go first, and take the pages of lower ones where there are not enough.
    pub priority: i32,
    /// Ends the request, also while it waits, with an event as [`Generation::next`] has it.
    pub cancel: Option<Cancel>,
}

/// Names a request of a scheduler; later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// A request that was not taken, and why.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// As it was given.
    pub request: Box<Request>,
}

/// What a request leaves.
pub struct Ended {
    /// Its session, as the generation left it; none where it never ran. Its pages may be out, or dropped: tokens without
    /// pages run again with its next call. Pages that are there are the host's from now on: a server that keeps sessions
    /// swaps them out, or requests may end with `KV_FULL`.
    pub session: Option<Session>,
    /// Its sampler.
    pub sampler: Sampler,
    /// Its generation.
    pub generation: Generation,
    /// Why it could not be done, unless it ended with its last event.
    pub error: Option<Error>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prompt, session, priority, .. } = self;
        write!(f, "Request({} tokens behind {session:?}, priority {priority})", prompt.len())
    }
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ended({:?}, {:?}, {:?})", self.session, self.generation.reason(), self.error)
    }
}

/// What a step tells of a request.
#[derive(Debug)]
pub enum Update {
    /// A part of its prompt was run. `total` are the tokens before its next event, of which `reused` were found.
    Progress(RequestId, Progress),
    /// An event of its generation.
    Event(RequestId, Event),
    /// Nothing more follows: its parts back.
    Ended(RequestId, Box<Ended>),
}

/// Counters since the start, and how many there are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScheduleStats {
    /// Requests that wait, the preempted ones among them.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// Steps that ran something.
    pub steps: u64,
    /// Tokens of prompts that were run, those computed again among them.
    pub prompt_rows: u64,
    /// Tokens of generations that were run, drafts among them.
    pub decode_rows: u64,
    /// Preemptions whose pages were kept beside the pool.
    pub swapped: u64,
    /// Preemptions whose pages were dropped, to be computed again.
    pub dropped: u64,
}

/// Requests, waiting and running.
pub struct Scheduler {
    pool: KvPool,
    options: ScheduleOptions,
    batch: Batch,
    /// By rank, the first first.
    queue: Vec<Item>,
    /// By rank, the first first.
    running: Vec<Item>,
    /// What a page holds, and which ones a sequence keeps.
    shape: PageShape,
    next: u64,
    /// The request that found no pages, and how many there were then.
    blocked: Option<(RequestId, u64)>,
    stats: ScheduleStats,
    /// Told, and not yet taken: a step failed.
    updates: Vec<Update>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scheduler({} running, {} waiting, {:?})", self.running.len(), self.queue.len(), self.pool)
    }
}

impl Scheduler {
    /// For sessions of `pool`.
    ///
    /// # Errors
    /// `INVALID_ARG` for a chunk or a number of sessions of 0, or fewer rows than sessions; `BUDGET`.
    pub fn new(pool: &KvPool, options: ScheduleOptions) -> Result<Self> {
        let ScheduleOptions { chunk, rows, sessions, .. } = options;
        if chunk == 0 || sessions == 0 || rows < sessions {
            let message = format!(
                "a scheduler needs a chunk and sessions of 1 or more and as many rows as sessions; got {chunk}, \
                 {sessions} and {rows}"
            );
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        Ok(Self {
            batch: Batch::new(pool)?,
            shape: pool.lock().store().shape().clone(),
            pool: pool.clone(),
            options,
            queue: Vec::new(),
            running: Vec::new(),
            next: 0,
            blocked: None,
            stats: ScheduleStats::default(),
            updates: Vec::new(),
        })
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// `BUSY` where as many wait as may; `INVALID_ARG` for a session of another pool, of another level, with a running
    /// rotary length, with an [`Overflow`] other than an error or with keys that one has moved, for ids outside the
    /// vocabulary, and without anything to go on from; `CONTEXT_FULL` for a prompt that the session cannot hold; `KV_FULL`
    /// for one that all pages of the pool cannot hold.
    pub fn submit(&mut self, mut request: Request) -> Result<RequestId, Box<Refused>> {
        request.options.determinism = self.options.determinism;
        if let Err(error) = self.check(&request) {
            return Err(Box::new(Refused { error, request: Box::new(request) }));
        }
        let id = RequestId(self.next);
        self.next += 1;
        let item = Item::new(id, request);
        item::insert(&mut self.queue, item);
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<()> {
        if self.queue.len() >= self.options.waiting {
            let message = format!("{} requests wait already: try again later", self.queue.len());
            return Err(Error::new(Status::BUSY, message));
        }
        let invalid = |what: &str| Err(Error::new(Status::INVALID_ARG, what));
        let options = request.session.as_ref().map_or(&request.options, |session| &session.options);
        if options.rope_running {
            return invalid("a session whose rotary scaling follows a running length cannot be scheduled");
        }
        if options.overflow != Overflow::Error {
            return invalid(
                "a session that lets tokens go where they do not fit cannot be scheduled: a step makes no room; take \
                 Overflow::Error",
            );
        }
        let (held, capacity) = match &request.session {
            Some(session) => {
                session.check_ids(&request.prompt)?;
                if !session.pool.is(&self.pool) {
                    return invalid("a session of another pool cannot be scheduled here");
                }
                if session.options.determinism != self.options.determinism {
                    return invalid("a session of another determinism level cannot be scheduled here");
                }
                if session.moved_from.is_some() {
                    return invalid(
                        "a session whose keys were moved cannot be scheduled: nothing computes them again",
                    );
                }
                if request.prompt.is_empty() && session.logits().is_err() {
                    return invalid("without a prompt a request needs a session with logits");
                }
                (session.len(), session.capacity)
            }
            None => {
                check_vocab(self.pool.model().spec().vocab, &request.prompt)?;
                if request.prompt.is_empty() {
                    return invalid("without a session a request needs a prompt");
                }
                (0, Session::check_options(self.pool.model(), &request.options)?)
            }
        };
        let needed = held + request.prompt.len();
        if needed > capacity {
            let message = format!("{needed} tokens do not fit: the session holds at most {capacity}");
            return Err(Error::new(Status::CONTEXT_FULL, message).with("needed", needed as i64));
        }
        let pages = self.shape.held(needed, self.options.chunk) as u64;
        let total = self.pool.stats().total;
        if pages > total {
            let message = format!("{needed} tokens take {pages} pages; the pool has {total}");
            return Err(Error::new(Status::KV_FULL, message).with("needed", pages as i64));
        }
        Ok(())
    }

    /// Takes a request out, wherever it is; `None` if there is none of that name (any more).
    pub fn remove(&mut self, id: RequestId) -> Option<Ended> {
        let lists = [&mut self.queue, &mut self.running];
        let found = lists.into_iter().find_map(|list| {
            let at = list.iter().position(|item| item.id == id)?;
            Some(list.remove(at))
        });
        found.map(|item| item.end(None))
    }

    /// Whether there is nothing to do, and nothing left to tell of a step that failed.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.updates.is_empty()
    }

    /// Counters.
    pub fn stats(&self) -> ScheduleStats {
        ScheduleStats { waiting: self.queue.len(), running: self.running.len(), ..self.stats }
    }

    /// Runs one step: a token of every generation that runs and a chunk of prompts. A request that fails ends with its
    /// error and touches no other.
    ///
    /// # Errors
    /// `CANCELLED`, `DEADLINE` of `cancel`, `NO_MEMORY`, `BUDGET` of the step as a whole: nothing of it ran, the next one
    /// begins where this one did and tells what this one had to tell.
    pub fn step(&mut self, cancel: Option<&Cancel>) -> Result<Vec<Update>> {
        let mut updates = std::mem::take(&mut self.updates);
        self.end_cancelled(&mut updates);
        self.admit(&mut updates);
        self.plan(&mut updates);
        self.limit_drafts();
        self.share();
        self.make_room(&mut updates);
        match self.run(cancel) {
            Ok(()) => {
                self.tell(&mut updates);
                Ok(updates)
            }
            Err(e) => {
                self.updates = updates;
                Err(e)
            }
        }
    }

    /// Ends what its host cancelled.
    fn end_cancelled(&mut self, updates: &mut Vec<Update>) {
        let cancelled = |item: &Item| item.cancel.as_ref().is_some_and(|cancel| cancel.check().is_err());
        for list in [&mut self.queue, &mut self.running] {
            for item in list.extract_if(.., |item| cancelled(item)) {
                item.cancelled(updates);
            }
        }
    }

    /// Asks every generation that is past its prompt what it runs.
    fn plan(&mut self, updates: &mut Vec<Update>) {
        for mut item in std::mem::take(&mut self.running) {
            item.part = Part::Rest;
            if !item.todo().is_empty() {
                self.running.push(item);
                continue;
            }
            match item.plan(updates) {
                Ok(Some(rows)) => {
                    item.part = Part::Decode(rows);
                    self.running.push(item);
                }
                Ok(None) => item.ended(None, updates),
                Err(e) => item.ended(Some(e), updates),
            }
        }
    }

    /// Takes drafts back where the step has not rows enough for all of them, from those who have most.
    fn limit_drafts(&mut self) {
        let told: usize = self.running.iter().map(|item| item.rows() - item.drafts()).sum();
        let prompt = usize::from(self.running.iter().any(|item| !item.todo().is_empty()));
        let mut left = self.options.rows.saturating_sub(told + prompt);
        let mut drafting: Vec<_> = self.running.iter_mut().filter(|item| item.drafts() > 0).collect();
        order::by_number(&mut drafting, |item| item.drafts() as u64);
        for (i, item) in (1..=drafting.len()).rev().zip(drafting) {
            left -= item.draft_at_most(left.div_ceil(i));
        }
    }

    /// Shares the step's chunk among the prompts: higher priorities first, equal ones in equal parts, and what the short
    /// ones leave goes to the long ones.
    fn share(&mut self) {
        let decodes: usize = self.running.iter().map(Item::rows).sum();
        let mut left = self.options.chunk.min(self.options.rows.saturating_sub(decodes)).max(1);
        let turn = self.stats.steps as usize;
        for group in self.running.chunk_by_mut(|a, b| a.priority == b.priority) {
            let mut prompts: Vec<_> = group.iter_mut().filter(|item| !item.todo().is_empty()).collect();
            if prompts.is_empty() {
                continue;
            }
            // Where there is less than a token for each, they take turns, however long they are.
            let first = turn % prompts.len();
            prompts.rotate_left(first);
            if left >= prompts.len() {
                order::by_number(&mut prompts, |item| item.todo().len() as u64);
            }
            for (i, item) in (1..=prompts.len()).rev().zip(prompts) {
                let n = item.chunk(left.div_ceil(i).min(left), self.shape.tokens);
                item.part = if n == 0 { Part::Rest } else { Part::Prompt(n) };
                left -= n;
            }
        }
    }

    /// Runs the step.
    fn run(&mut self, cancel: Option<&Cancel>) -> Result<()> {
        let mut slots = Vec::with_capacity(self.running.len());
        let (mut prompts, mut decodes) = (0, 0);
        for item in &mut self.running {
            let Item { session: Some(session), goal, generation, part, .. } = item else { continue };
            let held = session.len();
            let (ids, want) = match *part {
                Part::Rest => continue,
                Part::Prompt(n) => {
                    prompts += n as u64;
                    let last = held + n == goal.len();
                    (&goal[held..held + n], if last { Want::Last } else { Want::None })
                }
                Part::Decode(rows) => {
                    decodes += generation.planned().len() as u64;
                    (generation.planned(), if rows == 1 { Want::Last } else { Want::Verify(rows) })
                }
            };
            slots.push(Slot { session, ids, want });
        }
        if slots.is_empty() {
            return Ok(());
        }
        self.batch.run(&mut slots, cancel)?;
        self.stats.steps += 1;
        self.stats.prompt_rows += prompts;
        self.stats.decode_rows += decodes;
        Ok(())
    }

    /// Takes what the step computed to the generations.
    fn tell(&mut self, updates: &mut Vec<Update>) {
        let mut slot = 0;
        for mut item in std::mem::take(&mut self.running) {
            let part = std::mem::take(&mut item.part);
            if matches!(part, Part::Rest) {
                self.running.push(item);
                continue;
            }
            let status = self.batch.status(slot);
            let rows = self.batch.logits(slot).ok();
            slot += 1;
            let outcome = match part {
                Part::Rest => Ok(true),
                Part::Prompt(_) => status.and_then(|()| item.advanced(updates)),
                Part::Decode(n) => item.take(status, rows.filter(|_| n > 1), updates),
            };
            match outcome {
                Ok(true) => self.running.push(item),
                Ok(false) => item.ended(None, updates),
                // Somebody else took the pages that were there: the next step looks for others.
                Err(e) if e.status() == Status::KV_FULL => self.running.push(item),
                Err(e) => item.ended(Some(e), updates),
            }
        }
    }
}
