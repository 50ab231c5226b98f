//! Training that begins from a checkpoint: whole, by an adapter, on conversations; and runs that end by themselves.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use llm::error::Status;
use llm_train::{Config, Event, ModelConfig, OptimizerKind, PrepareOptions, Trainer};
use llm_train::{design, merge, prepare, train};
use safetensors::tensor::SafeTensors;

mod common;
use common::{advance, bits, run, setup};
#[path = "common/designs.rs"]
mod designs;

/// A checkpoint of a model trained a little.
fn base(config: &Config, dir: &Path) {
    let mut config = config.clone();
    config.optim.rate = 1e-2;
    run(&config, 12).save(dir).unwrap();
}

fn lora(config: &Config, from: &Path) -> Config {
    let mut config = Config { from: from.into(), length: 16, ..config.clone() };
    (config.lora.rank, config.lora.alpha, config.lora.dropout) = (4, 8.0, 0.1);
    (config.optim.rate, config.steps) = (1e-2, 100);
    config
}

fn logits(trainer: &mut Trainer) -> Vec<f32> {
    let mut ids = vec![0u32; 16];
    trainer.data()[0].train.read(100, &mut ids).unwrap();
    trainer.logits(&ids).unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn every_design_goes_on_from_its_checkpoint_whole() {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path());
    let from = dir.path().join("base");
    for (name, model) in designs::designs() {
        let config = Config { model: ModelConfig { vocab: 0, context: 16, ..model }, ..setup.clone() };
        base(&config, &from);
        let mut whole = Config { from: from.clone(), ..config.clone() };
        whole.optim.rate = 1e-2;
        let mut trainer = Trainer::new(&whole).unwrap();
        let before = logits(&mut trainer);
        let first = trainer.step().unwrap().loss;
        advance(&mut trainer, 8);
        let last = trainer.step().unwrap().loss;
        assert!(last < first, "{name}: {first} to {last}");
        let out = dir.path().join("tuned");
        trainer.save(&out).unwrap();
        let again = logits(&mut Trainer::new(&Config { from: out, ..whole.clone() }).unwrap());
        assert_eq!(bits(&again), bits(&logits(&mut trainer)), "{name}");
        assert!(apart(&before, &again) > 1e-2, "{name}: nothing was learned");
    }
}

/// The tensors of a checkpoint's only file.
fn tensors(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(checkpoint.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn a_table_of_sinusoids_stays_as_it_is_in_a_fresh_run_and_in_every_run_from_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = setup(dir.path());
    config.model = ModelConfig { position: design::Position::Sinusoidal, ..config.model.gpt2_design() };
    config.optim.rate = 1e-2;
    let [new, fresh, tuned, again] = ["new", "fresh", "tuned", "again"].map(|name| dir.path().join(name));
    run(&config, 0).save(&new).unwrap();
    run(&config, 3).save(&fresh).unwrap();
    run(&Config { from: fresh.clone(), ..config.clone() }, 3).save(&tuned).unwrap();
    run(&Config { from: tuned.clone(), ..config }, 3).save(&again).unwrap();
    for (before, after) in [(&new, &fresh), (&fresh, &tuned), (&tuned, &again)] {
        let (before, after) = (tensors(before), tensors(after));
        assert_eq!(before.len(), after.len());
        for ((name, before), (same, after)) in before.iter().zip(&after) {
            assert_eq!(name, same);
            // the bias of keys has no gradient but that of rounding
            if name.ends_with("weight") {
                assert_eq!(before == after, name == "model.embed_positions.weight", "{name}");
            }
        }
        assert!(before.iter().any(|(name, _)| name == "model.embed_positions.weight"));
    }
}

#[test]
fn angles_that_stretch_with_the_length_reach_past_the_context() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let from = dir.path().join("base");
    base(&config, &from);
    let longer = Config { from: from.clone(), length: 32, ..config };
    let e = Trainer::new(&longer).err().unwrap();
    assert!(e.message().contains("length = 32: the model has a context of 16"), "{e}");
    let path = from.join("config.json");
    let mut model: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    model["rope_scaling"] = serde_json::json!({"rope_type": "dynamic", "factor": 2.0});
    fs::write(&path, model.to_string()).unwrap();
    let mut trainer = Trainer::new(&longer).unwrap();
    assert_eq!(trainer.tokens_per_step(), 3 * 32);
    trainer.step().unwrap();
}

