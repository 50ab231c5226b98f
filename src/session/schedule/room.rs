//! Pages for everybody: who begins, and who has to go.
//!
//! The first by rank has pages for its next step or takes them from the last. So the first always goes on, each that ends
//! makes room for the next, and everybody's turn comes.

use super::item::{self, Item};
use super::{Scheduler, Session, Update};
use crate::error::{Error, Result, Status};

impl Scheduler {
    /// Lets those begin (or go on) that wait and find pages for all they have to hold, in their order: a long one that
    /// finds none holds those behind it, or it would wait for ever. A higher priority sends lower ones away.
    pub(super) fn admit(&mut self, updates: &mut Vec<Update>) {
        while let Some(first) = self.queue.first() {
            let (id, priority) = (first.id, first.priority);
            let lower = self.running.last().is_some_and(|last| last.priority < priority);
            if self.running.len() >= self.options.sessions {
                if !lower {
                    return;
                }
                self.preempt_last();
                continue; // the one that is last now may be of no lower priority
            }
            let available = self.available();
            let wait = !lower && !self.running.is_empty();
            if wait && self.blocked.is_some_and(|(who, had)| who == id && available <= had) {
                return;
            }
            let mut item = self.queue.remove(0);
            match self.begin(&mut item) {
                Ok(true) => {
                    self.blocked = None;
                    item::insert(&mut self.running, item);
                }
                Ok(false) if lower => {
                    item::insert(&mut self.queue, item);
                    self.preempt_last();
                }
                Ok(false) => {
                    item::insert(&mut self.queue, item);
                    self.blocked = Some((id, available));
                    return;
                }
                Err(e) => item.ended(Some(e), updates),
            }
        }
    }

    /// Gives an item that waits its session and pages. Returns whether it may run.
    fn begin(&mut self, item: &mut Item) -> Result<bool> {
        let session = match &mut item.session {
            Some(session) => session,
            none => none.insert(Session::in_pool(&self.pool, item.options.clone())?),
        };
        if item.generation.wants_hidden() {
            session.keep_hidden(); // of the prompt as well
        }
        let alone = self.running.is_empty();
        if !session.is_swapped_out() {
            item.reuse()?;
        }
        let (shape, step) = (&self.shape, self.options.chunk);
        let fits = {
            let pool = self.pool.lock();
            let has = |session: Option<&Session>| session.map_or(0, |session| pool.held_by(session.table).0);
            let needed = shape.held(item.length() + 1, step).saturating_sub(has(item.session.as_ref()));
            // What those that run have not taken of their prompts' pages, and a page for each to go on.
            let missing = |item: &Item| {
                // the rows of a generation's step fit that page
                let step = if item.todo().is_empty() { 0 } else { step };
                shape.held(item.length(), step).saturating_sub(has(item.session.as_ref())) + shape.groups()
            };
            let promised: usize = self.running.iter().map(missing).sum();
            pool.available() >= (needed + promised) as u64
        };
        if !alone && !fits {
            item.let_go();
            return Ok(false);
        }
        let Some(session) = &mut item.session else { return Ok(false) };
        loop {
            match session.swap_in() {
                Err(e) if is_full(&e) && self.empty_queue() => {}
                Err(e) if is_full(&e) && !alone => return Ok(false),
                done => return done.map(|()| true),
            }
        }
    }

    /// Takes the pages of the last that waits and has any. Returns whether there was one.
    fn empty_queue(&mut self) -> bool {
        self.queue.iter_mut().rev().any(Item::let_go)
    }

    /// Pages that are free or can be made so.
    fn available(&self) -> u64 {
        self.pool.lock().available()
    }

    /// Makes sure of the pages that the step needs, in order of rank.
    pub(super) fn make_room(&mut self, updates: &mut Vec<Update>) {
        let mut i = 0;
        while let Some(item) = self.running.get_mut(i) {
            let prompt = matches!(item.part, super::Part::Prompt(_));
            if prompt && item.held().is_multiple_of(self.shape.tokens) && item.reuse().is_ok() {
                // It may have less to run now.
                item.part = super::Part::Prompt(item.rows().min(item.todo().len()));
            }
            let rows = item.rows();
            let Some(session) = item.session.as_mut().filter(|_| rows > 0) else {
                i += 1;
                continue;
            };
            match session.reserve(rows) {
                Err(e) if is_full(&e) && self.empty_queue() => {}
                // The last one may be this one, which then waits itself.
                Err(e) if is_full(&e) && self.running.len() > 1 => self.preempt_last(),
                Err(e) if is_full(&e) => {
                    let mut item = self.running.remove(0);
                    if item.reserve_told() {
                        self.running.push(item);
                        i += 1;
                    } else {
                        item.ended(Some(e), updates);
                    }
                }
                // Anything else the step itself finds, and says.
                _ => i += 1,
            }
        }
    }

    fn preempt_last(&mut self) {
        let Some(mut item) = self.running.pop() else { return };
        if item.preempt() {
            self.stats.swapped += 1;
        } else {
            self.stats.dropped += 1;
        }
        item::insert(&mut self.queue, item);
    }
}

fn is_full(e: &Error) -> bool {
    matches!(e.status(), Status::KV_FULL | Status::BUDGET)
}
