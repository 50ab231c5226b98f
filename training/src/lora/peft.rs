//! Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! ```text
//! base_model.model.<tensor of the checkpoint>.lora_A.weight [rank, in]
//! base_model.model.<tensor of the checkpoint>.lora_B.weight [out, rank]     rows in the checkpoint's order
//! ```

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use llm::adapter::peft::Settings;
use llm::error::{Error, Result, Status};
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::{Map, Value, json};

use super::{Lora, LoraConfig, Module};
use crate::layout::floats;
use crate::params::Params;

/// What PEFT puts in front of a module's name.
const WRAPPED: &str = "base_model.model.";

/// `adapter_config.json` for adapters of the checkpoint `base`.
pub(crate) fn config(lora: &Lora, base: &str) -> Value {
    let last = |m: &Module| m.name.rsplit('.').next().unwrap_or(&m.name).to_string();
    let mut targets: Vec<String> = lora.modules.iter().map(last).collect();
    targets.sort();
    targets.dedup();
    // names that end alike but were not chosen would be adapted, too
    if !lora.config.targets.is_empty() {
        targets.clone_from(&lora.config.targets);
    }
    let c = &lora.config;
    let ranks: Map<String, Value> = c.rank_pattern.iter().map(|(p, rank)| (p.clone(), json!(rank))).collect();
    let alphas: Map<String, Value> =
        c.alpha_pattern.iter().map(|(p, alpha)| (p.clone(), json!(alpha))).collect();
    json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": c.rank,
        "lora_alpha": c.alpha, "lora_dropout": c.dropout, "target_modules": targets, "use_rslora": c.root,
        "bias": "none", "fan_in_fan_out": lora.turned, "inference_mode": true, "init_lora_weights": true,
        "modules_to_save": null, "use_dora": false, "rank_pattern": ranks,
        "alpha_pattern": alphas,
    })
}

/// A tensor of an adapter on its way to the file.
pub(crate) struct Stored<'a> {
    shape: [usize; 2],
    values: Cow<'a, [f32]>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(&self.values))
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// Where row `row` of a module's B lies in the checkpoint's order.
fn places(module: &Module) -> Vec<usize> {
    let mut places = Vec::new();
    for part in &module.parts {
        for i in 0..part.rows {
            places.push(part.take.as_ref().map_or(i, |rows| {
                let (i, count) = (i as u64, rows.count.max(1));
                (rows.start + i / count * rows.stride + i % count * rows.step) as usize
            }));
        }
    }
    places
}

/// Every tensor of the adapters, by PEFT's name.
pub(crate) fn tensors<'a>(lora: &'a Lora, values: &'a [f32]) -> Vec<(String, Stored<'a>)> {
    let mut all = Vec::new();
    for module in &lora.modules {
        let (a, b) = (&lora.params.list[module.a], &lora.params.list[module.b]);
        let name = |which: &str| format!("{WRAPPED}{}.lora_{which}.weight", module.name);
        let from = &values[b.range()];
        let mut out = vec![0.0; from.len()];
        for (row, place) in from.chunks_exact(b.cols).zip(places(module)) {
            out[place * b.cols..(place + 1) * b.cols].copy_from_slice(row);
        }
        all.push((name("A"), Stored { shape: [a.rows, a.cols], values: Cow::Borrowed(&values[a.range()]) }));
        all.push((name("B"), Stored { shape: [b.rows, b.cols], values: Cow::Owned(out) }));
    }
    all
}

