//! Products with f32, f16 and bf16 matrices: a line is one row's next 16 or 32 inputs.
//!
//! A sum is sixteen partial sums by k mod 16, each a chain of fused multiply-adds in ascending k, then the tree.
//! For many tokens a tile of R rows and T tokens keeps R·T accumulators in registers through all inputs; 16-bit values,
//! which every tile would convert again, are made f32 before, a block at a time ([`widen`]). For few, where reading
//! takes the time, a block is read once, from front to end, and groups of rows take turns in the registers
//! ([`turns`]); of one or two tokens, two blocks side by side, so that memory sees two streams.

use crate::simd::Simd;

/// Blocks that are walked together with one or two tokens.
pub const STREAMS: usize = 2;

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

/// Sixteen inputs of a line, the `part`-th.
#[inline(always)]
unsafe fn values<S: Simd, const K: u8>(line: *const u8, part: usize) -> S::F {
    // SAFETY: passed on; a line has one such part in f32, two in 16 bits
    unsafe {
        match K {
            F32 => S::load(line.cast()),
            F16 => S::load_f16(line.cast::<u16>().add(part * 16)),
            _ => S::load_bf16(line.cast::<u16>().add(part * 16)),
        }
    }
}

/// A block of 16-bit values, `steps` lines of every row, as the f32 block of the same values: 2 · `steps` lines.
pub struct Widen {
    pub kind: FloatKind,
    pub block: *const u8,
    pub steps: usize,
    /// `[2 · steps][32 rows][16]`.
    pub out: *mut f32,
}

/// Products of many tokens read each value once a tile: converted once, it costs each tile a load.
#[inline(always)]
pub unsafe fn widen<S: Simd>(a: &Widen) {
    // SAFETY: passed on
    unsafe {
        match a.kind {
            FloatKind::Bf16 => lines::<S, BF16>(a),
            _ => lines::<S, F16>(a),
        }
    }
}

#[inline(always)]
unsafe fn lines<S: Simd, const K: u8>(a: &Widen) {
    // SAFETY: a block has 32 rows in every step, padded, and `out` room for each of their values
    unsafe {
        for step in 0..a.steps {
            for row in 0..32 {
                for part in 0..2 {
                    let v = values::<S, K>(a.block.add((step * 32 + row) * 64), part);
                    S::store(a.out.add(((step * 2 + part) * 32 + row) * 16), v);
                }
            }
        }
    }
}

/// f32 weights, the tokens in tiles of R rows × T tokens, what is left over in tiles of ONE rows.
#[inline(always)]
pub unsafe fn tiles<S: Simd, const R: usize, const T: usize, const ONE: usize>(a: &FloatBlock) {
    debug_assert!(a.kind == FloatKind::F32);
    // SAFETY: passed on; R, ONE divide 32
    unsafe {
        if a.to - a.from == 1 {
            return singles::<S, F32, ONE>(a);
        }
        let mut sums = Sums::<S>::new();
        for b in 0..a.count {
            let a = &a.only(b);
            let mut t = a.from;
            while t + T <= a.to {
                for row in (0..a.rows).step_by(R) {
                    tile::<S, R, T>(a, row, t);
                }
                t += T;
            }
            while t < a.to {
                one::<S, F32, ONE>(a, 0, t, &mut sums);
                t += 1;
            }
        }
    }
}

/// 16-bit weights, token by token.
#[inline(always)]
#[allow(dead_code)] // takes an instruction set that has few registers and converts quickly
pub unsafe fn halves<S: Simd, const ONE: usize>(a: &FloatBlock) {
    // SAFETY: passed on
    unsafe {
        match a.kind {
            FloatKind::Bf16 => singles::<S, BF16, ONE>(a),
            _ => singles::<S, F16, ONE>(a),
        }
    }
}

