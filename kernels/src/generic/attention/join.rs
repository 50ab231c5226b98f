//! Parts of a sequence to one result, in ascending order.

use super::finish;
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
pub unsafe fn fold<S: Simd>(
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
        let (f, g) = (S::splat(f), S::splat(g));
        let mut k = 0;
        while k < width {
            let v = S::fma(S::load(o.add(k)), g, S::mul(S::load(total.add(k)), f));
            S::store(total.add(k), v);
            k += 16;
        }
    }
}
