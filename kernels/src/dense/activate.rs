//! Activations, plain and gated, forward and backward.
//!
//! ```text
//!   plain   y = f(x)              dx = dy·f'(x)
//!   gated   y = f(g)·u            dg = dy·u·f'(g)     du = dy·f(g)      a row holds g and u side by side: [2f] → [f]
//!           clamped (gpt-oss): f(g) = c·σ(αc), c = min(g, limit); for u stands 1 + u between ±limit; slope 0 beyond
//!   gelu(x) = x·Φ(x)              its tanh form: x·σ(2v), v = √(2/π)(x + 0.044715 x³)       (½(1 + tanh v) = σ(2v))
//! ```

use super::math::{exp, sigmoid};
use super::{Dense, Shared, versions};
use crate::math::erf;

/// Elements per piece of work.
const PIECE: usize = 16384;
/// Rows per piece of gated work.
const ROWS: usize = 16;
const DOUBLE: f32 = 2.0 * 0.797_884_6; // 2·√(2/π)
const CUBIC: f32 = 0.044_715;
const INVERSE_ROOT_TAU: f32 = 0.398_942_3; // 1/√(2π)

/// Which function.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Curve {
    /// x·σ(x)
    Silu,
    /// gelu by the error function.
    Gelu,
    /// gelu in its tanh form.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// max(x, 0)²
    Relu2,
    /// Gated only: gate = min(gate, limit), up = clamp(up, ±limit), (up + 1)·gate·σ(alpha·gate).
    ClampedSwiglu {
        /// alpha
        alpha: f32,
        /// limit
        limit: f32,
    },
}

/// The value at `x` and the slope there.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s * x.mul_add(1.0 - s, 1.0))
}

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let phi = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * phi, (x * INVERSE_ROOT_TAU).mul_add(exp(-0.5 * x * x), phi))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    let square = x * x;
    let s = sigmoid(DOUBLE * (CUBIC * square).mul_add(x, x));
    let slope = DOUBLE * (3.0 * CUBIC).mul_add(square, 1.0);
    (x * s, (x * s * (1.0 - s)).mul_add(slope, s))
}

#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
}

#[inline(always)]
fn relu2(x: f32) -> (f32, f32) {
    if x > 0.0 { (x * x, 2.0 * x) } else { (0.0, 0.0) }
}

/// The gate's side of the clamped SwiGLU.
#[inline(always)]
fn clamped_gate(g: f32, alpha: f32, limit: f32) -> (f32, f32) {
    let above = g > limit;
    let g = if above { limit } else { g };
    let s = sigmoid(alpha * g);
    let slope = s * (alpha * g).mul_add(1.0 - s, 1.0);
    (g * s, if above { 0.0 } else { slope })
}

/// Its other side.
#[inline(always)]
fn clamped_up(u: f32, limit: f32) -> (f32, f32) {
    if u > limit {
        (limit + 1.0, 0.0)
    } else if u < -limit {
        (1.0 - limit, 0.0)
    } else {
        (u + 1.0, 1.0)
    }
}

/// One loop per curve, so that the choice is made once.
macro_rules! each_curve {
    ($curve:expr, |$f:ident| $body:expr) => {
        match $curve {
            Curve::Silu => {
                let $f = silu;
                $body
            }
            Curve::Gelu => {
                let $f = gelu;
                $body
            }
            Curve::GeluTanh => {
                let $f = gelu_tanh;
                $body
            }
            Curve::Relu => {
                let $f = relu;
                $body
            }
            Curve::Relu2 => {
                let $f = relu2;
                $body
            }
            Curve::ClampedSwiglu { .. } => unreachable!("gated only"),
        }
    };
}

/// The same of gated activations, whose other side has a value and a slope, too.
macro_rules! each_gate {
    ($curve:expr, |$f:ident, $w:ident| $body:expr) => {
        if let Curve::ClampedSwiglu { alpha, limit } = $curve {
            let ($f, $w) = (|g: f32| clamped_gate(g, alpha, limit), |u: f32| clamped_up(u, limit));
            $body
        } else {
            let $w = |u: f32| (u, 1.0f32);
            each_curve!($curve, |$f| $body)
        }
    };
}

