//! The architectures: one file each, one line each in [`ARCHS`].
//!
//! An architecture knows three things: how to read a checkpoint's `config.json`, which tensors the model is made
//! of, and how each of them comes from the checkpoint. The converter writes by that list, loading finds by it.

use super::spec::Spec;
use super::{bloom, deepseek, gemma, gpt_neox, gpt_oss, gpt2, llama, mixtral, mpt, olmo2, own, phi3, qwen};
use crate::error::{Error, Result, Status};

/// One architecture.
#[derive(Debug)]
pub struct Arch {
    /// `model_type` values of the checkpoints it reads.
    pub names: &'static [&'static str],
    /// What all its tensor names but the head's begin with; checkpoints of the bare model lack it.
    pub prefix: &'static str,
    /// Reads `config.json`.
    pub read: fn(&serde_json::Value) -> Result<Spec>,
    /// Every tensor of a model of this spec, in the order of the file.
    pub tensors: fn(&Spec) -> Vec<Want>,
    /// Checkpoint tensors that are allowed to be there and are not used (buffers, extra heads), as predicates.
    pub ignores: fn(&Spec, &str) -> bool,
}

/// A tensor that a model wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    /// Its place in the model.
    pub slot: Slot,
    /// Its name in the `.llm` file: the checkpoint's own, or one in its style where a tensor is split or stacked.
    pub name: String,
    /// Shape in the file: `[rows, columns]`, `[experts, rows, columns]`, or `[n]` for a vector.
    pub shape: Vec<u64>,
    /// The checkpoint tensors it is made of: one, or one per expert, stacked.
    pub sources: Vec<Source>,
    /// Added to every value after all else (gemma's norms: 1).
    pub plus: f32,
}

/// A checkpoint tensor and the part of it to take.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape it must have there.
    pub shape: Vec<u64>,
    /// How its values are taken.
    pub take: Take,
}

/// How values are taken out of a checkpoint tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Take {
    /// As it is (row-major `[out, in]`, or a vector).
    All,
    /// `[in, out]` turned round, then the output rows of `Rows` (gpt2's Conv1D).
    Transposed(Rows),
    /// Some rows, in this order.
    Rows(Rows),
    /// Of a 3-dimensional tensor: for every expert e, rows of `[e]`, turned round first if `transposed`. Of a
    /// 2-dimensional one: for every expert e, the values of `[e]` at these places, all in one vector.
    PerExpert {
        /// Whether each expert's matrix is stored `[in, out]`.
        transposed: bool,
        /// The rows, after turning.
        rows: Rows,
    },
    /// `[heads · (first + second), rank]` → per head the first `first` rows turned round: `[heads, rank, first]`.
    HeadsTransposed {
        /// Heads.
        heads: u64,
        /// Rows of a head that are taken.
        first: u64,
        /// Rows of a head that are left.
        second: u64,
    },
}

/// A pattern of rows: for block b in 0..blocks, rows start + b·stride .. + count (every `step`-th).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows {
    /// First row of the first block.
    pub start: u64,
    /// Rows taken from each block.
    pub count: u64,
    /// Distance between rows taken within a block.
    pub step: u64,
    /// Distance between blocks.
    pub stride: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Rows {
    /// One run of rows.
    pub const fn run(start: u64, count: u64) -> Self {
        Self { start, count, step: 1, stride: 0, blocks: 1 }
    }
}

/// A tensor's place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// `[vocab, width]`; also the output matrix of a tied model.
    Embedding,
    /// `[positions, width]`
    Positions,
    /// Norm of the embedding: weight.
    EmbeddingNorm,
    /// … and bias.
    EmbeddingNormBias,
    /// Final norm: weight.
    FinalNorm,
    /// … and bias.
    FinalNormBias,
    /// `[vocab, width]`, untied models only.
    Head,
    /// `[vocab]`
    HeadBias,
    /// Of a self-drafting head: norm of the token's embedding, `[width]`.
    JoinToken,
    /// … norm of the hidden vector, `[width]`.
    JoinHidden,
    /// … `[width, 2 width]`, of both.
    Join,
    /// One of a layer.
    Layer(u32, LayerSlot),
}

