//! The list of a model's tensors: which slots a [`Spec`] has and their shapes, in the order of the file.
//!
//! The shape follows from the spec alone, so an architecture only says for each slot where it comes from.

use super::arch::{LayerSlot as L, Rows, Slot, Source, Take, Want};
use super::spec::{Attention, Experts, Ffn, Heads, Latent, Layer, Norm, Spec};

/// Where a slot comes from, as an architecture says it.
pub(crate) struct Origin {
    name: String,
    sources: Vec<Source>,
    plus: f32,
}

impl Origin {
    /// One checkpoint tensor as it is, under its own name.
    pub(crate) fn plain(name: impl Into<String>, shape: &[u64]) -> Self {
        let name = name.into();
        let source = Source { name: name.clone(), shape: shape.to_vec(), take: Take::All };
        Self { name, sources: vec![source], plus: 0.0 }
    }

    /// One checkpoint tensor per expert, stacked under `name`.
    pub(crate) fn stacked(name: impl Into<String>, shape: &[u64], source: impl Fn(u64) -> String) -> Self {
        let (experts, each) = shape.split_first().map_or((0, &[][..]), |(n, rest)| (*n, rest));
        let sources =
            (0..experts).map(|e| Source { name: source(e), shape: each.to_vec(), take: Take::All }).collect();
        Self { name: name.into(), sources, plus: 0.0 }
    }

    /// A part of the checkpoint tensor `source` of shape `from`.
    pub(crate) fn part(name: impl Into<String>, source: impl Into<String>, from: &[u64], take: Take) -> Self {
        let source = Source { name: source.into(), shape: from.to_vec(), take };
        Self { name: name.into(), sources: vec![source], plus: 0.0 }
    }

    /// Name, sources, and what is added.
    pub(crate) fn parts(self) -> (String, Vec<Source>, f32) {
        (self.name, self.sources, self.plus)
    }

    /// Adds one to every value (gemma's norms).
    pub(crate) fn plus_one(mut self) -> Self {
        self.plus = 1.0;
        self
    }
}

impl Rows {
    /// `count` rows of every one of `blocks` blocks of `stride`, from `start` on.
    pub(crate) const fn blocks(start: u64, count: u64, stride: u64, blocks: u64) -> Self {
        Self { start, count, step: 1, stride, blocks }
    }
}

/// Every tensor of `spec`, each with the origin that `origin` gives for its slot and shape.
pub(crate) fn tensors(spec: &Spec, origin: impl Fn(Slot, &[u64]) -> Origin) -> Vec<Want> {
    let mut wants = Vec::new();
    for (slot, shape) in slots(spec) {
        let Origin { name, sources, plus } = origin(slot, &shape);
        wants.push(Want { slot, name, shape, sources, plus });
    }
    wants
}

/// Every slot of `spec` with its shape in the file, in order.
pub fn slots(spec: &Spec) -> Vec<(Slot, Vec<u64>)> {
    let (vocab, width) = (u64::from(spec.vocab), u64::from(spec.width));
    let mut all = vec![(Slot::Embedding, vec![vocab, width])];
    let norm = |all: &mut Vec<_>, norm: Option<Norm>, weight: Slot, bias: Slot| {
        if let Some(norm) = norm {
            all.push((weight, vec![width]));
            if norm.bias {
                all.push((bias, vec![width]));
            }
        }
    };
    if let Some(positions) = spec.learned_positions {
        all.push((Slot::Positions, vec![u64::from(positions), width]));
    }
    norm(&mut all, spec.embedding_norm, Slot::EmbeddingNorm, Slot::EmbeddingNormBias);
    for (i, layer) in (0u32..).zip(&spec.layers) {
        all.extend(layer_slots(layer, width).into_iter().map(|(slot, shape)| (Slot::Layer(i, slot), shape)));
    }
    norm(&mut all, Some(spec.final_norm), Slot::FinalNorm, Slot::FinalNormBias);
    if !spec.tied {
        all.push((Slot::Head, vec![vocab, width]));
    }
    if spec.head_bias {
        all.push((Slot::HeadBias, vec![vocab]));
    }
    all
}

/// Slots of a layer, collected with their shapes.
struct Collected(Vec<(L, Vec<u64>)>);

impl Collected {
    fn push(&mut self, slot: L, shape: &[u64]) {
        self.0.push((slot, shape.to_vec()));
    }

    /// A matrix `[rows, columns]` and its bias, if it has one.
    fn matrix(&mut self, weight: L, bias: Option<L>, rows: u64, columns: u64) {
        self.push(weight, &[rows, columns]);
        if let Some(bias) = bias {
            self.push(bias, &[rows]);
        }
    }