#[test]
fn an_adapter_learns_resumes_bit_by_bit_and_merges() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let from = dir.path().join("base");
    base(&config, &from);
    let config = lora(&config, &from);
    let mut trainer = Trainer::new(&config).unwrap();
    assert!(trainer.parameters() * 2 < trainer.model_parameters(), "{}", trainer.parameters());
    assert_eq!(trainer.optimizer_bytes(), trainer.parameters() * 8, "the state is that of the adapter alone");
    let first = trainer.step().unwrap().loss;
    advance(&mut trainer, 5);
    let checkpoint = dir.path().join("adapter");
    trainer.save(&checkpoint).unwrap();
    assert!(!checkpoint.join("model.safetensors").exists());
    advance(&mut trainer, 10);
    let mut resumed = Trainer::resume(&Config { threads: 1, ..config.clone() }, &checkpoint).unwrap();
    assert_eq!(resumed.steps_done(), 6);
    advance(&mut resumed, 10);
    assert_eq!(bits(resumed.weights()), bits(trainer.weights()));
    advance(&mut trainer, 60);
    let last = trainer.step().unwrap().loss;
    assert!(last < first, "{first} to {last}");

    let unmerged = logits(&mut resumed);
    resumed.save(&checkpoint).unwrap();
    let merged = dir.path().join("merged");
    merge(&from, &checkpoint, &merged).unwrap();
    let mut whole = Config { from: merged, ..config.clone() };
    whole.lora.rank = 0;
    let together = logits(&mut Trainer::new(&whole).unwrap());
    assert!(apart(&unmerged, &together) < 1e-4, "{}", apart(&unmerged, &together));
    // and it may be trained further as an adapter, or whole
    let mut more = Trainer::new(&Config { adapter: checkpoint.clone(), ..config.clone() }).unwrap();
    assert_eq!(bits(&logits(&mut more)), bits(&unmerged));
    resumed.merge();
    assert!(apart(&logits(&mut resumed), &together) < 1e-4);
    assert_eq!(resumed.parameters(), resumed.model_parameters());
    resumed.step().unwrap();

    let mut other = config;
    other.lora.rank = 5;
    assert!(Trainer::resume(&other, &checkpoint).is_err());
}

#[test]
fn an_adapter_does_not_go_on_with_an_optimizer_whose_state_only_looks_alike() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let from = dir.path().join("base");
    base(&config, &from);
    let with = |kind, galore_rank| {
        let mut config = lora(&config, &from);
        (config.optim.kind, config.optim.galore_rank) = (kind, galore_rank);
        config
    };
    // moments of all an adapter's rank are as many as those of its values
    let (lion, adamw) = (with(OptimizerKind::Lion, 0), with(OptimizerKind::AdamW, 0));
    for (began, other) in [(with(OptimizerKind::Muon, 0), lion), (with(OptimizerKind::AdamW, 4), adamw)] {
        let checkpoint = dir.path().join("checkpoint");
        run(&began, 2).save(&checkpoint).unwrap();
        let e = Trainer::resume(&other, &checkpoint).err().unwrap();
        assert_eq!(e.status(), Status::MISMATCH);
        assert!(e.message().contains("was trained by") && e.message().contains("`optim`"), "{e}");
        Trainer::resume(&began, &checkpoint).unwrap();
    }
}

