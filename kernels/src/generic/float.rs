//! Products with f32, f16 and bf16 matrices: a line is one row's next 16 or 32 inputs.
//!
//! A sum is sixteen partial sums by k mod 16, each a chain of fused multiply-adds in ascending k, then the tree.
//! For many tokens a tile of R rows and T tokens keeps R·T accumulators in registers through all inputs. For few,
//! where reading takes the time, a block is read once, from front to end, and groups of rows take turns in the
//! registers ([`turns`]).

use crate::simd::Simd;

/// Storage of a full-precision matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FloatKind {
    F32,
    F16,
    Bf16,
}

/// One block of 32 rows against tokens `from..to`.
pub struct FloatBlock {
    pub kind: FloatKind,
    pub block: *const u8,
    /// Inputs, a multiple of 128.
    pub cols: usize,
    /// `[tokens][cols]`.
    pub x: *const f32,
    /// The same as bf16 for matrix tiles, `[cols/32][tokens/16 rounded up][16 pairs][16 tokens][2]`; null where they
    /// are not used.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only matrix tiles of x86 read it
    pub tiles: *const u8,
    /// Tokens of the input.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only matrix tiles of x86 read it
    pub tokens: usize,
    pub from: usize,
    pub to: usize,
    /// Valid rows, at most 32.
    pub rows: usize,
    pub bias: *const f32,
    /// Token 0, first row.
    pub out: *mut f32,
    pub stride: usize,
}

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// The tokens in tiles of R rows × T tokens; single tokens in tiles of ONE rows.
#[inline(always)]
pub unsafe fn tiles<S: Simd, const R: usize, const T: usize, const ONE: usize>(a: &FloatBlock) {
    // SAFETY: passed on
    unsafe {
        match a.kind {
            FloatKind::F32 => walk::<S, F32, R, T, ONE>(a),
            FloatKind::F16 => walk::<S, F16, R, T, ONE>(a),
            FloatKind::Bf16 => walk::<S, BF16, R, T, ONE>(a),
        }
    }
}

#[inline(always)]
unsafe fn walk<S: Simd, const K: u8, const R: usize, const T: usize, const ONE: usize>(a: &FloatBlock) {
    // SAFETY: passed on; R, ONE divide 32
    unsafe {
        let mut t = a.from;
        while t + T <= a.to {
            for row in (0..a.rows).step_by(R) {
                tile::<S, K, R, T>(a, row, t);
            }
            t += T;
        }
        while t < a.to {
            some::<S, K, ONE, 1>(a, t);
            t += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const K: u8, const R: usize, const T: usize>(
    a: &FloatBlock,
    row: usize,
    token: usize,
) {
    // SAFETY: a block has 32 rows in every step, padded; tokens exist; only valid rows are stored
    unsafe {
        let mut acc = [[S::splat(0.0); T]; R];
        let x = a.x.add(token * a.cols);
        let mut w = a.block.add(row * 64);
        let per_line = if K == F32 { 16 } else { 32 };
        let mut k = 0;
        while k < a.cols {
            for part in 0..per_line / 16 {
                let mut xs = [S::load(x.add(k + part * 16)); T];
                for t in 1..T {
                    xs[t] = S::load(x.add(t * a.cols + k + part * 16));
                }
                for r in 0..R {
                    let line = w.add(r * 64);
                    let v = match K {
                        F32 => S::load(line.cast()),
                        F16 => S::load_f16(line.cast::<u16>().add(part * 16)),
                        _ => S::load_bf16(line.cast::<u16>().add(part * 16)),
                    };
                    for t in 0..T {
                        acc[r][t] = S::fma(v, xs[t], acc[r][t]);
                    }
                }
            }
            w = w.add(2048);
            k += per_line;
        }
        for r in 0..R.min(a.rows - row) {
            for t in 0..T {
                let sum = S::tree(acc[r][t]);
                let sum = if a.bias.is_null() { sum } else { sum + *a.bias.add(row + r) };
                *a.out.add((token + t) * a.stride + row + r) = sum;
            }
        }
    }
}

/// Steps that a group of rows takes before the next group has its turn: memory is read in order, and the sums that
/// rest meanwhile cost little.
const TURN: usize = 8;

/// The tokens up to eight at a time, in turns. A block is read once for all of them.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // takes AVX-512's number of registers
pub unsafe fn turns<S: Simd>(a: &FloatBlock) {
    // SAFETY: passed on
    unsafe {
        match a.kind {
            FloatKind::F32 => by_eights::<S, F32>(a),
            FloatKind::F16 => by_eights::<S, F16>(a),
            FloatKind::Bf16 => by_eights::<S, BF16>(a),
        }
    }
}

#[inline(always)]
unsafe fn by_eights<S: Simd, const K: u8>(a: &FloatBlock) {
    // SAFETY: passed on; rows at a time divide 32
    unsafe {
        let mut t = a.from;
        while t < a.to {
            match a.to - t {
                1 => some::<S, K, 16, 1>(a, t),
                2 => some::<S, K, 8, 2>(a, t),
                3 => some::<S, K, 8, 3>(a, t),
                4 => some::<S, K, 4, 4>(a, t),
                5 => some::<S, K, 4, 5>(a, t),
                6 => some::<S, K, 4, 6>(a, t),
                7 => some::<S, K, 2, 7>(a, t),
                _ => some::<S, K, 2, 8>(a, t),
            }
            t += 8;
        }
    }
}

/// T tokens: a block is read once from front to end, the sums of R rows in registers at a time.
#[inline(always)]
unsafe fn some<S: Simd, const K: u8, const R: usize, const T: usize>(a: &FloatBlock, token: usize) {
    // SAFETY: as `tile`
    unsafe {
        let mut sums = [[S::splat(0.0); T]; 32];
        let x = a.x.add(token * a.cols);
        let per_line = if K == F32 { 16 } else { 32 };
        let steps = a.cols / per_line;
        let mut start = 0;
        while start < steps {
            let end = if steps - start < TURN { steps } else { start + TURN };
            let mut row = 0;
            while row < a.rows {
                let mut acc = [[S::splat(0.0); T]; R];
                acc.copy_from_slice(&sums[row..row + R]);
                for step in start..end {
                    let w = a.block.add(step * 2048 + row * 64);
                    for part in 0..per_line / 16 {
                        let x = x.add(step * per_line + part * 16);
                        let mut xs = [S::load(x); T];
                        for t in 1..T {
                            xs[t] = S::load(x.add(t * a.cols));
                        }
                        for r in 0..R {
                            let line = w.add(r * 64);
                            let v = match K {
                                F32 => S::load(line.cast()),
                                F16 => S::load_f16(line.cast::<u16>().add(part * 16)),
                                _ => S::load_bf16(line.cast::<u16>().add(part * 16)),
                            };
                            if part == 0 {
                                // a turn ahead; past the matrix it is only a hint
                                S::prefetch(line.wrapping_add(TURN * 2048));
                            }
                            for t in 0..T {
                                acc[r][t] = S::fma(v, xs[t], acc[r][t]);
                            }
                        }
                    }
                }
                sums[row..row + R].copy_from_slice(&acc);
                row += R;
            }
            start = end;
        }
        for r in 0..a.rows {
            for t in 0..T {
                let sum = S::tree(sums[r][t]);
                let sum = if a.bias.is_null() { sum } else { sum + *a.bias.add(r) };
                *a.out.add((token + t) * a.stride + r) = sum;
            }
        }
    }
}
