//! Writing the tape of a spec.

use std::collections::BTreeSet;
use std::ops::Range;

use llm::model::arch::{LayerSlot as L, Slot};
use llm::model::spec::{Activation, Attention, Ffn, Layer, Norm, NormKind, Pairs, Spec};
use llm::model::spec::{Experts, Heads as HeadsSpec, Latent};
use llm_kernels::dense::{Curve, Rotated, Slice};

use super::{Buffer, Heads, Id, Moe, Op};
use crate::params::Params;

/// A model's records.
pub(super) struct Recorded {
    pub ops: Vec<Op>,
    /// The records of each layer.
    pub layers: Vec<Range<usize>>,
    /// Of each buffer.
    pub sizes: Vec<usize>,
    /// The residual stream: the embedding, before its norm and behind it, and what layers make of it by adding.
    pub residual: BTreeSet<Buffer>,
    /// Rows of logits per chunk.
    pub head_rows: usize,
}

/// The records of `spec` over `rows` rows.
pub(super) fn model(spec: &Spec, params: &Params, rows: usize, dropping: bool) -> Recorded {
    let (ops, layers, sizes) = (Vec::new(), Vec::new(), Vec::new());
    let mut r = Recorder { spec, params, rows, ops, layers, sizes, residual: BTreeSet::new(), dropping };
    let head_rows = r.model();
    Recorded { ops: r.ops, layers: r.layers, sizes: r.sizes, residual: r.residual, head_rows }
}

/// Logits that exist at a time, about.
const LOGITS: usize = 1 << 24;

struct Recorder<'a> {
    spec: &'a Spec,
    params: &'a Params,
    rows: usize,
    ops: Vec<Op>,
    layers: Vec<Range<usize>>,
    sizes: Vec<usize>,
    residual: BTreeSet<Buffer>,
    dropping: bool,
}

/// A buffer and that of its gradient.
type Pair = (Buffer, Buffer);

pub(super) fn curve(activation: Activation) -> Curve {
    match activation {
        Activation::Silu => Curve::Silu,
        Activation::Gelu => Curve::Gelu,
        Activation::GeluTanh => Curve::GeluTanh,
        Activation::Relu => Curve::Relu,
        Activation::Relu2 => Curve::Relu2,
        Activation::ClampedSwiglu { alpha, limit } => Curve::ClampedSwiglu { alpha, limit },
    }
}