#[test]
fn what_training_alone_needs_is_checked_for_the_model_of_a_checkpoint_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let from = dir.path().join("base");
    base(&config, &from);
    for (setting, expected) in [
        ("model.dropout=1", "model.dropout = 1: expected 0 or more, below 1"),
        ("model.experts.balance=-1", "model.experts.balance = -1: expected 0 or more"),
    ] {
        let mut config = Config { from: from.clone(), ..config.clone() };
        config.set(setting).unwrap();
        assert_eq!(Trainer::new(&config).err().unwrap().message(), expected);
    }
}

#[test]
fn a_merged_model_is_trained_in_all_its_matrices_by_its_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let from = dir.path().join("base");
    base(&config, &from);
    let mut config = lora(&config, &from);
    (config.optim.galore_rank, config.optim.galore_every, config.optim.decay) = (4, 100, 0.0);
    let mut trainer = run(&config, 3);
    trainer.merge();
    let before = bits(trainer.weights());
    trainer.step().unwrap();
    let moved = bits(trainer.weights()).iter().zip(&before).filter(|(a, b)| a != b).count();
    assert!(moved * 4 > before.len() * 3, "{moved} of {} values moved", before.len());
    // and goes on with the same bits
    let checkpoint = dir.path().join("checkpoint");
    trainer.save(&checkpoint).unwrap();
    config.lora.rank = 0;
    let mut resumed = Trainer::resume(&config, &checkpoint).unwrap();
    advance(&mut resumed, 2);
    advance(&mut trainer, 2);
    assert_eq!(bits(resumed.weights()), bits(trainer.weights()));
}

#[test]
fn a_model_trained_further_keeps_what_its_tokenizer_came_with() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = setup(dir.path());
    config.model.context = 64;
    let from = dir.path().join("base");
    base(&config, &from);
    let files =
        [("tokenizer_config.json", r#"{"add_bos_token": false}"#), ("chat_template.jinja", "{{ messages }}")];
    for (name, text) in files {
        fs::write(from.join(name), text).unwrap();
    }
    let config = Config { from, ..config };
    let out = dir.path().join("tuned");
    Trainer::new(&config).unwrap().save(&out).unwrap();
    for (name, text) in files {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), text);
    }
    // conversations bring the template that the model learns, which an older one must not overrule
    Trainer::new(&conversations(dir.path(), &config)).unwrap().save(&out).unwrap();
    assert!(fs::read_to_string(out.join("tokenizer_config.json")).unwrap().contains("assistant:"));
    assert!(!out.join("chat_template.jinja").exists());
}

/// Conversations with one answer each, which follows from the question.
fn conversations(dir: &Path, config: &Config) -> Config {
    let words = ["sun", "moon", "rain", "wind"];
    let rows: String = (0..200)
        .map(|i| {
            let (a, b) = (words[i % 4], words[(i + 1) % 4]);
            let row = serde_json::json!({"messages": [{"role": "user", "content": format!("{a} {i}")},
                {"role": "assistant", "content": format!("{b} {b}")}]});
            row.to_string() + "\n"
        })
        .collect();
    let (input, template) = (dir.join("chats.jsonl"), dir.join("template.jinja"));
    fs::write(&input, rows).unwrap();
    fs::write(
        &template,
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    )
    .unwrap();
    let prepared = prepare(&PrepareOptions {
        inputs: vec![input.into()],
        tokenizer: dir.join("tokenizer.json"),
        output: dir.join("chats"),
        chat: true,
        template: Some(template),
        ..Default::default()
    })
    .unwrap();
    assert!(prepared.held_out_tokens > 0);
    Config { data: dir.join("chats"), length: 64, ..config.clone() }
}

