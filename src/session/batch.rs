//! One step of several sessions: chunks of prefill and single tokens of decoding together in one forward pass.
//!
//! ```text
//! slots   [session a: 30 ids][session b: 1 id][session c: 1 id]
//! rows     a a a a ... a      b                c                 ─ all layers ─▶ logits of the rows that are asked for
//! ```
//! What a slot computes does not depend on its neighbours by a single bit, nor on the order of slots. A slot that
//! cannot take part (no page, no room, a bad id) gets its status and is as before; the others run. It does not choose
//! who runs when, nor tokens.

use std::ops::Range;
use std::time::Instant;

use llm_kernels::{FloatControl, Row};

use super::{Session, check_finite};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::kv::KvPool;
use crate::kv::pages::{Pages, TableId};
use crate::model::forward::{self, Scratch};
use crate::runtime::{Charge, Memory};

/// Which logits a slot wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Want {
    /// None: for a chunk that is not the last.
    None,
    /// Those behind the last token.
    #[default]
    Last,
    /// Those behind every token. Nothing is reused from the pool then.
    All,
    /// Those behind each of the last so many tokens, some of which may be taken back: [`Session::keep`] has to follow.
    /// Nothing is reused from the pool or left in it before.
    Verify(usize),
}

/// A session's part in a step.
#[derive(Debug)]
pub struct Slot<'a> {
    /// The session.
    pub session: &'a mut Session,
    /// Tokens to append to it; none: it stays as it is.
    pub ids: &'a [i32],
    /// Logits to compute.
    pub want: Want,
}

/// Runs steps of sessions that share a pool. It keeps its buffers from step to step; sessions may differ each time.
pub struct Batch {
    pool: KvPool,
    scratch: Scratch,
    charge: Charge,
    ids: Vec<u32>,
    /// Ranges of rows whose logits are computed.
    wanted: Vec<Range<usize>>,
    outcomes: Vec<Outcome>,
}

/// What became of a slot.
struct Outcome {
    status: Result<()>,
    /// Tokens before the step.
    before: usize,
    /// Tokens before what the step computes.
    from: usize,
    /// Which logits are its own.
    logits: Range<usize>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} slots of {:?})", self.outcomes.len(), self.pool)
    }
}

impl Batch {
    /// For sessions of `pool`.
    ///
    /// # Errors
    /// `BUDGET`.
    pub fn new(pool: &KvPool) -> Result<Self> {
        Ok(Self {
            charge: pool.model().runtime().charge(Memory::Scratch, 0)?,
            pool: pool.clone(),
            scratch: Scratch::default(),
            ids: Vec::new(),
            wanted: Vec::new(),
            outcomes: Vec::new(),
        })
    }