    fn norm(&mut self, norm: Option<Norm>, weight: L, bias: L, width: u64) {
        if let Some(norm) = norm {
            self.push(weight, &[width]);
            if norm.bias {
                self.push(bias, &[width]);
            }
        }
    }
}

fn layer_slots(layer: &Layer, width: u64) -> Vec<(L, Vec<u64>)> {
    let mut out = Collected(Vec::new());
    out.norm(layer.attention_norm, L::AttentionNorm, L::AttentionNormBias, width);
    match &layer.attention {
        Attention::Heads(heads) => heads_slots(heads, width, &mut out),
        Attention::Latent(latent) => latent_slots(latent, width, &mut out),
    }
    out.norm(layer.attention_post_norm, L::AttentionPostNorm, L::AttentionPostNormBias, width);
    out.norm(layer.ffn_norm, L::FfnNorm, L::FfnNormBias, width);
    match &layer.ffn {
        Ffn::Plain(d) | Ffn::Gated(d) => {
            let (inner, has) = (u64::from(d.inner), |slot| d.bias.then_some(slot));
            if matches!(layer.ffn, Ffn::Gated(_)) {
                out.matrix(L::Gate, has(L::GateBias), inner, width);
            }
            out.matrix(L::Up, has(L::UpBias), inner, width);
            out.matrix(L::Down, has(L::DownBias), width, inner);
        }
        Ffn::Experts(experts) => experts_slots(experts, width, &mut out),
    }
    out.norm(layer.ffn_post_norm, L::FfnPostNorm, L::FfnPostNormBias, width);
    out.0
}

fn heads_slots(h: &Heads, width: u64, out: &mut Collected) {
    let dim = u64::from(h.head_dim);
    let (q, kv) = (u64::from(h.heads) * dim, u64::from(h.kv_heads) * dim);
    let has = |slot| h.qkv_bias.then_some(slot);
    out.matrix(L::Q, has(L::QBias), q, width);
    out.matrix(L::K, has(L::KBias), kv, width);
    out.matrix(L::V, has(L::VBias), kv, width);
    if let Some(norm) = h.qk_norm {
        out.push(L::QNorm, &[if norm.whole { q } else { dim }]);
        out.push(L::KNorm, &[if norm.whole { kv } else { dim }]);
    }
    if h.sinks {
        out.push(L::Sinks, &[u64::from(h.heads)]);
    }
    out.matrix(L::Out, h.out_bias.then_some(L::OutBias), width, q);
}

fn latent_slots(a: &Latent, width: u64, out: &mut Collected) {
    let (heads, kv_rank) = (u64::from(a.heads), u64::from(a.kv_rank));
    let (nope, rope, value) = (u64::from(a.nope_dim), u64::from(a.rope_dim), u64::from(a.value_dim));
    let has = |slot| a.bias.then_some(slot);
    match a.q_rank.map(u64::from) {
        None => out.matrix(L::Q, None, heads * (nope + rope), width),
        Some(rank) => {
            out.matrix(L::QDown, has(L::QDownBias), rank, width);
            out.push(L::QDownNorm, &[rank]);
            out.matrix(L::QUp, None, heads * (nope + rope), rank);
        }
    }
    out.matrix(L::KvDown, has(L::KvDownBias), kv_rank + rope, width);
    out.push(L::KvDownNorm, &[kv_rank]);
    out.push(L::KAbsorb, &[heads, kv_rank, nope]);
    out.push(L::VAbsorb, &[heads, value, kv_rank]);
    out.matrix(L::Out, has(L::OutBias), width, heads * value);
}

fn experts_slots(x: &Experts, width: u64, out: &mut Collected) {
    let (count, inner) = (u64::from(x.count), u64::from(x.expert.inner));
    out.matrix(L::Router, x.router_bias.then_some(L::RouterBias), count, width);
    if x.choice_bias {
        out.push(L::ChoiceBias, &[count]);
    }
    let each = [
        (L::ExpertGate, L::ExpertGateBias, inner, width),
        (L::ExpertUp, L::ExpertUpBias, inner, width),
        (L::ExpertDown, L::ExpertDownBias, width, inner),
    ];
    for (weight, bias, rows, columns) in each {
        out.push(weight, &[count, rows, columns]);
        if x.expert.bias {
            out.push(bias, &[count * rows]);
        }
    }
    if let Some(shared) = x.shared {
        let inner = u64::from(shared.dense.inner);
        out.push(L::SharedGate, &[inner, width]);
        out.push(L::SharedUp, &[inner, width]);
        out.push(L::SharedDown, &[width, inner]);
        if shared.gate {
            out.push(L::SharedSwitch, &[1, width]);
        }
    }
}
