//! The reference checkpoints convert, and every value lands where the model reads it.

mod common;

use std::ops::ControlFlow;

use common::*;
use llm::model::arch::{self, LayerSlot as L, Slot};
use llm::model::spec::Spec;
use llm_format::quant::{QUANTS, Type};
use llm_format::{File, TensorPlan};

#[test]
fn every_reference_converts_to_every_type_with_the_tensors_of_its_spec() {
    let temp = tempfile::tempdir().unwrap();
    for dir in references() {
        for ty in QUANTS.iter().map(|quant| quant.ty) {
            let out = temp.path().join("out.llm");
            let summary = convert(&dir, &out, ty).unwrap_or_else(|e| panic!("{} {ty}: {e}", dir.display()));
            let bytes = std::fs::read(&out).unwrap();
            let file = File::parse(&bytes).unwrap();
            file.verify(&mut |_, _| ControlFlow::Continue(())).unwrap();
            let spec: Spec = serde_json::from_value(file.metadata()["model"].clone()).unwrap();
            spec.check().unwrap();
            let arch = arch::by_name(&spec.architecture).unwrap();
            let wants = (arch.tensors)(&spec);
            assert_eq!(summary.tensors, wants.len());
            assert_eq!(file.tensors().len(), wants.len());
            for want in &wants {
                let tensor = file.tensor(&want.name).unwrap_or_else(|| panic!("no {}", want.name));
                assert_eq!(want.shape, tensor.shape, "{}", want.name);
                let kept = match want.slot {
                    _ if want.shape.len() == 1 => Some(Type::F32),
                    Slot::Layer(_, L::Router | L::SharedSwitch) => Some(Type::F32),
                    Slot::Positions if ty.is_integer() => Some(Type::F16),
                    // Models of this size take the widest type wherever they gain.
                    Slot::Embedding | Slot::Head | Slot::Layer(_, L::K | L::V | L::KvDown | L::Down) => {
                        match ty {
                            Type::Q6 | Type::Q5 | Type::Q4 => Some(Type::Q8),
                            Type::Q3 => Some(Type::Q6),
                            Type::Q2 => Some(Type::Q4),
                            _ => None,
                        }
                    }
                    _ => None,
                };
                assert_eq!(tensor.ty, kept.unwrap_or(ty), "{}", tensor.name);
            }
        }
    }
}

#[test]
fn a_second_run_gives_the_same_bytes() {
    let temp = tempfile::tempdir().unwrap();
    for dir in references() {
        let (a, b) = (temp.path().join("a.llm"), temp.path().join("b.llm"));
        convert(&dir, &a, Type::Q4).unwrap();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        one.install(|| convert(&dir, &b, Type::Q4)).unwrap();
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{}", dir.display());
    }
}

/// Converts to f32 and gives the checkpoint and the file.
fn both(name: &str) -> Option<(Weights, Vec<u8>)> {
    let dir = reference(name)?;
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out.llm");
    convert(&dir, &out, Type::F32).unwrap();
    Some((load(&dir), std::fs::read(out).unwrap()))
}

/// `stored[row(r)]` for every row r.
fn rows(stored: &Stored, cols: usize, count: usize, row: impl Fn(usize) -> usize) -> Vec<f32> {
    let values = stored.values();
    (0..count).flat_map(|r| values[row(r) * cols..(row(r) + 1) * cols].to_vec()).collect()
}

#[test]
fn tensors_under_their_own_name_keep_their_values() {
    for dir in references() {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("out.llm");
        convert(&dir, &out, Type::F32).unwrap();
        let (weights, bytes) = (load(&dir), std::fs::read(out).unwrap());
        let file = File::parse(&bytes).unwrap();
        let gemma = dir.file_name().unwrap().to_str().unwrap().starts_with("gemma");
        let mut same = 0;
        for tensor in file.tensors() {
            let Some(stored) = weights.get(&tensor.name) else { continue };
            let shape: Vec<u64> = stored.shape.iter().map(|d| *d as u64).collect();
            // Turned and fused tensors are looked at one by one below.
            let turned = tensor.name.contains(".c_proj.weight") || tensor.name.contains(".c_fc.weight");
            if turned || tensor.name.contains("experts.down_proj") || shape != tensor.shape {
                continue;
            }
            let plus = if gemma && tensor.name.contains("norm") { 1.0 } else { 0.0 };
            let expected: Vec<f32> = stored.values().iter().map(|v| v + plus).collect();
            assert!(decoded(&bytes, &tensor.name) == expected, "{}: {}", dir.display(), tensor.name);
            same += 1;
        }
        assert!(same > 3, "{}: {same}", dir.display());
    }
}

