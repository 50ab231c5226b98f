//! The optimizers' passes over parameters: one walk that reads the gradient and writes weights and moments.

mod adamw;
mod adamw8;
mod lion;
#[cfg(test)]
mod tests;

pub use adamw::AdamW;
pub use adamw8::Moments8;
pub use lion::Lion;

use super::{Dense, Shared, versions};

/// Elements per piece, part of the order of the norm's sum; a multiple of `adamw8::BLOCK`.
const PIECE: usize = 16384;

versions! {
    fn squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        for chunk in x.chunks(16) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let x = f64::from(*x);
                *lane += x * x;
            }
        }
        lanes.iter().sum()
    }
}

versions! {
    fn moving_average(o: f32, scale: f32, g: &[f32], m: &mut [f32], out: &mut [f32]) {
        for ((g, m), out) in g.iter().zip(m).zip(out) {
            let g = g * scale;
            *m = o.mul_add(*m, g);
            *out = o.mul_add(*m, g);
        }
    }
}

versions! {
    fn decayed_step(keep: f32, step: f32, w: &mut [f32], u: &[f32]) {
        for (w, u) in w.iter_mut().zip(u) {
            *w = (*w).mul_add(keep, step * u);
        }
    }
}

impl Dense {
    /// `Σ x²`, in f64.
    pub fn sum_squares(&mut self, x: &[f32]) -> f64 {
        let mut sums = vec![0.0f64; x.len().div_ceil(PIECE)];
        let shared = Shared::of(&mut sums);
        self.pieces(x.len(), PIECE, |p, r| {
            // SAFETY: each piece takes its own sum.
            let sum = unsafe { shared.part(p..p + 1) };
            sum[0] = squares(self.isa, &x[r]);
        });
        sums.iter().sum()
    }

    /// Nesterov's momentum: `m = beta·m + scale·g`, `out = beta·m + scale·g`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn nesterov(&mut self, beta: f32, scale: f32, g: &[f32], m: &mut [f32], out: &mut [f32]) {
        let n = g.len();
        assert!(m.len() == n && out.len() == n, "nesterov of {n}, {}, {}", m.len(), out.len());
        let (m, out) = (Shared::of(m), Shared::of(out));
        self.pieces(n, PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            let (m, out) = unsafe { (m.part(r.clone()), out.part(r.clone())) };
            moving_average(self.isa, beta, scale, &g[r], m, out);
        });
    }

    /// `w = keep·w + step·u`: an update that is ready, after decoupled weight decay.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn apply(&mut self, keep: f32, step: f32, w: &mut [f32], u: &[f32]) {
        assert!(w.len() == u.len(), "update of {} by {}", w.len(), u.len());
        let n = w.len();
        let w = Shared::of(w);
        self.pieces(n, PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            decayed_step(self.isa, keep, step, unsafe { w.part(r.clone()) }, &u[r]);
        });
    }
}
