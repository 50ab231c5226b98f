//! A tile's working memory, carved out of one piece.

use super::BLOCK;
use super::spans::Span;
use super::values::SLICE;
use crate::kv::{KeyType, KvLayout};

/// Where a tile's intermediate values lie.
pub struct Scratch {
    /// Queries as floats, `[n][key width]`; none with int8 keys.
    pub q: *mut f32,
    /// Queries in int8, `[n][key width]`, with scales and sums, `[n][4]` by 256 dimensions.
    pub q8: *mut i8,
    pub q_scale: *mut f32,
    pub q_sum: *mut i32,
    /// Scores, then weights, `[n][BLOCK]`.
    pub p: *mut f32,
    /// What of the block the queries see, `[n]`.
    pub spans: *mut Span,
    /// A part's maxima, sums and rescaling factors, at [`state`] of every query.
    pub max: *mut f32,
    pub sum: *mut f32,
    pub factor: *mut f32,
    /// A part's outputs, `[n][value width]`.
    pub o: *mut f32,
    /// Maxima, sums (likewise) and outputs of the parts so far.
    pub total_max: *mut f32,
    pub total_sum: *mut f32,
    pub total: *mut f32,
    /// Sixteen keys as floats, `[16][key width]`; none with int8 keys.
    pub keys: *mut f32,
    /// A slice of the block's values as floats, `[BLOCK][SLICE]`.
    pub values: *mut f32,
}

/// Where query i's maximum, sum and factor are: four queries have a register each.
#[inline(always)]
pub fn state(i: usize) -> usize {
    i / 4 * 16 + i % 4
}

/// Takes `n` values of a type off the piece, each at a multiple of 64 bytes.
struct Cursor(*mut u8, usize);

impl Cursor {
    fn take<T>(&mut self, n: usize) -> *mut T {
        let at = self.0.wrapping_add(self.1);
        self.1 += (n * size_of::<T>()).next_multiple_of(64);
        at.cast()
    }
}

impl Scratch {
    /// Queries that `n` of one kv head take the room of: by fours.
    pub fn room(n: usize) -> usize {
        n.next_multiple_of(4)
    }

    /// The queries from `first` on, which begins a [`Scratch::room`].
    #[inline(never)]
    pub fn from(&self, l: &KvLayout, first: usize) -> Scratch {
        let (kw, vw) = (l.key_width(), l.value_width());
        Scratch {
            q: self.q.wrapping_add(first * kw),
            q8: self.q8.wrapping_add(first * kw),
            q_scale: self.q_scale.wrapping_add(first * 4),
            q_sum: self.q_sum.wrapping_add(first * 4),
            p: self.p.wrapping_add(first * BLOCK),
            spans: self.spans.wrapping_add(first),
            max: self.max.wrapping_add(state(first)),
            sum: self.sum.wrapping_add(state(first)),
            factor: self.factor.wrapping_add(state(first)),
            o: self.o.wrapping_add(first * vw),
            total_max: self.total_max.wrapping_add(state(first)),
            total_sum: self.total_sum.wrapping_add(state(first)),
            total: self.total.wrapping_add(first * vw),
            ..*self
        }
    }

    /// In the piece at `at`.
    pub fn new(at: *mut u8, layout: &KvLayout, n: usize) -> Scratch {
        Scratch::carve(&mut Cursor(at, 0), layout, n)
    }

    /// Bytes of the piece for `n` queries.
    pub fn bytes(layout: &KvLayout, n: usize) -> usize {
        let mut cursor = Cursor(core::ptr::null_mut(), 0);
        Scratch::carve(&mut cursor, layout, n);
        cursor.1
    }

    fn carve(c: &mut Cursor, l: &KvLayout, n: usize) -> Scratch {
        let (kw, vw, states) = (l.key_width(), l.value_width(), state(Scratch::room(n)));
        let (ints, floats) = if l.key == KeyType::I8 { (n, 0) } else { (0, n) };
        Scratch {
            q: c.take(floats * kw),
            q8: c.take(ints * kw),
            q_scale: c.take(ints * 4),
            q_sum: c.take(ints * 4),
            p: c.take(n * BLOCK),
            spans: c.take(n),
            max: c.take(states),
            sum: c.take(states),
            factor: c.take(states),
            o: c.take(n * vw),
            total_max: c.take(states),
            total_sum: c.take(states),
            total: c.take(n * vw),
            keys: c.take(if floats > 0 { 16 * kw } else { 0 }),
            values: c.take(BLOCK * SLICE),
        }
    }
}
