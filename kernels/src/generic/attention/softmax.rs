//! Scores of a block to weights: scale, cap, slope, mask, the new maximum, one rescale, the sum.
//!
//! Four queries at a time: their maxima, factors and sums are each one register.

use super::ahead::Ahead;
use super::scratch::state;
use super::spans::Span;
use super::{BLOCK, Block, SOFTMAX, Scratch, Tile};
use crate::generic::math::exp;
use crate::kv::{KeyType, ValueType};
use crate::simd::Simd;

const STEPS: usize = BLOCK / 16;
const INDEX: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// Fills `s.p` with weights and `s.factor` with what each output has to be multiplied by; maxima and sums are
/// brought up to date. With int8 values the weights take in the values' scales.
#[inline(always)]
pub unsafe fn weights<S: Simd>(a: &Tile, s: &Scratch, b: &Block, ahead: &mut Ahead) {
    // SAFETY: as `attend`
    unsafe {
        let scales_at = match (a.layout.latent, a.layout.key, a.layout.value) {
            (true, KeyType::I8, _) => Some(a.layout.key_scales_at()),
            (false, _, ValueType::I8) => Some(a.layout.value_scales_at()),
            _ => None,
        };
        let mut scales = [S::splat(0.0); STEPS];
        if let Some(at) = scales_at {
            for g in 0..STEPS {
                if !b.runs[g].page.is_null() {
                    scales[g] = S::load_f16(b.runs[g].page.add(at).cast::<u16>().add(b.runs[g].slot));
                }
            }
        }
        let mut i = 0;
        while i < a.queries.len() {
            four::<S>(a, s, b, i, scales_at.is_some().then_some(&scales), ahead);
            i += 4;
        }
    }
}

/// Queries first..first + 4, as far as there are.
#[inline(always)]
unsafe fn four<S: Simd>(
    a: &Tile,
    s: &Scratch,
    b: &Block,
    first: usize,
    scales: Option<&[S::F; STEPS]>,
    ahead: &mut Ahead,
) {
    // SAFETY: as `attend`; maxima, sums and factors have a register's room for four queries
    unsafe {
        let count = (a.queries.len() - first).min(4);
        let (max, sum) = (s.max.add(state(first)), s.sum.add(state(first)));
        let mut tops = [S::splat(f32::NEG_INFINITY); 4];
        for i in 0..count {
            if (*s.spans.add(first + i)).sees() {
                tops[i] = logits::<S>(a, s, b, first + i);
            }
            ahead.pay::<S>(SOFTMAX / 2);
        }
        let old = S::load(max);
        // NaN may get lost in the maximum but not in the weights
        let new = S::max(S::top4(tops), old);
        let factor = exp::<S>(S::sub(old, new));
        let mut news = [0f32; 16];
        S::store(news.as_mut_ptr(), new);
        S::store(s.factor.add(state(first)), factor);
        let mut rows = [S::splat(0.0); 4];
        let mut i = 0;
        if S::ACCUMULATORS == 16 {
            while count - i >= 2 {
                exponentials::<S, 2, { 2 * STEPS }>(s, first + i, scales, &news[i..], &mut rows[i..]);
                ahead.pay::<S>(SOFTMAX);
                i += 2;
            }
        }
        while i < count {
            exponentials::<S, 1, STEPS>(s, first + i, scales, &news[i..], &mut rows[i..]);
            ahead.pay::<S>(SOFTMAX / 2);
            i += 1;
        }
        let before = S::load(sum);
        let after = S::fma(before, factor, S::tree4(rows));
        if b.whole {
            S::store(max, new);
            S::store(sum, after);
            return;
        }
        let mut sums = [0f32; 16];
        S::store(sums.as_mut_ptr(), after);
        for i in 0..count {
            // a query that sees nothing here stays as it is
            if (*s.spans.add(first + i)).sees() {
                max.add(i).write(news[i]);
                sum.add(i).write(sums[i]);
            }
        }
    }
}

/// Logits of Q queries (N = Q · STEPS registers, side by side) to weights, and the sums of their lanes. Of a query
/// that sees nothing neither is used.
#[inline(always)]
unsafe fn exponentials<S: Simd, const Q: usize, const N: usize>(
    s: &Scratch,
    first: usize,
    scales: Option<&[S::F; STEPS]>,
    tops: &[f32],
    sums: &mut [S::F],
) {
    // SAFETY: the queries exist
    unsafe {
        let p = s.p.add(first * BLOCK);
        let mut v = [S::splat(0.0); N];
        for q in 0..Q {
            let top = S::splat(tops[q]);
            for g in 0..STEPS {
                v[q * STEPS + g] = S::sub(S::load(p.add(q * BLOCK + g * 16)), top);
            }
        }
        let e = S::exps_down(v);
        for q in 0..Q {
            let e = &e[q * STEPS..];
            sums[q] = S::add(S::add(S::add(e[0], e[1]), e[2]), e[3]);
            for g in 0..STEPS {
                let weight = if let Some(scales) = scales { S::mul(e[g], scales[g]) } else { e[g] };
                S::store(p.add(q * BLOCK + g * 16), weight);
            }
        }
    }
}

/// A query's scores to logits, −∞ where it does not see, and lane by lane the greatest of them.
#[inline(always)]
unsafe fn logits<S: Simd>(a: &Tile, s: &Scratch, b: &Block, i: usize) -> S::F {
    // SAFETY: as `attend`
    unsafe {
        let p = s.p.add(i * BLOCK);
        let mut v = [S::splat(a.scale); STEPS];
        for g in 0..STEPS {
            v[g] = S::mul(S::load(p.add(g * 16)), v[g]);
        }
        if a.softcap > 0.0 {
            let cap = S::splat(a.softcap);
            for g in 0..STEPS {
                v[g] = S::div(v[g], cap);
            }
            v = S::tanhs(v);
            for g in 0..STEPS {
                v[g] = S::mul(cap, v[g]);
            }
        }
        if a.alibi {
            // key position − query position
            let distance = b.start as f32 - (a.queries[i].high - 1) as f32;
            for g in 0..STEPS {
                let distance = S::add(S::splat(distance + (g * 16) as f32), S::load(INDEX.as_ptr()));
                v[g] = S::fma(S::splat(a.queries[i].slope), distance, v[g]);
            }
        }
        let Span { from, to, .. } = *s.spans.add(i);
        if from > 0 || to < BLOCK {
            let nothing = S::splat(f32::NEG_INFINITY);
            for g in 0..STEPS {
                let index = S::add(S::splat((g * 16) as f32), S::load(INDEX.as_ptr()));
                v[g] = S::if_less(index, S::splat(from as f32), nothing, v[g]);
                v[g] = S::if_less(index, S::splat(to as f32), v[g], nothing);
            }
        }
        for g in 0..STEPS {
            S::store(p.add(g * 16), v[g]);
        }
        S::max(S::max(v[0], v[1]), S::max(v[2], v[3]))
    }
}
