//! Opening a model: from a path, a descriptor or memory, mapped or copied; one validation for all of them.
//!
//! ```text
//! bytes ─ Index::parse ─▶ metadata ─ Spec::check ─▶ list of tensors ─ Weights::find ─▶ Model
//! ```
//! Opening reads header, metadata and tensor table, and nothing of weights or vocabulary unless a check of them is
//! asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use llm_format::quant::Type;
use llm_format::{Index, kind};
use llm_kernels::{FloatControl, RouteSpec};
use serde_json::{Map, Value};

use super::draft::{self, Draft};
use super::forward::Forward;
use super::spec::{Attention, Ffn, Spec};
use crate::cancel::Cancel;
use crate::chat::Template;
use crate::error::{Error, Result, Status};
use crate::importance::{Columns, Importance};
use crate::kv::{KvType, PageShape};
use crate::mmap::{self, Bytes, Prefetch};
use crate::runtime::{Charge, LogLevel, Memory, Runtime};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// How the file gets into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Load {
    /// Mapped: the fastest, and shared between processes. The file must not change while it is open.
    #[default]
    Map,
    /// Copied: immune to later changes of the file.
    Copy,
    /// Mapped, and locked in memory: the system never takes its pages away.
    MapAndLock,
}

/// How much of the file is checked at opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verify {
    /// Header, metadata and tensor table, as far as they are used.
    Header,
    /// The same, and the checksums of all sections but weights.
    #[default]
    Structure,
    /// Every checksum; reads the whole file.
    Full,
}

/// Told done and total bytes of copying and full checking; an error ends the opening with that error.
pub type OpenProgress = Arc<dyn Fn(u64, u64) -> Result<()> + Send + Sync>;

/// How to open.
#[derive(Clone)]
pub struct OpenOptions {
    /// Map or copy.
    pub load: Load,
    /// What to check.
    pub verify: Verify,
    /// Told how far copying and full checking are.
    pub progress: Option<OpenProgress>,
    /// Whether a thread of the model reads a mapped file in the background while the first tokens are computed
    /// (default). It ends with the model at the latest. Linux only; elsewhere pages come as they are used.
    pub prefetch: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { load: Load::default(), verify: Verify::default(), progress: None, prefetch: true }
    }
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let progress = self.progress.as_ref().map(|_| "function");
        f.debug_struct("OpenOptions")
            .field("load", &self.load)
            .field("verify", &self.verify)
            .field("progress", &progress)
            .field("prefetch", &self.prefetch)
            .finish()
    }
}

/// An open model. Clones share it; any thread may use it.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    file: Bytes,
    index: Arc<Index>,
    spec: Spec,
    weights: Weights,
    fingerprint: [u8; 32],
    tokenizer: OnceLock<Result<Arc<Tokenizer>>>,
    /// The file's second model.
    draft: OnceLock<Result<Option<Model>>>,
    /// The copy of the file, if it was copied.
    charge: Option<Charge>,
    /// Held for its end.
    _prefetch: Option<Prefetch>,
}

/// What a model is, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// The file's name for it, or the architecture.
    pub name: String,
    /// Name of the architecture.
    pub architecture: String,
    /// Layers.
    pub layers: u32,
    /// Query heads of the first layer.
    pub heads: u32,
    /// Key-value heads of the first layer (1 with latent attention).
    pub kv_heads: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Ids are below it.
    pub vocab: u32,
    /// Positions the model was trained for.
    pub context: u32,
    /// Values of all tensors.
    pub parameters: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Bytes of tensors by type.
    pub types: BTreeMap<&'static str, u64>,
    /// Whether experts are chosen per token.
    pub experts: bool,
    /// Whether the file has a tokenizer.
    pub tokenizer: bool,
    /// Whether the file has a chat template.
    pub template: bool,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, {} layers)", self.0.spec.architecture, self.0.spec.layers.len())
    }
}

