//! Checkpoints: a directory in the Hugging Face layout, with the training state beside the weights.
//!
//! ```text
//!   step-00000500/   config.json  generation_config.json  tokenizer.json  model.safetensors    what any tool opens
//!                    training.json  optimizer.safetensors                                       what a resumed run needs
//! ```
//!
//! A checkpoint is written to a hidden directory, every file and the directory are flushed to the disk, then it gets its
//! name: whatever happens, a directory that has a checkpoint's name is whole. Weights are stored as f32, the masters.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{Config, Family, ModelConfig};
use crate::optim::{Optimizer, Values};
use crate::params::{Param, Params, Role};

/// The training state that is not a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// The next sample's number in the run's order.
    pub sample: u64,
    /// Held-out loss in nats per token, where it was measured at this step.
    pub held_out: Option<f64>,
    /// The hash of the tokenizer that made the data.
    pub vocabulary_hash: u64,
    /// The configuration of the run.
    pub config: Config,
}

/// Borrowed contents of a checkpoint.
pub(crate) struct Contents<'a> {
    pub state: &'a State,
    pub params: &'a Params,
    pub weights: &'a [f32],
    pub optimizer: &'a Optimizer,
    /// The `tokenizer.json`, where the data has one.
    pub tokenizer: Option<&'a [u8]>,
}

/// What a checkpoint restores.
pub(crate) struct Restored {
    pub state: State,
    pub weights: Vec<f32>,
}

/// One tensor of a checkpoint: rows of a parameter, as they are or transposed.
struct Piece {
    name: String,
    shape: Vec<usize>,
    /// Elements of the flat vector.
    range: std::ops::Range<usize>,
    transposed: bool,
}

/// The tensors that a parameter becomes, with the names of the model's family.
fn pieces(m: &ModelConfig, p: &Param) -> Vec<Piece> {
    let gpt2 = m.family == Family::Gpt2;
    let (q, kv) = (m.heads * m.head_dim(), m.kv_heads * m.head_dim());
    let layer = p.layer;
    let all = p.rows;
    let parts: Vec<(String, usize)> = if gpt2 {
        let name = match p.role {
            Role::Embed => "wte.weight".into(),
            Role::Positions => "wpe.weight".into(),
            Role::AttentionNorm => format!("h.{layer}.ln_1.weight"),
            Role::AttentionNormBias => format!("h.{layer}.ln_1.bias"),
            Role::FeedNorm => format!("h.{layer}.ln_2.weight"),
            Role::FeedNormBias => format!("h.{layer}.ln_2.bias"),
            Role::Qkv => format!("h.{layer}.attn.c_attn.weight"),
            Role::QkvBias => format!("h.{layer}.attn.c_attn.bias"),
            Role::Out => format!("h.{layer}.attn.c_proj.weight"),
            Role::OutBias => format!("h.{layer}.attn.c_proj.bias"),
            Role::Up => format!("h.{layer}.mlp.c_fc.weight"),
            Role::UpBias => format!("h.{layer}.mlp.c_fc.bias"),
            Role::Down => format!("h.{layer}.mlp.c_proj.weight"),
            Role::DownBias => format!("h.{layer}.mlp.c_proj.bias"),
            Role::FinalNorm => "ln_f.weight".into(),
            Role::FinalNormBias => "ln_f.bias".into(),
            Role::Head => unreachable!("GPT-2's head is tied"),
        };
        vec![(format!("transformer.{name}"), all)]
    } else {
        let inner = |names: &[(&str, usize)]| {
            names.iter().map(|(n, rows)| (format!("model.layers.{layer}.{n}.weight"), *rows)).collect()
        };
        match p.role {
            Role::Embed => vec![("model.embed_tokens.weight".into(), all)],
            Role::AttentionNorm => inner(&[("input_layernorm", all)]),
            Role::Qkv => {
                inner(&[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)])
            }
            Role::Out => inner(&[("self_attn.o_proj", all)]),
            Role::FeedNorm => inner(&[("post_attention_layernorm", all)]),
            Role::Up => inner(&[("mlp.gate_proj", m.ffn), ("mlp.up_proj", m.ffn)]),
            Role::Down => inner(&[("mlp.down_proj", all)]),
            Role::FinalNorm => vec![("model.norm.weight".into(), all)],
            Role::Head => vec![("lm_head.weight".into(), all)],
            role => unreachable!("a Llama model has no {role:?}"),
        }
    };
    // GPT-2 keeps its projections as [inputs, outputs]; its embeddings are rows.
    let transposed = gpt2 && matches!(p.role, Role::Qkv | Role::Out | Role::Up | Role::Down);
    let mut start = p.range().start;
    let cut = parts.into_iter().map(|(name, rows)| {
        let len = rows * p.cols.max(1);
        let range = start..start + len;
        start += len;
        let shape = match (p.cols, transposed) {
            (0, _) => vec![rows],
            (cols, false) => vec![rows, cols],
            (cols, true) => vec![cols, rows],
        };
        Piece { name, shape, range, transposed }
    });
    cut.collect()
}

