//! The page table of a sequence.

use super::pool::Pool;
use crate::error::Result;

/// Which pages hold a sequence's tokens, in order.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pages: Vec<u32>,
}

impl Table {
    /// Makes room for `tokens` tokens in all: all of the pages it takes, or none.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub(crate) fn reserve(&mut self, pool: &mut Pool, tokens: usize) -> Result<()> {
        let before = self.pages.len();
        while self.pages.len() * pool.shape().tokens < tokens {
            match pool.take() {
                Ok(page) => self.pages.push(page),
                Err(e) => {
                    self.keep(pool, before);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Gives back the pages that no token below `tokens` lies in.
    pub(crate) fn truncate(&mut self, pool: &mut Pool, tokens: usize) {
        self.keep(pool, tokens.div_ceil(pool.shape().tokens));
    }

    fn keep(&mut self, pool: &mut Pool, pages: usize) {
        while self.pages.len() > pages {
            if let Some(page) = self.pages.pop() {
                pool.give(page);
            }
        }
    }

    /// The pages.
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::kv::PageShape;
    use crate::runtime::{Memory, Runtime, RuntimeOptions};

    fn runtime(host_limit: Option<u64>) -> Runtime {
        Runtime::new(RuntimeOptions { threads: 1, host_limit, ..Default::default() }).unwrap()
    }

    fn pool(runtime: &Runtime, tokens: usize) -> Pool {
        Pool::new(runtime, PageShape { layers: Vec::new(), tokens: 16, bytes: 4096 }, tokens).unwrap()
    }

    #[test]
    fn pages_come_and_go_with_the_tokens() {
        let runtime = runtime(None);
        let mut pool = pool(&runtime, 100); // 7 pages
        let (mut a, mut b) = (Table::default(), Table::default());
        a.reserve(&mut pool, 33).unwrap();
        b.reserve(&mut pool, 16).unwrap();
        assert_eq!((a.pages().len(), b.pages().len(), pool.used()), (3, 1, 4));
        a.truncate(&mut pool, 17);
        assert_eq!((a.pages().len(), pool.used()), (2, 3));
        b.reserve(&mut pool, 80).unwrap();
        let mut all = [a.pages(), b.pages()].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 7);
        a.truncate(&mut pool, 0);
        b.truncate(&mut pool, 0);
        assert_eq!(pool.used(), 0);
        assert_eq!(runtime.memory_use(Memory::Kv), 7 * 4096);
        drop(pool);
        assert_eq!(runtime.memory_use(Memory::Kv), 0);
    }

    #[test]
    fn a_reservation_that_does_not_fit_takes_nothing() {
        let runtime_ = runtime(None);
        let mut small = pool(&runtime_, 64);
        let mut table = Table::default();
        table.reserve(&mut small, 20).unwrap();
        let before = table.pages().to_vec();
        assert_eq!(table.reserve(&mut small, 65).unwrap_err().status(), Status::KV_FULL);
        assert_eq!((table.pages(), small.used()), (&before[..], 2));

        let limited = runtime(Some(3 * 4096));
        let mut pool = pool(&limited, 160);
        let mut table = Table::default();
        assert_eq!(table.reserve(&mut pool, 49).unwrap_err().status(), Status::BUDGET);
        assert_eq!(pool.used(), 0);
        table.reserve(&mut pool, 48).unwrap();
    }

    #[test]
    fn a_cache_beyond_the_address_space_is_refused() {
        let shape = PageShape { layers: Vec::new(), tokens: 16, bytes: 1 << 60 };
        let refused = Pool::new(&runtime(None), shape, 1 << 30);
        assert_eq!(refused.unwrap_err().status(), Status::NO_MEMORY);
    }
}
