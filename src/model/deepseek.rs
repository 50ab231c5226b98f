//! DeepSeek V2 and V3: latent attention, experts in groups beside shared ones, the first layers dense.
//!
//! `kv_b_proj` takes the compressed vector to every head's unrotated key and value. It is split and its key part
//! turned round, so that attention runs on the compressed vectors themselves.
//!
//! YaRN acts in two places, in both as DeepSeek's own code has it (`modeling_deepseek.py`, published beside the weights
//! of V2, V2-Lite and V3, where it is the same), since they were trained so. With m(x) = 0.1·x·ln(factor) + 1:
//!
//! ```text
//! scores      1/√(nope + rope) · m(mscale_all_dim)²
//! rotations   cos, sin · m(mscale) / m(mscale_all_dim)       1 where both are equal, as in V2, V2-Lite and V3
//! ```
//! For V2, transformers left out the factor on scores before it had `yarn_apply_mscale`, and so gave logits that were wrong
//! by it; 5.x has it for both.

use serde_json::{Value, json};

use super::arch::{Arch, LayerSlot as L, Rows, Slot, Take, Want};
use super::config::{Config, RopeDefaults, rms, unsupported, yarn_mscale};
use super::list::{self, Origin};
use super::llama;
use super::spec::{
    Attention, Dense, Experts, Ffn, GroupRank, Latent, Layer, Norm, Pairs, Scaling, Scoring, Shared, Spec,
};
use crate::error::Result;

/// `deepseek_v2`
pub(crate) const DEEPSEEK_V2: Arch =
    Arch { names: &["deepseek_v2"], prefix: "model.", read: read_v2, tensors, ignores };
/// `deepseek_v3`
pub(crate) const DEEPSEEK_V3: Arch =
    Arch { names: &["deepseek_v3"], prefix: "model.", read: read_v3, tensors, ignores };

/// The norms of the compressed vectors take their class's default epsilon, not `rms_norm_eps`.
const LATENT_NORM: Norm = rms(1e-6);

/// Where the two differ in their defaults.
struct Defaults {
    width: u32,
    inner: u32,
    expert: u32,
    layers: u32,
    heads: u32,
    vocab: u32,
    context: u32,
    dense_layers: u32,
    experts: u32,
    shared: u32,
}

fn read_v2(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    c.only("mlp_bias", &json!(false))?;
    c.only("scoring_func", &json!("softmax"))?;
    let method = c.text("topk_method")?.unwrap_or("greedy");
    let grouped = match method {
        "greedy" => false,
        "group_limited_greedy" => true,
        _ => return Err(unsupported("topk_method", &method.into(), "greedy or group_limited_greedy")),
    };
    let experts = Experts {
        count: 0,
        active: c.u32("num_experts_per_tok", 6)?,
        expert: Dense { inner: 0, activation: c.activation("hidden_act", "silu")?, bias: false },
        scoring: Scoring::Softmax,
        // transformers' model of V2 never divides by the sum, whatever `norm_topk_prob` says.
        normalize: false,
        scale: c.f32("routed_scaling_factor", 1.0)?,
        groups: if grouped { c.u32("n_group", 1)? } else { 1 },
        active_groups: if grouped { c.u32("topk_group", 1)? } else { 1 },
        group_rank: GroupRank::Max,
        choice_bias: false,
        router_bias: false,
        shared: None,
    };
    let defaults = Defaults {
        width: 4096,
        inner: 11008,
        expert: 1407,
        layers: 32,
        heads: 32,
        vocab: 32000,
        context: 2048,
        dense_layers: 0,
        experts: 64,
        shared: 2,
    };
    build("deepseek_v2", &c, &defaults, experts, Pairs::Neighbours)
}

fn read_v3(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    c.only("scoring_func", &json!("sigmoid"))?;
    c.only("topk_method", &json!("noaux_tc"))?;
    let experts = Experts {
        count: 0,
        active: c.u32("num_experts_per_tok", 8)?,
        expert: Dense { inner: 0, activation: c.activation("hidden_act", "silu")?, bias: false },
        scoring: Scoring::Sigmoid,
        normalize: c.flag("norm_topk_prob", true)?,
        scale: c.f32("routed_scaling_factor", 2.5)?,
        groups: c.u32("n_group", 8)?,
        active_groups: c.u32("topk_group", 4)?,
        group_rank: GroupRank::TopTwo,
        choice_bias: true,
        router_bias: false,
        shared: None,
    };
    let defaults = Defaults {
        width: 7168,
        inner: 18432,
        expert: 2048,
        layers: 61,
        heads: 128,
        vocab: 129_280,
        context: 4096,
        dense_layers: 3,
        experts: 256,
        shared: 1,
    };
    let pairs = if c.flag("rope_interleave", true)? { Pairs::Neighbours } else { Pairs::Halves };
    build("deepseek_v3", &c, &defaults, experts, pairs)
}

