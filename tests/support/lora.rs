//! Adapters in PEFT's layout made of random numbers, and checkpoints with their changes merged.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

/// The configuration's alpha.
pub const ALPHA: f64 = 8.0;

/// An adapter.
pub struct Peft {
    pub config: Map<String, Value>,
    /// Shape and values by name.
    pub tensors: BTreeMap<String, ([usize; 2], Vec<f32>)>,
    rank: usize,
}

/// Every module but those whose name, with a point behind it, has one of these in it.
#[allow(dead_code)] // not every test file that makes adapters changes all matrices
pub fn all_but(others: &[&str]) -> impl Fn(&str) -> bool {
    let others: Vec<String> = others.iter().map(|other| (*other).to_owned()).collect();
    move |module| {
        let module = format!("{module}.");
        let never = ["embed", "wte", "wpe", "lm_head", "embed_out"];
        !others.iter().any(|other| module.contains(other))
            && !never.iter().any(|never| module.contains(never))
    }
}

/// Numbers between −1 and 1, the same every time.
fn noise(mut seed: u64, n: usize) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    let half = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
    match view.dtype() {
        Dtype::F32 => view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F16 => view.data().chunks(2).map(|b| half::f16::from_bits(half(b)).to_f32()).collect(),
        _ => view.data().chunks(2).map(|b| f32::from_bits(u32::from(half(b)) << 16)).collect(),
    }
}

/// gpt2 stores its matrices `[in, out]`; PEFT's are `[rank, in]` and `[out, rank]` all the same.
fn turned(module: &str) -> bool {
    module.contains("attn.c_") || module.contains("mlp.c_")
}

impl Peft {
    /// An adapter of `rank` for the matrices of the checkpoint in `dir` whose modules `takes` takes.
    pub fn random(dir: &Path, seed: u64, rank: usize, takes: impl Fn(&str) -> bool) -> Self {
        let config = json!({ "peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "bias": "none", "use_dora": false,
            "use_rslora": false, "modules_to_save": null, "init_lora_weights": true });
        let Value::Object(config) = config else { unreachable!() };
        let mut peft = Self { config, tensors: BTreeMap::new(), rank };
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        for (i, name) in (0u64..).zip(stored.names()) {
            let (Some(module), view) = (name.strip_suffix(".weight"), stored.tensor(name).unwrap()) else {
                continue;
            };
            if let (&[rows, columns], true) = (view.shape(), takes(module)) {
                let shape = if turned(module) { [columns, rows] } else { [rows, columns] };
                peft.add(module, rank, shape, seed * 1000 + i);
            }
        }
        peft
    }

    /// Adds a module of `[out, in]`.
    pub fn add(&mut self, module: &str, rank: usize, [out, columns]: [usize; 2], seed: u64) {
        let at = |end: &str| format!("base_model.model.{module}.{end}.weight");
        let scaled = |values: Vec<f32>, by: f32| values.into_iter().map(|v| v * by).collect();
        let a = scaled(noise(seed, rank * columns), 1.0 / (columns as f32).sqrt());
        let b = scaled(noise(seed ^ 0x5555, out * rank), 0.1);
        self.tensors.insert(at("lora_A"), ([rank, columns], a));
        self.tensors.insert(at("lora_B"), ([out, rank], b));
    }

    /// Writes the directory.
    pub fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("adapter_config.json"), serde_json::to_vec(&self.config).unwrap()).unwrap();
        let bytes: Vec<_> = self.tensors.iter().map(|(name, (shape, v))| (name, shape, bytes(v))).collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        std::fs::write(dir.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The checkpoint in `dir` with `changes` at their scales in it, in f32, to `out`.
#[allow(dead_code)] // as above
pub fn merge(dir: &Path, changes: &[(&Peft, f32)], out: &Path) {
    let file = std::fs::read(dir.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&file).unwrap();
    let mut all = Vec::new();
    for name in stored.names() {
        let view = stored.tensor(name).unwrap();
        let mut values: Vec<f64> = floats(&view).into_iter().map(f64::from).collect();
        let module = name.strip_suffix(".weight").unwrap_or(name);
        for (peft, scale) in changes {
            let at = |end: &str| peft.tensors.get(&format!("base_model.model.{module}.{end}.weight"));
            let (Some((_, a)), Some(([out, rank], b))) = (at("lora_A"), at("lora_B")) else { continue };
            let factor = f64::from(*scale) * ALPHA / peft.rank as f64;
            let columns = a.len() / rank;
            for i in 0..*out {
                for k in 0..columns {
                    let sum: f64 =
                        (0..*rank).map(|j| f64::from(b[i * rank + j]) * f64::from(a[j * columns + k])).sum();
                    values[if turned(module) { k * out + i } else { i * columns + k }] += factor * sum;
                }
            }
        }
        let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        all.push((name.to_owned(), view.shape().to_vec(), bytes(&values)));
    }
    let views = all
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(out.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::copy(dir.join("config.json"), out.join("config.json")).unwrap();
}

/// A tensor of a file, as floats.
#[allow(dead_code)] // not every test file that makes adapters reads some
pub fn tensor(path: &Path, name: &str) -> Vec<f32> {
    let file = std::fs::read(path).unwrap();
    floats(&SafeTensors::deserialize(&file).unwrap().tensor(name).unwrap())
}
