//! Contents of sequences outside the pool: those that are out, so that others can have their pages, and snapshots.
//!
//! ```text
//! content = [page of tokens 0: group 0, group 1, ..][page of tokens 1: ..] ..    what the next token sees, no more
//! ```
//! Pages are copied whole; coming back they may have other numbers, and what the cache still has is shared again.

use super::pages::{Pages, TableId};
use super::prefix::NONE;
use super::shape::PageShape;
use crate::error::{Error, Result, Status};

/// Contents of a table's pages.
#[derive(Debug)]
pub(super) struct Swapped {
    bytes: Vec<u8>,
    /// Tokens they hold.
    tokens: usize,
    /// As the table has it while its pages are in.
    foreign: usize,
}

impl Swapped {
    /// Whether it has what is seen behind the first `tokens` tokens.
    pub(super) fn covers(&self, tokens: usize, shape: &PageShape) -> bool {
        !shape.is_windowed() || tokens == self.tokens
    }
}

impl Pages {
    /// Bytes of the content of a sequence of `tokens` tokens.
    pub(crate) fn content_bytes(&self, tokens: usize) -> usize {
        self.store.shape().needed(tokens).count() * self.store.shape().bytes
    }

    /// Appends the content of the table's `tokens` tokens to `out`, with zeros where no token is.
    pub(crate) fn export(&self, id: TableId, tokens: usize, out: &mut Vec<u8>) {
        let shape = self.store.shape();
        for (i, group) in shape.needed(tokens) {
            let start = out.len();
            out.extend_from_slice(self.store.page(self.table(id).pages[group][i]));
            let held = tokens - i * shape.tokens;
            let mut used = None;
            for place in shape.layers.iter().filter(|place| place.group == group) {
                let bytes = place.layout.page_bytes();
                if held < shape.tokens {
                    place.layout.clear_after(&mut out[start + place.offset..][..bytes], held);
                }
                used = Some(place.offset + bytes);
            }
            if let Some(used) = used {
                out[start + used..].fill(0);
            }
        }
    }

    /// Gives an empty table the pages of `tokens`: those the cache has, at most `most` tokens of them, and for the
    /// rest `content`, as [`Pages::export`] wrote it. What comes from `content` is never found by others.
    ///
    /// # Errors
    /// `KV_FULL`, `BUDGET`; the table is empty then.
    pub(crate) fn import(&mut self, id: TableId, tokens: &[i32], most: usize, content: &[u8]) -> Result<()> {
        let adopted = self.bring(id, tokens, most, content)?;
        if adopted < tokens.len() {
            self.table_mut(id).foreign = adopted / self.store.shape().tokens;
        }
        Ok(())
    }

    /// Fills a table without tokens: returns how many tokens came from the cache.
    fn bring(&mut self, id: TableId, tokens: &[i32], most: usize, content: &[u8]) -> Result<usize> {
        // Pages it had reserved are as good as any other.
        self.truncate(id, 0, 0);
        let adopted = self.adopt(id, 0, tokens, most);
        let (size, bytes) = (self.store.shape().tokens, self.store.shape().bytes);
        let needed: Vec<_> = self.store.shape().needed(tokens.len()).collect();
        let from_content = needed.iter().filter(|(i, _)| *i >= adopted / size).count();
        let mut taken = Vec::new();
        for _ in 0..from_content {
            match self.take() {
                Ok(page) => taken.push(page),
                Err(e) => {
                    taken.into_iter().for_each(|page| self.put_back(page));
                    self.truncate(id, 0, 0);
                    return Err(e);
                }
            }
        }
        let count = tokens.len().div_ceil(size);
        self.table_mut(id).pages.iter_mut().for_each(|pages| pages.resize(count, NONE));
        let mut taken = taken.into_iter();
        for (&(i, group), content) in needed.iter().zip(content.chunks_exact(bytes)) {
            if i >= adopted / size
                && let Some(page) = taken.next()
            {
                self.place(id, group, i, page);
                self.store.page_mut(page).copy_from_slice(content);
            }
        }
        Ok(adopted)
    }

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
        let size = self.content_bytes(tokens);
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
        for (i, group) in self.store.shape().needed(tokens) {
            bytes.extend_from_slice(self.store.page(self.table(id).pages[group][i]));
        }
        let foreign = self.table(id).foreign;
        self.truncate(id, 0, 0);
        self.swap_used += size as u64;
        self.table_mut(id).swapped = Some(Swapped { bytes, tokens, foreign });
        Ok(())
    }

    /// Brings the pages of a table that is out back; they hold `tokens`, all tokens of the sequence.
    ///
    /// # Errors
    /// `KV_FULL`, `BUDGET`; the table is out as before then.
    pub(crate) fn swap_in(&mut self, id: TableId, tokens: &[i32]) -> Result<()> {
        let Some(swapped) = self.table_mut(id).swapped.take() else { return Ok(()) };
        // What was not computed from the tokens is not exchanged for what was.
        let most = swapped.foreign.saturating_mul(self.store.shape().tokens).min(tokens.len());
        if let Err(e) = self.bring(id, tokens, most, &swapped.bytes) {
            self.table_mut(id).swapped = Some(swapped);
            return Err(e);
        }
        self.swap_used -= swapped.bytes.len() as u64;
        self.table_mut(id).foreign = swapped.foreign;
        self.publish(id, tokens);
        Ok(())
    }

    /// Keeps the first `pages` pages of tokens of a table that is out, all of them or none where layers have windows.
    pub(super) fn truncate_swapped(&mut self, id: TableId, pages: usize) {
        let shape = self.store.shape();
        let each = shape.bytes * shape.groups();
        let whole = shape.is_windowed();
        let Some(swapped) = &mut self.table_mut(id).swapped else { return };
        let before = swapped.bytes.len();
        if !whole || pages == 0 {
            swapped.bytes.truncate(pages * each);
            swapped.bytes.shrink_to_fit(); // what is not counted any more must not be there
        }
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
