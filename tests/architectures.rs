//! The reference checkpoints' configurations are read, and the tensor lists cover the checkpoints exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llm::Status;
use llm::model::arch::{self, Take};
use llm::model::spec::{Attention, Scaling, Spec};
use serde_json::{Value, json};

fn references() -> Vec<std::path::PathBuf> {
    let Some(root) = llm_testdata::shared("reference") else { return Vec::new() };
    let mut dirs: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("config.json").exists())
        .collect();
    dirs.sort();
    dirs
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

fn header(dir: &Path) -> BTreeMap<String, Vec<u64>> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().iter().map(|d| *d as u64).collect()))
        .collect()
}

#[test]
fn every_reference_has_the_tensors_its_architecture_wants_and_no_others() {
    for dir in references() {
        let (arch, spec) =
            arch::read_config(&config(&dir)).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let stored = header(&dir);
        let mut used = BTreeSet::new();
        for want in (arch.tensors)(&spec) {
            for source in &want.sources {
                let shape = stored.get(&source.name);
                assert_eq!(shape, Some(&source.shape), "{}: {}", dir.display(), source.name);
                used.insert(source.name.clone());
            }
        }
        for name in stored.keys() {
            assert!(used.contains(name) || (arch.ignores)(&spec, name), "{}: {name} unused", dir.display());
        }
    }
}

#[test]
fn every_value_of_a_reference_goes_to_one_place() {
    for dir in references() {
        let (arch, spec) = arch::read_config(&config(&dir)).unwrap();
        let (mut taken, mut names) = (0, BTreeSet::new());
        for want in (arch.tensors)(&spec) {
            taken += want.shape.iter().product::<u64>();
            assert!(names.insert(want.name.clone()), "{}: {} twice", dir.display(), want.name);
        }
        let stored: u64 = header(&dir).values().map(|shape| shape.iter().product::<u64>()).sum();
        assert_eq!(taken, stored, "{}", dir.display());
    }
}

#[test]
fn a_spec_survives_json() {
    for dir in references() {
        let (_, spec) = arch::read_config(&config(&dir)).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec, "{}", dir.display());
    }
}

