//! Adapters in PEFT's layout to adapters of ours.
//!
//! ```text
//! adapter_config.json ──▶ scale of each module ─┐
//! adapter_model.safetensors                     ├─▶ OUT.llm:  NAME.lora_a [rank, in] · NAME.lora_b [rank, out]
//!   MODULE.lora_A.weight [rank, in]             │
//!   MODULE.lora_B.weight [out, rank] ───────────┘   NAME: each of the model's matrices that MODULE became
//! ```
//! The model says what became of a module: where one matrix of a checkpoint was split into several (q, k and v; gate and
//! up), each gets A whole and its own rows of B. What cannot be run as it is meant is refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llm::adapter::{A, AdapterSpec, B, Target, VERSION, peft, takes};
use llm::model::arch::{self, Rows, Take, Want};
use llm::model::spec::Spec;
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::{Error, Result, Status};
use llm_format::quant::Type;
use llm_format::{TensorPlan, Writer};
use serde_json::{Map, Value, json};

use crate::checkpoint::{self, Checkpoint};
use crate::few;

/// What PEFT puts in front of a module's name.
const WRAPPED: &str = "base_model.model.";

/// What to convert to.
#[derive(Clone, Debug, Default)]
pub struct AdapterOptions {
    /// The adapter is for the very file it is converted for, not for any with the same matrices.
    pub only: bool,
    /// Its name; without it, what the directory is called.
    pub name: Option<String>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Architecture of the models it is for.
    pub architecture: String,
    /// Matrices it changes.
    pub targets: usize,
    /// The largest rank among them.
    pub rank: u32,
    /// Values in all.
    pub parameters: u64,
    /// What the caller should know: sentences.
    pub warnings: Vec<String>,
}

/// A module of the checkpoint with its change.
#[derive(Default)]
struct Module {
    a: Option<String>,
    b: Option<String>,
}

/// Whether `source` is a directory with an adapter in PEFT's layout.
pub fn is_adapter(source: &Path) -> bool {
    source.join("adapter_config.json").is_file()
}

