//! Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum, orthogonalised by Newton and Schulz.
//!
//! Each projection counts for itself: where query, key and value, or gate and up, lie in one parameter, each part is
//! orthogonalised alone.

use llm_kernels::dense::{Dense, gemm::View};

use crate::params::Param;

/// Coefficients of the quintic x → a·x + b·x³ + c·x⁵, as published with the method: five rounds bring singular values
/// of (0, 1] to about 0.7 .. 1.2.
const A: f32 = 3.4445;
const B: f32 = -4.7750;
const C: f32 = 2.0315;
const ROUNDS: usize = 5;

/// Replaces every projection in `update` (`[rows, cols]` of `p`) by its orthogonal factor, times √max(1, rows/cols).
pub(super) fn orthogonalize(dense: &mut Dense, p: &Param, update: &mut [f32]) {
    let mut from = 0;
    for part in &p.parts {
        for _ in 0..p.count {
            let len = part.rows * p.cols;
            one(dense, &mut update[from..from + len], part.rows, p.cols);
            from += len;
        }
    }
}

fn one(dense: &mut Dense, x: &mut [f32], rows: usize, cols: usize) {
    let norm = dense.sum_squares(x).sqrt();
    if norm == 0.0 {
        return;
    }
    let scale = (1.0 / (norm + 1e-7)) as f32;
    x.iter_mut().for_each(|v| *v *= scale);
    // the smaller side is multiplied: X·Xᵀ of a wide matrix, Xᵀ·X of a tall one
    let n = rows.min(cols);
    let (mut gram, mut poly) = (vec![0.0; n * n], vec![0.0; n * n]);
    let mut next = vec![0.0; rows * cols];
    for _ in 0..ROUNDS {
        let view = View::new(x, rows, cols, cols);
        let (left, right) = if rows <= cols { (view, view.t()) } else { (view.t(), view) };
        dense.product(left, right, &mut gram, n, false);
        // B·G + C·G²
        let g = View::new(&gram, n, n, n);
        dense.product(g, g, &mut poly, n, false);
        for (p, g) in poly.iter_mut().zip(&gram) {
            *p = C.mul_add(*p, B * g);
        }
        let p = View::new(&poly, n, n, n);
        if rows <= cols {
            dense.product(p, view, &mut next, cols, false);
        } else {
            dense.product(view, p, &mut next, cols, false);
        }
        for (x, next) in x.iter_mut().zip(&next) {
            *x = A.mul_add(*x, *next);
        }
    }
    let scale = (rows as f32 / cols as f32).max(1.0).sqrt();
    x.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests {
    use llm::model::arch::{LayerSlot as L, Slot};

    use super::*;
    use crate::params::Params;
    use crate::random::{Stream, normal};
    use crate::twin::designs;

    #[test]
    fn projections_that_lie_together_and_stacked_experts_are_orthogonalised_each_by_itself() {
        let mut dense = Dense::new(1);
        let model = |name: &str| designs().into_iter().find(|(n, _)| *n == name).unwrap().1;
        for (name, slot, matrices) in [
            // queries of four heads, keys and values of two
            ("mixtral", L::Q, vec![(16, 16), (8, 16), (8, 16)]),
            ("mixtral", L::ExpertUp, vec![(24, 16); 4]),
            ("deepseek_v2", L::KAbsorb, vec![(6, 4); 4]),
        ] {
            let (arch, spec) = model(name).spec().unwrap();
            let params = Params::new(arch, &spec, false);
            let p = &params.list[params.find(Slot::Layer(1, slot)).unwrap()];
            let mut whole: Vec<f32> =
                (0..p.len()).map(|i| normal(5, Stream::Weights, 2, i as u64) * 0.01).collect();
            // an expert that no token chose has no gradient, and stays
            let last = matrices[matrices.len() - 1];
            whole[p.len() - last.0 * last.1..].fill(0.0);
            let mut expected = whole.clone();
            let mut rest = &mut expected[..];
            for (rows, cols) in &matrices {
                let (x, behind) = std::mem::take(&mut rest).split_at_mut(rows * cols);
                one(&mut dense, x, *rows, *cols);
                rest = behind;
            }
            assert!(rest.is_empty(), "{name}: {slot:?}");
            orthogonalize(&mut dense, p, &mut whole);
            assert_eq!(whole, expected, "{name}: {slot:?}");
        }
    }

    #[test]
    fn rows_of_wide_and_columns_of_tall_matrices_come_out_nearly_orthonormal() {
        let mut dense = Dense::new(2);
        for (rows, cols) in [(12, 40), (40, 12), (24, 24)] {
            let mut x: Vec<f32> =
                (0..rows * cols).map(|i| normal(3, Stream::Weights, 1, i as u64) * 0.01).collect();
            one(&mut dense, &mut x, rows, cols);
            let side = (rows as f32 / cols as f32).max(1.0).sqrt();
            let n = rows.min(cols);
            for i in 0..n {
                for j in 0..n {
                    let product = |k: usize| {
                        if rows <= cols {
                            x[i * cols + k] * x[j * cols + k]
                        } else {
                            x[k * cols + i] * x[k * cols + j]
                        }
                    };
                    let sum: f32 = (0..rows.max(cols)).map(product).sum::<f32>() / (side * side);
                    let wanted = if i == j { 1.0 } else { 0.0 };
                    // singular values end between 0.7 and 1.2, so squares between 0.5 and 1.5
                    assert!((sum - wanted).abs() < 0.55, "[{rows}, {cols}] ({i}, {j}): {sum}");
                }
            }
        }
    }
}
