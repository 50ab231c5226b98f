//! Llama and what is named like it: the tensor names that most families share, and Llama and Mistral themselves.

use serde_json::Value;

use super::arch::{Arch, LayerSlot as L, Slot, Want};
use super::config::{Config, RopeDefaults, inverse_root, rms};
use super::list::{self, Origin};
use super::spec::{Attention, Dense, Ffn, Heads, Layer, Norm, Rope, Spec};
use crate::error::Result;

/// `llama`
pub(crate) const LLAMA: Arch =
    Arch { names: &["llama"], prefix: "model.", read: read_llama, tensors, ignores };
/// `mistral`
pub(crate) const MISTRAL: Arch =
    Arch { names: &["mistral"], prefix: "model.", read: read_mistral, tensors, ignores };

/// The keys that families of this kind share.
pub(crate) struct Common {
    pub(crate) width: u32,
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) inner: u32,
    pub(crate) vocab: u32,
    pub(crate) context: u32,
    pub(crate) norm: Norm,
}

/// A family's defaults for [`Common::read`], in the order of the fields of `Common`.
pub(crate) struct Defaults {
    pub(crate) width: u32,
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    /// `None`: as many as heads.
    pub(crate) kv_heads: Option<u32>,
    /// `None`: the width's share.
    pub(crate) head_dim: Option<u32>,
    pub(crate) inner: u32,
    pub(crate) vocab: u32,
    pub(crate) context: u32,
    pub(crate) eps: f32,
}

impl Common {
    pub(crate) fn read(c: &Config<'_>, d: &Defaults) -> Result<Self> {
        let width = c.u32("hidden_size", d.width)?;
        let heads = c.u32("num_attention_heads", d.heads)?;
        Ok(Self {
            width,
            layers: c.layers("num_hidden_layers", d.layers)?,
            heads,
            kv_heads: c.kv_heads(heads, d.kv_heads)?,
            head_dim: match d.head_dim {
                Some(dim) if !c.has("head_dim") => dim,
                _ => c.head_dim(width, heads)?,
            },
            inner: c.u32("intermediate_size", d.inner)?,
            vocab: c.u32("vocab_size", d.vocab)?,
            context: c.u32("max_position_embeddings", d.context)?,
            norm: rms(c.f32("rms_norm_eps", d.eps)?),
        })
    }

    /// Attention without extras, on rope 0.
    pub(crate) fn heads(&self) -> Heads {
        Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: inverse_root(self.head_dim),
            rope: Some(0),
            window: None,
            softcap: None,
            alibi: Vec::new(),
            sinks: false,
            qk_norm: None,
            qkv_bias: false,
            out_bias: false,
        }
    }

    /// A layer with norms before its two blocks.
    pub(crate) fn layer(&self, heads: Heads, ffn: Ffn) -> Layer {
        Layer {
            attention_norm: Some(self.norm),
            attention: Attention::Heads(heads),
            attention_post_norm: None,
            ffn_norm: Some(self.norm),
            ffn,
            ffn_post_norm: None,
            parallel: false,
        }
    }

    pub(crate) fn spec(&self, architecture: &str, ropes: Vec<Rope>, layers: Vec<Layer>, tied: bool) -> Spec {
        Spec {
            architecture: architecture.into(),
            vocab: self.vocab,
            width: self.width,
            context: self.context,
            embedding_scale: 1.0,
            embedding_norm: None,
            learned_positions: None,
            ropes,
            layers,
            final_norm: self.norm,
            tied,
            head_bias: false,
            logit_scale: 1.0,
            logit_softcap: None,
        }
    }

    pub(crate) fn rope(&self, theta: f64) -> RopeDefaults {
        RopeDefaults::new(theta, self.head_dim, self.context)
    }
}

