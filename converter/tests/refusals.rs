//! What does not match is refused by name, and leaves no file.

mod common;

use std::path::Path;

use common::*;
use llm::Status;
use llm_convert::adapter::{AdapterOptions, convert_adapter};
use llm_convert::checkpoint::Checkpoint;
use llm_convert::{Options, Progress};
use llm_format::quant::Type;
use safetensors::Dtype;

/// Converts `source`, which must fail, and checks that nothing is left.
fn refused(source: &Path, status: Status, words: &[&str]) {
    let temp = tempfile::tempdir().unwrap();
    let e = convert(source, &temp.path().join("out.llm"), Type::Q4).unwrap_err();
    assert_eq!(e.status(), status, "{e}");
    for word in words {
        assert!(e.message().contains(word), "no `{word}` in: {e}");
    }
    assert!(!e.message().contains('\n'), "{e}");
    assert_eq!(files(temp.path()), [] as [&str; 0]);
}

#[test]
fn a_missing_tensor_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = changed("llama_untied", temp.path(), |w| {
        w.remove("model.layers.1.self_attn.k_proj.weight");
    });
    let Some(dir) = dir else { return };
    refused(&dir, Status::BAD_FORMAT, &["missing", "model.layers.1.self_attn.k_proj.weight"]);
}

#[test]
fn of_many_missing_tensors_the_first_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = changed("llama_untied", temp.path(), |w| w.retain(|name, _| !name.contains("layers")));
    let Some(dir) = dir else { return };
    refused(&dir, Status::BAD_FORMAT, &["model.layers.0.input_layernorm.weight", "and 31 more"]);
}

#[test]
fn an_extra_tensor_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = changed("qwen2", temp.path(), |w| {
        let copy = w["model.norm.weight"].clone();
        w.insert("model.layers.0.adapter.weight".into(), copy);
    });
    let Some(dir) = dir else { return };
    refused(&dir, Status::BAD_FORMAT, &["not known", "model.layers.0.adapter.weight"]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both() {
    let temp = tempfile::tempdir().unwrap();
    let dir = changed("mixtral", temp.path(), |w| {
        let name = "model.layers.0.block_sparse_moe.experts.2.w1.weight";
        w.get_mut(name).unwrap().shape = vec![96, 160];
    });
    let Some(dir) = dir else { return };
    refused(&dir, Status::BAD_FORMAT, &["experts.2.w1.weight", "[160, 96]", "[96, 160]"]);
}

#[test]
fn a_tensor_of_integers_is_named_with_its_type() {
    let temp = tempfile::tempdir().unwrap();
    let dir = changed("llama_tied", temp.path(), |w| {
        w.get_mut("model.norm.weight").unwrap().dtype = Dtype::I16;
    });
    let Some(dir) = dir else { return };
    refused(&dir, Status::UNSUPPORTED, &["model.norm.weight", "I16"]);
}

#[test]
fn a_value_that_is_not_finite_is_refused_and_nothing_is_left() {
    let temp = tempfile::tempdir().unwrap();
    let dir = changed("llama_tied", temp.path(), |w| {
        w.get_mut("model.layers.2.mlp.up_proj.weight").unwrap().data[..2].copy_from_slice(&[0, 0x7e]);
    });
    let Some(dir) = dir else { return };
    refused(&dir, Status::BAD_FORMAT, &["model.layers.2.mlp.up_proj.weight", "not finite"]);
}

#[test]
fn an_unknown_architecture_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    std::fs::write(dir.join("config.json"), r#"{"model_type": "transformer_xl"}"#).unwrap();
    refused(&dir, Status::UNSUPPORTED, &["transformer_xl", "llama", "gpt_oss"]);
}

#[test]
fn a_checkpoint_without_configuration_or_weights_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    refused(temp.path(), Status::NOT_FOUND, &["model.safetensors"]);
    refused(&temp.path().join("nowhere"), Status::NOT_FOUND, &["nowhere"]);
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    std::fs::remove_file(dir.join("config.json")).unwrap();
    refused(&dir, Status::NOT_FOUND, &["config.json"]);
}

