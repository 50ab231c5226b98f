//! GaLore (Zhao et al. 2024, arXiv:2403.03507): the moments of a matrix are kept of its gradient's projection on the
//! gradient's leading directions, which are found anew every so often.
//!
//! ```text
//! wide [m ≤ n]:  R = Pᵀ·G [r, n]     G ≈ P·R        P [m, r]: leading left singular vectors
//! tall [m > n]:  R = G·P  [m, r]     G ≈ R·Pᵀ       P [n, r]: leading right singular vectors
//! weight −= rate · scale · P·adam(R)
//! ```
//! The directions come from a few rounds of subspace iteration on a start that follows from (seed, step, parameter), so
//! a resumed run finds the same ones. A gradient of zeros has none: they are then looked for at the next step. Moments stay
//! as they are when the directions change, as in the paper.

use llm_kernels::dense::{AdamW, Dense, Moments8, gemm::View};

use super::{Values, ValuesMut, parts8, parts8_mut};
use crate::config::{OptimConfig, OptimizerKind};
use crate::params::Param;
use crate::random::{Stream, normal};

/// Rounds of subspace iteration; each squares the gap between the singular values.
const ROUNDS: usize = 4;

enum Moments {
    F32 { first: Vec<f32>, second: Vec<f32> },
    Eight(Moments8),
}

pub(super) struct LowRank {
    rows: usize,
    cols: usize,
    rank: usize,
    /// `[min(rows, cols), rank]`, orthonormal columns.
    basis: Vec<f32>,
    moments: Moments,
}

impl LowRank {
    pub fn new(p: &Param, o: &OptimConfig) -> LowRank {
        // a stack of experts is projected as one tall matrix
        let (rows, cols) = (p.count * p.rows, p.cols);
        let rank = o.galore_rank.min(rows.min(cols));
        let n = rank * rows.max(cols);
        let moments = if o.kind == OptimizerKind::AdamW8 {
            Moments::Eight(Moments8::new(n))
        } else {
            Moments::F32 { first: vec![0.0; n], second: vec![0.0; n] }
        };
        LowRank { rows, cols, rank, basis: vec![0.0; rows.min(cols) * rank], moments }
    }

    /// One step on `w`; `key` is (seed, step, parameter), `scratch` as long as `w`.
    #[allow(clippy::too_many_arguments)] // an optimizer's step
    pub fn step(
        &mut self,
        dense: &mut Dense,
        o: &OptimConfig,
        adamw: &AdamW,
        key: (u64, u64, u64),
        w: &mut [f32],
        g: &[f32],
        scratch: &mut [f32],
    ) {
        let (rows, cols, rank) = (self.rows, self.cols, self.rank);
        if key.1.is_multiple_of(o.galore_every) || self.basis.iter().all(|b| *b == 0.0) {
            self.basis = directions(dense, View::new(g, rows, cols, cols), rows, cols, rank, key);
        }
        let gradient = View::new(g, rows, cols, cols);
        let wide = rows <= cols;
        let basis = View::new(&self.basis, rows.min(cols), rank, rank);
        let n = rank * rows.max(cols);
        let mut low = vec![0.0; n];
        if wide {
            dense.product(basis.t(), gradient, &mut low, cols, false);
        } else {
            dense.product(gradient, basis, &mut low, rank, false);
        }
        // AdamW on values that begin at zero leaves the step itself
        let mut update = vec![0.0; n];
        let alone = AdamW { rate: 1.0, decay: 0.0, ..*adamw };
        match &mut self.moments {
            Moments::F32 { first, second } => dense.adamw(&alone, &mut update, &low, first, second),
            Moments::Eight(moments) => dense.adamw8(&alone, &mut update, &low, moments),
        }
        if wide {
            dense.product(basis, View::new(&update, rank, cols, cols), scratch, cols, false);
        } else {
            dense.product(View::new(&update, rows, rank, rank), basis.t(), scratch, cols, false);
        }
        dense.apply(1.0 - adamw.rate * adamw.decay, adamw.rate * o.galore_scale, w, scratch);
    }

    pub fn parts(&self) -> Vec<(&'static str, Values<'_>)> {
        let mut parts = match &self.moments {
            Moments::F32 { first, second } => {
                vec![("first", Values::F32(first)), ("second", Values::F32(second))]
            }
            Moments::Eight(m) => parts8(m),
        };
        parts.push(("basis", Values::F32(&self.basis)));
        parts
    }

