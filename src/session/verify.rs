//! A step whose last tokens are guesses: computed at once, kept as far as they turn out right.
//!
//! It is a chunk of prefill with the logits of several rows, so what it computes are the bits of decoding one by one.
//! Pages are found again by others only once it is known what is kept.

use std::time::Instant;

use llm_kernels::FloatControl;

use super::{Session, check_finite};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::model::rope::Frequencies;

/// The most tokens of such a step: bounds scratch, whatever a prefill may take.
const MOST_VERIFIED: usize = 64;

impl Session {
    /// How many tokens [`Session::verify`] takes now. None where rotations follow the running length: there the bits
    /// depend on how tokens are divided into calls.
    pub fn verifiable(&self) -> usize {
        if self.options.rope_running && self.model.spec().ropes.iter().any(Frequencies::vary) {
            return 0;
        }
        MOST_VERIFIED.min(self.capacity - self.tokens.len())
    }

    /// Appends `ids` in one step and computes the logits behind each of the last `rows` of them. The session has no
    /// logits then until [`Session::keep`].
    ///
    /// # Errors
    /// As [`Session::prefill`], and `INVALID_ARG` for more ids than [`Session::verifiable`] or for rows without ids.
    /// The session is then as before the call.
    pub fn verify(&mut self, ids: &[i32], rows: usize, cancel: Option<&Cancel>) -> Result<()> {
        let _float = FloatControl::default_for_now();
        let clock = Instant::now();
        self.verified = 0;
        self.recover(cancel)?;
        self.check_ids(ids)?;
        if rows == 0 || rows > ids.len() || ids.len() > self.verifiable() {
            let message = format!(
                "verify: expected 1 to {} tokens and logits of 1 or more of them, got {} tokens and {rows} rows",
                self.verifiable(),
                ids.len()
            );
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        self.scratch.room(self.model.spec(), ids.len(), &mut self.charge)?;
        self.scratch.room_for_logits(self.model.spec(), rows, &mut self.charge)?;
        self.scratch.room_for_adapters(ids.len(), self.rank(), &mut self.charge)?;
        let (before, pool) = (self.tokens.len(), self.pool.clone());
        let mut pages = pool.lock_unless(cancel)?;
        self.enter(&mut pages, ids, 0, ids.len())?;
        let first = ids.len() - rows;
        let computed = self.chunk(&mut pages, ids, None, cancel);
        drop(pages);
        let run = computed.and_then(|()| {
            self.model.forward().logits(std::slice::from_ref(&(first..ids.len())), &mut self.scratch);
            let vocab = self.model.spec().vocab as usize;
            check_finite(self.scratch.logits.host(rows * vocab), vocab, |row| before + first + row)
        });
        match run {
            Ok(()) => {
                self.verified = rows;
                self.counters.call(ids.len(), 0, ids.len(), clock.elapsed());
            }
            Err(_) => self.forget(before),
        }
        run
    }

    /// Logits of row `row` of the last [`Session::verify`], `[vocab]`.
    ///
    /// # Errors
    /// `BAD_STATE` where there is no such row, or another call followed.
    pub fn verified_row(&self, row: usize) -> Result<&[f32]> {
        let vocab = self.model.spec().vocab as usize;
        if row >= self.verified {
            let message = format!("row {row}: the session holds {} rows of a verification", self.verified);
            return Err(Error::new(Status::BAD_STATE, message));
        }
        Ok(&self.scratch.logits.host((row + 1) * vocab)[row * vocab..])
    }

    /// Keeps the first `tokens` tokens of a verification, at least those before its guesses, and the logits behind the
    /// last of them: `logits` where the step ran in a batch, else those that it computed.
    ///
    /// # Errors
    /// `BAD_STATE` where it computed none there, `INVALID_ARG` for logits that are not a row or more tokens than held.
    pub fn keep(&mut self, tokens: usize, logits: Option<&[f32]>) -> Result<()> {
        let vocab = self.model.spec().vocab as usize;
        let held = self.tokens.len();
        if tokens > held || logits.is_some_and(|row| row.len() != vocab) {
            let message =
                format!("keep: expected at most {held} tokens and {vocab} logits, got {tokens} tokens");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        match logits {
            Some(row) => self.logits.copy_from_slice(row),
            None => {
                let row = (tokens + self.verified).checked_sub(held + 1).ok_or_else(|| {
                    Error::new(Status::BAD_STATE, format!("keep {tokens} tokens: no logits behind them"))
                })?;
                let row = &self.scratch.logits.host((row + 1) * vocab)[row * vocab..];
                self.logits.copy_from_slice(row);
            }
        }
        let reached = held - self.missing;
        self.keep_tokens(tokens);
        self.logits_at = Some(tokens).filter(|&tokens| tokens > 0);
        let mut pages = self.pool.lock();
        let covered = match tokens <= reached {
            true => pages.truncate(self.table, tokens, self.reserved),
            false => reached,
        };
        self.missing = tokens - covered;
        if self.missing > 0 {
            // Further back than a window: what is kept runs again with the next call.
            self.reserved = 0;
            self.moved_from = self.moved_from.filter(|&from| from < covered);
            return Ok(());
        }
        // Pages that are out are published when they come back.
        if !pages.is_out(self.table) {
            pages.publish(self.table, &self.tokens);
            pages.let_go(self.table, 0, tokens);
        }
        Ok(())
    }
}
