//! The optimizer's passes over all parameters: AdamW, the gradient's norm, scaling.

use super::{Dense, Shared, versions};

/// Elements per piece, part of the order of the norm's sum.
const PIECE: usize = 16384;

/// One step of AdamW (Loshchilov and Hutter 2019) for one group of parameters.
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

versions! {
    fn adamw_step(o: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let (keep, step) = (1.0 - o.rate * o.decay, o.rate / o.correction1);
        let root = 1.0 / o.correction2.sqrt();
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * o.scale;
            *m = o.beta1.mul_add(*m, (1.0 - o.beta1) * g);
            *v = o.beta2.mul_add(*v, (1.0 - o.beta2) * g * g);
            *w = (*w).mul_add(keep, -step * *m / (*v).sqrt().mul_add(root, o.eps));
        }
    }
}

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

impl Dense {
    /// One AdamW step on `w` with gradient `g` and moments `m`, `v`.
    pub fn adamw(&mut self, o: &AdamW, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = w.len();
        assert!(
            g.len() == n && m.len() == n && v.len() == n,
            "adamw of {n}, {}, {}, {}",
            g.len(),
            m.len(),
            v.len()
        );
        let (w, m, v) = (Shared::new(w), Shared::new(m), Shared::new(v));
        self.pieces(n, PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            let (w, m, v) = unsafe { (w.part(r.clone()), m.part(r.clone()), v.part(r.clone())) };
            adamw_step(self.isa, o, w, &g[r], m, v);
        });
    }

    /// `Σ x²`, in f64.
    pub fn sum_squares(&mut self, x: &[f32]) -> f64 {
        let mut sums = vec![0.0f64; x.len().div_ceil(PIECE)];
        let shared = Shared::new(&mut sums);
        self.pieces(x.len(), PIECE, |p, r| {
            // SAFETY: each piece takes its own sum.
            let sum = unsafe { shared.part(p..p + 1) };
            sum[0] = squares(self.isa, &x[r]);
        });
        sums.iter().sum()
    }
}
