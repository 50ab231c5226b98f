//! The design of a model: what a user chooses, and the published layout it equals.
//!
//! ```text
//! ModelConfig ──layout──▶ config.json of gpt2 | llama | mistral | qwen2 | qwen3 | olmo2 | mpt | bloom | mixtral
//!                                        deepseek_v2 | deepseek_v3
//!                                        or, where no published layout equals it, of our own: libllm
//!             ──spec────▶ what libllm makes of that file: the one description that training, checkpoints and
//!                         inference share
//! ```
//! It does not know tensors: which there are, and how a checkpoint holds them, follows from the spec.

mod own;
mod published;

use llm::error::{Error, Result, Status};
use llm::model::arch::{Arch, read_config};
use llm::model::spec::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The most of any one dimension, as of every model's description.
const DIM: usize = Spec::MOST_DIM as usize;
/// The most layers.
const LAYERS: usize = Spec::MOST_LAYERS;
/// The most heads of a layer.
const HEADS: usize = Spec::MOST_HEADS as usize;

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

impl RopeScaling {
    /// The context before, of a model whose context is `context` now.
    fn original(&self, context: usize) -> usize {
        if self.original > 0 { self.original } else { (context as f64 / self.factor) as usize }
    }
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

/// What a router makes of its logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoringDesign {
    /// Shares of one.
    #[default]
    Softmax,
    /// Each for itself; for the choice alone a correction is added, which follows `bias_rate` (DeepSeek-V3,
    /// arXiv:2412.19437).
    Sigmoid,
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
    /// What a router makes of its logits.
    pub scoring: ScoringDesign,
    /// Experts fall into this many equal groups; a token uses those of `active_groups` alone.
    pub groups: usize,
    /// How many groups a token chooses from: those with the best expert, with sigmoids those with the best two together.
    pub active_groups: usize,
    /// Factor on the experts' weights.
    pub scale: f32,
    /// Layers, from the first on, that have a plain block of width `ffn` instead.
    pub dense_layers: usize,
    /// Factor of the loss that spreads tokens over experts (Shazeer et al. 2017, as in Switch Transformers).
    pub balance: f32,
    /// With sigmoids: how far a step moves the correction of an expert's choice, down if it had more than its share of the
    /// step's tokens, up if it had less.
    pub bias_rate: f32,
    /// Factor of the loss on the router's log-sum-exp (ST-MoE).
    pub z_loss: f32,
}

