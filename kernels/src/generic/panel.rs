//! Integer products for several tokens: a record is decoded once, row by row, into a panel in L1, and its bytes are
//! broadcast against activations that lie side by side, a vector (token, or term of one) to a lane.
//!
//! ```text
//! panel     [32 rows][256]  in dot's form, in the record's order
//! a pack    up to 16 vectors of a record:  [256/w][vectors][w bytes]    16 vectors w = 4, 8 vectors w = 8, 4 w = 16
//!
//! a line of a pack, 64 bytes, times w bytes of one row, repeated, are sixteen sums:
//!   w = 4     a vector each
//!   w = 8     two halves of a vector's sum each, of rows r and r + 16 folded into one register
//!   w = 16    four quarters, of rows r, r + 8, r + 16, r + 24
//!
//! 9 to 12 vectors are a pack of 8 and behind it one of 4. Where registers are many, 5 to 8 and 13 to 16 vectors that are
//! alone are two packs of 4 or 8: what is broadcast is used twice, or else more bytes are loaded than multiplied.
//! ```
//! So nothing of the weights is transposed, few lanes are idle at any number of vectors, and sums of a record are
//! folded into as many registers as there are results. Order and rounding of the float sums are those of `rows.rs`.

use super::codes::{self, record_bytes, terms};
use super::rows::{DEPTH, Hints, IntBlock, STREAMS, exponent};
use crate::simd::{Aligned, Simd};
use core::mem::MaybeUninit;

/// Vectors of a pack.
pub const LANES: usize = 16;
/// Sums of a pack of 8 lanes.
const AFTER_EIGHT: usize = 256;
/// Packs whose sums lie on the stack, for all blocks together.
const SLAB: usize = 32;
/// The same where there is one block: their sums stay in L1.
const ALONE: usize = 12;

/// Parts of one walk of `packs` packs along a record's inputs, `width` bytes of a row at a time, between which hints are
/// given: more where reading takes the time, as far as there are steps.
const fn parts(packs: usize, width: usize) -> usize {
    if packs > 1 || width == 16 { 8 } else { 16 }
}

/// The vectors of a product as packs.
#[derive(Clone, Copy)]
pub struct Packs {
    /// First pack of the first record: `[records][packs][lanes of the pack · 256]`.
    pub x: *const i8,
    /// Bytes from one record to the next.
    pub record: usize,
    /// `[records][packs][`[`SUMS`]`]`: the scale of each lane's result.
    pub scale: *const f32,
    /// Likewise what each lane's sum starts from.
    pub start: *const i32,
    /// Packs from one record to the next.
    pub packs: usize,
    /// There are no vectors but one pack's.
    pub alone: bool,
}

/// Vectors of a pack, of those of more than which a second one follows.
const EIGHT: usize = 8;
/// Sums of a pack: sixteen, and sixteen of the smaller one that may follow one.
pub const SUMS: usize = 2 * LANES;

/// Lanes that `n` ≤ 16 vectors get: all of a pack of 4, 8 or 16, or of one of 8 and one of 4.
pub const fn lanes(n: usize) -> usize {
    match n {
        0..=4 => 4,
        5..=8 => 8,
        9..=12 => 12,
        _ => 16,
    }
}

/// How many of a pack's vectors are in its first one, where it is two; `alone`: where no pack is beside it.
#[inline(always)]
fn first<S: Simd>(vectors: usize, alone: bool) -> usize {
    match vectors {
        9..=12 => EIGHT,
        5..=8 if alone && S::ACCUMULATORS == 16 => 4,
        13..=16 if alone && S::ACCUMULATORS == 16 => EIGHT,
        _ => vectors,
    }
}

/// The lane in which the sum of part `part` (of 16 / lanes) of a pack's rows for `vector` comes out.
const fn lane(lanes: usize, vector: usize, part: usize) -> usize {
    match lanes {
        4 => vector * 4 + part,
        8 => vector / 2 * 4 + part * 2 + vector % 2,
        _ => vector,
    }
}

