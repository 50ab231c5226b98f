//! o = fma(weight, value, o) over a block's positions, in ascending order.
//!
//! Few queries take values as they lie in the page; for many, a slice of sixty-four dimensions of the block is
//! turned into floats once. Q queries by D sixteens of dimensions stay in registers over all positions.

use super::ahead::Ahead;
use super::scores::groups;
use super::scratch::state;
use super::{BLOCK, Block, Scratch, Tile};
use crate::kv::{KeyType, ValueType};
use crate::simd::Simd;

/// Dimensions that are converted together.
pub const SLICE: usize = 64;
/// Queries from which on f16 values are converted beforehand, as those of int8 always are: code for them is not worth
/// its length.
const fn many<S: Simd>() -> usize {
    if S::ACCUMULATORS > 1 { 9 } else { 0 }
}

const F32: u8 = 0;
const F16: u8 = 1;
const I8: u8 = 2;

/// Vectors that the weights multiply.
#[derive(Clone, Copy)]
struct Source {
    /// The value of the block's position 16g, for every sixteen g.
    at: [*const u8; BLOCK / 16],
    /// Bytes of a value.
    bytes: usize,
}

/// Adds the block's values, weighted, to all queries' outputs.
#[inline(always)]
pub unsafe fn add<S: Simd>(a: &Tile, s: &Scratch, b: &Block, ahead: &mut Ahead) {
    let l = &a.layout;
    let (kind, offset, bytes) = if l.latent {
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
    let mut source = Source { at: [core::ptr::null(); BLOCK / 16], bytes };
    for (g, run) in b.runs.iter().enumerate() {
        if !run.page.is_null() {
            source.at[g] = run.page.wrapping_add(offset + run.slot * bytes);
        }
    }
    let (n, width) = (a.queries.len(), l.value_width());
    let spread = l.latent && kind == I8;
    // SAFETY: as `attend`; padded values reach the next multiple of 16
    unsafe {
        if kind == F16 && n < many::<S>() {
            all::<S, F16>(s, &source, n, 0, width, width, b.whole, ahead);
            return;
        }
        // floats are taken as they lie, all dimensions at once
        let mut floats = source;
        let slice = if kind == F32 { width } else { SLICE };
        let mut d = 0;
        while d < width {
            let count = (width - d).min(slice);
            for g in 0..BLOCK / 16 {
                if source.at[g].is_null() || kind == F32 {
                    continue;
                }
                let to = s.values.add(g * 16 * SLICE);
                match kind {
                    F16 => convert::<S, F16>(source.at[g].add(d * 2), bytes, count, to),
                    _ if spread => gather::<S>(source.at[g].add(d * 16), count, to),
                    _ => convert::<S, I8>(source.at[g].add(d), bytes, count, to),
                }
                floats.at[g] = to.cast::<u8>();
            }
            floats.bytes = if kind == F32 { bytes } else { SLICE * size_of::<f32>() };
            all::<S, F32>(s, &floats, n, d, count, width, b.whole, ahead);
            d += slice;
        }
    }
}

/// Sixteen positions' next `count` values to floats.
#[inline(always)]
unsafe fn convert<S: Simd, const K: u8>(from: *const u8, bytes: usize, count: usize, to: *mut f32) {
    // SAFETY: sixteen readable values of `bytes` bytes, room for sixteen slices
    unsafe {
        for j in 0..16 {
            let mut d = 0;
            while d < count {
                S::store(to.add(j * SLICE + d), value::<S, K>(from.add(j * bytes), d));
                d += 16;
            }
        }
    }
}

/// The same from int8 keys, which lie in groups of four dimensions.
#[inline(always)]
unsafe fn gather<S: Simd>(from: *const u8, count: usize, to: *mut f32) {
    // SAFETY: sixteen keys' `count` dimensions are readable, room for sixteen slices
    unsafe {
        let mut rows = [0u8; 256];
        let mut d = 0;
        while d < count {
            S::gather4(from.add(d * 16), rows.as_mut_ptr());
            for j in 0..16 {
                S::store(to.add(j * SLICE + d), S::load_i8(rows.as_ptr().add(j * 16).cast()));
            }
            d += 16;
        }
    }
}

#[inline(always)]
unsafe fn value<S: Simd, const K: u8>(at: *const u8, d: usize) -> S::F {
    // SAFETY: sixteen readable values from d on
    unsafe {
        match K {
            F32 => S::load(at.cast::<f32>().add(d)),
            F16 => S::load_f16(at.cast::<u16>().add(d)),
            _ => S::load_i8(at.cast::<i8>().add(d)),
        }
    }
}

/// All queries, `count` dimensions that begin at `d` in the outputs and at 0 in the source: groups of queries over
/// what all of the group see, as far as dimensions fill the registers; one by one the dimensions left over, and what
/// comes before and after. Of a `whole` block that is nothing but for a query without a group.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the same few numbers all the way down
unsafe fn all<S: Simd, const K: u8>(
    s: &Scratch,
    v: &Source,
    n: usize,
    d: usize,
    count: usize,
    width: usize,
    whole: bool,
    ahead: &mut Ahead,
) {
    // SAFETY: passed on
    unsafe {
        let o = s.o.add(d);
        for step in [BEFORE, COMMON, AFTER] {
            if step == COMMON {
                match S::ACCUMULATORS {
                    16 => groups!(n, i,
                        8 => together::<S, K, 8, 2>(s, v, i, o, count, width, ahead),
                        4 => together::<S, K, 4, 4>(s, v, i, o, count, width, ahead),
                        3 => together::<S, K, 3, 4>(s, v, i, o, count, width, ahead),
                        2 => together::<S, K, 2, 4>(s, v, i, o, count, width, ahead)),
                    4 => groups!(n, i,
                        4 => together::<S, K, 4, 1>(s, v, i, o, count, width, ahead),
                        2 => together::<S, K, 2, 2>(s, v, i, o, count, width, ahead)),
                    _ => {}
                }
            }
            let first = match step {
                BEFORE if whole && S::ACCUMULATORS > 1 => n / 2 * 2,
                COMMON if whole && count.is_multiple_of(64) => n,
                AFTER if whole => n,
                _ => 0,
            };
            for i in first..n {
                let x = *s.spans.add(i);
                let (mut d, from, to, rescale) = match step {
                    // also where it is empty: the output is rescaled
                    BEFORE if x.sees() && !x.alike => (0, x.from, x.first, true),
                    COMMON if x.first < x.last => {
                        (count - count % dimensions::<S>(n, i), x.first, x.last, x.alike)
                    }
                    AFTER if x.last < x.to => (0, x.last, x.to, false),
                    _ => continue,
                };
                while S::ACCUMULATORS > 1 && d + 64 <= count {
                    chunk::<S, K, 1, 4>(s, v, i, o, d, width, from, to, rescale, ahead);
                    d += 64;
                }
                while d < count {
                    chunk::<S, K, 1, 1>(s, v, i, o, d, width, from, to, rescale, ahead);
                    d += 16;
                }
            }
        }
    }
}

const BEFORE: u8 = 0;
const COMMON: u8 = 1;
const AFTER: u8 = 2;

/// Dimensions that the group of query `i` of `n` takes at once.
#[inline(always)]
fn dimensions<S: Simd>(n: usize, i: usize) -> usize {
    match S::ACCUMULATORS {
        16 if i >= n / 8 * 8 => 64,
        4 if i < n / 4 * 4 => 16,
        _ => 32,
    }
}

/// Q queries over what all of them see, D sixteens of dimensions as often as `count` holds them.
#[inline(always)]
unsafe fn together<S: Simd, const K: u8, const Q: usize, const D: usize>(
    s: &Scratch,
    v: &Source,
    first: usize,
    o: *mut f32,
    count: usize,
    width: usize,
    ahead: &mut Ahead,
) {
    // SAFETY: passed on
    unsafe {
        let x = *s.spans.add(first);
        debug_assert_eq!(D * 16, dimensions::<S>(first + Q, first));
        let mut d = 0;
        while x.first < x.last && d + D * 16 <= count {
            chunk::<S, K, Q, D>(s, v, first, o, d, width, x.first, x.last, x.alike, ahead);
            d += D * 16;
        }
    }
}

/// Positions from..to of Q queries, D sixteens of dimensions from `d` on; their outputs are multiplied by their factors
/// before if `rescale`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the same few numbers all the way down
unsafe fn chunk<S: Simd, const K: u8, const Q: usize, const D: usize>(
    s: &Scratch,
    v: &Source,
    first: usize,
    o: *mut f32,
    d: usize,
    width: usize,
    from: usize,
    to: usize,
    rescale: bool,
    ahead: &mut Ahead,
) {
    // SAFETY: as `attend`
    unsafe {
        let o = o.add(first * width + d);
        let mut acc = [[S::splat(0.0); D]; Q];
        for q in 0..Q {
            let factor = if rescale { S::splat(*s.factor.add(state(first + q))) } else { S::splat(1.0) };
            for c in 0..D {
                acc[q][c] = S::mul(S::load(o.add(q * width + c * 16)), factor);
            }
        }
        let mut at = from;
        while at < to {
            // up to the next sixteen, which may lie in another page
            let end = to.min(at / 16 * 16 + 16);
            let mut from = v.at[at / 16].add(at % 16 * v.bytes);
            let mut weights = s.p.add(first * BLOCK + at).cast_const();
            while at < end {
                let mut x = [S::splat(0.0); D];
                for c in 0..D {
                    x[c] = value::<S, K>(from, d + c * 16);
                }
                for q in 0..Q {
                    let w = S::splat(*weights.add(q * BLOCK));
                    for c in 0..D {
                        acc[q][c] = S::fma(w, x[c], acc[q][c]);
                    }
                }
                if first == 0 {
                    ahead.pay::<S>(Q * D);
                }
                from = from.add(v.bytes);
                weights = weights.add(1);
                at += 1;
            }
        }
        for q in 0..Q {
            for c in 0..D {
                S::store(o.add(q * width + c * 16), acc[q][c]);
            }
        }
    }
}
