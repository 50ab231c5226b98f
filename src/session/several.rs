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
use super::generate::{Evaluate, Event, Generation, GenerationOptions, Perf, Reason};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::sampler::Sampler;

/// Continuations that run together.
pub struct Several {
    branches: Vec<Branch>,
    batch: Batch,
}

struct Branch {
    session: Session,
    sampler: Sampler,
    generation: Generation,
    /// Tokens of the session that the generation knows of: the session may be ahead of it.
    shown: usize,
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
            branches.push(Branch { session: session.fork()?, sampler, generation, shown: session.len() });
        }
        Ok(Self { branches, batch: Batch::new(session.pool())? })
    }

    /// The next event of every continuation that has not ended, with its number; none once all have. One that failed, as
    /// [`Generation::next`] may, is tried again by the next call.
    pub fn next(&mut self, cancel: Option<&Cancel>) -> Vec<(usize, Result<Event>)> {
        let mut running: Vec<(usize, &mut Branch)> =
            (0..).zip(&mut self.branches).filter(|(_, b)| b.generation.reason().is_none()).collect();
        let pending = |branch: &Branch| branch.generation.unheld().collect::<Vec<i32>>();
        let ids: Vec<_> = running.iter().map(|(_, branch)| pending(branch)).collect();
        let mut slots = Vec::new();
        for ((_, branch), ids) in running.iter_mut().zip(&ids) {
            // One that is ahead has been told of an error before.
            if !ids.is_empty() && branch.session.len() == branch.shown {
                slots.push(Slot { session: &mut branch.session, ids, want: Want::Last });
            }
        }
        // Whatever keeps a slot or all of them from running is met again, and told, by the generation itself.
        if !slots.is_empty() {
            self.batch.run(&mut slots, cancel).ok();
        }
        let mut events = Vec::new();
        for (i, branch) in running {
            let mut ahead = Ahead { session: &mut branch.session, shown: &mut branch.shown };
            let mut event = branch.generation.next(&mut ahead, &mut branch.sampler, cancel);
            if branch.generation.reason().is_some() && branch.session.len() > branch.shown {
                // It was cancelled before it took the token.
                event = branch.session.truncate(branch.shown).and(event);
            }
            events.push((i, event));
        }
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

/// A session that may be ahead of its generation: it shows a token that it holds already when it is decoded.
struct Ahead<'a> {
    session: &'a mut Session,
    shown: &'a mut usize,
}

impl Evaluate for Ahead<'_> {
    fn tokens(&self) -> &[i32] {
        &self.session.tokens()[..*self.shown]
    }

    fn logits(&self) -> Result<&[f32]> {
        self.session.logits()
    }

    fn decode(&mut self, id: i32, cancel: Option<&Cancel>) -> Result<()> {
        if self.session.tokens().get(*self.shown) != Some(&id) {
            self.session.decode(id, cancel)?;
        }
        *self.shown += 1;
        Ok(())
    }
}