fn transpose(from: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| from[i % rows * cols + i / rows]).collect()
}

/// A tensor on its way to the file; made when it is written.
struct Source<'a> {
    shape: Vec<usize>,
    values: Values<'a>,
    transposed: bool,
}

impl<'a> Source<'a> {
    /// Values that have no shape.
    fn flat(values: Values<'a>) -> Source<'a> {
        Source { shape: vec![values.len()], values, transposed: false }
    }
}

impl View for Source<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::F32(_) => Dtype::F32,
            Values::U8(_) => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.values {
            Values::F32(values) if self.transposed => {
                let values = transpose(values, self.shape[1], self.shape[0]);
                Cow::Owned(bytemuck::cast_slice(&values).to_vec())
            }
            Values::F32(values) => Cow::Borrowed(bytemuck::cast_slice(values)),
            Values::U8(values) => Cow::Borrowed(values),
        }
    }

    fn data_len(&self) -> usize {
        self.values.bytes()
    }
}

/// `config.json` of the model's family.
fn hugging_face_config(m: &ModelConfig) -> Value {
    match m.family {
        Family::Llama => json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "vocab_size": m.vocab, "hidden_size": m.width, "intermediate_size": m.ffn,
            "num_hidden_layers": m.layers, "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads,
            "head_dim": m.head_dim(), "max_position_embeddings": m.context, "hidden_act": "silu",
            "rms_norm_eps": as_f64(m.eps), "rope_theta": m.rope_theta, "rope_scaling": null,
            "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": m.tied,
            "initializer_range": 0.02, "bos_token_id": null, "eos_token_id": 0, "torch_dtype": "float32",
            "use_cache": true,
        }),
        Family::Gpt2 => json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
            "vocab_size": m.vocab, "n_embd": m.width, "n_inner": m.ffn, "n_layer": m.layers, "n_head": m.heads,
            "n_positions": m.context, "n_ctx": m.context, "activation_function": "gelu_new",
            "layer_norm_epsilon": as_f64(m.eps), "attn_pdrop": as_f64(m.dropout), "embd_pdrop": as_f64(m.dropout),
            "resid_pdrop": as_f64(m.dropout), "scale_attn_weights": true, "tie_word_embeddings": true,
            "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
            "use_cache": true,
        }),
    }
}

