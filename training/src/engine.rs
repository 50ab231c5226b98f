//! Replays a tape: forward, head, backward, over one arena of activations and the flat vectors of parameters.

mod fault;
mod latent;
mod moe;

use llm::model::rope::Frequencies;
use llm::model::spec::Spec;
use llm_kernels::dense::{Dense, Heads, zeros};

use crate::lora::Lora;
use crate::params::Params;
use crate::random::{Stream, bits};
use crate::tape::{Op, Step, Tape};

/// What the head does with the logits of a chunk of rows.
pub(crate) enum Want<'a> {
    /// The summed loss.
    Loss,
    /// The summed loss, and gradients of `scale · loss` added to these.
    Gradient { scale: f32, grads: &'a mut [f32] },
    /// All logits, `[rows, vocab]`.
    Logits(&'a mut Vec<f32>),
}

/// One pass's input.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// `[rows]`
    pub ids: &'a [u32],
    /// `[rows]`; beyond the vocabulary: no loss there.
    pub targets: &'a [u32],
    /// For every row where its document begins in its sequence; empty: at 0.
    pub starts: &'a [u32],
    /// Seed of the run and number of the pass in it; they key dropout.
    pub key: (u64, u64),
}

/// Factors of the losses that a mixture of experts has beside that of the tokens.
#[derive(Clone, Copy, Default)]
pub(crate) struct RouterLosses {
    pub balance: f32,
    pub z: f32,
}

/// An adapter and its values. With one the model's own parameters are not trained.
pub(crate) struct Adapter {
    pub lora: Lora,
    pub values: Vec<f32>,
}

/// A model's numbers outside its parameters.
pub(crate) struct Engine {
    pub dense: Dense,
    pub adapter: Option<Adapter>,
    params: Params,
    width: usize,
    losses: RouterLosses,
    arena: Vec<f32>,
    /// Cosines and sines of each rotary table, `[context, dim/2]`.
    tables: Vec<(Vec<f32>, Vec<f32>)>,
    /// Of each table, values of one position.
    half: Vec<usize>,
    /// The experts chosen in each layer's mixture.
    choices: Vec<moe::Choice>,
    /// How many rows went through each expert of each layer, in the training passes since they were last cleared.
    loads: Vec<Vec<u64>>,
    /// Takes the gradients of norms that are not trained.
    sink: Vec<f32>,
    /// The pass drops values of adapters.
    dropping: bool,
}

impl Engine {
    pub fn new(spec: &Spec, params: &Params, threads: usize, losses: RouterLosses) -> Engine {
        let tables = spec.ropes.iter().map(|r| Frequencies::new(r, spec.context).tables(spec.context));
        Engine {
            dense: Dense::new(threads),
            adapter: None,
            params: params.clone(),
            width: spec.width as usize,
            losses,
            arena: Vec::new(),
            tables: tables.collect(),
            half: spec.ropes.iter().map(|r| r.dim as usize / 2).collect(),
            choices: (0..spec.layers.len()).map(|_| moe::Choice::default()).collect(),
            loads: vec![Vec::new(); spec.layers.len()],
            sink: Vec::new(),
            dropping: false,
        }
    }

    /// The same model, other parameters trained.
    pub fn set_params(&mut self, params: &Params) {
        self.params = params.clone();
    }

    /// Runs `tape` and returns the summed loss of the tokens in nats. Gradients are those of the adapter, if there is one.
    pub fn run(&mut self, tape: &Tape, weights: &[f32], input: &Input, mut want: Want) -> f64 {
        let rows = tape.rows();
        let fits = input.ids.len() == rows && input.targets.len() == rows;
        assert!(
            fits && (input.starts.is_empty() || input.starts.len() == rows),
            "{} ids for {rows}",
            input.ids.len()
        );
        if self.arena.len() < tape.arena {
            self.arena = Vec::new(); // before the new one, not beside it
            self.arena = zeros(tape.arena);
        }
        self.dropping = matches!(want, Want::Gradient { .. });
        let mut loss = 0.0;
        for op in &tape.ops {
            if let Op::Head { .. } = op {
                loss = self.head(tape, op, weights, input.targets, &mut want);
            } else {
                self.forward(tape, op, weights, input);
            }
        }
        if let Want::Gradient { scale, grads } = want {
            for step in &tape.back {
                match step {
                    Step::Again(i) => self.forward(tape, &tape.ops[*i], weights, input),
                    Step::Back(i) => self.backward(tape, &tape.ops[*i], weights, grads, scale, input),
                }
            }
        }
        loss
    }

