//! Models of every design against PyTorch: the same weights gave logits, losses and gradients there. Those that
//! `transformers` gave, from the layouts that it opens, are in `tests/reference/designs.json`. Those of designs that no
//! published layout equals, and of mixtures whose routers have losses of their own, are in `own.json`, by a plain model
//! that reads our own layout. And the shared reference checkpoints, whose losses and gradients are in
//! `checkpoints.json`.
//!
//! To make those files anew: these tests with `LLM_TRAIN_REFERENCE=DIR` write the models to DIR, then
//! `python training/tests/reference/designs.py DIR` and `own.py DIR/own` read them there and write the files;
//! `adapters.py DIR` does the same for adapters and writes `peft.json` and adapters of its own.

use std::fs;
use std::path::Path;

use llm::model::arch::read_config;
use llm::model::spec::Spec;
use safetensors::tensor::View;
use serde_json::{Value, json};

use super::*;
use crate::blueprint::Blueprint;
use crate::config::Recompute;
use crate::design::{ModelConfig, Position, ScalingKind, ScoringDesign};
use crate::engine::{Adapter, Engine, Input, RouterLosses, Want};
use crate::layout::{self, Files};
use crate::lora::{self, Lora, LoraConfig};
use crate::params::Params;
use crate::tape::Tape;

/// A design, its weights, two sequences and what comes out.
struct Case {
    params: Params,
    weights: Vec<f32>,
    logits: Vec<f32>,
    loss: f64,
    grads: Vec<f32>,
}

fn case(model: &ModelConfig) -> Case {
    let (arch, spec) = model.spec().unwrap();
    loudly(&spec, Params::new(arch, &spec, false), RouterLosses::default())
}

/// What comes out of the weights that tests have.
fn loudly(spec: &Spec, params: Params, losses: RouterLosses) -> Case {
    let weights = loud(&params, spec.layers.len());
    compute(spec, params, weights, spec.context as usize, losses)
}

/// What comes out of two sequences of `length`.
fn compute(spec: &Spec, params: Params, weights: Vec<f32>, length: usize, losses: RouterLosses) -> Case {
    let (ids, targets) = tokens(2 * length as u32, spec.vocab);
    let mut engine = Engine::new(spec, &params, 2, losses);
    let input = Input { ids: &ids, targets: &targets, starts: &[], key: (0, 0) };
    let (mut logits, mut grads) = (Vec::new(), vec![0.0; params.total]);
    let tape = |train: bool| Tape::record(spec, &params, (2, length), train.then_some(Recompute::None));
    engine.run(&tape(false), &weights, &input, Want::Logits(&mut logits));
    let want = Want::Gradient { scale: 1.0, grads: &mut grads };
    let loss = engine.run(&tape(true), &weights, &input, want);
    Case { params, weights, logits, loss, grads }
}

/// Two numbers that a tensor's values determine: a sum with signs that differ, and the norm.
fn summary(values: &[f32]) -> [f64; 2] {
    let x = wide(values);
    let signed = x.iter().enumerate().map(|(i, x)| x * (i as f64 * 0.7 + 0.3).cos()).sum();
    [signed, x.iter().map(|x| x * x).sum::<f64>().sqrt()]
}

/// Compares every case with what `expected` has of its name; where the files are to be made anew it writes them for
/// PyTorch to read instead, to `place` in the directory that was asked for.
fn compare_all(cases: &[(&str, Value, Case)], expected: &str, place: &str) {
    if let Some(dir) = std::env::var_os("LLM_TRAIN_REFERENCE") {
        for (name, config, case) in cases {
            let dir = Path::new(&dir).join(place).join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("config.json"), config.to_string()).unwrap();
            let format = Some([("format".to_string(), "pt".to_string())].into());
            let tensors = layout::stored(&case.params, &case.weights);
            safetensors::serialize_to_file(tensors, format, &dir.join("model.safetensors")).unwrap();
        }
        return;
    }
    let expected: Value = serde_json::from_str(expected).unwrap();
    let expected = expected.as_object().unwrap();
    for (name, _, case) in cases {
        let expected = expected.get(*name).unwrap_or_else(|| panic!("{name}: PyTorch has not computed it"));
        let logits = numbers(&expected["logits"]);
        assert_eq!(case.logits.len(), logits.len(), "{name}");
        for (a, b) in case.logits.iter().zip(&logits) {
            near(name, "a logit", f64::from(*a), *b, b.abs().max(0.1));
        }
        agree(name, case, expected);
    }
    assert_eq!(cases.len(), expected.len(), "designs, and those that PyTorch computed");
}

