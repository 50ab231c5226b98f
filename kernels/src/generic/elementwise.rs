//! Passes over vectors: activations, gates, residual additions, caps, rotations.

use super::math;
use super::norm::{fetch, put};
use crate::cpu::{Activation, Map, Pairs};
use crate::simd::{Simd, runs};

/// x[i] = f(x[i]).
#[inline(always)]
pub unsafe fn map<S: Simd>(f: Map, x: *mut f32, len: usize) {
    // SAFETY: x holds len values
    unsafe {
        macro_rules! each {
            (|$v:ident| $e:expr) => {
                runs!(len, |i, n| {
                    let $v = fetch::<S>(x.add(i), n, 0.0);
                    put::<S>(x.add(i), n, $e);
                })
            };
        }
        match f {
            Map::Activate(Activation::Silu) => each!(|v| math::silu::<S>(v)),
            Map::Activate(Activation::Gelu) => each!(|v| math::gelu::<S>(v)),
            Map::Activate(Activation::GeluTanh) => each!(|v| math::gelu_tanh::<S>(v)),
            // max returns its second operand for NaN, which so stays visible
            Map::Activate(Activation::Relu) => each!(|v| S::max(S::splat(0.0), v)),
            Map::Activate(Activation::Relu2) => each!(|v| {
                let r = S::max(S::splat(0.0), v);
                S::mul(r, r)
            }),
            Map::Activate(Activation::ClampedSwiglu { .. }) => unreachable!("gated only"),
            Map::Sigmoid => each!(|v| math::sigmoid::<S>(v)),
            Map::Scale(factor) => each!(|v| S::mul(v, S::splat(factor))),
            Map::Softcap(cap) => {
                each!(|v| S::mul(S::splat(cap), math::tanh::<S>(S::div(v, S::splat(cap)))))
            }
        }
    }
}

/// out = act(gate) · up.
#[inline(always)]
pub unsafe fn gated<S: Simd>(kind: Activation, gate: *const f32, up: *const f32, out: *mut f32, len: usize) {
    // SAFETY: all hold len values
    unsafe {
        macro_rules! each {
            (|$g:ident, $u:ident| $e:expr) => {
                runs!(len, |i, n| {
                    let $g = fetch::<S>(gate.add(i), n, 0.0);
                    let $u = fetch::<S>(up.add(i), n, 0.0);
                    put::<S>(out.add(i), n, $e);
                })
            };
        }
        match kind {
            Activation::Silu => each!(|g, u| S::mul(math::silu::<S>(g), u)),
            Activation::Gelu => each!(|g, u| S::mul(math::gelu::<S>(g), u)),
            Activation::GeluTanh => each!(|g, u| S::mul(math::gelu_tanh::<S>(g), u)),
            Activation::Relu => each!(|g, u| S::mul(S::max(S::splat(0.0), g), u)),
            Activation::Relu2 => each!(|g, u| {
                let r = S::max(S::splat(0.0), g);
                S::mul(S::mul(r, r), u)
            }),
            Activation::ClampedSwiglu { alpha, limit } => each!(|g, u| {
                let g = S::min(S::splat(limit), g);
                let u = S::max(S::splat(-limit), S::min(S::splat(limit), u));
                let glu = S::mul(g, math::sigmoid::<S>(S::mul(g, S::splat(alpha))));
                S::mul(S::add(u, S::splat(1.0)), glu)
            }),
        }
    }
}

/// a += b, or with a factor a = fma(b, factor, a).
#[inline(always)]
pub unsafe fn add<S: Simd>(a: *mut f32, b: *const f32, factor: Option<f32>, len: usize) {
    // SAFETY: both hold len values
    unsafe {
        runs!(len, |i, n| {
            let (x, y) = (fetch::<S>(a.add(i), n, 0.0), fetch::<S>(b.add(i), n, 0.0));
            let v = match factor {
                None => S::add(x, y),
                Some(f) => S::fma(y, S::splat(f), x),
            };
            put::<S>(a.add(i), n, v);
        });
    }
}

/// Rotates one head's first 2 · `half` values.
#[inline(always)]
pub unsafe fn rope<S: Simd>(x: *mut f32, half: usize, pairs: Pairs, cos: *const f32, sin: *const f32) {
    // SAFETY: x holds 2·half values, the tables half each
    unsafe {
        match pairs {
            Pairs::Halves => runs!(half, |i, n| {
                let (a, b) = (fetch::<S>(x.add(i), n, 0.0), fetch::<S>(x.add(half + i), n, 0.0));
                let (c, s) = (fetch::<S>(cos.add(i), n, 0.0), fetch::<S>(sin.add(i), n, 0.0));
                let zero = S::splat(0.0);
                put::<S>(x.add(i), n, S::fma(a, c, S::sub(zero, S::mul(b, s))));
                put::<S>(x.add(half + i), n, S::fma(b, c, S::mul(a, s)));
            }),
            Pairs::Neighbours => {
                for i in 0..half {
                    let (a, b) = (*x.add(2 * i), *x.add(2 * i + 1));
                    let (c, s) = (*cos.add(i), *sin.add(i));
                    *x.add(2 * i) = a.mul_add(c, 0.0 - b * s);
                    *x.add(2 * i + 1) = b.mul_add(c, a * s);
                }
            }
        }
    }
}