/// One record's vectors, and where their pack goes.
pub struct Packing {
    /// First of the vectors, 256 bytes each, in the record's order.
    pub x: *const i8,
    pub scale: *const f32,
    /// Sums of their integers.
    pub sum: *const i32,
    /// 1..=16.
    pub vectors: usize,
    /// There are no others.
    pub alone: bool,
    pub to: *mut i8,
    /// [`SUMS`] of them.
    pub to_scale: *mut f32,
    pub to_start: *mut i32,
}

/// Makes a pack. Idle lanes get zeros.
#[inline(always)]
pub unsafe fn pack<S: Simd>(a: &Packing) {
    // SAFETY: the caller has `vectors` vectors and room for a pack of as many lanes as they get
    unsafe {
        let first = first::<S>(a.vectors, a.alone);
        pack_one::<S>(&Packing { vectors: first, ..*a });
        if first < a.vectors {
            pack_one::<S>(&Packing {
                x: a.x.add(first * DEPTH),
                scale: a.scale.add(first),
                sum: a.sum.add(first),
                vectors: a.vectors - first,
                alone: false,
                to: a.to.add(first * DEPTH),
                to_scale: a.to_scale.add(LANES),
                to_start: a.to_start.add(LANES),
            });
        }
    }
}

/// A pack of 4, 8 or 16 lanes.
#[inline(always)]
unsafe fn pack_one<S: Simd>(a: &Packing) {
    // SAFETY: passed on
    unsafe {
        let lanes = lanes(a.vectors);
        let width = 64 / lanes;
        let (mut scale, mut start) = ([0f32; LANES], [0i32; LANES]);
        for v in 0..a.vectors {
            for part in 0..LANES / lanes {
                scale[lane(lanes, v, part)] = *a.scale.add(v);
            }
            start[v * LANES / lanes] = (-S::BIAS).wrapping_mul(*a.sum.add(v));
        }
        a.to_scale.cast::<[f32; LANES]>().write_unaligned(scale);
        a.to_start.cast::<[i32; LANES]>().write_unaligned(start);
        if lanes == LANES {
            let mut lines = Aligned([0u8; 1024]);
            for part in 0..DEPTH / 64 {
                for v in 0..a.vectors {
                    let line = S::b_load(a.x.add(v * DEPTH + part * 64).cast());
                    S::b_store(lines.0.as_mut_ptr().add(v * 64), line);
                }
                S::transpose(lines.0.as_ptr(), a.to.add(part * 1024).cast());
            }
            return;
        }
        for v in 0..lanes {
            for i in 0..DEPTH / 8 {
                let eight =
                    if v < a.vectors { a.x.add(v * DEPTH + i * 8).cast::<u64>().read_unaligned() } else { 0 };
                let to = a.to.add((i * 8 / width * lanes + v) * width + i * 8 % width);
                to.cast::<u64>().write_unaligned(eight);
            }
        }
    }
}

/// One record's panel against its packs.
pub struct Tiles<'a> {
    pub panel: *const u8,
    /// Inputs: 256, or 128 of a short record.
    pub depth: usize,
    /// The packs of this record, one after the other.
    pub x: *const i8,
    /// Vectors in them.
    pub vectors: usize,
    /// They are all there are.
    pub alone: bool,
    /// `[packs][`[`SUMS`]`]`.
    pub scale: *const f32,
    pub start: *const i32,
    /// 32 row scales.
    pub rows: *const f32,
    /// `[packs][32 · lanes / 16][16]`, of two packs one behind the other.
    pub acc: *mut f32,
    /// What to fetch meanwhile.
    pub hints: &'a Hints,
}

