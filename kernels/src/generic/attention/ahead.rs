//! Fetching the next positions while these are computed.
//!
//! A core has few requests to memory under way at a time, and one more waits, with all that follows it. So lines are
//! asked for at an even pace, in proportion to the work done, and from four stretches in turn: the machine's own
//! prefetcher follows each of them and runs ahead.
//!
//! ```text
//! a span of one to four pages, each page's keys, scales and values being one run of bytes:
//!   one page  │ 0 │ 1 │ 2 │ 3 │      two  │  0  │  1  │ ... │  2  │  3  │      four  │  0  │ .. │  1  │ ..
//! ```

use super::{BLOCK, Tile};
use crate::simd::Simd;

/// Stretches that are fetched side by side.
const STRETCHES: usize = 4;
/// Bytes that are fetched together: the longer the stretches the better they are followed, but with what is being
/// computed they should stay in the second cache.
const BYTES: usize = 100 << 10;
/// Positions of the last span that are not worth a fetch.
const FEW: usize = 16;

/// Lines to come, and how many of them a piece of work pays for.
pub struct Ahead {
    stretches: [*const u8; STRETCHES],
    /// Where the next lines are, and where the stretches end.
    at: usize,
    len: usize,
    /// Quadruples of lines per unit of work, in 1/65536, and what has been paid towards the next.
    rate: usize,
    paid: usize,
}

/// Blocks that are fetched together once it is under way: 1, 2 or 4.
#[inline(always)]
pub fn blocks(a: &Tile) -> usize {
    let most = (STRETCHES * a.layout.page_tokens / BLOCK).max(1);
    let bytes = a.layout.head_bytes() * BLOCK / a.layout.page_tokens;
    if 4 * bytes <= BYTES && most >= 4 {
        4
    } else if 2 * bytes <= BYTES && most >= 2 {
        2
    } else {
        1
    }
}

impl Ahead {
    /// `blocks` blocks from `start` on, as far as `end`, over about `work` vector operations.
    #[inline(always)]
    pub fn new(a: &Tile, start: usize, blocks: usize, end: usize, work: usize) -> Ahead {
        let mut ahead = Ahead { stretches: [core::ptr::null(); STRETCHES], at: 0, len: 0, rate: 0, paid: 0 };
        if start + FEW > end {
            return ahead;
        }
        let tokens = a.layout.page_tokens;
        let pages = (blocks * BLOCK).div_ceil(tokens);
        let each = STRETCHES / pages;
        ahead.len = a.layout.head_bytes().div_ceil(each * 64) * 64;
        for i in 0..STRETCHES {
            // where there is no such page, the last one again
            let position = (start + i / each * tokens).min(end - 1);
            ahead.stretches[i] = a.page(position).wrapping_add(i % each * ahead.len);
        }
        ahead.rate = ((ahead.len / 64) << 16) / work + 1;
        ahead
    }

    /// Asks for all of it.
    #[inline(always)]
    pub unsafe fn drain<S: Simd>(&mut self) {
        while self.at < self.len {
            // SAFETY: passed on
            unsafe { self.step::<S>() };
        }
    }

    /// Asks for the lines that `work` pays for.
    #[inline(always)]
    pub unsafe fn pay<S: Simd>(&mut self, work: usize) {
        self.paid += self.rate * work;
        while self.paid >= 1 << 16 {
            self.paid -= 1 << 16;
            if self.at < self.len {
                // SAFETY: passed on
                unsafe { self.step::<S>() };
            }
        }
    }

    #[inline(always)]
    unsafe fn step<S: Simd>(&mut self) {
        for stretch in self.stretches {
            // SAFETY: a prefetch takes any address
            unsafe { S::prefetch(stretch.wrapping_add(self.at)) };
        }
        self.at += 64;
    }
}
