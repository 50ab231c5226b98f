//! The design of a model: what a user chooses, and the published layout it equals.
//!
//! ```text
//! ModelConfig ──layout──▶ config.json of gpt2 | llama | mistral | qwen2 | qwen3 | olmo2 | mpt | bloom | mixtral | deepseek_v2
//!                                        or, where no published layout equals it, of our own: libllm
//!             ──spec────▶ what libllm makes of that file: the one description that training, checkpoints and
//!                         inference share
//! ```
//! It does not know tensors: which there are, and how a checkpoint holds them, follows from the spec.

mod published;

use llm::error::{Error, Result, Status};
use llm::model::arch::{Arch, read_config};
use llm::model::spec::{
    Activation, Attention, Dense, Experts, Ffn, GroupRank, Heads, Latent, Layer, Norm, NormKind, Pairs,
    QkNorm, Rope, Scaling, Scoring, Shared, Spec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where the order of tokens enters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// A trained table, added to the embedding.
    Learned,
    /// A table of sines and cosines (Vaswani et al. 2017), added to the embedding, never trained.
    Sinusoidal,
    /// Queries and keys are rotated (Su et al. 2021).
    #[default]
    Rope,
    /// Scores fall with distance (Press et al. 2021).
    Alibi,
    /// Nowhere but in the causal mask.
    None,
}

/// Kinds of norm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormDesign {
    /// RMSNorm.
    #[default]
    Rms,
    /// LayerNorm with weight and bias.
    Layer,
    /// LayerNorm with a weight alone.
    Plain,
}

/// Where norms stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Before attention and before the feed-forward block.
    #[default]
    Pre,
    /// Behind each, before the residual sum (OLMo 2).
    Post,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QkDesign {
    /// None.
    #[default]
    None,
    /// RMSNorm of each head.
    Head,
    /// RMSNorm of all heads of a token together.
    Row,
}

/// Which matrices have biases.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Those of queries, keys and values.
    Qkv,
    /// All of attention and of the feed-forward block.
    All,
}

/// Kinds of feed-forward block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feed {
    /// down(silu(gate) · up)
    #[default]
    SwiGlu,
    /// down(gelu(gate) · up), gelu in its tanh form.
    GeGlu,
    /// down(gelu(up)), gelu in its tanh form.
    Gelu,
    /// down(gelu(up)), gelu by the error function.
    GeluErf,
    /// down(max(up, 0)²)
    Relu2,
}

/// Changes of the rotary angles for long contexts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RopeScaling {
    /// `none`, `linear`, `llama3` or `yarn`.
    pub kind: ScalingKind,
    /// How much longer than `original` the context is.
    pub factor: f64,
    /// The context before; 0: `context` / `factor`.
    pub original: usize,
    /// llama3: low-frequency factor.
    pub low: f64,
    /// llama3: high-frequency factor.
    pub high: f64,
    /// yarn: fast beta.
    pub beta_fast: f64,
    /// yarn: slow beta.
    pub beta_slow: f64,
}

/// Which scaling.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScalingKind {
    /// None.
    #[default]
    None,
    /// Positions divided by the factor.
    Linear,
    /// Llama 3.1's blend by wavelength.
    Llama3,
    /// YaRN (arXiv:2309.00071).
    Yarn,
}

impl Default for RopeScaling {
    fn default() -> Self {
        RopeScaling {
            kind: ScalingKind::None,
            factor: 4.0,
            original: 0,
            low: 1.0,
            high: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
        }
    }
}

/// A mixture of experts in place of the feed-forward block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExpertsDesign {
    /// How many there are; 0: no mixture.
    pub count: usize,
    /// How many a token uses.
    pub active: usize,
    /// Inner width of one; 0: `ffn`.
    pub ffn: usize,
    /// Experts that every token uses beside them, as one block of their widths together.
    pub shared: usize,
    /// Layers, from the first on, that have a plain block of width `ffn` instead.
    pub dense_layers: usize,
    /// Factor of the loss that spreads tokens over experts (Shazeer et al. 2017, as in Switch Transformers).
    pub balance: f32,
    /// Factor of the loss on the router's log-sum-exp (ST-MoE).
    pub z_loss: f32,
}