/// Block `first` of every stream. `tiles` as in [`super::rows::product`].
#[inline(always)]
pub unsafe fn product<S: Simd, const BITS: u8>(a: &IntBlock, first: usize, tiles: unsafe fn(&Tiles)) {
    // SAFETY: `a` describes whole blocks; panel and sums are written before they are read
    unsafe {
        let mut panel = Aligned(MaybeUninit::<[u8; 32 * DEPTH]>::uninit());
        let mut acc = Aligned(MaybeUninit::<[f32; SLAB * 512]>::uninit());
        let (panel, acc) = (panel.0.as_mut_ptr().cast::<u8>(), acc.0.as_mut_ptr().cast::<f32>());
        let table = codes::table::<S, BITS>(a.head);
        let e = S::splat(exponent(a.head));
        let p = &a.packs;
        let streams = a.streams(first);
        let slab = if streams == 1 { ALONE } else { SLAB / STREAMS };
        let mut from = a.from;
        while from < a.to {
            let vectors = (a.to - from).min(slab * LANES);
            let (packs, before) = (vectors.div_ceil(LANES), (from - a.from) / LANES);
            core::ptr::write_bytes(acc, 0, streams * packs * 512);
            for r in 0..a.cols.div_ceil(DEPTH) {
                let halves = if a.cols - r * DEPTH > 128 { 2 } else { 1 };
                let at = a.blocks.add(first * a.block_bytes + r * record_bytes(BITS, 2));
                for s in 0..streams {
                    let record = at.add(s * a.run * a.block_bytes);
                    // some of the hints while the record is decoded, which takes its share of the time
                    let hints = Hints::new::<BITS>(a, at, halves, s, streams, 16 * halves);
                    decode::<S, BITS>(table, record, halves, panel, &hints);
                    hints.spread::<BITS>(S::portions(vectors, p.alone));
                    let mut rows = Aligned([0f32; 32]);
                    for tile in 0..2 {
                        let scales = S::load_f16(record.cast::<u16>().add(tile * 16));
                        S::store(rows.0.as_mut_ptr().add(tile * 16), S::mul(scales, e));
                    }
                    let pack = r * p.packs + before;
                    tiles(&Tiles {
                        panel,
                        depth: halves * 128,
                        x: p.x.add(r * p.record + before * LANES * DEPTH),
                        vectors,
                        alone: p.alone,
                        scale: p.scale.add(pack * SUMS),
                        start: p.start.add(pack * SUMS),
                        rows: rows.0.as_ptr(),
                        acc: acc.add(s * packs * 512),
                        hints: &hints,
                    });
                }
            }
            for s in 0..streams {
                for pack in 0..packs {
                    let acc = acc.add((s * packs + pack) * 512);
                    let n = (vectors - pack * LANES).min(LANES);
                    let (block, at) = (s * a.run + first, from + pack * LANES);
                    let (mut done, mut next) = (0, self::first::<S>(n, p.alone));
                    while done < n {
                        let acc = if done > 0 { acc.add(AFTER_EIGHT) } else { acc };
                        finish::<S, BITS>(a, block, at + done, next - done, acc);
                        (done, next) = (next, n);
                    }
                }
            }
            from += vectors;
        }
    }
}

#[inline(always)]
unsafe fn decode<S: Simd, const BITS: u8>(
    table: S::T,
    record: *const u8,
    halves: usize,
    panel: *mut u8,
    hints: &Hints,
) {
    // SAFETY: a panel holds 32 rows of 256 bytes
    unsafe {
        for tile in 0..2 {
            for h in 0..halves {
                hints.give::<S>();
                let to = panel.add(tile * 16 * DEPTH + h * 128);
                codes::tile::<S, BITS, true>(table, record, halves, tile, h, [to, to.add(64)], DEPTH);
            }
        }
    }
}

/// Portions of hints that [`tiles`] gives.
pub const fn portions<const N: usize, const R: usize, const ONE: usize>(
    vectors: usize,
    alone: bool,
) -> usize {
    if ONE == 16 && alone && matches!(vectors, 5..=8 | 13..) {
        return 32 / R * parts(2, 8);
    }
    let (whole, rest) = (vectors / LANES, vectors % LANES);
    let (whole, narrow) = match lanes(rest) {
        _ if rest == 0 => (whole, 0),
        4 => (whole, parts(1, 16)),
        8 => (whole, parts(1, 8)),
        12 => (whole, parts(1, 8) + parts(1, 16)),
        _ => (whole + 1, 0),
    };
    let (many, left) = (whole / N, whole % N);
    let (twos, ones) = if N > 2 { (left / 2, left % 2) } else { (0, left) };
    many * (32 / R) * parts(N, 4) + twos * (32 / R) * parts(2, 4) + (ones * parts(1, 4) + narrow) * (32 / ONE)
}

