//! q · k of a block: every query's raw scores of its sixty-four positions.
//!
//! int8 keys lie by sixteens in groups of four dimensions (`kv.rs`), so sixteen scores grow in sixteen lanes without
//! any sum across lanes; exact per 256 dimensions, then one fma, as in a matrix product. Other keys: sixteen lanes
//! by d mod 16, then the tree. Scores of positions that no query sees are left as they were.

use super::ahead::Ahead;
use super::{BLOCK, Block, Scratch, Tile};
use crate::kv::KeyType;
use crate::simd::Simd;

/// Calls `$body` for groups of queries `$i..$i + $q`, the greatest `$q` first.
macro_rules! groups {
    ($n:expr, $i:ident, $($q:literal => $body:expr),*) => {{
        let n: usize = $n;
        let mut $i = 0;
        $(while n - $i >= $q {
            $body;
            $i += $q;
        })*
    }};
}
pub(super) use groups;

/// A block with int8 keys.
pub struct Keys<'a> {
    tile: &'a Tile<'a>,
    scratch: &'a Scratch,
    block: &'a Block,
    ahead: &'a mut Ahead,
}

/// Scores of all queries with the block's int8 keys. It is all in which instruction sets with the same vectors and
/// another way to multiply bytes differ, and so a function of its own.
#[inline(always)]
pub unsafe fn keys<S: Simd>(k: &mut Keys) {
    let (a, s, b) = (k.tile, k.scratch, k.block);
    // SAFETY: as `products`
    unsafe {
        if S::ACCUMULATORS > 1 && b.runs.iter().all(|r| !r.page.is_null()) {
            whole::<S>(a, s, b, k.ahead);
            return;
        }
        for g in 0..BLOCK / 16 {
            if !b.runs[g].page.is_null() {
                for i in 0..a.queries.len() {
                    dots::<S, 1, 1>(a, s, b, i, g, k.ahead);
                }
            }
        }
    }
}

/// Scores of all queries with the block's keys, into `s.p`.
#[inline(always)]
pub unsafe fn products<S: Simd>(a: &Tile, s: &Scratch, b: &Block, ahead: &mut Ahead) {
    // SAFETY: as `attend`; a sixteen that holds a visible position lies in one page, all of it readable
    unsafe {
        if a.layout.key == KeyType::I8 {
            (a.keys)(&mut Keys { tile: a, scratch: s, block: b, ahead });
        } else {
            for g in 0..BLOCK / 16 {
                if !b.runs[g].page.is_null() {
                    match a.layout.key {
                        KeyType::F16 => floats::<S, true>(a, s, b, g, ahead),
                        _ => floats::<S, false>(a, s, b, g, ahead),
                    }
                }
            }
        }
    }
}

/// A block that is seen everywhere: as many accumulators as the registers hold.
#[inline(always)]
unsafe fn whole<S: Simd>(a: &Tile, s: &Scratch, b: &Block, ahead: &mut Ahead) {
    // SAFETY: passed on
    unsafe {
        let n = a.queries.len();
        if S::ACCUMULATORS == 16 {
            groups!(n, i,
                8 => for g in [0, 2] {
                    dots::<S, 8, 2>(a, s, b, i, g, ahead);
                },
                4 => dots::<S, 4, 4>(a, s, b, i, 0, ahead),
                3 => dots::<S, 3, 4>(a, s, b, i, 0, ahead),
                1 => dots::<S, 1, 4>(a, s, b, i, 0, ahead));
        } else {
            groups!(n, i,
                4 => for g in 0..BLOCK / 16 {
                    dots::<S, 4, 1>(a, s, b, i, g, ahead);
                },
                1 => dots::<S, 1, 4>(a, s, b, i, 0, ahead));
        }
    }
}

