//! Batches: one step of several sessions and generations.

use super::cancel::llm_cancel;
use super::error::llm_error;
use super::generation::{Running, llm_generation};
use super::guard::Host;
use super::handle::{self, Loan};
use super::kv::{Pool, llm_kv_pool};
use super::ptr;
use super::session::llm_session;
use super::types::{llm_status, llm_token};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::session::batch::{Batch, Slot, Want};
use crate::session::generate::Plan;
use llm_format::order;

/// One step of several sessions of a pool. Class X.
pub struct llm_batch {
    _opaque: [u8; 0],
}

classes! { exclusive llm_batch(b"batc"): Step; }

/// A step being put together, or one that ran.
pub(super) struct Step {
    batch: Batch,
    pool: Pool,
    members: Vec<Member>,
    ran: bool,
}

/// A slot: what it works on, and what became of it.
struct Member {
    work: Work,
    ids: Vec<llm_token>,
    want: Want,
    /// Which slot of the step it was, if it took part.
    place: Option<usize>,
    outcome: Option<Result<Status>>,
}

/// What a slot has until the batch is cleared.
enum Work {
    Tokens(Loan<llm_session>),
    Generation(Loan<llm_generation>),
}

/// No logits: for a chunk that is not the last.
pub const LLM_WANT_NONE: i32 = 0;
/// Those behind the last token.
pub const LLM_WANT_LAST: i32 = 1;
/// Those behind every token; nothing is reused from the pool then.
pub const LLM_WANT_ALL: i32 = 2;

fn want_of(number: i32) -> Result<Want> {
    match number {
        LLM_WANT_NONE => Ok(Want::None),
        LLM_WANT_LAST => Ok(Want::Last),
        LLM_WANT_ALL => Ok(Want::All),
        other => Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_WANT value {other}"))),
    }
}

/// Makes an empty batch for sessions of a pool, which it keeps alive. It keeps its buffers from step to step. NULL_ARG,
/// NO_MEMORY, BUDGET. I on the pool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_new(
    pool: *const llm_kv_pool,
    out_batch: *mut *mut llm_batch,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_batch], out_err, |host| {
        let out = ptr::out_handle(host, out_batch, "out_batch")?;
        let pool = handle::get(host, pool, "pool")?;
        let batch = Batch::new(&pool.pool)?;
        out.put(Step { batch, pool: pool.clone(), members: Vec::new(), ran: false })
    })
}

/// Adds tokens that the step appends to a session, with the logits that LLM_WANT names; a session that got those of its
/// last token has them as after llm_session_prefill. The session answers BUSY until llm_batch_clear (it may be freed).
/// `out_slot` (may be NULL) gets the number of the slot: 0, 1, ... BAD_STATE in a batch that ran, INVALID_ARG for a
/// session of another pool, NULL_ARG, NO_MEMORY, BUSY. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_add_tokens(
    batch: *mut llm_batch,
    session: *mut llm_session,
    ids: *const llm_token,
    count: usize,
    want: i32,
    out_slot: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut batch = handle::lock(host, batch, "batch")?;
        let session = handle::lock(host, session, "session")?;
        let (given, want) = (ptr::slice(host, ids, count, "ids")?, want_of(want)?);
        batch.check(&session.session)?;
        let mut ids = Vec::new();
        let refused = |_| Error::new(Status::NO_MEMORY, format!("no memory for {count} tokens"));
        ids.try_reserve_exact(given.len()).map_err(refused)?;
        ids.extend_from_slice(given);
        batch.add(host, Work::Tokens(session.lend()), ids, want, out_slot)
    })
}

/// Adds a generation that takes one step inside the batch's: what llm_generation_next decodes by itself is decoded
/// together with the other slots, and the same tokens are chosen. Its processors, if any, run in llm_batch_run. The
/// generation answers BUSY until llm_batch_clear (it may be freed); then llm_generation_event, _text and _ids tell what
/// the step gave. BAD_STATE in a batch that ran, INVALID_ARG for a session of another pool, NULL_ARG, BUSY. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_add_generation(
    batch: *mut llm_batch,
    generation: *mut llm_generation,
    out_slot: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut batch = handle::lock(host, batch, "batch")?;
        let mut generation = handle::lock(host, generation, "generation")?;
        generation.session.with(|session| batch.check(&session.session))?;
        batch.add(host, Work::Generation(generation.lend()), Vec::new(), Want::None, out_slot)
    })
}

