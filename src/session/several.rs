//! Several continuations of one prompt, side by side.
//!
//! ```text
//! prompt ──┬─▶ fork 0, seed s      each step: the tokens told last of all that still run, in one batch step,
//!          ├─▶ fork 1, seed s + 1  then each generation goes on by itself
//!          └─▶ fork 2, seed s + 2
//! ```
//! The prompt is computed once and its pages are shared. Each continuation is, token for token, what a run of its own
//! with its seed would be. They differ only where sampling is random: at temperature 0 they are all the same.

use super::Session;
use super::batch::{Batch, Slot, Want};
use super::generate::{Event, Generation, GenerationOptions, Perf, Plan, Reason};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::sampler::Sampler;
use llm_format::order;

/// Continuations that run together.
pub struct Several {
    branches: Vec<Branch>,
    batch: Batch,
}

struct Branch {
    session: Session,
    sampler: Sampler,
    generation: Generation,
}

impl std::fmt::Debug for Several {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Several({} continuations)", self.branches.len())
    }
}

impl Several {
    /// `count` continuations of what `session` holds, as `sampler` would choose them if its seed were its own plus the
    /// number of the continuation, from 0. The session's pool needs room for all of them; what they share is there once.
    ///
    /// # Errors
    /// As [`Session::fork`] and [`Generation::new`].
    pub fn new(
        session: &mut Session,
        sampler: &Sampler,
        count: usize,
        options: &GenerationOptions,
    ) -> Result<Self> {
        let tokenizer = session.model().tokenizer().ok().cloned();
        let mut branches = Vec::new();
        for i in 0..count {
            let mut sampler = sampler.clone();
            sampler.set_seed(sampler.params().seed.wrapping_add(i as u64));
            let generation = Generation::new(tokenizer.clone(), options)?;
            branches.push(Branch { session: session.fork()?, sampler, generation });
        }
        Ok(Self { branches, batch: Batch::new(session.pool())? })
    }

    /// The next event of every continuation that has not ended, with its number; none once all have. One that failed, as
    /// [`Generation::next`] may, is tried again by the next call.
    pub fn next(&mut self, cancel: Option<&Cancel>) -> Vec<(usize, Result<Event>)> {
        let mut events = Vec::new();
        let mut waiting = Vec::new();
        for (i, branch) in self.branches.iter_mut().enumerate() {
            if branch.generation.reason().is_some() {
                continue;
            }
            match branch.generation.plan(&branch.session, &branch.sampler, cancel) {
                Ok(Plan::Tell(event)) => events.push((i, Ok(event))),
                Ok(Plan::Run { .. }) => waiting.push((i, branch)),
                Err(e) => events.push((i, Err(e))),
            }
        }
        let mut slots = Vec::new();
        for (_, Branch { session, generation, .. }) in &mut waiting {
            let ids = generation.planned();
            if !ids.is_empty() {
                slots.push(Slot { session, ids, want: Want::Last });
            }
        }
        // What became of each slot is told by its generation.
        let ran = if slots.is_empty() { Ok(()) } else { self.batch.run(&mut slots, cancel) };
        let mut slot = 0;
        for (i, Branch { session, sampler, generation }) in waiting {
            let mut run = Ok(());
            if !generation.planned().is_empty() {
                run = ran.clone().and_then(|()| self.batch.status(slot));
                slot += 1;
            }
            events.push((i, generation.take(session, sampler, run, None, cancel)));
        }
        order::by_number(&mut events, |(i, _)| *i as u64);
        events
    }

    /// Why continuation `i` ended; `None` while it runs, and where there is no such one.
    pub fn reason(&self, i: usize) -> Option<Reason> {
        self.branches.get(i)?.generation.reason()
    }

    /// Counters of continuation `i`.
    pub fn perf(&self, i: usize) -> Option<Perf> {
        Some(self.branches.get(i)?.generation.perf())
    }

    /// The sessions, to go on with.
    pub fn into_sessions(self) -> Vec<Session> {
        self.branches.into_iter().map(|branch| branch.session).collect()
    }
}
