//! What each query sees of a block, and what the queries that are multiplied together all see.
//!
//! ```text
//! query 0   ├──────────────────────┤
//! query 1   ├──────────────────────────┤
//! query 2      ├──────────────────────────┤
//!           one  common to the group    one
//!           by                          by
//!           one                         one
//! ```

use super::{BLOCK, Scratch, Tile};

/// Positions relative to the block.
#[derive(Clone, Copy)]
pub struct Span {
    /// Visible: from..to.
    pub from: usize,
    pub to: usize,
    /// Common to the query's group: first..last, in from..to; at `to` and empty where there is nothing.
    pub first: usize,
    pub last: usize,
    /// The group sees the same, so that its outputs are rescaled together.
    pub alike: bool,
}

impl Span {
    /// Whether the query sees any of the block.
    #[inline(always)]
    pub fn sees(&self) -> bool {
        self.from < self.to
    }
}

/// How many of `left` queries form the next group, of an instruction set with so many accumulators.
fn group(accumulators: usize, left: usize) -> usize {
    match left {
        8.. if accumulators == 16 => 8,
        4.. if accumulators > 1 => 4,
        3 if accumulators == 16 => 3,
        2.. if accumulators > 1 => 2,
        _ => 1,
    }
}

/// Fills `s.spans` for the block at `start`.
#[inline(never)]
pub unsafe fn fill(accumulators: usize, a: &Tile, s: &Scratch, start: usize) {
    // SAFETY: there is a span for every query
    unsafe {
        let n = a.queries.len();
        let mut i = 0;
        while i < n {
            let count = group(accumulators, n - i);
            let (mut first, mut last, mut alike) = (0, BLOCK, count > 1);
            for j in i..i + count {
                let q = &a.queries[j];
                let from = q.low.clamp(start, start + BLOCK) - start;
                let to = q.high.clamp(start, start + BLOCK) - start;
                alike &= j == i || (first, last) == (from, to);
                (first, last) = (first.max(from), last.min(to));
                s.spans.add(j).write(Span { from, to, first: to, last: to, alike: false });
            }
            if count > 1 && first < last {
                for j in i..i + count {
                    let span = &mut *s.spans.add(j);
                    (span.first, span.last, span.alike) = (first, last, alike);
                }
            }
            i += count;
        }
    }
}
