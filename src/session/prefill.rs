//! What every call that runs tokens does: it checks them and waits for its turn at the pool, takes over what the pool
//! holds of them, runs the rest in chunks, and ends with logits or goes back.
//!
//! ```text
//! recover ─▶ begin ─▶ enter ─▶ chunk, chunk, .. ─▶ end
//! ```
//! A prefill lets others have a turn between its chunks.

use std::ops::Range;
use std::time::Instant;

use llm_kernels::{FloatControl, Row};

use super::{Control, OnProgress, Progress, Session, check_finite};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::kv::pages::Pages;
use crate::kv::shape::MOST_GROUPS;
use crate::kv::{KvPool, Turn};
use crate::model::forward::Batch;
use crate::model::rope::Frequencies;

/// A prefill on its way.
struct Call<'a, 'p> {
    ids: &'a [i32],
    /// Of those, tokens that were taken over.
    reused: usize,
    cancel: Option<&'a Cancel>,
    progress: Option<OnProgress<'p>>,
    /// Whether all of them ran and are published.
    whole: bool,
}

impl Session {
    /// Appends `ids`, chunk by chunk; logits of the last one are ready afterwards. Without ids nothing happens. What
    /// the pool holds of them already is not computed again. Where they do not fit,
    /// [`super::SessionOptions::overflow`] says what goes.
    ///
    /// # Errors
    /// `INVALID_ARG` for an id outside the vocabulary (detail `token_index`); `CONTEXT_FULL`, `KV_FULL`,
    /// `NO_MEMORY`, `BUDGET`; `CANCELLED`, `DEADLINE`; `UNSUPPORTED` where logits are not finite (detail
    /// `position`). The session is then as before the call, except for a cancelled one without
    /// `rollback_on_cancel`: that stands at the last completed chunk.
    pub fn prefill(
        &mut self,
        ids: &[i32],
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
    ) -> Result<()> {
        let _float = FloatControl::default_for_now();
        self.recover(cancel)?;
        if self.overflows(ids.len()) {
            return self.prefill_over(ids, cancel, progress);
        }
        self.prefill_fitting(ids, cancel, progress)
    }

    /// [`Session::prefill`] of ids for which nothing goes.
    pub(super) fn prefill_fitting(
        &mut self,
        ids: &[i32],
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
    ) -> Result<()> {
        let (before, clock, pool) = (self.tokens.len(), Instant::now(), self.pool.clone());
        let mut pages = self.begin(&pool, ids, cancel)?;
        let reused = self.enter(&mut pages, ids, ids.len().saturating_sub(1), self.options.chunk)?;
        let mut call = Call { ids, reused, cancel, progress, whole: false };
        let run = self.run(&pool, pages, &mut call);
        let ended = self.end(before, before + reused, self.tokens.len(), call.whole, cancel, run);
        let kept = self.tokens.len() - before;
        self.counters.call(ids.len(), reused.min(kept), kept.saturating_sub(reused), clock.elapsed());
        ended
    }

