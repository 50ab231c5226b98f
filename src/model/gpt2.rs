//! GPT-2: learned positions, layer norms with biases, matrices stored `[in, out]` with q, k and v side by side.

use serde_json::{Value, json};

use super::arch::{Arch, LayerSlot as L, Rows, Slot, Take, Want};
use super::config::{Config, inverse_root, layer_norm, share};
use super::list::{self, Origin};
use super::spec::{Attention, Dense, Ffn, Heads, Layer, Spec};
use crate::error::Result;

/// `gpt2`
pub(crate) const GPT2: Arch = Arch { names: &["gpt2"], prefix: "transformer.", read, tensors, ignores };

fn read(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    c.only("add_cross_attention", &json!(false))?;
    let width = c.u32(c.spelling(&["n_embd", "hidden_size"]), 768)?;
    let heads = c.u32(c.spelling(&["n_head", "num_attention_heads"]), 12)?;
    let positions = c.u32(c.spelling(&["n_positions", "max_position_embeddings"]), 1024)?;
    let norm = layer_norm(c.f32("layer_norm_epsilon", 1e-5)?, true);
    let head_dim = share(width, heads)?;
    let scaled = c.flag("scale_attn_weights", true)?;
    let by_layer = c.flag("scale_attn_by_inverse_layer_idx", false)?;
    let inner = c.u32("n_inner", width.saturating_mul(4))?;
    let activation = c.activation("activation_function", "gelu_new")?;
    let layer = |i: u32| {
        let scale = if scaled { inverse_root(head_dim) } else { 1.0 };
        Layer {
            attention_norm: Some(norm),
            attention: Attention::Heads(Heads {
                heads,
                kv_heads: heads,
                head_dim,
                scale: if by_layer { scale / (i + 1) as f32 } else { scale },
                rope: None,
                window: None,
                softcap: None,
                alibi: Vec::new(),
                sinks: false,
                qk_norm: None,
                qkv_bias: true,
                out_bias: true,
            }),
            attention_post_norm: None,
            ffn_norm: Some(norm),
            ffn: Ffn::Plain(Dense { inner, activation, bias: true }),
            ffn_post_norm: None,
            parallel: false,
        }
    };
    Ok(Spec {
        architecture: "gpt2".into(),
        vocab: c.u32("vocab_size", 50257)?,
        width,
        context: positions,
        embedding_scale: 1.0,
        embedding_norm: None,
        learned_positions: Some(positions),
        ropes: Vec::new(),
        layers: (0..c.layers(c.spelling(&["n_layer", "num_hidden_layers"]), 12)?).map(layer).collect(),
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
        let Slot::Layer(i, slot) = slot else {
            return Origin::plain(
                match slot {
                    Slot::Embedding => "transformer.wte.weight",
                    Slot::Positions => "transformer.wpe.weight",
                    Slot::FinalNorm => "transformer.ln_f.weight",
                    Slot::FinalNormBias => "transformer.ln_f.bias",
                    _ => "lm_head.weight",
                },
                shape,
            );
        };
        let at = |name: &str| format!("transformer.h.{i}.{name}");
        let fused = [3 * width];
        // The rows of q, k or v, as the matrix lies once it is turned round, and of the bias.
        let third = |name: &str, j: u64| {
            let rows = Rows::run(j * width, width);
            let bias = name.ends_with("bias");
            let take = if bias { Take::Rows(rows) } else { Take::Transposed(rows) };
            let source = at(if bias { "attn.c_attn.bias" } else { "attn.c_attn.weight" });
            let whole = [width, 3 * width];
            Origin::part(at(name), source, if bias { &fused } else { &whole }, take)
        };
        let turned = |name: &str| match *shape {
            [rows, columns] => {
                Origin::part(at(name), at(name), &[columns, rows], Take::Transposed(Rows::run(0, rows)))
            }
            _ => Origin::plain(at(name), shape),
        };
        match slot {
            L::AttentionNorm => Origin::plain(at("ln_1.weight"), shape),
            L::AttentionNormBias => Origin::plain(at("ln_1.bias"), shape),
            L::Q => third("attn.q.weight", 0),
            L::K => third("attn.k.weight", 1),
            L::V => third("attn.v.weight", 2),
            L::QBias => third("attn.q.bias", 0),
            L::KBias => third("attn.k.bias", 1),
            L::VBias => third("attn.v.bias", 2),
            L::Out => turned("attn.c_proj.weight"),
            L::OutBias => Origin::plain(at("attn.c_proj.bias"), shape),
            L::FfnNorm => Origin::plain(at("ln_2.weight"), shape),
            L::FfnNormBias => Origin::plain(at("ln_2.bias"), shape),
            L::Up => turned("mlp.c_fc.weight"),
            L::UpBias => Origin::plain(at("mlp.c_fc.bias"), shape),
            L::DownBias => Origin::plain(at("mlp.c_proj.bias"), shape),
            _ => turned("mlp.c_proj.weight"),
        }
    })
}

/// Causal masks that old checkpoints carry.
fn ignores(spec: &Spec, name: &str) -> bool {
    name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
        || (spec.tied && name == "lm_head.weight")
}