impl Default for ExpertsDesign {
    fn default() -> Self {
        ExpertsDesign { count: 0, active: 2, ffn: 0, shared: 0, dense_layers: 0, balance: 0.01, z_loss: 0.0 }
    }
}

/// Multi-head latent attention (arXiv:2405.04434) in place of query, key and value heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatentDesign {
    /// Rank of the keys' and values' compression; 0: no latent attention.
    pub kv_rank: usize,
    /// Rank of the queries' compression; 0: one matrix.
    pub q_rank: usize,
    /// Width of the unrotated part of a head.
    pub nope: usize,
    /// Width of the rotated part, whose key all heads share.
    pub rope: usize,
    /// Width of a value head.
    pub value: usize,
}

impl Default for LatentDesign {
    fn default() -> Self {
        LatentDesign { kv_rank: 0, q_rank: 0, nope: 64, rope: 32, value: 64 }
    }
}

/// The shape and the design of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
    /// Size of the vocabulary; 0: that of the data.
    pub vocab: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head; 0: `width` / `heads`.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Inner width of the feed-forward part.
    pub ffn: usize,
    /// Tokens per sequence.
    pub context: usize,
    /// Where the order of tokens enters.
    pub position: Position,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Which norm.
    pub norm: NormDesign,
    /// Where norms stand.
    pub norm_place: Place,
    /// Norm of queries and keys.
    pub qk_norm: QkDesign,
    /// Norm of the embedding.
    pub embedding_norm: bool,
    /// Which matrices have biases.
    pub bias: Bias,
    /// A token sees this many, itself included; 0: all before it.
    pub window: usize,
    /// The feed-forward block.
    pub feed: Feed,
    /// Experts.
    pub experts: ExpertsDesign,
    /// Latent attention.
    pub latent: LatentDesign,
    /// Whether the head shares the embedding's matrix.
    pub tied: bool,
    /// Added to the variance in norms.
    pub eps: f32,
    /// Share dropped of embeddings, attention probabilities and branches, while training.
    pub dropout: f32,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            layers: 4,
            heads: 4,
            kv_heads: 4,
            width: 256,
            ffn: 688,
            context: 256,
            ..ModelConfig::tiny()
        }
    }
}

impl ModelConfig {
    /// A model for tests: 2 layers, 4 heads, 2 key heads, width 32.
    pub fn tiny() -> ModelConfig {
        ModelConfig {
            vocab: 0,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 0,
            width: 32,
            ffn: 88,
            context: 32,
            position: Position::Rope,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::default(),
            norm: NormDesign::Rms,
            norm_place: Place::Pre,
            qk_norm: QkDesign::None,
            embedding_norm: false,
            bias: Bias::None,
            window: 0,
            feed: Feed::SwiGlu,
            experts: ExpertsDesign::default(),
            latent: LatentDesign::default(),
            tied: true,
            eps: 1e-5,
            dropout: 0.0,
        }
    }

    /// The same shape in the design of GPT-2: learned positions, LayerNorm, biases, GELU, a key head for each head.
    pub fn gpt2_design(self) -> ModelConfig {
        ModelConfig {
            kv_heads: self.heads,
            position: Position::Learned,
            norm: NormDesign::Layer,
            bias: Bias::All,
            feed: Feed::Gelu,
            tied: true,
            ..self
        }
    }

    /// nanoGPT's character model: GPT-2 with 6 layers, 6 heads, width 384, 256 tokens.
    pub fn baby_gpt() -> ModelConfig {
        ModelConfig { layers: 6, heads: 6, width: 384, ffn: 1536, context: 256, ..ModelConfig::tiny() }
            .gpt2_design()
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        if self.head_dim > 0 { self.head_dim } else { self.width / self.heads.max(1) }
    }

