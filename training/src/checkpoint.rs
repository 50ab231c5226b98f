//! Checkpoints: a directory in the Hugging Face layout, with the training state beside the weights.
//!
//! ```text
//!   step-00000500/   config.json  generation_config.json  tokenizer.json  model.safetensors    what any tool opens
//!                    training.json  optimizer.safetensors                                       what a resumed run needs
//! ```
//! Of an adapter's run the first line is `adapter_config.json  adapter_model.safetensors  tokenizer.json`, as PEFT has them.
//! A model of more than 5 GB is `model-00001-of-0000N.safetensors …  model.safetensors.index.json` instead of one file.
//!
//! A checkpoint is written to a hidden directory, every file and the directory are flushed to the disk, then it gets its
//! name: whatever happens, a directory that has a checkpoint's name is whole. Weights are stored as f32, the masters.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};
use llm::mmap::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::blueprint::Blueprint;
use crate::config::Config;
use crate::corpus::Data;
use crate::engine::Adapter;
use crate::layout::{self, Files, INDEX, MODEL, SHARD, STATE};
use crate::lora;
use crate::optim::{Optimizer, Values};
use crate::params::Params;

/// The training state that is not a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// The next sample's number in the run's order.
    pub sample: u64,
    /// Steps done when the optimizer's state was new: 0, or those before an adapter was merged.
    #[serde(default)]
    pub began: u64,
    /// How many of them came from each directory of data.
    #[serde(default)]
    pub drawn: Vec<Drawn>,
    /// Held-out loss in nats per token, where it was measured at this step.
    pub held_out: Option<f64>,
    /// The hash of the tokenizer that made the data.
    pub vocabulary_hash: u64,
    /// The configuration of the run.
    pub config: Config,
}

/// Samples drawn from a directory of data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drawn {
    /// The directory.
    pub data: PathBuf,
    /// Samples so far.
    pub samples: u64,
}

impl State {
    /// The samples drawn so far from each of `dirs`: by name; where names changed, but not their number, by place. A
    /// directory that is new begins at 0.
    pub(crate) fn drawn_from(&self, dirs: &[PathBuf]) -> Vec<u64> {
        if self.drawn.is_empty() && dirs.len() == 1 {
            return vec![self.sample];
        }
        let named = |dir: &PathBuf| self.drawn.iter().find(|d| d.data == *dir).map(|d| d.samples);
        if dirs.len() == self.drawn.len() && dirs.iter().any(|d| named(d).is_none()) {
            return self.drawn.iter().map(|d| d.samples).collect();
        }
        dirs.iter().map(|dir| named(dir).unwrap_or(0)).collect()
    }
}

/// Borrowed contents of a checkpoint.
pub(crate) struct Contents<'a> {
    pub state: &'a State,
    pub blueprint: &'a Blueprint,
    pub params: &'a Params,
    pub weights: &'a [f32],
    /// What is trained, and then all that is written of the model.
    pub adapter: Option<&'a Adapter>,
    pub optimizer: &'a Optimizer,
    pub data: &'a [Data],
}

/// A tensor of the optimizer's state on its way to the file.
struct Flat<'a> {
    shape: [usize; 1],
    values: Values<'a>,
}

impl View for Flat<'_> {
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
        Cow::Borrowed(match self.values {
            Values::F32(values) => bytemuck::cast_slice(values),
            Values::U8(values) => values,
        })
    }

    fn data_len(&self) -> usize {
        self.values.bytes()
    }
}

/// Writes the checkpoint `dir`. An older one of that name is replaced, and nothing else. Where something fails, as on a full
/// disk, what was written of it is removed.
pub(crate) fn save(dir: &Path, c: &Contents) -> Result<()> {
    save_in(dir, c, SHARD)
}

