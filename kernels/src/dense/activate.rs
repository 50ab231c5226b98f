//! GELU (tanh form) and SwiGLU, forward and backward.
//!
//! ```text
//!   gelu(x) = x·σ(2u)   u = √(2/π)(x + 0.044715 x³)        (½(1 + tanh u) = σ(2u))
//!   swiglu(g, u) = g·σ(g)·u        a row holds g and u side by side: [2f] → [f]
//! ```

use super::math::sigmoid;
use super::{Dense, Shared, versions};

/// Elements per piece of work.
const PIECE: usize = 16384;
const DOUBLE: f32 = 2.0 * 0.797_884_6; // 2·√(2/π)
const CUBIC: f32 = 0.044_715;

versions! {
    fn gelu_forward(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            let u = DOUBLE * (CUBIC * x * x).mul_add(*x, *x);
            *y = x * sigmoid(u);
        }
    }
}

versions! {
    fn gelu_backward(dy: &mut [f32], x: &[f32]) {
        for (dy, x) in dy.iter_mut().zip(x) {
            let square = x * x;
            let u = DOUBLE * (CUBIC * square).mul_add(*x, *x);
            let s = sigmoid(u);
            let slope = DOUBLE * (3.0 * CUBIC).mul_add(square, 1.0);
            *dy *= (x * s * (1.0 - s)).mul_add(slope, s);
        }
    }
}

versions! {
    fn swiglu_forward(gu: &[f32], f: usize, y: &mut [f32]) {
        for (gu, y) in gu.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            let (g, u) = gu.split_at(f);
            for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                *y = g * sigmoid(*g) * u;
            }
        }
    }
}

versions! {
    fn swiglu_backward(dy: &[f32], gu: &[f32], f: usize, dgu: &mut [f32]) {
        for ((gu, dgu), dy) in gu.chunks_exact(2 * f).zip(dgu.chunks_exact_mut(2 * f)).zip(dy.chunks_exact(f)) {
            let (g, u) = gu.split_at(f);
            let (dg, du) = dgu.split_at_mut(f);
            for ((((dg, du), g), u), dy) in dg.iter_mut().zip(du).zip(g).zip(u).zip(dy) {
                let s = sigmoid(*g);
                *du = dy * g * s;
                *dg = dy * u * s * g.mul_add(1.0 - s, 1.0);
            }
        }
    }
}

impl Dense {
    /// `y = gelu(x)`, the tanh form.
    pub fn gelu(&mut self, x: &[f32], y: &mut [f32]) {
        assert!(x.len() == y.len(), "gelu of {} into {}", x.len(), y.len());
        let y = Shared::new(y);
        self.pieces(x.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            gelu_forward(self.isa, &x[r.clone()], unsafe { y.part(r) });
        });
    }

    /// Turns the gradient of [`Dense::gelu`]'s output into that of its input `x`, in place.
    pub fn gelu_back(&mut self, dy: &mut [f32], x: &[f32]) {
        assert!(x.len() == dy.len(), "gelu of {} from {}", x.len(), dy.len());
        let dy = Shared::new(dy);
        self.pieces(x.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            gelu_backward(self.isa, unsafe { dy.part(r.clone()) }, &x[r]);
        });
    }

    /// `y[rows, f] = silu(gate)·up` of rows `gate[f] up[f]`.
    pub fn swiglu(&mut self, gu: &[f32], f: usize, y: &mut [f32]) {
        assert!(
            f > 0 && y.len().is_multiple_of(f) && gu.len() == 2 * y.len(),
            "swiglu of {} by {f}",
            gu.len()
        );
        let y = Shared::new(y);
        self.pieces(y.len() / f, 16, |_, r| {
            // SAFETY: each piece takes its own rows.
            let y = unsafe { y.part(r.start * f..r.end * f) };
            swiglu_forward(self.isa, &gu[2 * r.start * f..2 * r.end * f], f, y);
        });
    }

    /// The gradient of [`Dense::swiglu`]'s input, written to `dgu[rows, 2f]`.
    pub fn swiglu_back(&mut self, dy: &[f32], gu: &[f32], f: usize, dgu: &mut [f32]) {
        assert!(
            f > 0 && dy.len().is_multiple_of(f) && gu.len() == 2 * dy.len(),
            "swiglu of {} by {f}",
            gu.len()
        );
        assert!(dgu.len() == gu.len(), "swiglu of {} into {}", gu.len(), dgu.len());
        let dgu = Shared::new(dgu);
        self.pieces(dy.len() / f, 16, |_, r| {
            let both = 2 * r.start * f..2 * r.end * f;
            // SAFETY: each piece takes its own rows.
            let out = unsafe { dgu.part(both.clone()) };
            swiglu_backward(self.isa, &dy[r.start * f..r.end * f], &gu[both], f, out);
        });
    }
}
