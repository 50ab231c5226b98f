//! Attention over pages: queries of one kv head against their sequence, 64 absolute positions at a time.
//!
//! For each block of 64: scores, the block's maximum, one rescale of sum and output, weights e^(s − m), their sum
//! over 16 lanes by position mod 16 and the tree, and o = fma(weight, value, o) in ascending position. Several
//! queries (the heads of a group, neighbouring rows) go together, so keys and values are read once for all; what a
//! query computes does not depend on its company. Online softmax: arXiv:1805.02867; blocks: arXiv:2205.14135.

use super::math::{exps, tanh};
use super::norm::{fetch, put};
use super::quantize::quantize;
use crate::kv::{KeyType, KvLayout, ValueType};
use crate::simd::{Simd, runs};
use core::mem::MaybeUninit;

/// Queries that go together.
pub const QUERIES: usize = 8;
/// Positions of a softmax block.
pub const BLOCK: usize = 64;
const WIDTH: usize = KvLayout::MAX_DIM;

/// One query: a (row, head).
#[derive(Clone, Copy)]
pub struct Query {
    pub q: *const f32,
    pub out: *mut f32,
    /// Sees positions low..high.
    pub low: usize,
    pub high: usize,
    pub slope: f32,
    /// A logit that takes part in the sum, or −∞.
    pub sink: f32,
}

/// Up to [`QUERIES`] queries of one kv head over one page table.
pub struct Tile<'a> {
    pub layout: KvLayout,
    /// The pool, at this layer's and kv head's part of page 0.
    pub pool: *const u8,
    /// Bytes between pages.
    pub stride: usize,
    pub table: *const u32,
    pub queries: &'a [Query],
    pub scale: f32,
    /// 0: none.
    pub softcap: f32,
    pub alibi: bool,
}

#[repr(C, align(64))]
struct Aligned<T>(T);

struct Scratch {
    /// Queries padded to 16, or their int8 form and its scales and sums per 256.
    q: [[f32; WIDTH]; QUERIES],
    q8: [[i8; WIDTH + 64]; QUERIES],
    q_scale: [[f32; WIDTH / 256]; QUERIES],
    q_sum: [[i32; WIDTH / 256]; QUERIES],
    o: [[f32; WIDTH]; QUERIES],
    p: [[f32; BLOCK]; QUERIES],
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
}

impl Tile<'_> {
    /// Start of the head's part of the page that holds `position`.
    #[inline(always)]
    unsafe fn page(&self, position: usize) -> *const u8 {
        // SAFETY: visible positions have pages inside the pool, proved by the caller
        unsafe { self.pool.add(*self.table.add(position / self.layout.page_tokens) as usize * self.stride) }
    }
}

/// Attends: fills every query's `value_dim` outputs.
#[inline(always)]
pub unsafe fn attend<S: Simd>(a: &Tile) {
    // SAFETY: `Tile`'s pointers cover what the layout and the visible ranges say; scratch is written before read
    unsafe {
        let mut scratch = MaybeUninit::<Aligned<Scratch>>::uninit();
        let s = &raw mut (*scratch.as_mut_ptr()).0;
        let (kw, vw) = (a.layout.key_width(), a.layout.value_width());
        let count = a.queries.len();
        let (mut low, mut high) = (usize::MAX, 0);
        for (i, q) in a.queries.iter().enumerate() {
            if a.layout.key == KeyType::I8 {
                let to = (&raw mut (*s).q8[i]).cast::<i8>();
                core::ptr::write_bytes(to, 0, kw.next_multiple_of(64));
                for b in 0..a.layout.key_dim.div_ceil(256) {
                    let n = (a.layout.key_dim - b * 256).min(256);
                    let (scale, sum) = quantize::<S, false>(q.q.add(b * 256), n, to.add(b * 256));
                    (*s).q_scale[i][b] = scale;
                    (*s).q_sum[i][b] = sum;
                }
            } else {
                let to = (&raw mut (*s).q[i]).cast::<f32>();
                runs!(a.layout.key_dim, |k, n| S::store(to.add(k), fetch::<S>(q.q.add(k), n, 0.0)));
            }
            core::ptr::write_bytes((&raw mut (*s).o[i]).cast::<f32>(), 0, vw);
            (*s).max[i] = q.sink;
            (*s).sum[i] = if q.sink == f32::NEG_INFINITY { 0.0 } else { 1.0 };
            low = low.min(q.low);
            high = high.max(q.high);
        }
        let s = &mut *s;
        let mut start = low / BLOCK * BLOCK;
        while start < high {
            let end = start + BLOCK;
            products::<S>(a, s, start);
            for i in 0..count {
                let q = &a.queries[i];
                let (from, to) = (q.low.max(start), q.high.min(end));
                if from < to {
                    scores::<S>(a, s, i, start, from, to);
                    weigh::<S>(a, s, i, start, from, to, vw);
                }
            }
            // queries that see the same part of the block read its values together
            let mut i = 0;
            while i < count {
                let q = &a.queries[i];
                let (from, to) = (q.low.max(start), q.high.min(end));
                let mut n = 1;
                while i + n < count {
                    let o = &a.queries[i + n];
                    if (o.low.max(start), o.high.min(end)) != (from, to) {
                        break;
                    }
                    n += 1;
                }
                if from < to {
                    values::<S>(a, s, i, n, start, from, to);
                }
                i += n;
            }
            start = end;
        }
        for (i, q) in a.queries.iter().enumerate() {
            let total = S::splat(s.sum[i]);
            runs!(a.layout.value_dim, |k, n| {
                put::<S>(q.out.add(k), n, S::div(S::load(s.o[i].as_ptr().add(k)), total));
            });
        }
    }
}

