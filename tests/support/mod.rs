//! Reference checkpoints, converted and opened.

#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};

use llm::adapter::Adapter;
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Session, SessionOptions};
use llm_convert::{Options, convert};
use llm_format::quant::Type;
use safetensors::SafeTensors;
use serde_json::Value;

/// A runtime of `threads` threads, on `isa` if one is named.
pub fn runtime(threads: usize, isa: Option<&str>) -> Runtime {
    Runtime::new(RuntimeOptions { threads, isa: isa.map(Into::into), ..Default::default() }).unwrap()
}

/// The checkpoint in `dir` as a file of `ty`, in a directory that goes with the value.
pub fn converted(dir: &Path, ty: Type) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("model.llm");
    let options = Options { ty, ..Default::default() };
    convert(dir, &out, &options, &()).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    (place, out)
}

/// The file opened.
pub fn open(runtime: &Runtime, path: &Path) -> Model {
    Model::open_path(runtime, path, &OpenOptions::default(), None).unwrap()
}

/// The checkpoint in `dir` as a model of `ty`. The file is unlinked at once: a mapping outlives its name.
pub fn model(runtime: &Runtime, dir: &Path, ty: Type) -> Model {
    let (_place, path) = converted(dir, ty);
    open(runtime, &path)
}

/// Logits behind every token, `[tokens, vocab]`.
pub fn logits(model: &Model, options: &SessionOptions, ids: &[i32]) -> Vec<f32> {
    adapted(model, options, ids, &[])
}

/// The same of a session with `adapters`.
pub fn adapted(
    model: &Model,
    options: &SessionOptions,
    ids: &[i32],
    adapters: &[(Adapter, f32)],
) -> Vec<f32> {
    let mut session = Session::new(model, options.clone()).unwrap();
    if !adapters.is_empty() {
        session.set_adapters(adapters).unwrap();
    }
    let mut all = Vec::new();
    session
        .prefill_each(ids, None, &mut |_, row| {
            all.extend_from_slice(row);
            Ok(())
        })
        .unwrap();
    all
}

/// The greatest difference of two values.
pub fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

/// Index of the largest value, the lowest of equal ones.
pub fn argmax(row: &[f32]) -> i32 {
    let best = row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best });
    best as i32
}

/// Mean of −ln p(next token) in f64.
pub fn nll(logits: &[f32], ids: &[i32]) -> f64 {
    let vocab = logits.len() / ids.len();
    let rows = logits.chunks_exact(vocab).zip(&ids[1..]);
    let losses = rows.map(|(row, &next)| -log_softmax(row)[next as usize]);
    losses.sum::<f64>() / (ids.len() - 1) as f64
}

/// ln of the softmax, in f64.
pub fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    let sum = row.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>().ln() + max;
    row.iter().map(|&v| f64::from(v) - sum).collect()
}

/// Mean over rows of KL(p ‖ q) in nats.
pub fn kl(p: &[f32], q: &[f32], vocab: usize) -> f64 {
    let rows = p.chunks_exact(vocab).zip(q.chunks_exact(vocab));
    let each = rows.map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    each.sum::<f64>() / (p.len() / vocab) as f64
}

/// A directory of `reference/`.
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub dir: PathBuf,
    /// `reference.json`
    pub json: Value,
    tensors: Vec<u8>,
}

impl Reference {
    /// All of them, in order of name; empty without the material.
    pub fn all() -> Vec<Reference> {
        let Some(root) = llm_testdata::shared("reference") else { return Vec::new() };
        let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
        dirs.sort();
        dirs.into_iter().filter(|dir| dir.join("reference.json").exists()).map(Reference::read).collect()
    }

    fn read(dir: PathBuf) -> Reference {
        let json = serde_json::from_slice(&std::fs::read(dir.join("reference.json")).unwrap()).unwrap();
        let tensors = std::fs::read(dir.join("reference.safetensors")).unwrap();
        Reference { name: dir.file_name().unwrap().to_string_lossy().into(), dir, json, tensors }
    }

    /// `short`, and `long` where it is there.
    pub fn runs(&self) -> Vec<String> {
        self.json["runs"].as_object().unwrap().keys().cloned().collect()
    }

    fn bytes(&self, name: &str) -> Vec<[u8; 4]> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name));
        tensor.data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect()
    }

    /// Whether a tensor was recorded.
    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).is_ok()
    }

    /// A tensor of ids.
    pub fn ids(&self, name: &str) -> Vec<i32> {
        self.bytes(name).into_iter().map(i32::from_le_bytes).collect()
    }

    /// A tensor of floats.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).into_iter().map(f32::from_le_bytes).collect()
    }

    /// A number of a run.
    pub fn number(&self, run: &str, path: &str) -> f64 {
        self.json["runs"][run].pointer(path).and_then(Value::as_f64).unwrap()
    }

    /// Options of a session over `length` tokens in all, of which `declared` are told to the rotary scaling.
    pub fn options(&self, length: usize, declared: usize) -> SessionOptions {
        SessionOptions { max_tokens: length, rope_length: Some(declared as u32), ..Default::default() }
    }
}
