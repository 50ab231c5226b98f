//! Adapters against their definition, and against the model they are merged into.

use super::*;
use crate::Config;
use crate::blueprint::Blueprint;
use crate::config::Recompute;
use crate::design::{ModelConfig, Position};
use crate::engine::{Adapter, Engine, Input, RouterLosses, Want};
use crate::tape::{How, Tape};
use crate::twin::{designs, foreign, tokens};

/// A model, its adapter with both matrices far from zero, and what passes over it give.
struct Case {
    blueprint: Blueprint,
    model: Params,
    weights: Vec<f32>,
    ids: Vec<u32>,
    targets: Vec<u32>,
}

fn case(model: &ModelConfig) -> Case {
    of(Blueprint::of_design(model).unwrap())
}

/// Of every design, and of parts that only checkpoints have.
fn cases() -> impl Iterator<Item = (&'static str, Case)> {
    let foreign = foreign().into_iter().map(|(name, _, mut spec)| {
        let dir = tempfile::tempdir().unwrap();
        spec.architecture = "libllm".into();
        let config = serde_json::json!({"model_type": "libllm", "spec": spec}).to_string();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        (name, of(Blueprint::of_checkpoint(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"))))
    });
    designs().into_iter().map(|(name, model)| (name, case(&model))).chain(foreign)
}

fn of(blueprint: Blueprint) -> Case {
    let mut params = blueprint.params();
    params.freeze();
    let weights = params.init(3, 2).iter().map(|w| w * 4.0).collect();
    let (ids, targets) = tokens(2 * blueprint.spec.context, blueprint.spec.vocab);
    Case { blueprint, model: params, weights, ids, targets }
}

impl Case {
    fn pass(&self, adapter: Option<(&Lora, &[f32])>, weights: &[f32], want: Want) -> f64 {
        let spec = &self.blueprint.spec;
        let mut engine = Engine::new(spec, &self.model, 2, RouterLosses::default());
        engine.adapter =
            adapter.map(|(lora, values)| Adapter { lora: lora.clone(), values: values.to_vec() });
        let train = matches!(want, Want::Gradient { .. }).then_some(Recompute::Block);
        let tape = Tape::record(spec, &self.model, (2, spec.context as usize), train);
        let input = Input { ids: &self.ids, targets: &self.targets, starts: &[], key: (1, 0) };
        engine.run(&tape, weights, &input, want)
    }

    fn logits(&self, adapter: Option<(&Lora, &[f32])>, weights: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        self.pass(adapter, weights, Want::Logits(&mut out));
        out
    }
}

/// Matrices of the second layer have a rank and a factor of their own.
fn config(rank: usize) -> LoraConfig {
    let second = || r".*\.1\..*".to_string();
    let (rank_pattern, alpha_pattern) = (vec![(second(), 1)], vec![(second(), 2.5)]);
    LoraConfig { rank, alpha: 6.0, rank_pattern, alpha_pattern, ..LoraConfig::default() }
}

/// Values of both matrices.
fn filled(lora: &Lora) -> Vec<f32> {
    lora.params.init(9, 1).iter().map(|v| v * 10.0).collect()
}

#[test]
fn merged_equals_unmerged_for_every_design_and_zero_adapters_change_nothing() {
    for (name, case) in cases() {
        let lora = Lora::new(&config(3), &case.model).unwrap_or_else(|e| panic!("{name}: {e}"));
        let plain = case.logits(None, &case.weights);
        assert_eq!(case.logits(Some((&lora, &lora.init(1))), &case.weights), plain, "{name}");
        let values = filled(&lora);
        let apart = case.logits(Some((&lora, &values)), &case.weights);
        let mut merged = case.weights.clone();
        lora.merge(&mut Dense::new(2), &values, &case.model, &mut merged);
        let together = case.logits(None, &merged);
        let largest = |x: &[f32], y: &[f32]| x.iter().zip(y).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        let scale = apart.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(largest(&apart, &plain) > 1e-2 * scale, "{name}: an adapter without effect");
        assert!(largest(&apart, &together) < 1e-4 * scale, "{name}: {}", largest(&apart, &together));
    }
}

#[test]
fn gradients_of_adapters_are_those_of_the_matrices_they_stand_for() {
    // d/dA and d/dB of W + s·B·A follow from the gradient of W, which has tests of its own
    for (name, mut case) in cases() {
        let lora = Lora::new(&config(2), &case.model).unwrap();
        let values = filled(&lora);
        let mut grads = vec![0.0; lora.params.total];
        let want = Want::Gradient { scale: 1.0, grads: &mut grads };
        case.pass(Some((&lora, &values)), &case.weights, want);
        let mut merged = case.weights.clone();
        lora.merge(&mut Dense::new(2), &values, &case.model, &mut merged);
        case.model = case.blueprint.params();
        let mut whole = vec![0.0; case.model.total];
        case.pass(None, &merged, Want::Gradient { scale: 1.0, grads: &mut whole });
        for module in &lora.modules {
            let scale = f64::from(module.scale);
            let (a, b) = (&lora.params.list[module.a], &lora.params.list[module.b]);
            let (rank, cols) = (a.rows, a.cols);
            let mut expected = (vec![0.0f64; a.len()], vec![0.0f64; b.len()]);
            for part in &module.parts {
                let from = case.model.list[part.param].range().start + part.start * cols;
                for r in 0..part.rows {
                    for c in 0..cols {
                        let dw = scale * f64::from(whole[from + r * cols + c]);
                        for k in 0..rank {
                            let at = (part.from + r) * rank + k;
                            expected.0[k * cols + c] += dw * f64::from(values[b.range()][at]);
                            expected.1[at] += dw * f64::from(values[a.range()][k * cols + c]);
                        }
                    }
                }
            }
            for (what, p, expected) in [("A", a, &expected.0), ("B", b, &expected.1)] {
                let size = expected.iter().fold(1e-3, |m: f64, v| m.max(v.abs()));
                for (got, want) in grads[p.range()].iter().zip(expected) {
                    let fine = (f64::from(*got) - want).abs() < 1e-3 * size;
                    assert!(fine, "{name}: {what} of {}: {got}, expected {want}", module.name);
                }
            }
        }
    }
}

#[test]
fn gradients_of_adapters_have_the_same_bits_whatever_is_computed_again() {
    for (name, case) in cases() {
        let lora = Lora::new(&LoraConfig { dropout: 0.3, ..config(2) }, &case.model).unwrap();
        let (spec, values) = (&case.blueprint.spec, filled(&lora));
        let grads = |recompute| {
            let how = How { train: Some(recompute), dropout: 0.1, ..How::default() };
            let tape = Tape::record(spec, &case.model, (2, spec.context as usize), how);
            let mut engine = Engine::new(spec, &case.model, 2, RouterLosses { balance: 0.3, z: 0.0 });
            engine.adapter = Some(Adapter { lora: lora.clone(), values: values.clone() });
            let mut grads = vec![0.0; lora.params.total];
            let input = Input { ids: &case.ids, targets: &case.targets, starts: &[], key: (1, 7) };
            let want = Want::Gradient { scale: 1.0, grads: &mut grads };
            let loss = engine.run(&tape, &case.weights, &input, want);
            (loss.to_bits(), grads.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let none = grads(Recompute::None);
        assert!(none == grads(Recompute::Part) && none == grads(Recompute::Block), "{name}");
    }
}

#[test]
fn experts_that_every_token_uses_are_adapted_by_the_names_that_peft_matches() {
    let (_, model) = designs().into_iter().find(|(n, _)| *n == "deepseek_v3").unwrap();
    let case = case(&model);
    let with = LoraConfig { targets: vec!["gate_proj".into(), "down_proj".into()], ..config(2) };
    let names: Vec<String> =
        Lora::new(&with, &case.model).unwrap().modules.into_iter().map(|m| m.name).collect();
    // the first layer is dense
    let mut expected = Vec::new();
    for block in ["0.mlp", "1.mlp.shared_experts"] {
        for matrix in ["gate_proj", "down_proj"] {
            expected.push(format!("model.layers.{block}.{matrix}"));
        }
    }
    assert_eq!(names, expected);
}

#[test]
fn the_switch_of_a_shared_expert_has_an_adapter_and_neither_router_nor_experts_do() {
    let (_, case) = cases().find(|(n, _)| *n == "all that experts have").unwrap();
    let all = Lora::new(&config(2), &case.model).unwrap();
    let last = |m: &Module| m.name.strip_prefix("model.layers.1.").map(str::to_string);
    let names: Vec<String> = all.modules.iter().filter_map(last).collect();
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| format!("self_attn.{n}"));
    let shared = ["gate_proj", "up_proj", "down_proj"].map(|n| format!("mlp.shared_expert.{n}"));
    let expected = [&attention[..], &shared, &["mlp.shared_expert_gate".into()]].concat();
    assert_eq!(names, expected);
}

#[test]
fn dropout_of_adapters_drops_the_same_values_on_both_ways() {
    let (_, model) = designs().into_iter().find(|(n, _)| *n == "gpt2").unwrap();
    let case = case(&model);
    let with = LoraConfig { dropout: 0.5, targets: vec!["c_attn".into()], ..config(2) };
    let lora = Lora::new(&with, &case.model).unwrap();
    let values = filled(&lora);
    let loss = |values: &[f32], grads: &mut [f32]| {
        case.pass(Some((&lora, values)), &case.weights, Want::Gradient { scale: 1.0, grads })
    };
    let (mut grads, mut unused) = (vec![0.0; values.len()], vec![0.0; values.len()]);
    let first = loss(&values, &mut grads);
    assert_eq!(first, loss(&values, &mut unused), "the same key, the same values");
    for p in &lora.params.list {
        for i in p.range().step_by(17) {
            let mut moved = values.clone();
            let mut at = |to: f32| {
                moved[i] = values[i] + to;
                loss(&moved, &mut unused)
            };
            let slope = (at(0.002) - at(-0.002)) / 0.004;
            let got = f64::from(grads[i]);
            assert!(
                (got - slope).abs() < 0.05 * slope.abs().max(0.5),
                "{}: {got}, expected {slope}",
                p.describe()
            );
        }
    }
}

#[test]
fn an_adapter_survives_its_files_and_one_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, model) in designs() {
        let case = case(&model);
        let lora = Lora::new(&config(3), &case.model).unwrap();
        let values = filled(&lora);
        let mut written = super::config(&lora, "base");
        // PEFT needs one of the names to be there, not all
        written["target_modules"].as_array_mut().unwrap().push("nowhere".into());
        std::fs::write(dir.path().join("adapter_config.json"), written.to_string()).unwrap();
        let path = dir.path().join("adapter_model.safetensors");
        safetensors::serialize_to_file(tensors(&lora, &values), None, &path).unwrap();
        let found = read_config(dir.path()).unwrap();
        assert_eq!(found.change(), lora.config.change(), "{name}");
        let (again, read_values) =
            read(dir.path(), &found, &case.model).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((again.modules.len(), &read_values), (lora.modules.len(), &values), "{name}");
        let mut spoilt = values.clone();
        spoilt[5] = f32::NAN;
        safetensors::serialize_to_file(tensors(&lora, &spoilt), None, &path).unwrap();
        let error = read(dir.path(), &found, &case.model).unwrap_err();
        assert!(error.message().contains("holds NaN, expected finite values"), "{name}: {error}");
        safetensors::serialize_to_file(tensors(&lora, &values), None, &path).unwrap();
        // a wider model has the same names and other shapes
        let wider = ModelConfig { width: 32, ffn: 128, ..model };
        if let Ok(other) = Blueprint::of_design(&wider) {
            let error = read(dir.path(), &found, &other.params()).unwrap_err();
            assert_eq!(error.status(), Status::BAD_FORMAT, "{name}: {error}");
        }
    }
}

#[test]
fn ranks_factors_and_layers_that_peft_chose_give_its_logits_and_are_written_back() {
    let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let expected: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/reference/peft.json")).unwrap();
    let (_, model) = designs().into_iter().find(|(n, _)| *n == "llama").unwrap();
    let (case, written) = (case(&model), tempfile::tempdir().unwrap());
    for (name, ranks) in [("patterns", vec![1, 2, 4, 5]), ("layers", vec![2, 4])] {
        let dir = place.join(format!("peft-{name}"));
        let found = read_config(&dir).unwrap();
        let (lora, values) = read(&dir, &found, &case.model).unwrap();
        let mut there: Vec<usize> = lora.modules.iter().map(|m| lora.params.list[m.a].rows).collect();
        there.sort_unstable();
        there.dedup();
        assert_eq!(there, ranks, "{name}");
        let got = case.logits(Some((&lora, &values)), &case.weights);
        let expected = expected[name]["theirs"].as_array().unwrap();
        assert_eq!(got.len(), expected.len(), "{name}");
        for (a, b) in got.iter().zip(expected) {
            let (a, b) = (f64::from(*a), b.as_f64().unwrap());
            assert!((a - b).abs() < 1e-4 * b.abs().max(0.1), "{name}: {a}, peft has {b}");
        }
        let text = super::config(&lora, "base").to_string();
        std::fs::write(written.path().join("adapter_config.json"), &text).unwrap();
        let path = written.path().join("adapter_model.safetensors");
        safetensors::serialize_to_file(tensors(&lora, &values), None, &path).unwrap();
        let again = read_config(written.path()).unwrap();
        assert_eq!(again, found, "{name}");
        assert!(read(written.path(), &again, &case.model).unwrap().1 == values, "{name}");
        let theirs = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        let [own, theirs] = [text, theirs].map(|t| serde_json::from_str::<serde_json::Value>(&t).unwrap());
        assert_eq!(own["rank_pattern"], theirs["rank_pattern"], "{name}");
    }
}

#[test]
fn a_rank_that_the_tensors_do_not_have_and_a_start_that_changes_the_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let case = case(&ModelConfig { vocab: 19, ..ModelConfig::tiny() });
    let lora = Lora::new(&config(3), &case.model).unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    safetensors::serialize_to_file(tensors(&lora, &filled(&lora)), None, &path).unwrap();
    let settings = super::config(&lora, "base");
    let write = |key: &str, value: serde_json::Value| {
        let mut changed = settings.clone();
        changed[key] = value;
        std::fs::write(dir.path().join("adapter_config.json"), changed.to_string()).unwrap();
    };
    write("r", (1 << 14).into());
    let error = read(dir.path(), &read_config(dir.path()).unwrap(), &case.model).unwrap_err();
    assert_eq!(error.status(), Status::BAD_FORMAT);
    assert!(error.message().contains("[3, 32], expected floats [16384, 32]"), "{error}");
    for (key, value) in [
        ("alora_invocation_tokens", serde_json::json!([1, 2])),
        ("trainable_token_indices", serde_json::json!([3])),
        ("bias", "lora_only".into()),
        ("bias", "all".into()),
        ("modules_to_save", serde_json::json!(["lm_head"])),
    ] {
        write(key, value);
        let error = read_config(dir.path()).unwrap_err();
        assert_eq!(error.status(), Status::UNSUPPORTED);
        assert!(error.message().contains(key), "{error}");
    }
    for start in ["pissa", "pissa_niter_4", "olora", "lora_ga"] {
        write("init_lora_weights", start.into());
        let error = read_config(dir.path()).unwrap_err();
        assert_eq!(error.status(), Status::UNSUPPORTED);
        assert!(error.message().contains(start), "{error}");
    }
    for (key, value) in [("init_lora_weights", "gaussian".into()), ("fan_in_fan_out", true.into())] {
        write(key, value);
        read(dir.path(), &read_config(dir.path()).unwrap(), &case.model).unwrap();
    }
}

#[test]
fn patterns_that_are_none_are_refused_before_a_run() {
    for (assignment, expected) in [
        ("rank_pattern=q_proj=0", "expected rank up to 16384"),
        ("alpha_pattern=q_proj=-1", "alpha above 0"),
        ("rank_pattern=q_proj=4,k_proj=2,q_proj=3", "the pattern \"q_proj\" is named twice"),
        ("rank_pattern=q(=4", "lora: `rank_pattern`: `q(`: "),
        ("alpha_pattern=q_proj=4", "lora.alpha_pattern: without lora.rank the whole model would be trained"),
    ] {
        let mut config = Config::default();
        (config.model.vocab, config.from) = (300, "base".into());
        config.set(assignment).unwrap();
        let error = config.check().unwrap_err();
        assert!(error.message().contains(expected), "{assignment}: {error}");
    }
    let mut config = Config::default();
    for assignment in ["lora.rank=4", r"rank_pattern=layers\.1\..*=2,o_proj=8", "alpha_pattern=o_proj=1.5"] {
        config.set(assignment).unwrap();
    }
    let ranks = vec![(r"layers\.1\..*".to_string(), 2), ("o_proj".to_string(), 8)];
    assert_eq!((&config.lora.rank_pattern, &config.lora.alpha_pattern[0].1), (&ranks, &1.5));
    assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    assert_eq!(Config::from_text(&config.to_yaml().unwrap()).unwrap(), config);
    let error = config.set("rank_pattern=o_proj").unwrap_err();
    assert!(error.message().contains("rank_pattern=o_proj: "), "{error}");
}

#[test]
fn targets_that_the_model_lacks_are_refused_with_those_it_has() {
    let model = Blueprint::of_design(&ModelConfig { vocab: 19, ..ModelConfig::tiny() }).unwrap().params();
    let with = LoraConfig { targets: vec!["q_proj".into(), "query".into()], ..config(2) };
    let error = Lora::new(&with, &model).unwrap_err();
    assert!(error.message().contains("\"query\"") && error.message().contains("gate_proj"), "{error}");
    let mut run = Config::default();
    (run.lora.rank, run.model.vocab) = (4, 300);
    assert!(run.check().unwrap_err().message().contains("`from`"));
    let sinusoidal = ModelConfig { position: Position::Sinusoidal, vocab: 19, ..ModelConfig::tiny() };
    assert!(Blueprint::of_design(&sinusoidal).is_ok());
}
