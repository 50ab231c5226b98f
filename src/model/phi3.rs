//! Phi-3 and 4: Llama with q, k and v in one matrix, gate and up in another, and longrope.

use serde_json::Value;

use super::arch::{Arch, LayerSlot as L, Rows, Slot, Take, Want};
use super::config::{Config, RopeDefaults};
use super::list::{self, Origin};
use super::llama::{self, Common, Defaults};
use super::spec::{Attention, Dense, Ffn, Heads, Spec};
use crate::error::Result;

/// `phi3`
pub(crate) const PHI3: Arch =
    Arch { names: &["phi3"], prefix: "model.", read, tensors, ignores: llama::ignores };

fn read(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(
        &c,
        &Defaults {
            width: 3072,
            layers: 32,
            heads: 32,
            kv_heads: None,
            head_dim: None,
            inner: 8192,
            vocab: 32064,
            context: 4096,
            eps: 1e-5,
        },
    )?;
    let heads = Heads { window: c.nullable("sliding_window", None)?, ..common.heads() };
    let activation = c.activation("hidden_act", "silu")?;
    let ffn = Ffn::Gated(Dense { inner: common.inner, activation, bias: false });
    let layers = (0..common.layers).map(|_| common.layer(heads.clone(), ffn.clone())).collect();
    // Its class gives `original_max_position_embeddings` a default of its own.
    let rope = c.rope("full_attention", RopeDefaults { original: 4096, ..common.rope(10_000.0) })?;
    Ok(common.spec("phi3", vec![rope], layers, c.flag("tie_word_embeddings", false)?))
}

fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| {
        let Slot::Layer(i, part) = slot else { return llama::origin(slot, shape, "model.") };
        let Some(layer) = spec.layers.get(i as usize) else { return llama::origin(slot, shape, "model.") };
        let (q, kv) = match &layer.attention {
            Attention::Heads(h) => (h.heads * h.head_dim, h.kv_heads * h.head_dim),
            Attention::Latent(_) => (0, 0),
        };
        let inner = match &layer.ffn {
            Ffn::Gated(dense) => u64::from(dense.inner),
            _ => 0,
        };
        let (q, kv, width) = (u64::from(q), u64::from(kv), u64::from(spec.width));
        let at = |name: &str| format!("model.layers.{i}.{name}.weight");
        let qkv = |name: &str, start, count| {
            let take = Take::Rows(Rows::run(start, count));
            Origin::part(at(name), at("self_attn.qkv_proj"), &[q + 2 * kv, width], take)
        };
        let gate_up = |name: &str, start| {
            let take = Take::Rows(Rows::run(start, inner));
            Origin::part(at(name), at("mlp.gate_up_proj"), &[2 * inner, width], take)
        };
        match part {
            L::Q => qkv("self_attn.q_proj", 0, q),
            L::K => qkv("self_attn.k_proj", q, kv),
            L::V => qkv("self_attn.v_proj", q + kv, kv),
            L::Gate => gate_up("mlp.gate_proj", 0),
            L::Up => gate_up("mlp.up_proj", inner),
            _ => llama::origin(slot, shape, "model."),
        }
    })
}
