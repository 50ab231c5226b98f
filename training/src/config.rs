//! The settings of a run: JSON, presets, overrides by key; a key that is unknown is refused with its nearest known name.

use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::corpus::{self, Part, Phase};
use crate::design::ModelConfig;
use crate::lora::{self, LoraConfig};
use crate::run::text;

/// The most threads of a run; far more than cores take a process down.
const THREADS: usize = 1024;

/// How weights follow from gradients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW (arXiv:1711.05101).
    #[default]
    AdamW,
    /// AdamW with moments of eight bits, in blocks of 256 values.
    AdamW8,
    /// Lion (arXiv:2302.06675): one moment, steps of equal size.
    Lion,
    /// Muon for the hidden matrices, AdamW for the rest.
    Muon,
}

/// How the learning rate goes from `rate` to `min_rate` after the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// (1 − t) to the `power`.
    Polynomial,
    /// Stays at `rate`.
    Constant,
    /// Stays, then falls in a straight line over the last `decay_share` of the steps.
    Wsd,
}

/// What of a layer is computed again on the way back instead of being kept. The gradients have the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// Norms and activations.
    Part,
    /// Everything but a layer's input.
    Block,
}

/// What activations and the operands of products are. Weights, gradients, sums and the residual stream are f32.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Activations are rounded to bf16 and wait for the way back in half the space; products go to a unit for bf16 where
    /// the machine has one (AMX, AVX-512 BF16), which rounds weights and gradients too.
    Bf16,
}

/// The optimizer and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimConfig {
    /// Which optimizer.
    pub kind: OptimizerKind,
    /// Shape of the learning rate.
    pub schedule: Schedule,
    /// Exponent of the schedule `polynomial`.
    pub power: f32,
    /// Share of the steps after the warm-up over which the schedule `wsd` falls.
    pub decay_share: f32,
    /// Highest learning rate.
    pub rate: f32,
    /// Learning rate at the last step.
    pub min_rate: f32,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of matrices.
    pub decay: f32,
    /// Highest norm of the whole gradient; 0: no clipping.
    pub clip: f32,
    /// Muon: highest learning rate of the hidden matrices.
    pub muon_rate: f32,
    /// Muon: decay of the momentum.
    pub muon_momentum: f32,
    /// Rank of GaLore's projection of hidden matrices, with `adamw` and `adamw8`; 0: none.
    pub galore_rank: usize,
    /// Steps between new directions of the projection.
    pub galore_every: u64,
    /// Factor on the projected update.
    pub galore_scale: f32,
}