#[test]
fn logits_loss_and_gradients_of_every_published_layout_are_those_of_transformers() {
    let designs = designs().into_iter().filter(|(_, m)| m.layout() != "libllm");
    let cases: Vec<_> =
        designs.map(|(name, model)| (name, model.hugging_face().unwrap(), case(&model))).collect();
    compare_all(&cases, include_str!("../../tests/reference/designs.json"), "");
}

/// A design in our own layout, and what comes out where routers have losses.
fn ours(model: &ModelConfig) -> (Value, Case) {
    let mut config = if model.layout() == "libllm" {
        model.hugging_face().unwrap()
    } else {
        let (_, spec) = model.spec().unwrap();
        json!({"model_type": "libllm", "spec": Spec { architecture: "libllm".into(), ..spec }})
    };
    // a log-sum-exp says nothing about sigmoids
    let z = if model.experts.scoring == ScoringDesign::Sigmoid { 0.0 } else { 0.1 };
    let losses = RouterLosses { balance: 0.3, z };
    // under the names that transformers has for them
    (config["router_aux_loss_coef"], config["router_z_loss_coef"]) = (json!(losses.balance), json!(losses.z));
    let (arch, spec) = read_config(&config).unwrap();
    let params = Params::new(arch, &spec, model.position == Position::Sinusoidal);
    (config, loudly(&spec, params, losses))
}

#[test]
fn logits_loss_and_gradients_of_our_own_layout_and_of_routers_losses_are_those_of_pytorch() {
    // scaled angles are compared with transformers
    let routed = |m: &ModelConfig| m.experts.count > 0 && m.rope_scaling.kind == ScalingKind::None;
    let designs = designs().into_iter().filter(|(_, m)| m.layout() == "libllm" || routed(m));
    let cases: Vec<_> = designs
        .map(|(name, model)| {
            let (config, case) = ours(&model);
            (name, config, case)
        })
        .collect();
    compare_all(&cases, include_str!("../../tests/reference/own.json"), "own");
}

#[test]
fn loss_and_gradients_of_every_reference_checkpoint_are_those_of_transformers() {
    let Some(references) = llm_testdata::shared("reference") else { return };
    let expected: Value =
        serde_json::from_str(include_str!("../../tests/reference/checkpoints.json")).unwrap();
    let expected = expected.as_object().unwrap();
    for (name, expected) in expected {
        let dir = references.join(name);
        let blueprint = Blueprint::of_checkpoint(&dir).unwrap();
        let params = blueprint.params();
        let weights = Files::open(&dir).unwrap().load(&params).unwrap();
        let case = compute(&blueprint.spec, params, weights, 16, RouterLosses::default());
        agree(name, &case, expected);
    }
    assert!(expected.len() >= 23, "{} checkpoints", expected.len());
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().expect("numbers").iter().map(|x| x.as_f64().unwrap()).collect()
}

fn near(name: &str, what: &str, got: f64, expected: f64, size: f64) {
    let fine = (got - expected).abs() <= 1e-4 * size.max(1e-2);
    assert!(fine, "{name}: {what}: {got}, PyTorch has {expected}");
}

