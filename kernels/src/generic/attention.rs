//! Attention over pages: queries of one kv head against their sequence, 64 absolute positions at a time.
//!
//! For each block of 64: scores, the block's maximum, one rescale of sum and output, weights e^(s − m), their sum
//! over 16 lanes by position mod 16 and the tree, and o = fma(weight, value, o) in ascending position. Several
//! queries (the heads of a group, neighbouring rows) go together, so keys and values are read once for all; what a
//! query computes does not depend on its company. Online softmax: arXiv:1805.02867; blocks: arXiv:2205.14135.

use super::math::exps;
use super::norm::{fetch, put};
use super::quantize::quantize;
use super::scores::{products, scores};
use crate::kv::{KeyType, KvLayout, ValueType};
use crate::simd::{Simd, runs};
use core::mem::MaybeUninit;

/// Queries that go together.
pub const QUERIES: usize = 8;
/// Positions of a softmax block.
pub const BLOCK: usize = 64;
pub(super) const WIDTH: usize = KvLayout::MAX_DIM;

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
pub(super) struct Aligned<T>(pub(super) T);

pub(super) struct Scratch {
    /// Queries padded to 16, or their int8 form and its scales and sums per 256.
    pub(super) q: [[f32; WIDTH]; QUERIES],
    pub(super) q8: [[i8; WIDTH + 64]; QUERIES],
    pub(super) q_scale: [[f32; WIDTH / 256]; QUERIES],
    pub(super) q_sum: [[i32; WIDTH / 256]; QUERIES],
    o: [[f32; WIDTH]; QUERIES],
    pub(super) p: [[f32; BLOCK]; QUERIES],
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
}

impl Tile<'_> {
    /// Start of the head's part of the page that holds `position`.
    #[inline(always)]
    pub(super) unsafe fn page(&self, position: usize) -> *const u8 {
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