/// All vectors: whole packs `N` at a time with `R` rows, single ones and the narrow last one with `ONE` sums.
#[inline(always)]
pub unsafe fn tiles<S: Simd, const N: usize, const R: usize, const ONE: usize>(a: &Tiles) {
    // SAFETY: passed on; R and ONE divide 32
    unsafe {
        let (whole, rest) = (a.vectors / LANES, a.vectors % LANES);
        let (whole, rest) = if rest > 12 { (whole + 1, 0) } else { (whole, rest) };
        if S::ACCUMULATORS == 16 && a.alone {
            let alone = Narrow { x: a.x.cast(), sums: 0, acc: a.acc };
            match a.vectors {
                5..=8 => return narrow::<S, 16, 2, R>(a, &alone),
                13..=16 => return narrow::<S, 8, 2, R>(a, &alone),
                _ => {}
            }
        }
        let mut pack = 0;
        while pack + N <= whole {
            for row in (0..32).step_by(R) {
                wide::<S, N, R>(a, pack, row);
            }
            pack += N;
        }
        if N > 2 && pack + 2 <= whole {
            for row in (0..32).step_by(R) {
                wide::<S, 2, R>(a, pack, row);
            }
            pack += 2;
        }
        while pack < whole {
            for row in (0..32).step_by(ONE) {
                wide::<S, 1, ONE>(a, pack, row);
            }
            pack += 1;
        }
        let mut at = Narrow {
            x: a.x.add(pack * LANES * DEPTH).cast(),
            sums: pack * SUMS,
            acc: a.acc.wrapping_add(pack * 512),
        };
        if rest > 4 {
            narrow::<S, 8, 1, ONE>(a, &at);
            at.x = at.x.wrapping_add(EIGHT * DEPTH);
            at.sums += LANES;
            at.acc = at.acc.wrapping_add(AFTER_EIGHT);
        }
        if (1..=4).contains(&rest) || rest > EIGHT {
            narrow::<S, 16, 1, ONE>(a, &at);
        }
    }
}

/// Where a narrow pack, its scales and starts, and its sums lie.
struct Narrow {
    x: *const u8,
    sums: usize,
    acc: *mut f32,
}

#[inline(always)]
unsafe fn wide<S: Simd, const N: usize, const R: usize>(a: &Tiles, pack: usize, row: usize) {
    // SAFETY: packs pack..pack + N and rows row..row + R exist
    unsafe {
        let mut sums = [[S::i_splat(0); N]; R];
        for n in 0..N {
            let start = S::i_load(a.start.add((pack + n) * SUMS));
            for r in 0..R {
                sums[r][n] = start;
            }
        }
        let panel = a.panel.add(row * DEPTH);
        let x = a.x.add(pack * LANES * DEPTH).cast::<u8>();
        let part = a.depth / 4 / parts(N, 4);
        for first in (0..a.depth / 4).step_by(part) {
            a.hints.give::<S>();
            for g in first..first + part {
                let mut line = [S::b_load(x.add(g * 64)); N];
                for n in 1..N {
                    line[n] = S::b_load(x.add(n * LANES * DEPTH + g * 64));
                }
                for r in 0..R {
                    for n in 0..N {
                        sums[r][n] = S::dot_lanes::<4>(sums[r][n], panel.add(r * DEPTH + g * 4), line[n]);
                    }
                }
            }
        }
        for r in 0..R {
            let row_scale = S::splat(*a.rows.add(row + r));
            for n in 0..N {
                let s = S::mul(row_scale, S::load(a.scale.add((pack + n) * SUMS)));
                let to = a.acc.add((pack + n) * 512 + (row + r) * LANES);
                S::store(to, S::fma(S::from_int(sums[r][n]), s, S::load(to)));
            }
        }
    }
}

