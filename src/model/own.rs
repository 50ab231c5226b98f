//! Designs that no published layout equals: `config.json` holds the [`Spec`] itself, under the key `spec`, and tensors
//! have Llama's names where Llama has the part, names in its style where it has not. `docs/layout.md` lists all of it.

use serde::Deserialize;
use serde_json::Value;

use super::arch::{Arch, LayerSlot as L, Slot, Want};
use super::list::{self, Origin};
use super::llama;
use super::spec::Spec;
use crate::error::{Error, Result, Status};

/// `libllm`
pub(crate) const OWN: Arch =
    Arch { names: &["libllm"], prefix: "model.", read, tensors, ignores: llama::ignores };

fn read(config: &Value) -> Result<Spec> {
    let wrong = |what: String| Error::new(Status::BAD_FORMAT, format!("config.json: `spec` {what}"));
    let spec = config.get("spec").ok_or_else(|| wrong("is missing".into()))?;
    let spec = Spec::deserialize(spec).map_err(|e| wrong(format!("is malformed: {e}")))?;
    if spec.architecture != "libllm" {
        return Err(wrong(format!("has the architecture `{}`, expected `libllm`", spec.architecture)));
    }
    Ok(spec)
}

fn tensors(spec: &Spec) -> Vec<Want> {
    list::tensors(spec, |slot, shape| {
        let name = match slot {
            Slot::Positions => "model.embed_positions.weight".into(),
            Slot::EmbeddingNorm => "model.embed_norm.weight".into(),
            Slot::EmbeddingNormBias => "model.embed_norm.bias".into(),
            Slot::FinalNormBias => "model.norm.bias".into(),
            Slot::HeadBias => "lm_head.bias".into(),
            Slot::Layer(i, part) => {
                let name = match part {
                    L::AttentionNormBias => "input_layernorm.bias",
                    L::AttentionPostNorm => "attention_post_norm.weight",
                    L::AttentionPostNormBias => "attention_post_norm.bias",
                    L::FfnNormBias => "post_attention_layernorm.bias",
                    L::FfnPostNorm => "ffn_post_norm.weight",
                    L::FfnPostNormBias => "ffn_post_norm.bias",
                    L::QDown => "self_attn.q_a_proj.weight",
                    L::QDownBias => "self_attn.q_a_proj.bias",
                    L::QDownNorm => "self_attn.q_a_layernorm.weight",
                    L::QUp => "self_attn.q_b_proj.weight",
                    L::KvDown => "self_attn.kv_a_proj_with_mqa.weight",
                    L::KvDownBias => "self_attn.kv_a_proj_with_mqa.bias",
                    L::KvDownNorm => "self_attn.kv_a_layernorm.weight",
                    L::KAbsorb => "self_attn.k_absorb.weight",
                    L::VAbsorb => "self_attn.v_absorb.weight",
                    L::RouterBias => "mlp.gate.bias",
                    L::ChoiceBias => "mlp.gate.e_score_correction_bias",
                    L::ExpertGate => "mlp.experts.gate_proj.weight",
                    L::ExpertUp => "mlp.experts.up_proj.weight",
                    L::ExpertDown => "mlp.experts.down_proj.weight",
                    L::ExpertGateBias => "mlp.experts.gate_proj.bias",
                    L::ExpertUpBias => "mlp.experts.up_proj.bias",
                    L::ExpertDownBias => "mlp.experts.down_proj.bias",
                    _ => return llama::origin(slot, shape, "model."),
                };
                format!("model.layers.{i}.{name}")
            }
            _ => return llama::origin(slot, shape, "model."),
        };
        Origin::plain(name, shape)
    })
}