    fn forward(&mut self, tape: &Tape, op: &Op, weights: &[f32], input: &Input) {
        let w = |id: usize| &weights[self.params.list[id].range()];
        let (rows, dense) = (tape.rows(), &mut self.dense);
        let at = |b: usize| tape.place(b);
        match op {
            Op::Embed { table, positions, scale, y, .. } => {
                let positions = positions.map(|p| &w(p)[..tape.length * self.width]);
                let y = &mut self.arena[at(*y)];
                if *scale == 1.0 {
                    dense.embed(input.ids, w(*table), positions, y);
                } else {
                    dense.embed(input.ids, w(*table), None, y);
                    y.iter_mut().for_each(|v| *v *= scale);
                }
            }
            Op::Norm { x, w: weight, b, center, eps, y, stats, .. } => {
                let [x, y, stats] = parts(&mut self.arena, [at(*x), at(*y), at(*stats)]);
                dense.norm(x, w(*weight), b.map(w), *center, *eps, y, stats);
            }
            Op::SliceNorm { x, stride, parts: list, eps, y, .. } => {
                let [from, to] = parts(&mut self.arena, [at(*x), at(*y)]);
                to.copy_from_slice(from);
                for (slice, weight, stats) in list {
                    let [x, y, stats] = parts(&mut self.arena, [at(*x), at(*y), at(*stats)]);
                    dense.slice_norm(x, *stride, *slice, w(*weight), *eps, y, stats);
                }
            }
            Op::Linear { x, w: weight, b, residual, y, .. } => {
                let p = &self.params.list[*weight];
                let shape = (rows, p.rows, p.cols);
                if let Some(residual) = residual {
                    let [x, y, residual] = parts(&mut self.arena, [at(*x), at(*y), at(*residual)]);
                    dense.linear(x, w(*weight), b.map(w), Some(residual), y, shape);
                } else {
                    let [x, y] = parts(&mut self.arena, [at(*x), at(*y)]);
                    dense.linear(x, w(*weight), b.map(w), None, y, shape);
                }
                if let Some(Adapter { lora, values }) = &self.adapter {
                    let [x, y] = parts(&mut self.arena, [at(*x), at(*y)]);
                    let share = if self.dropping { lora.config.dropout } else { 0.0 };
                    let key = |module| adapter_key(input.key, module);
                    lora.forward(dense, values, (*weight, p.rows), x, y, (share, &key));
                }
            }
            Op::Rope { x, .. } => self.rope(tape, op, at(*x), false),
            Op::Attention { shape, qkv, y, lse, index, .. } => {
                let heads = heads(shape, tape, input, *index);
                let [qkv, y, lse] = parts(&mut self.arena, [at(*qkv), at(*y), at(*lse)]);
                dense.attention(&heads, qkv, y, lse);
            }
            Op::Expand { .. } => self.expand(tape, op, weights),
            Op::Activate { curve, x, y, .. } => {
                let [x, y] = parts(&mut self.arena, [at(*x), at(*y)]);
                dense.activate(*curve, x, y);
            }
            Op::Gated { curve, n, x, y, .. } => {
                let [x, y] = parts(&mut self.arena, [at(*x), at(*y)]);
                dense.gated(*curve, x, *n, y);
            }
            Op::Moe(m) => self.experts(tape, m, weights),
            Op::Dropout { x, index, .. } => {
                dense.dropout(&mut self.arena[at(*x)], tape.dropout, dropout_key(input.key, *index));
            }
            Op::Add { x, branch, y, .. } => {
                let [x, branch, y] = parts(&mut self.arena, [at(*x), at(*branch), at(*y)]);
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
                    if p.trained {
                        self.dense.linear_dw(logits, x, &mut grads[p.range()], shape);
                    }
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
        scale: f32,
        input: &Input,
    ) {
        let list = &self.params.list;
        let w = |id: usize| &weights[list[id].range()];
        let (rows, dense) = (tape.rows(), &mut self.dense);
        let at = |b: usize| tape.place(b);
        match op {
            Op::Embed { table, .. } if !list[*table].trained => {}
            Op::Embed { table, positions, scale, dy, .. } => {
                let dy = &mut self.arena[at(*dy)];
                if *scale != 1.0 {
                    dy.iter_mut().for_each(|v| *v *= scale);
                }
                let positions = positions.filter(|p| list[*p].trained);
                if let Some(positions) = positions {
                    let start = list[positions].range().start;
                    let used = start..start + tape.length * self.width;
                    let [table, positions] = parts(grads, [list[*table].range(), used]);
                    dense.embed_back(input.ids, dy, table, Some(positions));
                } else {
                    dense.embed_back(input.ids, dy, &mut grads[list[*table].range()], None);
                }
            }
            Op::Norm { x, w: weight, b, center, stats, dx, dy, add, .. } => {
                let [x, stats, dx, dy] = parts(&mut self.arena, [at(*x), at(*stats), at(*dx), at(*dy)]);
                let len = list[*weight].len();
                let (dw, db) = if !list[*weight].trained {
                    self.sink.resize(self.sink.len().max(2 * len), 0.0);
                    let (dw, db) = self.sink.split_at_mut(len);
                    (dw, b.map(|_| &mut db[..len]))
                } else if let Some(b) = b {
                    let [dw, db] = parts(grads, [list[*weight].range(), list[*b].range()]);
                    (dw, Some(db))
                } else {
                    (&mut grads[list[*weight].range()], None)
                };
                dense.norm_back(dy, x, w(*weight), stats, *center, dx, *add, dw, db);
            }
            Op::SliceNorm { x, stride, parts: slices, dx, dy, .. } => {
                let [from, to] = parts(&mut self.arena, [at(*dy), at(*dx)]);
                to.copy_from_slice(from);
                for (slice, weight, stats) in slices {
                    let [x, stats, dx, dy] = parts(&mut self.arena, [at(*x), at(*stats), at(*dx), at(*dy)]);
                    let len = list[*weight].len();
                    let dw = if list[*weight].trained {
                        &mut grads[list[*weight].range()]
                    } else {
                        self.sink.resize(self.sink.len().max(len), 0.0);
                        &mut self.sink[..len]
                    };
                    dense.slice_norm_back(dy, x, *stride, *slice, w(*weight), stats, dx, dw);
                }
            }
            Op::Linear { x, w: weight, b, dx, dy, add, .. } => {
                let p = &list[*weight];
                let shape = (rows, p.rows, p.cols);
                let [x, dx, dy] = parts(&mut self.arena, [at(*x), at(*dx), at(*dy)]);
                if p.trained {
                    dense.linear_dw(dy, x, &mut grads[p.range()], shape);
                    if let Some(b) = b {
                        dense.bias_back(dy, &mut grads[list[*b].range()]);
                    }
                }
                dense.linear_dx(dy, w(*weight), dx, shape, *add);
                if let Some(Adapter { lora, values }) = &self.adapter {
                    let share = if self.dropping { lora.config.dropout } else { 0.0 };
                    let key = |module| adapter_key(input.key, module);
                    let of = (*weight, p.rows);
                    lora.backward(dense, (values, grads), of, (x, dy), dx, (share, &key));
                }
            }
            Op::Rope { dx, .. } => self.rope(tape, op, at(*dx), true),
            Op::Attention { shape, qkv, y, lse, dqkv, dy, index } => {
                let heads = heads(shape, tape, input, *index);
                let places = [at(*qkv), at(*y), at(*lse), at(*dqkv), at(*dy)];
                let [qkv, y, lse, dqkv, dy] = parts(&mut self.arena, places);
                dense.attention_back(&heads, qkv, y, lse, dy, dqkv);
            }
            Op::Expand { .. } => self.expand_back(tape, op, weights, grads),
            Op::Activate { curve, x, dy, .. } => {
                let [x, dy] = parts(&mut self.arena, [at(*x), at(*dy)]);
                dense.activate_back(*curve, dy, x);
            }
            Op::Gated { curve, n, x, dx, dy, .. } => {
                let [x, dx, dy] = parts(&mut self.arena, [at(*x), at(*dx), at(*dy)]);
                dense.gated_back(*curve, dy, x, *n, dx);
            }
            Op::Moe(m) => self.experts_back(tape, m, weights, grads, scale),
            Op::Dropout { dx, index, .. } => {
                dense.dropout(&mut self.arena[at(*dx)], tape.dropout, dropout_key(input.key, *index));
            }
            Op::Add { dy, dbranch, .. } => {
                let [dy, dbranch] = parts(&mut self.arena, [at(*dy), at(*dbranch)]);
                dbranch.copy_from_slice(dy);
            }
            Op::Head { .. } => {}
        }
    }

    fn rope(&mut self, tape: &Tape, op: &Op, x: std::ops::Range<usize>, back: bool) {
        let Op::Rope { stride, parts, table, .. } = op else { unreachable!("called for a rotation") };
        let n = tape.length * self.half[*table];
        let (cos, sin) = &self.tables[*table];
        for what in parts {
            let x = &mut self.arena[x.clone()];
            self.dense.rope(x, *stride, *what, tape.length, &cos[..n], &sin[..n], back);
        }
    }
}

fn heads<'a>(shape: &'a crate::tape::Heads, tape: &Tape, input: &Input<'a>, index: usize) -> Heads<'a> {
    Heads {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        dim: shape.dim,
        value_dim: shape.value_dim,
        length: tape.length,
        scale: shape.scale,
        window: shape.window,
        slopes: &shape.slopes,
        starts: input.starts,
        dropout: tape.dropout,
        key: dropout_key(input.key, index),
    }
}

fn dropout_key((seed, pass): (u64, u64), index: usize) -> u64 {
    bits(seed, Stream::Dropout, pass, index as u64)
}

/// Names the dropout of an adapter's module; layers have the numbers below.
fn adapter_key(key: (u64, u64), module: usize) -> u64 {
    dropout_key(key, (1 << 32) + module)
}

/// Mutable parts of one vector, which the tape placed apart.
fn parts<const N: usize>(all: &mut [f32], ranges: [std::ops::Range<usize>; N]) -> [&mut [f32]; N] {
    match all.get_disjoint_mut(ranges) {
        Ok(parts) => parts,
        Err(e) => unreachable!("the tape places buffers that are used together apart: {e}"),
    }
}
