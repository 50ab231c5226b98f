//! Gemma 2 and 3: four norms a layer whose weights are stored less one, scaled embeddings, alternating windows;
//! soft caps (2), norms of query and key heads and two rotary tables (3).

use serde_json::{Value, json};

use super::arch::{Arch, LayerSlot as L, Slot, Want};
use super::config::{Config, RopeDefaults};
use super::list::{self, Origin};
use super::llama::{self, Common, Defaults};
use super::spec::{Dense, Ffn, Heads, Layer, QkNorm, Rope, Scaling, Spec};
use crate::error::{Error, Result, Status};

/// `gemma2`
pub(crate) const GEMMA2: Arch =
    Arch { names: &["gemma2"], prefix: "model.", read: read_gemma2, tensors, ignores };
/// `gemma3_text`
pub(crate) const GEMMA3: Arch =
    Arch { names: &["gemma3_text"], prefix: "model.", read: read_gemma3, tensors, ignores };
/// `gemma3`: the language model of a checkpoint that also sees.
pub(crate) const GEMMA3_VISION: Arch =
    Arch { names: &["gemma3"], prefix: "language_model.", read: read_vision, tensors, ignores };

const DEFAULTS: Defaults = Defaults {
    width: 2304,
    layers: 26,
    heads: 8,
    kv_heads: Some(4),
    head_dim: Some(256),
    inner: 9216,
    vocab: 256_000,
    context: 8192,
    eps: 1e-6,
};

/// What both have in common, on the layers that `sliding` tells apart.
fn build(
    name: &str,
    c: &Config<'_>,
    common: &Common,
    heads: &Heads,
    ropes: Vec<Rope>,
    sliding: &[bool],
) -> Result<Spec> {
    c.only("use_bidirectional_attention", &json!(false))?;
    let window = c.nullable("sliding_window", Some(4096))?;
    let bias = c.flag("attention_bias", false)?;
    let scale = (1.0 / c.number("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt()) as f32;
    let activation = c.activation("hidden_activation", "gelu_pytorch_tanh")?;
    let ffn = Ffn::Gated(Dense { inner: common.inner, activation, bias: false });
    // The sliding layers' table is the last one: the second where there are two.
    let local = ropes.len().saturating_sub(1) as u32;
    let layers = sliding.iter().map(|sliding| Layer {
        attention_post_norm: Some(common.norm),
        ffn_post_norm: Some(common.norm),
        ..common.layer(
            Heads {
                scale,
                qkv_bias: bias,
                out_bias: bias,
                window: if *sliding { window } else { None },
                rope: Some(if *sliding { local } else { 0 }),
                ..heads.clone()
            },
            ffn.clone(),
        )
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    Ok(Spec {
        embedding_scale: f64::from(common.width).sqrt() as f32,
        ..common.spec(name, ropes, layers.collect(), tied)
    })
}

fn read_gemma2(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(&c, &DEFAULTS)?;
    let softcap = c.nullable_f32("attn_logit_softcapping", Some(50.0))?;
    let heads = Heads { softcap, ..common.heads() };
    let sliding = c.sliding(common.layers, |i| i % 2 == 0)?;
    let rope = c.rope("full_attention", common.rope(10_000.0))?;
    let spec = build("gemma2", &c, &common, &heads, vec![rope], &sliding)?;
    Ok(Spec { logit_softcap: c.nullable_f32("final_logit_softcapping", Some(30.0))?, ..spec })
}

fn read_gemma3(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(&c, &Defaults { vocab: 262_208, context: 131_072, ..DEFAULTS })?;
    let softcap = c.nullable_f32("attn_logit_softcapping", None)?;
    let qk_norm = Some(QkNorm { norm: common.norm, whole: false });
    let heads = Heads { softcap, qk_norm, ..common.heads() };
    let pattern = c.u32(c.spelling(&["sliding_window_pattern", "_sliding_window_pattern"]), 6)?;
    let sliding = c.sliding(common.layers, |i| (i + 1).checked_rem(pattern) != Some(0))?;
    let global = c.rope("full_attention", common.rope(1_000_000.0))?;
    let ropes = vec![global, local_rope(&c, common.rope(10_000.0))?];
    let spec = build("gemma3_text", &c, &common, &heads, ropes, &sliding)?;
    Ok(Spec { logit_softcap: c.nullable_f32("final_logit_softcapping", None)?, ..spec })
}

/// The table of the layers with a window: `rope_parameters.sliding_attention`, or in the old layout
/// `rope_local_base_freq`, which `rope_scaling` does not touch.
fn local_rope(c: &Config<'_>, defaults: RopeDefaults) -> Result<Rope> {
    let theta = c.number("rope_local_base_freq")?.unwrap_or(defaults.theta);
    let local = match c.child("rope_parameters")? {
        Some(params) => params.child("sliding_attention")?,
        None => None,
    };
    let (theta, scaling) = match local {
        Some(params) => (params.number("rope_theta")?.unwrap_or(theta), c.scaling(&params, &defaults)?),
        None => (theta, Scaling::None),
    };
    Ok(Rope { theta, dim: defaults.head_dim, pairs: defaults.pairs, scaling })
}

fn read_vision(config: &Value) -> Result<Spec> {
    let Some(text) = config.get("text_config").filter(|v| v.is_object()) else {
        return Err(Error::new(Status::BAD_FORMAT, "config.json: `text_config` is missing or not an object"));
    };
    Ok(Spec { architecture: "gemma3".into(), ..read_gemma3(text)? })
}

fn tensors(spec: &Spec) -> Vec<Want> {
    let outer = if spec.architecture == "gemma3" { "language_model." } else { "" };
    let prefix = format!("{outer}model.");
    list::tensors(spec, |slot, shape| {
        let layer = |i: u32, name: &str| Origin::plain(format!("{prefix}layers.{i}.{name}.weight"), shape);
        match slot {
            Slot::FinalNorm => llama::origin(slot, shape, &prefix).plus_one(),
            Slot::Head => Origin::plain(format!("{outer}lm_head.weight"), shape),
            Slot::Layer(i, part) => match part {
                L::AttentionNorm => layer(i, "input_layernorm").plus_one(),
                L::AttentionPostNorm => layer(i, "post_attention_layernorm").plus_one(),
                L::FfnNorm => layer(i, "pre_feedforward_layernorm").plus_one(),
                L::FfnPostNorm => layer(i, "post_feedforward_layernorm").plus_one(),
                L::QNorm => layer(i, "self_attn.q_norm").plus_one(),
                L::KNorm => layer(i, "self_attn.k_norm").plus_one(),
                _ => llama::origin(slot, shape, &prefix),
            },
            _ => llama::origin(slot, shape, &prefix),
        }
    })
}

fn ignores(spec: &Spec, name: &str) -> bool {
    let eyes = ["vision_tower.", "multi_modal_projector."];
    llama::ignores(spec, name.strip_prefix("language_model.").unwrap_or(name))
        || (spec.architecture == "gemma3" && eyes.iter().any(|part| name.starts_with(part)))
}
