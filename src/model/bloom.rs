//! BLOOM: ALiBi instead of positions, and a norm on the embedding.

use serde_json::{Value, json};

use super::alibi;
use super::arch::{Arch, LayerSlot as L, Slot, Want};
use super::config::{Config, inverse_root, layer_norm, share};
use super::fused;
use super::list::{self, Origin};
use super::spec::{Activation, Attention, Dense, Ffn, Heads, Layer, Spec};
use crate::error::Result;

/// `bloom`
pub(crate) const BLOOM: Arch = Arch { names: &["bloom"], prefix: "transformer.", read, tensors, ignores };

fn read(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    c.only("apply_residual_connection_post_layernorm", &json!(false))?;
    let width = c.u32(c.spelling(&["n_embed", "hidden_size"]), 64)?;
    let heads = c.heads(c.spelling(&["n_head", "num_attention_heads"]), 8)?;
    let norm = layer_norm(c.f32("layer_norm_epsilon", 1e-5)?, true);
    let head_dim = share(width, heads)?;
    let layer = Layer {
        attention_norm: Some(norm),
        attention: Attention::Heads(Heads {
            heads,
            kv_heads: heads,
            head_dim,
            scale: inverse_root(head_dim),
            rope: None,
            window: None,
            softcap: None,
            alibi: alibi::slopes(heads, 8.0),
            sinks: false,
            qk_norm: None,
            qkv_bias: true,
            out_bias: true,
        }),
        attention_post_norm: None,
        ffn_norm: Some(norm),
        ffn: Ffn::Plain(Dense {
            inner: width.saturating_mul(4),
            activation: Activation::GeluTanh,
            bias: true,
        }),
        ffn_post_norm: None,
        parallel: false,
    };
    Ok(Spec {
        architecture: "bloom".into(),
        vocab: c.u32("vocab_size", 250_880)?,
        width,
        // Nothing in the model limits it; 2048 is what BLOOM was trained with.
        context: c.u32("seq_length", 2048)?,
        embedding_scale: 1.0,
        embedding_norm: Some(norm),
        learned_positions: None,
        ropes: Vec::new(),
        layers: vec![layer; c.layers(c.spelling(&["n_layer", "num_hidden_layers"]), 2)? as usize],
        final_norm: norm,
        tied: c.flag("tie_word_embeddings", true)?,
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
                    Slot::Embedding => "transformer.word_embeddings.weight",
                    Slot::EmbeddingNorm => "transformer.word_embeddings_layernorm.weight",
                    Slot::EmbeddingNormBias => "transformer.word_embeddings_layernorm.bias",
                    Slot::FinalNorm => "transformer.ln_f.weight",
                    Slot::FinalNormBias => "transformer.ln_f.bias",
                    _ => "lm_head.weight",
                },
                shape,
            );
        };
        let at = |name: &str| format!("transformer.h.{i}.{name}");
        if let Some(origin) = fused::by_head(spec, i, part, "self_attention.query_key_value", at) {
            return origin;
        }
        let name = match part {
            L::AttentionNorm => "input_layernorm.weight",
            L::AttentionNormBias => "input_layernorm.bias",
            L::Out => "self_attention.dense.weight",
            L::OutBias => "self_attention.dense.bias",
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

fn ignores(spec: &Spec, name: &str) -> bool {
    spec.tied && name == "lm_head.weight"
}