#[test]
fn other_formats_are_refused_in_plain_words() {
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    std::fs::write(at("model.gguf"), b"GGUF\x03\0\0\0").unwrap();
    std::fs::write(at("renamed.safetensors"), b"GGUF\x03\0\0\0\0\0\0\0").unwrap();
    std::fs::write(at("pytorch_model.bin"), b"PK\x03\x04....").unwrap();
    std::fs::write(at("pickled"), b"\x80\x02}q\0.").unwrap();
    std::fs::write(at("notes.txt"), b"hello").unwrap();
    refused(&at("model.gguf"), Status::UNSUPPORTED, &["GGUF", "not supported yet"]);
    refused(&at("renamed.safetensors"), Status::UNSUPPORTED, &["GGUF", "not supported yet"]);
    refused(&at("pytorch_model.bin"), Status::UNSUPPORTED, &["PyTorch", "not supported yet"]);
    refused(&at("pickled"), Status::UNSUPPORTED, &["PyTorch", "not supported yet"]);
    refused(&at("notes.txt"), Status::UNSUPPORTED, &["notes.txt", ".safetensors"]);
    let dir = at("torch");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::fs::write(dir.join("pytorch_model.bin"), b"PK\x03\x04....").unwrap();
    refused(&dir, Status::UNSUPPORTED, &["pytorch_model.bin", "PyTorch", "not supported yet"]);
}

#[test]
fn damaged_files_get_their_verdict() {
    let Some(root) = llm_testdata::shared("data/malformed") else { return };
    let mut seen = 0;
    for row in llm_testdata::json_lines(&root.join("index.jsonl")) {
        let (file, expect) = (row["file"].as_str().unwrap(), row["expect"].as_str().unwrap());
        let opened = Checkpoint::open(&root.join(file));
        seen += 1;
        if !file.starts_with("safetensors/") {
            // Whatever its state, another format is refused as one.
            assert!(opened.is_err(), "{file}");
            continue;
        }
        match (expect, opened) {
            ("accept", Err(e)) => panic!("{file}: {e}"),
            ("reject", Ok(_)) => panic!("{file}: accepted; {}", row["why"]),
            (_, Err(e)) => assert_eq!(e.status(), Status::BAD_FORMAT, "{file}: {e}"),
            (_, Ok(_)) => {}
        }
    }
    assert!(seen > 20);
}

#[test]
fn a_cut_file_is_refused_at_every_length() {
    let Some(dir) = reference("gpt2") else { return };
    let temp = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let path = temp.path().join("model.safetensors");
    for length in (0..200).chain([bytes.len() / 2, bytes.len() - 1]) {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap_err().status(), Status::BAD_FORMAT, "{length}");
    }
}

/// Cancels at the first chance.
struct Stop;
impl Progress for Stop {
    fn advance(&self, done: u64, total: u64) -> bool {
        assert!(done <= total);
        false
    }
}

#[test]
fn a_cancelled_conversion_leaves_no_file() {
    let Some(dir) = reference("llama_untied") else { return };
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out.llm");
    let e = llm_convert::convert(&dir, &out, &Options::default(), &Stop).unwrap_err();
    assert_eq!(e.status(), Status::CANCELLED, "{e}");
    assert_eq!(files(temp.path()), [] as [&str; 0]);
}

#[test]
fn a_failed_conversion_leaves_the_old_file_as_it_was() {
    let Some(dir) = reference("llama_untied") else { return };
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out.llm");
    std::fs::write(&out, "old").unwrap();
    llm_convert::convert(&dir, &out, &Options::default(), &Stop).unwrap_err();
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
}

#[test]
fn a_checkpoint_is_not_overwritten() {
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    let e = convert(&dir, &dir.join("model.safetensors"), Type::Q4).unwrap_err();
    assert_eq!(e.status(), Status::INVALID_ARG, "{e}");
    load(&dir);
}