    /// Appends every slot's ids to its session, in one forward pass. A session whose last token's logits were
    /// computed has them as after [`Session::prefill`].
    ///
    /// Returns `Ok` if the step ran, whatever became of single slots: see [`Batch::status`].
    ///
    /// # Errors
    /// `CANCELLED`, `DEADLINE`, `NO_MEMORY`, `BUDGET`: nothing ran then, and every session is as before.
    pub fn run(&mut self, slots: &mut [Slot<'_>], cancel: Option<&Cancel>) -> Result<()> {
        let _float = FloatControl::default_for_now();
        let clock = Instant::now();
        let pool = self.pool.clone();
        let recovered: Vec<_> = slots.iter_mut().map(|slot| slot.session.recover(cancel)).collect();
        let mut pages = match pool.lock_unless(cancel) {
            Ok(pages) => pages,
            Err(e) => {
                self.outcomes.clear();
                self.outcomes.extend(slots.iter().map(|slot| {
                    let before = slot.session.tokens.len();
                    Outcome { status: Err(e.clone()), before, from: before, logits: 0..0 }
                }));
                return Err(e);
            }
        };
        self.enter(&mut pages, slots, recovered);
        let run = self.compute(&mut pages, slots, cancel);
        for (slot, outcome) in slots.iter_mut().zip(&mut self.outcomes) {
            if outcome.status.is_err() {
                continue;
            }
            let session = &mut *slot.session;
            let vocab = session.model.spec().vocab as usize;
            outcome.status = run.clone().and_then(|()| {
                let first = session.tokens.len() + slot.ids.len() - (outcome.from - outcome.before);
                let rows = outcome.logits.clone();
                let logits = &self.scratch.logits.host(rows.end * vocab)[rows.start * vocab..];
                check_finite(logits, vocab, |row| first - rows.len() + row)
            });
            if outcome.status.is_err() {
                session.forget_in(&mut pages, outcome.before);
                continue;
            }
            session.tokens.extend_from_slice(&slot.ids[outcome.from - outcome.before..]);
            let (given, reused) = (slot.ids.len(), outcome.from - outcome.before);
            session.counters.call(given, reused, given - reused, clock.elapsed());
            if session.tokens.len() > outcome.before {
                if !matches!(slot.want, Want::Verify(_)) {
                    pages.publish(session.table, &session.tokens);
                    pages.let_go(session.table, 0, session.tokens.len());
                }
                session.logits_at = None;
                session.verified = 0;
            }
            if let Some(last) = outcome.logits.clone().last() {
                let row = &self.scratch.logits.host((last + 1) * vocab)[last * vocab..];
                session.logits.copy_from_slice(row);
                session.logits_at = Some(session.tokens.len());
            }
        }
        run
    }

    /// What became of slot `slot` of the last step.
    ///
    /// # Errors
    /// As [`Session::prefill`]; `INVALID_ARG` for a session of another pool or with another determinism level than
    /// the first slot's, and for a slot that the step did not have. The session is as before the step.
    pub fn status(&self, slot: usize) -> Result<()> {
        self.outcome(slot)?.status.clone()
    }

    /// Logits that slot `slot` of the last step asked for, `[0, 1 or its tokens, vocab]`.
    ///
    /// # Errors
    /// As [`Batch::status`].
    pub fn logits(&self, slot: usize) -> Result<&[f32]> {
        let outcome = self.outcome(slot)?;
        outcome.status.clone()?;
        let (rows, vocab) = (&outcome.logits, self.pool.model().spec().vocab as usize);
        Ok(&self.scratch.logits.host(rows.end * vocab)[rows.start * vocab..])
    }

    fn outcome(&self, slot: usize) -> Result<&Outcome> {
        self.outcomes.get(slot).ok_or_else(|| {
            let message = format!("slot {slot}: the last step had {} slots", self.outcomes.len());
            Error::new(Status::INVALID_ARG, message)
        })
    }

    /// Gives every slot its pages, and an outcome that says whether it takes part.
    fn enter(&mut self, pages: &mut Pages, slots: &mut [Slot<'_>], recovered: Vec<Result<()>>) {
        self.outcomes.clear();
        let mut level = None;
        for (slot, recovered) in slots.iter_mut().zip(recovered) {
            let session = &mut *slot.session;
            let before = session.tokens.len();
            let mut outcome = Outcome { status: Ok(()), before, from: before, logits: 0..0 };
            let enter = || {
                if !session.pool.is(&self.pool) {
                    let message = "a session of another pool cannot take part in this batch";
                    return Err(Error::new(Status::INVALID_ARG, message));
                }
                let own = session.options.determinism;
                if level.is_some_and(|level| level != own) {
                    let message =
                        format!("sessions of one step have one determinism level, this one {own:?}");
                    return Err(Error::new(Status::INVALID_ARG, message));
                }
                recovered?;
                session.check_ids(slot.ids)?;
                let most = match slot.want {
                    Want::None => slot.ids.len(),
                    Want::Last => slot.ids.len().saturating_sub(1),
                    Want::All | Want::Verify(_) => 0,
                };
                let reused = session.enter(pages, slot.ids, most, slot.ids.len())?;
                level = Some(own);
                Ok(before + reused)
            };
            match enter() {
                Ok(from) => outcome.from = from,
                Err(e) => outcome.status = Err(e),
            }
            self.outcomes.push(outcome);
        }
    }

    /// Runs the slots that take part through the model.
    fn compute(&mut self, pages: &mut Pages, slots: &mut [Slot<'_>], cancel: Option<&Cancel>) -> Result<()> {
        self.ids.clear();
        self.wanted.clear();
        let mut members: Vec<(TableId, Range<u32>, &Session)> = Vec::with_capacity(slots.len());
        let (mut logits, mut level, mut rank) = (0, None, 0);
        let mut hidden: Vec<(usize, Range<usize>)> = Vec::new();
        for (i, (slot, outcome)) in slots.iter().zip(&mut self.outcomes).enumerate() {
            let (session, ids) = (&*slot.session, &slot.ids[outcome.from - outcome.before..]);
            if outcome.status.is_err() || ids.is_empty() {
                continue;
            }
            self.ids.extend(ids.iter().map(|&id| id as u32)); // proven by `check_ids`
            let rows = match slot.want {
                Want::None => 0,
                Want::Last => 1,
                Want::All => ids.len(),
                Want::Verify(rows) => rows.min(ids.len()),
            };
            outcome.logits = logits..logits + rows;
            if rows > 0 {
                self.wanted.push(self.ids.len() - rows..self.ids.len());
            }
            logits += rows;
            if session.keeps_hidden() {
                hidden.push((i, self.ids.len() - ids.len()..self.ids.len()));
            }
            let from = outcome.from as u32;
            members.push((session.table, from..from + ids.len() as u32, session));
            rank = rank.max(session.rank());
            level = level.or(Some(session.options.determinism));
        }
        let Some(level) = level else { return Ok(()) };
        let model = self.pool.model();
        self.scratch.room(model.spec(), self.ids.len(), &mut self.charge)?;
        self.scratch.room_for_logits(model.spec(), logits, &mut self.charge)?;
        self.scratch.room_for_adapters(self.ids.len(), rank, &mut self.charge)?;

        let groups = pages.store().shape().groups();
        let (store, tables) = pages.parts();
        let mut rows = Vec::with_capacity(self.ids.len() * groups);
        for group in 0..groups {
            for (table, positions, _) in &members {
                let table = tables.pages(*table, group);
                rows.extend(positions.clone().map(|position| Row { table, position }));
            }
        }
        let of = members.iter().map(|(_, positions, session)| (positions.len(), session));
        let ropes: Vec<_> = of.clone().map(|(n, session)| (n, &session.ropes[..])).collect();
        let adapters: Vec<_> =
            if rank == 0 { Vec::new() } else { of.map(|(n, session)| (n, &session.adapters[..])).collect() };
        let (ids, rows) = (&self.ids[..], &rows[..]);
        let wanted = (hidden.is_empty() && logits > 0).then_some(&self.wanted[..]);
        let batch = forward::Batch { ids, rows, ropes: &ropes, adapters: &adapters, wanted, level };
        model.forward().layers(&batch, store, &mut self.scratch, cancel)?;
        // Before the logits, which use the same buffer.
        for (slot, rows) in hidden {
            let n = rows.len();
            self.scratch.room_for_hidden(model.spec(), n, &mut self.charge)?;
            model.forward().hidden(&[rows], &mut self.scratch);
            let rows = self.scratch.last.host(n * model.spec().width as usize);
            // Without memory for them there are none, and nothing is guessed from them.
            slots[slot].session.add_hidden(rows).ok();
        }
        if logits > 0 {
            model.forward().logits(&self.wanted, &mut self.scratch);
        }
        Ok(())
    }
}
