//! The end of a product: tiles of sums, a row of weights in each line, turned to the outputs of tokens.

use crate::simd::{Simd, store_part};
use crate::x86_64::avx512::Avx512 as S;

/// 32 rows × 16 vectors, a vector's rows together.
#[repr(C, align(64))]
pub struct Turned {
    /// `[2 tiles][16 vectors][16 rows]`
    sums: [f32; 512],
    bias: [f32; 32],
    has_bias: bool,
    rows: usize,
}

impl Turned {
    /// Of `sums`, `[2][16 rows][16 vectors]`, with `rows` valid rows and their bias or null.
    #[inline(always)]
    pub unsafe fn new(sums: *const f32, rows: usize, bias: *const f32) -> Turned {
        let mut turned = Turned { sums: [0.0; 512], bias: [0.0; 32], has_bias: !bias.is_null(), rows };
        // SAFETY: two tiles of sums, and `rows` ≤ 32 biases where there are any
        unsafe {
            for t in 0..2 {
                let to = turned.sums.as_mut_ptr().add(t * 256);
                S::transpose(sums.add(t * 256).cast(), to.cast());
            }
            if turned.has_bias {
                core::ptr::copy_nonoverlapping(bias, turned.bias.as_mut_ptr(), rows);
            }
        }
        turned
    }

    /// Adds the sums of `terms` vectors (one or two) from `vector` on, then the bias, and stores the valid rows.
    #[inline(always)]
    pub unsafe fn store(&self, vector: usize, terms: usize, out: *mut f32) {
        // SAFETY: vector + terms ≤ 16; room for the valid rows at `out`
        unsafe {
            for t in 0..self.rows.div_ceil(16) {
                let sums = self.sums.as_ptr().add(t * 256 + vector * 16);
                let mut x = S::load(sums);
                if terms == 2 {
                    x = S::add(x, S::load(sums.add(16)));
                }
                if self.has_bias {
                    x = S::add(x, S::load(self.bias.as_ptr().add(t * 16)));
                }
                let (out, valid) = (out.add(t * 16), self.rows - t * 16);
                if valid >= 16 { S::store(out, x) } else { store_part::<S>(out, valid, x) }
            }
        }
    }
}