/// The settings of the adapter directory `dir`.
///
/// # Errors
/// `NOT_FOUND`, `IO`, `BAD_FORMAT`; `UNSUPPORTED` for what is more than a sum of low-rank changes, by name.
pub(crate) fn read_config(dir: &Path) -> Result<LoraConfig> {
    let path = dir.join("adapter_config.json");
    let text = std::fs::read(&path).map_err(|e| Error::from(e).context(path.display()))?;
    let wrong = |what: String| Error::new(Status::BAD_FORMAT, format!("{}: {what}", path.display()));
    let c: Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let settings = Settings::read(&c).map_err(|e| e.context(path.display()))?;
    let narrowed = ["layers_to_transform", "exclude_modules"]
        .iter()
        .any(|key| c.get(key).is_some_and(|value| !value.is_null() && *value != json!([])));
    let targets = match c.get("target_modules") {
        Some(Value::Array(list)) if !list.is_empty() && !narrowed => {
            let names: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(String::from)).collect();
            let mut names = names.ok_or_else(|| wrong("target_modules: expected names".into()))?;
            // as PEFT does, without those that no module has
            let there = modules(dir)?;
            let ends = |module: &str, name: &str| {
                module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            };
            names.retain(|name| there.iter().any(|module| ends(module, name)));
            if names.is_empty() { there } else { names }
        }
        // an expression, or names of more modules than there are
        _ => modules(dir)?,
    };
    let config = LoraConfig {
        rank: settings.rank as usize,
        alpha: settings.alpha as f32,
        dropout: c.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0) as f32,
        targets,
        root: settings.rank_stabilised,
        rank_pattern: settings.ranks,
        alpha_pattern: settings.alphas.into_iter().map(|(pattern, alpha)| (pattern, alpha as f32)).collect(),
    };
    config.check().map_err(|e| e.context(path.display()))?;
    Ok(config)
}

/// The modules that the adapter in `dir` has tensors of.
fn modules(dir: &Path) -> Result<Vec<String>> {
    let (path, bytes) = tensor_file(dir)?;
    let wrong = |what: String| Error::new(Status::BAD_FORMAT, format!("{}: {what}", path.display()));
    let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    let module = |name: &str| Some(name.strip_prefix(WRAPPED)?.strip_suffix(".lora_A.weight")?.to_string());
    let mut modules: Vec<String> = file.names().into_iter().filter_map(module).collect();
    modules.sort();
    if modules.is_empty() { Err(wrong("no lora_A of a matrix in it".into())) } else { Ok(modules) }
}

/// The file of the adapter's tensors in `dir`.
fn tensor_file(dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let path = dir.join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).map_err(|e| Error::from(e).context(path.display()))?;
    Ok((path, bytes))
}

/// The adapters of the directory `dir` for a model.
///
/// # Errors
/// Those of [`read_config`]; `BAD_FORMAT` for a damaged file, a missing tensor or one of another shape; `INVALID_ARG`
/// for a matrix that the model lacks.
pub(crate) fn read(dir: &Path, config: &LoraConfig, model: &Params) -> Result<(Lora, Vec<f32>)> {
    let lora = Lora::new(config, model).map_err(|e| e.context(dir.display()))?;
    let (path, bytes) = tensor_file(dir)?;
    let wrong = |what: String| Error::new(Status::BAD_FORMAT, format!("{}: {what}", path.display()));
    let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    // every shape is compared before anything takes memory: the rank is a number of a file
    let mut found = Vec::new();
    for module in &lora.modules {
        for (which, id) in [("A", module.a), ("B", module.b)] {
            let p = &lora.params.list[id];
            let name = format!("{WRAPPED}{}.lora_{which}.weight", module.name);
            let tensor = file.tensor(&name).map_err(|e| wrong(format!("{name:?}: {e}")))?;
            if tensor.shape() != [p.rows, p.cols] {
                let (shape, dtype) = (tensor.shape(), tensor.dtype());
                let expected = [p.rows, p.cols];
                return Err(wrong(format!("{name:?} is {dtype:?} {shape:?}, expected floats {expected:?}")));
            }
            found.push((module, p, which == "A", name, tensor));
        }
    }
    let known = found.len();
    if file.len() != known {
        return Err(wrong(format!("{} tensors, expected {known}: an adapter of another model", file.len())));
    }
    let mut values = vec![0.0; lora.params.total];
    for (module, p, whole, name, tensor) in found {
        let stored = floats(tensor.dtype(), tensor.data());
        let stored =
            stored.ok_or_else(|| wrong(format!("{name:?} is {:?}, expected floats", tensor.dtype())))?;
        if let Some(value) = stored.iter().find(|value| !value.is_finite()) {
            return Err(wrong(format!("{name:?} holds {value}, expected finite values")));
        }
        let out = &mut values[p.range()];
        if whole {
            out.copy_from_slice(&stored);
        } else {
            for (row, place) in out.chunks_exact_mut(p.cols).zip(places(module)) {
                row.copy_from_slice(&stored[place * p.cols..(place + 1) * p.cols]);
            }
        }
    }
    Ok((lora, values))
}
