//! Low-rank adapters (LoRA, arXiv:2106.09685): the matrices of a checkpoint stay, and beside each chosen one two thin
//! matrices are trained.
//!
//! ```text
//! y = W·x + (alpha/rank)·B·(A·drop(x))       A [rank, in], uniform at the start      B [out, rank], zero at the start
//! ```
//! A module is a matrix of the *checkpoint*, as PEFT counts them, so its files fit: where a checkpoint keeps queries,
//! keys and values in one matrix, they share one A. Rows of B lie in the order in which the model's parameters lie
//! ([`layout`](crate::layout) tells it from the checkpoint's). It does not know the tape.

mod peft;

use llm::adapter::peft::Settings;
use llm::error::{Error, Result, Status};
use llm::model::arch::{LayerSlot as L, Rows, Slot, Take};
use llm_kernels::dense::Dense;
use llm_kernels::dense::gemm::View;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::params::{Param, Params};
use crate::random::{Stream, bits};

pub(crate) use peft::{config, read, read_config, tensors};

/// The highest rank.
const MOST: usize = 1 << 14;

/// What is trained beside a checkpoint's matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Rank of the thin matrices; 0: no adapter, everything is trained.
    pub rank: usize,
    /// The adapter's factor is `alpha` / `rank`.
    pub alpha: f32,
    /// Share of an adapter's input dropped while training.
    pub dropout: f32,
    /// Names of the checkpoint's matrices, such as `q_proj`; empty: all linear ones but the head.
    pub targets: Vec<String>,
    /// The factor is `alpha` / √`rank` instead (rsLoRA).
    pub root: bool,
    /// Ranks of some matrices, by pattern: a regular expression for the end of a name, as PEFT has them; the first that
    /// fits counts.
    pub rank_pattern: Vec<(String, u32)>,
    /// The same for `alpha`.
    pub alpha_pattern: Vec<(String, f32)>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            rank: 0,
            alpha: 16.0,
            dropout: 0.0,
            targets: Vec::new(),
            root: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }
}

impl LoraConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// `INVALID_ARG` with the one that does not fit.
    pub fn check(&self) -> Result<()> {
        let alpha = |alpha: f32| alpha > 0.0 && alpha.is_finite();
        let fine = self.rank <= MOST
            && self.rank_pattern.iter().all(|(_, rank)| (1..=MOST).contains(&(*rank as usize)))
            && alpha(self.alpha)
            && self.alpha_pattern.iter().all(|(_, value)| alpha(*value))
            && (0.0..1.0).contains(&self.dropout);
        if !fine {
            let message =
                format!("lora: expected rank up to {MOST}, alpha above 0, dropout in 0..1, got {self:?}");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        if let Some(twice) = twice(&self.rank_pattern).or_else(|| twice(&self.alpha_pattern)) {
            let message = format!("lora: the pattern {twice:?} is named twice");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let patterns = self.settings().modules();
        patterns.map(drop).map_err(|e| Error::new(Status::INVALID_ARG, format!("lora: {e}")))
    }

    /// What ranks and factors follow from.
    fn settings(&self) -> Settings {
        Settings {
            rank: self.rank as u32,
            alpha: f64::from(self.alpha),
            ranks: self.rank_pattern.clone(),
            alphas: self.alpha_pattern.iter().map(|(p, alpha)| (p.clone(), f64::from(*alpha))).collect(),
            rank_stabilised: self.root,
        }
    }

    /// What must stay as it was where an adapter is trained further, in words.
    pub(crate) fn change(&self) -> String {
        let LoraConfig { rank, alpha, root, rank_pattern, alpha_pattern, .. } = self;
        let over = if *root { "√rank" } else { "rank" };
        let patterns = match (&rank_pattern[..], &alpha_pattern[..]) {
            ([], []) => String::new(),
            (ranks, alphas) => format!(", ranks of {ranks:?} and alphas of {alphas:?}"),
        };
        format!("rank {rank} and factor {alpha} / {over}{patterns}")
    }
}

/// A pattern that comes again: an object of JSON has a name once.
fn twice<T>(patterns: &[(String, T)]) -> Option<&str> {
    let again = |i: &usize| patterns[..*i].iter().any(|(pattern, _)| *pattern == patterns[*i].0);
    (1..patterns.len()).find(again).map(|i| patterns[i].0.as_str())
}

/// An item of `rank_pattern` or `alpha_pattern` from `PATTERN=NUMBER`; other text stays what it is, and is no item.
pub(crate) fn pattern(text: &str) -> Value {
    let number = |text: &str| serde_json::from_str::<serde_json::Number>(text).ok();
    let parts = text.rsplit_once('=').and_then(|(pattern, value)| Some((pattern, number(value)?)));
    parts.map_or_else(|| text.into(), |(pattern, value)| json!([pattern, value]))
}

/// A part of a module: rows of one parameter.
#[derive(Clone, Debug)]
struct Part {
    /// The parameter, by its place in the model's list.
    param: usize,
    /// First row in that parameter.
    start: usize,
    rows: usize,
    /// First row in B.
    from: usize,
    /// Which rows of the checkpoint's matrix they are; `None`: all.
    take: Option<Rows>,
}

/// An adapter of one matrix of the checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// The checkpoint's tensor, without `.weight`.
    pub name: String,
    /// The factor on B·A.
    scale: f32,
    parts: Vec<Part>,
    /// A and B, by their place in the adapter's list.
    a: usize,
    b: usize,
}

