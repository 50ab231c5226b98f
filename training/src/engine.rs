//! Replays a tape: forward, head, backward, over one arena of activations and the flat vectors of parameters.

use crate::config::ModelConfig;
use crate::params::Params;
use crate::random::{Stream, bits};
use crate::tape::{Op, Tape};
use llm_kernels::dense::{Dense, Heads};

/// What the head does with the logits of a chunk of rows.
pub(crate) enum Want<'a> {
    /// The summed loss.
    Loss,
    /// The summed loss, and gradients of `scale · loss` added to these.
    Gradient { scale: f32, grads: &'a mut [f32] },
    /// All logits, `[rows, vocab]`.
    Logits(&'a mut Vec<f32>),
}

/// A model's numbers outside its parameters.
pub(crate) struct Engine {
    pub dense: Dense,
    model: ModelConfig,
    params: Params,
    arena: Vec<f32>,
    /// Rotary tables `[context, head_dim/2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Engine {
    pub fn new(model: &ModelConfig, params: &Params, threads: usize) -> Engine {
        let half = model.head_dim() / 2;
        let angle = |i: usize| {
            let (position, pair) = (i / half, i % half);
            position as f64 * model.rope_theta.powf(-((2 * pair) as f64) / model.head_dim() as f64)
        };
        let n = model.context * half;
        Engine {
            dense: Dense::new(threads),
            model: model.clone(),
            params: params.clone(),
            arena: Vec::new(),
            cos: (0..n).map(|i| angle(i).cos() as f32).collect(),
            sin: (0..n).map(|i| angle(i).sin() as f32).collect(),
        }
    }

    /// Runs `tape` on `ids[rows]` with `targets[rows]` and returns the summed loss in nats. `pass` numbers the pass
    /// over the whole run; it keys dropout.
    pub fn run(
        &mut self,
        tape: &Tape,
        weights: &[f32],
        ids: &[u32],
        targets: &[u32],
        (seed, pass): (u64, u64),
        mut want: Want,
    ) -> f64 {
        assert!(
            ids.len() == tape.rows() && targets.len() == tape.rows(),
            "{} ids for {}",
            ids.len(),
            tape.rows()
        );
        if self.arena.len() < tape.arena {
            self.arena.resize(tape.arena, 0.0);
        }
        let mut loss = 0.0;
        for op in &tape.ops {
            if let Op::Head { .. } = op {
                loss = self.head(tape, op, weights, targets, &mut want);
            } else {
                self.forward(tape, op, weights, ids, (seed, pass));
            }
        }
        if let Want::Gradient { grads, .. } = want {
            for op in tape.ops.iter().rev() {
                self.backward(tape, op, weights, grads, ids, (seed, pass));
            }
        }
        loss
    }

    fn forward(&mut self, tape: &Tape, op: &Op, weights: &[f32], ids: &[u32], key: (u64, u64)) {
        let w = |id: usize| &weights[self.params.list[id].range()];
        let (rows, dense) = (tape.rows(), &mut self.dense);
        let at = |b: usize| tape.place(b);
        match *op {
            Op::Embed { table, positions, y, .. } => {
                let positions = positions.map(|p| &w(p)[..tape.length * self.model.width]);
                dense.embed(ids, w(table), positions, &mut self.arena[at(y)]);
            }
            Op::Norm { x, w: weight, b, y, stats, .. } => {
                let [x, y, stats] = parts(&mut self.arena, [at(x), at(y), at(stats)]);
                dense.norm(x, w(weight), b.map(w), self.model.eps, y, stats);
            }
            Op::Linear { x, w: weight, b, residual, y, .. } => {
                let p = &self.params.list[weight];
                let shape = (rows, p.rows, p.cols);
                if let Some(residual) = residual {
                    let [x, y, residual] = parts(&mut self.arena, [at(x), at(y), at(residual)]);
                    dense.linear(x, w(weight), b.map(w), Some(residual), y, shape);
                } else {
                    let [x, y] = parts(&mut self.arena, [at(x), at(y)]);
                    dense.linear(x, w(weight), b.map(w), None, y, shape);
                }
            }
            Op::Rope { x, .. } => self.rope(tape, at(x), false),
            Op::Attention { qkv, y, lse, index, .. } => {
                let heads = heads(&self.model, tape, key, index, self.model.dropout);
                let [qkv, y, lse] = parts(&mut self.arena, [at(qkv), at(y), at(lse)]);
                dense.attention(&heads, qkv, y, lse);
            }
            Op::Gelu { x, y, .. } => {
                let [x, y] = parts(&mut self.arena, [at(x), at(y)]);
                dense.gelu(x, y);
            }
            Op::SwiGlu { x, y, .. } => {
                let [x, y] = parts(&mut self.arena, [at(x), at(y)]);
                dense.swiglu(x, self.model.ffn, y);
            }
            Op::Dropout { x, index, .. } => {
                dense.dropout(&mut self.arena[at(x)], self.model.dropout, dropout_key(key, index));
            }
            Op::Add { x, branch, y, .. } => {
                let [x, branch, y] = parts(&mut self.arena, [at(x), at(branch), at(y)]);
                y.copy_from_slice(x);
                dense.add(y, branch);
            }
            Op::Head { .. } => unreachable!("the head has its own turn"),
        }
    }

    fn head(&mut self, tape: &Tape, op: &Op, weights: &[f32], targets: &[u32], want: &mut Want) -> f64 {
        let Op::Head { x, w, logits, dx } = *op else { unreachable!("called for the head") };
        let p = &self.params.list[w];
        let (vocab, width, weight) = (p.rows, p.cols, &weights[p.range()]);
        let mut loss = 0.0;
        let [x, logits, dx] = parts(&mut self.arena, [tape.place(x), tape.place(logits), tape.place(dx)]);
        for r0 in (0..tape.rows()).step_by(tape.head_rows) {
            let n = tape.head_rows.min(tape.rows() - r0);
            let (x, logits) = (&x[r0 * width..(r0 + n) * width], &mut logits[..n * vocab]);
            let (targets, shape) = (&targets[r0..r0 + n], (n, vocab, width));
            self.dense.linear(x, weight, None, None, logits, shape);
            match want {
                Want::Loss => loss += self.dense.cross_entropy(logits, vocab, targets, None),
                Want::Logits(out) => out.extend_from_slice(logits),
                Want::Gradient { scale, grads } => {
                    loss += self.dense.cross_entropy(logits, vocab, targets, Some(*scale));
                    let dx = &mut dx[r0 * width..(r0 + n) * width];
                    self.dense.linear_dx(logits, weight, dx, shape, false);
                    self.dense.linear_dw(logits, x, &mut grads[p.range()], shape);
                }
            }
        }
        loss
    }

    fn backward(
        &mut self,
        tape: &Tape,
        op: &Op,
        weights: &[f32],
        grads: &mut [f32],
        ids: &[u32],
        key: (u64, u64),
    ) {
        let list = &self.params.list;
        let w = |id: usize| &weights[list[id].range()];
        let (rows, dense) = (tape.rows(), &mut self.dense);
        let at = |b: usize| tape.place(b);
        match *op {
            Op::Embed { table, positions, dy, .. } => {
                let dy = &self.arena[at(dy)];
                if let Some(positions) = positions {
                    let start = list[positions].range().start;
                    let used = start..start + tape.length * self.model.width;
                    let [table, positions] = parts(grads, [list[table].range(), used]);
                    dense.embed_back(ids, dy, table, Some(positions));
                } else {
                    dense.embed_back(ids, dy, &mut grads[list[table].range()], None);
                }
            }
            Op::Norm { x, w: weight, b, stats, dx, dy, add, .. } => {
                let [x, stats, dx, dy] = parts(&mut self.arena, [at(x), at(stats), at(dx), at(dy)]);
                if let Some(b) = b {
                    let [dw, db] = parts(grads, [list[weight].range(), list[b].range()]);
                    dense.norm_back(dy, x, w(weight), stats, dx, add, dw, Some(db));
                } else {
                    let dw = &mut grads[list[weight].range()];
                    dense.norm_back(dy, x, w(weight), stats, dx, add, dw, None);
                }
            }
            Op::Linear { x, w: weight, b, dx, dy, .. } => {
                let p = &list[weight];
                let shape = (rows, p.rows, p.cols);
                let [x, dx, dy] = parts(&mut self.arena, [at(x), at(dx), at(dy)]);
                dense.linear_dw(dy, x, &mut grads[p.range()], shape);
                if let Some(b) = b {
                    dense.bias_back(dy, &mut grads[list[b].range()]);
                }
                dense.linear_dx(dy, w(weight), dx, shape, false);
            }
            Op::Rope { dx, .. } => self.rope(tape, at(dx), true),
            Op::Attention { qkv, y, lse, dqkv, dy, index } => {
                let heads = heads(&self.model, tape, key, index, self.model.dropout);
                let places = [at(qkv), at(y), at(lse), at(dqkv), at(dy)];
                let [qkv, y, lse, dqkv, dy] = parts(&mut self.arena, places);
                dense.attention_back(&heads, qkv, y, lse, dy, dqkv);
            }
            Op::Gelu { x, dy, .. } => {
                let [x, dy] = parts(&mut self.arena, [at(x), at(dy)]);
                dense.gelu_back(dy, x);
            }
            Op::SwiGlu { x, dx, dy, .. } => {
                let [x, dx, dy] = parts(&mut self.arena, [at(x), at(dx), at(dy)]);
                dense.swiglu_back(dy, x, self.model.ffn, dx);
            }
            Op::Dropout { dx, index, .. } => {
                dense.dropout(&mut self.arena[at(dx)], self.model.dropout, dropout_key(key, index));
            }
            Op::Add { dy, dbranch, .. } => {
                let [dy, dbranch] = parts(&mut self.arena, [at(dy), at(dbranch)]);
                dbranch.copy_from_slice(dy);
            }
            Op::Head { .. } => {}
        }
    }

    fn rope(&mut self, tape: &Tape, x: std::ops::Range<usize>, back: bool) {
        let m = &self.model;
        let n = tape.length * m.head_dim() / 2;
        let stride = (m.heads + 2 * m.kv_heads) * m.head_dim();
        let (cos, sin) = (&self.cos[..n], &self.sin[..n]);
        self.dense.rope(&mut self.arena[x], stride, m.heads + m.kv_heads, tape.length, cos, sin, back);
    }
}

fn heads(m: &ModelConfig, tape: &Tape, key: (u64, u64), index: usize, dropout: f32) -> Heads {
    let scale = 1.0 / (m.head_dim() as f32).sqrt();
    // Dropout belongs to training; a tape for it has records of dropout.
    let dropout = if tape.ops.iter().any(|op| matches!(op, Op::Dropout { .. })) { dropout } else { 0.0 };
    Heads {
        heads: m.heads,
        kv_heads: m.kv_heads,
        dim: m.head_dim(),
        length: tape.length,
        scale,
        dropout,
        key: dropout_key(key, index),
    }
}

fn dropout_key((seed, pass): (u64, u64), index: usize) -> u64 {
    bits(seed, Stream::Dropout, pass, index as u64)
}

/// Mutable parts of one vector, which the tape placed apart.
fn parts<const N: usize>(all: &mut [f32], ranges: [std::ops::Range<usize>; N]) -> [&mut [f32]; N] {
    match all.get_disjoint_mut(ranges) {
        Ok(parts) => parts,
        Err(e) => unreachable!("the tape places buffers that are used together apart: {e}"),
    }
}
