//! What a session does when its tokens do not fit: an error, or what lies between a head and the newest tokens goes.
//!
//! ```text
//! held           [head][ dropped              ][ tail ] + ids
//! recompute      [head][ tail, run afresh ] + ids          the bits of a fresh session of these tokens
//! shift          [head][ tail, moved ] + ids               approximate: the tail remembers what was dropped
//! ```
//! Half of what is not head is kept as the tail, so that this happens once for every half context and a token is
//! moved once at most, seldom twice. The old pages stay until all is done: a call that fails, or is cancelled with
//! `rollback_on_cancel`, leaves the session as it was, dropped tokens included. That takes pages for the tail beside
//! the old ones for so long; a session with pages of its own has them.

use super::{OnProgress, Session, check_vocab};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::kv::pages::TableId;
use crate::kv::shift::Turn;
use crate::model::rope::Frequencies;
use crate::model::spec::Spec;

/// What happens when tokens do not fit behind those a session holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Overflow {
    /// `CONTEXT_FULL`.
    #[default]
    Error,
    /// The first `head` tokens and the newest ones are kept, and the newest run through the model again at their new
    /// positions. Everything after is what a fresh session of the kept tokens computes, bit for bit. It costs a
    /// prefill of up to half the context, once for every half context.
    Recompute {
        /// Tokens at the beginning that stay.
        head: usize,
    },
    /// The first `head` tokens and the newest ones are kept, and the keys of the newest are moved to their new
    /// positions. It costs about what copying them costs. What follows is approximate: what was computed with dropped
    /// tokens in sight stays so, and moved keys are rounded once more. No promise of same bits holds from there on.
    Shift {
        /// Tokens at the beginning that stay.
        head: usize,
    },
}

impl Overflow {
    /// Refuses what a session of `capacity` tokens of `spec` cannot do.
    pub(super) fn check(self, spec: &Spec, capacity: usize, rope_running: bool) -> Result<()> {
        if let Some(head) = self.head()
            && head >= capacity
        {
            let message = format!(
                "an overflow that keeps {head} tokens at the beginning leaves no room for others in a session of \
                 {capacity}; keep fewer, or raise max_tokens"
            );
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let why = if !matches!(self, Overflow::Shift { .. }) {
            return Ok(());
        } else if spec.learned_positions.is_some() {
            "this model adds learned positions to its tokens"
        } else if rope_running && spec.ropes.iter().any(Frequencies::vary) {
            "with a running rotary length every key may have its own frequencies"
        } else {
            return Ok(());
        };
        let message = format!("{why}, so keys cannot be moved: let an overflow recompute them");
        Err(Error::new(Status::UNSUPPORTED, message))
    }

    /// Tokens there must be pages for beside the session's `capacity`.
    pub(super) fn beside(self, capacity: usize) -> usize {
        if self == Overflow::Error { 0 } else { capacity }
    }

    fn head(self) -> Option<usize> {
        match self {
            Overflow::Error => None,
            Overflow::Recompute { head } | Overflow::Shift { head } => Some(head),
        }
    }
}

/// A session before something went.
struct Before {
    table: TableId,
    tokens: Vec<i32>,
    dropped: usize,
    moved_from: Option<usize>,
    reserved: usize,
    logits_at: Option<usize>,
}

impl Session {
    /// Makes room for `tokens` tokens more as [`super::SessionOptions::overflow`] says, if there is none. Prefilling
    /// and decoding do it by themselves; batches and [`Session::prefill_each`] do not. Returns how many tokens went.
    ///
    /// # Errors
    /// As [`Session::prefill`]; the session is then as before.
    pub fn make_room(&mut self, tokens: usize, cancel: Option<&Cancel>) -> Result<usize> {
        let _float = llm_kernels::FloatControl::default_for_now();
        self.recover(cancel)?;
        if !self.overflows(tokens) {
            return match self.capacity - self.tokens.len() {
                room if room < tokens => Err(self.too_many(tokens, self.tokens.len())),
                _ => Ok(0),
            };
        }
        let had_logits = self.logits().is_ok();
        let (before, rest) = self.drop_for(tokens, cancel)?;
        let start = self.tokens.len();
        let mut run = Ok(());
        if !rest.is_empty() {
            run = self.prefill_fitting(&rest, cancel, None);
            if self.tokens.len() == start {
                self.go_back(before);
                return run.map(|()| 0);
            }
        } else if had_logits && self.moved_from.is_some_and(|from| from < start) {
            // Moving computes nothing, and the newest token is the same.
            self.logits_at = Some(start);
        }
        let dropped = self.dropped - before.dropped;
        self.pool.close_soon(before.table);
        run.map(|()| dropped)
    }

