//! Attention over pages: queries of one kv head against their sequence, 64 absolute positions at a time.
//!
//! ```text
//! part p: positions 512p ..      from max = −∞, sum = 0, o = 0, blocks of 64 in ascending order:
//!   scores    q · k, scaled, capped, sloped                                    scores.rs, softmax.rs
//!   softmax   the greater maximum, one rescale of sum and o, weights e^(s − max)
//!   values    o = fma(weight, value, o) in ascending position                   values.rs
//! parts join in ascending order: max, sum and o of both are scaled to the greater maximum     join.rs
//! ```
//! Parts are cut by absolute position and always joined, so that it does not matter which thread computed which.
//! Many queries (the heads of a group, neighbouring rows) go together: keys and values are read, and values
//! converted, once for all; what a query computes does not depend on its company. While a block is computed the
//! next one's keys and values are fetched through the page table. Online softmax: arXiv:1805.02867; blocks:
//! arXiv:2205.14135; parts: arXiv:2311.01282.

mod ahead;
mod join;
mod scores;
mod scratch;
mod softmax;
mod spans;
mod store;
mod values;

pub use join::{Join, join};
pub use scores::{Keys, keys};
pub use scratch::Scratch;
pub use store::store;

use ahead::Ahead;
use scratch::state;

use super::norm::{fetch, put};
use super::quantize::quantize;
use crate::kv::{KeyType, KvLayout};
use crate::simd::{Simd, runs};

/// Positions of a softmax block.
pub const BLOCK: usize = 64;
/// Positions of a part: enough for the joining not to cost, few enough that a long sequence over one kv head gives
/// every thread something to do.
pub const PART: usize = 512;

/// One query: a (row, head).
#[derive(Clone, Copy)]
pub struct Query {
    pub q: *const f32,
    pub out: *mut f32,
    /// Sees positions low..high.
    pub low: usize,
    pub high: usize,
    pub slope: f32,
    /// A logit that takes part in the sum, or −∞.
    pub sink: f32,
}

/// Queries of kv heads that follow each other, over one page table.
pub struct Tile<'a> {
    pub layout: KvLayout,
    /// The pool, at this layer's and the first kv head's part of page 0.
    pub pool: *const u8,
    /// Bytes between pages.
    pub stride: usize,
    pub table: *const u32,
    /// Equally many of every kv head, head by head.
    pub queries: &'a [Query],
    pub heads: usize,
    /// [`keys`] of the instruction set.
    pub keys: unsafe fn(&mut Keys<'_>),
    pub scale: f32,
    /// 0: none.
    pub softcap: f32,
    pub alibi: bool,
    /// Parts to compute: first..last.
    pub first: usize,
    pub last: usize,
    /// Whether those are all that the queries see: `out` takes the result. Otherwise it takes, for every part
    /// from that of `low` on, a record of [`record`] values.
    pub whole: bool,
    /// Aligned to 64, of [`Scratch::bytes`].
    pub scratch: *mut u8,
}

/// Values of a part's record: the maximum, the sum, and from the sixteenth on the output before division.
pub fn record(layout: &KvLayout) -> usize {
    16 + layout.value_width()
}

/// A stretch of a block's positions that lies in one page.
#[derive(Clone, Copy)]
struct Run {
    /// The head's part of the page; null where no query sees any of it.
    page: *const u8,
    /// The first position's slot in the page.
    slot: usize,
}

/// Sixty-four positions: a run for every sixteen, since pages hold sixteen tokens or a multiple.
struct Block {
    start: usize,
    /// Every query sees all of it.
    whole: bool,
    runs: [Run; BLOCK / 16],
}