impl Recorder<'_> {
    fn buffer(&mut self, cols: usize) -> Buffer {
        self.sizes.push(self.rows * cols);
        self.sizes.len() - 1
    }

    fn pair(&mut self, cols: usize) -> Pair {
        (self.buffer(cols), self.buffer(cols))
    }

    /// A buffer that the residual stream goes through.
    fn residual(&mut self) -> Buffer {
        let b = self.buffer(self.spec.width as usize);
        self.residual.insert(b);
        b
    }

    fn id(&self, slot: Slot) -> Id {
        self.params.find(slot).unwrap_or_else(|| unreachable!("a model of this spec has {slot:?}"))
    }

    /// The whole model; returns the rows of logits per chunk.
    fn model(&mut self) -> usize {
        let (spec, width) = (self.spec, self.spec.width as usize);
        // The gradient of the residual stream, one buffer from the last norm down to the embedding.
        let stream = self.buffer(width);
        let mut x = self.residual();
        let positions = spec.learned_positions.map(|_| self.id(Slot::Positions));
        let (table, scale) = (self.id(Slot::Embedding), spec.embedding_scale);
        if let Some(norm) = spec.embedding_norm {
            // the embedding before its norm is of the stream, too
            let (raw, draw) = (self.residual(), self.buffer(width));
            self.ops.push(Op::Embed { table, positions, scale, y: raw, dy: draw });
            self.norm_into(
                (raw, draw),
                (x, stream),
                norm,
                Slot::EmbeddingNorm,
                Slot::EmbeddingNormBias,
                false,
            );
        } else {
            self.ops.push(Op::Embed { table, positions, scale, y: x, dy: stream });
        }
        if self.dropping {
            self.ops.push(Op::Dropout { x, dx: stream, index: 0 });
        }
        for (i, layer) in spec.layers.iter().enumerate() {
            let first = self.ops.len();
            x = self.layer(i, layer, x, stream);
            self.layers.push(first..self.ops.len());
        }
        let h = self.pair(width);
        self.norm_into((x, stream), h, spec.final_norm, Slot::FinalNorm, Slot::FinalNormBias, false);
        // As few parts as hold LOGITS each: every part reads the whole matrix, and its gradient.
        let (vocab, rows) = (spec.vocab as usize, self.rows);
        let parts = (rows * vocab).div_ceil(LOGITS);
        let head_rows = rows.div_ceil(parts).next_multiple_of(16).min(rows);
        self.sizes.push(head_rows * vocab);
        let logits = self.sizes.len() - 1;
        let w = self.id(if spec.tied { Slot::Embedding } else { Slot::Head });
        let b = self.params.find(Slot::HeadBias);
        self.ops.push(Op::Head { x: h.0, w, b, logits, dx: h.1 });
        head_rows
    }

    /// One layer of the stream `x`; returns the stream behind it.
    fn layer(&mut self, i: usize, layer: &Layer, x: Buffer, stream: Buffer) -> Buffer {
        let slot = |part| Slot::Layer(i as u32, part);
        let h = self.block_input(
            (x, stream),
            layer.attention_norm,
            slot(L::AttentionNorm),
            slot(L::AttentionNormBias),
        );
        let y = match &layer.attention {
            Attention::Heads(a) => self.heads(i, a, h),
            Attention::Latent(a) => self.latent(i, a, h),
        };
        let attended = Branch {
            end: End::Project { h: y, w: slot(L::Out), b: slot(L::OutBias) },
            post: layer.attention_post_norm,
            norm: [slot(L::AttentionPostNorm), slot(L::AttentionPostNormBias)],
            index: 3 * i + 2,
        };
        // side by side, both branches are ready before either is added: each takes a copy of the sum's gradient
        let (seen, beside) = if layer.parallel {
            (x, Some(self.branch(&attended)))
        } else {
            (self.join(x, stream, &attended), None)
        };
        let h = self.block_input((seen, stream), layer.ffn_norm, slot(L::FfnNorm), slot(L::FfnNormBias));
        let fed = Branch {
            end: self.feed(i, &layer.ffn, h),
            post: layer.ffn_post_norm,
            norm: [slot(L::FfnPostNorm), slot(L::FfnPostNormBias)],
            index: 3 * i + 3,
        };
        match beside {
            None => self.join(seen, stream, &fed),
            Some(attended) => {
                let fed = self.branch(&fed);
                let after = self.sum(x, stream, attended);
                self.sum(after, stream, fed)
            }
        }
    }

    /// The feed-forward block up to its last projection.
    fn feed(&mut self, i: usize, ffn: &Ffn, h: Input) -> End {
        let slot = |part| Slot::Layer(i as u32, part);
        let down = |h| End::Project { h, w: slot(L::Down), b: slot(L::DownBias) };
        match ffn {
            Ffn::Plain(d) => {
                let (x, dx) = self.linear(h, slot(L::Up), slot(L::UpBias), d.inner as usize);
                let y = self.buffer(d.inner as usize);
                self.ops.push(Op::Activate { curve: curve(d.activation), x, y, dy: dx });
                down((y, dx))
            }
            Ffn::Gated(d) => {
                down(self.gated(h, d.inner as usize, curve(d.activation), slot(L::Gate), slot(L::GateBias)))
            }
            Ffn::Experts(x) => End::Ready(self.experts(i, x, h)),
        }
    }

    /// What a block reads: the stream's norm, or the stream itself, to whose gradient the block then adds.
    fn block_input(&mut self, x: Pair, norm: Option<Norm>, w: Slot, b: Slot) -> Input {
        match norm {
            Some(norm) => {
                let h = self.pair(self.spec.width as usize);
                self.norm_into(x, h, norm, w, b, true);
                Input { h, add: false }
            }
            None => Input { h: x, add: true },
        }
    }

    fn norm_into(&mut self, (x, dx): Pair, (y, dy): Pair, norm: Norm, w: Slot, b: Slot, add: bool) {
        let stats = self.buffer(2);
        let (w, b) = (self.id(w), if norm.bias { Some(self.id(b)) } else { None });
        let center = norm.kind == NormKind::Layer;
        self.ops.push(Op::Norm { x, w, b, center, eps: norm.eps, y, stats, dx, dy, add });
    }

    fn linear(&mut self, input: Input, w: Slot, b: Slot, n: usize) -> Pair {
        let (y, dy) = self.pair(n);
        let (w, b) = (self.id(w), self.params.find(b));
        let Input { h: (x, dx), add } = input;
        self.ops.push(Op::Linear { x, w, b, residual: None, y, dx, dy, add });
        (y, dy)
    }

    /// Gate and up in one product, and the gated activation.
    fn gated(&mut self, h: Input, n: usize, curve: Curve, gate: Slot, bias: Slot) -> Pair {
        let (x, dx) = self.linear(h, gate, bias, 2 * n);
        let (y, dy) = self.pair(n);
        self.ops.push(Op::Gated { curve, n, x, y, dx, dy });
        (y, dy)
    }

    fn heads(&mut self, i: usize, a: &HeadsSpec, h: Input) -> Pair {
        let slot = |part| Slot::Layer(i as u32, part);
        let (heads, kv_heads, dim) = (a.heads as usize, a.kv_heads as usize, a.head_dim as usize);
        let shape = Heads {
            heads,
            kv_heads,
            dim,
            value_dim: dim,
            scale: a.scale,
            window: a.window.map_or(0, |w| w as usize),
            softcap: a.softcap.unwrap_or(0.0),
            slopes: a.alibi.clone(),
        };
        let stride = shape.stride();
        let (mut qkv, mut dqkv) = self.linear(h, slot(L::Q), slot(L::QBias), stride);
        if let Some(norm) = a.qk_norm {
            let (y, dy) = self.pair(stride);
            let part = |r: &mut Self, start: usize, n: usize, w: L| {
                let count = if norm.whole { 1 } else { n };
                (Slice { start, heads: count }, r.id(slot(w)), r.buffer(count * 2))
            };
            let parts = vec![part(self, 0, heads, L::QNorm), part(self, heads * dim, kv_heads, L::KNorm)];
            let eps = norm.norm.eps;
            self.ops.push(Op::SliceNorm { x: qkv, stride, parts, eps, y, dx: dqkv, dy });
            (qkv, dqkv) = (y, dy);
        }
        if let Some(table) = a.rope {
            let neighbours = self.spec.ropes[table as usize].pairs == Pairs::Neighbours;
            let what = Rotated { start: 0, step: dim, heads: heads + kv_heads, neighbours };
            self.ops.push(Op::Rope { x: qkv, stride, parts: vec![what], table: table as usize, dx: dqkv });
        }
        self.attend(i, shape, qkv, dqkv)
    }

    fn attend(&mut self, i: usize, shape: Heads, qkv: Buffer, dqkv: Buffer) -> Pair {
        let (y, dy) = self.pair(shape.heads * shape.value_dim);
        let lse = self.buffer(shape.heads);
        let sinks = self.params.find(Slot::Layer(i as u32, L::Sinks));
        self.ops.push(Op::Attention { shape, sinks, qkv, y, lse, dqkv, dy, index: 3 * i + 1 });
        (y, dy)
    }

    fn latent(&mut self, i: usize, a: &Latent, h: Input) -> Pair {
        let slot = |part| Slot::Layer(i as u32, part);
        let (heads, rank) = (a.heads as usize, a.kv_rank as usize);
        let (nope, rope) = (a.nope_dim as usize, a.rope_dim as usize);
        let dim = nope + rope;
        let shape = Heads {
            heads,
            kv_heads: heads,
            dim,
            value_dim: a.value_dim as usize,
            scale: a.scale,
            window: 0,
            softcap: 0.0,
            slopes: Vec::new(),
        };
        let parts = |r: &mut Self, w: L| vec![(Slice { start: 0, heads: 1 }, r.id(slot(w)), r.buffer(2))];
        // the compressed vector, normed, and the shared key, rotated; the queries, which are recorded later, come first
        // on the way back and write the gradient of h that this adds to
        let (c, dc) =
            self.linear(Input { add: true, ..h }, slot(L::KvDown), slot(L::KvDownBias), rank + rope);
        let (normed, dnormed) = self.pair(rank + rope);
        let of = parts(self, L::KvDownNorm);
        self.ops.push(Op::SliceNorm {
            x: c,
            stride: rank + rope,
            parts: of,
            eps: a.norm.eps,
            y: normed,
            dx: dc,
            dy: dnormed,
        });
        let (q, dq) = match a.q_rank {
            None => self.linear(h, slot(L::Q), slot(L::QBias), heads * dim),
            Some(n) => {
                let n = n as usize;
                let (x, dx) = self.linear(h, slot(L::QDown), slot(L::QDownBias), n);
                let (y, dy) = self.pair(n);
                let of = parts(self, L::QDownNorm);
                self.ops.push(Op::SliceNorm { x, stride: n, parts: of, eps: a.norm.eps, y, dx, dy });
                self.linear(Input { h: (y, dy), add: false }, slot(L::QUp), slot(L::QBias), heads * dim)
            }
        };
        if rope > 0 {
            let table = a.rope as usize;
            let neighbours = self.spec.ropes[table].pairs == Pairs::Neighbours;
            let of_q = Rotated { start: nope, step: dim, heads, neighbours };
            self.ops.push(Op::Rope { x: q, stride: heads * dim, parts: vec![of_q], table, dx: dq });
            let of_k = Rotated { start: rank, step: 0, heads: 1, neighbours };
            self.ops.push(Op::Rope { x: normed, stride: rank + rope, parts: vec![of_k], table, dx: dnormed });
        }
        let (qkv, dqkv) = self.pair(shape.stride());
        let (k, v) = (self.id(slot(L::KAbsorb)), self.id(slot(L::VAbsorb)));
        let expand =
            Op::Expand { shape: shape.clone(), rank, rope, k, v, q, c: normed, qkv, dq, dc: dnormed, dqkv };
        self.ops.push(expand);
        self.attend(i, shape, qkv, dqkv)
    }

    fn experts(&mut self, i: usize, x: &Experts, h: Input) -> Pair {
        let width = self.spec.width as usize;
        let slot = |part| Slot::Layer(i as u32, part);
        let (count, active, inner) = (x.count as usize, x.active as usize, x.expert.inner as usize);
        let shared = x.shared.map(|s| (s.dense.inner as usize, curve(s.dense.activation), s.gate));
        // the shared block is recorded first: on the way back the experts write the gradient of h, and it adds
        let beside = shared.map(|(n, curve, switched)| {
            let h = Input { add: true, ..h };
            let y = self.gated(h, n, curve, slot(L::SharedGate), slot(L::GateBias));
            let y = self.linear(Input { h: y, add: false }, slot(L::SharedDown), slot(L::DownBias), width);
            if switched { self.switched(h, y, slot(L::SharedSwitch), slot(L::GateBias)) } else { y }
        });
        let (y, dy) = self.pair(width);
        let moe = Moe {
            x: h.h.0,
            dx: h.h.1,
            add: h.add,
            router: self.id(slot(L::Router)),
            router_bias: self.params.find(slot(L::RouterBias)),
            choice_bias: self.params.find(slot(L::ChoiceBias)),
            gate: self.id(slot(L::ExpertGate)),
            up: self.id(slot(L::ExpertUp)),
            down: self.id(slot(L::ExpertDown)),
            biases: x.expert.bias.then(|| {
                [L::ExpertGateBias, L::ExpertUpBias, L::ExpertDownBias].map(|bias| self.id(slot(bias)))
            }),
            curve: curve(x.expert.activation),
            count,
            active,
            inner,
            scoring: x.scoring,
            normalize: x.normalize,
            scale: x.scale,
            groups: x.groups as usize,
            active_groups: x.active_groups as usize,
            group_rank: x.group_rank.into(),
            scores: self.buffer(count),
            gathered: self.buffer(active * width),
            up_out: self.buffer(active * 2 * inner),
            act: self.buffer(active * inner),
            out: self.buffer(active * width),
            dup: self.buffer(active * 2 * inner),
            dact: self.buffer(active * inner),
            y,
            dy,
            layer: i,
        };
        self.ops.push(Op::Moe(Box::new(moe)));
        match beside {
            None => (y, dy),
            Some((shared, dshared)) => {
                let sum = self.buffer(width);
                // the sum's gradient is that of the experts; the shared block takes a copy
                self.ops.push(Op::Add { x: y, branch: shared, y: sum, dy, dbranch: dshared });
                (sum, dy)
            }
        }
    }

    /// `x` times what a switch makes of the block's input `h`.
    fn switched(&mut self, h: Input, (x, dx): Pair, w: Slot, b: Slot) -> Pair {
        let (z, dz) = self.linear(h, w, b, 1);
        let (y, dy) = self.pair(self.spec.width as usize);
        self.ops.push(Op::Switch { x, z, y, dx, dz, dy });
        (y, dy)
    }

    /// `x` plus a block's branch.
    fn join(&mut self, x: Buffer, stream: Buffer, b: &Branch) -> Buffer {
        if let (End::Project { h: (h, dh), w, b: bias }, None, false) = (&b.end, b.post, self.dropping) {
            let y = self.residual();
            let (w, bias) = (self.id(*w), self.params.find(*bias));
            self.ops.push(Op::Linear {
                x: *h,
                w,
                b: bias,
                residual: Some(x),
                y,
                dx: *dh,
                dy: stream,
                add: false,
            });
            return y;
        }
        let branch = self.branch(b);
        self.sum(x, stream, branch)
    }

    /// A block's branch: projected, normed and dropped where the layer asks.
    fn branch(&mut self, b: &Branch) -> Pair {
        let width = self.spec.width as usize;
        let mut branch = match b.end {
            End::Project { h, w, b } => self.linear(Input { h, add: false }, w, b, width),
            End::Ready(pair) => pair,
        };
        if let Some(norm) = b.post {
            let normed = self.pair(width);
            self.norm_into(branch, normed, norm, b.norm[0], b.norm[1], false);
            branch = normed;
        }
        if self.dropping {
            self.ops.push(Op::Dropout { x: branch.0, dx: branch.1, index: b.index });
        }
        branch
    }

    fn sum(&mut self, x: Buffer, stream: Buffer, (branch, dbranch): Pair) -> Buffer {
        let y = self.residual();
        self.ops.push(Op::Add { x, branch, y, dy: stream, dbranch });
        y
    }
}

/// What a block reads. `add`: its gradient buffer already holds something when the block comes to it on the way back.
#[derive(Clone, Copy)]
struct Input {
    h: Pair,
    add: bool,
}

/// What a block adds to the stream.
struct Branch {
    end: End,
    post: Option<Norm>,
    /// Weight and bias of that norm.
    norm: [Slot; 2],
    /// Names it for dropout.
    index: usize,
}

/// The end of a block: what its last projection reads, or a branch that needs none.
enum End {
    Project { h: Pair, w: Slot, b: Slot },
    Ready(Pair),
}
