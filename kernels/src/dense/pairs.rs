//! Products of bf16 by pairs of inner indices (AVX-512 BF16).
//!
//! The order of a sum: pairs ascending, of a pair the odd index first, each by fused multiply-add (Intel's manual,
//! volume 2, "VDPBF16PS"; AMD's Zen 5 gives the same bits).

use core::arch::x86_64::*;
use core::mem::transmute;

use super::halves::{BYTES, PANEL};
use crate::x86_64::amx::tile::TILE;

/// Rows of C whose sums stay in registers: sixteen sums hide the latency of two multiplications a cycle.
const ROWS: usize = 8;

/// Whether the processor has the instruction.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// 32 × 32 elements of C.
///
/// # Safety
/// - The instruction is [`available`]; `steps` steps of a panel lie at `a` and `b`, 32 rows of 32 elements at `c`.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn block(steps: usize, a: *const u8, b: *const u8, c: *mut f32, stride: usize, zero: bool) {
    for first in (0..PANEL).step_by(ROWS) {
        let c = c.wrapping_add(first * stride);
        let a = a.wrapping_add(first * 64);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        // SAFETY: as the caller promises
        unsafe {
            for (i, [left, right]) in sums.iter_mut().enumerate().filter(|_| !zero) {
                *left = _mm512_loadu_ps(c.add(i * stride));
                *right = _mm512_loadu_ps(c.add(i * stride + 16));
            }
            for step in 0..steps {
                let (a, b) = (a.add(step * BYTES), b.add(step * BYTES));
                for pair in 0..16 {
                    let column = |tile: usize| -> __m512bh {
                        transmute(_mm512_load_si512(b.add(tile * TILE + pair * 64).cast()))
                    };
                    let (left, right) = (column(0), column(1));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let both = a.add(i * 64 + pair * 4).cast::<i32>().read();
                        let row: __m512bh = transmute(_mm512_set1_epi32(both));
                        sums[0] = _mm512_dpbf16_ps(sums[0], row, left);
                        sums[1] = _mm512_dpbf16_ps(sums[1], row, right);
                    }
                }
            }
            for (i, [left, right]) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(c.add(i * stride), left);
                _mm512_storeu_ps(c.add(i * stride + 16), right);
            }
        }
    }
}
