//! Mixtures and curricula: what is drawn, going on across a border, directories that do not belong together.

use std::fs;
use std::path::Path;

use llm::error::Status;
use llm_train::{Config, Part, Phase, PrepareOptions, Trainer, prepare};
use serde_json::json;

mod common;
use common::{advance, bits, data, run, setup};

/// The directories `data`, `other` and `chats` (conversations) with one tokenizer, drawn 2 to 1 to 1; 4 steps of 8
/// tokens, 4 steps of other weights, then as the run says.
fn mixed(dir: &Path) -> Config {
    let config = setup(dir);
    let tokenizer = dir.join("tokenizer.json");
    let text = dir.join("other.txt");
    fs::write(&text, "one two three, four five six; seven eight nine.\n".repeat(60)).unwrap();
    let rows: String = (0..40u32)
        .map(|i| {
            let user = json!({"role": "user", "content": i.to_string()});
            let answer = json!({"role": "assistant", "content": "sun"});
            json!({"messages": [user, answer]}).to_string() + "\n"
        })
        .collect();
    let (chats, template) = (dir.join("chats.jsonl"), dir.join("template.jinja"));
    fs::write(&chats, rows).unwrap();
    let turns = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}";
    fs::write(&template, format!("{turns}{{% if add_generation_prompt %}}a{{% endif %}}")).unwrap();
    let base = PrepareOptions { tokenizer, ..PrepareOptions::default() };
    let other = PrepareOptions { inputs: vec![text.into()], output: dir.join("other"), ..base.clone() };
    prepare(&other).unwrap();
    let inputs = vec![chats.into()];
    let output = dir.join("chats");
    prepare(&PrepareOptions { inputs, output, chat: true, template: Some(template), ..base }).unwrap();
    let part = |name: &str, weight| Part { data: dir.join(name), weight };
    Config {
        mixture: vec![part("data", 2.0), part("other", 1.0), part("chats", 1.0)],
        curriculum: vec![
            Phase { until: 4, length: 8, weights: vec![] },
            Phase { until: 8, length: 0, weights: vec![0.0, 1.0, 3.0] },
        ],
        ..config
    }
}

#[test]
fn a_run_resumed_at_any_step_of_a_curriculum_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let config = mixed(dir.path());
    let expected = bits(run(&config, 11).weights());
    let checkpoint = dir.path().join("checkpoint");
    let mut straight = Trainer::new(&config).unwrap();
    for step in 1..11 {
        straight.step().unwrap();
        assert_eq!(straight.tokens_per_step(), if step <= 4 { 24 } else { 48 }, "step {step}");
        straight.save(&checkpoint).unwrap();
        let mut resumed = Trainer::resume(&config, &checkpoint).unwrap();
        advance(&mut resumed, 11 - step);
        assert_eq!(bits(resumed.weights()), expected, "from step {step}");
    }
}

#[test]
fn a_mixture_of_one_directory_is_that_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let alone = vec![Part { data: config.data.clone(), weight: 0.5 }];
    let mixture = Config { mixture: alone, data: "nowhere".into(), ..config.clone() };
    assert_eq!(bits(run(&mixture, 3).weights()), bits(run(&config, 3).weights()));
}

#[test]
fn samples_are_counted_by_directory_and_evaluated_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = mixed(dir.path());
    let checkpoint = dir.path().join("checkpoint");
    let mut trainer = run(&config, 8);
    trainer.save(&checkpoint).unwrap();
    let text = fs::read_to_string(checkpoint.join("training.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let drawn: Vec<u64> =
        state["drawn"].as_array().unwrap().iter().map(|d| d["samples"].as_u64().unwrap()).collect();
    // 12 samples in shares 2, 1, 1 and 12 in shares 0, 1, 3
    assert_eq!(drawn.iter().sum::<u64>(), 24);
    assert!(drawn[0] <= 12 && drawn[2] > drawn[1], "{drawn:?}");
    let (whole, each) = trainer.evaluate_each(0).unwrap();
    assert_eq!(each.len(), 3);
    assert_eq!(whole.tokens, each.iter().map(|(_, e)| e.tokens).sum::<u64>());
    let nats: f64 = each.iter().map(|(_, e)| e.nats_per_token * e.tokens as f64).sum();
    assert!((nats / whole.tokens as f64 - whole.nats_per_token).abs() < 1e-12);
}

#[test]
fn a_count_of_samples_that_no_run_comes_to_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = mixed(dir.path());
    let checkpoint = dir.path().join("checkpoint");
    run(&config, 2).save(&checkpoint).unwrap();
    let path = checkpoint.join("training.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for samples in [1u64 << 40, u64::MAX - 1] {
        state["drawn"][2]["samples"] = json!(samples);
        fs::write(&path, state.to_string()).unwrap();
        let mut trainer = Trainer::resume(&config, &checkpoint).unwrap();
        let e = (0..10).find_map(|_| trainer.step().err()).unwrap();
        assert_eq!(e.status(), Status::BAD_FORMAT);
        assert!(e.message().contains("train.tokens: sample ") && e.message().contains("`drawn`"), "{e}");
    }
}

#[test]
fn directories_made_with_other_tokenizers_are_refused_with_the_first_difference() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = mixed(dir.path());
    let output = dir.path().join("foreign");
    data(&dir.path().join("other.txt"), 270, dir.path().join("second.json"), output.clone());
    config.mixture[1].data = output;
    let e = Trainer::new(&config).err().unwrap();
    assert_eq!(e.status(), Status::MISMATCH);
    assert!(e.message().contains("foreign: made with another tokenizer"), "{e}");
    assert!(e.message().contains("model.vocab."), "{e}");

    // a file that is too short for a later length says so before the first step
    config.mixture.truncate(1);
    config.curriculum = vec![Phase { until: 3, length: 17, weights: vec![] }];
    let e = Trainer::new(&config).err().unwrap();
    assert!(e.message().contains("length 17: the model has a context of 16"), "{e}");
}
