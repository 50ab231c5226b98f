//! What a run trains: a design of the user's, or the model that a checkpoint holds.

use std::path::Path;

use llm::error::{Error, Result, Status};
use llm::model::arch::{Arch, LayerSlot as L, Slot, read_config};
use llm::model::spec::{Attention, Ffn, Norm, NormKind, Spec};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::corpus::Data;
use crate::design::{ModelConfig, Position};
use crate::params::Params;

/// How far from a document's end its last special token is looked for: a template may write something behind it.
const TAIL: u64 = 16;

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
        // beside the spec, since it says nothing of what the model computes
        let fixed_positions = match config.get("fixed_positions") {
            Some(Value::Bool(fixed)) => *fixed,
            Some(Value::Null) | None => false,
            Some(other) => {
                return Err(wrong(format!("`fixed_positions` is {other}, expected true or false")));
            }
        };
        Ok(Blueprint { arch, spec, config, fixed_positions })
    }

    /// The same, of a new model whose texts end as the documents of `data` do.
    pub fn ended_like(mut self, data: &[Data]) -> Blueprint {
        let end = data.iter().find_map(end).map_or(Value::Null, |id| json!(id));
        for key in ["eos_token_id", "bos_token_id"] {
            // a layout without a beginning of texts says null
            if let Some(id) = self.config.get_mut(key).filter(|id| !id.is_null()) {
                *id = end.clone();
            }
        }
        self
    }

    /// Refuses a model of whose checkpoint what is written here would be a part.
    ///
    /// # Errors
    /// `UNSUPPORTED`.
    pub fn whole(&self) -> Result<()> {
        if self.config.get("vision_config").is_none_or(Value::is_null) {
            return Ok(());
        }
        let message = "the checkpoint holds a vision model, too, which would be lost; train an adapter of it \
                       (lora.rank), and merge that with PEFT";
        Err(Error::new(Status::UNSUPPORTED, message))
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

/// The special token that ends the first document of `data`.
fn end(data: &Data) -> Option<u32> {
    #[derive(Deserialize)]
    struct Added {
        id: u32,
        #[serde(default)]
        special: bool,
    }
    #[derive(Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    let tokenizer: Tokenizer = serde_json::from_slice(data.tokenizer.as_deref()?).ok()?;
    let (from, to) = (data.train.offset(0), data.train.offset(1));
    let n = to.saturating_sub(from).min(TAIL);
    let mut ids = vec![0; n as usize];
    data.train.read(to - n, &mut ids).ok()?;
    let special = |id: &u32| tokenizer.added_tokens.iter().any(|t| t.special && t.id == *id);
    ids.into_iter().rev().find(special)
}

/// Refuses parts whose gradient is not here.
fn trainable(spec: &Spec) -> Result<()> {
    let refuse = |what: &str| {
        let message = format!("a model with {what}: it runs, but cannot be trained here");
        Err(Error::new(Status::UNSUPPORTED, message))
    };
    if spec.learned_positions.is_some() && spec.embedding_scale != 1.0 {
        return refuse("a scaled embedding and learned positions");
    }
    let centered = |n: &Norm| n.kind != NormKind::Rms || n.bias;
    let odd = |n: &Option<Norm>| n.is_some_and(|n| n.kind == NormKind::Rms && n.bias);
    if odd(&spec.embedding_norm) || odd(&Some(spec.final_norm)) {
        return refuse("a bias in an RMSNorm");
    }
    for layer in &spec.layers {
        let norms = [layer.attention_norm, layer.attention_post_norm, layer.ffn_norm, layer.ffn_post_norm];
        if norms.iter().any(odd) {
            return refuse("a bias in an RMSNorm");
        }
        match &layer.attention {
            Attention::Heads(h) if h.qk_norm.is_some_and(|n| centered(&n.norm)) => {
                return refuse("a norm of queries and keys that is no plain RMSNorm");
            }
            Attention::Latent(a) if centered(&a.norm) => {
                return refuse("a norm of compressed vectors that is no plain RMSNorm");
            }
            Attention::Heads(_) | Attention::Latent(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use llm::model::spec::QkNorm;

    use super::*;

    #[test]
    fn what_has_no_gradient_here_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (model, reason) in [
            (json!({"model_type": "gpt_oss"}), ""),
            (json!({"model_type": "gemma2"}), ""),
            (json!({"model_type": "qwen2_moe"}), ""),
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

    #[test]
    fn descriptions_that_no_published_layout_has_are_refused_before_a_kernel_sees_them() {
        let dir = tempfile::tempdir().unwrap();
        type Change = fn(&mut Spec);
        let changes: [(&str, Change); 3] = [
            ("a bias in an RMSNorm", |s| s.final_norm.bias = true),
            ("a bias in an RMSNorm", |s| s.layers[1].ffn_norm.as_mut().unwrap().bias = true),
            ("no plain RMSNorm", |s| {
                let norm = Norm { kind: NormKind::Layer, eps: 1e-5, bias: false };
                let Attention::Heads(heads) = &mut s.layers[0].attention else { panic!("heads") };
                heads.qk_norm = Some(QkNorm { norm, whole: false });
            }),
        ];
        for (reason, change) in changes {
            let (_, mut spec) = ModelConfig { vocab: 19, ..ModelConfig::tiny() }.spec().unwrap();
            spec.architecture = "libllm".into();
            let write = |spec: &Spec| {
                let config = json!({"model_type": "libllm", "spec": serde_json::to_value(spec).unwrap()});
                std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
                Blueprint::of_checkpoint(dir.path())
            };
            write(&spec).unwrap();
            change(&mut spec);
            let e = write(&spec).unwrap_err();
            assert!(e.message().contains(reason), "{e}");
        }
    }

    #[test]
    fn a_checkpoint_says_whether_its_table_of_positions_is_trained() {
        let dir = tempfile::tempdir().unwrap();
        let of = |config: &Value| {
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            Blueprint::of_checkpoint(dir.path())
        };
        for (position, fixed) in [(Position::Sinusoidal, true), (Position::Learned, false)] {
            let model = ModelConfig { vocab: 19, position, ..ModelConfig::tiny() };
            let mut config = model.hugging_face().unwrap();
            assert_eq!(of(&config).unwrap().fixed_positions, fixed);
            // a description by hand need not say it
            config.as_object_mut().unwrap().remove("fixed_positions").unwrap();
            assert!(!of(&config).unwrap().fixed_positions);
            config["fixed_positions"] = json!("yes");
            let e = of(&config).unwrap_err();
            assert_eq!(e.status(), Status::BAD_FORMAT);
            assert!(e.message().contains("`fixed_positions` is \"yes\", expected true or false"), "{e}");
        }
    }

    #[test]
    fn a_checkpoint_that_also_sees_is_not_written_without_its_eyes() {
        let dir = tempfile::tempdir().unwrap();
        let of = |config: Value| {
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            Blueprint::of_checkpoint(dir.path()).unwrap().whole()
        };
        of(json!({"model_type": "gemma3_text"})).unwrap();
        let e = of(json!({"model_type": "gemma3", "text_config": {}, "vision_config": {}})).unwrap_err();
        assert_eq!(e.status(), Status::UNSUPPORTED);
        assert!(e.message().contains("a vision model, too"), "{e}");
    }
}
