//! The bytes of pages: address space for all of them is reserved at once, the system commits what is written.
//!
//! It does not know which pages are in use, nor by whom.

use super::PageShape;
use crate::error::{Error, Result, Status};
use crate::mmap::Reservation;
use crate::runtime::{Charge, Memory, Runtime};

/// Memory of pages of one shape.
#[derive(Debug)]
pub(crate) struct Store {
    shape: PageShape,
    arena: Reservation,
    /// Pages there is address space for.
    capacity: u32,
    /// Pages from here on were never written since the start, or since they were given back to the system.
    committed: u32,
    charge: Charge,
}

impl Store {
    /// Address space for `pages` pages.
    ///
    /// # Errors
    /// `NO_MEMORY` if it is refused.
    pub(crate) fn new(runtime: &Runtime, shape: PageShape, pages: usize) -> Result<Self> {
        let (arena, capacity) = reserve(&shape, pages)?;
        let charge = runtime.charge(Memory::Kv, 0)?;
        Ok(Self { shape, arena, capacity, committed: 0, charge })
    }

    /// Where things lie in a page.
    pub(crate) fn shape(&self) -> &PageShape {
        &self.shape
    }

    /// All pages, one after the other.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.arena
    }

    /// All pages, one after the other.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// One page.
    pub(crate) fn page(&self, page: u32) -> &[u8] {
        &self.arena[page as usize * self.shape.bytes..][..self.shape.bytes]
    }

    /// One page.
    pub(crate) fn page_mut(&mut self, page: u32) -> &mut [u8] {
        &mut self.arena[page as usize * self.shape.bytes..][..self.shape.bytes]
    }

    /// Pages that were ever written.
    pub(crate) fn committed(&self) -> u32 {
        self.committed
    }

    /// Counts one page more as written.
    ///
    /// # Errors
    /// `BUDGET` where that would pass the runtime's limit.
    pub(crate) fn commit(&mut self) -> Result<u32> {
        debug_assert!(self.committed < self.capacity);
        self.charge.grow(self.shape.bytes as u64)?;
        self.committed += 1;
        Ok(self.committed - 1)
    }

    /// Copies page `from` over page `to`.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        let (from, bytes) = (from as usize * self.shape.bytes, self.shape.bytes);
        self.arena.copy_within(from..from + bytes, to as usize * bytes);
    }

    /// Gives the memory of pages from `pages` on back to the system.
    pub(crate) fn discard(&mut self, pages: u32) {
        let bytes = self.shape.bytes;
        if pages < self.committed && self.arena.discard(pages as usize * bytes) {
            self.charge.shrink(u64::from(self.committed - pages) * bytes as u64);
            self.committed = pages;
        }
    }

    /// Has address space for `pages` pages from now on. More than ever before takes new space and copies what was
    /// written.
    ///
    /// # Errors
    /// `NO_MEMORY`; nothing has changed then.
    pub(crate) fn resize(&mut self, pages: usize) -> Result<()> {
        if pages > self.capacity as usize {
            let (mut arena, capacity) = reserve(&self.shape, pages)?;
            let written = self.committed as usize * self.shape.bytes;
            arena[..written].copy_from_slice(&self.arena[..written]);
            (self.arena, self.capacity) = (arena, capacity);
        }
        Ok(())
    }
}

fn reserve(shape: &PageShape, pages: usize) -> Result<(Reservation, u32)> {
    let refused = || {
        let message = format!(
            "a KV cache of {pages} pages, {} bytes for every {} tokens, does not fit memory; lower max_tokens or \
             the budget",
            shape.bytes, shape.tokens
        );
        Error::new(Status::NO_MEMORY, message)
    };
    let count = u32::try_from(pages).map_err(|_| refused())?;
    let bytes = pages.checked_mul(shape.bytes).ok_or_else(refused)?;
    let arena = Reservation::new(bytes).map_err(|e| e.context(refused()))?;
    Ok((arena, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RuntimeOptions;

    fn runtime(host_limit: Option<u64>) -> Runtime {
        Runtime::new(RuntimeOptions { threads: 1, host_limit, ..Default::default() }).unwrap()
    }

    fn shape(bytes: usize) -> PageShape {
        PageShape { layers: Vec::new(), windows: vec![None], tokens: 16, bytes }
    }

    #[test]
    fn what_is_committed_is_counted_and_comes_back() {
        let runtime = runtime(Some(3 << 16));
        let used = || runtime.memory_use(Memory::Kv);
        let mut store = Store::new(&runtime, shape(1 << 16), 7).unwrap();
        assert_eq!(used(), 0);
        for page in 0..3 {
            assert_eq!(store.commit().unwrap(), page);
            store.page_mut(page).fill(page as u8 + 1);
        }
        assert_eq!(store.commit().unwrap_err().status(), Status::BUDGET);
        store.copy(2, 0);
        store.resize(100).unwrap();
        assert!(store.page(0).iter().all(|b| *b == 3) && store.page(1).iter().all(|b| *b == 2));
        assert_eq!(used(), 3 << 16);
        store.discard(1);
        assert!(store.committed() == 3 || used() == 1 << 16);
        assert!(store.page(0).iter().all(|b| *b == 3));
        drop(store);
        assert_eq!(used(), 0);
    }

    #[test]
    fn a_cache_beyond_the_address_space_is_refused() {
        let refused = Store::new(&runtime(None), shape(1 << 60), 1 << 26);
        assert_eq!(refused.unwrap_err().status(), Status::NO_MEMORY);
    }
}