impl Default for OptimConfig {
    fn default() -> Self {
        OptimConfig {
            kind: OptimizerKind::AdamW,
            schedule: Schedule::Cosine,
            power: 1.0,
            decay_share: 0.2,
            rate: 1e-3,
            min_rate: 1e-4,
            warmup: 100,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            decay: 0.1,
            clip: 1.0,
            muon_rate: 0.02,
            muon_momentum: 0.95,
            galore_rank: 0,
            galore_every: 200,
            galore_scale: 0.25,
        }
    }
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// Directory of a checkpoint to begin from, any that the converter reads; `model` then gives dropout, the factors of the
    /// experts' losses and the rate of their correction alone. Empty: a new model.
    pub from: PathBuf,
    /// An adapter to train instead of the model.
    pub lora: LoraConfig,
    /// Directory of an adapter to begin from, in PEFT's layout; it brings rank, alpha and targets.
    pub adapter: PathBuf,
    /// Tokens per sequence; 0: the model's context, of a checkpoint's model at most 1024.
    pub length: usize,
    /// Attention ends at the border of a document.
    pub documents: bool,
    /// The optimizer.
    pub optim: OptimConfig,
    /// Directory of prepared data: `train.tokens`, `held_out.tokens`, `tokenizer.json`.
    pub data: PathBuf,
    /// Several such directories in place of `data`, drawn by weight.
    pub mixture: Vec<Part>,
    /// Texts in place of `data`, as `data prepare` takes them: [`crate::train`] prepares them in `out`, once.
    pub text: Vec<String>,
    /// The `tokenizer.json` for `text`. Empty: that of `from`, or a byte-level BPE that is trained on the text.
    pub tokenizer: PathBuf,
    /// Tokens of that.
    pub tokenizer_size: usize,
    /// Stretches of the run with other lengths and weights, in order; what follows the last has the run's own.
    pub curriculum: Vec<Phase>,
    /// Directory that takes checkpoints (`step-N`) and `metrics.jsonl`.
    pub out: PathBuf,
    /// Optimizer steps in all.
    pub steps: u64,
    /// Sequences per pass.
    pub batch: usize,
    /// Passes per step.
    pub accumulate: usize,
    /// Seed of weights, sample order and dropout.
    pub seed: u64,
    /// Threads; 0: as many as the process may use.
    pub threads: usize,
    /// What is computed twice to save memory.
    pub recompute: Recompute,
    /// What activations and the operands of products are.
    pub precision: Precision,
    /// Steps between checkpoints, beside those of the best evaluations; 0: only these and the last.
    pub save_every: u64,
    /// Checkpoints kept beside the best.
    pub keep: usize,
    /// Steps between evaluations; 0: only at the end.
    pub eval_every: u64,
    /// Sequences of held-out text per evaluation; 0: all.
    pub eval_sequences: usize,
    /// The run ends after so many evaluations that are no better than the best; 0: never.
    pub patience: u64,
    /// The run fails after so many steps in a row whose loss or gradient norm is far above the usual; 0: never.
    pub divergence: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            model: ModelConfig::default(),
            from: PathBuf::new(),
            lora: LoraConfig::default(),
            adapter: PathBuf::new(),
            length: 0,
            documents: false,
            optim: OptimConfig::default(),
            data: PathBuf::from("data"),
            mixture: Vec::new(),
            text: Vec::new(),
            tokenizer: PathBuf::new(),
            tokenizer_size: 8192,
            curriculum: Vec::new(),
            out: PathBuf::from("run"),
            steps: 2000,
            batch: 8,
            accumulate: 1,
            seed: 1,
            threads: 0,
            recompute: Recompute::None,
            precision: Precision::F32,
            save_every: 500,
            keep: 2,
            eval_every: 250,
            eval_sequences: 64,
            patience: 0,
            divergence: 50,
        }
    }
}

impl Config {
    /// A named starting point: one of [`crate::presets::PRESETS`].
    ///
    /// # Errors
    /// `NOT_FOUND` with the known names.
    pub fn preset(name: &str) -> Result<Config> {
        crate::presets::preset(name)
    }

    /// Reads a configuration from JSON text; what it leaves out keeps its default.
    ///
    /// # Errors
    /// `BAD_FORMAT` for text that is no JSON or has values of the wrong type, `INVALID_ARG` for an unknown key.
    pub fn from_json(text: &str) -> Result<Config> {
        Config::from_value(serde_json::from_str(text).map_err(|e| format_error(&e))?)
    }

    fn from_value(value: Value) -> Result<Config> {
        refuse_unknown(&value, &known()?, "")?;
        match serde_json::from_value(value.clone()) {
            Ok(config) => Ok(config),
            Err(e) => Err(wrong_value(&value)?.unwrap_or_else(|| format_error(&e))),
        }
    }

    /// Reads a configuration from YAML or JSON text; what it leaves out keeps its default.
    ///
    /// # Errors
    /// As [`Config::from_json`].
    pub fn from_text(text: &str) -> Result<Config> {
        if text.trim_start().starts_with('{') {
            return Config::from_json(text);
        }
        let value: Value = serde_saphyr::from_str(text)
            .map_err(|e| Error::new(Status::BAD_FORMAT, format!("configuration: {e}")))?;
        // an empty file changes nothing
        let value = if value.is_null() { Value::Object(Map::new()) } else { value };
        if !value.is_object() {
            let message = format!("configuration: expected keys with values, got {value}");
            return Err(Error::new(Status::BAD_FORMAT, message));
        }
        Config::from_value(value)
    }