    pub fn parts_mut(&mut self) -> Vec<(&'static str, ValuesMut<'_>)> {
        let mut parts = match &mut self.moments {
            Moments::F32 { first, second } => {
                vec![("first", ValuesMut::F32(first)), ("second", ValuesMut::F32(second))]
            }
            Moments::Eight(m) => parts8_mut(m),
        };
        parts.push(("basis", ValuesMut::F32(&mut self.basis)));
        parts
    }
}

/// The `rank` leading singular vectors of the smaller side of `g`, `[min(rows, cols), rank]`.
fn directions(
    dense: &mut Dense,
    g: View,
    rows: usize,
    cols: usize,
    rank: usize,
    (seed, step, parameter): (u64, u64, u64),
) -> Vec<f32> {
    let (small, large) = (rows.min(cols), rows.max(cols));
    let g = if rows <= cols { g } else { g.t() };
    let mut other: Vec<f32> = (0..large * rank)
        .map(|i| normal(seed, Stream::Directions, step << 24 ^ parameter, i as u64))
        .collect();
    let mut basis = vec![0.0; small * rank];
    for round in 0..ROUNDS {
        if round > 0 {
            dense.product(g.t(), View::new(&basis, small, rank, rank), &mut other, rank, false);
        }
        dense.product(g, View::new(&other, large, rank, rank), &mut basis, rank, false);
        orthonormalize(&mut basis, small, rank);
    }
    basis
}

