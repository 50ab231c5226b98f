//! Latent attention in training: every head's keys and values out of the compressed vectors, and back.
//!
//! ```text
//! c [rows, rank + rope]    k_h = c·K_h + 0, then the shared rotated key      K_h [rank, nope]
//!                          v_h = c·V_hᵀ                                      V_h [value, rank]
//! ```

use llm_kernels::dense::gemm::View;

use super::{Engine, parts};
use crate::tape::{Op, Tape};

/// Copies `width` values of every row: from column `from` of rows of `a` values to column `to` of rows of `b`.
fn copy(x: &[f32], (from, a): (usize, usize), y: &mut [f32], (to, b): (usize, usize), width: usize) {
    for (x, y) in x.chunks_exact(a).zip(y.chunks_exact_mut(b)) {
        y[to..to + width].copy_from_slice(&x[from..from + width]);
    }
}

impl Engine {
    pub(super) fn expand(&mut self, tape: &Tape, op: &Op, weights: &[f32]) {
        let Op::Expand { shape, rank, rope, k, v, q, c, qkv, .. } = op else { unreachable!("called for it") };
        let (rows, stride, width) = (tape.rows(), shape.stride(), rank + rope);
        let (nope, values) = (shape.dim - rope, shape.value_dim);
        let (k, v) = (&self.params.list[*k], &self.params.list[*v]);
        let [q, c, qkv] = parts(&mut self.arena, [tape.place(*q), tape.place(*c), tape.place(*qkv)]);
        let queries = shape.heads * shape.dim;
        copy(q, (0, queries), qkv, (0, stride), queries);
        for h in 0..shape.heads {
            let key = queries + h * shape.dim;
            let value = 2 * queries + h * values;
            let compressed = View::new(c, rows, *rank, width);
            let keys = View::new(&weights[k.matrix(h)], *rank, nope, nope);
            self.dense.product(compressed, keys, &mut qkv[key..], stride, false);
            let out = View::new(&weights[v.matrix(h)], values, *rank, *rank);
            self.dense.product(compressed, out.t(), &mut qkv[value..], stride, false);
            copy(c, (*rank, width), qkv, (key + nope, stride), *rope);
        }
    }

    pub(super) fn expand_back(&mut self, tape: &Tape, op: &Op, weights: &[f32], grads: &mut [f32]) {
        let Op::Expand { shape, rank, rope, k, v, c, dq, dc, dqkv, .. } = op else {
            unreachable!("called for it")
        };
        let (rows, stride, width) = (tape.rows(), shape.stride(), rank + rope);
        let (nope, values) = (shape.dim - rope, shape.value_dim);
        let (k, v) = (&self.params.list[*k], &self.params.list[*v]);
        let places = [tape.place(*c), tape.place(*dq), tape.place(*dc), tape.place(*dqkv)];
        let [c, dq, dc, dqkv] = parts(&mut self.arena, places);
        let queries = shape.heads * shape.dim;
        copy(dqkv, (0, stride), dq, (0, queries), queries);
        dc.fill(0.0);
        for h in 0..shape.heads {
            let key = queries + h * shape.dim;
            let value = 2 * queries + h * values;
            let compressed = View::new(c, rows, *rank, width);
            let dk = View::new(&dqkv[key..], rows, nope, stride);
            let dv = View::new(&dqkv[value..], rows, values, stride);
            let keys = View::new(&weights[k.matrix(h)], *rank, nope, nope);
            let out = View::new(&weights[v.matrix(h)], values, *rank, *rank);
            self.dense.product(dk, keys.t(), dc, width, true);
            self.dense.product(dv, out, dc, width, true);
            if k.trained {
                self.dense.product(compressed.t(), dk, &mut grads[k.matrix(h)], nope, true);
                self.dense.product(dv.t(), compressed, &mut grads[v.matrix(h)], *rank, true);
            }
            for (dc, dqkv) in dc.chunks_exact_mut(width).zip(dqkv.chunks_exact(stride)) {
                for (dc, dk) in dc[*rank..].iter_mut().zip(&dqkv[key + nope..key + shape.dim]) {
                    *dc += dk;
                }
            }
        }
    }
}
