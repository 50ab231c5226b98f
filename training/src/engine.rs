//! Replays a tape: forward, head, backward, over one arena of activations and the flat vectors of parameters.

mod fault;
mod latent;
mod moe;

use llm::model::rope::Frequencies;
use llm::model::spec::{Rope, Spec};
use llm_kernels::dense::{Bend, Dense, Heads, zeros};

use crate::config::Precision;
use crate::lora::Lora;
use crate::params::Params;
use crate::random::{Stream, bits};
use crate::tape::{Op, Step, Tape};

/// What the head does with the logits of a chunk of rows.
pub(crate) enum Want<'a> {
    /// The summed loss. Asked between records and between chunks of the head whether to go on; where the answer is no the
    /// pass ends, and its loss is none.
    Loss(&'a mut dyn FnMut() -> bool),
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
    vocab: u32,
    losses: RouterLosses,
    arena: Vec<f32>,
    /// What the head's outputs go through; `None`: they are the logits.
    bend: Option<Bend>,
    ropes: Vec<Rope>,
    /// Cosines and sines of each rotary table, `[reach, dim/2]`; `[rows, dim/2]` where angles depend on the length.
    tables: Vec<(Vec<f32>, Vec<f32>)>,
    /// Positions that the first hold: those of the longest pass so far.
    reach: usize,
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
        let bend = Bend { scale: spec.logit_scale, softcap: spec.logit_softcap };
        Engine {
            dense: Dense::new(threads),
            adapter: None,
            params: params.clone(),
            width: spec.width as usize,
            vocab: spec.vocab,
            losses,
            arena: Vec::new(),
            bend: (bend.scale != 1.0 || bend.softcap.is_some()).then_some(bend),
            ropes: spec.ropes.clone(),
            tables: vec![Default::default(); spec.ropes.len()],
            reach: 0,
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

    /// Runs `tape` and returns the summed loss of the tokens in nats, NaN if it was broken off. Gradients are those of the
    /// adapter, if there is one.
    pub fn run(&mut self, tape: &Tape, weights: &[f32], input: &Input, want: Want) -> f64 {
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
        self.turn(tape, input.starts);
        self.dropping = matches!(want, Want::Gradient { .. });
        self.at_precision(tape, |engine| engine.replay(tape, weights, input, want))
    }

    /// A pass whose products are at the tape's precision.
    fn at_precision<T>(&mut self, tape: &Tape, pass: impl FnOnce(&mut Engine) -> T) -> T {
        self.dense.set_rounding(tape.precision == Precision::Bf16);
        let result = pass(self);
        // an optimizer's products are f32
        self.dense.set_rounding(false);
        result
    }

    fn replay(&mut self, tape: &Tape, weights: &[f32], input: &Input, mut want: Want) -> f64 {
        let mut loss = 0.0;
        for (i, op) in tape.ops.iter().enumerate() {
            if let Want::Loss(go_on) = &mut want
                && !go_on()
            {
                return f64::NAN;
            }
            if let Op::Head { .. } = op {
                loss = self.head(tape, op, weights, input.targets, &mut want);
            } else {
                self.make(tape, i, weights, input, matches!(want, Want::Gradient { .. }));
            }
        }
        if let Want::Gradient { scale, grads } = want {
            // a router's losses are means over rows, beside the mean loss of the rows that have one
            let learned = input.targets.iter().filter(|t| **t < self.vocab).count();
            let scale = scale * (learned as f32 / tape.rows() as f32);
            for step in &tape.back {
                match step {
                    Step::Again(i) => self.make(tape, *i, weights, input, false),
                    Step::Back(i) => self.backward(tape, &tape.ops[*i], weights, grads, scale, input),
                    Step::Widen { halves, to } => {
                        let places = [tape.place(*halves), tape.place(*to)];
                        let [halves, to] = parts(&mut self.arena, places);
                        self.dense.widen(halves, to);
                    }
                }
            }
        }
        loss
    }

    /// The forward pass of record `i`, rounded; `keep`: for the way back, too.
    fn make(&mut self, tape: &Tape, i: usize, weights: &[f32], input: &Input, keep: bool) {
        self.forward(tape, &tape.ops[i], weights, input);
        self.settle(tape, i, keep);
    }

    /// Rounds what record `i` made, where the tape says so; `keep`: for the way back, too.
    fn settle(&mut self, tape: &Tape, i: usize, keep: bool) {
        for of in tape.settled.get(i).into_iter().flatten() {
            let place = tape.place(of.buffer);
            match of.halves.filter(|_| keep) {
                Some(halves) => {
                    let [values, halves] = parts(&mut self.arena, [place, tape.place(halves)]);
                    self.dense.narrow(values, halves);
                }
                None => self.dense.round(&mut self.arena[place]),
            }
        }
    }

    /// Makes the rotary tables of a pass.
    fn turn(&mut self, tape: &Tape, starts: &[u32]) {
        for (table, rope) in self.tables.iter_mut().zip(&self.ropes) {
            if Frequencies::vary(rope) {
                *table = of_documents(rope, tape, starts);
            } else if self.reach < tape.length {
                // a context may be far longer than what is ever run
                let length = tape.length as u32;
                *table = Frequencies::new(rope, length).tables(length);
            }
        }
        self.reach = self.reach.max(tape.length);
    }

    fn forward(&mut self, tape: &Tape, op: &Op, weights: &[f32], input: &Input) {
        let w = |id: usize| &weights[self.params.list[id].range()];
        let (rows, dense) = (tape.rows(), &mut self.dense);
        let at = |b: usize| tape.place(b);
        match op {
            Op::Embed { table, positions, scale, y, .. } => {
                let width = self.width;
                let positions = positions.map(|p| &w(p)[..tape.length * width]);
                let y = &mut self.arena[at(*y)];
                if *scale == 1.0 {
                    let of_rows = positions.filter(|_| input.starts.is_empty());
                    dense.embed(input.ids, w(*table), of_rows, y);
                } else {
                    dense.embed(input.ids, w(*table), None, y);
                    y.iter_mut().for_each(|v| *v *= scale);
                }
                if let Some(positions) = positions {
                    for (row, p) in y.chunks_exact_mut(width).zip(inside(tape.length, input.starts)) {
                        let position = &positions[p * width..(p + 1) * width];
                        row.iter_mut().zip(position).for_each(|(y, p)| *y += p);
                    }
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
            Op::Attention { shape, sinks, qkv, y, lse, index, .. } => {
                let heads = heads(shape, sinks.map_or(&[], w), tape, input, *index);
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
            Op::Switch { x, z, y, .. } => {
                let [x, z, y] = parts(&mut self.arena, [at(*x), at(*z), at(*y)]);
                moe::switch(x, z, y);
            }
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
        let Op::Head { x, w, b, logits, dx } = *op else { unreachable!("called for the head") };
        let (p, b) = (&self.params.list[w], b.map(|b| &self.params.list[b]));
        let (vocab, width, weight) = (p.rows, p.cols, &weights[p.range()]);
        let bias = b.map(|b| &weights[b.range()]);
        let mut loss = 0.0;
        let [x, logits, dx] = parts(&mut self.arena, [tape.place(x), tape.place(logits), tape.place(dx)]);
        for r0 in (0..tape.rows()).step_by(tape.head_rows) {
            let n = tape.head_rows.min(tape.rows() - r0);
            let (x, logits) = (&x[r0 * width..(r0 + n) * width], &mut logits[..n * vocab]);
            let (targets, shape) = (&targets[r0..r0 + n], (n, vocab, width));
            self.dense.linear(x, weight, bias, None, logits, shape);
            if let Some(bend) = self.bend {
                self.dense.bend(logits, bend);
            }
            match want {
                Want::Loss(go_on) => {
                    loss += self.dense.cross_entropy(logits, vocab, targets, None, None);
                    if !go_on() {
                        return f64::NAN;
                    }
                }
                Want::Logits(out) => out.extend_from_slice(logits),
                Want::Gradient { scale, grads } => {
                    loss += self.dense.cross_entropy(logits, vocab, targets, Some(*scale), self.bend);
                    let dx = &mut dx[r0 * width..(r0 + n) * width];
                    self.dense.linear_dx(logits, weight, dx, shape, false);
                    if p.trained {
                        self.dense.linear_dw(logits, x, &mut grads[p.range()], shape);
                    }
                    if let Some(b) = b.filter(|b| b.trained) {
                        self.dense.bias_back(logits, &mut grads[b.range()]);
                    }
                }
            }
        }
        loss
    }

    /// `routers`: the factor of what routers add for each row.
    fn backward(
        &mut self,
        tape: &Tape,
        op: &Op,
        weights: &[f32],
        grads: &mut [f32],
        routers: f32,
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
                if let Some(positions) = positions.filter(|_| input.starts.is_empty()) {
                    let start = list[positions].range().start;
                    let used = start..start + tape.length * self.width;
                    let [table, positions] = parts(grads, [list[*table].range(), used]);
                    dense.embed_back(input.ids, dy, table, Some(positions));
                } else {
                    dense.embed_back(input.ids, dy, &mut grads[list[*table].range()], None);
                    if let Some(positions) = positions {
                        let (width, grads) = (self.width, &mut grads[list[positions].range()]);
                        for (dy, p) in dy.chunks_exact(width).zip(inside(tape.length, input.starts)) {
                            let position = &mut grads[p * width..(p + 1) * width];
                            position.iter_mut().zip(dy).for_each(|(g, d)| *g += d);
                        }
                    }
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
            Op::Attention { shape, sinks, qkv, y, lse, dqkv, dy, index } => {
                let heads = heads(shape, sinks.map_or(&[], w), tape, input, *index);
                let places = [at(*qkv), at(*y), at(*lse), at(*dqkv), at(*dy)];
                let [qkv, y, lse, dqkv, dy] = parts(&mut self.arena, places);
                dense.attention_back(&heads, qkv, y, lse, dy, dqkv);
                if let Some(p) = sinks.map(|id| &list[id]).filter(|p| p.trained) {
                    dense.sinks_back(&heads, y, lse, dy, &mut grads[p.range()]);
                }
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
            Op::Moe(m) => self.experts_back(tape, m, weights, grads, routers),
            Op::Switch { x, z, dx, dz, dy, .. } => {
                let places = [at(*x), at(*z), at(*dx), at(*dz), at(*dy)];
                let [x, z, dx, dz, dy] = parts(&mut self.arena, places);
                moe::switch_back(x, z, dy, dx, dz);
            }
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
        let period = if Frequencies::vary(&self.ropes[*table]) { tape.rows() } else { tape.length };
        let n = period * self.half[*table];
        let (cos, sin) = &self.tables[*table];
        for what in parts {
            let x = &mut self.arena[x.clone()];
            self.dense.rope(x, *stride, *what, period, &cos[..n], &sin[..n], back);
        }
    }
}

/// For every row its place in its document, of which it is as far in its window as the document's beginning.
fn inside(length: usize, starts: &[u32]) -> impl Iterator<Item = usize> {
    starts.iter().enumerate().map(move |(row, start)| (row % length).saturating_sub(*start as usize))
}

/// Cosines and sines of each row's angles where they depend on the length. It is that of the document, of which a
/// sequence may hold a part: so it has the same alone.
fn of_documents(rope: &Rope, tape: &Tape, starts: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let (mut cos, mut sin, mut row) = (Vec::new(), Vec::new(), 0);
    while row < tape.rows() {
        let border = (row / tape.length + 1) * tape.length;
        let end = (row..border).find(|r| starts.get(*r) != starts.get(row)).unwrap_or(border);
        let length = (end - row) as u32;
        let (c, s) = Frequencies::new(rope, length).tables(length);
        cos.extend(c);
        sin.extend(s);
        row = end;
    }
    (cos, sin)
}

fn heads<'a>(
    shape: &'a crate::tape::Heads,
    sinks: &'a [f32],
    tape: &Tape,
    input: &Input<'a>,
    index: usize,
) -> Heads<'a> {
    Heads {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        dim: shape.dim,
        value_dim: shape.value_dim,
        length: tape.length,
        scale: shape.scale,
        window: shape.window,
        softcap: shape.softcap,
        slopes: &shape.slopes,
        sinks,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Recompute;
    use crate::design::ModelConfig;
    use crate::twin::designs;

    #[test]
    fn documents_side_by_side_in_a_window_are_what_they_are_alone() {
        for (name, model) in designs() {
            let (arch, spec) = model.spec().unwrap();
            let params = Params::new(arch, &spec, false);
            let weights: Vec<f32> = params.init(3, spec.layers.len()).iter().map(|w| w * 4.0).collect();
            let (ids, targets) = ([7, 3, 11, 2, 5, 13], [3, 11, 2, 5, 13, 1]);
            let pass = |batch: usize, starts: &[u32]| {
                let tape = Tape::record(&spec, &params, (batch, 6 / batch), Some(Recompute::None));
                let mut engine = Engine::new(&spec, &params, 2, RouterLosses::default());
                let mut grads = vec![0.0; params.total];
                let want = Want::Gradient { scale: 1.0, grads: &mut grads };
                let input = Input { ids: &ids, targets: &targets, starts, key: (0, 0) };
                (engine.run(&tape, &weights, &input, want), grads)
            };
            let (together, alone) = (pass(1, &[0, 0, 0, 3, 3, 3]), pass(2, &[]));
            assert!((together.0 - alone.0).abs() < 1e-4, "{name}: {}, alone {}", together.0, alone.0);
            let size = alone.1.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            for (a, b) in together.1.iter().zip(&alone.1) {
                assert!((a - b).abs() < 3e-4 * size, "{name}: a gradient of {a}, alone {b}");
            }
        }
    }

    #[test]
    fn rotary_tables_reach_as_far_as_the_longest_pass_however_long_the_context_is() {
        let model = ModelConfig { vocab: 19, context: 1 << 24, ..ModelConfig::tiny() };
        let (arch, spec) = model.spec().unwrap();
        let params = Params::new(arch, &spec, false);
        let weights = params.init(1, spec.layers.len());
        let mut engine = Engine::new(&spec, &params, 1, RouterLosses::default());
        let mut logits = |length: usize, ids: &[u32]| {
            let tape = Tape::record(&spec, &params, (1, length), None);
            let mut out = Vec::new();
            let input = Input { ids, targets: ids, starts: &[], key: (0, 0) };
            engine.run(&tape, &weights, &input, Want::Logits(&mut out));
            (out, engine.tables.iter().map(|t| t.0.len()).collect::<Vec<_>>())
        };
        let half = model.head_dim() / 2;
        let (short, reach) = logits(3, &[1, 2, 3]);
        assert_eq!(reach, [3 * half]);
        let (long, reach) = logits(5, &[1, 2, 3, 4, 5]);
        assert_eq!(reach, [5 * half]);
        assert!(short.iter().zip(&long).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(logits(3, &[1, 2, 3]), (short, vec![5 * half]));
    }
}