    /// The configuration as YAML.
    ///
    /// # Errors
    /// `INTERNAL`, if a value has no form in YAML.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(self).map_err(|e| Error::new(Status::INTERNAL, format!("configuration: {e}")))
    }

    /// The configuration as indented JSON; what is no text in the name of a directory is shown as `�`.
    pub fn to_json(&self) -> String {
        let mut shown = self.clone();
        for path in shown.paths_mut() {
            *path = path.to_string_lossy().into_owned().into();
        }
        serde_json::to_string_pretty(&shown).unwrap_or_else(|_| unreachable!("a configuration is plain data"))
    }

    /// Every directory it names.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let mixture = self.mixture.iter_mut().map(|part| &mut part.data);
        let own = [&mut self.from, &mut self.adapter, &mut self.data, &mut self.tokenizer, &mut self.out];
        own.into_iter().chain(mixture)
    }

    /// Sets one value from `key=value`; the key is a path (`optim.rate`, `mixture.0.weight` for an item of a list) or
    /// its last part where that is unique.
    ///
    /// # Errors
    /// `INVALID_ARG` for text without `=`, an unknown or ambiguous key, an item that is not there, or a value of the
    /// wrong type.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let (key, text) = assignment
            .split_once('=')
            .ok_or_else(|| invalid(format!("{assignment:?}: expected key=value, such as optim.rate=1e-3")))?;
        let mut tree = to_value(self)?;
        let paths = paths(&tree, "");
        // of a key within a list the path leads to the list
        let within = |p: &str| key.strip_prefix(p).is_some_and(|rest| rest.starts_with('.'));
        let exact = paths.iter().find(|p| *p == key || within(p));
        let by_leaf: Vec<&String> = paths.iter().filter(|p| p.rsplit('.').next() == Some(key)).collect();
        let path: &str = match (exact, &by_leaf[..]) {
            (Some(_), _) => key,
            (None, [path]) => path,
            (None, []) => return Err(unknown(key, paths.iter().map(String::as_str))),
            (None, several) => {
                return Err(invalid(format!("key {key:?} is one of {several:?}: write the whole")));
            }
        };
        let place = place(&mut tree, path)?;
        // a list may be given as its items: lora.targets=q_proj,v_proj or mixture=web=3,books=1
        let item = |t: &str| match path {
            "mixture" => serde_json::to_value(Part::parse(t)).unwrap_or_default(),
            "lora.rank_pattern" | "lora.alpha_pattern" => lora::pattern(t),
            _ if path.ends_with(".weights") => t.parse::<f64>().map_or_else(|_| t.into(), Value::from),
            _ => Value::from(t),
        };
        let items = || Value::Array(text.split(',').filter(|t| !t.is_empty()).map(item).collect());
        *place = match serde_json::from_str(text) {
            Ok(value @ (Value::String(_) | Value::Array(_) | Value::Object(_))) => value,
            // a directory may be called 2026
            _ if place.is_string() => Value::String(text.into()),
            _ if place.is_array() => items(),
            Ok(value) => value,
            Err(_) => Value::String(text.into()),
        };
        refuse_unknown(&tree, &known()?, "")?;
        *self = serde_json::from_value(tree).map_err(|e| invalid(format!("{assignment}: {}", plain(&e))))?;
        Ok(())
    }

    /// Checks everything that does not need the data.
    ///
    /// # Errors
    /// `INVALID_ARG` with the first setting that does not fit.
    pub fn check(&self) -> Result<()> {
        let paths = [&self.from, &self.adapter, &self.data, &self.tokenizer, &self.out].map(PathBuf::as_path);
        let parts = self.mixture.iter().map(|part| part.data.as_path());
        if let Some(path) = paths.into_iter().chain(parts).find(|path: &&Path| path.to_str().is_none()) {
            // checkpoints hold the configuration as JSON
            return Err(invalid(format!("{}: expected a name in UTF-8", path.display())));
        }
        if self.from.as_os_str().is_empty() {
            self.model.check()?;
            if self.lora.rank > 0 || !self.adapter.as_os_str().is_empty() {
                return Err(invalid("lora: an adapter needs a checkpoint to begin from: set `from`".into()));
            }
        }
        self.lora.check()?;
        let about = [
            ("targets", self.lora.targets.is_empty()),
            ("rank_pattern", self.lora.rank_pattern.is_empty()),
            ("alpha_pattern", self.lora.alpha_pattern.is_empty()),
        ];
        if let Some((key, _)) = about.into_iter().find(|(_, empty)| !empty)
            && self.lora.rank == 0
            && self.adapter.as_os_str().is_empty()
        {
            return Err(invalid(format!("lora.{key}: without lora.rank the whole model would be trained")));
        }
        corpus::check(self)?;
        text::check(self)?;
        if self.threads > THREADS {
            let threads = self.threads;
            return Err(invalid(format!(
                "threads = {threads}: expected at most {THREADS}, or 0 for the cores"
            )));
        }
        if self.batch == 0 || self.accumulate == 0 || self.steps == 0 {
            return Err(invalid("batch, accumulate and steps: expected at least 1".into()));
        }
        let o = &self.optim;
        let (above, from) = ("above 0", "0 or more");
        let (share, open) = ("above 0, at most 1", "0 or more, below 1");
        let every = o.galore_every as f32;
        for (name, value, range) in [
            ("rate", o.rate, above),
            ("min_rate", o.min_rate, from),
            ("beta1", o.beta1, open),
            ("beta2", o.beta2, open),
            ("eps", o.eps, above),
            ("decay", o.decay, from),
            ("clip", o.clip, from),
            ("power", o.power, above),
            ("decay_share", o.decay_share, share),
            ("muon_rate", o.muon_rate, above),
            ("muon_momentum", o.muon_momentum, open),
            ("galore_every", every, above),
            ("galore_scale", o.galore_scale, above),
        ] {
            let low = value > 0.0 || value == 0.0 && (range == from || range == open);
            let high = value.is_finite() && !(range == share && value > 1.0 || range == open && value >= 1.0);
            if !low || !high {
                return Err(invalid(format!("optim.{name} = {value}: expected {range}")));
            }
        }
        if o.min_rate > o.rate && o.schedule != Schedule::Constant {
            // one that was lowered for a fine-tuning, say, and would rise to the other's default
            let (least, rate) = (o.min_rate, o.rate);
            return Err(invalid(format!("optim.min_rate = {least}: expected at most optim.rate, {rate}")));
        }
        if o.galore_rank > 0 && !matches!(o.kind, OptimizerKind::AdamW | OptimizerKind::AdamW8) {
            return Err(invalid(format!(
                "optim.galore_rank = {}: GaLore goes with adamw or adamw8, not with {:?}",
                o.galore_rank, o.kind
            )));
        }
        Ok(())
    }
}