impl Model {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`, `NO_MEMORY`, `BUDGET`; `BAD_FORMAT`, `BAD_VERSION`, `CHECKSUM` (with `offset`) for what is
    /// wrong in the file; `UNSUPPORTED` for a model that cannot be run; `CANCELLED`, `DEADLINE`.
    pub fn open_path(
        runtime: &Runtime,
        path: &Path,
        options: &OpenOptions,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        let open = || Self::open_file(runtime, &mmap::open(path)?, 0, 0, options, cancel);
        open().map_err(|e| e.context(path.display()))
    }

    /// Opens `len` bytes from `offset` on of the open descriptor `fd` (0: to the end). The descriptor is duplicated;
    /// the caller closes its own.
    ///
    /// # Errors
    /// As [`Model::open_path`].
    #[cfg(unix)]
    pub fn open_fd(
        runtime: &Runtime,
        fd: std::os::fd::RawFd,
        offset: u64,
        len: u64,
        options: &OpenOptions,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        let open = || Self::open_file(runtime, &crate::mmap::duplicate(fd)?, offset, len, options, cancel);
        open().map_err(|e| e.context(format_args!("descriptor {fd}")))
    }

    /// As on other systems, but here there are no descriptors to open.
    ///
    /// # Errors
    /// `UNSUPPORTED`.
    #[cfg(not(unix))]
    pub fn open_fd(
        _: &Runtime,
        fd: i32,
        _: u64,
        _: u64,
        _: &OpenOptions,
        _: Option<&Cancel>,
    ) -> Result<Self> {
        let text = format!("descriptor {fd}: expected a system with descriptors; open the file by its path");
        Err(Error::new(Status::UNSUPPORTED, text))
    }

    fn open_file(
        runtime: &Runtime,
        file: &File,
        offset: u64,
        len: u64,
        options: &OpenOptions,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        let load = match options.load {
            Load::Map if cfg!(not(any(unix, windows))) => Load::Copy, // a system without mappings
            load => load,
        };
        match load {
            Load::Map => Self::open(runtime, Bytes::map(file, offset, len)?, None, options, cancel),
            Load::MapAndLock => {
                let model = Self::open(runtime, Bytes::map(file, offset, len)?, None, options, cancel)?;
                model.0.file.lock()?; // last, since it reads all of the file; of a misaligned one the copy
                Ok(model)
            }
            Load::Copy => {
                let mut charge = runtime.charge(Memory::Weights, 0)?;
                let mut charged = false;
                let bytes = Bytes::read(file, offset, len, &mut |done, total| {
                    if !std::mem::replace(&mut charged, true) {
                        charge.grow(total)?;
                    }
                    tell(options, cancel, done, total)
                })?;
                Self::open(runtime, bytes, Some(charge), options, cancel)
            }
        }
    }

    /// Opens a file that lies in memory. It is copied where load mode copy asks for it, or where it does not begin
    /// at a multiple of 64 bytes; locking it is its owner's affair.
    ///
    /// # Errors
    /// As [`Model::open_path`].
    pub fn open_memory(
        runtime: &Runtime,
        bytes: Bytes,
        options: &OpenOptions,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        match options.load {
            Load::Map | Load::MapAndLock => Self::open(runtime, bytes, None, options, cancel),
            Load::Copy => {
                let charge = runtime.charge(Memory::Weights, bytes.len() as u64)?;
                Self::open(runtime, bytes.aligned_copy()?, Some(charge), options, cancel)
            }
        }
    }

    fn open(
        runtime: &Runtime,
        mut file: Bytes,
        mut charge: Option<Charge>,
        options: &OpenOptions,
        cancel: Option<&Cancel>,
    ) -> Result<Self> {
        cancel.map_or(Ok(()), Cancel::check)?;
        // numbers of the description are read from text
        let _float = FloatControl::default_for_now();
        let index = Index::parse(&file)?;
        if !file.as_ptr().addr().is_multiple_of(64) {
            // Vectors are used in place as floats, matrices as lines of 64 bytes.
            charge = Some(runtime.charge(Memory::Weights, file.len() as u64)?);
            file = file.aligned_copy()?;
        }
        match options.verify {
            Verify::Header => {}
            Verify::Structure => index.verify_sections(&file)?,
            Verify::Full => verify(&index, &file, options, cancel)?,
        }
        let spec = read_spec(index.metadata())?;
        runnable(&spec)?;
        let weights = Weights::find(&spec, &index, &file)?;
        // The embedding comes last: of it a prompt uses a few rows.
        let first = weights.embedding.bytes.as_ptr_range().end as usize - file.as_ptr() as usize;
        let spare = runtime.threads() < llm_kernels::threads::default_threads();
        let prefetch = if options.prefetch { file.prefetch(first, spare) } else { None };
        let tokenizer = OnceLock::new();
        let inner = Inner {
            runtime: runtime.clone(),
            file,
            fingerprint: index.identity(),
            index: Arc::new(index),
            spec,
            weights,
            tokenizer,
            draft: OnceLock::new(),
            charge,
            _prefetch: prefetch,
        };
        let model = Self(Arc::new(inner));
        runtime.log(LogLevel::Info, &format!("opened {model:?}"));
        Ok(model)
    }

    /// Whether the file was copied into memory.
    pub fn is_copied(&self) -> bool {
        self.0.charge.is_some()
    }

    /// Whether two handles are on the same opened model.
    pub fn is(&self, other: &Model) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The runtime it was opened with.
    pub fn runtime(&self) -> &Runtime {
        &self.0.runtime
    }

    /// Its shape.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// Its tokenizer, made at the first call.
    ///
    /// # Errors
    /// `NOT_FOUND` if the file has none, `BAD_FORMAT` if its tables are damaged.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        let open = || {
            let section = self.0.index.section(kind::TOKENIZER).ok_or_else(|| {
                let message =
                    "the file has no tokenizer: give token ids, or convert with the tokenizer's files";
                Error::new(Status::NOT_FOUND, message)
            })?;
            let tokenizer = Tokenizer::from_tables(self.0.file.slice(section))?;
            Ok(Arc::new(tokenizer.with_ids(self.0.spec.vocab as usize)))
        };
        self.0.tokenizer.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// The file's second model, which guesses this one's tokens; `None` without. It is read at the first call.
    ///
    /// # Errors
    /// `BAD_FORMAT`, `UNSUPPORTED`, as [`Model::open_path`].
    pub fn draft(&self) -> Result<Option<&Model>> {
        let open = || {
            let (file, index) = (&self.0.file, &self.0.index);
            let Some(draft) = Draft::read(index.metadata(), &self.0.spec)? else { return Ok(None) };
            runnable(&draft.model)?;
            let weights = Weights::find_draft(&draft, index, file)?;
            let _ = self.tokenizer(); // theirs is the same
            let mut fingerprint = blake3::Hasher::new();
            fingerprint.update(draft::PREFIX.as_bytes()).update(&index.identity());
            Ok(Some(Self(Arc::new(Inner {
                runtime: self.0.runtime.clone(),
                file: file.clone(),
                fingerprint: *fingerprint.finalize().as_bytes(),
                index: index.clone(),
                spec: draft.model,
                weights,
                tokenizer: self.0.tokenizer.clone(),
                draft: OnceLock::from(Ok(None)),
                charge: None,
                _prefetch: None,
            }))))
        };
        self.0.draft.get_or_init(open).as_ref().map(Option::as_ref).map_err(Clone::clone)
    }

    /// Whether it is a head that goes on from another model's hidden vectors, and cannot run by itself.
    pub fn is_head(&self) -> bool {
        self.0.weights.join.is_some()
    }

    /// Its chat template: the default one, or the one of that name.
    ///
    /// # Errors
    /// `NOT_FOUND` if there is none; what compiling it answers.
    pub fn template(&self, name: Option<&str>) -> Result<Template> {
        Template::of_model(self.metadata(), self.tokenizer().ok().map(|t| &**t), name)
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &Map<String, Value> {
        self.0.index.metadata()
    }

    /// What the file says about itself.
    pub fn file_index(&self) -> &Index {
        &self.0.index
    }

    /// 32 bytes that name the model's contents, the same on every machine. A file's second model has others than its
    /// first: neither takes adapters or snapshots of the other.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.0.fingerprint
    }

    /// Bytes of weights that one token reads: every matrix it is multiplied with, of the experts those that are
    /// chosen, of an embedding that is not the output matrix nothing (one row).
    pub fn weight_bytes_per_token(&self) -> u64 {
        let (weights, layers) = (&self.0.weights, &self.0.spec.layers);
        let of_layers = weights.layers.iter().zip(layers).map(|(w, layer)| w.bytes_per_token(layer));
        of_layers.sum::<u64>() + weights.head.bytes.len() as u64
    }

    /// Multiplications with matrices, each with its addition: of a token in the layers (of experts those that are
    /// chosen), and of a position whose logits are asked for.
    pub fn multiplications(&self) -> (u64, u64) {
        let (weights, layers) = (&self.0.weights, &self.0.spec.layers);
        let of_layers =
            weights.layers.iter().zip(layers).map(|(w, layer)| w.multiplications_per_token(layer));
        (of_layers.sum(), (weights.head.rows * weights.head.columns) as u64)
    }

    /// What the model is, in numbers.
    pub fn info(&self) -> Info {
        let (spec, index) = (&self.0.spec, &self.0.index);
        let metadata = index.metadata();
        let mut types = BTreeMap::new();
        for tensor in index.tensors() {
            *types.entry(tensor.ty.name()).or_insert(0) += tensor.len;
        }
        let (heads, kv_heads) = match spec.layers.first().map(|layer| &layer.attention) {
            Some(Attention::Heads(h)) => (h.heads, h.kv_heads),
            Some(Attention::Latent(a)) => (a.heads, 1),
            None => (0, 0),
        };
        Info {
            name: metadata.get("name").and_then(Value::as_str).unwrap_or(&spec.architecture).to_owned(),
            architecture: spec.architecture.clone(),
            layers: spec.layers.len() as u32,
            heads,
            kv_heads,
            width: spec.width,
            vocab: spec.vocab,
            context: spec.context,
            parameters: index.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum(),
            file_bytes: index.file_len(),
            weight_bytes: types.values().sum(),
            types,
            experts: spec.layers.iter().any(|layer| matches!(layer.ffn, Ffn::Experts(_))),
            tokenizer: index.section(kind::TOKENIZER).is_some(),
            template: metadata.contains_key("chat_template") || metadata.contains_key("chat_templates"),
        }
    }

    /// Whether all matrices are f32: the cache then is, too.
    pub(crate) fn is_f32(&self) -> bool {
        self.0.index.tensors().iter().all(|tensor| tensor.ty == Type::F32)
    }

    /// What `sums`, given to this model's runtime, saw of its tensors, in the order of the file.
    pub fn importance(&self, sums: &Importance) -> Vec<Columns> {
        sums.columns(self.0.index.tensors().iter().map(|tensor| {
            // The reader proved that the range lies in the file.
            let bytes = &self.0.file[tensor.offset as usize..][..tensor.len as usize];
            (tensor.name.as_str(), tensor.shape.len() == 3, bytes)
        }))
    }

    pub(crate) fn forward(&self) -> Forward<'_> {
        Forward { spec: &self.0.spec, weights: &self.0.weights, device: &**self.0.runtime.backend() }
    }
}

fn tell(options: &OpenOptions, cancel: Option<&Cancel>, done: u64, total: u64) -> Result<()> {
    cancel.map_or(Ok(()), Cancel::check)?;
    options.progress.as_ref().map_or(Ok(()), |progress| progress(done, total))
}

fn verify(index: &Index, file: &[u8], options: &OpenOptions, cancel: Option<&Cancel>) -> Result<()> {
    tell(options, cancel, 0, file.len() as u64)?;
    let mut stopped = None;
    let verified = index.verify(file, &mut |done, total| match tell(options, cancel, done, total) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            stopped = Some(e);
            ControlFlow::Break(())
        }
    });
    match stopped {
        Some(e) => Err(e),
        None => Ok(verified?),
    }
}

fn read_spec(metadata: &Map<String, Value>) -> Result<Spec> {
    let wrong = |what: String| Error::new(Status::BAD_FORMAT, format!("metadata: {what}"));
    let value = metadata.get("model").ok_or_else(|| match metadata.contains_key("adapter") {
        true => wrong("it is an adapter: open a model, and the adapter for it".into()),
        false => wrong("the key `model` is missing".into()),
    })?;
    let spec: Spec = serde::Deserialize::deserialize(value).map_err(|e| wrong(format!("`model`: {e}")))?;
    spec.check()?;
    Ok(spec)
}

/// Refuses what a spec can say and the kernels cannot do.
fn runnable(spec: &Spec) -> Result<()> {
    PageShape::new(spec, KvType::F32, 16)?;
    for (i, layer) in spec.layers.iter().enumerate() {
        if let Ffn::Experts(x) = &layer.ffn
            && x.count as usize > RouteSpec::MAX_EXPERTS
        {
            let message =
                format!("layer {i}: {} experts; at most {} are supported", x.count, RouteSpec::MAX_EXPERTS);
            return Err(Error::new(Status::UNSUPPORTED, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Mutex;

    use llm_format::{TensorPlan, Writer};

    use super::*;
    use crate::model::arch;
    use crate::runtime::RuntimeOptions;

    /// The file of a model of zeros.
    fn zeros(place: &Path) -> PathBuf {
        let config = serde_json::json!({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2,
            "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 8});
        let (arch, spec) = arch::read_config(&config).unwrap();
        let mut metadata = Map::new();
        metadata.insert("model".into(), serde_json::to_value(&spec).unwrap());
        let plan = |want: arch::Want| TensorPlan { name: want.name, ty: Type::F32, shape: want.shape };
        let plan: Vec<TensorPlan> = (arch.tensors)(&spec).into_iter().map(plan).collect();
        let path = place.join("model.llm");
        let mut writer = Writer::create(&path, &metadata, Vec::new(), &plan).unwrap();
        for (i, tensor) in plan.iter().enumerate() {
            writer.append_values(i, &vec![0.0; tensor.shape.iter().product::<u64>() as usize]).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    #[test]
    fn what_is_told_of_an_opening_ends_with_the_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = zeros(place.path());
        let whole = std::fs::metadata(&path).unwrap().len();
        let runtime = Runtime::new(RuntimeOptions { threads: 1, ..RuntimeOptions::default() }).unwrap();
        for (load, verify, works) in [
            (Load::Map, Verify::Structure, false),
            (Load::Map, Verify::Full, true),
            (Load::Copy, Verify::Structure, true),
            (Load::Copy, Verify::Full, true),
        ] {
            let told = Arc::new(Mutex::new(Vec::new()));
            let seen = told.clone();
            let progress: OpenProgress = Arc::new(move |done, total| {
                seen.lock().unwrap().push((done, total));
                Ok(())
            });
            let options = OpenOptions { load, verify, progress: Some(progress), ..OpenOptions::default() };
            Model::open_path(&runtime, &path, &options, None).unwrap();
            let told = told.lock().unwrap();
            let last = works.then_some((whole, whole));
            assert_eq!(told.last().copied(), last, "{load:?}, {verify:?}: {told:?}");
        }
    }
}
