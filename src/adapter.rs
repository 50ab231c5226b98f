//! Adapters: low-rank changes of a model's matrices (LoRA, arXiv:2106.09685), mapped from files of their own.
//!
//! ```text
//! out = W x  +  scale · B (A x)        A [rank, in]  B [out, rank], of each matrix that the adapter changes
//! ```
//! The file is a `.llm` file whose metadata has the key `adapter` in place of `model` (format/SPEC.md). It is checked
//! whole when it is opened: every checksum, and every shape against the model. The model itself is not touched, so any
//! number of sessions may run it with other adapters, or none. It does not know where products are computed.

pub mod peft;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use llm_format::Index;
use llm_format::quant::Type;
use llm_kernels::{FloatControl, Matrix as MatrixView};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Status};
use crate::mmap::{self, Bytes};
use crate::model::Model;
use crate::model::arch::{self, LayerSlot as L, Slot, Want};
use crate::runtime::{Charge, Memory};
use crate::tensor::{Matrix, Vector};

/// The version of adapters that this library writes and reads.
pub const VERSION: u32 = 1;
/// What the name of A's tensor has behind that of the matrix it changes.
pub const A: &str = ".lora_a";
/// The same of B's tensor.
pub const B: &str = ".lora_b";

/// The metadata `adapter` of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// [`VERSION`]
    pub version: u32,
    /// Name of the architecture of the models it changes.
    pub architecture: String,
    /// Fingerprint of the only model it is for, as 64 hexadecimal digits; without it any model of the architecture whose
    /// matrices have the right shapes will do, whatever its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The matrices it changes.
    pub targets: Vec<Target>,
}

/// A matrix that an adapter changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Name of the matrix in the model's file.
    pub tensor: String,
    /// Rows of A and columns of B.
    pub rank: u32,
    /// Factor on the change.
    pub scale: f32,
}

/// What an adapter is.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterInfo {
    /// The file's name for it.
    pub name: String,
    /// 32 bytes that name its contents, the same on every machine.
    pub fingerprint: [u8; 32],
    /// Matrices it changes.
    pub targets: usize,
    /// The largest rank among them.
    pub rank: usize,
    /// Values of all A and B.
    pub parameters: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// An open adapter. Clones share it; any thread may use it. Sessions that use it keep it.
#[derive(Clone)]
pub struct Adapter(Arc<Inner>);

struct Inner {
    /// The fingerprint of the model it was opened for.
    model: [u8; 32],
    info: AdapterInfo,
    /// By layer.
    changes: Vec<Vec<(L, Change)>>,
    /// The copy of the file, if it was copied.
    _charge: Option<Charge>,
}

/// The change of one matrix.
#[derive(Debug)]
pub(crate) struct Change {
    /// `[rank, in]`
    pub(crate) a: Matrix,
    /// B turned round, `[rank, out]`.
    pub(crate) b: Vector,
    pub(crate) scale: f32,
}

/// An adapter as a session uses it.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) adapter: Adapter,
    pub(crate) scale: f32,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Adapter({}, {} matrices)", self.0.info.name, self.0.info.targets)
    }
}

/// Whether an adapter may change the tensor of `slot`: the matrices of attention and of feed-forward blocks that all
/// tokens go through.
pub fn takes(slot: Slot) -> bool {
    matches!(
        slot,
        Slot::Layer(
            _,
            L::Q | L::K
                | L::V
                | L::Out
                | L::QDown
                | L::QUp
                | L::KvDown
                | L::Gate
                | L::Up
                | L::Down
                | L::SharedGate
                | L::SharedUp
                | L::SharedDown
                | L::SharedSwitch
        )
    )
}

impl Adapter {
    /// Opens the adapter at `path` for `model`. The file is mapped and read once, for its checksums.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`, `NO_MEMORY`, `BUDGET`; `BAD_FORMAT`, `BAD_VERSION`, `CHECKSUM` (with `offset`) for what is wrong
    /// in the file; `MISMATCH` for an adapter of another architecture, of other shapes, or of another model where it
    /// names one.
    pub fn open_path(model: &Model, path: &Path) -> Result<Self> {
        let open = || Self::open_memory(model, Bytes::map(&mmap::open(path)?, 0, 0)?);
        open().map_err(|e| e.context(path.display()))
    }

    /// Opens an adapter that lies in memory. It is copied where it does not begin at a multiple of 64 bytes.
    ///
    /// # Errors
    /// As [`Adapter::open_path`].
    pub fn open_memory(model: &Model, mut file: Bytes) -> Result<Self> {
        // scales are read from text
        let _float = FloatControl::default_for_now();
        let index = Index::parse(&file)?;
        let spec = read(&index)?;
        let mut charge = None;
        if !file.as_ptr().addr().is_multiple_of(64) {
            // B is used in place as floats, A as lines of 64 bytes.
            charge = Some(model.runtime().charge(Memory::Weights, file.len() as u64)?);
            file = file.aligned_copy()?;
        }
        // Whole, because its fingerprint decides which sessions share keys and values.
        index.verify(&file, &mut |_, _| ControlFlow::Continue(()))?;
        fits(&spec, model)?;
        let wants = (arch::find(&spec.architecture)?.tensors)(model.spec());
        let mut changes: Vec<Vec<(L, Change)>> = Vec::new();
        changes.resize_with(model.spec().layers.len(), Vec::new);
        let mut seen = HashSet::new();
        let (mut rank, mut parameters) = (0, 0);
        for target in &spec.targets {
            let want = wants.iter().find(|want| want.name == target.tensor);
            let Some(Want { slot: Slot::Layer(layer, slot), shape, .. }) = want.filter(|w| takes(w.slot))
            else {
                return Err(mismatch(format!(
                    "`{}` is not a matrix of this `{}` model that an adapter can change",
                    target.tensor, spec.architecture
                )));
            };
            if !seen.insert(&target.tensor) {
                return Err(bad(format!("`{}` is changed twice", target.tensor)));
            }
            let change = change(target, shape, &index, &file)?;
            rank = rank.max(target.rank as usize);
            parameters += (change.a.rows * change.a.columns + change.b.values().len()) as u64;
            if let Some(of_layer) = changes.get_mut(*layer as usize) {
                of_layer.push((*slot, change));
            }
        }
        let name = index.metadata().get("name").and_then(serde_json::Value::as_str).unwrap_or("adapter");
        let info = AdapterInfo {
            name: name.into(),
            fingerprint: index.identity(),
            targets: spec.targets.len(),
            rank,
            parameters,
            file_bytes: index.file_len(),
        };
        Ok(Self(Arc::new(Inner { model: model.fingerprint(), info, changes, _charge: charge })))
    }