fn to_value(config: &Config) -> Result<Value> {
    serde_json::to_value(config).map_err(|e| Error::new(Status::INTERNAL, format!("configuration: {e}")))
}

/// A configuration that has every key, also those of items of lists.
fn known() -> Result<Value> {
    let (mixture, curriculum) = (vec![Part::default()], vec![Phase::default()]);
    to_value(&Config { mixture, curriculum, ..Config::default() })
}

fn invalid(message: String) -> Error {
    Error::new(Status::INVALID_ARG, message)
}

fn format_error(e: &serde_json::Error) -> Error {
    Error::new(Status::BAD_FORMAT, format!("configuration: {e}"))
}

/// The first setting of `value` that cannot be read, with what was expected.
fn wrong_value(value: &Value) -> Result<Option<Error>> {
    let default = to_value(&Config::default())?;
    for path in shared(value, &default, "") {
        let (mut tree, parts) = (default.clone(), || path.split('.'));
        let (given, place) =
            (parts().try_fold(value, |at, p| at.get(p)), parts().try_fold(&mut tree, |at, p| at.get_mut(p)));
        let (Some(given), Some(place)) = (given, place) else { continue };
        *place = given.clone();
        if let Err(e) = serde_json::from_value::<Config>(tree) {
            let message = format!("configuration: {path} = {given}: {}", plain(&e));
            return Ok(Some(Error::new(Status::BAD_FORMAT, message)));
        }
    }
    Ok(None)
}

