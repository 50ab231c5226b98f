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
