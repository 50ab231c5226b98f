//! Checkpoints to `.llm` files.
//!
//! ```text
//! config.json ──▶ Spec ──▶ list of tensors ──┐
//! model.safetensors (or shards) ─────────────┼─▶ encode, all cores ──▶ OUT.llm, renamed into place at the end
//! tokenizer files, templates, defaults ──────┘
//! ```
//! What a checkpoint must hold is known before a value is read: a tensor that is missing, too many, or of another
//! shape is refused by name. A conversion that fails or is cancelled leaves no file. The same checkpoint gives the
//! same bytes. What the tensors compute is not known here.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use llm::model::arch::{self, Arch, Want};
use llm::model::draft::{self, Draft};
use llm::model::spec::Spec;
use llm::{Error, Result, Status};
use llm_format::quant::Type;
use llm_format::{NewSection, TensorPlan, Writer, kind};
use serde_json::{Map, Value};

pub mod adapter;
pub mod checkpoint;
mod encode;
pub mod importance;
mod metadata;
pub mod random;
mod recipe;
pub mod tokenizer;
mod values;

use checkpoint::Checkpoint;
use encode::Item;
pub use random::{RandomOptions, SCALINGS, SHAPES, random, random_with};
use values::{Origin, Values};

/// What to convert to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Type of the matrices. Vectors and routers stay f32.
    pub ty: Type,
    /// The splitting rule of a tokenizer whose files do not say it (tiktoken, `vocab.json` with `merges.txt`).
    pub pattern: Option<String>,
    /// The model's name; without it, what the configuration or the directory is called.
    pub name: Option<String>,
    /// A file of `libllm importance`: types from q8 down then make those errors small that matter.
    pub importance: Option<PathBuf>,
    /// A checkpoint of a small model with the same tokenizer, which goes into the file to guess tokens; in place of the
    /// head that the checkpoint itself may have.
    pub draft: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { ty: Type::Q4, pattern: None, name: None, importance: None, draft: None }
    }
}

/// Hears how a conversion goes. Called from several threads.
pub trait Progress: Sync {
    /// Work on a tensor begins.
    fn tensor(&self, _name: &str) {}
    /// `done` of `total` bytes are written. `false` cancels the conversion.
    fn advance(&self, _done: u64, _total: u64) -> bool {
        true
    }
}

/// Hears nothing.
impl Progress for () {}

/// What was written.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The checkpoint's `model_type`.
    pub architecture: String,
    /// Tensors in the file.
    pub tensors: usize,
    /// Values in them.
    pub parameters: u64,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// `bytes` · 8 / `parameters`
    pub bits_per_weight: f64,
    /// Kind of the tokenizer, if there is one.
    pub tokenizer: Option<String>,
    /// What the caller should know: sentences.
    pub warnings: Vec<String>,
}