/// Q queries with G sixteens of int8 keys.
#[inline(always)]
unsafe fn dots<S: Simd, const Q: usize, const G: usize>(
    a: &Tile,
    s: &Scratch,
    b: &Block,
    first: usize,
    sixteen: usize,
    ahead: &mut Ahead,
) {
    // SAFETY: the sixteens are readable, queries first..first + Q exist
    unsafe {
        let width = a.layout.key_width();
        let mut keys = [core::ptr::null::<u8>(); G];
        let mut scales = [S::splat(0.0); G];
        for g in 0..G {
            let run = &b.runs[sixteen + g];
            keys[g] = run.page.add(run.slot * width);
            scales[g] = S::load_f16(run.page.add(a.layout.key_scales_at()).cast::<u16>().add(run.slot));
        }
        let queries = s.q8.add(first * width).cast_const();
        let out = s.p.add(first * BLOCK + sixteen * 16);
        let (mut d, mut block) = (0, 0);
        while d < width {
            let end = if width - d < 256 { width } else { d + 256 };
            let mut sums = [[S::i_splat(0); G]; Q];
            for q in 0..Q {
                let bias = (-S::BIAS).wrapping_mul(*s.q_sum.add((first + q) * 4 + block));
                for g in 0..G {
                    sums[q][g] = S::i_splat(bias);
                }
            }
            let mut k = d;
            while k < end {
                let mut line = [S::b_load(keys[0].add(k * 16)); G];
                for g in 0..G {
                    line[g] = S::biased(S::b_load(keys[g].add(k * 16)));
                }
                if first == 0 && k % 8 == 0 {
                    ahead.pay::<S>(Q * G * 2);
                }
                for q in 0..Q {
                    let x = queries.add(q * width + k).cast::<i32>().read_unaligned();
                    for g in 0..G {
                        sums[q][g] = S::dot4(sums[q][g], line[g], x);
                    }
                }
                k += 4;
            }
            for q in 0..Q {
                let scale = S::splat(*s.q_scale.add((first + q) * 4 + block));
                for g in 0..G {
                    let at = out.add(q * BLOCK + g * 16);
                    let before = if d == 0 { S::splat(0.0) } else { S::load(at) };
                    S::store(at, S::fma(S::from_int(sums[q][g]), S::mul(scales[g], scale), before));
                }
            }
            d = end;
            block += 1;
        }
    }
}

/// All queries with a sixteen of f16 or f32 keys.
#[inline(always)]
unsafe fn floats<S: Simd, const HALF: bool>(a: &Tile, s: &Scratch, b: &Block, g: usize, ahead: &mut Ahead) {
    // SAFETY: the sixteen is readable
    unsafe {
        let (width, n) = (a.layout.key_width(), a.queries.len());
        let run = &b.runs[g];
        let keys = run.page.add(run.slot * a.layout.key_bytes());
        let out = s.p.add(g * 16);
        if HALF && n == 1 && S::ACCUMULATORS > 1 {
            S::store(out, rows::<S, true>(s.q, keys, width, ahead));
            return;
        }
        let mut floats = keys.cast::<f32>();
        if HALF {
            // converted once for all queries
            let mut d = 0;
            while d < 16 * width {
                S::store(s.keys.add(d), S::load_f16(keys.cast::<u16>().add(d)));
                d += 16;
            }
            floats = s.keys;
        }
        for i in 0..n {
            let v = rows::<S, false>(s.q.add(i * width), floats.cast(), width, ahead);
            S::store(out.add(i * BLOCK), v);
        }
    }
}

/// One query with sixteen keys.
#[inline(always)]
unsafe fn rows<S: Simd, const HALF: bool>(
    q: *const f32,
    keys: *const u8,
    width: usize,
    ahead: &mut Ahead,
) -> S::F {
    // SAFETY: sixteen keys of `width` values
    unsafe {
        let size = if HALF { 2 } else { 4 };
        let mut acc = [S::splat(0.0); 16];
        let mut d = 0;
        while d < width {
            let x = S::load(q.add(d));
            for l in 0..16 {
                let key = keys.add((l * width + d) * size);
                let k = if HALF { S::load_f16(key.cast()) } else { S::load(key.cast()) };
                acc[l] = S::fma(x, k, acc[l]);
            }
            ahead.pay::<S>(16);
            d += 16;
        }
        S::tree16(&acc)
    }
}
