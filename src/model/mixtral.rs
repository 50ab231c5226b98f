//! Mixtral: Mistral with experts, under names of its own.

use serde_json::Value;

use super::arch::{Arch, LayerSlot as L, Slot, Want};
use super::config::Config;
use super::list::{self, Origin};
use super::llama::{self, Common, Defaults};
use super::spec::{Dense, Experts, Ffn, GroupRank, Heads, Scoring, Spec};
use crate::error::Result;

/// `mixtral`
pub(crate) const MIXTRAL: Arch =
    Arch { names: &["mixtral"], prefix: "model.", read, tensors, ignores: llama::ignores };

fn read(config: &Value) -> Result<Spec> {
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
            eps: 1e-5,
        },
    )?;
    let heads = Heads { window: c.nullable("sliding_window", None)?, ..common.heads() };
    let activation = c.activation("hidden_act", "silu")?;
    let experts = Experts {
        count: c.u32(c.spelling(&["num_local_experts", "num_experts"]), 8)?,
        active: c.u32("num_experts_per_tok", 2)?,
        expert: Dense { inner: common.inner, activation, bias: false },
        scoring: Scoring::Softmax,
        normalize: true,
        scale: 1.0,
        groups: 1,
        active_groups: 1,
        group_rank: GroupRank::Max,
        choice_bias: false,
        router_bias: false,
        shared: None,
    };
    let layer = |_| common.layer(heads.clone(), Ffn::Experts(experts.clone()));
    let layers = (0..common.layers).map(layer).collect();
    let rope = c.rope("full_attention", common.rope(1_000_000.0))?;
    Ok(common.spec("mixtral", vec![rope], layers, c.flag("tie_word_embeddings", false)?))
}

fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| {
        let Slot::Layer(i, part) = slot else { return llama::origin(slot, shape, "model.") };
        let at = |name: &str| format!("model.layers.{i}.block_sparse_moe.{name}");
        let expert = |w: &str| {
            Origin::stacked(at(&format!("experts.{w}.weight")), shape, |e| {
                at(&format!("experts.{e}.{w}.weight"))
            })
        };
        match part {
            L::Router => Origin::plain(at("gate.weight"), shape),
            L::ExpertGate => expert("w1"),
            L::ExpertDown => expert("w2"),
            L::ExpertUp => expert("w3"),
            _ => llama::origin(slot, shape, "model."),
        }
    })
}
