//! The tape: what one step of a model does, as a flat list of records, written once for a shape and replayed.
//!
//! ```text
//!   records    embed · (norm · linear qkv · rope · attention · linear out+x · norm · linear up · act · linear down+x)… · norm · head
//!   forward    the records in order; the head turns into loss and gradient at once
//!   backward   the records in reverse order
//!   arena      one vector; a buffer occupies its place from its first to its last use in that sequence
//! ```
//!
//! What each record saves for its gradient: linear its input, norm its input and (mean, rstd) per row, attention its
//! output and log-sum-exp, activations their input. The residual stream has one gradient buffer: a sum passes its
//! gradient on unchanged, so the buffer is shared and norms add to it.

use crate::config::{Family, ModelConfig};
use crate::params::{Params, Role};
use std::ops::Range;

/// A buffer of the arena.
pub(crate) type Buffer = usize;
/// A parameter by its place in [`Params::list`].
pub(crate) type Id = usize;

/// One record. `dx`, `dy` and the like are gradient buffers.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// `y` = rows of the table, plus learned positions.
    Embed {
        table: Id,
        positions: Option<Id>,
        y: Buffer,
        dy: Buffer,
    },
    /// LayerNorm with bias, RMSNorm without. `add`: `dx` already holds the gradient of later uses of `x`.
    Norm {
        x: Buffer,
        w: Id,
        b: Option<Id>,
        y: Buffer,
        stats: Buffer,
        dx: Buffer,
        dy: Buffer,
        add: bool,
    },
    /// `y = x·wᵀ + b + residual`.
    Linear {
        x: Buffer,
        w: Id,
        b: Option<Id>,
        residual: Option<Buffer>,
        y: Buffer,
        dx: Buffer,
        dy: Buffer,
    },
    /// Rotates queries and keys in place.
    Rope {
        x: Buffer,
        dx: Buffer,
    },
    /// `index` names the layer for dropout.
    Attention {
        qkv: Buffer,
        y: Buffer,
        lse: Buffer,
        dqkv: Buffer,
        dy: Buffer,
        index: usize,
    },
    /// In place in the gradient.
    Gelu {
        x: Buffer,
        y: Buffer,
        dy: Buffer,
    },
    SwiGlu {
        x: Buffer,
        y: Buffer,
        dx: Buffer,
        dy: Buffer,
    },
    /// Drops elements of `x` in place, and of its gradient.
    Dropout {
        x: Buffer,
        dx: Buffer,
        index: usize,
    },
    /// `y = x + branch`; `dbranch` takes a copy of the gradient.
    Add {
        x: Buffer,
        branch: Buffer,
        y: Buffer,
        dy: Buffer,
        dbranch: Buffer,
    },
    /// Logits of a chunk of rows at a time, their loss, the gradient of `x` and of `w`.
    Head {
        x: Buffer,
        w: Id,
        logits: Buffer,
        dx: Buffer,
    },
}

/// The records of one shape, and where their buffers lie.
#[derive(Clone, Debug)]
pub(crate) struct Tape {
    pub ops: Vec<Op>,
    /// Sequences and tokens per sequence.
    pub batch: usize,
    pub length: usize,
    /// Rows of logits that exist at a time.
    pub head_rows: usize,
    /// Where each buffer lies in the arena.
    places: Vec<Range<usize>>,
    /// Length of the arena.
    pub arena: usize,
}

impl Tape {
    pub fn rows(&self) -> usize {
        self.batch * self.length
    }

    /// The arena's part of a buffer.
    pub fn place(&self, b: Buffer) -> Range<usize> {
        self.places[b].clone()
    }

    /// Records the model for `batch` sequences of `length` tokens; with `train` buffers live until their gradients
    /// are made.
    pub fn record(m: &ModelConfig, params: &Params, batch: usize, length: usize, train: bool) -> Tape {
        let mut r = Recorder { m, params, rows: batch * length, ops: Vec::new(), sizes: Vec::new(), train };
        let head_rows = r.model();
        let Recorder { ops, sizes, .. } = r;
        let (places, arena) = arrange(&ops, &sizes, train);
        Tape { ops, batch, length, head_rows, places, arena }
    }
}

struct Recorder<'a> {
    m: &'a ModelConfig,
    params: &'a Params,
    rows: usize,
    ops: Vec<Op>,
    sizes: Vec<usize>,
    train: bool,
}

