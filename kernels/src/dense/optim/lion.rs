//! Lion (Chen et al. 2023, arXiv:2302.06675): the sign of an interpolated momentum; one moment.

use super::super::{Dense, Shared, versions};
use super::PIECE;

/// One step of Lion for one group of parameters.
#[derive(Clone, Copy, Debug)]
pub struct Lion {
    /// Learning rate of this step.
    pub rate: f32,
    /// Share of the momentum in the direction.
    pub beta1: f32,
    /// Decay of the momentum.
    pub beta2: f32,
    /// Decoupled weight decay; zero for vectors.
    pub decay: f32,
    /// Factor on the gradient (clipping).
    pub scale: f32,
}

versions! {
    fn walk(o: &Lion, w: &mut [f32], g: &[f32], m: &mut [f32]) {
        let keep = 1.0 - o.rate * o.decay;
        for ((w, g), m) in w.iter_mut().zip(g).zip(m) {
            let g = g * o.scale;
            let direction = o.beta1.mul_add(*m, (1.0 - o.beta1) * g);
            *m = o.beta2.mul_add(*m, (1.0 - o.beta2) * g);
            let sign = if direction == 0.0 { 0.0 } else { 1.0f32.copysign(direction) };
            *w = (*w).mul_add(keep, -o.rate * sign);
        }
    }
}

impl Dense {
    /// One Lion step on `w` with gradient `g` and momentum `m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn lion(&mut self, o: &Lion, w: &mut [f32], g: &[f32], m: &mut [f32]) {
        let n = w.len();
        assert!(g.len() == n && m.len() == n, "lion of {n}, {}, {}", g.len(), m.len());
        let (w, m) = (Shared::of(w), Shared::of(m));
        self.pieces(n, PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            let (w, m) = unsafe { (w.part(r.clone()), m.part(r.clone())) };
            walk(self.isa, o, w, &g[r], m);
        });
    }
}