/// As [`save`], with files of `most` bytes of the model's tensors.
fn save_in(dir: &Path, c: &Contents, most: u64) -> Result<()> {
    let part = hidden(dir, "part")?;
    let empty = || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if dir.exists() && !dir.join("training.json").is_file() && !empty() {
        let message = format!("{}: is there and is no checkpoint; choose another directory", dir.display());
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let saved = write_parts(&part, c, most).and_then(|()| put_in_place(&part, dir));
    if saved.is_err() {
        // the first error is the one to tell
        let _ = fs::remove_dir_all(&part);
    }
    saved
}

/// Gives the whole checkpoint `part` the name `dir`.
fn put_in_place(part: &Path, dir: &Path) -> Result<()> {
    let here = |e: std::io::Error| Error::from(e).context(dir.display());
    let clear = |old: &Path| if old.exists() { fs::remove_dir_all(old).map_err(here) } else { Ok(()) };
    // Between the two renames the old one is found under its hidden name.
    let old = hidden(dir, "old")?;
    if dir.exists() {
        clear(&old)?;
        fs::rename(dir, &old).map_err(here)?;
    }
    if let Err(e) = fs::rename(part, dir) {
        // the old one stays; the first error is the one to tell
        let _ = fs::rename(&old, dir);
        return Err(here(e));
    }
    // It goes when the new one's name is on the disk.
    sync_parent(dir)?;
    clear(&old)
}

/// Writes all files of a checkpoint to `part` and flushes them to the disk.
fn write_parts(part: &Path, c: &Contents, most: u64) -> Result<()> {
    if part.exists() {
        fs::remove_dir_all(part)?;
    }
    fs::create_dir_all(part).map_err(|e| Error::from(e).context(part.display()))?;
    let pretty = |v: &Value| format!("{v:#}\n");
    let state = serde_json::to_value(c.state).map_err(|e| Error::new(Status::INTERNAL, e.to_string()))?;
    sync_file(&part.join("training.json"), pretty(&state).as_bytes())?;
    let mode = fs::metadata(part.join("training.json"))?.permissions();
    let from = &c.state.config.from;
    let trained = if let Some(Adapter { lora, values }) = c.adapter {
        let config = lora::config(lora, &from.display().to_string());
        sync_file(&part.join("adapter_config.json"), pretty(&config).as_bytes())?;
        write_tensors(&part.join("adapter_model.safetensors"), lora::tensors(lora, values), &mode)?;
        &lora.params
    } else {
        c.blueprint.whole()?;
        write_config(part, c.blueprint)?;
        let end = c.blueprint.config.get("eos_token_id").unwrap_or(&Value::Null);
        let own = json!({"eos_token_id": end, "do_sample": true, "temperature": 0.7});
        let generation = match fs::read(from.join("generation_config.json")) {
            Ok(theirs) if !from.as_os_str().is_empty() => theirs,
            _ => pretty(&own).into_bytes(),
        };
        sync_file(&part.join("generation_config.json"), &generation)?;
        write_weights(part, c.params, c.weights, most, &mode)?;
        c.params
    };
    let state = c.optimizer.tensors(trained).into_iter().map(|t| (t.name, t.values));
    let exact = layout::exact(c.params, c.weights).filter(|_| c.adapter.is_none());
    let state = state.chain(exact.map(|(name, values)| (name, Values::F32(values))));
    let state = state.map(|(name, values)| (name, Flat { shape: [values.len()], values }));
    write_tensors(&part.join(STATE), state, &mode)?;
    let of = |get: fn(&Data) -> Option<&Vec<u8>>| c.data.iter().find_map(get);
    let files = [
        ("tokenizer.json", of(|d| d.tokenizer.as_ref())),
        ("tokenizer_config.json", of(|d| d.tokenizer_config.as_ref())),
    ];
    for (name, bytes) in files {
        if let Some(bytes) = bytes {
            sync_file(&part.join(name), bytes)?;
        }
    }
    if c.adapter.is_none() && !from.as_os_str().is_empty() {
        tokenizer_files(part, &[from.as_path()])?;
    }
    Ok(File::open(part)?.sync_all()?)
}

/// Copies the files of a tokenizer that `part` lacks, each from the first of `dirs` to have it. The chat template's own
/// file goes before what `tokenizer_config.json` says, so where that brings a template it comes from no later directory.
fn tokenizer_files(part: &Path, dirs: &[&Path]) -> Result<()> {
    const CONFIG: &str = "tokenizer_config.json";
    const TEMPLATE: &str = "chat_template.jinja";
    let brings = |config: &[u8]| {
        let config = serde_json::from_slice::<Value>(config).unwrap_or_default();
        config.get("chat_template").is_some_and(|template| !template.is_null())
    };
    let mut templates = dirs;
    for name in ["tokenizer.json", CONFIG, TEMPLATE, "tokenizer.model", "special_tokens_map.json"] {
        if let Ok(bytes) = fs::read(part.join(name)) {
            if name == CONFIG && brings(&bytes) {
                templates = &[];
            }
            continue;
        }
        let dirs = if name == TEMPLATE { templates } else { dirs };
        let found = dirs.iter().enumerate().find_map(|(i, d)| Some((i, fs::read(d.join(name)).ok()?)));
        if let Some((i, bytes)) = found {
            if name == CONFIG && brings(&bytes) {
                templates = &dirs[..=i];
            }
            sync_file(&part.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// `config.json` of a model whose values are stored as f32, whatever the run began from.
fn write_config(dir: &Path, blueprint: &Blueprint) -> Result<()> {
    let mut config = blueprint.config.clone();
    for key in ["dtype", "torch_dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = json!("float32");
        }
    }
    sync_file(&dir.join("config.json"), format!("{config:#}\n").as_bytes())
}

/// Writes a model alone to the new directory `dir`, with the files of tokenizer and generation that the first of `beside`
/// to have them holds, in files of `most` bytes of tensors. Where something fails, what was written of it is removed.
///
/// # Errors
/// `IO`.
pub(crate) fn export(
    dir: &Path,
    blueprint: &Blueprint,
    params: &Params,
    weights: &[f32],
    most: u64,
    beside: &[&Path],
) -> Result<()> {
    let part = hidden(dir, "part")?;
    let written = write_model(&part, blueprint, params, weights, most, beside);
    let written =
        written.and_then(|()| fs::rename(&part, dir).map_err(|e| Error::from(e).context(dir.display())));
    if written.is_err() {
        // the first error is the one to tell
        let _ = fs::remove_dir_all(&part);
        return written;
    }
    sync_parent(dir)
}

/// Writes all files of an exported model to `part` and flushes them to the disk.
fn write_model(
    part: &Path,
    blueprint: &Blueprint,
    params: &Params,
    weights: &[f32],
    most: u64,
    beside: &[&Path],
) -> Result<()> {
    if part.exists() {
        fs::remove_dir_all(part)?;
    }
    fs::create_dir_all(part).map_err(|e| Error::from(e).context(part.display()))?;
    write_config(part, blueprint)?;
    let mode = fs::metadata(part.join("config.json"))?.permissions();
    write_weights(part, params, weights, most, &mode)?;
    tokenizer_files(part, beside)?;
    let generation = "generation_config.json";
    if let Some(bytes) = beside.iter().find_map(|d| fs::read(d.join(generation)).ok()) {
        sync_file(&part.join(generation), &bytes)?;
    }
    Ok(File::open(part)?.sync_all()?)
}

/// Writes the model's tensors to `dir`: one file, or several of `most` bytes and the index that says what is where.
fn write_weights(
    dir: &Path,
    params: &Params,
    weights: &[f32],
    most: u64,
    mode: &fs::Permissions,
) -> Result<()> {
    let mut files = layout::divide(layout::stored(params, weights), most);
    let count = files.len();
    if count < 2 {
        return write_tensors(&dir.join(MODEL), files.pop().unwrap_or_default(), mode);
    }
    let (mut total, mut map) = (0, serde_json::Map::new());
    for (i, tensors) in files.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        for (name, tensor) in &tensors {
            total += tensor.data_len() as u64;
            map.insert(name.clone(), json!(file));
        }
        write_tensors(&dir.join(file), tensors, mode)?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    sync_file(&dir.join(INDEX), format!("{index:#}\n").as_bytes())
}

/// Writes a file of tensors and flushes it to the disk. The crate makes files that only their owner may read; this one gets
/// the mode of the files beside it.
fn write_tensors<V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, V)>,
    mode: &fs::Permissions,
) -> Result<()> {
    // what PyTorch's tools expect to be told
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(about), path)
        .map_err(|e| Error::new(Status::IO, format!("{}: {e}", path.display())))?;
    let here = |e: std::io::Error| Error::from(e).context(path.display());
    fs::set_permissions(path, mode.clone()).map_err(here)?;
    File::open(path).and_then(|file| file.sync_all()).map_err(here)
}

/// Where the checkpoint `dir` lies: a kill between the two renames of a replacement leaves the old one under its hidden
/// name.
pub(crate) fn place(dir: &Path) -> Result<PathBuf> {
    let old = hidden(dir, "old")?;
    Ok(if !dir.exists() && old.exists() { old } else { dir.into() })
}

/// The state that the checkpoint `dir` holds.
///
/// # Errors
/// `NOT_FOUND`, `IO`, `BAD_FORMAT` with the file's name.
pub(crate) fn state(dir: &Path) -> Result<State> {
    let path = dir.join("training.json");
    let text = fs::read(&path).map_err(|e| Error::from(e).context(path.display()))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::new(Status::BAD_FORMAT, format!("{}: {e}", path.display())))
}