#[test]
fn only_answers_are_learned_from_conversations_and_a_stop_at_any_step_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = setup(dir.path());
    config.model.context = 64;
    let mut config = conversations(dir.path(), &config);
    (config.optim.rate, config.accumulate, config.steps) = (1e-2, 2, 160);
    let mut trainer = Trainer::new(&config).unwrap();
    let learned = trainer.data()[0].train.learned();
    assert!(learned > 0 && learned * 2 < trainer.data()[0].train.tokens(), "{learned}");
    let expected = run(&config, 9);
    let checkpoint = dir.path().join("checkpoint");
    for at in [1, 4, 8] {
        run(&config, at).save(&checkpoint).unwrap();
        let mut resumed = Trainer::resume(&config, &checkpoint).unwrap();
        advance(&mut resumed, 9 - at);
        assert_eq!(bits(resumed.weights()), bits(expected.weights()), "{at}");
    }
    let template = fs::read_to_string(checkpoint.join("tokenizer_config.json")).unwrap();
    assert!(template.contains("chat_template") && template.contains("assistant:"));
    advance(&mut trainer, 150);
    let held_out = trainer.evaluate(0).unwrap();
    assert!(held_out.nats_per_token < 0.3, "{held_out:?}: the answers follow from the questions");
    assert!(held_out.tokens < trainer.data()[0].held_out.as_ref().unwrap().tokens() / 2);
}

#[test]
fn samples_that_are_cut_before_their_answer_make_room_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = setup(dir.path());
    config.model.context = 64;
    let config = conversations(dir.path(), &config);
    let of = |length| Trainer::new(&Config { length, batch: 1, ..config.clone() }).unwrap();
    let e = of(3).step().unwrap_err();
    assert!(e.message().contains("answers lie beyond 3 tokens; `length` must reach them"), "{e}");
    // the first length that reaches any answer does not reach all
    let mut trainer = (4..64).map(of).find_map(|mut t| t.step().is_ok().then_some(t)).unwrap();
    advance(&mut trainer, 29);
    let checkpoint = dir.path().join("checkpoint");
    trainer.save(&checkpoint).unwrap();
    let state = fs::read_to_string(checkpoint.join("training.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert!(state["step"] == 30 && state["sample"].as_u64().unwrap() > 30, "{}", state["sample"]);
}

#[test]
fn conversations_in_one_window_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = setup(dir.path());
    config.model.context = 64;
    let config = conversations(dir.path(), &config);
    // rotary positions, which say how far apart tokens are, and learned ones, which say where each is
    for model in [config.model.clone(), config.model.clone().gpt2_design()] {
        let from = dir.path().join("trained");
        base(&Config { model, ..config.clone() }, &from);
        // with every conversation alone in its window the loss is the same
        let loss = |length: usize| {
            let config = Config { from: from.clone(), length, batch: 1, ..config.clone() };
            Trainer::new(&config).unwrap().evaluate(0).unwrap()
        };
        let (packed, alone) = (loss(64), loss(36));
        assert_eq!(packed.tokens, alone.tokens);
        assert!((packed.nats_per_token - alone.nats_per_token).abs() < 1e-4, "{packed:?} {alone:?}");
    }
}