/// Converts the checkpoint `source` (a directory, or a `.safetensors` file beside its `config.json`) to `out`.
///
/// # Errors
/// `UNSUPPORTED` for an architecture, a setting or a format that is not supported, `BAD_FORMAT` for a malformed
/// checkpoint or one whose tensors do not match, `NOT_FOUND` and `IO` from the file system, `INVALID_ARG` for an
/// output that is one of the files it reads weights from, `CANCELLED`.
pub fn convert(source: &Path, out: &Path, options: &Options, progress: &dyn Progress) -> Result<Summary> {
    let checkpoint = Checkpoint::open(source)?;
    if checkpoint.contains(out) {
        let what = format!("{}: the output is a file of the checkpoint; choose another name", out.display());
        return Err(Error::new(Status::INVALID_ARG, what));
    }
    let dir = checkpoint.directory().to_path_buf();
    let config = checkpoint::read_json(&dir.join("config.json"))?;
    let (arch, spec) = arch::read_config(&config).map_err(|e| e.context(dir.display()))?;
    let mut wants = (arch.tensors)(&spec);
    let own = wants.len();
    let second = options.draft.as_deref().map(Second::open).transpose()?;
    let importance = options.importance.as_deref();
    if second.as_ref().is_some_and(|second| second.checkpoint.contains(out))
        || importance.is_some_and(|file| checkpoint::same_file(file, out))
    {
        let what = format!("{}: the output is a file that is read; choose another name", out.display());
        return Err(Error::new(Status::INVALID_ARG, what));
    }
    let head = Draft::behind(&spec, |name| checkpoint.tensors().contains_key(name));
    let head = head.filter(|_| second.is_none());
    if let Some(head) = &head {
        wants.extend(head.tensors(spec.layers.len())?);
    }
    let mut wants = match_tensors(arch, &spec, wants, &checkpoint).map_err(|e| e.context(dir.display()))?;
    let of_draft = wants.split_off(own);
    let importance = importance.map(importance::Importance::read).transpose()?;
    let mut items = encode::items(wants, options.ty, importance.as_ref())?;
    let of_draft = second.as_ref().map_or(of_draft, |second| second.wants.clone());
    items.extend(encode::items(of_draft, options.ty, None)?);

    let mut warnings = Vec::new();
    if options.importance.is_some() && !options.ty.is_integer() {
        let ty = options.ty.name();
        warnings.push(format!("the importance changes nothing in a file of {ty}, only from q8 down"));
    }
    let built = tokenizer::load_dir(&dir, options.pattern.as_deref())?;
    let tokenizer_config = checkpoint::read_json_if_there(&dir.join("tokenizer_config.json"))?;
    let name = options.name.clone().unwrap_or_else(|| model_name(&config, &dir));
    let mut metadata = Map::new();
    metadata.insert("name".into(), name.clone().into());
    if let Some(draft) = second.as_ref().map(|second| &second.draft).or(head.as_ref()) {
        let draft = serde_json::to_value(draft)
            .map_err(|e| Error::new(Status::INTERNAL, format!("the draft's description: {e}")))?;
        metadata.insert("draft".into(), draft);
    }
    match &built {
        Some(built) => {
            let tokens = tokens(&built.tables)?;
            if tokens > spec.vocab as usize {
                let vocab = spec.vocab;
                warnings.push(format!("the tokenizer has {tokens} tokens, the model only {vocab}"));
            }
            metadata.insert("tokenizer".into(), metadata::tokenizer(built.kind, tokenizer_config.as_ref()));
        }
        None => warnings.push(format!(
            "{}: no tokenizer files; the model will take and give token ids only",
            dir.display()
        )),
    }
    metadata::templates(&dir, tokenizer_config.as_ref(), &mut metadata)?;
    metadata.insert("generation".into(), metadata::generation(&dir, &config)?);
    metadata.insert("provenance".into(), metadata::provenance(&name, &config, &checkpoint));
    if let Some(license) = metadata::license(&dir) {
        metadata.insert("license".into(), license.into());
    }
    if let Some(second) = &second {
        second.same_vocabulary((&dir, &spec), built.as_ref().map(|b| &b.tables[..]), options)?;
    }
    let origin = Both { first: &checkpoint, second: second.as_ref().map(|second| &second.checkpoint) };
    let (kind, tables) = built.map(|b| (b.kind.to_string(), b.tables)).unzip();
    let mut summary = write(out, &spec, metadata, tables, &items, options.ty, &origin, progress)?;
    summary.tokenizer = kind;
    summary.warnings.extend(warnings);
    Ok(summary)
}

/// The checkpoint of a draft.
struct Second {
    checkpoint: Checkpoint,
    draft: Draft,
    /// Under their names in the file.
    wants: Vec<Want>,
}