    /// What it is.
    pub fn info(&self) -> &AdapterInfo {
        &self.0.info
    }

    /// Whether sessions of `model` can use it: it was opened for that model, or one of the same contents.
    pub(crate) fn is_for(&self, model: &Model) -> bool {
        self.0.model == model.fingerprint()
    }

    /// Whether both are the same open adapter.
    pub(crate) fn is(&self, other: &Adapter) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What it changes about the matrix at `slot` of `layer`.
    pub(crate) fn change(&self, layer: usize, slot: L) -> Option<&Change> {
        self.0.changes.get(layer)?.iter().find(|(at, _)| *at == slot).map(|(_, change)| change)
    }
}

impl Change {
    /// Rows of A.
    pub(crate) fn rank(&self) -> usize {
        self.a.rows
    }
}

/// 32 bytes that name adapters with their scales, in this order; zeros for none.
pub(crate) fn key(uses: &[Use]) -> [u8; 32] {
    if uses.is_empty() {
        return [0; 32];
    }
    let mut hash = blake3::Hasher::new();
    for one in uses {
        hash.update(&one.adapter.0.info.fingerprint);
        hash.update(&one.scale.to_le_bytes());
    }
    *hash.finalize().as_bytes()
}

fn bad(what: String) -> Error {
    Error::new(Status::BAD_FORMAT, format!("adapter: {what}"))
}

fn mismatch(what: String) -> Error {
    Error::new(Status::MISMATCH, format!("adapter: {what}"))
}

/// The metadata of an adapter.
fn read(index: &Index) -> Result<AdapterSpec> {
    let value = index.metadata().get("adapter").ok_or_else(|| {
        let is = if index.metadata().contains_key("model") { "it is a model" } else { "it is neither" };
        bad(format!("the metadata has no key `adapter`: {is}; convert one from PEFT's files"))
    })?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if let Some(version) = version.filter(|&version| version != u64::from(VERSION)) {
        let message = format!("adapter: it has version {version}; this library reads {VERSION}");
        return Err(Error::new(Status::BAD_VERSION, message));
    }
    AdapterSpec::deserialize(value).map_err(|e| bad(format!("metadata `adapter`: {e}")))
}

/// Refuses an adapter of other models.
fn fits(spec: &AdapterSpec, model: &Model) -> Result<()> {
    let own = &model.spec().architecture;
    if spec.architecture != *own {
        return Err(mismatch(format!("it is for `{}` models, this one is a `{own}`", spec.architecture)));
    }
    let fingerprint: String = model.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect();
    match &spec.model {
        Some(only) if *only != fingerprint => Err(mismatch(format!(
            "it is for the model {only} alone, this one is {fingerprint}: open the file it was made for"
        ))),
        _ => Ok(()),
    }
}

/// The change of one matrix of `shape`.
fn change(target: &Target, shape: &[u64], index: &Index, file: &Bytes) -> Result<Change> {
    let &[out, columns] = shape else {
        return Err(mismatch(format!("`{}` is not one matrix in this model", target.tensor)));
    };
    if !target.scale.is_finite() {
        return Err(bad(format!("`{}`: its scale is {}", target.tensor, target.scale)));
    }
    let rank = u64::from(target.rank);
    let find = |end: &str, expected: &[u64]| {
        let name = format!("{}{end}", target.tensor);
        let tensor = index.tensor(&name).ok_or_else(|| bad(format!("tensor `{name}` is not in the file")))?;
        if tensor.shape != expected {
            let message = format!(
                "tensor `{name}`: shape should be {expected:?} for this model, got {:?}",
                tensor.shape
            );
            return Err(mismatch(message));
        }
        // The reader proved that the range lies in the file, so it fits usize.
        let start = tensor.offset as usize;
        Ok((tensor.ty, file.slice(start..start + tensor.len as usize)))
    };
    let (ty, bytes) = find(A, &[rank, columns])?;
    let (rows, columns) = (rank as usize, columns as usize);
    if !matches!(ty, Type::F32 | Type::F16 | Type::Bf16)
        || MatrixView::new(ty, rows, columns, &bytes).is_none()
    {
        return Err(bad(format!(
            "tensor `{}{A}`: it should be a matrix of floats, got {}",
            target.tensor,
            ty.name()
        )));
    }
    let a = Matrix { ty, rows, columns, bytes };
    let (ty, bytes) = find(B, &[rank * out])?;
    let b = Vector::new(bytes, rows * out as usize).filter(|_| ty == Type::F32).ok_or_else(|| {
        bad(format!("tensor `{}{B}`: it should be a vector of f32, got {}", target.tensor, ty.name()))
    })?;
    Ok(Change { a, b, scale: target.scale })
}