/// q · k of every query with the block's keys, by sixteens of which some query sees a part.
#[inline(always)]
unsafe fn products<S: Simd>(a: &Tile, s: &mut Scratch, start: usize) {
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
unsafe fn scores<S: Simd>(a: &Tile, s: &mut Scratch, i: usize, start: usize, from: usize, to: usize) {
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

/// Scores to weights: new maximum, rescale, sum; for int8 values the weights take in the values' scales.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    a: &Tile,
    s: &mut Scratch,
    i: usize,
    start: usize,
    from: usize,
    to: usize,
    width: usize,
) {
    // SAFETY: as `attend`
    unsafe {
        let p = s.p[i].as_mut_ptr();
        let mut v = [S::splat(0.0); BLOCK / 16 + 1];
        for g in 0..BLOCK / 16 {
            v[g] = S::load(p.add(g * 16));
        }
        // NaN may get lost in the maximum but not in the weights
        let top = S::top(S::max(S::max(v[0], v[1]), S::max(v[2], v[3])));
        let old = s.max[i];
        let new = if top > old { top } else { old };
        for g in 0..BLOCK / 16 {
            v[g] = S::sub(v[g], S::splat(new));
        }
        v[4] = S::splat(old - new);
        let e = exps::<S, { BLOCK / 16 + 1 }>(v);
        let mut sum = S::splat(0.0);
        for g in 0..BLOCK / 16 {
            sum = S::add(sum, e[g]);
            S::store(p.add(g * 16), e[g]);
        }
        let mut lanes = [0f32; 16];
        S::store(lanes.as_mut_ptr(), e[4]);
        let factor = lanes[0];
        s.sum[i] = s.sum[i].mul_add(factor, S::tree(sum));
        s.max[i] = new;
        if factor != 1.0 {
            let f = S::splat(factor);
            let o = s.o[i].as_mut_ptr();
            let mut k = 0;
            while k < width {
                S::store(o.add(k), S::mul(S::load(o.add(k)), f));
                k += 16;
            }
        }
        let scales_at = match (a.layout.latent, a.layout.key, a.layout.value) {
            (true, KeyType::I8, _) => a.layout.key_scales_at(),
            (false, _, ValueType::I8) => a.layout.value_scales_at(),
            _ => return,
        };
        let mut at = from / 16 * 16;
        while at < to {
            let scales = a.page(at).add(scales_at).cast::<u16>().add(at % a.layout.page_tokens);
            let w = p.add(at - start);
            S::store(w, S::mul(S::load(w), S::load_f16(scales)));
            at += 16;
        }
    }
}

const F32: u8 = 0;
const F16: u8 = 1;
const I8: u8 = 2;

/// Adds weight · value over positions from..to for queries i..i + n.
#[inline(always)]
unsafe fn values<S: Simd>(
    a: &Tile,
    s: &mut Scratch,
    i: usize,
    n: usize,
    start: usize,
    from: usize,
    to: usize,
) {
    let l = &a.layout;
    let (kind, at, bytes) = if l.latent {
        let kind = match l.key {
            KeyType::F32 => F32,
            KeyType::F16 => F16,
            KeyType::I8 => I8,
        };
        (kind, 0, l.key_bytes())
    } else {
        let kind = match l.value {
            ValueType::F32 => F32,
            ValueType::F16 => F16,
            ValueType::I8 => I8,
        };
        (kind, l.values_at(), l.value_bytes())
    };
    let range = Range { first: i, at, bytes, start, from, to };
    // SAFETY: passed on
    unsafe {
        match kind {
            F32 => groups::<S, F32>(a, s, range, n),
            F16 => groups::<S, F16>(a, s, range, n),
            _ => groups::<S, I8>(a, s, range, n),
        }
    }
}

#[derive(Clone, Copy)]
struct Range {
    /// First query.
    first: usize,
    /// Offset of the values in the head's part of a page, and bytes of one.
    at: usize,
    bytes: usize,
    start: usize,
    from: usize,
    to: usize,
}

#[inline(always)]
unsafe fn groups<S: Simd, const K: u8>(a: &Tile, s: &mut Scratch, mut r: Range, n: usize) {
    // SAFETY: passed on; padded values reach the next multiple of 16
    unsafe {
        let chunks = a.layout.value_width() / 16;
        let mut left = n;
        while left > 0 {
            let q = if left >= 8 {
                8
            } else if left >= 4 {
                4
            } else {
                1
            };
            let mut c = 0;
            match q {
                8 => {
                    while c < chunks {
                        chunk::<S, K, 8, 1>(a, s, r, c);
                        c += 1;
                    }
                }
                4 => {
                    while c + 2 <= chunks {
                        chunk::<S, K, 4, 2>(a, s, r, c);
                        c += 2;
                    }
                    while c < chunks {
                        chunk::<S, K, 4, 1>(a, s, r, c);
                        c += 1;
                    }
                }
                _ => {
                    while c + 4 <= chunks {
                        chunk::<S, K, 1, 4>(a, s, r, c);
                        c += 4;
                    }
                    while c < chunks {
                        chunk::<S, K, 1, 1>(a, s, r, c);
                        c += 1;
                    }
                }
            }
            r.first += q;
            left -= q;
        }
    }
}

/// D chunks of 16 value dimensions of Q queries.
#[inline(always)]
unsafe fn chunk<S: Simd, const K: u8, const Q: usize, const D: usize>(
    a: &Tile,
    s: &mut Scratch,
    r: Range,
    c: usize,
) {
    // SAFETY: as `attend`
    unsafe {
        let mut acc = [[S::splat(0.0); D]; Q];
        for q in 0..Q {
            for d in 0..D {
                acc[q][d] = S::load(s.o[r.first + q].as_ptr().add((c + d) * 16));
            }
        }
        let weights = s.p.as_ptr().add(r.first).cast::<f32>();
        let mut at = r.from;
        while at < r.to {
            // up to the end of the page
            let slot = at % a.layout.page_tokens;
            let n = (a.layout.page_tokens - slot).min(r.to - at);
            let page = a.page(at).add(r.at + slot * r.bytes);
            for j in 0..n {
                let value = page.add(j * r.bytes);
                let mut v = [S::splat(0.0); D];
                for d in 0..D {
                    let k = (c + d) * 16;
                    v[d] = match K {
                        F32 => S::load(value.cast::<f32>().add(k)),
                        F16 => S::load_f16(value.cast::<u16>().add(k)),
                        _ => S::load_i8(value.cast::<i8>().add(k)),
                    };
                }
                for q in 0..Q {
                    let w = S::splat(*weights.add(q * BLOCK + at - r.start + j));
                    for d in 0..D {
                        acc[q][d] = S::fma(w, v[d], acc[q][d]);
                    }
                }
            }
            at += n;
        }
        for q in 0..Q {
            for d in 0..D {
                S::store(s.o[r.first + q].as_mut_ptr().add((c + d) * 16), acc[q][d]);
            }
        }
    }
}

/// Stores one head's vector of a token: `dim` values, padded with zeros to 16, as the type asks.
#[inline(always)]
pub unsafe fn store<S: Simd>(kind: KeyType, x: *const f32, dim: usize, to: *mut u8, scale: *mut u16) {
    // SAFETY: x holds dim values, `to` the padded vector, `scale` one half for int8
    unsafe {
        match kind {
            KeyType::F32 => {
                runs!(dim, |k, n| S::store(to.cast::<f32>().add(k), fetch::<S>(x.add(k), n, 0.0)))
            }
            KeyType::F16 => {
                runs!(dim, |k, n| S::store_f16(to.cast::<u16>().add(k), fetch::<S>(x.add(k), n, 0.0)))
            }
            KeyType::I8 => {
                let mut top = S::splat(0.0);
                let mut odd = S::splat(0.0);
                runs!(dim, |k, n| {
                    let v = fetch::<S>(x.add(k), n, 0.0);
                    top = S::max(S::abs(v), top);
                    odd = S::fma(v, S::splat(0.0), odd);
                });
                let mut lanes = [0f32; 16];
                S::store(lanes.as_mut_ptr(), top);
                let amax = lanes.iter().fold(0f32, |m, &v| if v > m { v } else { m });
                // the scale is rounded to half precision first and the integers follow it
                let half = half::f16::from_f32(amax / 127.0);
                let finite = S::tree(odd) == 0.0 && half.is_finite();
                let used = half.to_f32();
                let inverse = if finite && used > 0.0 { 1.0 / used } else { 0.0 };
                *scale = if finite { half } else { half::f16::NAN }.to_bits();
                runs!(dim, |k, n| {
                    let v = fetch::<S>(x.add(k), n, 0.0);
                    let q = S::round(S::mul(if finite { v } else { S::splat(0.0) }, S::splat(inverse)));
                    let q = S::max(S::splat(-127.0), S::min(S::splat(127.0), q));
                    S::store_i8(to.cast::<i8>().add(k), q);
                });
            }
        }
    }
}
