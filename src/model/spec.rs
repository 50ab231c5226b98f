//! A model's shape in normalised form: what the forward pass needs to know, free of any checkpoint's spelling.
//!
//! An architecture's file reads `config.json` into a [`Spec`]; the converter writes it into the `.llm` file's
//! metadata under the key `model`; opening a file reads it back and checks it. Nothing else describes a model.

use serde::{Deserialize, Serialize};

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Name in `ARCHS`: the checkpoint's `model_type`.
    pub architecture: String,
    /// Rows of the embedding and of the logits.
    pub vocab: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Positions the model was trained for (after its rope scaling).
    pub context: u32,
    /// Factor on the embedding (gemma: the square root of the width).
    pub embedding_scale: f32,
    /// Norm on the embedding (bloom).
    pub embedding_norm: Option<Norm>,
    /// Rows of a learned position table that is added to the embedding (gpt2), or `None`.
    pub learned_positions: Option<u32>,
    /// Rotary tables, which attention blocks name by index.
    pub ropes: Vec<Rope>,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// Norm before the output matrix.
    pub final_norm: Norm,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Whether the output matrix has a bias.
    pub head_bias: bool,
    /// Factor on the logits (1: none).
    pub logit_scale: f32,
    /// Logits become c · tanh(logit / c).
    pub logit_softcap: Option<f32>,
}

impl Spec {
    /// The most layers that a model may have.
    pub const MOST_LAYERS: usize = 4096;
    /// The most heads of a layer.
    pub const MOST_HEADS: u32 = 1 << 14;
    /// The most of any one dimension: vocabulary, width, inner width, learned positions, all heads of a layer together.
    pub const MOST_DIM: u32 = 1 << 24;
}

/// One layer: attention and feed-forward, each between an optional norm before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Norm of the input of attention.
    pub attention_norm: Option<Norm>,
    /// The attention block.
    pub attention: Attention,
    /// Norm of attention's output, before the residual (gemma, olmo2).
    pub attention_post_norm: Option<Norm>,
    /// Norm of the input of the feed-forward block.
    pub ffn_norm: Option<Norm>,
    /// The feed-forward block.
    pub ffn: Ffn,
    /// Norm of its output, before the residual.
    pub ffn_post_norm: Option<Norm>,
    /// Both blocks read the layer's input and are added together (gpt_neox).
    pub parallel: bool,
}

/// A normalisation over the last dimension. Weights hold gemma's "1 +" already.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
    /// Whether a bias is added.
    pub bias: bool,
}

/// Kinds of norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// x / sqrt(mean(x²) + eps) · w
    Rms,
    /// (x − mean) / sqrt(var + eps) · w + b
    Layer,
}

/// An attention block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Attention {
    /// Query heads over as many or fewer key-value heads.
    Heads(Heads),
    /// Multi-head latent attention (DeepSeek-V2), run in its absorbed form.
    Latent(Latent),
}

/// MHA, GQA, MQA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    /// Query heads.
    pub heads: u32,
    /// Key-value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a query or key head.
    pub head_dim: u32,
    /// Factor on the scores, usually 1/sqrt(head_dim).
    pub scale: f32,
    /// Index into [`Spec::ropes`]; `None`: no rotation.
    pub rope: Option<u32>,
    /// Position i sees i−W+1 ..= i.
    pub window: Option<u32>,
    /// Scores become c · tanh(score / c).
    pub softcap: Option<f32>,
    /// Slope of the ALiBi bias per head, empty without ALiBi: score += slope · (key position − query position).
    pub alibi: Vec<f32>,
    /// A learned logit per head that takes part in the softmax and carries no value (gpt_oss).
    pub sinks: bool,
    /// Norm of queries and keys before the rotation.
    pub qk_norm: Option<QkNorm>,
    /// Whether the q, k and v matrices have biases.
    pub qkv_bias: bool,
    /// Whether the output matrix has a bias.
    pub out_bias: bool,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QkNorm {
    /// The norm.
    pub norm: Norm,
    /// Over the whole projection (olmo2) rather than each head (qwen3, gemma3).
    pub whole: bool,
}