/// The adapters of a model.
#[derive(Clone, Debug)]
pub(crate) struct Lora {
    pub config: LoraConfig,
    pub modules: Vec<Module>,
    /// A and B of every module.
    pub params: Params,
    /// The checkpoint keeps its matrices `[in, out]`.
    pub turned: bool,
}

/// The places a linear layer reads its matrix from.
const LINEAR: [L; 14] = [
    L::Q,
    L::K,
    L::V,
    L::Out,
    L::Gate,
    L::Up,
    L::Down,
    L::QDown,
    L::QUp,
    L::KvDown,
    L::SharedGate,
    L::SharedUp,
    L::SharedDown,
    L::SharedSwitch,
];

impl Lora {
    /// The adapters that `config` asks for.
    ///
    /// # Errors
    /// `INVALID_ARG` for settings that do not fit, and for targets that the model lacks, with those it has.
    pub fn new(config: &LoraConfig, model: &Params) -> Result<Lora> {
        config.check()?;
        let numbers = config.settings().modules()?;
        let mut modules: Vec<Module> = Vec::new();
        let mut shapes: Vec<(String, Slot, usize, usize)> = Vec::new();
        let mut hit = vec![false; config.targets.len()];
        let mut known: Vec<String> = Vec::new();
        for (param, p) in model.list.iter().enumerate() {
            let mut end = 0;
            for part in &p.parts {
                let rows = part.rows;
                let begin = end;
                end += rows;
                let Some((name, take)) = linear(model, part.slot, p) else { continue };
                let last = name.rsplit('.').next().unwrap_or(&name).to_string();
                if !known.contains(&last) {
                    known.push(last);
                }
                // as PEFT: the whole name, or its end behind a dot
                let mut wanted = config.targets.is_empty();
                for (target, hit) in config.targets.iter().zip(&mut hit) {
                    let fits = name == *target
                        || name.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.'));
                    *hit |= fits;
                    wanted |= fits;
                }
                if !wanted {
                    continue;
                }
                let at = modules.iter().position(|m| m.name == name).unwrap_or(modules.len());
                if at == modules.len() {
                    let rank = numbers.rank(&name)?;
                    let (scale, rank, a) = (numbers.factor(&name, rank)?, rank as usize, shapes.len());
                    shapes.push((format!("{name}.lora_A"), part.slot, rank, p.cols));
                    shapes.push((format!("{name}.lora_B"), part.slot, 0, rank));
                    modules.push(Module { name, scale, parts: Vec::new(), a, b: a + 1 });
                }
                let module = &mut modules[at];
                let from = shapes[module.b].2;
                shapes[module.b].2 += rows;
                module.parts.push(Part { param, start: begin, rows, from, take });
            }
        }
        if let Some(target) = hit.iter().position(|hit| !hit).map(|i| &config.targets[i]) {
            let message = format!("lora.targets: no matrix {target:?}; this model has {}", known.join(", "));
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        if modules.is_empty() {
            return Err(Error::new(Status::INVALID_ARG, "lora: this model has no linear layers to adapt"));
        }
        let turned =
            model.wants.iter().flat_map(|w| &w.sources).any(|s| matches!(s.take, Take::Transposed(_)));
        Ok(Lora { config: config.clone(), modules, params: Params::named(shapes), turned })
    }

    /// The values at the start: A uniform within 1/√in, as PEFT begins, B zero.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.params.total];
        for (index, module) in self.modules.iter().enumerate() {
            let p = &self.params.list[module.a];
            let bound = 1.0 / (p.cols as f32).sqrt();
            for (i, v) in values[p.range()].iter_mut().enumerate() {
                let unit =
                    (bits(seed, Stream::Adapter, index as u64, i as u64) >> 40) as f32 / (1u32 << 24) as f32;
                *v = (2.0 * unit - 1.0) * bound;
            }
        }
        values
    }

    /// Adds what the adapters of parameter `param` make of `x` to `y`; `key` names a module's dropout.
    pub fn forward(
        &self,
        dense: &mut Dense,
        values: &[f32],
        (param, n): (usize, usize),
        x: &[f32],
        y: &mut [f32],
        (dropout, key): (f32, &dyn Fn(usize) -> u64),
    ) {
        for (index, module) in self.of(param) {
            let (a, b) = (&self.params.list[module.a], &self.params.list[module.b]);
            let (rows, rank) = (x.len() / a.cols, a.rows);
            let h = self.inner(dense, values, module, x, (dropout, key(index)));
            for part in module.parts.iter().filter(|p| p.param == param) {
                let b = &values[b.range()][part.from * rank..(part.from + part.rows) * rank];
                let b = View::new(b, part.rows, rank, rank);
                dense.product(View::new(&h, rows, rank, rank), b.t(), &mut y[part.start..], n, true);
            }
        }
    }