fn read_llama(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(
        &c,
        &Defaults {
            width: 4096,
            layers: 32,
            heads: 32,
            kv_heads: None,
            head_dim: None,
            inner: 11008,
            vocab: 32000,
            context: 2048,
            eps: 1e-6,
        },
    )?;
    let bias = c.flag("attention_bias", false)?;
    let heads = Heads { qkv_bias: bias, out_bias: bias, ..common.heads() };
    let activation = c.activation("hidden_act", "silu")?;
    let ffn = Ffn::Gated(Dense { inner: common.inner, activation, bias: c.flag("mlp_bias", false)? });
    let layers = (0..common.layers).map(|_| common.layer(heads.clone(), ffn.clone())).collect();
    let rope = c.rope("full_attention", common.rope(10_000.0))?;
    Ok(common.spec("llama", vec![rope], layers, c.flag("tie_word_embeddings", false)?))
}

fn read_mistral(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(
        &c,
        &Defaults {
            width: 4096,
            layers: 32,
            heads: 32,
            kv_heads: Some(8),
            head_dim: None,
            inner: 14336,
            vocab: 32000,
            context: 131_072,
            eps: 1e-6,
        },
    )?;
    let heads = Heads { window: c.nullable("sliding_window", Some(4096))?, ..common.heads() };
    let activation = c.activation("hidden_act", "silu")?;
    let ffn = Ffn::Gated(Dense { inner: common.inner, activation, bias: false });
    let layers = (0..common.layers).map(|_| common.layer(heads.clone(), ffn.clone())).collect();
    let rope = c.rope("full_attention", common.rope(10_000.0))?;
    Ok(common.spec("mistral", vec![rope], layers, c.flag("tie_word_embeddings", false)?))
}

/// The shared names. A family with others asks here for the slots it does not name itself.
pub(crate) fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| origin(slot, shape, "model."))
}

/// Where `slot` comes from under the shared names behind `prefix`.
pub(crate) fn origin(slot: Slot, shape: &[u64], prefix: &str) -> Origin {
    let Slot::Layer(i, slot) = slot else {
        return Origin::plain(
            match slot {
                Slot::Embedding => format!("{prefix}embed_tokens.weight"),
                Slot::FinalNorm => format!("{prefix}norm.weight"),
                _ => "lm_head.weight".into(),
            },
            shape,
        );
    };
    let layer = format!("{prefix}layers.{i}");
    let expert = |name: &str| {
        Origin::stacked(format!("{layer}.mlp.experts.{name}.weight"), shape, |e| {
            format!("{layer}.mlp.experts.{e}.{name}.weight")
        })
    };
    let name = match slot {
        L::ExpertGate => return expert("gate_proj"),
        L::ExpertUp => return expert("up_proj"),
        L::ExpertDown => return expert("down_proj"),
        L::AttentionNorm => "input_layernorm.weight",
        L::Q => "self_attn.q_proj.weight",
        L::QBias => "self_attn.q_proj.bias",
        L::K => "self_attn.k_proj.weight",
        L::KBias => "self_attn.k_proj.bias",
        L::V => "self_attn.v_proj.weight",
        L::VBias => "self_attn.v_proj.bias",
        L::Out => "self_attn.o_proj.weight",
        L::OutBias => "self_attn.o_proj.bias",
        L::QNorm => "self_attn.q_norm.weight",
        L::KNorm => "self_attn.k_norm.weight",
        L::Sinks => "self_attn.sinks",
        L::FfnNorm => "post_attention_layernorm.weight",
        L::Gate => "mlp.gate_proj.weight",
        L::GateBias => "mlp.gate_proj.bias",
        L::Up => "mlp.up_proj.weight",
        L::UpBias => "mlp.up_proj.bias",
        L::Down => "mlp.down_proj.weight",
        L::DownBias => "mlp.down_proj.bias",
        L::Router => "mlp.gate.weight",
        L::SharedGate => "mlp.shared_expert.gate_proj.weight",
        L::SharedUp => "mlp.shared_expert.up_proj.weight",
        L::SharedDown => "mlp.shared_expert.down_proj.weight",
        L::SharedSwitch => "mlp.shared_expert_gate.weight",
        // No family that uses these names reaches another slot; a name no checkpoint has makes it show.
        _ => "unnamed",
    };
    Origin::plain(format!("{layer}.{name}"), shape)
}

/// Rotary tables that old checkpoints carry, and the second copy of a tied matrix.
pub(crate) fn ignores(spec: &Spec, name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (spec.tied && name == "lm_head.weight")
}
