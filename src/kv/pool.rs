//! Pages: address space for all of them is reserved at once, the system commits what is written.

use super::PageShape;
use crate::error::{Error, Result, Status};
use crate::mmap::Reservation;
use crate::runtime::{Charge, Memory, Runtime};

/// The pages of a cache.
#[derive(Debug)]
pub(crate) struct Pool {
    shape: PageShape,
    arena: Reservation,
    /// Pages there are.
    pages: u32,
    /// Pages that were used and given back; the last one given is the next taken, because it is warm.
    free: Vec<u32>,
    /// Pages from here on were never used.
    fresh: u32,
    charge: Charge,
}

impl Pool {
    /// Room for `tokens` tokens of one sequence.
    ///
    /// # Errors
    /// `NO_MEMORY` if the address space is refused.
    pub(crate) fn new(runtime: &Runtime, shape: PageShape, tokens: usize) -> Result<Self> {
        let pages = tokens.div_ceil(shape.tokens);
        let too_large = || {
            let message = format!(
                "a KV cache for {tokens} tokens, {} bytes for every {}, does not fit memory; lower max_tokens",
                shape.bytes, shape.tokens
            );
            Error::new(Status::NO_MEMORY, message)
        };
        let count = u32::try_from(pages).map_err(|_| too_large())?;
        let bytes = pages.checked_mul(shape.bytes).ok_or_else(too_large)?;
        let arena = Reservation::new(bytes).map_err(|e| e.context(too_large()))?;
        let charge = runtime.charge(Memory::Kv, 0)?;
        Ok(Self { shape, arena, pages: count, free: Vec::new(), fresh: 0, charge })
    }

    /// Where things lie in a page.
    pub(crate) fn shape(&self) -> &PageShape {
        &self.shape
    }

    /// Takes a page.
    ///
    /// # Errors
    /// `KV_FULL` when all are in use, `BUDGET` when a first use would pass the runtime's limit.
    pub(crate) fn take(&mut self) -> Result<u32> {
        if let Some(page) = self.free.pop() {
            return Ok(page);
        }
        if self.fresh == self.pages {
            let message = format!("all {} pages of the KV cache are in use", self.pages);
            return Err(Error::new(Status::KV_FULL, message));
        }
        self.charge.grow(self.shape.bytes as u64)?;
        self.fresh += 1;
        Ok(self.fresh - 1)
    }

    /// Gives a page back.
    pub(crate) fn give(&mut self, page: u32) {
        debug_assert!(page < self.fresh && !self.free.contains(&page));
        self.free.push(page);
    }

    /// All pages, one after the other.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.arena
    }

    /// All pages, one after the other.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// Pages in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.fresh as usize - self.free.len()
    }
}