#[test]
fn old_and_new_layouts_of_a_rope_read_alike() {
    let old = json!({"model_type": "llama", "rope_theta": 5e5, "max_position_embeddings": 131072,
        "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 8192}});
    let new = json!({"model_type": "llama", "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
    let (old, new) = (arch::read_config(&old).unwrap().1, arch::read_config(&new).unwrap().1);
    assert_eq!(old, new);
    assert_eq!(old.ropes[0].theta, 5e5);
}

#[test]
fn phi3_was_trained_for_4096_positions_where_its_config_does_not_say() {
    let config = json!({"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 16,
        "max_position_embeddings": 131_072, "rope_scaling": {"type": "su", "short_factor": [1.0, 1.5],
            "long_factor": [1.0, 40.0]}});
    let (_, spec) = arch::read_config(&config).unwrap();
    let Scaling::Longrope { original, attention_factor, .. } = spec.ropes[0].scaling else {
        panic!("longrope")
    };
    assert_eq!(original, 4096);
    assert!((attention_factor - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
}

#[test]
fn gemma3_has_its_two_tables_in_both_layouts() {
    let old = json!({"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let new = json!({"model_type": "gemma3_text", "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
    let (old, new) = (arch::read_config(&old).unwrap().1, arch::read_config(&new).unwrap().1);
    assert_eq!(old, new);
    assert_eq!(old.ropes[0].scaling, Scaling::Linear { factor: 8.0 });
    assert_eq!(old.ropes[1].scaling, Scaling::None);
    let windows = |spec: &Spec| -> Vec<bool> {
        let heads = spec.layers.iter().map(|l| match &l.attention {
            Attention::Heads(h) => h.window.is_some(),
            Attention::Latent(_) => false,
        });
        heads.collect()
    };
    assert_eq!(windows(&old)[..7], [true, true, true, true, true, false, true]);
}

#[test]
fn the_sight_of_gemma3_is_left_out() {
    let (arch, spec) =
        arch::read_config(&json!({"model_type": "gemma3", "text_config": {"hidden_size": 2560}})).unwrap();
    let wants = (arch.tensors)(&spec);
    assert_eq!(wants[0].name, "language_model.model.embed_tokens.weight");
    assert_eq!(wants[0].shape, [262_208, 2560]);
    assert!((arch.ignores)(&spec, "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"));
    assert!(!(arch.ignores)(&spec, "language_model.model.extra.weight"));
}

#[test]
fn deepseeks_yarn_also_scales_the_scores() {
    let config = |m: f64| {
        json!({"model_type": "deepseek_v3", "max_position_embeddings": 163840, "rope_scaling": {"type": "yarn",
            "factor": 40, "mscale": 1.0, "mscale_all_dim": m, "original_max_position_embeddings": 4096}})
    };
    let scale = |m| match &arch::read_config(&config(m)).unwrap().1.layers[0].attention {
        Attention::Latent(a) => a.scale,
        Attention::Heads(_) => 0.0,
    };
    let mscale = 0.1 * 40f32.ln() + 1.0;
    assert!((scale(1.0) / scale(0.0) - mscale * mscale).abs() < 1e-6);
}

#[test]
fn layers_behind_the_last_are_ignored() {
    let (arch, spec) = arch::read_config(&json!({"model_type": "deepseek_v3"})).unwrap();
    assert!((arch.ignores)(&spec, "model.layers.61.eh_proj.weight"));
    assert!(!(arch.ignores)(&spec, "model.layers.60.eh_proj.weight"));
}

#[test]
fn defaults_of_missing_keys_are_those_of_the_families() {
    for arch in arch::ARCHS {
        for name in arch.names {
            let config = json!({"model_type": name, "text_config": {}});
            if *name == "libllm" {
                // Our own layout says everything, so that nothing of it is taken for granted.
                assert!(arch::read_config(&config).unwrap_err().to_string().contains("`spec` is missing"));
                continue;
            }
            let (_, spec) = arch::read_config(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(&spec.architecture, name);
            let (_, expected) = DEFAULTS.iter().find(|(family, _)| family == name).expect(name);
            let (heads, kv_heads, head_dim) = match &spec.layers[0].attention {
                Attention::Heads(h) => (h.heads, h.kv_heads, h.head_dim),
                Attention::Latent(a) => (a.heads, a.heads, a.nope_dim + a.rope_dim),
            };
            let layers = spec.layers.len() as u32;
            let found = [spec.vocab, spec.width, spec.context, layers, heads, kv_heads, head_dim];
            assert_eq!(found, *expected, "{name}");
            let tied = ["gpt2", "gemma2", "gemma3", "gemma3_text", "bloom", "mpt"].contains(name);
            assert_eq!(spec.tied, tied, "{name}");
        }
    }
}

/// Vocabulary, width, positions, layers, heads, key-value heads and a head's width of the families' classes.
const DEFAULTS: &[(&str, [u32; 7])] = &[
    ("gpt2", [50_257, 768, 1024, 12, 12, 12, 64]),
    ("llama", [32_000, 4096, 2048, 32, 32, 32, 128]),
    ("mistral", [32_000, 4096, 131_072, 32, 32, 8, 128]),
    ("mixtral", [32_000, 4096, 131_072, 32, 32, 8, 128]),
    ("qwen2", [151_936, 4096, 32_768, 32, 32, 32, 128]),
    ("qwen3", [151_936, 4096, 32_768, 32, 32, 32, 128]),
    ("qwen2_moe", [151_936, 2048, 32_768, 24, 16, 16, 128]),
    ("qwen3_moe", [151_936, 2048, 32_768, 24, 32, 4, 64]),
    ("olmo2", [50_304, 4096, 2048, 32, 32, 32, 128]),
    ("phi3", [32_064, 3072, 4096, 32, 32, 32, 96]),
    ("gemma2", [256_000, 2304, 8192, 26, 8, 4, 256]),
    ("gemma3_text", [262_208, 2304, 131_072, 26, 8, 4, 256]),
    ("gemma3", [262_208, 2304, 131_072, 26, 8, 4, 256]),
    ("gpt_neox", [50_432, 6144, 2048, 44, 64, 64, 96]),
    ("bloom", [250_880, 64, 2048, 2, 8, 8, 8]),
    ("mpt", [50_368, 2048, 2048, 24, 16, 16, 128]),
    ("deepseek_v2", [32_000, 4096, 2048, 32, 32, 32, 192]),
    ("deepseek_v3", [129_280, 7168, 4096, 61, 128, 128, 192]),
    ("gpt_oss", [201_088, 2880, 131_072, 36, 64, 8, 64]),
];

#[test]
fn of_blooms_two_names_for_the_width_the_old_one_counts() {
    let config = json!({"model_type": "bloom", "hidden_size": 128, "n_embed": 64});
    assert_eq!(arch::read_config(&config).unwrap().1.width, 64);
}

#[test]
fn windows_lie_where_the_families_have_them() {
    let windows = |config: Value| -> Vec<u32> {
        let (_, spec) = arch::read_config(&config).unwrap();
        let window = |layer: &llm::model::spec::Layer| match &layer.attention {
            Attention::Heads(h) => h.window.unwrap_or(0),
            Attention::Latent(_) => 0,
        };
        spec.layers.iter().map(window).collect()
    };
    let config = |name: &str, more: Value| {
        let mut config = json!({"model_type": name, "num_hidden_layers": 4, "sliding_window": 8});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let on = json!({"use_sliding_window": true, "max_window_layers": 3});
    let off = json!({"max_window_layers": 0});
    assert_eq!(windows(config("mistral", json!({}))), [8; 4]);
    assert_eq!(windows(config("mixtral", json!({}))), [8; 4]);
    assert_eq!(windows(config("phi3", json!({}))), [8; 4]);
    assert_eq!(windows(config("gemma2", json!({}))), [8, 0, 8, 0]);
    assert_eq!(windows(config("gemma3_text", json!({"sliding_window_pattern": 3}))), [8, 8, 0, 8]);
    assert_eq!(windows(config("gpt_oss", json!({}))), [8, 0, 8, 0]);
    assert_eq!(windows(config("qwen2", on.clone())), [0, 0, 0, 8]);
    assert_eq!(windows(config("qwen3", on.clone())), [0, 0, 0, 8]);
    assert_eq!(windows(config("qwen2_moe", on.clone())), [8, 0, 8, 0]);
    assert_eq!(windows(config("qwen3_moe", on)), [8; 4]);
    for name in ["qwen2", "qwen3", "qwen2_moe", "qwen3_moe"] {
        assert_eq!(windows(config(name, off.clone())), [0; 4], "{name}");
    }
    let listed =
        json!({"layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]});
    assert_eq!(windows(config("gemma2", listed)), [0, 8, 0, 0]);
}

#[test]
fn unsupported_values_are_refused_by_key_and_value() {
    let cases = [
        (json!({"model_type": "llama", "hidden_act": "snake"}), "hidden_act", "snake"),
        (json!({"model_type": "mpt", "attn_config": {"clip_qkv": 8}}), "attn_config.clip_qkv", "8"),
        (
            json!({"model_type": "mpt", "attn_config": {"attn_type": "multiquery_attention"}}),
            "attn_type",
            "multiq",
        ),
        (json!({"model_type": "mpt", "no_bias": false}), "no_bias", "false"),
        (
            json!({"model_type": "bloom", "apply_residual_connection_post_layernorm": true}),
            "post_layer",
            "true",
        ),
        (json!({"model_type": "llama", "rope_scaling": {"type": "mrope"}}), "rope_type", "mrope"),
        (
            json!({"model_type": "qwen2", "num_hidden_layers": 1, "layer_types": ["linear"]}),
            "layer_types",
            "linear",
        ),
        (json!({"model_type": "deepseek_v2", "topk_method": "best"}), "topk_method", "best"),
        (json!({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}), "quantiz", "fp8"),
        (json!({"model_type": "t5"}), "t5", "llama"),
    ];
    for (config, key, value) in cases {
        let e = arch::read_config(&config).unwrap_err();
        assert_eq!(e.status(), Status::UNSUPPORTED, "{e}");
        assert!(e.message().contains(key) && e.message().contains(value), "{e}");
    }
}

#[test]
fn impossible_numbers_are_refused() {
    let cases = [
        json!({"model_type": "llama", "num_attention_heads": 0}),
        json!({"model_type": "llama", "num_hidden_layers": 4000000000u32}),
        json!({"model_type": "llama", "num_hidden_layers": 0}),
        // A slope for each of 4294967295 heads, a name for each of 67 million experts.
        json!({"model_type": "bloom", "hidden_size": u32::MAX, "n_head": u32::MAX}),
        json!({"model_type": "mpt", "d_model": 1 << 24, "n_heads": 1 << 24, "n_layers": 4096}),
        json!({"model_type": "mixtral", "num_local_experts": 16384, "num_hidden_layers": 4096}),
        json!({"model_type": "llama", "num_key_value_heads": 5}),
        json!({"model_type": "llama", "hidden_size": -1}),
        json!({"model_type": "llama", "hidden_size": "big"}),
        json!({"model_type": "llama", "head_dim": 7}),
        json!({"model_type": "llama", "rope_theta": 0}),
        json!({"model_type": "llama", "rms_norm_eps": -1.0}),
        json!({"model_type": "mixtral", "num_experts_per_tok": 9}),
        json!({"model_type": "mistral", "sliding_window": 0}),
        json!({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}}),
        json!({"model_type": "qwen2", "layer_types": ["full_attention"]}),
        json!([]),
        json!({}),
    ];
    for config in cases {
        let e = arch::read_config(&config).unwrap_err();
        assert_eq!(e.status(), Status::BAD_FORMAT, "{config}: {e}");
    }
}

#[test]
fn taken_rows_lie_inside_their_sources() {
    for dir in references() {
        let (arch, spec) = arch::read_config(&config(&dir)).unwrap();
        for want in (arch.tensors)(&spec) {
            for source in &want.sources {
                let (rows, all) = match (&source.take, &source.shape[..]) {
                    (Take::Rows(rows), [n, ..]) => (rows, *n),
                    (Take::Transposed(rows), [_, n]) => (rows, *n),
                    (Take::PerExpert { transposed: true, rows }, [_, _, n]) => (rows, *n),
                    (Take::PerExpert { transposed: false, rows }, [_, n, ..]) => (rows, *n),
                    _ => continue,
                };
                let last = rows.start + (rows.blocks - 1) * rows.stride + (rows.count - 1) * rows.step;
                assert!(last < all, "{}: {}", dir.display(), want.name);
            }
        }
    }
}