impl Tile<'_> {
    /// That of one of the heads.
    #[inline(never)]
    fn head(&self, head: usize) -> Tile<'_> {
        let n = self.queries.len() / self.heads;
        let pool = self.pool.wrapping_add(head * self.layout.head_bytes());
        Tile { pool, queries: &self.queries[head * n..][..n], heads: 1, ..*self }
    }

    /// Start of the head's part of the page that holds `position`.
    #[inline(always)]
    fn page(&self, position: usize) -> *const u8 {
        // SAFETY: positions below the highest visible one have an entry in the table, proved by the caller
        let page = unsafe { *self.table.add(position / self.layout.page_tokens) };
        // the entry of a page that nobody sees may be anything: such an address is only fetched, never read
        self.pool.wrapping_add((page as usize).wrapping_mul(self.stride))
    }

    /// Whether some query sees a position of from..to.
    #[inline(always)]
    fn seen(&self, from: usize, to: usize) -> bool {
        self.queries.iter().any(|q| q.low.max(from) < q.high.min(to))
    }

    /// The block at `start`, which every query sees all of if `whole`.
    #[inline(always)]
    fn block(&self, start: usize, whole: bool) -> Block {
        let mut runs = [Run { page: core::ptr::null(), slot: 0 }; BLOCK / 16];
        for (g, run) in runs.iter_mut().enumerate() {
            let at = start + g * 16;
            run.slot = at % self.layout.page_tokens;
            if whole || self.seen(at, at + 16) {
                run.page = self.page(at);
            }
        }
        Block { start, whole, runs }
    }
}

/// Attends over the tile's parts: fills every query's output, or its records.
///
/// Blocks are taken by spans, as many as are fetched together: of one head after the other, so that in every page what is
/// read next follows what was read before.
#[inline(always)]
pub unsafe fn attend<S: Simd>(a: &Tile) {
    // SAFETY: `Tile`'s pointers cover what the layout and the visible ranges say
    unsafe {
        let room = Scratch::room(a.queries.len() / a.heads);
        let all = &Scratch::new(a.scratch, &a.layout, a.heads * room);
        let vw = a.layout.value_width();
        let (mut low, mut high) = (usize::MAX, 0);
        // what every query sees
        let mut common = 0..usize::MAX;
        for head in 0..a.heads {
            let (a, s) = (&a.head(head), &all.from(&a.layout, head * room));
            for (i, q) in a.queries.iter().enumerate() {
                load::<S>(a, s, i, q);
                low = low.min(q.low);
                high = high.max(q.high);
                common = common.start.max(q.low)..common.end.min(q.high);
                if a.whole {
                    s.total_max.add(state(i)).write(q.sink);
                    s.total_sum.add(state(i)).write(if q.sink == f32::NEG_INFINITY { 0.0 } else { 1.0 });
                    core::ptr::write_bytes(s.total.add(i * vw), 0, vw);
                }
            }
        }
        let end = high.min(a.last * PART);
        let mut part = a.first.max(low / PART);
        let (work, span) = (work(a), ahead::blocks(a) * BLOCK);
        // the first block is waited for, the rest of the first span is fetched during it, and then always the next one
        let first = low.max(part * PART) / BLOCK * BLOCK;
        Ahead::new(&a.head(0), first, 1, end, 1).drain::<S>();
        // where the first head's first span ends to be fetched; whether the spans are those of a block that all see
        let (mut switch, mut filled) = (first + BLOCK, false);
        while part * PART < end {
            let (from, to) = (part * PART, end.min((part + 1) * PART));
            for i in 0..state(a.heads * room) {
                all.max.add(i).write(f32::NEG_INFINITY);
                all.sum.add(i).write(0.0);
            }
            core::ptr::write_bytes(all.o, 0, a.heads * room * vw);
            let mut start = low.max(from) / BLOCK * BLOCK;
            while start < to {
                let stop = to.min(start + span);
                let blocks = (stop - start).div_ceil(BLOCK);
                let before = filled;
                for head in 0..a.heads {
                    let (next, then) = if head + 1 < a.heads { (head + 1, start) } else { (0, stop) };
                    let next = &a.head(next);
                    let (a, s) = (&a.head(head), &all.from(&a.layout, head * room));
                    let mut ahead = if switch < stop {
                        Ahead::new(a, start, span / BLOCK, end, work)
                    } else {
                        Ahead::new(next, then, span / BLOCK, end, work * blocks)
                    };
                    filled = before;
                    let mut at = start;
                    while at < stop {
                        if at == switch {
                            ahead = Ahead::new(next, then, span / BLOCK, end, work * (blocks - 1));
                        }
                        let whole = common.start <= at && at + BLOCK <= common.end;
                        if whole || a.seen(at, at + BLOCK) {
                            let block = a.block(at, whole);
                            if !(whole && filled) {
                                spans::fill(S::ACCUMULATORS, a, s, at);
                                filled = whole;
                            }
                            scores::products::<S>(a, s, &block, &mut ahead);
                            softmax::weights::<S>(a, s, &block, &mut ahead);
                            values::add::<S>(a, s, &block, &mut ahead);
                        }
                        at += BLOCK;
                    }
                    switch = usize::MAX;
                }
                start = stop;
            }
            for head in 0..a.heads {
                let (a, s) = (&a.head(head), &all.from(&a.layout, head * room));
                if a.whole {
                    join::all::<S>(a, s, from, to);
                    continue;
                }
                for (i, q) in a.queries.iter().enumerate() {
                    if q.low.max(from) < q.high.min(to) {
                        let to = q.out.add((part - q.low / PART) * record(&a.layout));
                        to.write(*s.max.add(state(i)));
                        to.add(1).write(*s.sum.add(state(i)));
                        core::ptr::copy_nonoverlapping(s.o.add(i * vw), to.add(16), vw);
                    }
                }
            }
            part += 1;
        }
        if a.whole {
            for head in 0..a.heads {
                let (a, s) = (&a.head(head), &all.from(&a.layout, head * room));
                for (i, q) in a.queries.iter().enumerate() {
                    finish::<S>(s.total.add(i * vw), *s.total_sum.add(state(i)), q.out, a.layout.value_dim);
                }
            }
        }
    }
}