    /// Appends one token; its logits are ready afterwards.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, id: i32, cancel: Option<&Cancel>) -> Result<()> {
        self.prefill(&[id], cancel, None)
    }

    /// Checks `ids` and waits for the session's turn.
    pub(super) fn begin<'a>(
        &mut self,
        pool: &'a KvPool,
        ids: &[i32],
        cancel: Option<&Cancel>,
    ) -> Result<Turn<'a, Pages>> {
        self.verified = 0;
        self.check_ids(ids)?;
        let rows = ids.len().min(self.options.chunk);
        self.scratch.room(self.model.spec(), rows, &mut self.charge)?;
        self.scratch.room_for_adapters(rows, self.rank(), &mut self.charge)?;
        pool.lock_unless(cancel)
    }

    /// Runs the tokens again whose pages are gone. There are logits afterwards where there were some before.
    pub(super) fn recover(&mut self, cancel: Option<&Cancel>) -> Result<()> {
        if self.missing == 0 {
            return Ok(());
        }
        let _float = FloatControl::default_for_now();
        let had_logits = self.logits_at == Some(self.tokens.len());
        let covered = self.tokens.len() - std::mem::take(&mut self.missing);
        let rest = self.tokens.split_off(covered);
        let run = self.prefill_fitting(&rest, cancel, None);
        let done = self.tokens.len() - covered;
        self.tokens.extend_from_slice(&rest[done..]);
        self.missing = rest.len() - done;
        // Now those of the last chunk that ran.
        let stay = had_logits && (run.is_ok() || done == 0);
        self.logits_at = stay.then_some(self.tokens.len());
        run
    }

    /// Takes over what the pool holds of `ids`, at most `most` tokens, and makes room for the rest, where windows are
    /// for the first `near`. Returns how many tokens were taken over.
    pub(super) fn enter(
        &mut self,
        pages: &mut Pages,
        ids: &[i32],
        most: usize,
        near: usize,
    ) -> Result<usize> {
        let before = self.tokens.len();
        pages.swap_in(self.table, &self.tokens)?;
        let reused = pages.adopt(self.table, before, ids, most);
        self.tokens.extend_from_slice(&ids[..reused]);
        if let Err(e) = pages.room(
            self.table,
            before + reused,
            before + ids.len(),
            before.saturating_add(reused).saturating_add(near),
        ) {
            self.forget_in(pages, before);
            return Err(e);
        }
        if self.options.rope_running {
            let length = (before + ids.len()) as u32;
            for (table, rope) in self.ropes.iter_mut().zip(&self.model.spec().ropes) {
                if Frequencies::vary(rope) {
                    *table = Frequencies::new(rope, length);
                }
            }
        }
        Ok(reused)
    }

    /// Runs a call's tokens in chunks; logits of the last completed chunk's last token are in the scratch wherever this
    /// ends. The first chunk has the turn `pages`, each other waits for its own.
    fn run<'a>(&mut self, pool: &'a KvPool, pages: Turn<'a, Pages>, call: &mut Call<'_, '_>) -> Result<()> {
        let Call { ids, reused, cancel, .. } = *call;
        let before = self.tokens.len() - reused;
        let (total, mut done, mut turn) = (ids.len(), reused, Some(pages));
        for chunk in ids[reused..].chunks(self.options.chunk) {
            let mut pages = match turn.take() {
                Some(pages) => pages,
                None => pool.lock_unless(cancel)?,
            };
            self.next_room(&mut pages, before + total, chunk.len())?;
            let last = chunk.len() - 1..chunk.len();
            // Of the last layer's results, the next token's alone are of use, unless somebody keeps them all.
            let wanted = (!self.keeps_hidden()).then_some(std::slice::from_ref(&last));
            self.chunk(&mut pages, chunk, wanted, cancel)?;
            done += chunk.len();
            // Whoever may end the call between chunks gets logits there.
            if done == total || call.progress.is_some() || !self.options.rollback_on_cancel {
                self.model.forward().logits(std::slice::from_ref(&last), &mut self.scratch);
                let vocab = self.model.spec().vocab as usize;
                check_finite(self.scratch.logits.host(vocab), vocab, |_| self.tokens.len() - 1)?;
            }
            if done == total {
                pages.publish(self.table, &self.tokens);
                // A progress function may still take it all back: what the session saw before has to be there then.
                let back = if call.progress.is_some() { before } else { 0 };
                pages.let_go(self.table, back, self.tokens.len());
                call.whole = back == 0 || !pages.store().shape().is_windowed();
            } else {
                self.let_go_after(&mut pages, before);
            }
            drop(pages);
            if let Some(progress) = call.progress.as_mut() {
                match progress(Progress { done, reused, total }) {
                    Control::Continue => {}
                    Control::Stop => break,
                    Control::Cancel => {
                        return Err(Error::new(Status::CANCELLED, "cancelled by the progress function"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes room for the next `chunk` tokens where there is none yet, for layers with windows; the others have it for
    /// those up to `end`.
    pub(super) fn next_room(&self, pages: &mut Pages, end: usize, chunk: usize) -> Result<()> {
        match pages.store().shape().is_windowed() {
            true => pages.room(self.table, self.tokens.len(), end, self.tokens.len() + chunk),
            false => Ok(()),
        }
    }

    /// Lets pages behind windows go in the middle of a call that may still go back to its first `before` tokens.
    pub(super) fn let_go_after(&self, pages: &mut Pages, before: usize) {
        if pages.store().shape().is_windowed() {
            // So that others find them for as long as there is room.
            pages.publish(self.table, &self.tokens);
            pages.let_go(self.table, before, self.tokens.len());
        }
    }

    /// Runs one chunk through all layers, for the results of the tokens `wanted` (`None`: all), and counts its tokens as
    /// held.
    pub(super) fn chunk(
        &mut self,
        pages: &mut Pages,
        chunk: &[i32],
        wanted: Option<&[Range<usize>]>,
        cancel: Option<&Cancel>,
    ) -> Result<()> {
        self.ids.clear();
        self.ids.extend(chunk.iter().map(|&id| id as u32)); // proven by `begin`
        let start = self.tokens.len() as u32;
        let groups = pages.store().shape().groups();
        let (store, tables) = pages.parts();
        let row = |group, position| Row { table: tables.pages(self.table, group), position };
        let mut one = [row(0, start); MOST_GROUPS];
        let many: Vec<Row<'_>>; // decoding does without
        let rows = if chunk.len() == 1 {
            (0..groups).for_each(|group| one[group] = row(group, start));
            &one[..groups]
        } else {
            let rows = |group| (start..).take(chunk.len()).map(move |position| row(group, position));
            many = (0..groups).flat_map(rows).collect();
            &many
        };
        let ropes = &[(chunk.len(), &self.ropes[..])];
        let adapters: &[_] =
            if self.adapters.is_empty() { &[] } else { &[(chunk.len(), &self.adapters[..])] };
        let level = self.options.determinism;
        let batch = Batch { ids: &self.ids, rows, ropes, adapters, wanted, level };
        self.model.forward().layers(&batch, store, &mut self.scratch, cancel)?;
        self.collect_hidden(chunk.len())?;
        self.tokens.extend_from_slice(chunk);
        Ok(())
    }

    /// Ends a call that began with `before` tokens and computed from `from` on: takes over the logits, which are behind
    /// of the first `behind` tokens, or goes back. The pages of a `whole` call are published. A cancelled call does not
    /// wait for a turn any more: what it leaves to do is done before anybody sees the pages again.
    pub(super) fn end(
        &mut self,
        before: usize,
        from: usize,
        behind: usize,
        whole: bool,
        cancel: Option<&Cancel>,
        run: Result<()>,
    ) -> Result<()> {
        let cancelled =
            run.as_ref().is_err_and(|e| matches!(e.status(), Status::CANCELLED | Status::DEADLINE));
        let keep = run.is_ok() || cancelled && !self.options.rollback_on_cancel;
        if !(keep && self.tokens.len() > from) {
            self.forget(before);
            return run;
        }
        self.logits_at = Some(behind).filter(|&behind| behind == self.tokens.len());
        if self.logits_at.is_some() {
            let n = self.logits.len();
            self.logits.copy_from_slice(self.scratch.logits.host(n));
        }
        if whole {
            return run;
        }
        self.forget(self.tokens.len());
        if run.is_ok() {
            self.publish(cancel);
        }
        run
    }

    /// Lets others find the session's pages. Where the waiting ends early they do not; the next call publishes them.
    pub(super) fn publish(&mut self, cancel: Option<&Cancel>) {
        if let Ok(mut pages) = self.pool.lock_unless(cancel) {
            pages.publish(self.table, &self.tokens);
            pages.let_go(self.table, 0, self.tokens.len());
        }
    }
}