#[test]
fn gpt2_matrices_are_turned_round_and_split() {
    let Some((weights, bytes)) = both("gpt2") else { return };
    let (width, fused) = (96, &weights["transformer.h.1.attn.c_attn.weight"]);
    let values = fused.values();
    for (j, name) in ["q", "k", "v"].iter().enumerate() {
        let mut expected = Vec::new();
        for out in 0..width {
            for input in 0..width {
                expected.push(values[input * 3 * width + j * width + out]);
            }
        }
        assert_eq!(decoded(&bytes, &format!("transformer.h.1.attn.{name}.weight")), expected);
        let bias = weights["transformer.h.1.attn.c_attn.bias"].values();
        let got = decoded(&bytes, &format!("transformer.h.1.attn.{name}.bias"));
        assert_eq!(got, bias[j * width..(j + 1) * width]);
    }
    let up = weights["transformer.h.0.mlp.c_fc.weight"].values();
    let got = decoded(&bytes, "transformer.h.0.mlp.c_fc.weight");
    assert_eq!(got[5 * width + 7], up[7 * 4 * width + 5]);
}

#[test]
fn interleaved_heads_are_taken_apart() {
    for (name, heads, dim, prefix) in [
        ("gpt_neox", 4, 32, "gpt_neox.layers.1.attention"),
        ("bloom", 8, 16, "transformer.h.1.self_attention"),
    ] {
        let Some((weights, bytes)) = both(name) else { return };
        let fused = &weights[&format!("{prefix}.query_key_value.weight")];
        for (part, label) in ["query", "key", "value"].iter().enumerate() {
            let row = |r: usize| r / dim * 3 * dim + part * dim + r % dim;
            let expected = rows(fused, 128, heads * dim, row);
            assert_eq!(decoded(&bytes, &format!("{prefix}.{label}.weight")), expected, "{name} {label}");
            let bias = rows(&weights[&format!("{prefix}.query_key_value.bias")], 1, heads * dim, row);
            assert_eq!(decoded(&bytes, &format!("{prefix}.{label}.bias")), bias, "{name} {label}");
        }
    }
}

#[test]
fn fused_rows_of_phi3_and_mpt_are_taken_apart() {
    if let Some((weights, bytes)) = both("phi3") {
        let qkv = &weights["model.layers.2.self_attn.qkv_proj.weight"];
        for (name, start, count) in [("q", 0, 128), ("k", 128, 64), ("v", 192, 64)] {
            let got = decoded(&bytes, &format!("model.layers.2.self_attn.{name}_proj.weight"));
            assert_eq!(got, rows(qkv, 128, count, |r| start + r), "{name}");
        }
        let up = rows(&weights["model.layers.2.mlp.gate_up_proj.weight"], 128, 288, |r| 288 + r);
        assert_eq!(decoded(&bytes, "model.layers.2.mlp.up_proj.weight"), up);
    }
    if let Some((weights, bytes)) = both("mpt") {
        let value = rows(&weights["transformer.blocks.0.attn.Wqkv.weight"], 128, 128, |r| 256 + r);
        assert_eq!(decoded(&bytes, "transformer.blocks.0.attn.Wv.weight"), value);
    }
}

#[test]
fn experts_are_stacked() {
    let Some((weights, bytes)) = both("mixtral") else { return };
    for (label, source) in [("w1", "w1"), ("w2", "w2"), ("w3", "w3")] {
        let at = "model.layers.1.block_sparse_moe.experts";
        let expected: Vec<f32> =
            (0..4).flat_map(|e| weights[&format!("{at}.{e}.{source}.weight")].values()).collect();
        assert_eq!(decoded(&bytes, &format!("{at}.{label}.weight")), expected, "{label}");
    }
}

