//! MPT: ALiBi, no biases anywhere, q, k and v stacked in one matrix.

use serde_json::{Value, json};

use super::alibi;
use super::arch::{Arch, LayerSlot as L, Rows, Slot, Take, Want};
use super::config::{Config, inverse_root, layer_norm, share};
use super::list::{self, Origin};
use super::spec::{Activation, Attention, Dense, Ffn, Heads, Layer, Spec};
use crate::error::Result;

/// `mpt`
pub(crate) const MPT: Arch = Arch { names: &["mpt"], prefix: "transformer.", read, tensors, ignores };

fn read(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    c.only("no_bias", &json!(true))?;
    // A factor on the logits; none of the published checkpoints sets it.
    c.only("logit_scale", &Value::Null)?;
    let width = c.u32(c.spelling(&["d_model", "hidden_size"]), 2048)?;
    let heads = c.heads(c.spelling(&["n_heads", "num_attention_heads"]), 16)?;
    let head_dim = share(width, heads)?;
    let norm = layer_norm(c.f32("layer_norm_epsilon", 1e-5)?, false);
    let (mut slope_max, mut scale) = (8.0, inverse_root(head_dim));
    if let Some(a) = c.child("attn_config")? {
        a.only("attn_type", &json!("multihead_attention"))?;
        a.only("alibi", &json!(true))?;
        a.only("clip_qkv", &Value::Null)?;
        a.only("qk_ln", &json!(false))?;
        a.only("prefix_lm", &json!(false))?;
        slope_max = a.number("alibi_bias_max")?.unwrap_or(slope_max);
        scale = a.f32("softmax_scale", scale)?;
    }
    let layer = Layer {
        attention_norm: Some(norm),
        attention: Attention::Heads(Heads {
            heads,
            kv_heads: heads,
            head_dim,
            scale,
            rope: None,
            window: None,
            softcap: None,
            alibi: alibi::slopes(heads, slope_max),
            sinks: false,
            qk_norm: None,
            qkv_bias: false,
            out_bias: false,
        }),
        attention_post_norm: None,
        ffn_norm: Some(norm),
        // transformers' model takes 4 whatever `expansion_ratio` says, and so do the checkpoints it writes.
        ffn: Ffn::Plain(Dense { inner: width.saturating_mul(4), activation: Activation::Gelu, bias: false }),
        ffn_post_norm: None,
        parallel: false,
    };
    Ok(Spec {
        architecture: "mpt".into(),
        vocab: c.u32("vocab_size", 50368)?,
        width,
        context: c.u32("max_seq_len", 2048)?,
        embedding_scale: 1.0,
        embedding_norm: None,
        learned_positions: None,
        ropes: Vec::new(),
        layers: vec![layer; c.layers(c.spelling(&["n_layers", "num_hidden_layers"]), 24)? as usize],
        final_norm: norm,
        tied: c.flag("tie_word_embeddings", true)?,
        head_bias: false,
        logit_scale: 1.0,
        logit_softcap: None,
    })
}

fn tensors(spec: &Spec) -> Vec<Want> {
    let width = u64::from(spec.width);
    list::tensors(spec, |slot, shape| {
        let Slot::Layer(i, part) = slot else {
            return Origin::plain(
                match slot {
                    Slot::Embedding => "transformer.wte.weight",
                    Slot::FinalNorm => "transformer.norm_f.weight",
                    _ => "lm_head.weight",
                },
                shape,
            );
        };
        let at = |name: &str| format!("transformer.blocks.{i}.{name}.weight");
        let third = |name: &str, j: u64| {
            let take = Take::Rows(Rows::run(j * width, width));
            Origin::part(at(name), at("attn.Wqkv"), &[3 * width, width], take)
        };
        match part {
            L::AttentionNorm => Origin::plain(at("norm_1"), shape),
            L::Q => third("attn.Wq", 0),
            L::K => third("attn.Wk", 1),
            L::V => third("attn.Wv", 2),
            L::Out => Origin::plain(at("attn.out_proj"), shape),
            L::FfnNorm => Origin::plain(at("norm_2"), shape),
            L::Up => Origin::plain(at("ffn.up_proj"), shape),
            _ => Origin::plain(at("ffn.down_proj"), shape),
        }
    })
}

fn ignores(spec: &Spec, name: &str) -> bool {
    spec.tied && name == "lm_head.weight"
}