versions! {
    fn plain_forward(curve: Curve, x: &[f32], y: &mut [f32]) {
        each_curve!(curve, |f| for (y, x) in y.iter_mut().zip(x) {
            *y = f(*x).0;
        });
    }
}

versions! {
    fn plain_backward(curve: Curve, dy: &mut [f32], x: &[f32]) {
        each_curve!(curve, |f| for (dy, x) in dy.iter_mut().zip(x) {
            *dy *= f(*x).1;
        });
    }
}

versions! {
    fn gated_forward(curve: Curve, gu: &[f32], n: usize, y: &mut [f32]) {
        each_gate!(curve, |f, w| for (gu, y) in gu.chunks_exact(2 * n).zip(y.chunks_exact_mut(n)) {
            let (g, u) = gu.split_at(n);
            for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                *y = f(*g).0 * w(*u).0;
            }
        });
    }
}

versions! {
    fn gated_backward(curve: Curve, dy: &[f32], gu: &[f32], n: usize, dgu: &mut [f32]) {
        let rows = gu.chunks_exact(2 * n).zip(dgu.chunks_exact_mut(2 * n)).zip(dy.chunks_exact(n));
        each_gate!(curve, |f, w| for ((gu, dgu), dy) in rows {
            let (g, u) = gu.split_at(n);
            let (dg, du) = dgu.split_at_mut(n);
            for ((((dg, du), g), u), dy) in dg.iter_mut().zip(du).zip(g).zip(u).zip(dy) {
                let ((value, slope), (up, pass)) = (f(*g), w(*u));
                *du = dy * value * pass;
                *dg = dy * up * slope;
            }
        });
    }
}

impl Dense {
    /// `y = f(x)`.
    pub fn activate(&mut self, curve: Curve, x: &[f32], y: &mut [f32]) {
        assert!(x.len() == y.len(), "{curve:?} of {} into {}", x.len(), y.len());
        let y = Shared::of(y);
        self.pieces(x.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            plain_forward(self.isa, curve, &x[r.clone()], unsafe { y.part(r) });
        });
    }

    /// Turns the gradient of [`Dense::activate`]'s output into that of its input `x`, in place.
    pub fn activate_back(&mut self, curve: Curve, dy: &mut [f32], x: &[f32]) {
        assert!(x.len() == dy.len(), "{curve:?} of {} from {}", x.len(), dy.len());
        let dy = Shared::of(dy);
        self.pieces(x.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            plain_backward(self.isa, curve, unsafe { dy.part(r.clone()) }, &x[r]);
        });
    }

    /// `y[rows, n] = f(gate)·up` of rows `gate[n] up[n]`.
    pub fn gated(&mut self, curve: Curve, gu: &[f32], n: usize, y: &mut [f32]) {
        assert!(n > 0 && y.len().is_multiple_of(n) && gu.len() == 2 * y.len(), "gated {} by {n}", gu.len());
        let y = Shared::of(y);
        self.pieces(y.len() / n, ROWS, |_, r| {
            // SAFETY: each piece takes its own rows.
            let y = unsafe { y.part(r.start * n..r.end * n) };
            gated_forward(self.isa, curve, &gu[2 * r.start * n..2 * r.end * n], n, y);
        });
    }

    /// The gradient of [`Dense::gated`]'s input, written to `dgu[rows, 2n]`.
    pub fn gated_back(&mut self, curve: Curve, dy: &[f32], gu: &[f32], n: usize, dgu: &mut [f32]) {
        assert!(n > 0 && dy.len().is_multiple_of(n) && gu.len() == 2 * dy.len(), "gated {} by {n}", gu.len());
        assert!(dgu.len() == gu.len(), "gated {} into {}", gu.len(), dgu.len());
        let dgu = Shared::of(dgu);
        self.pieces(dy.len() / n, ROWS, |_, r| {
            let both = 2 * r.start * n..2 * r.end * n;
            // SAFETY: each piece takes its own rows.
            let out = unsafe { dgu.part(both.clone()) };
            gated_backward(self.isa, curve, &dy[r.start * n..r.end * n], &gu[both], n, out);
        });
    }
}
