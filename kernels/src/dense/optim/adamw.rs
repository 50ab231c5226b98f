//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with moments in f32.

use super::super::{Dense, Shared, versions};
use super::PIECE;

/// One step of AdamW for one group of parameters.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay; zero for vectors.
    pub decay: f32,
    /// Factor on the gradient (clipping).
    pub scale: f32,
    /// `1 − beta1ᵗ`.
    pub correction1: f32,
    /// `1 − beta2ᵗ`.
    pub correction2: f32,
}

impl AdamW {
    /// Factors that are the same for all values: what stays of the weight, the step, 1/√correction2.
    #[inline(always)]
    pub(super) fn factors(&self) -> (f32, f32, f32) {
        (1.0 - self.rate * self.decay, self.rate / self.correction1, 1.0 / self.correction2.sqrt())
    }

    /// One value: weight, gradient, moments. Returns them after the step.
    #[inline(always)]
    pub(super) fn value(&self, f: (f32, f32, f32), w: f32, g: f32, m: f32, v: f32) -> (f32, f32, f32) {
        let (keep, step, root) = f;
        let g = g * self.scale;
        let m = self.beta1.mul_add(m, (1.0 - self.beta1) * g);
        let v = self.beta2.mul_add(v, (1.0 - self.beta2) * g * g);
        (w.mul_add(keep, -step * m / v.sqrt().mul_add(root, self.eps)), m, v)
    }
}

versions! {
    fn walk(o: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let factors = o.factors();
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            (*w, *m, *v) = o.value(factors, *w, *g, *m, *v);
        }
    }
}

impl Dense {
    /// One AdamW step on `w` with gradient `g` and moments `m`, `v`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn adamw(&mut self, o: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = w.len();
        let same = g.len() == n && m.len() == n && v.len() == n;
        assert!(same, "adamw of {n}, {}, {}, {}", g.len(), m.len(), v.len());
        let (w, m, v) = (Shared::of(w), Shared::of(m), Shared::of(v));
        self.pieces(n, PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            let (w, m, v) = unsafe { (w.part(r.clone()), m.part(r.clone()), v.part(r.clone())) };
            walk(self.isa, o, w, &g[r], m, v);
        });
    }
}