    /// The other way: gradients of A and B are added to `grads`, that of `x` to `dx`.
    pub fn backward(
        &self,
        dense: &mut Dense,
        (values, grads): (&[f32], &mut [f32]),
        (param, n): (usize, usize),
        (x, dy): (&[f32], &[f32]),
        dx: &mut [f32],
        (dropout, key): (f32, &dyn Fn(usize) -> u64),
    ) {
        for (index, module) in self.of(param) {
            let (a, b) = (&self.params.list[module.a], &self.params.list[module.b]);
            let (rows, rank, cols) = (x.len() / a.cols, a.rows, a.cols);
            let h = self.inner(dense, values, module, x, (dropout, key(index)));
            let mut dh = vec![0.0; rows * rank];
            for part in module.parts.iter().filter(|p| p.param == param) {
                let span = part.from * rank..(part.from + part.rows) * rank;
                let dy = View::new(&dy[part.start..], rows, part.rows, n);
                let weights = View::new(&values[b.range()][span.clone()], part.rows, rank, rank);
                dense.product(dy, weights, &mut dh, rank, true);
                let db = &mut grads[b.range()][span];
                dense.product(dy.t(), View::new(&h, rows, rank, rank), db, rank, true);
            }
            dh.iter_mut().for_each(|v| *v *= module.scale);
            let dh = View::new(&dh, rows, rank, rank);
            let weights = View::new(&values[a.range()], rank, cols, cols);
            if dropout > 0.0 {
                let mut seen = x.to_vec();
                dense.dropout(&mut seen, dropout, key(index));
                dense.product(dh.t(), View::new(&seen, rows, cols, cols), &mut grads[a.range()], cols, true);
                dense.product(dh, weights, &mut seen, cols, false);
                dense.dropout(&mut seen, dropout, key(index));
                dense.add(dx, &seen);
            } else {
                dense.product(dh.t(), View::new(x, rows, cols, cols), &mut grads[a.range()], cols, true);
                dense.product(dh, weights, dx, cols, true);
            }
        }
    }

    /// Adds the adapters to the model's matrices.
    pub fn merge(&self, dense: &mut Dense, values: &[f32], model: &Params, weights: &mut [f32]) {
        for module in &self.modules {
            let (a, b) = (&self.params.list[module.a], &self.params.list[module.b]);
            let scaled: Vec<f32> = values[b.range()].iter().map(|v| v * module.scale).collect();
            for part in &module.parts {
                let (rank, cols) = (a.rows, a.cols);
                let from = model.list[part.param].range().start + part.start * cols;
                let b = &scaled[part.from * rank..(part.from + part.rows) * rank];
                let b = View::new(b, part.rows, rank, rank);
                let a = View::new(&values[a.range()], rank, cols, cols);
                dense.product(b, a, &mut weights[from..from + part.rows * cols], cols, true);
            }
        }
    }

    /// The modules that work on parameter `param`.
    fn of(&self, param: usize) -> impl Iterator<Item = (usize, &Module)> {
        let works = move |m: &&Module| m.parts.iter().any(|p| p.param == param);
        self.modules.iter().enumerate().filter(move |(_, m)| works(m))
    }

    /// A·drop(x), times the factor: `[rows, rank]`.
    fn inner(
        &self,
        dense: &mut Dense,
        values: &[f32],
        module: &Module,
        x: &[f32],
        (dropout, key): (f32, u64),
    ) -> Vec<f32> {
        let a = &self.params.list[module.a];
        let rows = x.len() / a.cols;
        let mut h = vec![0.0; rows * a.rows];
        let shape = (rows, a.rows, a.cols);
        if dropout > 0.0 {
            let mut seen = x.to_vec();
            dense.dropout(&mut seen, dropout, key);
            dense.linear(&seen, &values[a.range()], None, None, &mut h, shape);
        } else {
            dense.linear(x, &values[a.range()], None, None, &mut h, shape);
        }
        h.iter_mut().for_each(|v| *v *= module.scale);
        h
    }
}

/// The checkpoint's matrix behind a place of a linear layer, and which of its rows.
fn linear(model: &Params, slot: Slot, p: &Param) -> Option<(String, Option<Rows>)> {
    if !matches!(slot, Slot::Layer(_, part) if LINEAR.contains(&part)) || p.count != 1 {
        return None;
    }
    let want = model.wants.iter().find(|w| w.slot == slot)?;
    let [source] = &want.sources[..] else { return None };
    let take = match &source.take {
        Take::All => None,
        Take::Rows(rows) | Take::Transposed(rows) => Some(*rows),
        Take::PerExpert { .. } | Take::HeadsTransposed { .. } => return None,
    };
    Some((source.name.strip_suffix(".weight")?.to_string(), take))
}

#[cfg(test)]
mod tests;