/// `N` packs of 8 or 4 vectors, `W` = 8 or 16 bytes of each at a time; `R` rows at a time.
#[inline(always)]
unsafe fn narrow<S: Simd, const W: usize, const N: usize, const R: usize>(a: &Tiles, at: &Narrow) {
    // SAFETY: the packs exist, and have 64 / W lanes
    unsafe {
        let folds = W / 4;
        // rows of a part, results of a register, registers at a time
        let (apart, together) = (32 / folds, R / folds);
        // the scales of a register's rows, in the order that folding leaves
        let mut rows = [[0f32; 4]; 16];
        for j in 0..apart {
            for i in 0..4 {
                rows[j][i] = *a.rows.add(j + i * folds / 4 * apart);
            }
        }
        for row in (0..apart).step_by(together) {
            let mut sums = [[S::i_splat(0); N]; R];
            for n in 0..N {
                let start = S::i_load(a.start.add(at.sums + n * LANES));
                for r in 0..R {
                    sums[r][n] = start;
                }
            }
            let panel = a.panel.add(row * DEPTH);
            let part = a.depth / W / parts(N, W);
            for first in (0..a.depth / W).step_by(part) {
                a.hints.give::<S>();
                for g in first..first + part {
                    let mut line = [S::b_load(at.x.add(g * 64)); N];
                    for n in 1..N {
                        line[n] = S::b_load(at.x.add((n * DEPTH / W + g) * 64));
                    }
                    for r in 0..R {
                        let at = (r / folds + r % folds * apart) * DEPTH + g * W;
                        for n in 0..N {
                            sums[r][n] = S::dot_lanes::<W>(sums[r][n], panel.add(at), line[n]);
                        }
                    }
                }
            }
            for n in 0..N {
                let scale = S::load(a.scale.add(at.sums + n * LANES));
                for j in 0..together {
                    let sum = if W == 8 {
                        S::fold_pairs(sums[j * 2][n], sums[j * 2 + 1][n])
                    } else {
                        let q = j * 4;
                        S::fold_quads([sums[q][n], sums[q + 1][n], sums[q + 2][n], sums[q + 3][n]])
                    };
                    let s = S::mul(S::repeat4(rows[row + j].as_ptr()), scale);
                    let to = at.acc.add(n * AFTER_EIGHT + (row + j) * LANES);
                    S::store(to, S::fma(S::from_int(sum), s, S::load(to)));
                }
            }
        }
    }
}

/// Adds the terms of each token of a pack, then the bias, and stores them: `vectors` of them, `first` in the product.
#[inline(always)]
unsafe fn finish<S: Simd, const BITS: u8>(
    a: &IntBlock,
    block: usize,
    first: usize,
    vectors: usize,
    acc: *const f32,
) {
    // SAFETY: only valid rows are stored
    unsafe {
        let lanes = lanes(vectors);
        let parts = LANES / lanes;
        let apart = 32 / parts;
        let valid = (a.rows - block * 32).min(32);
        let mut lines = Aligned(MaybeUninit::<[f32; 256]>::uninit());
        let lines = lines.0.as_mut_ptr().cast::<f32>();
        for from in (0..apart).step_by(16) {
            // sixteen registers to a line per lane; where there are only eight, the others belong to nobody
            S::transpose(acc.add(from * LANES).cast(), lines.cast());
            for vector in (0..vectors).step_by(terms(BITS)) {
                let out = a.out.add((first + vector) / terms(BITS) * a.stride + block * 32);
                for part in 0..parts {
                    let line = lines.add(lane(lanes, vector, part) * 16);
                    let row = part * apart + from;
                    let n = apart.min(16).min(valid.saturating_sub(row));
                    let second = lines.add(lane(lanes, vector + terms(BITS) - 1, part) * 16);
                    for i in 0..n {
                        let v = if terms(BITS) == 2 { *line.add(i) + *second.add(i) } else { *line.add(i) };
                        let bias = a.bias.wrapping_add(block * 32 + row + i);
                        *out.add(row + i) = if a.bias.is_null() { v } else { v + *bias };
                    }
                }
            }
        }
    }
}