/// The decimal number a user would have written for this f32.
fn as_f64(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

/// Writes the checkpoint `dir`. An older one of that name is replaced.
pub(crate) fn save(dir: &Path, c: &Contents) -> Result<()> {
    let m = &c.state.config.model;
    let part = hidden(dir, "part")?;
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part)?;
    let pretty = |v: &Value| format!("{v:#}\n");
    let generation = json!({"eos_token_id": 0, "do_sample": true, "temperature": 0.7});
    let state = serde_json::to_value(c.state).map_err(|e| Error::new(Status::INTERNAL, e.to_string()))?;
    sync_file(&part.join("config.json"), pretty(&hugging_face_config(m)).as_bytes())?;
    sync_file(&part.join("generation_config.json"), pretty(&generation).as_bytes())?;
    sync_file(&part.join("training.json"), pretty(&state).as_bytes())?;
    // The crate makes files that only their owner may read; tensors get the mode of the files beside them.
    let mode = fs::metadata(part.join("config.json"))?.permissions();
    let tensors = |list: Vec<(String, Source)>, name: &str| -> Result<()> {
        let meta = Some([("format".to_string(), "pt".to_string())].into());
        let path = part.join(name);
        safetensors::serialize_to_file(list, meta, &path)
            .map_err(|e| Error::new(Status::IO, format!("{}: {e}", path.display())))?;
        fs::set_permissions(&path, mode.clone())?;
        Ok(File::open(&path)?.sync_all()?)
    };
    let all = c.params.list.iter().flat_map(|p| pieces(m, p));
    let model = all.map(|p| {
        (
            p.name,
            Source { shape: p.shape, values: Values::F32(&c.weights[p.range]), transposed: p.transposed },
        )
    });
    tensors(model.collect(), "model.safetensors")?;
    let state = c.optimizer.tensors(c.params);
    tensors(state.into_iter().map(|t| (t.name, Source::flat(t.values))).collect(), "optimizer.safetensors")?;
    if let Some(tokenizer) = c.tokenizer {
        sync_file(&part.join("tokenizer.json"), tokenizer)?;
    }
    File::open(&part)?.sync_all()?;
    if dir.exists() {
        // Between the two renames the old one is found under its hidden name.
        let old = hidden(dir, "old")?;
        if old.exists() {
            fs::remove_dir_all(&old)?;
        }
        fs::rename(dir, &old)?;
        fs::rename(&part, dir)?;
        fs::remove_dir_all(&old)?;
    } else {
        fs::rename(&part, dir)?;
    }
    sync_parent(dir)
}

/// Reads the checkpoint `dir` for a model of the shape `expected` where that is given, and the optimizer's state into
/// `optimizer`.
pub(crate) fn load(
    dir: &Path,
    expected: Option<&ModelConfig>,
    optimizer: Option<(&Params, &mut Optimizer)>,
) -> Result<Restored> {
    // A kill between the two renames of a replacement leaves the old one under its hidden name.
    let old = hidden(dir, "old")?;
    let dir = if !dir.exists() && old.exists() { &old } else { dir };
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read(&path).map_err(|e| Error::from(e).context(path.display()))
    };
    let bad = |name: &str, what: String| {
        Error::new(Status::BAD_FORMAT, format!("{}: {what}", dir.join(name).display()))
    };
    let state: State =
        serde_json::from_slice(&read("training.json")?).map_err(|e| bad("training.json", e.to_string()))?;
    let m = &state.config.model;
    m.check().map_err(|e| e.context(dir.join("training.json").display()))?;
    if let Some(expected) = expected
        && (ModelConfig { dropout: 0.0, ..expected.clone() }) != (ModelConfig { dropout: 0.0, ..m.clone() })
    {
        let message = format!("{}: holds {m:?}, the configuration asks for {expected:?}", dir.display());
        return Err(Error::new(Status::MISMATCH, message));
    }
    let params = Params::new(m);
    let fill =
        |file: &SafeTensors, name: &str, tensor: &str, shape: &[usize], out: &mut [f32]| -> Result<()> {
            let view = file.tensor(tensor).map_err(|_| bad(name, format!("no tensor {tensor:?}")))?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                let got =
                    format!("{tensor:?} is {:?} {:?}, expected F32 {shape:?}", view.dtype(), view.shape());
                return Err(bad(name, got));
            }
            for (o, raw) in out.iter_mut().zip(view.data().as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*raw);
            }
            Ok(())
        };
    let mut weights = vec![0.0; params.total];
    let bytes = read("model.safetensors")?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad("model.safetensors", e.to_string()))?;
    for p in params.list.iter().flat_map(|p| pieces(m, p)) {
        let out = &mut weights[p.range];
        fill(&file, "model.safetensors", &p.name, &p.shape, out)?;
        if p.transposed {
            let values = transpose(out, p.shape[0], p.shape[1]);
            out.copy_from_slice(&values);
        }
    }
    let bytes = read("optimizer.safetensors")?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| bad("optimizer.safetensors", e.to_string()))?;
    if let Some((params, optimizer)) = optimizer {
        let path = dir.join("optimizer.safetensors");
        optimizer.restore(params, &file).map_err(|e| e.context(path.display()))?;
    }
    Ok(Restored { state, weights })
}