#[test]
fn a_run_ends_when_evaluations_no_longer_become_better_and_keeps_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = setup(dir.path());
    (config.steps, config.eval_every, config.save_every, config.patience) = (400, 2, 2, 3);
    // nothing is learned with this rate
    (config.optim.rate, config.optim.min_rate) = (1e-30, 0.0);
    let mut stopped = None;
    let summary = train(&config, &mut |event| {
        if let Event::Stopped(n) = event {
            stopped = Some(*n);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(summary.early && summary.steps == 8 && stopped == Some(3), "{summary:?}");
    // the same command finds it ended; with more patience it goes on
    let mut again = |patience| {
        config.patience = patience;
        train(&config, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let same = again(3);
    assert!(same.early && same.steps == 8 && same.checkpoint == summary.checkpoint, "{same:?}");
    assert_eq!(again(4).steps, 10);
    let kept = llm_train::checkpoint::list(&config.out).unwrap();
    let metrics = fs::read_to_string(config.out.join("metrics.jsonl")).unwrap();
    let losses = metrics.lines().filter_map(|l| {
        serde_json::from_str::<serde_json::Value>(l).unwrap().get("held_out_nats_per_token")?.as_f64()
    });
    let best = losses.fold(f64::INFINITY, f64::min);
    assert!(kept.iter().any(|(_, s)| s.held_out == Some(best)), "the best checkpoint is kept");
    let page = fs::read_to_string(config.out.join("report.html")).unwrap();
    assert!(page.matches("<polyline").count() >= 5);
    assert!(fs::read_dir(config.out.join("events")).unwrap().count() >= 1);
}

#[test]
fn a_value_that_is_no_number_is_reported_with_its_place_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let from = dir.path().join("base");
    base(&config, &from);
    let path = from.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let at = 8 + header + text[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let whole = Config { from: from.clone(), ..config.clone() };
    let error = Trainer::new(&whole).unwrap().step().unwrap_err();
    assert!(error.message().contains("the weights of 1.Down"), "{error}");
    let error = Trainer::new(&whole).unwrap().evaluate(0).unwrap_err();
    assert!(error.message().contains("held-out loss NaN after step 0: the weights of 1.Down"), "{error}");
    // large, but numbers: the product with them is none
    let end = 8 + header + text[name]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[at..end].as_chunks_mut::<4>().0.fill(3e38f32.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let mut trainer = Trainer::new(&whole).unwrap();
    let before = bits(trainer.weights());
    let error = trainer.step().unwrap_err();
    assert!(error.message().contains("step 1") && error.message().contains("1.Down"), "{error}");
    assert_eq!(bits(trainer.weights()), before);
}

/// Text of short documents, whose borders attention does not cross.
fn documents(dir: &Path) -> Config {
    let config = Config { documents: true, ..setup(dir) };
    let text = dir.join("rows.jsonl");
    let rows = "{\"text\": \"sun moon rain\"}\n{\"text\": \"wind stone river\"}\n{\"text\": \"cloud\"}\n";
    fs::write(&text, rows.repeat(40)).unwrap();
    prepare(&PrepareOptions {
        inputs: vec![text.into()],
        tokenizer: dir.join("tokenizer.json"),
        output: dir.join("data"),
        ..Default::default()
    })
    .unwrap();
    config
}

#[test]
fn held_out_documents_are_evaluated_without_looking_across() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = documents(dir.path());
    (config.optim.rate, config.optim.min_rate, config.steps) = (1e-2, 1e-2, 40);
    let mut trainer = run(&config, 40);
    let measured = trainer.evaluate(0).unwrap();
    let file = trainer.data()[0].held_out.as_ref().unwrap();
    let mut ids = vec![0u32; file.tokens() as usize];
    file.read(0, &mut ids).unwrap();
    // every document of every window alone
    let (last, mut nats, mut tokens) = (ids.len() - 1, 0.0, 0);
    for first in (0..last).step_by(16) {
        let (mut from, end) = (first, (first + 16).min(last));
        while from < end {
            // the token 0 ends a document
            let to = (from..end).find(|i| ids[*i] == 0).map_or(end, |i| i + 1);
            let logits = trainer.logits(&ids[from..to]).unwrap();
            let rows = logits.chunks(logits.len() / (to - from));
            for (row, target) in rows.zip(&ids[from + 1..=to]) {
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                nats += sum.ln() - f64::from(row[*target as usize]);
                tokens += 1;
            }
            from = to;
        }
    }
    assert_eq!(measured.tokens, tokens);
    let expected = nats / tokens as f64;
    assert!((measured.nats_per_token - expected).abs() < 1e-4, "{measured:?}, expected {expected}");
}

#[test]
fn text_with_document_borders_is_learned_without_looking_across() {
    let dir = tempfile::tempdir().unwrap();
    let config = documents(dir.path());
    let with = run(&config, 3);
    let without = run(&Config { documents: false, ..config }, 3);
    assert_ne!(bits(with.weights()), bits(without.weights()));
}
