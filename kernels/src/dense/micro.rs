//! The innermost products on x86: a tile of C in registers, one panel row of B and one broadcast of A at a time.

use std::arch::x86_64::*;

/// Twelve rows by thirty-two columns: 24 accumulators, 2 registers of B, broadcasts of A.
///
/// # Safety
/// - `a[i·row_step + k·k_step]` for i < 12, k < kc, and `b[..kc·32]` are readable; `c` has 12 rows of 32 elements,
///   `stride` apart, that no one else touches.
/// - The processor has AVX-512 F.
#[allow(clippy::too_many_arguments)] // the coordinates of one tile
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn avx512(
    kc: usize,
    a: *const f32,
    row_step: usize,
    k_step: usize,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let mut acc = [[_mm512_setzero_ps(); 2]; 12];
    // Four row pointers and two offsets address twelve rows without a register each.
    let mut rows =
        [a, a.wrapping_add(3 * row_step), a.wrapping_add(6 * row_step), a.wrapping_add(9 * row_step)];
    let steps = [0, row_step, 2 * row_step];
    let mut b = b;
    for _ in 0..kc {
        // SAFETY: b has 32 more elements for each of kc rounds; rows and steps reach i < 12 at this k.
        unsafe {
            let b0 = _mm512_loadu_ps(b);
            let b1 = _mm512_loadu_ps(b.add(16));
            for (i, sums) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*rows[i / 3].add(steps[i % 3]));
                sums[0] = _mm512_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm512_fmadd_ps(x, b1, sums[1]);
            }
        }
        b = b.wrapping_add(32);
        for row in &mut rows {
            *row = row.wrapping_add(k_step);
        }
    }
    for (i, sums) in acc.iter().enumerate() {
        for (half, sum) in sums.iter().enumerate() {
            // SAFETY: row i < 12, columns 16·half..16·half+16 of the caller's tile.
            unsafe {
                let out = c.add(i * stride + 16 * half);
                let sum = if add { _mm512_add_ps(_mm512_loadu_ps(out), *sum) } else { *sum };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// Six rows by sixteen columns: 12 accumulators, 2 registers of B, broadcasts of A.
///
/// # Safety
/// As [`avx512`] with 6 rows and 16 columns, on a processor with AVX2 and FMA.
#[allow(clippy::too_many_arguments)] // the coordinates of one tile
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(
    kc: usize,
    a: *const f32,
    row_step: usize,
    k_step: usize,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; 6];
    let mut rows = [a, a.wrapping_add(3 * row_step)];
    let steps = [0, row_step, 2 * row_step];
    let mut b = b;
    for _ in 0..kc {
        // SAFETY: b has 16 more elements for each of kc rounds; rows and steps reach i < 6 at this k.
        unsafe {
            let b0 = _mm256_loadu_ps(b);
            let b1 = _mm256_loadu_ps(b.add(8));
            for (i, sums) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*rows[i / 3].add(steps[i % 3]));
                sums[0] = _mm256_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(x, b1, sums[1]);
            }
        }
        b = b.wrapping_add(16);
        for row in &mut rows {
            *row = row.wrapping_add(k_step);
        }
    }
    for (i, sums) in acc.iter().enumerate() {
        for (half, sum) in sums.iter().enumerate() {
            // SAFETY: row i < 6, columns 8·half..8·half+8 of the caller's tile.
            unsafe {
                let out = c.add(i * stride + 8 * half);
                let sum = if add { _mm256_add_ps(_mm256_loadu_ps(out), *sum) } else { *sum };
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}
