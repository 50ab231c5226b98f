//! Fetching the next positions while these are computed.
//!
//! A core has few requests to memory under way at a time, and one more waits, with all that follows it. So lines are
//! asked for at an even pace, in proportion to the work done, and from two stretches in turn (from four where a block has as
//! many pages): the machine's own prefetcher follows each of them and runs ahead. What lies in them is used next,
//! while it is still in the first cache.
//!
//! ```text
//! a span of one or two blocks in one to four pages, each page's keys, scales and values being one run of bytes:
//!   one page  │  0  │  1  │      two  │  0  │ .. │  1  │      four  │ 0 │ .. │ 1 │ .. │ 2 │ .. │ 3 │
//! ```

use super::{BLOCK, Tile};
use crate::simd::Simd;

/// Stretches that are fetched side by side, unless a block has more pages.
const STRETCHES: usize = 2;
/// The most there are: pages of a block.
const MOST: usize = BLOCK / 16;
/// Bytes that are fetched together.
const BYTES: usize = 100 << 10;
/// Positions of the last span that are not worth a fetch.
const FEW: usize = 16;
/// A line, in the parts in which it is paid for.
const LINE: usize = 1 << 16;

/// Lines to come, and how many of them a piece of work pays for.
pub struct Ahead {
    stretches: [*const u8; MOST],
    /// Whether they are all used, and not [`STRETCHES`] alone.
    more: bool,
    /// Which line of every stretch is to come, of how many, and how many a unit of work pays for, in parts of [`LINE`].
    at: usize,
    len: usize,
    rate: usize,
}

/// Blocks that are fetched together: 1 or 2.
#[inline(always)]
pub fn blocks(a: &Tile) -> usize {
    let bytes = a.layout.head_bytes() * BLOCK / a.layout.page_tokens;
    if 2 * bytes <= BYTES && a.layout.page_tokens >= BLOCK { 2 } else { 1 }
}

impl Ahead {
    /// `blocks` blocks from `start` on, as far as `end`, over about `work` vector operations.
    #[inline(never)]
    pub fn new(a: &Tile, start: usize, blocks: usize, end: usize, work: usize) -> Ahead {
        // where there is nothing to come, the same line over and over
        let mut ahead = Ahead { stretches: [a.pool; MOST], more: false, at: 0, len: 0, rate: 0 };
        if start + FEW > end {
            return ahead;
        }
        let tokens = a.layout.page_tokens;
        let pages = (blocks * BLOCK).div_ceil(tokens);
        let each = STRETCHES.div_ceil(pages);
        ahead.more = pages > STRETCHES;
        let lines = a.layout.head_bytes().div_ceil(each * 64);
        for i in 0..pages * each {
            // where there is no such page, the last one again
            let position = (start + i / each * tokens).min(end - 1);
            ahead.stretches[i] = a.page(position).wrapping_add(i % each * lines * 64);
        }
        ahead.len = lines * LINE;
        ahead.rate = ahead.len / work + 1;
        ahead
    }

    /// Asks for all of it.
    #[inline(always)]
    pub unsafe fn drain<S: Simd>(&mut self) {
        while self.at < self.len {
            // SAFETY: passed on
            unsafe { self.step::<S>(LINE) };
        }
    }

    /// Asks for the lines that `work` pays for. Whether a whole one more has been paid for by now is not looked at: the
    /// machine would not foresee it. So the same work asks for the same number every time, and for some lines twice.
    #[inline(always)]
    pub unsafe fn pay<S: Simd>(&mut self, work: usize) {
        let mut paid = self.rate * work;
        // SAFETY: passed on
        unsafe {
            while paid > LINE {
                self.step::<S>(LINE);
                paid -= LINE;
            }
            self.step::<S>(paid);
        }
    }

    #[inline(always)]
    unsafe fn step<S: Simd>(&mut self, paid: usize) {
        let at = self.at / LINE * 64;
        for stretch in &self.stretches[..STRETCHES] {
            // SAFETY: a prefetch takes any address
            unsafe { S::prefetch(stretch.wrapping_add(at)) };
        }
        if self.more {
            for stretch in &self.stretches[STRETCHES..] {
                // SAFETY: a prefetch takes any address
                unsafe { S::prefetch(stretch.wrapping_add(at)) };
            }
        }
        self.at += paid;
    }
}
