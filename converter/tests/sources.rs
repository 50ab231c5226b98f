//! The same weights in another arrangement give the same file; what lies beside them is carried over; random weights
//! make models that run.

mod common;

use std::path::Path;

use common::*;
use llm::Status;
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Session, SessionOptions};
use llm_format::File;
use llm_format::quant::Type;
use serde_json::json;

/// Writes `weights` as `count` shards with an index.
fn shard(weights: &Weights, dir: &Path, count: usize) {
    let mut parts = vec![Weights::new(); count];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in weights.iter().enumerate() {
        let part = i % count;
        parts[part].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), format!("model-{part}.safetensors").into());
    }
    for (i, part) in parts.iter().enumerate() {
        save(part, &dir.join(format!("model-{i}.safetensors")));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A sharded copy of `name` in a directory of the same name.
fn sharded(name: &str, root: &Path) -> Option<std::path::PathBuf> {
    let dir = changed(name, root, |_| {})?;
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    shard(&load(&reference(name)?), &dir, 3);
    Some(dir)
}

#[test]
fn shards_give_the_bytes_of_one_file() {
    for name in ["llama_untied", "deepseek_v2", "gpt_oss"] {
        let temp = tempfile::tempdir().unwrap();
        let Some(dir) = sharded(name, temp.path()) else { return };
        let (a, b) = (temp.path().join("a.llm"), temp.path().join("b.llm"));
        convert(&reference(name).unwrap(), &a, Type::Q4).unwrap();
        convert(&dir, &b, Type::Q4).unwrap();
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{name}");
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = sharded("llama_untied", temp.path()) else { return };
    let path = dir.join("model.safetensors.index.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let out = temp.path().join("out.llm");
    for (from, to, word) in [
        ("model-1.safetensors", "../model-1.safetensors", "beside"),
        ("model-1.safetensors", "model-9.safetensors", "model-9.safetensors"),
        ("\"lm_head.weight\"", "\"other.weight\"", "other.weight"),
    ] {
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let e = convert(&dir, &out, Type::Q4).unwrap_err();
        assert!(e.message().contains(word), "{e}");
        assert!(!out.exists());
    }
    std::fs::write(&path, "{}").unwrap();
    assert_eq!(convert(&dir, &out, Type::Q4).unwrap_err().status(), Status::BAD_FORMAT);
}

#[test]
fn a_file_beside_its_configuration_converts_like_its_directory() {
    let Some(dir) = reference("qwen3") else { return };
    let temp = tempfile::tempdir().unwrap();
    let (a, b) = (temp.path().join("a.llm"), temp.path().join("b.llm"));
    convert(&dir, &a, Type::Q8).unwrap();
    convert(&dir.join("model.safetensors"), &b, Type::Q8).unwrap();
    assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
}

#[test]
fn names_without_the_models_prefix_are_understood() {
    for (name, prefix) in [("gpt2", "transformer."), ("llama_tied", "model.")] {
        let temp = tempfile::tempdir().unwrap();
        let bare = changed(name, temp.path(), |w| {
            let all = std::mem::take(w);
            w.extend(all.into_iter().map(|(n, t)| (n.trim_start_matches(prefix).to_owned(), t)));
        });
        let Some(bare) = bare else { return };
        let (a, b) = (temp.path().join("a.llm"), temp.path().join("b.llm"));
        convert(&reference(name).unwrap(), &a, Type::Q4).unwrap();
        convert(&bare, &b, Type::Q4).unwrap();
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{name}");
    }
}

#[test]
fn buffers_and_second_copies_are_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let dir = changed("gpt2", temp.path(), |w| {
        let copy = w["transformer.wte.weight"].clone();
        w.insert("lm_head.weight".into(), copy.clone());
        w.insert("transformer.h.0.attn.bias".into(), copy);
    });
    let Some(dir) = dir else { return };
    convert(&dir, &temp.path().join("out.llm"), Type::F16).unwrap();
}

#[test]
fn templates_defaults_and_licence_are_carried_over() {
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    let put = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    put(
        "generation_config.json",
        json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5], "_from": 1})
            .to_string(),
    );
    put("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n".into());
    put("chat_template.jinja", "{{ messages }}".into());
    std::fs::create_dir(dir.join("additional_chat_templates")).unwrap();
    put("additional_chat_templates/rag.jinja", "{{ documents }}".into());
    let out = temp.path().join("out.llm");
    let summary = convert(&dir, &out, Type::Q4).unwrap();
    assert!(summary.tokenizer.is_none());
    assert!(summary.warnings.iter().any(|w| w.contains("ids")), "{:?}", summary.warnings);
    let bytes = std::fs::read(out).unwrap();
    let file = File::parse(&bytes).unwrap();
    let m = file.metadata();
    assert_eq!(m["name"], "llama_tied");
    assert_eq!(m["license"], "apache-2.0");
    assert_eq!(m["chat_template"], "{{ messages }}");
    assert_eq!(m["chat_templates"], json!({"rag": "{{ documents }}"}));
    let generation = &m["generation"];
    assert_eq!(generation["eos_token_ids"], json!([2, 5]));
    assert_eq!(generation["bos_token_id"], 1);
    assert_eq!(generation["temperature"], 0.6);
    assert_eq!(m["quantization"]["type"], "q4");
    assert_eq!(m["provenance"]["stored"], json!(["F16"]));
}