fn build(name: &str, c: &Config<'_>, d: &Defaults, routing: Experts, pairs: Pairs) -> Result<Spec> {
    c.only("moe_layer_freq", &json!(1))?;
    let width = c.u32("hidden_size", d.width)?;
    let heads = c.u32("num_attention_heads", d.heads)?;
    let context = c.u32("max_position_embeddings", d.context)?;
    let norm = rms(c.f32("rms_norm_eps", 1e-6)?);
    let activation = routing.expert.activation;
    let dense = |inner| Dense { inner, activation, bias: false };
    let (nope_dim, rope_dim) = (c.u32("qk_nope_head_dim", 128)?, c.u32("qk_rope_head_dim", 64)?);
    let query = f64::from(nope_dim) + f64::from(rope_dim);
    let attention = Attention::Latent(Latent {
        heads,
        nope_dim,
        rope_dim,
        value_dim: c.u32("v_head_dim", 128)?,
        q_rank: c.nullable("q_lora_rank", Some(1536))?,
        kv_rank: c.u32("kv_lora_rank", 512)?,
        scale: (c.softmax_mscale()? / query.sqrt()) as f32,
        rope: 0,
        norm: LATENT_NORM,
        bias: c.flag("attention_bias", false)?,
    });
    let mut rope =
        c.rope("full_attention", RopeDefaults { pairs, ..RopeDefaults::new(10_000.0, rope_dim, context) })?;
    if let Scaling::Yarn { factor, attention_factor, .. } = &mut rope.scaling {
        *attention_factor = rotations(c, *factor)?.unwrap_or(*attention_factor);
    }
    let inner = c.u32("moe_intermediate_size", d.expert)?;
    let shared = c.nullable("n_shared_experts", Some(d.shared))?.filter(|n| *n > 0);
    let experts = Experts {
        count: c.u32(c.spelling(&["n_routed_experts", "num_local_experts", "num_experts"]), d.experts)?,
        expert: dense(inner),
        // The shared experts are one block of their widths together.
        shared: shared.map(|n| Shared { dense: dense(inner.saturating_mul(n)), gate: false }),
        ..routing
    };
    let first_sparse = c.u32("first_k_dense_replace", d.dense_layers)?;
    let plain = Ffn::Gated(dense(c.u32("intermediate_size", d.inner)?));
    let layer = |i: u32| Layer {
        attention_norm: Some(norm),
        attention: attention.clone(),
        attention_post_norm: None,
        ffn_norm: Some(norm),
        ffn: if i < first_sparse { plain.clone() } else { Ffn::Experts(experts.clone()) },
        ffn_post_norm: None,
        parallel: false,
    };
    Ok(Spec {
        architecture: name.into(),
        vocab: c.u32("vocab_size", d.vocab)?,
        width,
        context,
        embedding_scale: 1.0,
        embedding_norm: None,
        learned_positions: None,
        ropes: vec![rope],
        layers: (0..c.layers("num_hidden_layers", d.layers)?).map(layer).collect(),
        final_norm: norm,
        tied: c.flag("tie_word_embeddings", false)?,
        head_bias: false,
        logit_scale: 1.0,
        logit_softcap: None,
    })
}

/// YaRN's factor on cosine and sine. A missing `mscale` is 1 and a missing `mscale_all_dim` 0; transformers takes the
/// ratio only where both are there. None where `attention_factor` says it, which is transformers' own key.
fn rotations(c: &Config<'_>, factor: f64) -> Result<Option<f64>> {
    let params = match c.child("rope_scaling")? {
        Some(params) => Some(params),
        None => c.child("rope_parameters")?,
    };
    let Some(params) = params.filter(|params| !params.has("attention_factor")) else { return Ok(None) };
    let part = |mscale| yarn_mscale(factor, mscale);
    let (all, scores) = (params.number("mscale")?, params.number("mscale_all_dim")?);
    Ok(Some(part(all.unwrap_or(1.0)) / part(scores.unwrap_or(0.0))))
}

fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| {
        let shared = || llama::origin(slot, shape, "model.");
        let Slot::Layer(i, part) = slot else { return shared() };
        let Some(Attention::Latent(a)) = spec.layers.get(i as usize).map(|layer| &layer.attention) else {
            return shared();
        };
        let (heads, nope, value) = (u64::from(a.heads), u64::from(a.nope_dim), u64::from(a.value_dim));
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let name = match part {
            L::KAbsorb | L::VAbsorb => {
                let (name, take) = match part {
                    L::KAbsorb => (
                        "self_attn.k_absorb.weight",
                        Take::HeadsTransposed { heads, first: nope, second: value },
                    ),
                    _ => {
                        let rows = Rows::blocks(nope, value, nope + value, heads);
                        ("self_attn.v_absorb.weight", Take::Rows(rows))
                    }
                };
                let from = [heads * (nope + value), u64::from(a.kv_rank)];
                return Origin::part(at(name), at("self_attn.kv_b_proj.weight"), &from, take);
            }
            L::QDown => "self_attn.q_a_proj.weight",
            L::QDownBias => "self_attn.q_a_proj.bias",
            L::QDownNorm => "self_attn.q_a_layernorm.weight",
            L::QUp => "self_attn.q_b_proj.weight",
            L::KvDown => "self_attn.kv_a_proj_with_mqa.weight",
            L::KvDownBias => "self_attn.kv_a_proj_with_mqa.bias",
            L::KvDownNorm => "self_attn.kv_a_layernorm.weight",
            L::ChoiceBias => "mlp.gate.e_score_correction_bias",
            L::SharedGate => "mlp.shared_experts.gate_proj.weight",
            L::SharedUp => "mlp.shared_experts.up_proj.weight",
            L::SharedDown => "mlp.shared_experts.down_proj.weight",
            _ => return shared(),
        };
        Origin::plain(at(name), shape)
    })
}

/// Also the layers behind the last one, which predict further tokens (V3).
fn ignores(spec: &Spec, name: &str) -> bool {
    let layer =
        name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    llama::ignores(spec, name) || layer.is_some_and(|i| i >= spec.layers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys, then what scores and rotations are multiplied by.
    type Case<'a> = (&'a [(&'a str, f64)], f64, f64);

    /// What scores are multiplied by, and rotations.
    fn factors(read: fn(&Value) -> Result<Spec>, mscales: &[(&str, f64)]) -> (f32, f64) {
        let mut scaling = json!({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
            "beta_fast": 32, "beta_slow": 1});
        for (key, value) in mscales {
            scaling[*key] = json!(value);
        }
        let config = json!({"max_position_embeddings": 163_840, "rope_scaling": scaling,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64});
        let spec = read(&config).unwrap();
        let Scaling::Yarn { attention_factor, .. } = spec.ropes[0].scaling else { panic!("{config}") };
        match &spec.layers[0].attention {
            Attention::Latent(latent) => (latent.scale, attention_factor),
            Attention::Heads(_) => panic!("{config}"),
        }
    }

    /// By hand: ln 40 = 3.6888795, √192 = 13.8564065; m(0.707) = 1.2608038, its square 1.5896262; m(1) = 1.3688879, its
    /// square 1.8738542.
    #[test]
    fn yarn_scales_scores_and_rotations_as_deepseeks_own_code_does() {
        let both = |m| [("mscale", m), ("mscale_all_dim", m)];
        let (v2_lite, v3) = (both(0.707), both(1.0));
        let cases: [Case; 5] = [
            (&v2_lite, 0.114_721_39, 1.0),
            (&v3, 0.135_233_78, 1.0),
            (&[], 0.072_168_784, 1.368_887_945),
            (&[("mscale", 0.707)], 0.072_168_784, 1.260_803_777),
            (&[("mscale_all_dim", 0.707)], 0.114_721_39, 1.085_726_399),
        ];
        for read in [read_v2, read_v3] {
            for (mscales, scores, rotations) in cases {
                let got = factors(read, mscales);
                assert!((f64::from(got.0) - scores).abs() < 1e-7, "{mscales:?}: scores {}", got.0);
                assert!((got.1 - rotations).abs() < 1e-8, "{mscales:?}: rotations {}", got.1);
            }
        }
        assert_eq!(factors(read_v3, &[("attention_factor", 1.5)]).1, 1.5);
        assert_eq!(factors(read_v2, &both(0.707)).1, 1.0, "exactly");
    }
}