impl Step {
    /// Refuses what cannot be added.
    fn check(&self, session: &crate::session::Session) -> Result<()> {
        if self.ran {
            return Err(Error::new(Status::BAD_STATE, "the batch ran: read its slots, then clear it"));
        }
        if !session.pool().is(&self.pool.pool) {
            let message = "the session's pages are of another pool: make it with the batch's pool";
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        Ok(())
    }

    fn add(
        &mut self,
        host: Host<'_>,
        work: Work,
        ids: Vec<llm_token>,
        want: Want,
        out_slot: *mut usize,
    ) -> Result<Status> {
        ptr::put_optional(host, out_slot, self.members.len());
        self.members.push(Member { work, ids, want, place: None, outcome: None });
        Ok(Status::OK)
    }

    /// Runs every slot that has something to run in one forward pass.
    fn run(&mut self, cancel: Option<&Cancel>) -> Result<()> {
        if let Some(cancel) = cancel {
            cancel.check()?;
        }
        for member in self.members.iter_mut().filter(|member| member.outcome.is_none()) {
            member.place = None; // of an earlier step, which failed
            member.plan();
        }
        step(&mut self.batch, &mut self.members, cancel)?;
        let batch = &self.batch;
        for (index, member) in self.members.iter_mut().enumerate() {
            member.finish(batch, index);
        }
        self.ran = true;
        Ok(())
    }
}

/// One forward pass of the members that have no outcome yet.
fn step(batch: &mut Batch, members: &mut [Member], cancel: Option<&Cancel>) -> Result<()> {
    let mut generations = Vec::new();
    let mut sessions = Vec::new();
    let mut runs = Vec::new();
    for member in members.iter_mut().filter(|member| member.outcome.is_none()) {
        runs.push((&member.ids[..], member.want));
        member.place = Some(runs.len() - 1);
        match &mut member.work {
            Work::Tokens(session) => sessions.push((runs.len() - 1, session.borrow())),
            Work::Generation(running) => generations.push((runs.len() - 1, running.borrow())),
        }
    }
    let inner = generations.iter_mut().map(|(place, running)| (*place, running.session.borrow()));
    let mut sessions: Vec<_> = sessions.into_iter().chain(inner).collect();
    order::by_number(&mut sessions, |(place, _)| *place as u64);
    let mut slots: Vec<_> = sessions
        .iter_mut()
        .zip(&runs)
        .map(|((_, held), (ids, want))| Slot { session: &mut held.session, ids, want: *want })
        .collect();
    batch.run(&mut slots, cancel)
}

impl Member {
    /// Asks a generation what it has to decode.
    fn plan(&mut self) {
        let Work::Generation(running) = &mut self.work else { return };
        let (ids, want) = (&mut self.ids, &mut self.want);
        match running.with(|running| running.plan(ids)) {
            Ok(Planned::Told(status)) => self.outcome = Some(Ok(status)),
            Ok(Planned::Rows(1)) => *want = Want::Last,
            Ok(Planned::Rows(rows)) => *want = Want::Verify(rows),
            Err(e) => self.outcome = Some(Err(e)),
        }
    }

    /// Takes what the step gave.
    fn finish(&mut self, batch: &Batch, index: usize) {
        if let (None, Some(place)) = (&self.outcome, self.place) {
            let run = batch.status(place);
            self.outcome = Some(match &mut self.work {
                Work::Tokens(_) => run.map(|()| Status::OK),
                Work::Generation(running) => {
                    let verified = matches!(self.want, Want::Verify(_)) && run.is_ok();
                    let rows = if verified { batch.logits(place).ok() } else { None };
                    running.with(|running| running.take(run, rows))
                }
            });
        }
        if let Some(Err(e)) = &mut self.outcome {
            *e = e.clone().with("slot", i64::try_from(index).unwrap_or(i64::MAX));
        }
    }
}

/// What a generation's plan is.
enum Planned {
    /// The event is told already.
    Told(Status),
    /// Ids to decode, with the logits behind so many of the last.
    Rows(usize),
}

impl Running {
    /// Begins a step: what it has to decode goes to `ids`.
    fn plan(&mut self, ids: &mut Vec<llm_token>) -> Result<Planned> {
        let Running { generation, session, sampler, .. } = self;
        let plan =
            session.with(|held| sampler.with(|sampler| generation.plan(&held.session, sampler, None)))?;
        Ok(match plan {
            Plan::Tell(event) => Planned::Told(self.tell(&event).0),
            Plan::Run { rows } => {
                ids.clear();
                ids.extend_from_slice(generation.planned());
                Planned::Rows(rows)
            }
        })
    }