    /// Checks what the shape must satisfy before a spec is made of it.
    ///
    /// # Errors
    /// `INVALID_ARG` with the first setting that does not fit.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("vocab", self.vocab),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("width", self.width),
            ("ffn", self.ffn),
            ("context", self.context),
        ];
        for (name, value) in positive {
            if value == 0 || value > 1 << 24 {
                return Err(invalid(format!("model.{name} = {value}: expected 1 to {}", 1 << 24)));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv) = (self.heads, self.kv_heads);
            return Err(invalid(format!("model.heads = {heads}, kv_heads = {kv}: expected a multiple")));
        }
        if self.head_dim == 0 && !self.width.is_multiple_of(self.heads) {
            let (width, heads) = (self.width, self.heads);
            return Err(invalid(format!(
                "model.width = {width}, heads = {heads}: expected a multiple, or head_dim"
            )));
        }
        if self.position == Position::Rope && self.latent.kv_rank == 0 && !self.head_dim().is_multiple_of(2) {
            let dim = self.head_dim();
            return Err(invalid(format!("a head of {dim}: rotary positions need an even number")));
        }
        if !(0.0..1.0).contains(&self.dropout) || self.eps <= 0.0 || self.rope_theta <= 0.0 {
            return Err(invalid("model: expected dropout in 0..1, eps and rope_theta above 0".into()));
        }
        let x = &self.experts;
        if x.count > 0 && (x.active == 0 || x.active > x.count || !self.gated()) {
            return Err(invalid(format!(
                "model.experts: {} of {} experts with feed {:?}: expected 1 to count, and a gated block",
                x.active, x.count, self.feed
            )));
        }
        let l = &self.latent;
        if l.kv_rank > 0 {
            let rotated = self.position == Position::Rope;
            if !matches!(self.position, Position::Rope | Position::None) || l.nope == 0 || l.value == 0 {
                return Err(invalid(
                    "model.latent: expected position rope or none, nope and value above 0".into(),
                ));
            }
            if rotated && (l.rope == 0 || !l.rope.is_multiple_of(2)) {
                return Err(invalid(format!("model.latent.rope = {}: expected an even number", l.rope)));
            }
            if self.qk_norm != QkDesign::None || self.window > 0 || self.bias != Bias::None {
                return Err(invalid("model.latent: goes without qk_norm, window and bias".into()));
            }
        }
        Ok(())
    }

    /// Whether the feed-forward block has a gate.
    fn gated(&self) -> bool {
        matches!(self.feed, Feed::SwiGlu | Feed::GeGlu)
    }

    /// What libllm makes of [`ModelConfig::hugging_face`].
    ///
    /// # Errors
    /// `INVALID_ARG` for settings that fit no model.
    pub fn spec(&self) -> Result<(&'static Arch, Spec)> {
        self.check()?;
        read_config(&self.hugging_face()?).map_err(|e| invalid(format!("model: {}", e.message())))
    }

    fn scaling(&self) -> Value {
        let s = &self.rope_scaling;
        let original = if s.original > 0 { s.original } else { (self.context as f64 / s.factor) as usize };
        match s.kind {
            ScalingKind::None => Value::Null,
            ScalingKind::Linear => json!({"rope_type": "linear", "factor": s.factor}),
            ScalingKind::Llama3 => json!({
                "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low, "high_freq_factor": s.high,
                "original_max_position_embeddings": original,
            }),
            ScalingKind::Yarn => json!({
                "rope_type": "yarn", "factor": s.factor, "beta_fast": s.beta_fast, "beta_slow": s.beta_slow,
                "original_max_position_embeddings": original,
            }),
        }
    }

    /// The spec of a design that no published layout equals.
    fn own_spec(&self) -> Result<Spec> {
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
        let original = |s: &RopeScaling| {
            narrow(if s.original > 0 { s.original } else { (m.context as f64 / s.factor) as usize })
        };
        let s = &m.rope_scaling;
        let scaling = match s.kind {
            ScalingKind::None => Scaling::None,
            ScalingKind::Linear => Scaling::Linear { factor: s.factor },
            ScalingKind::Llama3 => {
                Scaling::Llama3 { factor: s.factor, low: s.low, high: s.high, original: original(s) }
            }
            ScalingKind::Yarn => Scaling::Yarn {
                factor: s.factor,
                original: original(s),
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
        let experts = Ffn::Experts(Experts {
            count: narrow(x.count),
            active: narrow(x.active),
            expert: Dense { bias: false, ..dense(inner) },
            scoring: Scoring::Softmax,
            normalize: true,
            scale: 1.0,
            groups: 1,
            active_groups: 1,
            group_rank: GroupRank::Max,
            choice_bias: false,
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

/// The decimal number a user would have written for this f32.
fn as_f64(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

fn invalid(message: String) -> Error {
    Error::new(Status::INVALID_ARG, message)
}
