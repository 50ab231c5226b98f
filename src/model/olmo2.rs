//! OLMo 2: norms after the blocks instead of before them, and one norm over all query and all key heads.

use serde_json::Value;

use super::arch::{Arch, LayerSlot as L, Slot, Want};
use super::config::Config;
use super::list::{self, Origin};
use super::llama::{self, Common, Defaults};
use super::spec::{Dense, Ffn, Heads, Layer, QkNorm, Spec};
use crate::error::Result;

/// `olmo2`
pub(crate) const OLMO2: Arch =
    Arch { names: &["olmo2"], prefix: "model.", read, tensors, ignores: llama::ignores };

fn read(config: &Value) -> Result<Spec> {
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
            vocab: 50304,
            context: 2048,
            eps: 1e-5,
        },
    )?;
    let bias = c.flag("attention_bias", false)?;
    let qk_norm = Some(QkNorm { norm: common.norm, whole: true });
    let heads = Heads { qk_norm, qkv_bias: bias, out_bias: bias, ..common.heads() };
    let activation = c.activation("hidden_act", "silu")?;
    let ffn = Ffn::Gated(Dense { inner: common.inner, activation, bias: false });
    let layer = |_| Layer {
        attention_norm: None,
        attention_post_norm: Some(common.norm),
        ffn_norm: None,
        ffn_post_norm: Some(common.norm),
        ..common.layer(heads.clone(), ffn.clone())
    };
    let layers = (0..common.layers).map(layer).collect();
    let rope = c.rope("full_attention", common.rope(10_000.0))?;
    Ok(common.spec("olmo2", vec![rope], layers, c.flag("tie_word_embeddings", false)?))
}

fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| match slot {
        Slot::Layer(i, L::AttentionPostNorm) => {
            Origin::plain(format!("model.layers.{i}.post_attention_layernorm.weight"), shape)
        }
        Slot::Layer(i, L::FfnPostNorm) => {
            Origin::plain(format!("model.layers.{i}.post_feedforward_layernorm.weight"), shape)
        }
        _ => llama::origin(slot, shape, "model."),
    })
}
