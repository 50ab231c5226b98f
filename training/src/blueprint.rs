//! What a run trains: a design of the user's, or the model that a checkpoint holds.

use std::path::Path;

use llm::error::{Error, Result, Status};
use llm::model::arch::{Arch, LayerSlot as L, Slot, read_config};
use llm::model::spec::{Activation, Attention, Dense, Ffn, Scaling, Spec};
use serde_json::Value;

use crate::design::{ModelConfig, Position};
use crate::params::Params;

/// A model's shape and the layout of its checkpoints.
#[derive(Clone, Debug)]
pub(crate) struct Blueprint {
    pub arch: &'static Arch,
    pub spec: Spec,
    /// `config.json` of its checkpoints.
    pub config: Value,
    /// The table of positions is not trained.
    fixed_positions: bool,
}

impl Blueprint {
    /// Of a design.
    ///
    /// # Errors
    /// `INVALID_ARG` for settings that fit no model.
    pub fn of_design(m: &ModelConfig) -> Result<Blueprint> {
        let (arch, spec) = m.spec()?;
        let fixed_positions = m.position == Position::Sinusoidal;
        Ok(Blueprint { arch, spec, config: m.hugging_face()?, fixed_positions })
    }

    /// Of the checkpoint directory `dir`, any that the converter reads.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`, `BAD_FORMAT` for a `config.json` that is none; `UNSUPPORTED` for a model with parts whose
    /// gradient is not here, by name.
    pub fn of_checkpoint(dir: &Path) -> Result<Blueprint> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|e| Error::from(e).context(path.display()))?;
        let wrong = |what: String| Error::new(Status::BAD_FORMAT, format!("{}: {what}", path.display()));
        let config: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let (arch, spec) = read_config(&config).map_err(|e| e.context(path.display()))?;
        trainable(&spec).map_err(|e| e.context(path.display()))?;
        Ok(Blueprint { arch, spec, config, fixed_positions: false })
    }

    /// The model's parameters.
    pub fn params(&self) -> Params {
        Params::new(self.arch, &self.spec, self.fixed_positions)
    }

    /// Floating-point operations of one token, forward and backward: 6 for every matrix value on its path, 12 for every
    /// value of the queries and position it may see; 4 and 8 where the matrices stay and only an adapter is trained.
    pub fn flops(&self, params: &Params, length: usize, adapted: bool) -> f64 {
        let mut matrices = 0.0;
        for p in params.list.iter().filter(|p| p.cols > 0) {
            let share = match p.slot() {
                Slot::Embedding if self.spec.tied => 1.0,
                Slot::Embedding | Slot::Positions => 0.0,
                Slot::Layer(i, L::ExpertGate | L::ExpertUp | L::ExpertDown) => {
                    match &self.spec.layers[i as usize].ffn {
                        Ffn::Experts(x) => f64::from(x.active) / f64::from(x.count),
                        _ => 1.0,
                    }
                }
                _ => 1.0,
            };
            matrices += share * p.len() as f64;
        }
        let width = |a: &Attention| match a {
            Attention::Heads(h) => f64::from(h.heads) * f64::from(h.head_dim),
            Attention::Latent(a) => {
                f64::from(a.heads) * f64::from(a.nope_dim + a.rope_dim + a.value_dim) / 2.0
            }
        };
        let scores: f64 = self.spec.layers.iter().map(|l| width(&l.attention) * length as f64).sum();
        let (value, score) = if adapted { (4.0, 8.0) } else { (6.0, 12.0) };
        value * matrices + score * scores
    }
}

/// Refuses parts whose gradient is not here.
fn trainable(spec: &Spec) -> Result<()> {
    let refuse = |what: &str| {
        let message = format!("a model with {what}: it runs, but cannot be trained here");
        Err(Error::new(Status::UNSUPPORTED, message))
    };
    if spec.logit_softcap.is_some() {
        return refuse("capped logits");
    }
    if spec.logit_scale != 1.0 {
        return refuse("scaled logits");
    }
    if spec.head_bias {
        return refuse("a bias at the head");
    }
    if spec.learned_positions.is_some() && spec.embedding_scale != 1.0 {
        return refuse("a scaled embedding and learned positions");
    }
    let varies = |s: &Scaling| matches!(s, Scaling::Dynamic { .. } | Scaling::Longrope { .. });
    if spec.ropes.iter().any(|r| varies(&r.scaling)) {
        return refuse("rotary angles that depend on the length");
    }
    for layer in &spec.layers {
        match &layer.attention {
            Attention::Heads(h) if h.softcap.is_some() => return refuse("capped scores"),
            Attention::Heads(h) if h.sinks => return refuse("attention sinks"),
            Attention::Heads(h) if h.qk_norm.is_some_and(|n| n.norm.bias) => {
                return refuse("a bias in the norm of queries and keys");
            }
            Attention::Heads(_) | Attention::Latent(_) => {}
        }
        let clamped = |d: &Dense| matches!(d.activation, Activation::ClampedSwiglu { .. });
        match &layer.ffn {
            Ffn::Plain(d) | Ffn::Gated(d) if clamped(d) => return refuse("a clamped activation"),
            Ffn::Experts(x) if clamped(&x.expert) => return refuse("a clamped activation"),
            Ffn::Experts(x) if x.expert.bias || x.router_bias => return refuse("biases in its experts"),
            Ffn::Experts(x) if x.shared.is_some_and(|s| s.gate) => return refuse("a switched shared expert"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_no_gradient_here_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (model, reason) in [
            (json!({"model_type": "gpt_oss"}), "attention sinks"),
            (json!({"model_type": "gemma2"}), "capped logits"),
            (json!({"model_type": "qwen2_moe"}), "switched shared expert"),
            (json!({"model_type": "nothing"}), "nothing"),
            (json!({"model_type": "llama"}), ""),
            (json!({"model_type": "qwen3"}), ""),
            (json!({"model_type": "qwen3_moe"}), ""),
        ] {
            std::fs::write(dir.path().join("config.json"), model.to_string()).unwrap();
            match (Blueprint::of_checkpoint(dir.path()), reason) {
                (Ok(_), "") => {}
                (Ok(_), reason) => panic!("{model}: expected to be refused for {reason}"),
                (Err(e), reason) => {
                    assert!(!reason.is_empty() && e.message().contains(reason), "{model}: {e}")
                }
            }
        }
    }
}