    /// Whether `more` tokens need others to go.
    pub(super) fn overflows(&self, more: usize) -> bool {
        self.options.overflow != Overflow::Error && more > self.capacity - self.tokens.len()
    }

    /// [`Session::prefill`] of ids that do not fit.
    pub(super) fn prefill_over(
        &mut self,
        ids: &[i32],
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
    ) -> Result<()> {
        check_vocab(self.model.spec().vocab, ids)?;
        let (before, mut rest) = self.drop_for(ids.len(), cancel)?;
        rest.extend_from_slice(ids);
        let start = self.tokens.len();
        let run = self.prefill_fitting(&rest, cancel, progress);
        // An end with nothing computed is an end as before.
        if self.tokens.len() > start {
            self.pool.close_soon(before.table);
        } else {
            self.go_back(before);
        }
        run
    }

    /// Keeps the head and, where tokens are moved, the tail; `more` tokens fit then, with the tail where that is to be
    /// run again. Returns the session as it was, and the tokens kept that are to run again.
    fn drop_for(&mut self, more: usize, cancel: Option<&Cancel>) -> Result<(Before, Vec<i32>)> {
        let held = self.tokens.len();
        let head = self.options.overflow.head().unwrap_or(0).min(held);
        if more > self.capacity - head {
            return Err(self.too_many(more, head));
        }
        let tail = ((self.capacity - head) / 2).min(self.capacity - head - more).min(held - head);
        let mut tokens = self.tokens[..head].to_vec();
        let mut rest = Vec::new();
        let by = head as f64 - (held - tail) as f64;
        let (table, moves) = {
            let mut pages = self.pool.lock_unless(cancel)?;
            pages.swap_in(self.table, &self.tokens)?;
            let mut moved = None;
            if matches!(self.options.overflow, Overflow::Shift { .. }) {
                let turns = Turn::of(self.model.spec(), &self.ropes, by);
                moved = pages.moved(self.table, held, (head, tail), &turns, cancel)?;
            }
            match moved {
                Some(table) => (table, true),
                None => {
                    // Keys that follow a running length are those of no other length, and those that were moved (by
                    // the session that a snapshot was made of) not those that are computed.
                    let computed = self.moved_from.is_none_or(|from| from >= head);
                    let stays = computed && self.root.is_some() && pages.covers(self.table, head);
                    let stays = if stays { head } else { 0 };
                    rest.extend(tokens.drain(stays..));
                    rest.extend_from_slice(&self.tokens[held - tail..]);
                    (pages.fork(self.table, stays), false)
                }
            }
        };
        let mut moved_from = self.moved_from.filter(|&from| from < head.min(tokens.len()));
        if moves {
            tokens.extend_from_slice(&self.tokens[held - tail..]);
            moved_from = Some(moved_from.unwrap_or(head)).filter(|&from| from < tokens.len());
        }
        let before = Before {
            table: std::mem::replace(&mut self.table, table),
            tokens: std::mem::replace(&mut self.tokens, tokens),
            dropped: self.dropped,
            moved_from: self.moved_from,
            reserved: self.reserved,
            // As many tokens as there were may be there again, and be others.
            logits_at: self.logits_at.take(),
        };
        self.verified = 0;
        self.forget_hidden();
        self.dropped += held - head - tail;
        (self.moved_from, self.reserved) = (moved_from, 0);
        Ok((before, rest))
    }

    fn go_back(&mut self, before: Before) {
        self.pool.close_soon(self.table);
        self.table = before.table;
        self.tokens = before.tokens;
        self.dropped = before.dropped;
        self.moved_from = before.moved_from;
        self.reserved = before.reserved;
        self.logits_at = before.logits_at;
    }

    fn too_many(&self, more: usize, head: usize) -> Error {
        let message = format!(
            "{more} tokens more do not fit: the session holds at most {} and keeps {head}; raise max_tokens",
            self.capacity
        );
        let needed = i64::try_from(head.saturating_add(more)).unwrap_or(i64::MAX);
        Error::new(Status::CONTEXT_FULL, message).with("needed", needed)
    }
}