/// About how many vector operations a block takes that pay for lines: those of the first group of queries.
#[inline(always)]
fn work(a: &Tile) -> usize {
    let n = (a.queries.len() / a.heads).min(8);
    let (kw, vw) = (a.layout.key_width(), a.layout.value_width());
    let products = if a.layout.key == KeyType::I8 { n * kw } else { n * kw * 4 };
    products + n * SOFTMAX + n * vw * 4
}

/// The same of one query's softmax.
const SOFTMAX: usize = 128;

/// A query in the form in which keys take it: padded floats, or int8 by 256 dimensions.
#[inline(always)]
unsafe fn load<S: Simd>(a: &Tile, s: &Scratch, i: usize, q: &Query) {
    // SAFETY: as `attend`
    unsafe {
        let kw = a.layout.key_width();
        if a.layout.key == KeyType::I8 {
            let mut b = 0;
            while b * 256 < a.layout.key_dim {
                let n = (a.layout.key_dim - b * 256).min(256);
                let (scale, sum) = quantize::<S, false>(q.q.add(b * 256), n, s.q8.add(i * kw + b * 256));
                s.q_scale.add(i * 4 + b).write(scale);
                s.q_sum.add(i * 4 + b).write(sum);
                b += 1;
            }
        } else {
            runs!(a.layout.key_dim, |k, n| S::store(s.q.add(i * kw + k), fetch::<S>(q.q.add(k), n, 0.0)));
        }
    }
}

/// out = o / sum
#[inline(always)]
unsafe fn finish<S: Simd>(o: *const f32, sum: f32, out: *mut f32, dim: usize) {
    // SAFETY: o holds dim values rounded up to 16, out dim
    unsafe {
        let sum = S::splat(sum);
        runs!(dim, |k, n| put::<S>(out.add(k), n, S::div(S::load(o.add(k)), sum)));
    }
}
