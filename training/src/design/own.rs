//! The spec of a design that no published layout equals, put together from its settings.

use llm::error::Result;
use llm::model::spec::{
    Activation, Attention, Dense, Experts, Ffn, GroupRank, Heads, Latent, Layer, Norm, NormKind, Pairs,
    QkNorm, Rope, Scaling, Scoring, Shared, Spec,
};

use super::*;

impl ModelConfig {
    /// The spec of a design that no published layout equals.
    pub(super) fn own_spec(&self) -> Result<Spec> {
        let m = self;
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX); // `check` bounds what is asked for
        let norm = match m.norm {
            NormDesign::Rms => Norm { kind: NormKind::Rms, eps: m.eps, bias: false },
            NormDesign::Layer => Norm { kind: NormKind::Layer, eps: m.eps, bias: true },
            NormDesign::Plain => Norm { kind: NormKind::Layer, eps: m.eps, bias: false },
        };
        let rms = Norm { kind: NormKind::Rms, eps: m.eps, bias: false };
        let latent = m.latent.kv_rank > 0;
        let rotated = m.position == Position::Rope;
        let s = &m.rope_scaling;
        let original = narrow(s.original(m.context));
        let scaling = match s.kind {
            ScalingKind::None => Scaling::None,
            ScalingKind::Linear => Scaling::Linear { factor: s.factor },
            ScalingKind::Llama3 => Scaling::Llama3 { factor: s.factor, low: s.low, high: s.high, original },
            ScalingKind::Yarn => Scaling::Yarn {
                factor: s.factor,
                original,
                beta_fast: s.beta_fast,
                beta_slow: s.beta_slow,
                truncate: true,
                attention_factor: 0.1 * s.factor.max(1.0).ln() + 1.0,
            },
        };
        let dim = if latent { m.latent.rope } else { m.head_dim() };
        let rope = Rope { theta: m.rope_theta, dim: narrow(dim), pairs: Pairs::Halves, scaling };
        let root = |n: usize| (1.0 / (n as f64).sqrt()) as f32;
        let attention = if latent {
            let l = &m.latent;
            let rope_dim = if rotated { l.rope } else { 0 };
            Attention::Latent(Latent {
                heads: narrow(m.heads),
                nope_dim: narrow(l.nope),
                rope_dim: narrow(rope_dim),
                value_dim: narrow(l.value),
                q_rank: (l.q_rank > 0).then_some(narrow(l.q_rank)),
                kv_rank: narrow(l.kv_rank),
                scale: root(l.nope + rope_dim),
                rope: 0,
                norm: rms,
                bias: false,
            })
        } else {
            let qk_norm = match m.qk_norm {
                QkDesign::None => None,
                design => Some(QkNorm { norm: rms, whole: design == QkDesign::Row }),
            };
            Attention::Heads(Heads {
                heads: narrow(m.heads),
                kv_heads: narrow(m.kv_heads),
                head_dim: narrow(m.head_dim()),
                scale: root(m.head_dim()),
                rope: rotated.then_some(0),
                window: (m.window > 0).then_some(narrow(m.window)),
                softcap: None,
                alibi: if m.position == Position::Alibi {
                    llm::model::alibi::slopes(narrow(m.heads), 8.0)
                } else {
                    Vec::new()
                },
                sinks: false,
                qk_norm,
                qkv_bias: m.bias != Bias::None,
                out_bias: m.bias == Bias::All,
            })
        };
        let activation = match m.feed {
            Feed::SwiGlu => Activation::Silu,
            Feed::GeGlu | Feed::Gelu => Activation::GeluTanh,
            Feed::GeluErf => Activation::Gelu,
            Feed::Relu2 => Activation::Relu2,
        };
        let dense = |inner: usize| Dense { inner: narrow(inner), activation, bias: m.bias == Bias::All };
        let plain = if m.gated() { Ffn::Gated(dense(m.ffn)) } else { Ffn::Plain(dense(m.ffn)) };
        let x = &m.experts;
        let inner = if x.ffn > 0 { x.ffn } else { m.ffn };
        let sigmoid = x.scoring == ScoringDesign::Sigmoid;
        let experts = Ffn::Experts(Experts {
            count: narrow(x.count),
            active: narrow(x.active),
            expert: Dense { bias: false, ..dense(inner) },
            scoring: if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax },
            normalize: true,
            scale: x.scale,
            groups: narrow(x.groups),
            active_groups: narrow(x.active_groups),
            group_rank: if sigmoid { GroupRank::TopTwo } else { GroupRank::Max },
            choice_bias: sigmoid,
            router_bias: false,
            shared: (x.shared > 0)
                .then(|| Shared { dense: Dense { bias: false, ..dense(inner * x.shared) }, gate: false }),
        });
        let pre = m.norm_place == Place::Pre;
        let layer = |i: usize| Layer {
            attention_norm: pre.then_some(norm),
            attention: attention.clone(),
            attention_post_norm: (!pre).then_some(norm),
            ffn_norm: pre.then_some(norm),
            ffn: if x.count > 0 && i >= x.dense_layers { experts.clone() } else { plain.clone() },
            ffn_post_norm: (!pre).then_some(norm),
            parallel: false,
        };
        let table = matches!(m.position, Position::Learned | Position::Sinusoidal);
        Ok(Spec {
            architecture: "libllm".into(),
            vocab: narrow(m.vocab),
            width: narrow(m.width),
            context: narrow(m.context),
            embedding_scale: 1.0,
            embedding_norm: m.embedding_norm.then_some(norm),
            learned_positions: table.then_some(narrow(m.context)),
            ropes: if rotated { vec![rope] } else { Vec::new() },
            layers: (0..m.layers).map(layer).collect(),
            final_norm: norm,
            tied: m.tied,
            head_bias: false,
            logit_scale: 1.0,
            logit_softcap: None,
        })
    }
}