/// Reads the optimizer's state of the checkpoint `dir`, for the parameters `trained`.
///
/// # Errors
/// Those of reading the file; `MISMATCH` for another optimizer.
pub(crate) fn restore(dir: &Path, trained: &Params, optimizer: &mut Optimizer) -> Result<()> {
    let path = dir.join(STATE);
    let here = |e: std::io::Error| Error::from(e).context(path.display());
    let file = File::open(&path).map_err(here)?;
    let bytes = Bytes::map(&file, 0, 0).map_err(|e| e.context(path.display()))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::new(Status::BAD_FORMAT, format!("{}: {e}", path.display())))?;
    optimizer.restore(trained, &file).map_err(|e| e.context(path.display()))
}

/// Whether the directory `dir`, which had a checkpoint's name once, still holds all of it.
fn whole(dir: &Path) -> bool {
    let tensors = |name: &str| {
        let file = File::open(dir.join(name)).ok();
        let bytes = file.and_then(|f| Bytes::map(&f, 0, 0).ok());
        bytes.is_some_and(|b| SafeTensors::deserialize(&b).is_ok())
    };
    let weights = || Files::open(dir).and_then(|files| files.parse().map(drop)).is_ok();
    let model = (dir.join("config.json").exists() && weights())
        || (tensors("adapter_model.safetensors") && dir.join("adapter_config.json").exists());
    state(dir).is_ok() && model && tensors(STATE)
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
        let state = state(&path)?;
        found.push((path, state));
    }
    found.sort_by_key(|(_, s)| s.step);
    Ok(found)
}

