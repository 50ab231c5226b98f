//! What a session does with the pool it shares: forks, the prefix cache, reservations, pins, swapping.

use super::Session;
use crate::error::{Error, Result, Status};
use crate::kv::KvPool;

impl Session {
    /// The pool its pages are of.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// A session of the same pool, options and tokens that goes its own way. Pages are shared; one that only one of
    /// them goes on in is copied when it is written first. Logits come along.
    ///
    /// # Errors
    /// `NO_MEMORY`, `BUDGET`; `KV_FULL` where a swapped session cannot come back.
    pub fn fork(&mut self) -> Result<Session> {
        let mut tokens = Vec::new();
        let refused = |_| Error::new(Status::NO_MEMORY, "no memory for the tokens of a fork");
        tokens.try_reserve(self.tokens.len()).map_err(refused)?;
        tokens.extend_from_slice(&self.tokens);
        let charge = self.model.runtime().charge(crate::runtime::Memory::Scratch, 0)?;
        let table = {
            let mut pages = self.pool.lock();
            let held = self.tokens.len() - self.missing;
            pages.swap_in(self.table, &self.tokens[..held])?;
            pages.fork(self.table, held)
        };
        let (pool, options, rope) =
            (self.pool.clone(), self.options.clone(), (self.root, self.ropes.clone()));
        let mut fork = Session::with_table(pool, table, charge, options, self.capacity, rope)?;
        fork.tokens = tokens;
        fork.missing = self.missing;
        (fork.dropped, fork.moved_from) = (self.dropped, self.moved_from);
        fork.adapters = self.adapters.clone();
        fork.logits.copy_from_slice(&self.logits);
        fork.logits_at = self.logits_at;
        Ok(fork)
    }

    /// How many tokens at the beginning of `ids` need not be computed: those the session holds, or those that the
    /// pool could give to an empty session like it, whichever are more.
    pub fn match_prefix(&self, ids: &[i32]) -> usize {
        let held = self.tokens.iter().zip(ids).take_while(|(a, b)| a == b).count();
        held.max(self.pool.lock().find(self.table, ids))
    }

    /// Appends what the pool holds of `ids`, in whole pages, without computing anything: a session at the end of a
    /// whole page goes on with pages that follow it. Returns how many tokens were appended; there are no logits
    /// behind them. A prefill does this by itself for all but its last token.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn reuse(&mut self, ids: &[i32]) -> Result<usize> {
        self.check_ids(ids)?;
        self.recover(None)?;
        let mut pages = self.pool.lock();
        pages.swap_in(self.table, &self.tokens)?;
        let reused = pages.adopt(self.table, self.tokens.len(), ids, ids.len());
        self.tokens.extend_from_slice(&ids[..reused]);
        pages.let_go(self.table, 0, self.tokens.len());
        self.verified = 0;
        self.counters.call(ids.len(), reused, 0, std::time::Duration::ZERO);
        Ok(reused)
    }

    /// Makes sure that `tokens` tokens more find room in the pool, until the session is truncated, reset or swapped
    /// out. Pages reserved are not exchanged for cached ones: call [`Session::reuse`] before.
    ///
    /// # Errors
    /// `CONTEXT_FULL`, `KV_FULL`, `BUDGET`; nothing has changed then.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        let held = self.tokens.len();
        if tokens > self.capacity - held {
            let message = format!(
                "reserving {tokens} tokens: the session holds {held} of at most {}; raise max_tokens",
                self.capacity
            );
            return Err(Error::new(Status::CONTEXT_FULL, message));
        }
        self.recover(None)?;
        let mut pages = self.pool.lock();
        pages.swap_in(self.table, &self.tokens)?;
        pages.room(self.table, held, held + tokens, held + tokens)?;
        self.reserved = self.reserved.max(held + tokens);
        Ok(())
    }

    /// Protects the session's full pages from eviction, also after its end, until [`Session::unpin`] of a session
    /// that holds them or [`KvPool::clear_cache`]. Returns how many tokens that are: 0 without a prefix cache.
    pub fn pin(&mut self) -> usize {
        self.set_pin(true)
    }

    /// Takes back one [`Session::pin`] of each full page. Returns how many tokens those hold.
    pub fn unpin(&mut self) -> usize {
        self.set_pin(false)
    }

    fn set_pin(&mut self, pin: bool) -> usize {
        let mut pages = self.pool.lock();
        pages.pin(self.table, pin) * pages.store().shape().tokens
    }

    /// Copies the session's pages to memory beside the pool and gives them back. The next call that needs them brings
    /// them back by itself.
    ///
    /// # Errors
    /// `BUDGET` where the pool's `swap_bytes` would be passed, `NO_MEMORY`; nothing has changed then.
    pub fn swap_out(&mut self) -> Result<()> {
        self.pool.lock().swap_out(self.table, self.tokens.len() - self.missing)?;
        self.reserved = 0;
        Ok(())
    }

    /// Brings the pages back.
    ///
    /// # Errors
    /// `KV_FULL`, `BUDGET`; the session is swapped out as before then.
    pub fn swap_in(&mut self) -> Result<()> {
        self.pool.lock().swap_in(self.table, &self.tokens[..self.tokens.len() - self.missing])
    }

    /// Whether its pages are out.
    pub fn is_swapped_out(&self) -> bool {
        self.pool.lock().is_out(self.table)
    }
}
