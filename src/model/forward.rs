//! The forward pass: m tokens through every layer.
//!
//! ```text
//! x = embedding                                   [m, width]
//! each layer:  x += post(attention(norm(x)));  x += post(ffn(norm(x)))
//! logits = head(norm(x))                          of the rows that are asked for
//! ```
//! Rows may belong to several sequences: each carries its page table and position, and what a row computes does not
//! depend on its company. Buffers live in [`Scratch`] and grow to the largest use, so decoding allocates nothing.
//! It does not know where tokens come from, nor which sequences share pages.

use std::ops::Range;

use llm_kernels::{GroupRank, Input, Level, RouteSpec, Row, Scoring};

use super::adapt::Adapt;
use super::arch::LayerSlot as L;
use super::rope::Frequencies;
pub(crate) use super::scratch::Scratch;
use super::spec::{self, Attention, Ffn, Spec};
use crate::adapter::Use;
use crate::backend::{Backend, Norm, Pages, Product, Rotation, Runs, Scores};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::kv::store::Store;
use crate::tensor::{Matrix, Tensor, Vector};
use crate::weights::{
    AttentionWeights, ExpertsWeights, FfnWeights, HeadsWeights, LatentQuery, LatentWeights, Linear, Weights,
};

/// Tokens to run.
pub(crate) struct Batch<'a> {
    /// Ids, below the vocabulary.
    pub(crate) ids: &'a [u32],
    /// Each token's page table, with room for its position, and position, by group of layers: `[groups, m]`.
    pub(crate) rows: &'a [Row<'a>],
    /// Frequencies of the spec's rotary tables, for so many rows each: sequences may differ in them.
    pub(crate) ropes: &'a [(usize, &'a [Frequencies])],
    /// Adapters for so many rows each; empty where no row has any.
    pub(crate) adapters: &'a [(usize, &'a [Use])],
    /// The tokens whose results are asked for behind the last layer; `None`: all. At least one.
    pub(crate) wanted: Option<&'a [Range<usize>]>,
    pub(crate) level: Level,
}

/// A model on a device.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) weights: &'a Weights,
    pub(crate) device: &'a dyn Backend,
}