/// Makes the columns of `x`, `[n, k]`, orthonormal (Gram and Schmidt, twice); a column that depends on those before it
/// becomes zero.
fn orthonormalize(x: &mut [f32], n: usize, k: usize) {
    // by columns, in f64: ranks are small, and the order of the sums is plain
    let mut columns: Vec<Vec<f64>> =
        (0..k).map(|j| (0..n).map(|i| f64::from(x[i * k + j])).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for j in 0..k {
        let (done, rest) = columns.split_at_mut(j);
        let column = &mut rest[0];
        let before = dot(column, column).sqrt();
        for _ in 0..2 {
            for other in done.iter() {
                let along = dot(column, other);
                column.iter_mut().zip(other).for_each(|(c, o)| *c -= along * o);
            }
        }
        let norm = dot(column, column).sqrt();
        let scale = if norm > before * 1e-6 && norm > 0.0 { 1.0 / norm } else { 0.0 };
        column.iter_mut().for_each(|c| *c *= scale);
    }
    for (j, column) in columns.iter().enumerate() {
        column.iter().enumerate().for_each(|(i, c)| x[i * k + j] = *c as f32);
    }
}

#[cfg(test)]
mod tests {
    use llm::model::arch::{LayerSlot, Slot};

    use super::*;
    use crate::params::Params;

    #[test]
    fn a_matrix_whose_first_gradient_is_zero_moves_with_its_second() {
        // as an adapter's A, whose B is zero at the start
        let slot = Slot::Layer(0, LayerSlot::Q);
        let p = Params::named(vec![("A".into(), slot, 4, 9)]).list.remove(0);
        let o = OptimConfig { galore_rank: 2, galore_every: 100, ..OptimConfig::default() };
        let adamw = AdamW {
            rate: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            decay: 0.0,
            scale: 1.0,
            correction1: 0.1,
            correction2: 0.05,
        };
        let mut dense = Dense::new(1);
        let mut low = LowRank::new(&p, &o);
        let (mut w, mut scratch) = (vec![0.0; 36], vec![0.0; 36]);
        low.step(&mut dense, &o, &adamw, (1, 0, 0), &mut w, &[0.0; 36], &mut scratch);
        assert!(w.iter().all(|w| *w == 0.0));
        let g: Vec<f32> = (0..36).map(|i| normal(1, Stream::Weights, 0, i)).collect();
        low.step(&mut dense, &o, &adamw, (1, 1, 0), &mut w, &g, &mut scratch);
        assert!(w.iter().all(|w| *w != 0.0), "{w:?}");
    }

    #[test]
    fn directions_are_the_leading_singular_vectors_and_orthonormal() {
        // cosines of different frequencies are orthonormal, so the singular vectors of Σ σ·u·vᵀ are known
        let cosine = |n: usize, frequency: usize, at: usize| -> f64 {
            let angle = std::f64::consts::PI * frequency as f64 * (at as f64 + 0.5) / n as f64;
            (2.0 / n as f64).sqrt() * angle.cos()
        };
        let values = [(1, 0.02), (2, 5.0), (3, 0.03), (4, 9.0), (5, 3.0)];
        let mut dense = Dense::new(2);
        for (rows, cols) in [(21, 50), (50, 21), (19, 19)] {
            let value = |i: usize| {
                let terms = values.map(|(f, s)| s * cosine(rows, f, i / cols) * cosine(cols, f, i % cols));
                terms.iter().sum::<f64>() as f32
            };
            let g: Vec<f32> = (0..rows * cols).map(value).collect();
            let basis = directions(&mut dense, View::new(&g, rows, cols, cols), rows, cols, 3, (1, 0, 0));
            let (small, at) = (rows.min(cols), |i: usize, k: usize| f64::from(basis[i * 3 + k]));
            for (i, j) in (0..9).map(|i| (i / 3, i % 3)) {
                let product: f64 = (0..small).map(|row| at(row, i) * at(row, j)).sum();
                let wanted = if i == j { 1.0 } else { 0.0 };
                assert!((product - wanted).abs() < 1e-6, "[{rows}, {cols}]: columns {i}, {j}: {product}");
            }
            for (i, j) in (0..small * small).map(|i| (i / small, i % small)) {
                let got: f64 = (0..3).map(|k| at(i, k) * at(j, k)).sum();
                let wanted: f64 = [2, 4, 5].iter().map(|f| cosine(small, *f, i) * cosine(small, *f, j)).sum();
                assert!((got - wanted).abs() < 1e-5, "[{rows}, {cols}] ({i}, {j}): {got}, expected {wanted}");
            }
        }
    }

    #[test]
    fn of_full_rank_it_is_adamw_where_that_is_linear() {
        // AdamW divides value by value, so turned values take other steps; an eps far above them leaves the momentum
        let slot = Slot::Layer(0, LayerSlot::Q);
        for (rows, cols) in [(7, 12), (12, 7), (9, 9)] {
            let p = Params::named(vec![("A".into(), slot, rows, cols)]).list.remove(0);
            let o = OptimConfig { galore_rank: 100, galore_scale: 1.0, ..OptimConfig::default() };
            let draw = |of: u64| -> Vec<f32> {
                (0..rows * cols).map(|i| normal(1, Stream::Weights, of, i as u64)).collect()
            };
            let mut dense = Dense::new(1);
            let (mut low, mut scratch) = (LowRank::new(&p, &o), draw(9));
            let (mut w, mut plain) = (draw(0), draw(0));
            let (mut m, mut v) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
            for step in 0..4 {
                let left = |beta: f64| (1.0 - beta.powi(step + 1)) as f32;
                let adamw = AdamW {
                    rate: 1e5,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e6,
                    decay: 0.0,
                    scale: 0.7,
                    correction1: left(0.9),
                    correction2: left(0.95),
                };
                let g = draw(1 + step as u64);
                low.step(&mut dense, &o, &adamw, (1, step as u64, 0), &mut w, &g, &mut scratch);
                dense.adamw(&adamw, &mut plain, &g, &mut m, &mut v);
                for (a, b) in w.iter().zip(&plain) {
                    assert!((a - b).abs() < 5e-6, "[{rows}, {cols}], step {step}: {a}, AdamW has {b}");
                }
            }
            let moved = plain.iter().zip(draw(0)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(moved > 0.1, "{moved}");
        }
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_whole_and_the_same_each_time() {
        let mut dense = Dense::new(2);
        for (rows, cols) in [(20, 50), (50, 20)] {
            let draw = |a: u64, n: usize| -> Vec<f32> {
                (0..n).map(|i| normal(1, Stream::Weights, a, i as u64)).collect()
            };
            let (u, v) = (draw(1, rows * 3), draw(2, 3 * cols));
            let mut g = vec![0.0; rows * cols];
            dense.product(View::new(&u, rows, 3, 3), View::new(&v, 3, cols, cols), &mut g, cols, false);
            let view = View::new(&g, rows, cols, cols);
            let small = rows.min(cols);
            let basis = directions(&mut dense, view, rows, cols, 3, (1, 0, 0));
            assert_eq!(basis, directions(&mut dense, view, rows, cols, 3, (1, 0, 0)));
            // P·Pᵀ·G = G
            let b = View::new(&basis, small, 3, 3);
            let side = if rows <= cols { view } else { view.t() };
            let (mut low, mut back) = (vec![0.0; 3 * rows.max(cols)], vec![0.0; rows * cols]);
            dense.product(b.t(), side, &mut low, rows.max(cols), false);
            dense.product(
                b,
                View::new(&low, 3, rows.max(cols), rows.max(cols)),
                &mut back,
                rows.max(cols),
                false,
            );
            for i in 0..small {
                for j in 0..rows.max(cols) {
                    let wanted = if rows <= cols { g[i * cols + j] } else { g[j * cols + i] };
                    assert!((back[i * rows.max(cols) + j] - wanted).abs() < 1e-4);
                }
            }
        }
    }
}