#[test]
fn a_drafts_checkpoint_and_a_file_of_importance_are_not_overwritten() {
    let Some(source) = reference("llama_tied") else { return };
    let temp = tempfile::tempdir().unwrap();
    let Some(dir) = changed("llama_tied", temp.path(), |_| {}) else { return };
    let weights = dir.join("model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    for options in [
        Options { draft: Some(dir.clone()), ..Options::default() },
        Options { importance: Some(weights.clone()), ..Options::default() },
    ] {
        let e = llm_convert::convert(&source, &weights, &options, &()).unwrap_err();
        assert_eq!(e.status(), Status::INVALID_ARG, "{e}");
        assert!(std::fs::read(&weights).unwrap() == before);
    }
}

#[test]
fn importance_that_is_no_mean_square_or_of_another_type_is_refused() {
    let Some(source) = reference("llama_tied") else { return };
    let temp = tempfile::tempdir().unwrap();
    let (file, out) = (temp.path().join("importance"), temp.path().join("out.llm"));
    let name = "model.layers.0.self_attn.q_proj.weight";
    let columns = load(&source)[name].shape[1];
    let options = Options { importance: Some(file.clone()), ..Options::default() };
    let convert = |dtype: Dtype, value: &[u8]| {
        let stored = Stored { dtype, shape: vec![columns], data: value.repeat(columns) };
        save(&Weights::from([(name.to_owned(), stored)]), &file);
        llm_convert::convert(&source, &out, &options, &())
    };
    convert(Dtype::F32, &1f32.to_le_bytes()).unwrap();
    for (dtype, value, words) in [
        (Dtype::F32, (-1f32).to_le_bytes().to_vec(), "holds -1, expected a mean square"),
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec(), "holds NaN"),
        (Dtype::BF16, vec![0, 0], "BF16, expected F32"),
    ] {
        let e = convert(dtype, &value).unwrap_err();
        assert_eq!(e.status(), Status::BAD_FORMAT, "{e}");
        assert!(e.message().contains(words) && e.message().contains("importance"), "{e}");
    }
}

#[test]
fn importance_that_changes_nothing_is_said() {
    let Some(source) = reference("llama_tied") else { return };
    let temp = tempfile::tempdir().unwrap();
    let (file, out) = (temp.path().join("importance"), temp.path().join("out.llm"));
    let name = "model.layers.0.self_attn.q_proj.weight";
    let columns = load(&source)[name].shape[1];
    // The first input matters a thousand times as much as the others.
    let values = (0..columns).map(|i| if i == 0 { 1000f32 } else { 1.0 });
    let data = values.flat_map(f32::to_le_bytes).collect();
    let stored = Stored { dtype: Dtype::F32, shape: vec![columns], data };
    save(&Weights::from([(name.to_owned(), stored)]), &file);
    for (ty, says) in [(Type::Q8, false), (Type::Q4, false), (Type::Q2, false), (Type::Bf16, true)] {
        convert(&source, &out, ty).unwrap();
        let without = std::fs::read(&out).unwrap();
        let options = Options { ty, importance: Some(file.clone()), ..Options::default() };
        let summary = llm_convert::convert(&source, &out, &options, &()).unwrap();
        let said = summary.warnings.iter().any(|w| w.contains("importance changes nothing"));
        let same = std::fs::read(&out).unwrap() == without;
        assert!(said == says && same == says, "{}: said {said}, the same file {same}", ty.name());
    }
}

#[test]
fn a_value_that_would_become_infinite_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    for (ty, value, wider) in [(Type::F16, 65520.0, "bf16"), (Type::Bf16, f32::MAX, "f32")] {
        let dir = changed("llama_tied", &temp.path().join(wider), |w| {
            let stored = w.get_mut("model.layers.0.mlp.up_proj.weight").unwrap();
            let mut values = stored.values();
            values[3] = value;
            *stored = Stored {
                dtype: Dtype::F32,
                shape: stored.shape.clone(),
                data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
        });
        let Some(dir) = dir else { return };
        let out = temp.path().join("out.llm");
        let e = convert(&dir, &out, ty).unwrap_err();
        assert_eq!(e.status(), Status::UNSUPPORTED, "{e}");
        let words = format!("too large for {}; use {wider}", ty.name());
        assert!(e.message().contains(&words) && e.message().contains("up_proj"), "{e}");
        convert(&dir, &out, Type::F32).unwrap();
    }
}