    /// Ends a step that ran.
    fn take(&mut self, run: Result<()>, rows: Option<&[f32]>) -> Result<Status> {
        let Running { generation, session, sampler, .. } = self;
        let event = session.with(|held| {
            sampler.with(|sampler| generation.take(&mut held.session, sampler, run, rows, None))
        })?;
        Ok(self.tell(&event).0)
    }
}

/// Runs the step: all slots together, in one forward pass. OK whatever became of single slots: one that cannot take part
/// (no page, no room, a bad id) is as before and the others run; llm_batch_slot_status tells. CANCELLED, DEADLINE,
/// NO_MEMORY, BUDGET: nothing ran, every session is as before, and the call can be repeated. BAD_STATE in a batch that
/// ran. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_run(
    batch: *mut llm_batch,
    cancel: *const llm_cancel,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut batch = handle::lock(host, batch, "batch")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        if batch.ran {
            return Err(Error::new(
                Status::BAD_STATE,
                "the batch ran already: clear it, and add its slots again",
            ));
        }
        batch.run(cancel.as_deref())?;
        Ok(Status::OK)
    })
}

/// What became of a slot: OK for tokens that were appended, MORE or DONE for a generation's event, or the failure, with
/// the detail SLOT: CONTEXT_FULL, KV_FULL, INVALID_ARG for an id that is not in the vocabulary or a determinism unlike
/// that of the first slot, and what llm_generation_next answers. The session is as before then. BAD_STATE before
/// llm_batch_run, INVALID_ARG without a detail for a slot that is not there, NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_slot_status(
    batch: *mut llm_batch,
    slot: usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| handle::lock(host, batch, "batch")?.outcome(slot).cloned()?)
}

/// Lends the logits that a slot asked for, one row per token of it in LLM_WANT_ALL, else one or none; for a generation
/// the rows it chose from. A row has one value per id of the vocabulary. `out_count` (may be NULL) is the number of
/// values of all rows. Until the next llm_batch_clear. Statuses as llm_batch_slot_status. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_slot_logits(
    batch: *mut llm_batch,
    slot: usize,
    out_logits: *mut *const f32,
    out_count: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_logits], out_err, |host| {
        let out = ptr::out_borrowed(host, out_logits, out_count, "out_logits")?;
        let batch = handle::lock(host, batch, "batch")?;
        batch.outcome(slot)?.as_ref().map_err(Clone::clone)?;
        match batch.members[slot].place {
            Some(place) => out.put(batch.batch.logits(place)?),
            None => out.put(&[]),
        }
        Ok(Status::OK)
    })
}

impl Step {
    fn outcome(&self, slot: usize) -> Result<&Result<Status>> {
        let Some(member) = self.members.get(slot) else {
            let message = format!("slot {slot}: the batch has {} slots", self.members.len());
            return Err(Error::new(Status::INVALID_ARG, message));
        };
        match &member.outcome {
            Some(outcome) if self.ran => Ok(outcome),
            _ => Err(Error::new(Status::BAD_STATE, "the batch has not run yet")),
        }
    }
}

/// Empties the batch: sessions and generations are free again. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_clear(batch: *mut llm_batch) -> llm_status {
    entry!(|host| {
        let mut batch = handle::lock(host, batch, "batch")?;
        batch.members.clear();
        batch.ran = false;
        Ok(Status::OK)
    })
}

/// Frees a batch; NULL is allowed. Sessions and generations in it are free again. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_batch_free(batch: *mut llm_batch) {
    entry!(else (), |host| handle::free(host, batch))
}
