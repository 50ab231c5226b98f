//! Products with f32, f16 and bf16 matrices: a line is one row's next 16 or 32 inputs.
//!
//! A sum is sixteen partial sums by k mod 16, each a chain of fused multiply-adds in ascending k, then the tree.
//! For many tokens a tile of R rows and T tokens keeps R·T accumulators in registers through all inputs. For few,
//! where reading takes the time, a block is read once, from front to end, and groups of rows take turns in the
//! registers ([`turns`]); of one or two tokens, two blocks side by side, so that memory sees two streams.

use super::rows::STREAMS;
use crate::simd::Simd;

/// Storage of a full-precision matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FloatKind {
    F32,
    F16,
    Bf16,
}

/// Consecutive blocks of 32 rows against tokens `from..to`.
#[derive(Clone, Copy)]
pub struct FloatBlock {
    pub kind: FloatKind,
    /// First of the blocks.
    pub block: *const u8,
    /// How many there are.
    pub count: usize,
    /// Blocks of one stream: they are cut into at most [`STREAMS`] runs of so many, which are walked side by side.
    pub run: usize,
    /// Bytes of one.
    pub block_bytes: usize,
    /// Inputs, a multiple of 128.
    pub cols: usize,
    /// Lines of a row that are not padding alone: what lies behind them is not read.
    pub steps: usize,
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
    /// Valid rows, at most 32 · count.
    pub rows: usize,
    /// Of the first row; null without one.
    pub bias: *const f32,
    /// Token 0, first row.
    pub out: *mut f32,
    pub stride: usize,
}

impl FloatBlock {
    /// Block `i` alone.
    #[inline(always)]
    pub fn only(&self, i: usize) -> FloatBlock {
        FloatBlock {
            block: self.block.wrapping_add(i * self.block_bytes),
            count: 1,
            run: 1,
            rows: (self.rows - i * 32).min(32),
            bias: if self.bias.is_null() { self.bias } else { self.bias.wrapping_add(i * 32) },
            out: self.out.wrapping_add(i * 32),
            ..*self
        }
    }

    /// Streams that have a block number `first`.
    #[inline(always)]
    fn streams(&self, first: usize) -> usize {
        (self.count - first).div_ceil(self.run)
    }
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
        if a.to - a.from == 1 {
            for first in 0..a.run {
                some::<S, K, ONE, 1, STREAMS>(a, first, a.from);
            }
            return;
        }
        for b in 0..a.count {
            let a = &a.only(b);
            let mut t = a.from;
            while t + T <= a.to {
                for row in (0..a.rows).step_by(R) {
                    tile::<S, K, R, T>(a, row, t);
                }
                t += T;
            }
            while t < a.to {
                some::<S, K, ONE, 1, STREAMS>(a, 0, t);
                t += 1;
            }
        }
    }
}

/// R rows of one block with T tokens.
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
        while k < a.steps * per_line {
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
        for first in 0..a.run {
            let mut t = a.from;
            while t < a.to {
                match a.to - t {
                    1 => some::<S, K, 16, 1, STREAMS>(a, first, t),
                    2 => some::<S, K, 8, 2, STREAMS>(a, first, t),
                    3 => some::<S, K, 8, 3, 1>(a, first, t),
                    4 => some::<S, K, 4, 4, 1>(a, first, t),
                    5 => some::<S, K, 4, 5, 1>(a, first, t),
                    6 => some::<S, K, 4, 6, 1>(a, first, t),
                    7 => some::<S, K, 2, 7, 1>(a, first, t),
                    _ => some::<S, K, 2, 8, 1>(a, first, t),
                }
                t += 8;
            }
        }
    }
}

/// T tokens with block `first` of every stream, up to N of them side by side.
#[inline(always)]
unsafe fn some<S: Simd, const K: u8, const R: usize, const T: usize, const N: usize>(
    a: &FloatBlock,
    first: usize,
    token: usize,
) {
    let streams = a.streams(first);
    let mut s = 0;
    while s < streams {
        let n = if streams - s < N { streams - s } else { N };
        // SAFETY: passed on
        unsafe { side_by_side::<S, K, R, T, N>(a, first + s * a.run, n, token) };
        s += N;
    }
}

/// T tokens with `n` ≤ N blocks, `a.run` apart from `block` on: each is read once from front to end, the sums of R
/// rows in registers at a time, R even.
#[inline(always)]
unsafe fn side_by_side<S: Simd, const K: u8, const R: usize, const T: usize, const N: usize>(
    a: &FloatBlock,
    block: usize,
    n: usize,
    token: usize,
) {
    // SAFETY: as `tile`
    unsafe {
        let mut sums = [[[S::splat(0.0); 32]; T]; N];
        let x = a.x.add(token * a.cols);
        let per_line = if K == F32 { 16 } else { 32 };
        let steps = a.steps;
        // what is read of a block, and the padding behind it
        let (read, padding) = (steps * 2048, a.block_bytes - steps * 2048);
        let apart = a.run * a.block_bytes;
        let at = a.block.add(block * a.block_bytes);
        // what is fetched meanwhile: lines of two streams in turn, or of one
        let (odd, pair) = if n == 2 { (apart, 64) } else { (64, 128) };
        let mut start = 0;
        while start < steps {
            let end = if steps - start < TURN { steps } else { start + TURN };
            for s in 0..n {
                let rows = a.rows - (block + s * a.run) * 32;
                // this stream's share of what comes a turn later in all of them; past the matrix it is only a hint
                let share = (start + TURN) * 2048 + s * ((end - start) * 2048 / n);
                let mut hint = share;
                let mut row = 0;
                while row < 32 && row < rows {
                    let mut acc = [[S::splat(0.0); T]; R];
                    for r in 0..R {
                        for t in 0..T {
                            acc[r][t] = sums[s][t][row + r];
                        }
                    }
                    for step in start..end {
                        let w = at.add(s * apart + step * 2048 + row * 64);
                        let next = at.wrapping_add(if hint < read { hint } else { hint + padding });
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
                                    S::prefetch(next.wrapping_add(r % 2 * odd + r / 2 * pair));
                                }
                                for t in 0..T {
                                    acc[r][t] = S::fma(v, xs[t], acc[r][t]);
                                }
                            }
                        }
                        hint += R / 2 * pair;
                    }
                    for r in 0..R {
                        for t in 0..T {
                            sums[s][t][row + r] = acc[r][t];
                        }
                    }
                    row += R;
                }
            }
            start = end;
        }
        // as many as T, which the compiler must not know: each would get code of its own
        let tokens = (a.to - token).min(T);
        for s in 0..n {
            let first = (block + s * a.run) * 32;
            let rows = a.rows - first;
            for t in 0..tokens {
                let out = a.out.add((token + t) * a.stride + first);
                let mut trees = [0f32; 32];
                for (to, sixteen) in
                    trees.as_chunks_mut::<16>().0.iter_mut().zip(sums[s][t].as_chunks::<16>().0)
                {
                    S::store(to.as_mut_ptr(), S::tree16(sixteen));
                }
                for r in 0..if rows < 32 { rows } else { 32 } {
                    *out.add(r) = if a.bias.is_null() { trees[r] } else { trees[r] + *a.bias.add(first + r) };
                }
            }
        }
    }
}
