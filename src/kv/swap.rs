//! Sequences that are out: their pages' bytes in memory beside the pool, so that others can have the pages.
//!
//! Pages are copied whole; coming back they may have other numbers, and what the cache still has is shared again.

use super::pages::{Pages, TableId};
use crate::error::{Error, Result, Status};

/// Contents of a table's pages, one after the other.
#[derive(Debug)]
pub(super) struct Swapped {
    bytes: Vec<u8>,
    /// As the table has it while its pages are in.
    foreign: usize,
}

impl Pages {
    /// Whether the table's pages are out.
    pub(crate) fn is_out(&self, id: TableId) -> bool {
        self.table(id).swapped.is_some()
    }

    /// Copies the pages of the table's `tokens` tokens out and gives all its pages back. Nothing happens to a table
    /// that is out.
    ///
    /// # Errors
    /// `BUDGET` where the swap limit would be passed, `NO_MEMORY`; nothing has changed then.
    pub(crate) fn swap_out(&mut self, id: TableId, tokens: usize) -> Result<()> {
        if self.is_out(id) {
            return Ok(());
        }
        let shape = self.store.shape();
        let count = tokens.div_ceil(shape.tokens);
        let size = count * shape.bytes;
        if self.swap_used + size as u64 > self.swap_limit {
            let message = format!(
                "swapping out {size} bytes: {} of {} swap bytes are in use; raise swap_bytes",
                self.swap_used, self.swap_limit
            );
            return Err(Error::new(Status::BUDGET, message).with("needed", size as i64));
        }
        let mut bytes = Vec::new();
        let refused = |_| Error::new(Status::NO_MEMORY, format!("swapping out {size} bytes: no memory"));
        bytes.try_reserve_exact(size).map_err(refused)?;
        for &page in &self.table(id).pages[..count] {
            bytes.extend_from_slice(self.store.page(page));
        }
        let foreign = self.table(id).foreign;
        self.truncate(id, 0, 0);
        self.swap_used += size as u64;
        self.table_mut(id).swapped = Some(Swapped { bytes, foreign });
        Ok(())
    }

    /// Brings the pages of a table that is out back; they hold `tokens`, all tokens of the sequence.
    ///
    /// # Errors
    /// `KV_FULL`, `BUDGET`; the table is out as before then.
    pub(crate) fn swap_in(&mut self, id: TableId, tokens: &[i32]) -> Result<()> {
        let Some(swapped) = self.table_mut(id).swapped.take() else { return Ok(()) };
        let size = self.store.shape().bytes;
        // What was not computed from the tokens is not exchanged for what was.
        let page = self.store.shape().tokens;
        let most = swapped.foreign.saturating_mul(page).min(tokens.len());
        let held = self.adopt(id, 0, tokens, most) / page;
        let mut taken = Vec::new();
        for _ in held..swapped.bytes.len() / size {
            match self.take() {
                Ok(page) => taken.push(page),
                Err(e) => {
                    taken.into_iter().for_each(|page| self.put_back(page));
                    self.truncate(id, 0, 0);
                    self.table_mut(id).swapped = Some(swapped);
                    return Err(e);
                }
            }
        }
        for (page, content) in taken.into_iter().zip(swapped.bytes.chunks_exact(size).skip(held)) {
            self.append(id, page);
            self.store.page_mut(page).copy_from_slice(content);
        }
        self.swap_used -= swapped.bytes.len() as u64;
        self.table_mut(id).foreign = swapped.foreign;
        self.publish(id, tokens);
        Ok(())
    }

    /// Keeps the first `pages` pages of a table that is out.
    pub(super) fn truncate_swapped(&mut self, id: TableId, pages: usize) {
        let size = self.store.shape().bytes;
        let Some(swapped) = &mut self.table_mut(id).swapped else { return };
        let before = swapped.bytes.len();
        swapped.bytes.truncate(pages * size);
        let less = (before - swapped.bytes.len()) as u64;
        if pages <= swapped.foreign {
            swapped.foreign = usize::MAX;
        }
        if pages == 0 {
            self.table_mut(id).swapped = None;
        }
        self.swap_used -= less;
    }
}
