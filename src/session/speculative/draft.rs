//! A small model guesses what the large one will say.
//!
//! It has a session of its own, which follows the target's: on its next turn it goes back to where both agree and reads
//! what it has not seen, the last token at least. Its tokens are chosen by a copy of the target's sampler with the same
//! noise for the same position, so that both often choose the same token even where chance decides. Its errors and its
//! full cache only mean that it has no guess.

use super::{Place, Proposer};
use crate::error::{Result, Status};
use crate::kv::KvPool;
use crate::model::Model;
use crate::sampler::Sampler;
use crate::session::{Session, SessionOptions};

/// The proposer.
pub struct DraftModel {
    session: Session,
    sampler: Option<Sampler>,
}

impl std::fmt::Debug for DraftModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DraftModel({:?})", self.session)
    }
}

impl DraftModel {
    /// Guesses by `model`, whose vocabulary is the target's ([`super::check_vocabulary`]), with pages of `pool` if given,
    /// which is then a pool of `model`.
    ///
    /// # Errors
    /// As [`Session::new`] and [`Session::in_pool`].
    pub fn new(model: &Model, pool: Option<&KvPool>) -> Result<Self> {
        let options = SessionOptions::default();
        let session = match pool {
            Some(pool) => Session::in_pool(pool, options),
            None => Session::new(model, options),
        }?;
        Ok(Self { session, sampler: None })
    }
}

impl Proposer for DraftModel {
    fn name(&self) -> &'static str {
        "draft"
    }

    fn propose(&mut self, at: &Place<'_>, most: usize, out: &mut Vec<i32>) -> Result<()> {
        let position = at.position();
        // The last guess is not read.
        let most = most.min((self.session.capacity() + 1).saturating_sub(position));
        if most == 0 || position == 0 {
            return Ok(());
        }
        let agreed = at.agree(self.session.tokens()).min(position - 1);
        self.session.truncate(agreed)?;
        let unread: Vec<i32> = (agreed..position).filter_map(|index| at.token(index)).collect();
        self.session.prefill(&unread, at.cancel, None)?;
        at.sampler.imitate(&mut self.sampler);
        let Some(sampler) = &mut self.sampler else { return Ok(()) };
        for i in 0..most {
            if i > 0 {
                let Some(&last) = out.last() else { break };
                if sampler.accept(last).is_err() || sampler.is_complete() {
                    break;
                }
                self.session.decode(last, at.cancel)?;
            }
            match sampler.sample(self.session.logits()?, at.noise_position() + i as u64) {
                Ok(choice) => out.push(choice.id),
                Err(e) if e.status() == Status::DEAD_END => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
