//! Norms and softmax: sums over 16 lanes by index mod 16, then the tree.

use super::math::exp;
use crate::simd::{Simd, part, runs, store_part};

/// One norm over rows.
pub struct Norm {
    pub x: *const f32,
    /// May equal `x`.
    pub out: *mut f32,
    pub width: usize,
    pub weight: *const f32,
    /// Null without one.
    pub bias: *const f32,
    pub eps: f32,
}

/// x / sqrt(mean(x²) + eps) · w.
#[inline(always)]
pub unsafe fn rms<S: Simd>(a: &Norm) {
    // SAFETY: pointers hold `width` values
    unsafe {
        let mut sum = S::splat(0.0);
        runs!(a.width, |i, n| {
            let v = fetch::<S>(a.x.add(i), n, 0.0);
            sum = S::fma(v, v, sum);
        });
        let r = S::splat(1.0 / (S::tree(sum) / a.width as f32 + a.eps).sqrt());
        runs!(a.width, |i, n| {
            let v = S::mul(S::mul(fetch::<S>(a.x.add(i), n, 0.0), r), fetch::<S>(a.weight.add(i), n, 0.0));
            put::<S>(a.out.add(i), n, v);
        });
    }
}

/// (x − mean) / sqrt(var + eps) · w + b.
#[inline(always)]
pub unsafe fn layer<S: Simd>(a: &Norm) {
    // SAFETY: pointers hold `width` values
    unsafe {
        let mut sum = S::splat(0.0);
        runs!(a.width, |i, n| sum = S::add(sum, fetch::<S>(a.x.add(i), n, 0.0)));
        let mean = S::tree(sum) / a.width as f32;
        let m = S::splat(mean);
        let mut squares = S::splat(0.0);
        runs!(a.width, |i, n| {
            let d = S::sub(fetch::<S>(a.x.add(i), n, mean), m);
            squares = S::fma(d, d, squares);
        });
        let r = S::splat(1.0 / (S::tree(squares) / a.width as f32 + a.eps).sqrt());
        runs!(a.width, |i, n| {
            let d = S::mul(S::sub(fetch::<S>(a.x.add(i), n, mean), m), r);
            let mut v = S::mul(d, fetch::<S>(a.weight.add(i), n, 0.0));
            if !a.bias.is_null() {
                v = S::add(v, fetch::<S>(a.bias.add(i), n, 0.0));
            }
            put::<S>(a.out.add(i), n, v);
        });
    }
}

/// In place: e^(x − max) / Σ.
#[inline(always)]
pub unsafe fn softmax<S: Simd>(x: *mut f32, len: usize) {
    // SAFETY: x holds len values
    unsafe {
        let mut top = f32::NEG_INFINITY;
        for i in 0..len {
            let v = *x.add(i);
            if v > top || v.is_nan() {
                top = v;
            }
        }
        let m = S::splat(top);
        let mut sum = S::splat(0.0);
        runs!(len, |i, n| {
            let e = exp::<S>(S::sub(fetch::<S>(x.add(i), n, f32::NEG_INFINITY), m));
            sum = S::add(sum, e);
            put::<S>(x.add(i), n, e);
        });
        let total = S::splat(S::tree(sum));
        runs!(len, |i, n| put::<S>(x.add(i), n, S::div(fetch::<S>(x.add(i), n, 0.0), total)));
    }
}

#[inline(always)]
pub unsafe fn fetch<S: Simd>(p: *const f32, n: usize, fill: f32) -> S::F {
    // SAFETY: as the callers'
    unsafe { if n == 16 { S::load(p) } else { part::<S>(p, n, fill) } }
}

#[inline(always)]
pub unsafe fn put<S: Simd>(p: *mut f32, n: usize, x: S::F) {
    // SAFETY: as the callers'
    unsafe { if n == 16 { S::store(p, x) } else { store_part::<S>(p, n, x) } }
}