/// A tensor's place in a layer. Matrices are `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each names the field of `Layer` it belongs to
pub enum LayerSlot {
    AttentionNorm,
    AttentionNormBias,
    AttentionPostNorm,
    AttentionPostNormBias,
    FfnNorm,
    FfnNormBias,
    FfnPostNorm,
    FfnPostNormBias,
    /// Heads: `[heads · head_dim, width]`. Latent without q_rank: `[heads · (nope + rope), width]`.
    Q,
    QBias,
    K,
    KBias,
    V,
    VBias,
    /// `[width, heads · head_dim]`; Latent: `[width, heads · value_dim]`.
    Out,
    OutBias,
    QNorm,
    KNorm,
    /// `[heads]`
    Sinks,
    /// Latent: `[q_rank, width]`
    QDown,
    QDownBias,
    QDownNorm,
    /// `[heads · (nope + rope), q_rank]`
    QUp,
    /// `[kv_rank + rope, width]`
    KvDown,
    KvDownBias,
    KvDownNorm,
    /// `[heads, kv_rank, nope]`: takes a query head into the compressed space.
    KAbsorb,
    /// `[heads, value, kv_rank]`: takes a head's compressed sum out of it.
    VAbsorb,
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
    /// `[experts, width]`
    Router,
    RouterBias,
    /// `[experts]`, for the choice only.
    ChoiceBias,
    /// `[experts, inner, width]`
    ExpertGate,
    /// `[experts · inner]`, one vector
    ExpertGateBias,
    ExpertUp,
    ExpertUpBias,
    /// `[experts, width, inner]`
    ExpertDown,
    /// `[experts · width]`, one vector
    ExpertDownBias,
    SharedGate,
    SharedUp,
    SharedDown,
    /// `[1, width]`
    SharedSwitch,
}

/// Every architecture.
pub static ARCHS: &[Arch] = &[
    gpt2::GPT2, //
    llama::LLAMA,
    llama::MISTRAL,
    mixtral::MIXTRAL,
    qwen::QWEN2,
    qwen::QWEN3,
    qwen::QWEN2_MOE,
    qwen::QWEN3_MOE,
    olmo2::OLMO2,
    phi3::PHI3,
    gemma::GEMMA2,
    gemma::GEMMA3,
    gemma::GEMMA3_VISION,
    gpt_neox::GPT_NEOX,
    bloom::BLOOM,
    mpt::MPT,
    deepseek::DEEPSEEK_V2,
    deepseek::DEEPSEEK_V3,
    gpt_oss::GPT_OSS,
    own::OWN,
];

/// The architecture that reads checkpoints of `model_type`, which is also a spec's `architecture`.
pub fn by_name(model_type: &str) -> Option<&'static Arch> {
    ARCHS.iter().find(|arch| arch.names.contains(&model_type))
}

/// [`by_name`], or the reason why there is none.
///
/// # Errors
/// `UNSUPPORTED`, with the names there are.
pub fn find(model_type: &str) -> Result<&'static Arch> {
    by_name(model_type).ok_or_else(|| {
        let known: Vec<&str> = ARCHS.iter().flat_map(|arch| arch.names).copied().collect();
        Error::new(
            Status::UNSUPPORTED,
            format!("architecture `{model_type}` is not supported; supported are {}", known.join(", ")),
        )
    })
}

/// Reads a checkpoint's `config.json` into a checked [`Spec`].
///
/// # Errors
/// `UNSUPPORTED` for an architecture or a value that is not supported, `BAD_FORMAT` for a malformed file.
pub fn read_config(config: &serde_json::Value) -> Result<(&'static Arch, Spec)> {
    let model_type = config.get("model_type").and_then(serde_json::Value::as_str).ok_or_else(|| {
        Error::new(Status::BAD_FORMAT, "config.json: `model_type` is missing or not a string")
    })?;
    let arch = find(model_type)?;
    if let Some(quantized) = config.get("quantization_config").filter(|v| !v.is_null()) {
        let method = quantized.get("quant_method").and_then(serde_json::Value::as_str).unwrap_or("unnamed");
        return Err(Error::new(
            Status::UNSUPPORTED,
            format!(
                "config.json: `quantization_config` says the weights are stored quantized ({method}), \
                 supported are float32, float16 and bfloat16 weights"
            ),
        ));
    }
    let spec = (arch.read)(config)?;
    spec.check()?;
    Ok((arch, spec))
}