/// Converts the adapter in the directory `source` to `out`, for the model `base`: a `.llm` file, or a checkpoint's
/// directory.
///
/// # Errors
/// `UNSUPPORTED` for a kind of adapter that cannot be run as it is meant, `MISMATCH` for one of another model,
/// `BAD_FORMAT` for malformed files and values that are not finite, `INVALID_ARG` for an output that is read,
/// `NOT_FOUND` and `IO` from the file system.
pub fn convert_adapter(
    source: &Path,
    base: &Path,
    out: &Path,
    options: &AdapterOptions,
) -> Result<AdapterSummary> {
    let at = |e: Error| e.context(source.display());
    if checkpoint::same_file(base, out) {
        let what = format!("{}: the output is the model of the adapter; choose another name", out.display());
        return Err(Error::new(Status::INVALID_ARG, what));
    }
    let path = source.join("adapter_config.json");
    let config = checkpoint::read_json(&path)?;
    let here = |e: Error| e.context(path.display());
    let factors = peft::Settings::read(&config).and_then(|settings| settings.modules()).map_err(here)?;
    let mut warnings = Vec::new();
    if config.get("inference_mode") == Some(&Value::Bool(false)) {
        warnings.push("the adapter was saved while it was in training".into());
    }
    let (file, pickled) = (source.join("adapter_model.safetensors"), source.join("adapter_model.bin"));
    if !file.exists() && pickled.exists() {
        return Err(checkpoint::other_format(&pickled, "a PyTorch file"));
    }
    let weights = Checkpoint::open(&file)?;
    if weights.contains(out) {
        let what = format!("{}: the output is a file of the adapter; choose another name", out.display());
        return Err(Error::new(Status::INVALID_ARG, what));
    }
    let (spec, fingerprint) = read_base(base, options.only)?;
    let arch = arch::find(&spec.architecture)?;
    let wants = (arch.tensors)(&spec);
    let modules = modules(&weights).map_err(at)?;
    let parts = modules.iter().map(|(module, found)| parts(module, found, &wants, arch.prefix, &weights));
    let parts: Vec<Part<'_>> = parts.collect::<Result<Vec<_>>>().map_err(at)?.into_iter().flatten().collect();

    let mut targets = Vec::new();
    for part in &parts {
        let scale = factors.factor(part.module, part.rank).map_err(here)?;
        targets.push(Target { tensor: part.want.name.clone(), rank: part.rank, scale });
    }
    let adapter = AdapterSpec {
        version: VERSION,
        architecture: spec.architecture.clone(),
        model: fingerprint,
        targets,
    };
    let mut metadata = Map::new();
    let place = source.canonicalize().unwrap_or_else(|_| source.to_path_buf());
    let directory = place.file_name().map_or("adapter".into(), |name| name.to_string_lossy().into_owned());
    metadata.insert("name".into(), options.name.clone().unwrap_or(directory).into());
    let described = serde_json::to_value(&adapter);
    metadata.insert(
        "adapter".into(),
        described.map_err(|e| Error::new(Status::INTERNAL, format!("the adapter's description: {e}")))?,
    );
    let of = config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
    metadata.insert("provenance".into(), json!({ "base_model": of }));

    let mut plan = Vec::new();
    for part in &parts {
        let rank = u64::from(part.rank);
        let shape = vec![rank, part.columns];
        plan.push(TensorPlan { name: format!("{}{A}", part.want.name), ty: part.ty, shape });
        let shape = vec![rank * part.rows.len() as u64];
        plan.push(TensorPlan { name: format!("{}{B}", part.want.name), ty: Type::F32, shape });
    }
    let mut writer = Writer::create(out, &metadata, Vec::new(), &plan)?;
    for (i, part) in parts.iter().enumerate() {
        writer.append_values(2 * i, &read(&weights, part.a).map_err(at)?)?;
        let (b, rank) = (read(&weights, part.b).map_err(at)?, part.rank as usize);
        // [out, rank], some rows of it, turned round
        let turned: Vec<f32> = (0..rank)
            .flat_map(|j| part.rows.iter().map(move |&row| (j, row)))
            .map(|(j, row)| b[row * rank + j])
            .collect();
        writer.append_values(2 * i + 1, &turned)?;
    }
    writer.finish()?;
    let parameters = plan.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
    let rank = parts.iter().map(|part| part.rank).max().unwrap_or(0);
    Ok(AdapterSummary { architecture: spec.architecture, targets: parts.len(), rank, parameters, warnings })
}

/// The base model's shape, and its fingerprint if it shall be named.
fn read_base(base: &Path, only: bool) -> Result<(Spec, Option<String>)> {
    if base.is_dir() {
        if only {
            let what = format!("{}: a checkpoint has no fingerprint; name a .llm file", base.display());
            return Err(Error::new(Status::INVALID_ARG, what));
        }
        let config = checkpoint::read_json(&base.join("config.json"))?;
        return Ok((arch::read_config(&config).map_err(|e| e.context(base.display()))?.1, None));
    }
    let runtime = Runtime::new(RuntimeOptions { threads: 1, ..RuntimeOptions::default() })?;
    let options = OpenOptions { prefetch: false, ..OpenOptions::default() };
    let model = Model::open_path(&runtime, base, &options, None)?;
    let fingerprint = model.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((model.spec().clone(), only.then_some(fingerprint)))
}

/// The modules of the file.
fn modules(weights: &Checkpoint) -> Result<BTreeMap<String, Module>> {
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    let mut others = Vec::new();
    for name in weights.tensors().keys() {
        let inner = name.strip_prefix(WRAPPED).unwrap_or(name);
        if let Some(module) = inner.strip_suffix(".lora_A.weight") {
            modules.entry(module.into()).or_default().a = Some(name.clone());
        } else if let Some(module) = inner.strip_suffix(".lora_B.weight") {
            modules.entry(module.into()).or_default().b = Some(name.clone());
        } else {
            others.push(name.clone());
        }
    }
    if !others.is_empty() {
        let what = format!(
            "tensors other than lora_A and lora_B of matrices: {}; merge them into the model",
            few(&others)
        );
        return Err(Error::new(Status::UNSUPPORTED, what));
    }
    if modules.is_empty() {
        return Err(Error::new(Status::BAD_FORMAT, "no lora_A and lora_B in it"));
    }
    Ok(modules)
}