impl Forward<'_> {
    /// Runs `batch` through all layers: keys and values go to `pool`, the residual stream stays in `s.x`.
    /// `cancel` is asked before every layer.
    ///
    /// # Errors
    /// What `cancel` answers. Pages of the batch's positions then hold anything.
    pub(crate) fn layers(
        &self,
        batch: &Batch<'_>,
        pool: &mut Store,
        s: &mut Scratch,
        cancel: Option<&Cancel>,
    ) -> Result<()> {
        let (spec, w, device) = (self.spec, self.weights, self.device);
        let (m, width) = (batch.ids.len(), spec.width as usize);
        // also for the logits of these rows
        s.input.set_fast(batch.level == Level::Fast);
        for (i, angles) in s.angles.iter_mut().enumerate() {
            angles.clear();
            let mut rows = batch.rows[..m].iter().map(|row| row.position);
            for (n, tables) in batch.ropes {
                tables[i].angles(rows.by_ref().take(*n), angles);
            }
        }

        device.embed(&w.embedding, batch.ids, spec.embedding_scale, &mut s.x);
        if let Some(join) = &w.join {
            self.join(join, m, s);
        }
        if let Some(positions) = &w.positions {
            s.choice.rows.clear();
            s.choice.rows.extend(batch.rows[..m].iter().map(|row| row.position));
            device.embed(positions, &s.choice.rows, 1.0, &mut s.h);
            device.add(m * width, &mut s.x, &s.h);
        }
        if let Some(norm) = &w.embedding_norm {
            device.norm_in_place(norm, m, &mut s.x);
        }

        s.packed = false;
        for (i, (layer, weights)) in spec.layers.iter().zip(&w.layers).enumerate() {
            cancel.map_or(Ok(()), Cancel::check)?;
            s.packed = i + 1 == spec.layers.len() && !layer.parallel && self.drops(batch, s);
            let adapt = Adapt { device, rows: batch.adapters, layer: i };
            let first = match &weights.attention {
                AttentionWeights::Heads(w) => &w.q,
                AttentionWeights::Latent(w) => &w.kv_down,
            };
            self.enter(weights.attention_norm.as_ref(), m, first, s);
            match (&layer.attention, &weights.attention) {
                (Attention::Heads(h), AttentionWeights::Heads(w)) => self.heads(h, w, i, batch, pool, s),
                (Attention::Latent(a), AttentionWeights::Latent(w)) => self.latent(a, w, i, batch, pool, s),
                _ => unreachable!("weights follow from the spec"),
            }
            let m = if s.packed { self.pack(batch.wanted.unwrap_or_default(), s) } else { m };
            if let Some(norm) = &weights.attention_post_norm {
                device.norm_in_place(norm, m, &mut s.y);
            }
            if layer.parallel {
                std::mem::swap(&mut s.y, &mut s.z); // added after the other block has read x
            } else {
                device.add(m * width, &mut s.x, &s.y);
            }

            match (&weights.ffn, &weights.ffn_norm) {
                (FfnWeights::Plain { up: first, .. } | FfnWeights::Gated { gate: first, .. }, norm) => {
                    self.enter(norm.as_ref(), m, first, s);
                }
                (FfnWeights::Experts(_), Some(norm)) => device.norm(norm, m, &s.x, &mut s.h),
                (FfnWeights::Experts(_), None) => copy_all(device, m * width, &s.x, &mut s.h),
            }
            self.ffn(&layer.ffn, &weights.ffn, m, adapt, s);
            if let Some(norm) = &weights.ffn_post_norm {
                device.norm_in_place(norm, m, &mut s.y);
            }
            if layer.parallel {
                device.add(m * width, &mut s.x, &s.z);
            }
            device.add(m * width, &mut s.x, &s.y);
        }
        Ok(())
    }

    /// The input of a block's products, of which `first` is the first: x, normed.
    fn enter(&self, norm: Option<&Norm>, m: usize, first: &Linear, s: &mut Scratch) {
        match norm {
            Some(norm) => self.device.norm_input(norm, m, &s.x, &mut s.input, first.weight.ty),
            None => self.device.load(&mut s.input, &s.x, m, self.spec.width as usize),
        }
    }

    /// Multi-head attention with grouped keys and values: the input to `s.y`, `[m, width]`.
    fn heads(
        &self,
        h: &spec::Heads,
        w: &HeadsWeights,
        layer: usize,
        batch: &Batch<'_>,
        pool: &mut Store,
        s: &mut Scratch,
    ) {
        let device = self.device;
        let (m, dim) = (batch.ids.len(), h.head_dim as usize);
        let (heads, kv_heads) = (h.heads as usize, h.kv_heads as usize);
        let adapt = Adapt { device, rows: batch.adapters, layer };

        // q [m, heads, dim]; k, v [m, kv_heads, dim]
        device.matmul(
            &mut s.input,
            &mut [product(&w.q, &mut s.q), product(&w.k, &mut s.k), product(&w.v, &mut s.v)],
        );
        adapt.add(L::Q, &mut s.input, &mut s.low, &mut s.q);
        adapt.add(L::K, &mut s.input, &mut s.low, &mut s.k);
        adapt.add(L::V, &mut s.input, &mut s.low, &mut s.v);
        if let (Some((q, k)), Some(norm)) = (&w.qk_norm, &h.qk_norm) {
            // Over a whole row, or over each head.
            device.norm_in_place(q, if norm.whole { m } else { m * heads }, &mut s.q);
            device.norm_in_place(k, if norm.whole { m } else { m * kv_heads }, &mut s.k);
        }
        if let Some(rope) = h.rope {
            let (table, angles) = (&self.spec.ropes[rope as usize], &s.angles[rope as usize]);
            let rotation =
                |heads| Rotation { heads, head_dim: dim, dim: table.dim as usize, pairs: table.pairs };
            device.rope(&mut s.q, m, rotation(heads), angles);
            device.rope(&mut s.k, m, rotation(kv_heads), angles);
        }

        let pages = pages(pool, layer, batch);
        device.kv_write(&pages, pool.bytes_mut(), &s.k, Some(&s.v));
        let scores = Scores {
            heads,
            scale: h.scale,
            window: h.window,
            softcap: h.softcap,
            alibi: &h.alibi,
            sinks: w.sinks.as_ref(),
            level: batch.level,
        };
        device.attention(&pages, pool.bytes(), &scores, &s.q, &mut s.attended);
        self.attended(m, heads * dim, s);
        self.linear(&w.out.weight, w.out.bias.as_ref(), &mut s.input, &mut s.y);
        adapt.add(L::Out, &mut s.input, &mut s.low, &mut s.y);
    }

    /// Multi-head latent attention (arXiv:2405.04434) in its absorbed form: the input to `s.y`.
    ///
    /// A token's keys and values are one vector c; head i's key is K_i c and its value V_i c. So q_i · (K_i c) =
    /// (K_iᵀ q_i) · c, and Σ p V_i c = V_i Σ p c: the matrices move to the query and to the output, and attention
    /// runs over c and one rotated key that all heads share.
    fn latent(
        &self,
        a: &spec::Latent,
        w: &LatentWeights,
        layer: usize,
        batch: &Batch<'_>,
        pool: &mut Store,
        s: &mut Scratch,
    ) {
        let device = self.device;
        let (m, heads) = (batch.ids.len(), a.heads as usize);
        let (nope, rope, value) = (a.nope_dim as usize, a.rope_dim as usize, a.value_dim as usize);
        let rank = a.kv_rank as usize;
        let (head, key) = (nope + rope, rank + rope);
        // none where no part of a head is rotated
        let table = if rope > 0 { Some((&self.spec.ropes[a.rope as usize], a.rope as usize)) } else { None };
        let rows = |start, stride| Runs { start, outer: stride, inner: 0 };
        let adapt = Adapt { device, rows: batch.adapters, layer };

        // k [m, rank + rope]: the compressed vector, normed, and the shared key, rotated
        self.linear(&w.kv_down.weight, w.kv_down.bias.as_ref(), &mut s.input, &mut s.k);
        adapt.add(L::KvDown, &mut s.input, &mut s.low, &mut s.k);
        device.copy([m, 1], rank, (&s.k, rows(0, key)), (&mut s.v, rows(0, rank)));
        device.norm_in_place(&w.kv_norm, m, &mut s.v);
        device.copy([m, 1], rank, (&s.v, rows(0, rank)), (&mut s.k, rows(0, key)));
        let rotation = |heads, pairs| Rotation { heads, head_dim: rope, dim: rope, pairs };
        if let Some((table, index)) = table {
            device.copy([m, 1], rope, (&s.k, rows(rank, key)), (&mut s.v, rows(0, rope)));
            device.rope(&mut s.v, m, rotation(1, table.pairs), &s.angles[index]);
            device.copy([m, 1], rope, (&s.v, rows(0, rope)), (&mut s.k, rows(rank, key)));
        }

        // q [m, heads, nope + rope]
        match &w.q {
            LatentQuery::Whole(q) => {
                self.linear(q, None, &mut s.input, &mut s.q);
                adapt.add(L::Q, &mut s.input, &mut s.low, &mut s.q);
            }
            LatentQuery::Compressed { down, norm, up } => {
                self.linear(&down.weight, down.bias.as_ref(), &mut s.input, &mut s.v);
                adapt.add(L::QDown, &mut s.input, &mut s.low, &mut s.v);
                device.norm_in_place(norm, m, &mut s.v);
                device.load(&mut s.input, &s.v, m, down.weight.rows);
                self.linear(up, None, &mut s.input, &mut s.q);
                adapt.add(L::QUp, &mut s.input, &mut s.low, &mut s.q);
            }
        }
        // b [heads, m, rank] = K_iᵀ q_i of a [heads, m, nope]
        let by_row = |start, head: usize| Runs { start, outer: heads * head, inner: head };
        let by_head = |width: usize| Runs { start: 0, outer: width, inner: m * width };
        device.copy([m, heads], nope, (&s.q, by_row(0, head)), (&mut s.a, by_head(nope)));
        device.load(&mut s.input, &s.a, heads * m, nope);
        head_groups(heads, m, &mut s.choice.groups);
        device.matmul_stack(&mut s.input, &w.k_absorb, None, &s.choice.groups, &mut s.b);
        // a [m, heads, rope], rotated; then q [m, heads, rank + rope]
        if let Some((table, index)) = table {
            device.copy([m, heads], rope, (&s.q, by_row(nope, head)), (&mut s.a, by_row(0, rope)));
            device.rope(&mut s.a, m, rotation(heads, table.pairs), &s.angles[index]);
        }
        device.copy([m, heads], rank, (&s.b, by_head(rank)), (&mut s.q, by_row(0, key)));
        if rope > 0 {
            device.copy([m, heads], rope, (&s.a, by_row(0, rope)), (&mut s.q, by_row(rank, key)));
        }

        let pages = pages(pool, layer, batch);
        device.kv_write(&pages, pool.bytes_mut(), &s.k, None);
        let scores = Scores {
            heads,
            scale: a.scale,
            window: None,
            softcap: None,
            alibi: &[],
            sinks: None,
            level: batch.level,
        };
        // attended [m, heads, rank] → b [heads, m, value] → attended [m, heads, value]
        device.attention(&pages, pool.bytes(), &scores, &s.q, &mut s.attended);
        device.copy([m, heads], rank, (&s.attended, by_row(0, rank)), (&mut s.a, by_head(rank)));
        device.load(&mut s.input, &s.a, heads * m, rank);
        device.matmul_stack(&mut s.input, &w.v_absorb, None, &s.choice.groups, &mut s.b);
        device.copy([m, heads], value, (&s.b, by_head(value)), (&mut s.attended, by_row(0, value)));
        self.attended(m, heads * value, s);
        self.linear(&w.out.weight, w.out.bias.as_ref(), &mut s.input, &mut s.y);
        adapt.add(L::Out, &mut s.input, &mut s.low, &mut s.y);
    }

    /// A feed-forward block: the input, or of experts `s.h`, to `s.y`.
    fn ffn(&self, ffn: &Ffn, w: &FfnWeights, m: usize, adapt: Adapt<'_>, s: &mut Scratch) {
        let device = self.device;
        match (ffn, w) {
            (Ffn::Plain(d), FfnWeights::Plain { up, down }) => {
                // down(act(up(h)))
                let inner = d.inner as usize;
                self.linear(&up.weight, up.bias.as_ref(), &mut s.input, &mut s.up);
                adapt.add(L::Up, &mut s.input, &mut s.low, &mut s.up);
                device.activate(d.activation, m * inner, &mut s.up);
                device.load(&mut s.input, &s.up, m, inner);
                self.linear(&down.weight, down.bias.as_ref(), &mut s.input, &mut s.y);
                adapt.add(L::Down, &mut s.input, &mut s.low, &mut s.y);
            }
            (Ffn::Gated(d), FfnWeights::Gated { gate, up, down }) => {
                // down(act(gate(h)) · up(h))
                let inner = d.inner as usize;
                device.matmul(&mut s.input, &mut [product(gate, &mut s.gate), product(up, &mut s.up)]);
                adapt.add(L::Gate, &mut s.input, &mut s.low, &mut s.gate);
                adapt.add(L::Up, &mut s.input, &mut s.low, &mut s.up);
                let next = down.weight.ty;
                device.gated_input(d.activation, [m, inner], &s.gate, &s.up, &mut s.input, next);
                self.linear(&down.weight, down.bias.as_ref(), &mut s.input, &mut s.y);
                adapt.add(L::Down, &mut s.input, &mut s.low, &mut s.y);
            }
            (Ffn::Experts(x), FfnWeights::Experts(w)) => self.experts(x, w, m, adapt, s),
            _ => unreachable!("weights follow from the spec"),
        }
    }

    /// A mixture of experts: `s.h` to `s.y`. Rows are gathered by expert, run in one product per matrix, and added in
    /// ascending order of expert.
    fn experts(&self, x: &spec::Experts, w: &ExpertsWeights, m: usize, adapt: Adapt<'_>, s: &mut Scratch) {
        let device = self.device;
        let (width, inner) = (self.spec.width as usize, x.expert.inner as usize);
        let (count, active) = (x.count as usize, x.active as usize);
        let slots = m * active;

        device.load(&mut s.input, &s.h, m, width);
        self.linear(&w.router.weight, w.router.bias.as_ref(), &mut s.input, &mut s.router);
        let rule = route(x, w.choice_bias.as_ref());
        s.choice.ids.resize(slots, 0);
        s.choice.weights.resize(slots, 0.0);
        device.route(&s.router, m, &rule, &mut s.choice.ids, &mut s.choice.weights);
        s.choice.sort(count, active);

        // gate, up [m · active, inner] → expert [m · active, width] → y [m, width]
        device.gather(&mut s.input, &s.h, width, &s.choice.rows);
        let groups = &s.choice.groups;
        device.matmul_stack(&mut s.input, &w.gate.0, w.gate.1.as_ref(), groups, &mut s.gate);
        device.matmul_stack(&mut s.input, &w.up.0, w.up.1.as_ref(), groups, &mut s.up);
        let (kind, next) = (x.expert.activation, w.down.0.ty);
        device.gated_input(kind, [slots, inner], &s.gate, &s.up, &mut s.input, next);
        device.matmul_stack(&mut s.input, &w.down.0, w.down.1.as_ref(), groups, &mut s.expert);
        device.combine(m, width, &s.choice.rows, &s.choice.factors, &s.expert, &mut s.y);

        if let (Some(shape), Some(shared)) = (&x.shared, &w.shared) {
            let inner = shape.dense.inner as usize;
            device.load(&mut s.input, &s.h, m, width);
            let gate = Product { weight: &shared.gate, bias: None, out: &mut s.gate };
            let up = Product { weight: &shared.up, bias: None, out: &mut s.up };
            device.matmul(&mut s.input, &mut [gate, up]);
            adapt.add(L::SharedGate, &mut s.input, &mut s.low, &mut s.gate);
            adapt.add(L::SharedUp, &mut s.input, &mut s.low, &mut s.up);
            if let Some(switch) = &shared.switch {
                self.linear(switch, None, &mut s.input, &mut s.router);
                adapt.add(L::SharedSwitch, &mut s.input, &mut s.low, &mut s.router);
            }
            let (kind, next) = (shape.dense.activation, shared.down.ty);
            device.gated_input(kind, [m, inner], &s.gate, &s.up, &mut s.input, next);
            self.linear(&shared.down, None, &mut s.input, &mut s.expert);
            adapt.add(L::SharedDown, &mut s.input, &mut s.low, &mut s.expert);
            match &shared.switch {
                Some(_) => device.add_switched(m, width, &mut s.y, &s.expert, &mut s.router),
                None => device.add(m * width, &mut s.y, &s.expert),
            }
        }
    }

    /// out = input · weightᵀ + bias
    pub(super) fn linear(&self, weight: &Matrix, bias: Option<&Vector>, input: &mut Input, out: &mut Tensor) {
        self.device.matmul(input, &mut [Product { weight, bias, out }]);
    }
}