impl Default for ExpertsDesign {
    fn default() -> Self {
        ExpertsDesign {
            count: 0,
            active: 2,
            ffn: 0,
            shared: 0,
            scoring: ScoringDesign::Softmax,
            groups: 1,
            active_groups: 1,
            scale: 1.0,
            dense_layers: 0,
            balance: 0.01,
            bias_rate: 1e-3,
            z_loss: 0.0,
        }
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

    /// The size of nanoGPT's character model: GPT-2 with 6 layers, 6 heads, width 384, 256 tokens.
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
            ("vocab", self.vocab, DIM),
            ("layers", self.layers, LAYERS),
            ("heads", self.heads, HEADS),
            ("kv_heads", self.kv_heads, HEADS),
            ("width", self.width, DIM),
            ("ffn", self.ffn, DIM),
            ("context", self.context, DIM),
        ];
        for (name, value, most) in positive {
            if value == 0 || value > most {
                return Err(invalid(format!("model.{name} = {value}: expected 1 to {most}")));
            }
        }
        let (x, l) = (&self.experts, &self.latent);
        let others = [
            ("head_dim", self.head_dim),
            ("window", self.window),
            ("experts.count", x.count),
            ("experts.ffn", x.ffn),
            ("experts.shared", x.shared),
            ("latent.kv_rank", l.kv_rank),
            ("latent.q_rank", l.q_rank),
            ("latent.nope", l.nope),
            ("latent.rope", l.rope),
            ("latent.value", l.value),
        ];
        for (name, value) in others {
            if value > DIM {
                return Err(invalid(format!("model.{name} = {value}: expected 0 to {DIM}")));
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
        self.check_training()?;
        for (name, value) in [("eps", f64::from(self.eps)), ("rope_theta", self.rope_theta)] {
            if !value.is_finite() || value <= 0.0 {
                return Err(invalid(format!("model.{name} = {value}: expected above 0")));
            }
        }
        if x.count > 0 {
            self.check_routing()?;
        }
        if l.kv_rank > 0 {
            self.check_latent()?;
        }
        Ok(())
    }

    /// Checks latent attention, where there is some.
    fn check_latent(&self) -> Result<()> {
        let l = &self.latent;
        if !matches!(self.position, Position::Rope | Position::None) {
            let position = json!(self.position);
            return Err(invalid(format!(
                "model.position = {position}: expected rope or none with latent attention, which rotates a part of \
                 each head or nothing"
            )));
        }
        let absent = [
            ("qk_norm", self.qk_norm == QkDesign::None, json!(self.qk_norm), "none"),
            ("window", self.window == 0, json!(self.window), "0"),
            ("bias", self.bias == Bias::None, json!(self.bias), "none"),
        ];
        if let Some((name, _, value, expected)) = absent.iter().find(|(_, fits, ..)| !fits) {
            return Err(invalid(format!(
                "model.{name} = {value}: expected {expected} with latent attention; no layout that libllm writes has \
                 both"
            )));
        }
        for (name, value) in [("nope", l.nope), ("value", l.value)] {
            if value == 0 {
                return Err(invalid(format!("model.latent.{name} = 0: expected above 0")));
            }
        }
        if self.position == Position::Rope && (l.rope == 0 || !l.rope.is_multiple_of(2)) {
            return Err(invalid(format!("model.latent.rope = {}: expected an even number", l.rope)));
        }
        Ok(())
    }

    /// Checks what says nothing about the shape, and so holds for the model of a checkpoint, too.
    ///
    /// # Errors
    /// `INVALID_ARG` with the first setting that does not fit.
    pub(crate) fn check_training(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(invalid(format!("model.dropout = {}: expected 0 or more, below 1", self.dropout)));
        }
        let x = &self.experts;
        for (name, value) in [("balance", x.balance), ("z_loss", x.z_loss), ("bias_rate", x.bias_rate)] {
            if !value.is_finite() || value < 0.0 {
                return Err(invalid(format!("model.experts.{name} = {value}: expected 0 or more")));
            }
        }
        Ok(())
    }

