//! The product with an integer type that has no kernel of its own: row by row through the format's decoder. Slow; its
//! bits are those of a kernel, since integers are exact and the folds are those of `generic/rows.rs`.

use crate::generic::rows::{DEPTH, IntBlock};
use crate::matrix::Matrix;
use llm_format::quant::decode_int8;

/// Blocks `first ..` of `w` against the vectors `from..to` of `a`, whose pointers are those of a kernel's call.
pub fn product(w: &Matrix, first: usize, a: &IntBlock) {
    let terms = super::product::terms(w.ty());
    let mut ints = [0i8; DEPTH];
    for r in 0..a.rows {
        for t in (a.from..a.to).step_by(terms) {
            let mut acc = [0f32; 2];
            for record in 0..w.cols().div_ceil(DEPTH) {
                let row = first * 32 + r;
                let scale = decode_int8(w.ty(), w.data(), w.rows(), w.cols(), row, record, &mut ints);
                for (term, acc) in acc.iter_mut().enumerate().take(terms) {
                    let vector = record * a.vectors + t + term;
                    // SAFETY: `x` holds [records][vectors][256] values and `scale` one for each of those vectors
                    let (x, s) = unsafe {
                        (core::slice::from_raw_parts(a.x.add(vector * DEPTH), DEPTH), *a.scale.add(vector))
                    };
                    // Place p of the records' order: 64 of a half's low set, then 64 of its high set.
                    let input = |p: usize| p / 128 * 128 + p % 64 / 16 * 32 + p / 64 % 2 * 16 + p % 16;
                    let valid = (w.cols().next_multiple_of(128) - record * DEPTH).min(DEPTH);
                    let sum: i32 = (0..valid).map(|p| i32::from(x[p]) * i32::from(ints[input(p)])).sum();
                    *acc = (sum as f32).mul_add(scale * s, *acc);
                }
            }
            let sum = if terms == 2 { acc[0] + acc[1] } else { acc[0] };
            // SAFETY: the output of this token and row is this chunk's; a bias has a value for every row
            unsafe {
                let bias = if a.bias.is_null() { None } else { Some(*a.bias.add(r)) };
                *a.out.add(t / terms * a.stride + r) = bias.map_or(sum, |b| sum + b);
            }
        }
    }
}
