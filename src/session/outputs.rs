//! What tokens leave behind, of any of them: logits, hidden states.
//!
//! ```text
//! ids      0 1 2 3 4 5 6 7        all run through the layers, in chunks
//! asked        2     5   7        normed, and through the head: at most LOGIT_ROWS at once
//! ```
//! Memory is a few rows, however many tokens are asked for: each row is told and then overwritten. The rows do not
//! depend on chunks or on which others are asked for. `score` and `embed` are made of this. It does not know what the
//! rows are good for.

use std::time::Instant;

use llm_kernels::FloatControl;

use super::{Control, LOGIT_ROWS, OnLogits, OnProgress, Progress, Session, check_finite};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::kv::pages::Pages;
use crate::kv::{KvPool, Turn};

/// Which tokens of a call are told of, and what.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Indices of tokens of the call, ascending; `None`: all of them.
    pub at: Option<&'a [usize]>,
    /// Whether their logits are wanted: a product with the whole vocabulary per token.
    pub logits: bool,
}

/// What a token left behind.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Its index in the call.
    pub index: usize,
    /// The hidden state: the residual stream behind the last layer, after the final norm, `[width]`.
    pub hidden: &'a [f32],
    /// Logits behind it, `[vocab]`; empty where they were not asked for.
    pub logits: &'a [f32],
}

/// Told what a token left behind.
pub type OnOutput<'a> = &'a mut dyn FnMut(Output<'_>) -> Result<()>;

impl Session {
    /// Appends `ids` and passes the logits behind each of them to `each`, in order. Nothing goes to make room.
    ///
    /// # Errors
    /// As [`Session::prefill`], and what `each` returns; the session is then as before the call.
    pub fn prefill_each(&mut self, ids: &[i32], cancel: Option<&Cancel>, each: OnLogits<'_>) -> Result<()> {
        let asked = Asked { at: None, logits: true };
        self.prefill_outputs(ids, asked, cancel, None, &mut |output| each(output.index, output.logits))
    }

    /// Appends `ids` and passes what is `asked` to `each`, in order. Nothing is taken from the pool. The session's
    /// logits are ready afterwards if those of its last token were asked for. Progress is told after each chunk; its
    /// `Stop` ends with the tokens that were told.
    ///
    /// # Errors
    /// As [`Session::prefill`], `INVALID_ARG` for indices that do not ascend or that the call does not have, and what
    /// `each` returns; the session is then as before the call, also if it was cancelled.
    pub fn prefill_outputs(
        &mut self,
        ids: &[i32],
        asked: Asked<'_>,
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
        each: OnOutput<'_>,
    ) -> Result<()> {
        let _float = FloatControl::default_for_now();
        asked.check(ids.len())?;
        self.recover(cancel)?;
        let (before, clock, pool) = (self.tokens.len(), Instant::now(), self.pool.clone());
        let mut pages = self.begin(&pool, ids, cancel)?;
        self.enter(&mut pages, ids, 0, self.options.chunk)?;
        let mut behind = 0;
        let run = self.run_asked((&pool, pages), ids, asked, cancel, progress, each, &mut behind);
        if run.is_err() {
            self.tokens.truncate(before);
        }
        let ended = self.end(before, before, behind, false, cancel, run);
        self.counters.call(ids.len(), 0, self.tokens.len() - before, clock.elapsed());
        ended
    }

    /// Runs `ids`: the first chunk has the turn `pages`, each other waits for its own. `behind` is then how many tokens
    /// the scratch's first row of logits is behind of.
    #[allow(clippy::too_many_arguments)] // what a call is, and where it stands
    fn run_asked<'a>(
        &mut self,
        (pool, pages): (&'a KvPool, Turn<'a, Pages>),
        ids: &[i32],
        asked: Asked<'_>,
        cancel: Option<&Cancel>,
        mut progress: Option<OnProgress<'_>>,
        each: OnOutput<'_>,
        behind: &mut usize,
    ) -> Result<()> {
        let (vocab, width) = (self.model.spec().vocab as usize, self.model.spec().width as usize);
        let most = LOGIT_ROWS.min(self.options.chunk);
        self.scratch.room_for_hidden(self.model.spec(), most, &mut self.charge)?;
        if asked.logits {
            self.scratch.room_for_logits(self.model.spec(), most, &mut self.charge)?;
        }
        let count = asked.at.map_or(ids.len(), <[usize]>::len);
        let index = |nth: usize| asked.at.map_or(nth, |at| at[nth]);
        let (mut told, mut done, before) = (0, 0, self.tokens.len());
        let mut rows = Vec::with_capacity(most);
        let mut turn = Some(pages);
        for chunk in ids.chunks(self.options.chunk) {
            let first = self.tokens.len();
            let mut pages = match turn.take() {
                Some(pages) => pages,
                None => pool.lock_unless(cancel)?,
            };
            self.next_room(&mut pages, before + ids.len(), chunk.len())?;
            self.chunk(&mut pages, chunk, None, cancel)?;
            self.let_go_after(&mut pages, before);
            drop(pages);
            let (start, end) = (done, done + chunk.len());
            while told < count && index(told) < end {
                rows.clear();
                let group = (told..count).take(most).map(index).take_while(|&index| index < end);
                rows.extend(group.map(|index| index - start..index - start + 1));
                let n = rows.len();
                let forward = self.model.forward();
                forward.hidden(&rows, &mut self.scratch);
                let row_of = |row: usize| first + rows[row].start;
                if asked.logits {
                    forward.head(n, &mut self.scratch);
                    check_finite(self.scratch.logits.host(n * vocab), vocab, row_of)?;
                } else {
                    check_finite(self.scratch.last.host(n * width), width, row_of)?;
                }
                for (row, place) in rows.iter().enumerate() {
                    let hidden = &self.scratch.last.host(n * width)[row * width..][..width];
                    let logits = match asked.logits {
                        true => &self.scratch.logits.host(n * vocab)[row * vocab..][..vocab],
                        false => &[],
                    };
                    each(Output { index: start + place.start, hidden, logits })?;
                }
                if asked.logits {
                    self.scratch.logits.host_mut(n * vocab).copy_within((n - 1) * vocab.., 0);
                    *behind = first + rows[n - 1].end;
                }
                told += n;
            }
            done = end;
            if let Some(progress) = progress.as_mut() {
                match progress(Progress { done, reused: 0, total: ids.len() }) {
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
}

impl Asked<'_> {
    fn check(self, tokens: usize) -> Result<()> {
        let at = self.at.unwrap_or_default();
        if let Some(pair) = at.windows(2).find(|pair| pair[0] >= pair[1]) {
            let message = format!("positions must ascend: {} comes before {}", pair[0], pair[1]);
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        match at.last() {
            Some(&last) if last >= tokens => {
                let message = format!("position {last} is asked for; the call has {tokens} tokens");
                Err(Error::new(Status::INVALID_ARG, message))
            }
            _ => Ok(()),
        }
    }
}
