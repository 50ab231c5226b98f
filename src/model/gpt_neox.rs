//! GPT-NeoX and Pythia: both blocks read the layer's input, a part of each head rotates.

use serde_json::Value;

use super::arch::{Arch, LayerSlot as L, Slot, Want};
use super::config::{Config, RopeDefaults, inverse_root, layer_norm, share};
use super::fused;
use super::list::{self, Origin};
use super::spec::{Attention, Dense, Ffn, Heads, Layer, Spec};
use crate::error::Result;

/// `gpt_neox`
pub(crate) const GPT_NEOX: Arch = Arch { names: &["gpt_neox"], prefix: "gpt_neox.", read, tensors, ignores };

fn read(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let width = c.u32("hidden_size", 6144)?;
    let heads = c.u32("num_attention_heads", 64)?;
    let context = c.u32("max_position_embeddings", 2048)?;
    let norm = layer_norm(c.f32("layer_norm_eps", 1e-5)?, true);
    let head_dim = share(width, heads)?;
    let bias = c.flag("attention_bias", true)?;
    let rope = c.rope(
        "full_attention",
        RopeDefaults { partial: 0.25, ..RopeDefaults::new(10_000.0, head_dim, context) },
    )?;
    let layer = Layer {
        attention_norm: Some(norm),
        attention: Attention::Heads(Heads {
            heads,
            kv_heads: heads,
            head_dim,
            scale: inverse_root(head_dim),
            rope: Some(0),
            window: None,
            softcap: None,
            alibi: Vec::new(),
            sinks: false,
            qk_norm: None,
            qkv_bias: bias,
            out_bias: bias,
        }),
        attention_post_norm: None,
        ffn_norm: Some(norm),
        ffn: Ffn::Plain(Dense {
            inner: c.u32("intermediate_size", 24576)?,
            activation: c.activation("hidden_act", "gelu")?,
            bias: true,
        }),
        ffn_post_norm: None,
        parallel: c.flag("use_parallel_residual", true)?,
    };
    Ok(Spec {
        architecture: "gpt_neox".into(),
        vocab: c.u32("vocab_size", 50432)?,
        width,
        context,
        embedding_scale: 1.0,
        embedding_norm: None,
        learned_positions: None,
        ropes: vec![rope],
        layers: vec![layer; c.layers("num_hidden_layers", 44)? as usize],
        final_norm: norm,
        tied: c.flag("tie_word_embeddings", false)?,
        head_bias: false,
        logit_scale: 1.0,
        logit_softcap: None,
    })
}

fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| {
        let Slot::Layer(i, part) = slot else {
            return Origin::plain(
                match slot {
                    Slot::Embedding => "gpt_neox.embed_in.weight",
                    Slot::FinalNorm => "gpt_neox.final_layer_norm.weight",
                    Slot::FinalNormBias => "gpt_neox.final_layer_norm.bias",
                    _ => "embed_out.weight",
                },
                shape,
            );
        };
        let at = |name: &str| format!("gpt_neox.layers.{i}.{name}");
        if let Some(origin) = fused::by_head(spec, i, part, "attention.query_key_value", at) {
            return origin;
        }
        let name = match part {
            L::AttentionNorm => "input_layernorm.weight",
            L::AttentionNormBias => "input_layernorm.bias",
            L::Out => "attention.dense.weight",
            L::OutBias => "attention.dense.bias",
            L::FfnNorm => "post_attention_layernorm.weight",
            L::FfnNormBias => "post_attention_layernorm.bias",
            L::Up => "mlp.dense_h_to_4h.weight",
            L::UpBias => "mlp.dense_h_to_4h.bias",
            L::Down => "mlp.dense_4h_to_h.weight",
            _ => "mlp.dense_4h_to_h.bias",
        };
        Origin::plain(at(name), shape)
    })
}

/// Causal masks and rotary tables that old checkpoints carry.
fn ignores(spec: &Spec, name: &str) -> bool {
    ["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"].iter().any(|end| name.ends_with(end))
        || (spec.tied && name == "embed_out.weight")
}