impl Second {
    fn open(source: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(source)?;
        let dir = checkpoint.directory().to_path_buf();
        let config = checkpoint::read_json(&dir.join("config.json"))?;
        let (arch, model) = arch::read_config(&config).map_err(|e| e.context(dir.display()))?;
        let draft = Draft { model, join: None };
        let wants = (arch.tensors)(&draft.model);
        let mut wants =
            match_tensors(arch, &draft.model, wants, &checkpoint).map_err(|e| e.context(dir.display()))?;
        wants.iter_mut().for_each(|want| want.name.insert_str(0, draft::PREFIX));
        Ok(Self { checkpoint, draft, wants })
    }

    /// Refuses a draft whose ids mean something else than those of the model in `first`.
    fn same_vocabulary(
        &self,
        (first, spec): (&Path, &Spec),
        tables: Option<&[u8]>,
        options: &Options,
    ) -> Result<()> {
        let dir = self.checkpoint.directory();
        let own = tokenizer::load_dir(dir, options.pattern.as_deref())?;
        let (here, there) = (self.draft.model.vocab, spec.vocab);
        let what = match (tables, &own) {
            (Some(tables), Some(own)) if tables == &own.tables[..] => return Ok(()),
            (Some(tables), Some(own)) => difference(tables, &own.tables)?,
            _ if here == there => return Ok(()),
            _ => format!("its vocabulary has {here} ids, the model's {there}"),
        };
        let message = format!(
            "{}: the draft has not the tokenizer of the model {}: {what}; a draft guesses the model's ids, so expected one \
             that was trained with the model's tokenizer",
            dir.display(),
            first.display()
        );
        Err(Error::new(Status::MISMATCH, message))
    }
}

/// Values of the file's two models.
struct Both<'a> {
    first: &'a Checkpoint,
    second: Option<&'a Checkpoint>,
}

impl Both<'_> {
    fn of(&self, want: &Want) -> &Checkpoint {
        self.second.filter(|_| want.name.starts_with(draft::PREFIX)).unwrap_or(self.first)
    }
}

impl Origin for Both<'_> {
    fn matrix<'a>(&'a self, want: &'a Want, index: usize) -> Result<Box<dyn Values + 'a>> {
        self.of(want).matrix(want, index)
    }

    fn vector(&self, want: &Want) -> Result<Vec<f32>> {
        self.of(want).vector(want)
    }
}

/// How many tokens the tables hold.
fn tokens(tables: &[u8]) -> Result<usize> {
    Ok(layout(tables)?.size as usize)
}

fn layout(tables: &[u8]) -> Result<llm_format::tokens::Layout> {
    llm_format::tokens::Layout::parse(tables)
        .map_err(|e| Error::new(Status::INTERNAL, format!("tokenizer tables: {}", e.0)))
}

/// Where the tokenizers of a model and of its draft differ first.
fn difference(of_model: &[u8], of_draft: &[u8]) -> Result<String> {
    let (model, draft) = (layout(of_model)?, layout(of_draft)?);
    let size = model.size.max(draft.size);
    let (model, draft) = (model.view(of_model), draft.view(of_draft));
    let shown = |token: Option<&[u8]>| {
        token.map_or_else(|| "missing".into(), |text| format!("{:?}", String::from_utf8_lossy(text)))
    };
    let other = (0..size).find(|id| model.token(*id) != draft.token(*id));
    Ok(match other {
        Some(id) => format!("token {id} is {} here, {} there", shown(draft.token(id)), shown(model.token(id))),
        None => "the tokens are the same, what makes them of a text (merges, scores, splits, special tokens) is not".into(),
    })
}

/// What the configuration calls the model, else the directory's name.
fn model_name(config: &Value, dir: &Path) -> String {
    let named = config.get("_name_or_path").and_then(Value::as_str).filter(|n| !n.is_empty());
    let path = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    match (named, path.file_name()) {
        (Some(name), _) => name.into(),
        (None, Some(name)) => name.to_string_lossy().into(),
        (None, None) => "model".into(),
    }
}