#[inline(always)]
unsafe fn singles<S: Simd, const K: u8, const ONE: usize>(a: &FloatBlock) {
    let mut sums = Sums::<S>::new();
    for first in 0..a.run {
        for t in a.from..a.to {
            // SAFETY: passed on; ONE divides 32
            unsafe { one::<S, K, ONE>(a, first, t, &mut sums) };
        }
    }
}

/// R rows of one f32 block with T tokens.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const T: usize>(a: &FloatBlock, row: usize, token: usize) {
    // SAFETY: a block has 32 rows in every step, padded; tokens exist; only valid rows are stored
    unsafe {
        let mut acc = [[S::splat(0.0); T]; R];
        let x = a.x.add(token * a.cols);
        let w = a.block.add(row * 64);
        for step in 0..a.steps {
            let mut xs = [S::load(x.add(step * 16)); T];
            for t in 1..T {
                xs[t] = S::load(x.add(t * a.cols + step * 16));
            }
            for r in 0..R {
                let v = S::load(w.add(step * 2048 + r * 64).cast());
                for t in 0..T {
                    acc[r][t] = S::fma(v, xs[t], acc[r][t]);
                }
            }
        }
        // of all rows, valid or not: what is indexed by a number known only now does not stay in registers
        let mut trees = [[0f32; T]; R];
        for r in 0..R {
            for t in 0..T {
                trees[r][t] = S::tree(acc[r][t]);
            }
        }
        for (r, trees) in trees.iter().enumerate().take(a.rows - row) {
            for (t, sum) in trees.iter().enumerate() {
                let sum = if a.bias.is_null() { *sum } else { *sum + *a.bias.add(row + r) };
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
    let mut sums = Sums::<S>::new();
    for first in 0..a.run {
        let mut t = a.from;
        while t < a.to {
            // the code is long, so seven go as six and one, and f32, which is rare, by 8, 4, 2 and 1
            let n = (a.to - t).min(8);
            let n = if K == F32 { 1 << n.ilog2() } else { n - (n == 7) as usize };
            let together = if n <= 2 { STREAMS } else { 1 };
            for s in (0..a.streams(first)).step_by(together) {
                let at = Side::new(a, first, s, together, t);
                // SAFETY: passed on; rows at a time divide 32
                unsafe {
                    match n {
                        1 => side_by_side::<S, K, 16, 1>(a, &at, &mut sums),
                        2 => side_by_side::<S, K, 8, 2>(a, &at, &mut sums),
                        4 => side_by_side::<S, K, 4, 4>(a, &at, &mut sums),
                        3 if K != F32 => side_by_side::<S, K, 8, 3>(a, &at, &mut sums),
                        5 if K != F32 => side_by_side::<S, K, 4, 5>(a, &at, &mut sums),
                        6 if K != F32 => side_by_side::<S, K, 4, 6>(a, &at, &mut sums),
                        _ => side_by_side::<S, K, 2, 8>(a, &at, &mut sums),
                    }
                    finish::<S>(a, &at, n, &sums);
                }
            }
            t += n;
        }
    }
}

/// One token with block `first` of every stream.
#[inline(always)]
unsafe fn one<S: Simd, const K: u8, const R: usize>(
    a: &FloatBlock,
    first: usize,
    token: usize,
    sums: &mut Sums<S>,
) {
    for s in (0..a.streams(first)).step_by(STREAMS) {
        let at = Side::new(a, first, s, STREAMS, token);
        // SAFETY: passed on
        unsafe {
            side_by_side::<S, K, R, 1>(a, &at, sums);
            finish::<S>(a, &at, 1, sums);
        }
    }
}

/// Sums of the rows of blocks walked side by side: `[blocks][tokens][32]`.
struct Sums<S: Simd>([S::F; 8 * 32]);

impl<S: Simd> Sums<S> {
    #[inline(always)]
    fn new() -> Self {
        // SAFETY: arithmetic only; whoever multiplies with S has it
        Sums([unsafe { S::splat(0.0) }; 8 * 32])
    }
}

/// Blocks that are walked side by side.
struct Side {
    /// The first; the others are `run` apart.
    block: usize,
    count: usize,
    /// The first of their tokens.
    token: usize,
}

impl Side {
    /// Up to `most` blocks number `first` of the streams from `stream` on.
    #[inline(always)]
    fn new(a: &FloatBlock, first: usize, stream: usize, most: usize, token: usize) -> Side {
        let left = a.streams(first) - stream;
        Side { block: first + stream * a.run, count: if left < most { left } else { most }, token }
    }

    /// Rows of the matrix before those of block `s`.
    #[inline(always)]
    fn row(&self, a: &FloatBlock, s: usize) -> usize {
        (self.block + s * a.run) * 32
    }
}

/// T tokens with blocks: each is read once from front to end, the sums of R rows in registers at a time, R even;
/// blocks · T ≤ 8.
#[inline(always)]
unsafe fn side_by_side<S: Simd, const K: u8, const R: usize, const T: usize>(
    a: &FloatBlock,
    at: &Side,
    sums: &mut Sums<S>,
) {
    // SAFETY: as `tile`
    unsafe {
        let x = a.x.add(at.token * a.cols);
        let per_line = if K == F32 { 16 } else { 32 };
        let (n, steps) = (at.count, a.steps);
        // what is read of a block, and the padding behind it
        let (read, padding) = (steps * 2048, a.block_bytes - steps * 2048);
        let apart = a.run * a.block_bytes;
        let first = a.block.add(at.block * a.block_bytes);
        // what is fetched meanwhile: lines of two streams in turn, or of one
        let (odd, pair) = if n == 2 { (apart, 64) } else { (64, 128) };
        sums.0[..n * T * 32].fill(S::splat(0.0));
        let mut start = 0;
        while start < steps {
            let end = if steps - start < TURN { steps } else { start + TURN };
            for s in 0..n {
                let rows = a.rows - at.row(a, s);
                // this stream's share of what comes a turn later in all of them; past the matrix it is only a hint
                let share = (start + TURN) * 2048 + s * ((end - start) * 2048 / n);
                let mut hint = share;
                let mut row = 0;
                while row < 32 && row < rows {
                    let rest = sums.0.as_mut_ptr().add(s * T * 32 + row);
                    let mut acc = [[S::splat(0.0); T]; R];
                    for r in 0..R {
                        for t in 0..T {
                            acc[r][t] = *rest.add(t * 32 + r);
                        }
                    }
                    for step in start..end {
                        let w = first.add(s * apart + step * 2048 + row * 64);
                        let next = first.wrapping_add(if hint < read { hint } else { hint + padding });
                        for part in 0..per_line / 16 {
                            let x = x.add(step * per_line + part * 16);
                            let mut xs = [S::load(x); T];
                            for t in 1..T {
                                xs[t] = S::load(x.add(t * a.cols));
                            }
                            for r in 0..R {
                                let v = values::<S, K>(w.add(r * 64), part);
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
                            *rest.add(t * 32 + r) = acc[r][t];
                        }
                    }
                    row += R;
                }
            }
            start = end;
        }
    }
}

/// Stores the sums of `tokens` tokens, and the bias.
#[inline(always)]
unsafe fn finish<S: Simd>(a: &FloatBlock, at: &Side, tokens: usize, sums: &Sums<S>) {
    // SAFETY: as `tile`
    unsafe {
        for s in 0..at.count {
            let first = at.row(a, s);
            let rows = a.rows - first;
            for t in 0..tokens {
                let out = a.out.add((at.token + t) * a.stride + first);
                let of_token = &sums.0[(s * tokens + t) * 32..][..32];
                let mut trees = [0f32; 32];
                for (to, sixteen) in
                    trees.as_chunks_mut::<16>().0.iter_mut().zip(of_token.as_chunks::<16>().0)
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