impl Recorder<'_> {
    fn buffer(&mut self, len: usize) -> Buffer {
        self.sizes.push(len);
        self.sizes.len() - 1
    }

    fn id(&self, role: Role, layer: usize) -> Id {
        self.params.find(role, layer).unwrap_or_else(|| unreachable!("a model of this family has {role:?}"))
    }

    /// The whole model; returns the rows of logits per chunk.
    fn model(&mut self) -> usize {
        let (m, rows, d) = (self.m, self.rows, self.m.width);
        let gpt2 = m.family == Family::Gpt2;
        let dropping = m.dropout > 0.0 && self.train;
        // The gradient of the residual stream, one buffer from the last norm down to the embedding.
        let stream = self.buffer(rows * d);
        let mut x = self.buffer(rows * d);
        let positions = gpt2.then(|| self.id(Role::Positions, 0));
        self.ops.push(Op::Embed { table: self.id(Role::Embed, 0), positions, y: x, dy: stream });
        if dropping {
            self.ops.push(Op::Dropout { x, dx: stream, index: 0 });
        }
        for layer in 0..m.layers {
            let (q, kv) = (m.heads * m.head_dim(), m.kv_heads * m.head_dim());
            let (h, dh) = self.norm(x, stream, Role::AttentionNorm, Role::AttentionNormBias, layer, true);
            let (qkv, dqkv) = self.linear(h, dh, Role::Qkv, Role::QkvBias, layer, q + 2 * kv);
            if !gpt2 {
                self.ops.push(Op::Rope { x: qkv, dx: dqkv });
            }
            let (y, dy) = (self.buffer(rows * q), self.buffer(rows * q));
            let lse = self.buffer(rows * m.heads);
            self.ops.push(Op::Attention { qkv, y, lse, dqkv, dy, index: 3 * layer + 1 });
            x = self.residual(
                x,
                stream,
                y,
                dy,
                [Role::Out, Role::OutBias],
                layer,
                dropping.then_some(3 * layer + 2),
            );

            let (h, dh) = self.norm(x, stream, Role::FeedNorm, Role::FeedNormBias, layer, true);
            let width = if gpt2 { m.ffn } else { 2 * m.ffn };
            let (up, dup) = self.linear(h, dh, Role::Up, Role::UpBias, layer, width);
            let y = self.buffer(rows * m.ffn);
            let dy = if gpt2 { dup } else { self.buffer(rows * m.ffn) };
            self.ops.push(if gpt2 {
                Op::Gelu { x: up, y, dy }
            } else {
                Op::SwiGlu { x: up, y, dx: dup, dy }
            });
            x = self.residual(
                x,
                stream,
                y,
                dy,
                [Role::Down, Role::DownBias],
                layer,
                dropping.then_some(3 * layer + 3),
            );
        }
        let (h, dh) = self.norm(x, stream, Role::FinalNorm, Role::FinalNormBias, 0, false);
        // About a million logits at a time, in rows of 16.
        let head_rows =
            ((1usize << 20) / m.vocab).next_multiple_of(16).clamp(16, rows.next_multiple_of(16)).min(rows);
        let logits = self.buffer(head_rows * m.vocab);
        let w = self.id(if m.tied { Role::Embed } else { Role::Head }, 0);
        self.ops.push(Op::Head { x: h, w, logits, dx: dh });
        head_rows
    }

    fn norm(&mut self, x: Buffer, dx: Buffer, w: Role, b: Role, layer: usize, add: bool) -> (Buffer, Buffer) {
        let (size, stats) = (self.rows * self.m.width, self.buffer(self.rows * 2));
        let (y, dy) = (self.buffer(size), self.buffer(size));
        let (w, b) = (self.id(w, layer), self.params.find(b, layer));
        self.ops.push(Op::Norm { x, w, b, y, stats, dx, dy, add });
        (y, dy)
    }

    fn linear(
        &mut self,
        x: Buffer,
        dx: Buffer,
        w: Role,
        b: Role,
        layer: usize,
        n: usize,
    ) -> (Buffer, Buffer) {
        let (y, dy) = (self.buffer(self.rows * n), self.buffer(self.rows * n));
        let (w, b) = (self.id(w, layer), self.params.find(b, layer));
        self.ops.push(Op::Linear { x, w, b, residual: None, y, dx, dy });
        (y, dy)
    }

    /// `x + linear(h)`, with dropout of the branch if `drop` names one.
    #[allow(clippy::too_many_arguments)] // the two streams with their gradients, the layer, the dropout
    fn residual(
        &mut self,
        x: Buffer,
        stream: Buffer,
        h: Buffer,
        dh: Buffer,
        [w, b]: [Role; 2],
        layer: usize,
        drop: Option<usize>,
    ) -> Buffer {
        let size = self.rows * self.m.width;
        let (w, b) = (self.id(w, layer), self.params.find(b, layer));
        let y = self.buffer(size);
        let Some(index) = drop else {
            self.ops.push(Op::Linear { x: h, w, b, residual: Some(x), y, dx: dh, dy: stream });
            return y;
        };
        let (branch, dbranch) = (self.buffer(size), self.buffer(size));
        self.ops.push(Op::Linear { x: h, w, b, residual: None, y: branch, dx: dh, dy: dbranch });
        self.ops.push(Op::Dropout { x: branch, dx: dbranch, index });
        self.ops.push(Op::Add { x, branch, y, dy: stream, dbranch });
        y
    }
}