/// What a module changes of one of the model's matrices.
struct Part<'a> {
    module: &'a str,
    want: &'a Want,
    a: &'a str,
    b: &'a str,
    ty: Type,
    rank: u32,
    columns: u64,
    /// Rows of B.
    rows: Vec<usize>,
}

/// The model's matrices that `module` became.
fn parts<'a>(
    module: &'a str,
    found: &'a Module,
    wants: &'a [Want],
    prefix: &str,
    weights: &Checkpoint,
) -> Result<Vec<Part<'a>>> {
    let (Some(a), Some(b)) = (&found.a, &found.b) else {
        return Err(Error::new(Status::BAD_FORMAT, format!("`{module}` lacks one of lora_A and lora_B")));
    };
    let shape = |name: &str| weights.tensors().get(name).map(|entry| entry.shape.clone()).unwrap_or_default();
    let (&[rank, columns], &[rows, of_b]) = (&shape(a)[..], &shape(b)[..]) else {
        return Err(Error::new(
            Status::UNSUPPORTED,
            format!("`{module}`: its lora_A and lora_B are not matrices"),
        ));
    };
    let names: BTreeSet<String> = [format!("{module}.weight"), format!("{prefix}{module}.weight")].into();
    let becomes = |want: &&Want| want.sources.iter().any(|source| names.contains(&source.name));
    let mut parts = Vec::new();
    for want in wants.iter().filter(becomes) {
        let ([source], true) = (&want.sources[..], takes(want.slot)) else {
            let what = format!(
                "`{module}` (`{}`): experts, routers, embeddings and heads are not changed by adapters",
                want.name
            );
            return Err(Error::new(Status::UNSUPPORTED, what));
        };
        let whole = Rows::run(0, rows);
        let (taken, inputs, outputs) = match (&source.take, &source.shape[..]) {
            (Take::All, &[outputs, inputs]) => (whole, inputs, outputs),
            (Take::Rows(rows), &[outputs, inputs]) => (*rows, inputs, outputs),
            (Take::Transposed(rows), &[inputs, outputs]) => (*rows, inputs, outputs),
            _ => {
                let what = format!(
                    "`{module}`: this model multiplies with it in another form, to which a low-rank change cannot be added; \
                     merge it into the model"
                );
                return Err(Error::new(Status::UNSUPPORTED, what));
            }
        };
        if rank == 0 || of_b != rank || (columns, rows) != (inputs, outputs) {
            let what = format!(
                "`{module}`: lora_A [{rank}, {columns}] and lora_B [{rows}, {of_b}] do not fit a matrix of \
                 [{outputs}, {inputs}]: is it an adapter of another model?"
            );
            return Err(Error::new(Status::MISMATCH, what));
        }
        let ty = match weights.tensors().get(a.as_str()).map(|entry| entry.dtype()).as_deref() {
            Some("F16") => Type::F16,
            Some("BF16") => Type::Bf16,
            _ => Type::F32,
        };
        // Rows lie in the matrix, whose rows B has: proven by the shapes.
        let rows = places(taken).filter(|&row| row < rows).map(|row| row as usize).collect::<Vec<_>>();
        if rows.len() as u64 != want.shape[0] {
            return Err(Error::new(
                Status::INTERNAL,
                format!("`{module}`: {} rows of `{}`", rows.len(), want.name),
            ));
        }
        parts.push(Part { module, want, a, b, ty, rank: rank as u32, columns, rows });
    }
    if parts.is_empty() {
        let what = format!("`{module}` is not a matrix of this model: is it an adapter of another one?");
        return Err(Error::new(Status::MISMATCH, what));
    }
    Ok(parts)
}

/// The rows of a pattern, in order.
fn places(rows: Rows) -> impl Iterator<Item = u64> {
    (0..rows.blocks)
        .flat_map(move |block| (0..rows.count).map(move |i| rows.start + block * rows.stride + i * rows.step))
}

/// A tensor's values, which are finite.
fn read(weights: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let view = weights.view(name)?;
    // The file's header is checked against its length.
    let mut values = vec![0.0; view.count() as usize];
    view.read(0, &mut values, &mut Vec::new())?;
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        let what = format!("tensor `{name}` holds {value}, expected finite values");
        return Err(Error::new(Status::BAD_FORMAT, what));
    }
    Ok(values)
}
