//! Scores of attention: queries times sixteen keys at a time, then scale, cap, slope and mask.
//!
//! int8 keys are turned once into a panel, four dimensions of sixteen keys side by side, for four queries or more.

use super::attention::{Aligned, BLOCK, Scratch, Tile, WIDTH};
use super::math::tanh;
use crate::kv::KeyType;
use crate::simd::Simd;
use core::mem::MaybeUninit;

/// q · k of every query with the block's keys, by sixteens of which some query sees a part.
#[inline(always)]
pub(super) unsafe fn products<S: Simd>(a: &Tile, s: &mut Scratch, start: usize) {
    // SAFETY: as `attend`; a sixteen that holds a visible position lies in one page, all of it readable
    unsafe {
        let (key_bytes, kw) = (a.layout.key_bytes(), a.layout.key_width());
        let count = a.queries.len();
        let mut at = start;
        while at < start + BLOCK {
            let mut seen = false;
            for q in a.queries {
                seen |= q.low.max(at) < q.high.min(at + 16);
            }
            if seen {
                let page = a.page(at);
                let slot = at % a.layout.page_tokens;
                let keys = page.add(slot * key_bytes);
                let mut i = 0;
                if a.layout.key == KeyType::I8 {
                    let scales = S::load_f16(page.add(a.layout.key_scales_at()).cast::<u16>().add(slot));
                    if count >= 4 {
                        let mut panel = MaybeUninit::<Aligned<[u8; WIDTH * 16]>>::uninit();
                        let panel = panel.as_mut_ptr().cast::<u8>();
                        key_panel::<S>(keys, kw, panel);
                        while i + 8 <= count {
                            dots_panel::<S, 8>(s, i, panel, scales, kw, at - start);
                            i += 8;
                        }
                        while i + 4 <= count {
                            dots_panel::<S, 4>(s, i, panel, scales, kw, at - start);
                            i += 4;
                        }
                    }
                    while i < count {
                        let v = dots_i8::<S>(s, i, keys, scales, kw);
                        S::store(s.p[i].as_mut_ptr().add(at - start), v);
                        i += 1;
                    }
                } else {
                    while i < count {
                        let q = s.q[i].as_ptr();
                        let v = match a.layout.key {
                            KeyType::F16 => dots::<S, true>(q, keys, kw),
                            _ => dots::<S, false>(q, keys, kw),
                        };
                        S::store(s.p[i].as_mut_ptr().add(at - start), v);
                        i += 1;
                    }
                }
            }
            at += 16;
        }
    }
}

/// Sixteen int8 keys to groups of four dimensions, `[width/4][16 keys][4]`: several queries then multiply without
/// summing across lanes.
#[inline(always)]
unsafe fn key_panel<S: Simd>(keys: *const u8, width: usize, panel: *mut u8) {
    // SAFETY: sixteen keys of `width` bytes and 48 readable bytes behind them (see `dots_i8`)
    unsafe {
        let mut rows = Aligned([0u8; 1024]);
        let rows = rows.0.as_mut_ptr();
        let mut d = 0;
        while d < width {
            for key in 0..16 {
                S::b_store(rows.add(key * 64), S::biased(S::b_load(keys.add(key * width + d))));
            }
            S::transpose(rows, panel.add(d * 16));
            d += 64;
        }
    }
}

/// Q queries against a panel of sixteen keys: exact per 256 dimensions, then one fma.
#[inline(always)]
unsafe fn dots_panel<S: Simd, const Q: usize>(
    s: &mut Scratch,
    first: usize,
    panel: *const u8,
    scales: S::F,
    width: usize,
    at: usize,
) {
    // SAFETY: the panel holds `width` dimensions; queries first..first + Q exist
    unsafe {
        let queries = s.q8.as_ptr().add(first).cast::<i8>();
        let mut acc = [S::splat(0.0); Q];
        let (mut d, mut b) = (0, 0);
        while d < width {
            let end = if width - d < 256 { width } else { d + 256 };
            let mut sums = [S::i_splat(0); Q];
            for q in 0..Q {
                sums[q] = S::i_splat((-S::BIAS).wrapping_mul(s.q_sum[first + q][b]));
            }
            let mut k = d;
            while k < end {
                let keys = S::b_load(panel.add(k * 16));
                for q in 0..Q {
                    let x = queries.add(q * (WIDTH + 64) + k).cast::<i32>().read_unaligned();
                    sums[q] = S::dot4(sums[q], keys, x);
                }
                k += 4;
            }
            for q in 0..Q {
                let scale = S::mul(scales, S::splat(s.q_scale[first + q][b]));
                acc[q] = S::fma(S::from_int(sums[q]), scale, acc[q]);
            }
            d = end;
            b += 1;
        }
        for q in 0..Q {
            S::store(s.p[first + q].as_mut_ptr().add(at), acc[q]);
        }
    }
}