/// Multi-head latent attention: keys and values of a token are one vector of `kv_rank` and one rotated key of
/// `rope_dim` shared by all heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Query heads.
    pub heads: u32,
    /// Width of the part of a query head without rotation.
    pub nope_dim: u32,
    /// Width of the rotated part; 0: none.
    pub rope_dim: u32,
    /// Width of a value head.
    pub value_dim: u32,
    /// Rank of the query's compression; `None`: one matrix.
    pub q_rank: Option<u32>,
    /// Rank of the keys' and values' compression.
    pub kv_rank: u32,
    /// Factor on the scores.
    pub scale: f32,
    /// Index into [`Spec::ropes`]; without meaning where `rope_dim` is 0.
    pub rope: u32,
    /// Norm of the compressed query (where there is one) and of the compressed keys and values.
    pub norm: Norm,
    /// Whether the projections have biases.
    pub bias: bool,
}

/// A feed-forward block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ffn {
    /// down(act(up(x)))
    Plain(Dense),
    /// down(act(gate(x)) · up(x))
    Gated(Dense),
    /// A router chooses experts for each token.
    Experts(Experts),
}

/// Shape of a dense feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dense {
    /// Inner width.
    pub inner: u32,
    /// Activation.
    pub activation: Activation,
    /// Whether the matrices have biases.
    pub bias: bool,
}

/// Activations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// x/2 · (1 + erf(x/√2))
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// max(x, 0)²
    Relu2,
    /// gpt_oss, gated only: gate = min(gate, limit), up = clamp(up, ±limit), (up + 1) · gate · sigmoid(alpha · gate).
    ClampedSwiglu {
        /// alpha
        alpha: f32,
        /// limit
        limit: f32,
    },
}

/// A mixture of gated experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How many there are.
    pub count: u32,
    /// How many a token uses.
    pub active: u32,
    /// Shape of one.
    pub expert: Dense,
    /// How router logits become scores.
    pub scoring: Scoring,
    /// Whether the chosen scores are divided by their sum (plus 1e-20 with `Sigmoid`).
    pub normalize: bool,
    /// Factor on the chosen scores.
    pub scale: f32,
    /// Experts fall into this many equal groups, of which `active_groups` may be chosen from (1: no grouping).
    pub groups: u32,
    /// Groups kept.
    pub active_groups: u32,
    /// How a group is ranked.
    pub group_rank: GroupRank,
    /// Whether a bias is added to the scores for the choice only (deepseek_v3).
    pub choice_bias: bool,
    /// Whether the router matrix has a bias (gpt_oss).
    pub router_bias: bool,
    /// A gated block that every token uses beside its experts.
    pub shared: Option<Shared>,
}

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over the chosen experts' logits (gpt_oss; the same as `Softmax` normalised).
    SoftmaxOfChosen,
    /// Sigmoid of each.
    Sigmoid,
}

/// How groups of experts are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupRank {
    /// By the group's best score (deepseek_v2).
    Max,
    /// By the sum of its two best (deepseek_v3).
    TopTwo,
}

/// The shared expert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// Its shape.
    pub dense: Dense,
    /// Whether its output is multiplied by sigmoid(w · x) (qwen2_moe).
    pub gate: bool,
}

/// A rotary table: angle of pair i at position p is p · theta^(−2i/dim), after scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base.
    pub theta: f64,
    /// Rotated part of a head, its first `dim` values.
    pub dim: u32,
    /// Which values form a pair.
    pub pairs: Pairs,
    /// Change of the angles for long contexts.
    pub scaling: Scaling,
}

/// Which values form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairs {
    /// (i, i + dim/2)
    Halves,
    /// (2i, 2i + 1)
    Neighbours,
}

/// Scalings of rotary angles, as transformers defines them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scaling {
    /// None.
    None,
    /// Positions divided by the factor.
    Linear {
        /// Factor.
        factor: f64,
    },
    /// The base grows with the session's total length past `original`.
    Dynamic {
        /// Factor.
        factor: f64,
        /// Length from which on it acts.
        original: u32,
    },
    /// Llama 3.1's blend by wavelength.
    Llama3 {
        /// Factor.
        factor: f64,
        /// Low-frequency factor.
        low: f64,
        /// High-frequency factor.
        high: f64,
        /// Original context.
        original: u32,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// Factor.
        factor: f64,
        /// Original context.
        original: u32,
        /// Fast beta.
        beta_fast: f64,
        /// Slow beta.
        beta_slow: f64,
        /// Whether the correction range is rounded to whole dimensions.
        truncate: bool,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// Phi-3's per-dimension factors, one list up to `original` positions in all, one past it.
    Longrope {
        /// dim/2 factors for short sequences.
        short: Vec<f64>,
        /// dim/2 factors for long ones.
        long: Vec<f64>,
        /// Original context.
        original: u32,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
}