/// The places of `value` where one of the two is no group, as dotted paths.
fn shared(value: &Value, known: &Value, prefix: &str) -> Vec<String> {
    let join = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    let (Value::Object(value), Value::Object(known)) = (value, known) else { return vec![prefix.into()] };
    value
        .iter()
        .flat_map(|(key, v)| known.get(key).map_or(Vec::new(), |k| shared(v, k, &join(key))))
        .collect()
}

/// An error's words without names of types.
fn plain(e: &serde_json::Error) -> String {
    let mut text = e.to_string();
    for (ty, words) in [
        ("usize", "a whole number, 0 or more"),
        ("u32", "a whole number, 0 or more"),
        ("u64", "a whole number, 0 or more"),
        ("f32", "a number"),
        ("f64", "a number"),
        ("a boolean", "true or false"),
        ("a sequence", "a list"),
    ] {
        text = text.replace(&format!("expected {ty}"), &format!("expected {words}"));
    }
    text
}

/// What `path` leads to; a part of it may be the number of an item of a list.
///
/// # Errors
/// `INVALID_ARG` with the part that leads nowhere.
fn place<'v>(tree: &'v mut Value, path: &str) -> Result<&'v mut Value> {
    let (mut at, mut before) = (tree, String::new());
    for part in path.split('.') {
        let name = if before.is_empty() { part.to_string() } else { format!("{before}.{part}") };
        let known = match &*at {
            Value::Array(items) if part.parse::<usize>().is_ok_and(|i| i < items.len()) => Vec::new(),
            Value::Array(items) => {
                let there = match items.len() {
                    0 => "the list is empty".to_string(),
                    1 => "there is one item, 0".to_string(),
                    n => format!("there are {n} items, 0 to {}", n - 1),
                };
                return Err(invalid(format!("{name}: expected the number of an item: {there}")));
            }
            Value::Object(map) if map.contains_key(part) => Vec::new(),
            Value::Object(map) => siblings(map, &format!("{before}.")),
            _ => return Err(invalid(format!("{name}: {before} is one value, it has no parts"))),
        };
        let next = match at {
            Value::Array(items) => part.parse::<usize>().ok().and_then(|i| items.get_mut(i)),
            other => other.get_mut(part),
        };
        at = next.ok_or_else(|| unknown(&name, known.iter().map(String::as_str)))?;
        before = name;
    }
    Ok(at)
}

/// All leaves as dotted paths.
fn paths(value: &Value, prefix: &str) -> Vec<String> {
    let join = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    match value {
        Value::Object(map) => map.iter().flat_map(|(key, v)| paths(v, &join(key))).collect(),
        _ => vec![prefix.to_string()],
    }
}

fn refuse_unknown(value: &Value, known: &Value, prefix: &str) -> Result<()> {
    if let (Value::Array(items), Value::Array(known)) = (value, known) {
        let Some(known) = known.first() else { return Ok(()) };
        let place = |i| format!("{}.{i}.", prefix.trim_end_matches('.'));
        return items.iter().enumerate().try_for_each(|(i, item)| refuse_unknown(item, known, &place(i)));
    }
    let (Value::Object(value), Value::Object(known)) = (value, known) else { return Ok(()) };
    for (key, v) in value {
        match known.get(key) {
            Some(k) => refuse_unknown(v, k, &format!("{prefix}{key}."))?,
            None => {
                return Err(unknown(
                    &format!("{prefix}{key}"),
                    siblings(known, prefix).iter().map(String::as_str),
                ));
            }
        }
    }
    Ok(())
}

fn siblings(known: &Map<String, Value>, prefix: &str) -> Vec<String> {
    known.keys().map(|k| format!("{prefix}{k}")).collect()
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let leaf = |p: &'a str| p.rsplit('.').next().unwrap_or(p);
    let nearest = known.min_by_key(|p| distance(key, p).min(distance(key, leaf(p))));
    let hint = nearest.map_or(String::new(), |n| format!("; the nearest known name is {n:?}"));
    invalid(format!("unknown configuration key {key:?}{hint}"))
}

/// The number of insertions, deletions and replacements between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let best = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