#[test]
fn a_tokenizer_is_carried_over_as_tables_with_the_texts_that_templates_name() {
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    let tokenizer = llm_testdata::shared("reference/tokenizers/llama2_spm/tokenizer.json").unwrap();
    std::fs::copy(tokenizer, dir.join("tokenizer.json")).unwrap();
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "add_bos_token": true});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    let out = temp.path().join("out.llm");
    let summary = convert(&dir, &out, Type::Q4).unwrap();
    assert_eq!(summary.tokenizer.as_deref(), Some("bpe"));
    let bytes = std::fs::read(out).unwrap();
    let file = File::parse(&bytes).unwrap();
    assert!(file.section(llm_format::kind::TOKENIZER).is_some());
    let expected = json!({"kind": "bpe", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true});
    assert_eq!(file.metadata()["tokenizer"], expected);
}

#[test]
fn named_templates_of_the_tokenizers_configuration_are_carried_over() {
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    let config = json!({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    let out = temp.path().join("out.llm");
    convert(&dir, &out, Type::Q4).unwrap();
    let bytes = std::fs::read(out).unwrap();
    let file = File::parse(&bytes).unwrap();
    assert_eq!(file.metadata()["chat_template"], "D");
    assert_eq!(file.metadata()["chat_templates"], json!({"tool_use": "T"}));
}

#[test]
fn a_template_that_cannot_be_read_is_no_reason_to_take_another() {
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    let out = temp.path().join("out.llm");
    std::fs::write(dir.join("tokenizer_config.json"), json!({"chat_template": "old"}).to_string()).unwrap();
    for (name, bytes, words) in [
        ("chat_template.jinja", b"{{ messages }}\xff".to_vec(), "offset 14"),
        ("chat_template.jinja", vec![b'a'; (1 << 20) + 1], "at most 1048576"),
        ("chat_template.json", b"{".to_vec(), "malformed JSON"),
    ] {
        std::fs::write(dir.join(name), bytes).unwrap();
        let e = convert(&dir, &out, Type::Q4).unwrap_err();
        assert_eq!(e.status(), Status::BAD_FORMAT, "{e}");
        assert!(e.message().contains(name) && e.message().contains(words), "{e}");
        std::fs::remove_file(dir.join(name)).unwrap();
        assert!(!out.exists());
    }
}

#[test]
fn a_random_model_is_whole_and_the_same_each_time() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b) = (temp.path().join("a.llm"), temp.path().join("b.llm"));
    let summary = llm_convert::random("smol-135m", Type::Q4, &a, &()).unwrap();
    assert!((130_000_000..140_000_000).contains(&summary.parameters), "{}", summary.parameters);
    assert!((4.3..5.0).contains(&summary.bits_per_weight), "{}", summary.bits_per_weight);
    llm_convert::random("smol-135m", Type::Q4, &b, &()).unwrap();
    let bytes = std::fs::read(a).unwrap();
    assert!(bytes == std::fs::read(&b).unwrap());
    let norm = decoded(&bytes, "model.layers.7.input_layernorm.weight");
    assert!(norm.iter().all(|v| *v == 1.0));
    let v = decoded(&bytes, "model.layers.7.self_attn.v_proj.weight");
    let variance = v.iter().map(|v| v * v).sum::<f32>() / v.len() as f32;
    assert!((variance * 576.0 - 1.0).abs() < 0.05, "{variance}");
    let e = llm_convert::random("llama-9000b", Type::Q4, &b, &()).unwrap_err();
    assert!(e.message().contains("llama-9000b") && e.message().contains("smol-135m"), "{e}");
}

#[test]
fn every_random_shape_and_scaling_is_a_model_that_runs() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out.llm");
    let runtime = Runtime::new(RuntimeOptions { threads: 2, ..RuntimeOptions::default() }).unwrap();
    let shapes = llm_convert::SHAPES.iter().map(|shape| (shape.name, None));
    let scalings = llm_convert::SCALINGS.iter().map(|scaling| ("smol-135m", Some(*scaling)));
    for (name, scaling) in shapes.chain(scalings) {
        let what = format!("{name}, {scaling:?}");
        let options = llm_convert::RandomOptions { scaling, layers: Some(1), vocab: Some(64) };
        llm_convert::random_with(name, &options, Type::Q4, &out, &())
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let model = Model::open_path(&runtime, &out, &OpenOptions::default(), None).unwrap();
        assert_eq!((model.spec().layers.len(), model.spec().vocab), (1, 64), "{what}");
        let session =
            || Session::new(&model, SessionOptions { max_tokens: 8, ..SessionOptions::default() }).unwrap();
        let (mut stepped, mut at_once) = (session(), session());
        stepped.prefill(&[11, 63, 0], None, None).unwrap();
        stepped.decode(7, None).unwrap();
        at_once.prefill(&[11, 63, 0, 7], None, None).unwrap();
        // Logits that are not finite are an error.
        let logits = stepped.logits().unwrap();
        assert_eq!(logits, at_once.logits().unwrap(), "{what}");
        assert!(logits.iter().any(|v| *v != logits[0]), "{what}: the logits are all {}", logits[0]);
    }
}
