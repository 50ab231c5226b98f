//! A head of the model's own guesses on from the model's last hidden vector (model::draft tells what it is).
//!
//! ```text
//! held      t0   t1   t2   t3         pending t4         the head's session: pairs (h0 t1)(h1 t2)(h2 t3)(h3 t4)
//! hidden    h0   h1   h2   h3                            ─▶ guess for t5; then (its own h, guess) ─▶ guess for t6 …
//! ```
//! Its session holds the tokens from `base` on: those whose hidden vectors it was given. On its next turn the pairs made
//! of its own guesses are forgotten, and those that came true are read again with the model's vectors.

use super::{Place, Proposer};
use crate::error::{Result, Status};
use crate::model::Model;
use crate::sampler::Sampler;
use crate::session::{Session, SessionOptions};

/// The proposer.
pub struct DraftHead {
    session: Session,
    sampler: Option<Sampler>,
    /// Position of the first token that the session holds.
    base: usize,
    /// Tokens that it read with the model's vectors.
    read: usize,
    last: Vec<f32>,
}

impl std::fmt::Debug for DraftHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DraftHead({:?})", self.session)
    }
}

impl DraftHead {
    /// Guesses by `head`, the draft of a model ([`Model::draft`]).
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(head: &Model) -> Result<Self> {
        let session = Session::alone(head, SessionOptions::default())?;
        Ok(Self { session, sampler: None, base: 1, read: 0, last: Vec::new() })
    }
}

impl Proposer for DraftHead {
    fn name(&self) -> &'static str {
        "head"
    }

    fn wants_hidden(&self) -> bool {
        true
    }

    fn propose(&mut self, at: &Place<'_>, most: usize, out: &mut Vec<i32>) -> Result<()> {
        // Of tokens that are to be computed yet only the first has a vector before it.
        let (Some((from, rows)), [_]) = (at.hidden, at.pending) else { return Ok(()) };
        let (position, width) = (at.position(), self.session.model().spec().width as usize);
        let known = &self.session.tokens()[..self.read];
        let same = |(i, id): &(usize, &i32)| at.token(self.base + i).as_ref() == Some(*id);
        let mut agreed = known.iter().enumerate().take_while(same).count();
        // The last token is read in any case.
        agreed = agreed.min((position - 1).saturating_sub(self.base));
        if agreed == 0 || self.base + agreed <= from {
            (agreed, self.base) = (0, from + 1);
        }
        let first = self.base + agreed;
        self.session.truncate(agreed)?;
        self.read = agreed;
        let ids: Vec<i32> = (first..position).filter_map(|index| at.token(index)).collect();
        let most = most.min(self.session.capacity().saturating_sub(agreed + ids.len()));
        let Some(vectors) = rows.get((first - 1 - from) * width..).filter(|_| most > 0) else {
            return Ok(());
        };
        self.session.read_joined(&ids, vectors, at.cancel, &mut self.last)?;
        self.read = self.session.len();
        at.sampler.imitate(&mut self.sampler);
        let Some(sampler) = &mut self.sampler else { return Ok(()) };
        for i in 0..most {
            match sampler.sample(self.session.logits()?, at.noise_position() + i as u64) {
                Ok(choice) => out.push(choice.id),
                Err(e) if e.status() == Status::DEAD_END => break,
                Err(e) => return Err(e),
            }
            let Some(&id) = out.last().filter(|_| i + 1 < most) else { break };
            if sampler.accept(id).is_err() || sampler.is_complete() {
                break;
            }
            let vector = self.last.clone();
            self.session.read_joined(&[id], &vector, at.cancel, &mut self.last)?;
        }
        Ok(())
    }
}