/// The checkpoints of a run in `out`, by step, with their states.
pub fn list(out: &Path) -> Result<Vec<(PathBuf, State)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(Error::from(e).context(out.display())),
    };
    for entry in entries {
        let path = entry?.path();
        let named = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("step-"));
        if !named {
            continue;
        }
        let text =
            fs::read(path.join("training.json")).map_err(|e| Error::from(e).context(path.display()))?;
        let state: State = serde_json::from_slice(&text)
            .map_err(|e| Error::new(Status::BAD_FORMAT, format!("{}/training.json: {e}", path.display())))?;
        found.push((path, state));
    }
    found.sort_by_key(|(_, s)| s.step);
    Ok(found)
}

/// The name of the checkpoint after `step` steps.
pub(crate) fn name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Removes all checkpoints in `out` but the last `keep` and the one with the lowest held-out loss.
pub(crate) fn prune(out: &Path, keep: usize) -> Result<()> {
    let all = list(out)?;
    let loss = |s: &State| s.held_out.unwrap_or(f64::INFINITY);
    let best = all.iter().min_by(|a, b| loss(&a.1).total_cmp(&loss(&b.1))).map(|(p, _)| p.clone());
    for (path, _) in all.iter().rev().skip(keep.max(1)) {
        if Some(path) != best.as_ref() {
            // First out of sight, so that a kill leaves no half of a checkpoint under its name.
            let gone = hidden(path, "old")?;
            if gone.exists() {
                fs::remove_dir_all(&gone)?;
            }
            fs::rename(path, &gone)?;
            fs::remove_dir_all(&gone)?;
        }
    }
    Ok(())
}

/// Clears what a killed run left under hidden names; a checkpoint that was being replaced gets its name back.
pub(crate) fn sweep(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out).map_err(|e| Error::from(e).context(out.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let Some((step, why)) = name.strip_prefix('.').and_then(|n| n.rsplit_once('.')) else { continue };
        if !step.starts_with("step-") || !matches!(why, "part" | "old") {
            continue;
        }
        if why == "old"
            && !out.join(step).exists()
            && path.join("training.json").exists()
            && load(&path, None, None).is_ok()
        {
            fs::rename(&path, out.join(step))?;
        } else {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// A hidden neighbour of `dir`.
fn hidden(dir: &Path, why: &str) -> Result<PathBuf> {
    let name = dir.file_name().and_then(|n| n.to_str());
    let name = name.ok_or_else(|| {
        Error::new(Status::INVALID_ARG, format!("{}: expected a directory with a name", dir.display()))
    })?;
    Ok(dir.with_file_name(format!(".{name}.{why}")))
}

fn sync_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let here = |e: std::io::Error| Error::from(e).context(path.display());
    let mut file = File::create(path).map_err(here)?;
    file.write_all(bytes).map_err(here)?;
    file.sync_all().map_err(here)
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(parent)?.sync_all()?)
}

/// Writes a file under a temporary name, flushes it and renames it.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = hidden(path, "part")?;
    sync_file(&part, bytes)?;
    fs::rename(&part, path).map_err(|e| Error::from(e).context(path.display()))?;
    sync_parent(path)
}
