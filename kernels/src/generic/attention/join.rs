//! Parts of a sequence to one result, in ascending order.

use super::scratch::state;
use super::{Scratch, Tile, finish};
use crate::generic::math::exp;
use crate::simd::Simd;

/// The records of one query.
pub struct Join {
    pub records: *const f32,
    pub count: usize,
    /// Values of a record, and of its output.
    pub record: usize,
    pub value_dim: usize,
    pub sink: f32,
    pub out: *mut f32,
    /// Room for the record's output.
    pub scratch: *mut f32,
}

/// Joins a query's records and divides.
#[inline(always)]
pub unsafe fn join<S: Simd>(a: &Join) {
    // SAFETY: the caller vouches for the pointers
    unsafe {
        let width = a.record - 16;
        let (mut max, mut sum) = (a.sink, if a.sink == f32::NEG_INFINITY { 0.0 } else { 1.0 });
        core::ptr::write_bytes(a.scratch, 0, width);
        for part in 0..a.count {
            let r = a.records.add(part * a.record);
            fold::<S>(&mut max, &mut sum, a.scratch, *r, *r.add(1), r.add(16), width);
        }
        finish::<S>(a.scratch, sum, a.out, a.value_dim);
    }
}

/// Takes a part into the total: with m the greater maximum, f = e^(total's − m) and g = e^(part's − m), the sum
/// becomes fma(part's, g, total's · f), and so does every output.
#[inline(always)]
unsafe fn fold<S: Simd>(
    total_max: &mut f32,
    total_sum: &mut f32,
    total: *mut f32,
    max: f32,
    sum: f32,
    o: *const f32,
    width: usize,
) {
    // SAFETY: both outputs hold `width` values, a multiple of 16
    unsafe {
        let new = if max > *total_max { max } else { *total_max };
        let mut lanes = [0f32; 16];
        (lanes[0], lanes[1]) = (*total_max - new, max - new);
        S::store(lanes.as_mut_ptr(), exp::<S>(S::load(lanes.as_ptr())));
        let (f, g) = (lanes[0], lanes[1]);
        *total_sum = sum.mul_add(g, *total_sum * f);
        *total_max = new;
        outputs::<S>(total, f, o, g, width);
    }
}

/// total = fma(o, g, total · f)
#[inline(always)]
unsafe fn outputs<S: Simd>(total: *mut f32, f: f32, o: *const f32, g: f32, width: usize) {
    // SAFETY: both hold `width` values, a multiple of 16
    unsafe {
        let (f, g) = (S::splat(f), S::splat(g));
        let mut k = 0;
        while k < width {
            let v = S::fma(S::load(o.add(k)), g, S::mul(S::load(total.add(k)), f));
            S::store(total.add(k), v);
            k += 16;
        }
    }
}

/// What a tile's queries found at positions from..to, a part, into their totals; four queries at a time.
#[inline(always)]
pub unsafe fn all<S: Simd>(a: &Tile, s: &Scratch, from: usize, to: usize) {
    // SAFETY: maxima and sums have a register's room for four queries
    unsafe {
        let width = a.layout.value_width();
        let mut first = 0;
        while first < a.queries.len() {
            let at = state(first);
            let (total_max, total_sum) = (s.total_max.add(at), s.total_sum.add(at));
            let (old, max) = (S::load(total_max), S::load(s.max.add(at)));
            let new = S::max(max, old);
            let (f, g) = (exp::<S>(S::sub(old, new)), exp::<S>(S::sub(max, new)));
            let sum = S::fma(S::load(s.sum.add(at)), g, S::mul(S::load(total_sum), f));
            let (mut news, mut sums, mut fs, mut gs) = ([0f32; 16], [0f32; 16], [0f32; 16], [0f32; 16]);
            S::store(news.as_mut_ptr(), new);
            S::store(sums.as_mut_ptr(), sum);
            S::store(fs.as_mut_ptr(), f);
            S::store(gs.as_mut_ptr(), g);
            for i in 0..(a.queries.len() - first).min(4) {
                let q = &a.queries[first + i];
                // a query that saw nothing stays as it is
                if q.low.max(from) < q.high.min(to) {
                    total_max.add(i).write(news[i]);
                    total_sum.add(i).write(sums[i]);
                    let at = (first + i) * width;
                    outputs::<S>(s.total.add(at), fs[i], s.o.add(at), gs[i], width);
                }
            }
            first += 4;
        }
    }
}
