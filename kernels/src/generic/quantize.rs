//! Activations to int8: one scale per 256 consecutive inputs, round to nearest even; one term of them or two.

use super::norm::fetch;
use super::rows::DEPTH;
use crate::simd::{Simd, runs};

/// Amplitudes below 2⁻⁹⁰ count as zero, so that 1/scale stays finite.
pub const TINY: f32 = f32::from_bits((127 - 90) << 23);

/// Where the records' order has the run of sixteen that begins at `i`.
#[inline(always)]
fn place(i: usize) -> usize {
    i / 128 * 128 + i / 16 % 2 * 64 + i % 128 / 32 * 16
}

/// Quantizes `n` ≤ 256 values into `out`; returns the scale and the sum of the integers.
///
/// With `SETS` they are stored as the weights' records are: in every 128, the even runs of sixteen first (the
/// low set), then the odd ones. Room for a multiple of 16 values is written. A non-finite value makes the block
/// zeros with the scale NaN.
#[inline(always)]
pub unsafe fn quantize<S: Simd, const SETS: bool>(x: *const f32, n: usize, out: *mut i8) -> (f32, i32) {
    // SAFETY: the caller vouches for n readable floats and n (rounded up to 16) writable bytes
    unsafe {
        let mut top = S::splat(0.0);
        let mut odd = S::splat(0.0);
        runs!(n, |i, k| {
            let v = fetch::<S>(x.add(i), k, 0.0);
            top = S::max(S::abs(v), top);
            odd = S::fma(v, S::splat(0.0), odd);
        });
        let mut lanes = [0f32; 16];
        S::store(lanes.as_mut_ptr(), top);
        let amax = lanes.iter().fold(0f32, |a, &b| if b > a { b } else { a });
        let finite = S::tree(odd) == 0.0;
        let scale = if !finite {
            f32::NAN
        } else if amax < TINY {
            0.0
        } else {
            amax / 127.0
        };
        let inverse = if finite && amax >= TINY { 1.0 / scale } else { 0.0 };
        let mut sum = S::i_splat(0);
        runs!(n, |i, k| {
            let q = S::round(S::mul(fetch::<S>(x.add(i), k, 0.0), S::splat(inverse)));
            let q = S::max(S::splat(-127.0), S::min(S::splat(127.0), q));
            let q = if finite { q } else { S::splat(0.0) };
            sum = S::i_add(sum, S::to_int(q));
            S::store_i8(out.add(if SETS { place(i) } else { i }), q);
        });
        let mut lanes = [0i32; 16];
        S::i_store(lanes.as_mut_ptr(), sum);
        (scale, lanes.iter().sum())
    }
}

/// Quantizes `n` ≤ 256 values in two terms, x ≈ s1 · a + s2 · b: b is the int8 of what a leaves over, x − s1 · a
/// (rounded once, fused), by the same rule over the same values. a goes to `out[..256]` and b to `out[256..512]`,
/// in the records' order; scales and sums of the integers likewise. Non-finite values make a zeros with the scale
/// NaN, and b zeros with the scale 0.
#[inline(always)]
pub unsafe fn quantize_two<S: Simd>(x: *const f32, n: usize, out: *mut i8, scales: *mut f32, sums: *mut i32) {
    // SAFETY: the caller vouches for n readable floats, 512 writable bytes, two scales and two sums
    unsafe {
        let (scale, sum) = quantize::<S, true>(x, n, out);
        let mut left = [0f32; DEPTH];
        if !scale.is_nan() {
            runs!(n, |i, k| {
                let a = S::load_i8(out.add(place(i)));
                let r = S::fma(S::splat(-scale), a, fetch::<S>(x.add(i), k, 0.0));
                S::store(left.as_mut_ptr().add(i), r);
            });
        }
        let (second, second_sum) = quantize::<S, true>(left.as_ptr(), n, out.add(DEPTH));
        (*scales, *scales.add(1)) = (scale, second);
        (*sums, *sums.add(1)) = (sum, second_sum);
    }
}