#[test]
fn gpt_oss_experts_are_turned_round_and_gate_and_up_taken_apart() {
    let Some((weights, bytes)) = both("gpt_oss") else { return };
    let (width, inner, experts, at) = (96, 96, 4, "model.layers.1.mlp.experts");
    let fused = weights[&format!("{at}.gate_up_proj")].values();
    let bias = weights[&format!("{at}.gate_up_proj_bias")].values();
    for (odd, name) in ["gate", "up"].iter().enumerate() {
        let (mut matrix, mut vector) = (Vec::new(), Vec::new());
        for e in 0..experts {
            for out in 0..inner {
                vector.push(bias[e * 2 * inner + 2 * out + odd]);
                for input in 0..width {
                    matrix.push(fused[(e * width + input) * 2 * inner + 2 * out + odd]);
                }
            }
        }
        assert_eq!(decoded(&bytes, &format!("{at}.{name}_proj")), matrix, "{name}");
        assert_eq!(decoded(&bytes, &format!("{at}.{name}_proj_bias")), vector, "{name}");
    }
    let down = weights[&format!("{at}.down_proj")].values();
    let got = decoded(&bytes, &format!("{at}.down_proj"));
    assert_eq!(got[(3 * width + 5) * inner + 7], down[(3 * inner + 7) * width + 5]);
    let down_bias = weights[&format!("{at}.down_proj_bias")].values();
    assert_eq!(decoded(&bytes, &format!("{at}.down_proj_bias")), down_bias);
}

#[test]
fn the_compressed_keys_and_values_are_absorbed_head_by_head() {
    let Some((weights, bytes)) = both("deepseek_v3") else { return };
    let (heads, rank, nope, value) = (4, 32, 24, 24);
    let at = "model.layers.2.self_attn";
    let stored = weights[&format!("{at}.kv_b_proj.weight")].values();
    let keys = decoded(&bytes, &format!("{at}.k_absorb.weight"));
    let values = decoded(&bytes, &format!("{at}.v_absorb.weight"));
    for h in 0..heads {
        for r in 0..rank {
            for i in 0..nope {
                assert_eq!(keys[(h * rank + r) * nope + i], stored[(h * (nope + value) + i) * rank + r]);
            }
            for i in 0..value {
                assert_eq!(
                    values[(h * value + i) * rank + r],
                    stored[(h * (nope + value) + nope + i) * rank + r]
                );
            }
        }
    }
}

#[test]
fn integer_types_stay_near_the_values() {
    let Some(dir) = reference("llama_untied") else { return };
    let temp = tempfile::tempdir().unwrap();
    let weights = load(&dir);
    for (ty, most) in [(Type::Q8, 0.012), (Type::Q4, 0.08), (Type::Q2, 0.3)] {
        let out = temp.path().join("out.llm");
        convert(&dir, &out, ty).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        for name in ["lm_head.weight", "model.layers.3.mlp.down_proj.weight"] {
            let (expected, got) = (weights[name].values(), decoded(&bytes, name));
            let square = |v: f32| f64::from(v) * f64::from(v);
            let error: f64 = expected.iter().zip(&got).map(|(a, b)| square(a - b)).sum();
            let size: f64 = expected.iter().map(|a| square(*a)).sum();
            assert!((error / size).sqrt() < most, "{name} {ty}: {}", (error / size).sqrt());
        }
    }
}

#[test]
fn a_plan_like_the_files_holds_no_name_twice() {
    for dir in references() {
        let config = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let (arch, spec) = arch::read_config(&config).unwrap();
        let plan: Vec<TensorPlan> = (arch.tensors)(&spec)
            .into_iter()
            .map(|w| TensorPlan { name: w.name, ty: Type::F32, shape: w.shape })
            .collect();
        let mut names: Vec<_> = plan.iter().map(|p| &p.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), plan.len());
    }
}
