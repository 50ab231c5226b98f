//! Reference checkpoints, and checkpoints made for a test.

#![allow(dead_code)] // every test file uses a part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llm_convert::{Options, Summary};
use llm_format::quant::Type;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Every reference checkpoint's directory, none without the shared material.
pub fn references() -> Vec<PathBuf> {
    let Some(root) = llm_testdata::shared("reference") else { return Vec::new() };
    let mut dirs: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("config.json").exists())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 23, "{} references", dirs.len());
    dirs
}

pub fn reference(name: &str) -> Option<PathBuf> {
    llm_testdata::shared("reference").map(|root| root.join(name))
}

pub fn convert(source: &Path, out: &Path, ty: Type) -> llm::Result<Summary> {
    llm_convert::convert(source, out, &Options { ty, ..Options::default() }, &())
}

/// A tensor of a checkpoint.
#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl Stored {
    /// Its values, one at a time.
    pub fn values(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F16 => {
                let half = |b: &[u8]| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32();
                self.data.chunks(2).map(half).collect()
            }
            Dtype::BF16 => {
                let half = |b: &[u8]| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32();
                self.data.chunks(2).map(half).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

pub type Weights = BTreeMap<String, Stored>;

pub fn load(dir: &Path) -> Weights {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .iter()
        .map(|(name, view)| {
            let stored =
                Stored { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() };
            (name.to_owned(), stored)
        })
        .collect()
}

pub fn save(weights: &Weights, path: &Path) {
    let views = weights
        .iter()
        .map(|(name, t)| (name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A copy of reference `name` in `root` with its weights changed.
pub fn changed(name: &str, root: &Path, change: impl FnOnce(&mut Weights)) -> Option<PathBuf> {
    let from = reference(name)?;
    let to = root.join(name);
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut weights = load(&from);
    change(&mut weights);
    save(&weights, &to.join("model.safetensors"));
    Some(to)
}

/// Files in a directory, by name.
pub fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All values of tensor `name` of a `.llm` file, decoded.
pub fn decoded(bytes: &[u8], name: &str) -> Vec<f32> {
    let file = llm_format::File::parse(bytes).unwrap();
    let tensor = file.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let data = file.data(tensor);
    let shape: Vec<usize> = tensor.shape.iter().map(|d| *d as usize).collect();
    match shape[..] {
        [_] => data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        [.., rows, cols] => {
            let each = llm_format::quant::matrix_bytes(tensor.ty, rows as u64, cols as u64).unwrap() as usize;
            data.chunks(each).flat_map(|m| llm_format::quant::decode(tensor.ty, m, rows, cols)).collect()
        }
        [] => panic!("{name} has no dimension"),
    }
}