/// Products of query `i` to scores at positions from..to of the block, −∞ elsewhere.
#[inline(always)]
pub(super) unsafe fn scores<S: Simd>(a: &Tile, s: &mut Scratch, i: usize, start: usize, from: usize, to: usize) {
    // SAFETY: as `attend`
    unsafe {
        let mut at = start;
        while at < start + BLOCK {
            let lanes = s.p[i].as_mut_ptr().add(at - start);
            if at + 16 <= from || to <= at {
                S::store(lanes, S::splat(f32::NEG_INFINITY));
                at += 16;
                continue;
            }
            let mut v = S::mul(S::load(lanes), S::splat(a.scale));
            if a.softcap > 0.0 {
                let cap = S::splat(a.softcap);
                v = S::mul(cap, tanh::<S>(S::div(v, cap)));
            }
            if a.alibi {
                let query = (a.queries[i].high - 1) as f32;
                let mut distance = [0f32; 16];
                for l in 0..16 {
                    distance[l] = (at + l) as f32 - query;
                }
                v = S::fma(S::splat(a.queries[i].slope), S::load(distance.as_ptr()), v);
            }
            S::store(lanes, v);
            if at < from || to < at + 16 {
                for l in 0..16 {
                    if at + l < from || at + l >= to {
                        *lanes.add(l) = f32::NEG_INFINITY;
                    }
                }
            }
            at += 16;
        }
    }
}

/// Sixteen keys against a query in f32: lanes by d mod 16, then the tree.
#[inline(always)]
unsafe fn dots<S: Simd, const HALF: bool>(q: *const f32, keys: *const u8, width: usize) -> S::F {
    // SAFETY: sixteen keys of `width` values
    unsafe {
        let bytes = width * if HALF { 2 } else { 4 };
        let mut acc = [S::splat(0.0); 16];
        let mut d = 0;
        while d < width {
            let x = S::load(q.add(d));
            for l in 0..16 {
                let key = keys.add(l * bytes);
                let k = if HALF {
                    S::load_f16(key.cast::<u16>().add(d))
                } else {
                    S::load(key.cast::<f32>().add(d))
                };
                acc[l] = S::fma(x, k, acc[l]);
            }
            d += 16;
        }
        S::tree16(&acc)
    }
}

/// Sixteen int8 keys: exact per 256 dimensions, then one fma, as in a matrix product.
#[inline(always)]
unsafe fn dots_i8<S: Simd>(s: &Scratch, i: usize, keys: *const u8, scales: S::F, width: usize) -> S::F {
    // SAFETY: sixteen keys of `width` bytes; up to 48 bytes after the last are read and multiplied by zero, and
    // the key scales (64 bytes at least) lie there
    unsafe {
        let mut acc = S::splat(0.0);
        let q = s.q8[i].as_ptr().cast::<u8>();
        let mut d = 0;
        let mut b = 0;
        while d < width {
            let end = (d + 256).min(width);
            let mut quads = [S::p_zero(); 4];
            for quad in 0..4 {
                let mut p = [S::p_zero(); 4];
                for l in 0..4 {
                    let key = keys.add((quad * 4 + l) * width);
                    let mut k = d;
                    while k < end {
                        p[l] = S::dot(p[l], S::biased(S::b_load(key.add(k))), S::b_load(q.add(k)));
                        k += 64;
                    }
                }
                quads[quad] = S::fold4(&p);
            }
            let sums = S::i_sub(S::fold16(&quads), S::i_splat(S::BIAS * s.q_sum[i][b]));
            acc = S::fma(S::from_int(sums), S::mul(scales, S::splat(s.q_scale[i][b])), acc);
            d = end;
            b += 1;
        }
        acc
    }
}
