//! Checkpoints as maps of tensors: one with a multi-token prediction layer, made of one without.

#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Shape and values by name.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A checkpoint's tensors as f32, its configuration, and width and layers.
pub fn checkpoint(dir: &Path) -> (Tensors, serde_json::Value) {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::BF16);
        let value = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
        (tensor.shape().to_vec(), tensor.data().chunks_exact(2).map(value).collect())
    };
    let tensors = file.names().into_iter().map(|name| (name.to_owned(), read(name))).collect();
    let config = std::fs::read(dir.join("config.json")).unwrap();
    (tensors, serde_json::from_slice(&config).unwrap())
}

/// A checkpoint's directory.
pub fn write(dir: &Path, tensors: &Tensors, config: &serde_json::Value) {
    let bytes: BTreeMap<_, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap())
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// Numbers of the same size every run.
pub fn noise(seed: u64, count: usize, around: f32, size: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count).map(|_| around + size * next()).collect()
}

/// The reference with a head behind its layers: a changed copy of the last one, and what joins.
pub fn with_head(tensors: &Tensors, layers: usize, width: usize) -> Tensors {
    let mut all = tensors.clone();
    let (from, to) = (format!("model.layers.{}.", layers - 1), format!("model.layers.{layers}."));
    for (i, (name, (shape, values))) in tensors.iter().enumerate() {
        if let Some(rest) = name.strip_prefix(&from) {
            let change = noise(i as u64, values.len(), 1.0, 0.5);
            let changed = values.iter().zip(change).map(|(v, c)| v * c).collect();
            all.insert(format!("{to}{rest}"), (shape.clone(), changed));
        }
    }
    for (seed, name) in [(1, "enorm"), (2, "hnorm"), (3, "shared_head.norm")] {
        all.insert(format!("{to}{name}.weight"), (vec![width], noise(seed, width, 1.0, 0.4)));
    }
    all.insert(
        format!("{to}eh_proj.weight"),
        (vec![width, 2 * width], noise(4, 2 * width * width, 0.0, 0.5)),
    );
    // Checkpoints repeat the shared matrices.
    all.insert(format!("{to}embed_tokens.weight"), tensors["model.embed_tokens.weight"].clone());
    all.insert(format!("{to}shared_head.head.weight"), tensors["lm_head.weight"].clone());
    all
}