/// The first few of a list.
fn few(list: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = list.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match list.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// `wants`, the tensors of a model of `spec`, with sources under the names they have in this checkpoint.
fn match_tensors(
    arch: &Arch,
    spec: &Spec,
    mut wants: Vec<Want>,
    checkpoint: &Checkpoint,
) -> Result<Vec<Want>> {
    let stored = checkpoint.tensors();
    // A checkpoint of the bare model, without its head, has no prefix on any name.
    let bare = !stored.keys().any(|name| name.starts_with(arch.prefix));
    let mut used = std::collections::BTreeSet::new();
    let (mut missing, mut shapes, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for source in wants.iter_mut().flat_map(|want| &mut want.sources) {
        if bare && let Some(rest) = source.name.strip_prefix(arch.prefix) {
            source.name = rest.into();
        }
        match stored.get(&source.name) {
            None => missing.push(source.name.clone()),
            Some(entry) if entry.shape != source.shape => {
                shapes.push(format!("{} (expected {:?}, got {:?})", source.name, source.shape, entry.shape));
            }
            Some(entry) if checkpoint.view(&source.name).is_err() => {
                types.push(format!("{} ({})", source.name, entry.dtype()));
            }
            Some(_) => {}
        }
        used.insert(source.name.clone());
    }
    let extra: Vec<String> = stored
        .keys()
        .filter(|name| !used.contains(*name))
        .filter(|name| {
            let full = if bare { format!("{}{name}", arch.prefix) } else { (*name).clone() };
            !(arch.ignores)(spec, &full) && !(arch.ignores)(spec, name)
        })
        .cloned()
        .collect();
    if !types.is_empty() {
        let what = format!("tensors stored in a type other than F32, F16 and BF16: {}", few(&types));
        return Err(Error::new(Status::UNSUPPORTED, what));
    }
    let lists = [("missing", missing), ("not known", extra), ("of another shape", shapes)];
    let found: Vec<String> = lists
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(what, list)| format!("{what}: {}", few(list)))
        .collect();
    if found.is_empty() {
        return Ok(wants);
    }
    let what = format!(
        "the tensors do not match the configuration of a `{}`; {}",
        spec.architecture,
        found.join("; ")
    );
    Err(Error::new(Status::BAD_FORMAT, what))
}

/// Writes the file: `metadata` with what follows from the spec, the tokenizer's tables, and `items` out of `origin`.
#[allow(clippy::too_many_arguments)] // one call for each of the two ways to a file
fn write(
    out: &Path,
    spec: &Spec,
    mut metadata: Map<String, Value>,
    tokenizer: Option<Vec<u8>>,
    items: &[Item],
    ty: Type,
    origin: &dyn Origin,
    progress: &dyn Progress,
) -> Result<Summary> {
    let bytes: u64 = items.iter().map(|i| i.bytes).sum();
    let parameters: u64 = items.iter().map(|i| i.want.shape.iter().product::<u64>()).sum();
    let bits_per_weight = bytes as f64 * 8.0 / parameters.max(1) as f64;
    let model = serde_json::to_value(spec)
        .map_err(|e| Error::new(Status::INTERNAL, format!("the model's description: {e}")))?;
    metadata.insert("model".into(), model);
    metadata.insert("quantization".into(), metadata::quantization(ty, bits_per_weight));
    let sections = tokenizer.map(|data| NewSection { kind: kind::TOKENIZER, required: false, data });
    let plan: Vec<TensorPlan> = items
        .iter()
        .map(|i| TensorPlan { name: i.want.name.clone(), ty: i.ty, shape: i.want.shape.clone() })
        .collect();
    let mut writer = Writer::create(out, &metadata, sections.into_iter().collect(), &plan)?;
    let failed = |e: llm_format::Error| Error::from(e).context(out.display());
    encode::run(items, origin, progress, |tensor, bytes| writer.append(tensor, bytes).map_err(failed))?;
    writer.finish().map_err(failed)?;
    Ok(Summary {
        architecture: spec.architecture.clone(),
        tensors: items.len(),
        parameters,
        bytes,
        bits_per_weight,
        tokenizer: None,
        warnings: Vec::new(),
    })
}