impl Op {
    /// The buffers that the forward pass reads or writes.
    fn forward(&self) -> Vec<Buffer> {
        match *self {
            Op::Embed { y, .. } => vec![y],
            Op::Norm { x, y, stats, .. } => vec![x, y, stats],
            Op::Linear { x, residual, y, .. } => [Some(x), residual, Some(y)].into_iter().flatten().collect(),
            Op::Rope { x, .. } | Op::Dropout { x, .. } => vec![x],
            Op::Attention { qkv, y, lse, .. } => vec![qkv, y, lse],
            Op::Gelu { x, y, .. } | Op::SwiGlu { x, y, .. } => vec![x, y],
            Op::Add { x, branch, y, .. } => vec![x, branch, y],
            Op::Head { x, logits, .. } => vec![x, logits],
        }
    }

    /// The buffers that the backward pass reads or writes.
    fn backward(&self) -> Vec<Buffer> {
        match *self {
            Op::Embed { dy, .. } => vec![dy],
            Op::Norm { x, stats, dx, dy, .. } => vec![x, stats, dx, dy],
            Op::Linear { x, dx, dy, .. } => vec![x, dx, dy],
            Op::Rope { dx, .. } | Op::Dropout { dx, .. } => vec![dx],
            Op::Attention { qkv, y, lse, dqkv, dy, .. } => vec![qkv, y, lse, dqkv, dy],
            Op::Gelu { x, dy, .. } => vec![x, dy],
            Op::SwiGlu { x, dx, dy, .. } => vec![x, dx, dy],
            Op::Add { dy, dbranch, .. } => vec![dy, dbranch],
            Op::Head { x, logits, dx, .. } => vec![x, logits, dx],
        }
    }
}

/// Gives every buffer a place, so that no two that live at the same time overlap: first fit by order of birth.
fn arrange(ops: &[Op], sizes: &[usize], train: bool) -> (Vec<Range<usize>>, usize) {
    let mut life = vec![None; sizes.len()];
    let mut touch = |b: Buffer, time: usize| {
        let (first, _) = *life[b].get_or_insert((time, time));
        life[b] = Some((first, time));
    };
    for (time, op) in ops.iter().enumerate() {
        op.forward().into_iter().for_each(|b| touch(b, time));
    }
    if train {
        // The head's backward pass happens at its forward time.
        for (back, op) in ops.iter().rev().enumerate() {
            op.backward().into_iter().for_each(|b| touch(b, ops.len() - 1 + back));
        }
    }
    let mut order: Vec<Buffer> = (0..sizes.len()).filter(|b| life[*b].is_some()).collect();
    order.sort_by_key(|b| (life[*b], *b));
    let mut places = vec![0..0; sizes.len()];
    let mut placed: Vec<Buffer> = Vec::new();
    let mut total = 0;
    for b in order {
        let (first, last) = life[b].unwrap_or_default();
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|o| life[**o].is_some_and(|(f, l)| f <= last && first <= l))
            .map(|o| places[*o].clone())
            .collect();
        taken.sort_by_key(|r| r.start);
        let need = sizes[b].next_multiple_of(16);
        let start = taken
            .iter()
            .fold(0, |at, r| if at + need <= r.start { at } else { at.max(r.end.next_multiple_of(16)) });
        places[b] = start..start + sizes[b];
        total = total.max(start + need);
        placed.push(b);
    }
    (places, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_live_together_never_overlap() {
        for family in [Family::Llama, Family::Gpt2] {
            for dropout in [0.0, 0.1] {
                let m = ModelConfig { family, dropout, vocab: 50, ..ModelConfig::tiny() };
                let params = Params::new(&m);
                for train in [true, false] {
                    let tape = Tape::record(&m, &params, 2, 8, train);
                    for op in &tape.ops {
                        for used in [op.forward(), if train { op.backward() } else { Vec::new() }] {
                            for (i, a) in used.iter().enumerate() {
                                for b in &used[..i] {
                                    let (a, b) = (tape.place(*a), tape.place(*b));
                                    assert!(a.end <= b.start || b.end <= a.start, "{op:?}: {a:?} {b:?}");
                                    assert!(a.end <= tape.arena && b.end <= tape.arena);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