fn product<'a>(linear: &'a Linear, out: &'a mut Tensor) -> Product<'a> {
    Product { weight: &linear.weight, bias: linear.bias.as_ref(), out }
}

fn copy_all(device: &dyn Backend, n: usize, from: &Tensor, to: &mut Tensor) {
    let whole = Runs { start: 0, outer: 0, inner: 0 };
    device.copy([1, 1], n, (from, whole), (to, whole));
}

/// Head i takes rows i · m .. of the input.
fn head_groups(heads: usize, m: usize, groups: &mut Vec<(usize, Range<usize>)>) {
    groups.clear();
    groups.extend((0..heads).map(|head| (head, head * m..(head + 1) * m)));
}

fn pages<'a>(pool: &Store, layer: usize, batch: &Batch<'a>) -> Pages<'a> {
    let place = pool.shape().layers[layer];
    let m = batch.ids.len();
    let rows = &batch.rows[place.group * m..][..m];
    Pages { layout: place.layout, offset: place.offset, stride: pool.shape().bytes, rows }
}

impl From<spec::GroupRank> for GroupRank {
    fn from(rank: spec::GroupRank) -> GroupRank {
        match rank {
            spec::GroupRank::Max => GroupRank::Max,
            spec::GroupRank::TopTwo => GroupRank::TopTwo,
        }
    }
}

fn route<'a>(x: &spec::Experts, choice_bias: Option<&'a Vector>) -> RouteSpec<'a> {
    RouteSpec {
        scoring: match x.scoring {
            spec::Scoring::Softmax => Scoring::Softmax,
            spec::Scoring::SoftmaxOfChosen => Scoring::SoftmaxOfChosen,
            spec::Scoring::Sigmoid => Scoring::Sigmoid,
        },
        count: x.count as usize,
        active: x.active as usize,
        normalize: x.normalize,
        scale: x.scale,
        groups: x.groups as usize,
        active_groups: x.active_groups as usize,
        group_rank: x.group_rank.into(),
        choice_bias: choice_bias.map(Vector::values),
    }
}
