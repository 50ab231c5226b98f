//! gpt-oss: attention sinks, biases everywhere, clamped SwiGLU experts with gate and up columns interleaved.

use serde_json::Value;

use super::arch::{Arch, LayerSlot as L, Rows, Slot, Take, Want};
use super::config::Config;
use super::list::{self, Origin};
use super::llama::{self, Common, Defaults};
use super::spec::{Activation, Dense, Experts, Ffn, GroupRank, Heads, Pairs, Rope, Scaling, Scoring, Spec};
use crate::error::Result;

/// `gpt_oss`
pub(crate) const GPT_OSS: Arch =
    Arch { names: &["gpt_oss"], prefix: "model.", read, tensors, ignores: llama::ignores };

fn read(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(
        &c,
        &Defaults {
            width: 2880,
            layers: 36,
            heads: 64,
            kv_heads: Some(8),
            head_dim: Some(64),
            inner: 2880,
            vocab: 201_088,
            context: 131_072,
            eps: 1e-5,
        },
    )?;
    let window = c.nullable("sliding_window", Some(128))?;
    let bias = c.flag("attention_bias", true)?;
    let heads = Heads { sinks: true, qkv_bias: bias, out_bias: bias, ..common.heads() };
    // `hidden_act` is not used: the experts' activation is the model's own.
    let activation = Activation::ClampedSwiglu {
        alpha: c.f32("swiglu_alpha", 1.702)?,
        limit: c.f32("swiglu_limit", 7.0)?,
    };
    let experts = Experts {
        count: c.u32(c.spelling(&["num_local_experts", "num_experts"]), 128)?,
        active: c.u32(c.spelling(&["num_experts_per_tok", "experts_per_token"]), 4)?,
        expert: Dense { inner: common.inner, activation, bias: true },
        scoring: Scoring::SoftmaxOfChosen,
        normalize: false,
        scale: 1.0,
        groups: 1,
        active_groups: 1,
        group_rank: GroupRank::Max,
        choice_bias: false,
        router_bias: true,
        shared: None,
    };
    let sliding = c.sliding(common.layers, |i| i % 2 == 0)?;
    let layers = sliding.iter().map(|sliding| {
        let window = if *sliding { window } else { None };
        common.layer(Heads { window, ..heads.clone() }, Ffn::Experts(experts.clone()))
    });
    let layers = layers.collect();
    let rope = if c.has("rope_parameters") || c.has("rope_scaling") {
        c.rope("full_attention", common.rope(150_000.0))?
    } else {
        let (factor, theta) = (32.0f64, c.number("rope_theta")?.unwrap_or(150_000.0));
        let scaling = Scaling::Yarn {
            factor,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            attention_factor: 0.1 * factor.ln() + 1.0,
        };
        Rope { theta, dim: common.head_dim, pairs: Pairs::Halves, scaling }
    };
    Ok(common.spec("gpt_oss", vec![rope], layers, c.flag("tie_word_embeddings", false)?))
}

fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| {
        let shared = || llama::origin(slot, shape, "model.");
        let Slot::Layer(i, part) = slot else { return shared() };
        let Some(Ffn::Experts(x)) = spec.layers.get(i as usize).map(|layer| &layer.ffn) else {
            return shared();
        };
        let (count, inner, width) = (u64::from(x.count), u64::from(x.expert.inner), u64::from(spec.width));
        let at = |name: &str| format!("model.layers.{i}.mlp.{name}");
        // Matrices are stored [expert, in, out], so their columns are rows once turned round.
        let expert = |name: &str, source: &str, columns: u64, out: u64, rows: Rows| {
            let (from, transposed) = if source.ends_with("bias") {
                (vec![count, out], false)
            } else {
                (vec![count, columns, out], true)
            };
            Origin::part(
                at(&format!("experts.{name}")),
                at(&format!("experts.{source}")),
                &from,
                Take::PerExpert { transposed, rows },
            )
        };
        let every_second = |start| Rows { start, count: inner, step: 2, stride: 0, blocks: 1 };
        match part {
            L::Router => Origin::plain(at("router.weight"), shape),
            L::RouterBias => Origin::plain(at("router.bias"), shape),
            L::ExpertGate => expert("gate_proj", "gate_up_proj", width, 2 * inner, every_second(0)),
            L::ExpertUp => expert("up_proj", "gate_up_proj", width, 2 * inner, every_second(1)),
            L::ExpertDown => expert("down_proj", "down_proj", inner, width, Rows::run(0, width)),
            L::ExpertGateBias => {
                expert("gate_proj_bias", "gate_up_proj_bias", width, 2 * inner, every_second(0))
            }
            L::ExpertUpBias => expert("up_proj_bias", "gate_up_proj_bias", width, 2 * inner, every_second(1)),
            L::ExpertDownBias => {
                expert("down_proj_bias", "down_proj_bias", inner, width, Rows::run(0, width))
            }
            _ => shared(),
        }
    })
}