/// Whether loss and gradients are the `expected` ones.
fn agree(name: &str, case: &Case, expected: &Value) {
    let loss = expected["loss"].as_f64().unwrap();
    near(name, "the loss", case.loss, loss, loss);
    let gradients = expected["gradients"].as_object().unwrap();
    let zeros = vec![0.0; case.params.total];
    let nothing = layout::stored(&case.params, &zeros);
    let mut found = 0;
    for ((tensor, stored), (_, nothing)) in layout::stored(&case.params, &case.grads).into_iter().zip(nothing)
    {
        // some layouts store a norm's weight less one, of which a gradient knows nothing
        let (stored, nothing) = (stored.data(), nothing.data());
        let values =
            bytemuck::cast_slice::<u8, f32>(&stored).iter().zip(bytemuck::cast_slice::<u8, f32>(&nothing));
        let got = summary(&values.map(|(a, b)| a - b).collect::<Vec<f32>>());
        let Some(expected) = gradients.get(&tensor) else {
            // a table that is not trained there either, or is kept twice here
            assert!(got == [0.0; 2], "{name}: {tensor}: PyTorch has no gradient of it");
            continue;
        };
        found += 1;
        let expected = numbers(expected);
        near(name, &tensor, got[0], expected[0], expected[1]);
        near(name, &tensor, got[1], expected[1], expected[1]);
    }
    assert_eq!(found, gradients.len(), "{name}: tensors that only one side has");
}

/// Logits of a design with an adapter.
fn adapted(model: &ModelConfig, lora: &Lora, values: &[f32]) -> Vec<f32> {
    let (blueprint, case) = (Blueprint::of_design(model).unwrap(), case(model));
    let spec = &blueprint.spec;
    let (ids, _) = tokens(2 * spec.context, spec.vocab);
    let mut engine = Engine::new(spec, &case.params, 2, RouterLosses::default());
    engine.adapter = Some(Adapter { lora: lora.clone(), values: values.to_vec() });
    let tape = Tape::record(spec, &case.params, (2, spec.context as usize), None);
    let input = Input { ids: &ids, targets: &ids, starts: &[], key: (0, 0) };
    let mut logits = Vec::new();
    engine.run(&tape, &case.weights, &input, Want::Logits(&mut logits));
    logits
}

/// The designs with adapters: one with a matrix for each projection, one with a turned one for three.
fn with_adapters() -> Vec<(&'static str, ModelConfig)> {
    designs().into_iter().filter(|(n, _)| matches!(*n, "llama" | "gpt2")).collect()
}

fn our_adapter(model: &ModelConfig) -> (Lora, Vec<f32>) {
    let config = LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() };
    let lora = Lora::new(&config, &Blueprint::of_design(model).unwrap().params()).unwrap();
    let values = lora.params.init(9, 1).iter().map(|v| v * 10.0).collect();
    (lora, values)
}

#[test]
fn adapters_made_here_and_by_peft_give_the_logits_of_peft() {
    if let Some(dir) = std::env::var_os("LLM_TRAIN_REFERENCE") {
        for (name, model) in with_adapters() {
            let (dir, (lora, values)) = (Path::new(&dir).join("adapters").join(name), our_adapter(&model));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("adapter_config.json"), lora::config(&lora, "base").to_string()).unwrap();
            let path = dir.join("adapter_model.safetensors");
            safetensors::serialize_to_file(lora::tensors(&lora, &values), None, &path).unwrap();
        }
        return;
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let text = fs::read_to_string(place.join("peft.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    for (name, model) in with_adapters() {
        let params = Blueprint::of_design(&model).unwrap().params();
        let (ours, values) = our_adapter(&model);
        let dir = place.join(format!("peft-{name}"));
        let (theirs, read) = lora::read(&dir, &lora::read_config(&dir).unwrap(), &params).unwrap();
        for (which, got) in
            [("ours", adapted(&model, &ours, &values)), ("theirs", adapted(&model, &theirs, &read))]
        {
            let expected = expected[name][which].as_array().unwrap();
            assert_eq!(got.len(), expected.len(), "{name}");
            for (a, b) in got.iter().zip(expected) {
                let (a, b) = (f64::from(*a), b.as_f64().unwrap());
                assert!((a - b).abs() < 1e-4 * b.abs().max(0.1), "{name}, {which}: {a}, peft has {b}");
            }
        }
    }
}
