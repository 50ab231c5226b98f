//! Hidden vectors: out of a session for a self-drafting head, and into the head's own session.

use llm_kernels::FloatControl;

use super::{Session, check_finite};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};

/// Vectors kept at most: a head that saw nothing of older tokens guesses hardly worse.
const MOST_KEPT: usize = 512;
/// Tokens that a head reads in one step.
const STEP: usize = 64;

/// Of consecutive tokens, up to the last one computed.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// Position of the first.
    from: usize,
    /// `[tokens, width]`
    rows: Vec<f32>,
}

impl Hidden {
    /// Takes those of the tokens behind the first `held`.
    fn add(&mut self, held: usize, width: usize, rows: &[f32]) -> Result<()> {
        if self.from + self.rows.len() / width != held {
            (self.from, self.rows) = (held, Vec::new());
        }
        let m = rows.len() / width;
        let skip = m.saturating_sub(MOST_KEPT);
        let old = (self.rows.len() / width + m - skip).saturating_sub(MOST_KEPT);
        self.rows.drain(..old * width);
        self.from += old;
        if skip > 0 {
            self.from = held + skip;
        }
        let refused = |_| Error::new(Status::NO_MEMORY, "no memory for hidden vectors");
        self.rows.try_reserve((m - skip) * width).map_err(refused)?;
        self.rows.extend_from_slice(&rows[skip * width..]);
        Ok(())
    }
}

impl Session {
    /// Keeps the hidden vectors (after the final norm) of the tokens computed from now on, the last 512 of them. A
    /// generation with a self-drafting head asks for it by itself; asked for before the prefill, the head also knows
    /// the prompt.
    pub fn keep_hidden(&mut self) {
        if self.hidden.is_none() {
            self.hidden = Some(Hidden { from: self.tokens.len(), rows: Vec::new() });
        }
    }

    /// Position of the first token whose hidden vector is kept, and the vectors from there to the last token,
    /// `[tokens, width]`; `None` where none are kept. Tokens taken over from the pool have none.
    pub fn kept_hidden(&self) -> Option<(usize, &[f32])> {
        let width = self.model.spec().width as usize;
        let hidden = self.hidden.as_ref().filter(|hidden| !hidden.rows.is_empty())?;
        let whole = hidden.from + hidden.rows.len() / width == self.tokens.len();
        whole.then_some((hidden.from, &hidden.rows[..]))
    }

    /// Whether the vectors of tokens are to be kept.
    pub(super) fn keeps_hidden(&self) -> bool {
        self.hidden.is_some()
    }

    /// Takes the vectors of the chunk of `m` tokens that was just computed and is not counted yet.
    pub(super) fn collect_hidden(&mut self, m: usize) -> Result<()> {
        let Some(hidden) = &mut self.hidden else { return Ok(()) };
        let width = self.model.spec().width as usize;
        self.scratch.room_for_hidden(self.model.spec(), m, &mut self.charge)?;
        self.model.forward().hidden(std::slice::from_ref(&(0..m)), &mut self.scratch);
        hidden.add(self.tokens.len(), width, self.scratch.last.host(m * width))
    }

    /// Takes the vectors, `[tokens, width]`, of tokens that a batch computed and that are not counted yet.
    pub(super) fn add_hidden(&mut self, rows: &[f32]) -> Result<()> {
        let width = self.model.spec().width as usize;
        self.hidden.as_mut().map_or(Ok(()), |hidden| hidden.add(self.tokens.len(), width, rows))
    }

    /// Forgets the vectors of tokens that are not held any more.
    pub(super) fn truncate_hidden(&mut self) {
        let (held, width) = (self.tokens.len(), self.model.spec().width as usize);
        if let Some(hidden) = &mut self.hidden {
            hidden.rows.truncate(held.saturating_sub(hidden.from) * width);
            hidden.from = hidden.from.min(held);
        }
    }

    /// Forgets all vectors: the tokens that they are of stand elsewhere, or not at all.
    pub(super) fn forget_hidden(&mut self) {
        if let Some(hidden) = &mut self.hidden {
            *hidden = Hidden::default();
        }
    }

    /// Of a head: appends `ids`, each with the hidden vector of the token before it, `[ids, width]`, and computes the
    /// logits behind the last. `last` becomes the head's own hidden vector there, before its final norm.
    ///
    /// # Errors
    /// As [`Session::prefill`], `INVALID_ARG` for a session of a whole model or vectors of another number. The session
    /// is then as before the call.
    pub(crate) fn read_joined(
        &mut self,
        ids: &[i32],
        hidden: &[f32],
        cancel: Option<&Cancel>,
        last: &mut Vec<f32>,
    ) -> Result<()> {
        let _float = FloatControl::default_for_now();
        let width = self.model.spec().width as usize;
        if !self.model.is_head() || ids.is_empty() || hidden.len() != ids.len() * width {
            let message = format!("a head reads tokens with a vector of {width} values each");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        self.recover(cancel)?;
        self.check_ids(ids)?;
        let before = self.tokens.len();
        let mut run = Ok(());
        for (ids, hidden) in ids.chunks(STEP).zip(hidden.chunks(STEP * width)) {
            run = self.read_step(ids, hidden, cancel, last);
            if run.is_err() {
                break;
            }
        }
        self.end(before, before, self.tokens.len(), false, cancel, run)
    }

    fn read_step(
        &mut self,
        ids: &[i32],
        hidden: &[f32],
        cancel: Option<&Cancel>,
        last: &mut Vec<f32>,
    ) -> Result<()> {
        let (m, width, first) = (ids.len(), self.model.spec().width as usize, self.tokens.len());
        self.scratch.room(self.model.spec(), m, &mut self.charge)?;
        self.scratch.room_for_join(self.model.spec(), m, &mut self.charge)?;
        let pool = self.pool.clone();
        let mut pages = pool.lock_unless(cancel)?;
        self.enter(&mut pages, ids, 0, ids.len())?;
        self.scratch.hidden.host_mut(m * width).copy_from_slice(hidden);
        self.chunk(&mut pages, ids, None, cancel)?;
        drop(pages);
        last.clear();
        last.extend_from_slice(&self.scratch.x.host(m * width)[(m - 1) * width..]);
        self.model.forward().logits(std::slice::from_ref(&(m - 1..m)), &mut self.scratch);
        let vocab = self.model.spec().vocab as usize;
        check_finite(self.scratch.logits.host(vocab), vocab, |_| first + m - 1)
    }
}