    /// Checks how experts are chosen, where there are some.
    fn check_routing(&self) -> Result<()> {
        let x = &self.experts;
        if x.active == 0 || x.active > x.count {
            let (active, count) = (x.active, x.count);
            return Err(invalid(format!("model.experts.active = {active}: expected 1 to count, {count}")));
        }
        if !self.gated() {
            let feed = json!(self.feed);
            return Err(invalid(format!(
                "model.feed = {feed}: expected swiglu or geglu with experts; no layout that libllm writes has experts \
                 without a gate"
            )));
        }
        if x.groups == 0 || !x.count.is_multiple_of(x.groups) {
            let (groups, count) = (x.groups, x.count);
            return Err(invalid(format!(
                "model.experts.groups = {groups}: expected a divisor of count, {count}"
            )));
        }
        let size = x.count / x.groups;
        if x.active_groups == 0 || x.active_groups > x.groups || x.active > size * x.active_groups {
            return Err(invalid(format!(
                "model.experts.active_groups = {}: expected 1 to {} groups, of {size} experts each, with {} or more \
                 experts in all",
                x.active_groups, x.groups, x.active
            )));
        }
        if !x.scale.is_finite() || x.scale <= 0.0 {
            return Err(invalid(format!("model.experts.scale = {}: expected above 0", x.scale)));
        }
        if x.scoring == ScoringDesign::Sigmoid && (size < 2 || x.z_loss != 0.0) {
            return Err(invalid(format!(
                "model.experts.scoring = sigmoid: expected 2 or more experts in a group, got {size}, and z_loss 0, got \
                 {}",
                x.z_loss
            )));
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
        let original = s.original(self.context);
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
}

/// The decimal number a user would have written for this f32.
fn as_f64(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

fn invalid(message: String) -> Error {
    Error::new(Status::INVALID_ARG, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_model_has_is_refused_by_name() {
        // a design that no published layout equals: its description is put together here
        let own = || {
            let experts = ExpertsDesign { count: 4, shared: 1, ..ExpertsDesign::default() };
            ModelConfig { vocab: 19, experts, ..ModelConfig::tiny() }
        };
        assert_eq!(own().layout(), "libllm");
        own().spec().unwrap();
        type Change = fn(&mut ModelConfig);
        let changes: [(&str, Change); 10] = [
            ("model.layers = 4097: expected 1 to 4096", |m| m.layers = 4097),
            ("model.head_dim = ", |m| m.head_dim = usize::MAX),
            ("model.window = ", |m| m.window = usize::MAX),
            ("model.experts.count = ", |m| m.experts.count = usize::MAX),
            ("model.experts.shared = ", |m| m.experts.shared = usize::MAX),
            ("model.latent.nope = ", |m| m.latent.nope = usize::MAX),
            ("model.experts.scale = inf: expected above 0", |m| m.experts.scale = f32::INFINITY),
            ("model.experts.balance = NaN: expected 0 or more", |m| m.experts.balance = f32::NAN),
            ("model.experts.z_loss = -1: expected 0 or more", |m| m.experts.z_loss = -1.0),
            ("model.experts.bias_rate = -1: expected 0 or more", |m| m.experts.bias_rate = -1.0),
        ];
        for (expected, change) in changes {
            let mut model = own();
            change(&mut model);
            let e = model.spec().unwrap_err();
            assert!(e.message().contains(expected), "{e}");
        }
    }

    #[test]
    fn what_no_layout_has_is_refused_with_the_setting_and_the_reason() {
        let experts = ExpertsDesign { count: 4, ..ExpertsDesign::default() };
        let latent = LatentDesign { kv_rank: 8, ..LatentDesign::default() };
        let moe = ModelConfig { vocab: 19, experts, ..ModelConfig::tiny() };
        let mla = ModelConfig { vocab: 19, latent, ..ModelConfig::tiny() };
        moe.spec().unwrap();
        mla.spec().unwrap();
        let gate = "no layout that libllm writes has experts without a gate";
        let both = "with latent attention; no layout that libllm writes has both";
        let turned = "with latent attention, which rotates a part of each head or nothing";
        type Change = fn(&mut ModelConfig);
        let cases: [(&str, &str, &ModelConfig, Change); 6] = [
            ("model.feed = \"gelu\": expected swiglu or geglu", gate, &moe, |m| m.feed = Feed::Gelu),
            ("model.feed = \"relu2\": ", gate, &moe, |m| m.feed = Feed::Relu2),
            ("model.qk_norm = \"head\": expected none", both, &mla, |m| m.qk_norm = QkDesign::Head),
            ("model.window = 4: expected 0", both, &mla, |m| m.window = 4),
            ("model.bias = \"qkv\": expected none", both, &mla, |m| m.bias = Bias::Qkv),
            ("model.position = \"alibi\": ", turned, &mla, |m| m.position = Position::Alibi),
        ];
        for (setting, reason, model, change) in cases {
            let mut model = model.clone();
            change(&mut model);
            let e = model.spec().unwrap_err();
            assert_eq!(e.status(), Status::INVALID_ARG);
            assert!(e.message().contains(setting) && e.message().contains(reason), "{e}");
        }
    }

    #[test]
    fn a_description_put_together_here_is_the_one_that_a_published_layout_is_read_into() {
        for kind in [ScalingKind::None, ScalingKind::Linear, ScalingKind::Llama3, ScalingKind::Yarn] {
            let rope_scaling = RopeScaling { kind, ..RopeScaling::default() };
            let model = ModelConfig { vocab: 19, rope_scaling, ..ModelConfig::tiny() };
            let (_, published) = model.spec().unwrap();
            let own = model.own_spec().unwrap();
            assert_eq!(Spec { architecture: published.architecture.clone(), ..own }, published);
        }
    }
}