#[test]
fn an_adapter_that_no_session_could_use_is_refused_and_nothing_it_is_made_of_is_overwritten() {
    let Some(base) = reference("phi3") else { return };
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/peft/phi3");
    let temp = tempfile::tempdir().unwrap();
    let (dir, out) = (temp.path().join("adapter"), temp.path().join("out.llm"));
    std::fs::create_dir(&dir).unwrap();
    let config = std::fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(from.join("adapter_model.safetensors")).unwrap();
    let (config_file, weights_file) =
        (dir.join("adapter_config.json"), dir.join("adapter_model.safetensors"));
    let put = |config: &str, weights: &[u8]| {
        std::fs::write(&config_file, config).unwrap();
        std::fs::write(&weights_file, weights).unwrap();
    };
    let refused = |base: &Path, out: &Path, status: Status, words: &str| {
        let e = convert_adapter(&dir, base, out, &AdapterOptions::default()).unwrap_err();
        assert_eq!(e.status(), status, "{e}");
        assert!(e.message().contains(words), "no `{words}` in: {e}");
    };
    let mut poisoned = weights.clone();
    let last = poisoned.len() - 4;
    poisoned[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    put(&config, &poisoned);
    refused(&base, &out, Status::BAD_FORMAT, "holds NaN");
    let mut endless: serde_json::Value = serde_json::from_str(&config).unwrap();
    endless["lora_alpha"] = serde_json::json!(1e300);
    put(&endless.to_string(), &weights);
    refused(&base, &out, Status::BAD_FORMAT, "is inf");
    assert_eq!(files(temp.path()), ["adapter"]);

    put(&config, &weights);
    refused(&base, &weights_file, Status::INVALID_ARG, "another name");
    assert!(std::fs::read(&weights_file).unwrap() == weights);
    let model = temp.path().join("model.llm");
    convert(&base, &model, Type::Q8).unwrap();
    refused(&model, &model, Status::INVALID_ARG, "another name");
    convert_adapter(&dir, &model, &out, &AdapterOptions::default()).unwrap();

    std::fs::rename(&weights_file, dir.join("adapter_model.bin")).unwrap();
    refused(&base, &out, Status::UNSUPPORTED, "adapter_model.bin: a PyTorch file");
}

#[test]
fn an_expression_that_the_library_does_not_know_is_refused() {
    let built = |split| llm_convert::tokenizer::from_vocab_merges(br#"{"a": 0}"#, b"", Some(split));
    assert!(built(r"\p{L}+|(?<=a)\s").is_ok());
    let refused = built(r"(a)\1").unwrap_err().to_string();
    assert!(refused.contains("back reference"), "{refused}");
}

#[test]
fn a_sentencepiece_model_that_rewrites_decoded_text_is_refused() {
    // Pieces `<unk>` of the type unknown and `a` with the score -1, and a spec of nothing or with a map of characters.
    let pieces =
        [b"\x0a\x09\x0a\x05<unk>\x18\x02\x0a\x08\x0a\x01a\x15".as_slice(), &(-1f32).to_le_bytes()].concat();
    let built = |spec: &[u8]| llm_convert::tokenizer::from_sentencepiece(&[&pieces[..], spec].concat());
    built(b"").unwrap();
    built(b"\x2a\x02\x12\x00").unwrap();
    let refused = built(b"\x2a\x03\x12\x01x").unwrap_err();
    assert_eq!(refused.status(), Status::UNSUPPORTED);
    assert!(refused.message().contains("denormalizer_spec"), "{refused}");
}
