//! The innermost products on x86: a tile of C in registers, one panel row of B and one broadcast of A at a time.

use super::gemm::{Base, Left};
use std::arch::x86_64::*;

/// Twelve rows by thirty-two columns: 24 accumulators, 2 registers of B, broadcasts of A. What it will read and write
/// last is fetched while it multiplies.
///
/// # Safety
/// - Elements (i, k) of `a` for i < 12, k < kc, and `b[..kc·32]` are readable; so are 12 rows of 32 elements of `base`
///   where it is not null; `c` has 12 rows of 32 elements, `stride` apart, that no one else touches.
/// - The processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn avx512(kc: usize, a: Left, b: *const f32, c: *mut f32, stride: usize, base: Base) {
    let mut acc = [[_mm512_setzero_ps(); 2]; 12];
    // Four row pointers and two offsets address twelve rows without a register each.
    let Left { at, row_step, k_step } = a;
    let mut rows = [0, 3, 6, 9].map(|i| at.wrapping_add(i * row_step));
    let steps = [0, row_step, 2 * row_step];
    let mut b = b;
    for i in 0..12 {
        let lines = [c.wrapping_add(i * stride).cast_const(), base.at.wrapping_add(i * base.step)];
        for line in lines {
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(31).cast());
        }
    }
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
            // SAFETY: row i < 12, columns 16·half..16·half+16 of the caller's tile and of what it is added to.
            unsafe {
                let mut sum = *sum;
                if !base.at.is_null() {
                    let mut start = _mm512_loadu_ps(base.at.add(i * base.step + 16 * half));
                    if !base.bias.is_null() {
                        start = _mm512_add_ps(start, _mm512_loadu_ps(base.bias.add(16 * half)));
                    }
                    sum = _mm512_add_ps(start, sum);
                }
                _mm512_storeu_ps(c.add(i * stride + 16 * half), sum);
            }
        }
    }
}

/// Sixteen rows `step` apart, sixteen elements of each, to sixteen lines `width` apart.
///
/// # Safety
/// - `from[i·step + k]` is readable and `to[k·width + i]` writable for i, k < 16.
/// - The processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn turn16(from: *const f32, step: usize, to: *mut f32, width: usize) {
    let mut r = [_mm512_setzero_ps(); 16];
    for (i, r) in r.iter_mut().enumerate() {
        // SAFETY: row i < 16 of the caller's block.
        *r = unsafe { _mm512_loadu_ps(from.add(i * step)) };
    }
    // pairs of elements, then of pairs, inside lanes of four; then lanes, twice
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        let (a, b) = (_mm512_castps_pd(t[4 * i]), _mm512_castps_pd(t[4 * i + 1]));
        let (c, d) = (_mm512_castps_pd(t[4 * i + 2]), _mm512_castps_pd(t[4 * i + 3]));
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for i in 0..4 {
        for (x, y) in [(0, 4), (8, 12)] {
            t[x + i] = _mm512_shuffle_f32x4::<0x88>(r[x + i], r[y + i]);
            t[y + i] = _mm512_shuffle_f32x4::<0xdd>(r[x + i], r[y + i]);
        }
    }
    for i in 0..4 {
        for (x, at) in [(0, 0), (4, 4)] {
            // lanes of t[x+i]: rows 0..3 and 4..7 of columns at+i and at+i+8
            r[at + i] = _mm512_shuffle_f32x4::<0x88>(t[x + i], t[8 + x + i]);
            r[at + 8 + i] = _mm512_shuffle_f32x4::<0xdd>(t[x + i], t[8 + x + i]);
        }
    }
    for (k, line) in r.iter().enumerate() {
        // SAFETY: line k < 16 of the caller's block.
        unsafe { _mm512_storeu_ps(to.add(k * width), *line) };
    }
}

/// Six rows by sixteen columns: 12 accumulators, 2 registers of B, broadcasts of A.
///
/// # Safety
/// As [`avx512`] with 6 rows and 16 columns, on a processor with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn avx2(kc: usize, a: Left, b: *const f32, c: *mut f32, stride: usize, base: Base) {
    let mut acc = [[_mm256_setzero_ps(); 2]; 6];
    let Left { at, row_step, k_step } = a;
    let mut rows = [at, at.wrapping_add(3 * row_step)];
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
            // SAFETY: row i < 6, columns 8·half..8·half+8 of the caller's tile and of what it is added to.
            unsafe {
                let mut sum = *sum;
                if !base.at.is_null() {
                    let mut start = _mm256_loadu_ps(base.at.add(i * base.step + 8 * half));
                    if !base.bias.is_null() {
                        start = _mm256_add_ps(start, _mm256_loadu_ps(base.bias.add(8 * half)));
                    }
                    sum = _mm256_add_ps(start, sum);
                }
                _mm256_storeu_ps(c.add(i * stride + 8 * half), sum);
            }
        }
    }
}

/// Brings the line at `p`, wherever that is, into the nearest cache.
#[inline(always)]
pub(super) fn fetch(p: *const f32) {
    // SAFETY: every x86-64 has the instruction, and it never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
}
