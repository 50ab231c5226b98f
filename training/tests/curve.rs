//! 200 steps of the baby GPT beside PyTorch: the same weights, samples and settings give the same losses within noise.
//!
//! `reference/curve.json` holds PyTorch's. To make it anew: these tests with `LLM_TRAIN_REFERENCE=DIR` and
//! `-- --include-ignored` write data and first checkpoints to DIR, then `python training/tests/reference/curve.py DIR`
//! trains from them. It draws the samples by itself, from the rule alone. The model in full takes minutes and runs where it
//! is asked for: `cargo test -p llm-train --test curve -- --ignored`.

use std::path::Path;

use llm_train::{Config, ModelConfig, PrepareOptions, Trainer, prepare};
use serde_json::Value;

#[path = "common/characters.rs"]
mod characters;

/// Prepares the text that comes with the crate, a token for each of its characters.
fn data_of_characters(dir: &Path) {
    let text = llm_train::quickstart::TEXT;
    let (input, path) = (dir.join("text.txt"), dir.join("tokenizer.json"));
    std::fs::write(&input, text).unwrap();
    std::fs::write(&path, characters::tokenizer(text).to_string()).unwrap();
    let options = PrepareOptions {
        inputs: vec![input.into()],
        tokenizer: path,
        output: dir.join("data"),
        ..Default::default()
    };
    prepare(&options).unwrap();
}

/// The largest and the mean difference of 200 losses from those of `curve.json`; with `LLM_TRAIN_REFERENCE` none, but what
/// its script needs.
fn apart(name: &str, model: ModelConfig, batch: usize) -> Option<(f64, f64)> {
    let dir = tempfile::tempdir().unwrap();
    let asked = std::env::var_os("LLM_TRAIN_REFERENCE").map(|d| Path::new(&d).join(format!("curve-{name}")));
    let place = asked.clone().unwrap_or_else(|| dir.path().into());
    std::fs::create_dir_all(&place).unwrap();
    data_of_characters(&place);
    let mut config = Config { model, data: place.join("data"), batch, steps: 200, ..Config::default() };
    (config.optim.warmup, config.optim.beta2) = (20, 0.99);
    let mut trainer = Trainer::new(&config).unwrap();
    if asked.is_some() {
        trainer.save(&place.join("begin")).unwrap();
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/curve.json");
    let reference: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let expected: Vec<f64> =
        reference[name].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(expected.len(), 200);
    let (mut largest, mut sum, mut last) = (0.0f64, 0.0, 0.0);
    for expected in &expected {
        last = trainer.step().unwrap().loss;
        largest = largest.max((last - expected).abs());
        sum += (last - expected).abs();
    }
    eprintln!("{name}: {} to {last}, PyTorch {}; at most {largest:.2e} apart", expected[0], expected[199]);
    assert!(last < expected[0] - 1.0, "{name}: nothing was learned");
    Some((largest, sum / 200.0))
}

#[test]
fn two_hundred_steps_of_a_small_baby_gpt_follow_pytorch() {
    let model =
        ModelConfig { layers: 2, heads: 4, width: 64, ffn: 256, context: 64, ..ModelConfig::baby_gpt() };
    let model = model.gpt2_design();
    if let Some((largest, mean)) = apart("small", model, 4) {
        assert!(largest < 1e-4 && mean < 1e-5, "losses are {largest} apart, {mean} in the mean");
    }
}

#[test]
#[ignore = "minutes; the small one runs always"]
fn two_hundred_steps_of_the_baby_gpt_follow_pytorch() {
    if let Some((largest, mean)) = apart("baby", ModelConfig::baby_gpt(), 12) {
        assert!(largest < 1e-3 && mean < 1e-4, "losses are {largest} apart, {mean} in the mean");
    }
}