/// The name of the checkpoint after `step` steps.
pub(crate) fn name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Removes all checkpoints in `out` but the last `keep` and, of those where it was measured, the one with the lowest
/// held-out loss.
pub(crate) fn prune(out: &Path, keep: usize) -> Result<()> {
    let all = list(out)?;
    let measured = all.iter().filter_map(|(path, state)| Some((path, state.held_out?)));
    let best = measured.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(path, _)| path);
    for (path, _) in all.iter().rev().skip(keep.max(1)) {
        if Some(path) != best {
            remove(path)?;
        }
    }
    Ok(())
}

/// Removes the checkpoint `dir`: first out of sight, so that a kill leaves no half of one under its name.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let here = |e: std::io::Error| Error::from(e).context(dir.display());
    let gone = hidden(dir, "gone")?;
    if gone.exists() {
        fs::remove_dir_all(&gone).map_err(here)?;
    }
    fs::rename(dir, &gone).and_then(|()| fs::remove_dir_all(&gone)).map_err(here)
}

/// Clears what a killed run left under hidden names; a checkpoint that was being replaced gets its name back, one that was
/// being removed does not.
pub(crate) fn sweep(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out).map_err(|e| Error::from(e).context(out.display()))? {
        let path = entry?.path();
        let here = |e: std::io::Error| Error::from(e).context(path.display());
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let Some((name, why)) = name.strip_prefix('.').and_then(|n| n.rsplit_once('.')) else { continue };
        match why {
            // of files that are written with `write_file`
            "tmp" if ["metrics.jsonl.", "report.html."].iter().any(|file| name.starts_with(file)) => {
                fs::remove_file(&path).map_err(here)?;
            }
            "old" if name.starts_with("step-") && !out.join(name).exists() && whole(&path) => {
                fs::rename(&path, out.join(name)).map_err(here)?;
            }
            "part" | "old" | "gone" if name.starts_with("step-") => {
                fs::remove_dir_all(&path).map_err(here)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where the checkpoint `dir` is written until it is whole, for a program that ends meanwhile (a signal) and wants to
/// remove it; `None` for a path without a name, where none is written.
pub fn unfinished(dir: &Path) -> Option<PathBuf> {
    hidden(dir, "part").ok()
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
    Ok(File::open(llm_format::directory_of(path))?.sync_all()?)
}

/// Writes the file `path`, whole or not at all.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(llm_format::replace(path, bytes)?)
}

#[cfg(test)]
mod tests;
