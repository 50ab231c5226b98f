//! Whole runs: what a run makes depends on its configuration alone, and a checkpoint is whole at every moment.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use llm::error::Status;
use llm_train::{Config, Event, ModelConfig, PrepareOptions, Schedule, Source, TokenizerOptions, Trainer};
use llm_train::{prepare, train, train_tokenizer};
use serde_json::{Value, json};

mod common;
use common::{advance, bits, run, settings, setup};

#[test]
fn designs_learn_one_batch_by_heart() {
    let dir = tempfile::tempdir().unwrap();
    let base = setup(dir.path());
    for (name, model) in [("llama", base.model.clone()), ("gpt2", base.model.clone().gpt2_design())] {
        let mut config = Config { model, ..base.clone() };
        config.optim.rate = 1e-2;
        config.optim.min_rate = 1e-2;
        config.optim.decay = 0.0;
        config.steps = 1000;
        // One offset: the data is as long as one sample.
        let cut = dir.path().join("one");
        std::fs::create_dir_all(&cut).unwrap();
        let text = dir.path().join("one.txt");
        std::fs::write(&text, "sun moon rain wind stone river cloud sun").unwrap();
        let tokenizer = dir.path().join("tokenizer.json");
        let options = PrepareOptions {
            inputs: vec![text.into()],
            tokenizer,
            output: cut.clone(),
            held_out: 0.0,
            ..Default::default()
        };
        let n = prepare(&options).unwrap().train_tokens as usize;
        config.data = cut;
        config.model.context = n - 1;
        let mut trainer = Trainer::new(&config).unwrap();
        let first = trainer.step().unwrap().loss;
        let last = (0..80).map(|_| trainer.step().unwrap().loss).last().unwrap();
        assert!(first > 4.0 && last < 0.05, "{name}: {first} to {last}");
    }
}

#[test]
fn a_resumed_run_gives_the_same_bits_as_one_that_was_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    for gpt2 in [false, true] {
        let mut config = setup(dir.path());
        if gpt2 {
            config.model = ModelConfig { dropout: 0.2, ..config.model.gpt2_design() };
        }
        config.accumulate = 2;
        let whole = run(&config, 9);
        let checkpoint = dir.path().join("checkpoint");
        run(&config, 5).save(&checkpoint).unwrap();
        let mut resumed = Trainer::resume(&config, &checkpoint).unwrap();
        assert_eq!(resumed.steps_done(), 5);
        advance(&mut resumed, 4);
        assert_eq!(bits(whole.weights()), bits(resumed.weights()), "gpt2: {gpt2}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let expected = bits(run(&Config { threads: 1, ..config.clone() }, 4).weights());
    for threads in [2, 3] {
        assert_eq!(
            bits(run(&Config { threads, ..config.clone() }, 4).weights()),
            expected,
            "{threads} threads"
        );
    }
}

#[test]
fn two_passes_of_a_batch_are_one_pass_of_twice_the_batch_up_to_the_order_of_sums() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let mut two = Trainer::new(&Config { batch: 3, accumulate: 2, ..config.clone() }).unwrap();
    let mut one = Trainer::new(&Config { batch: 6, ..config }).unwrap();
    for _ in 0..3 {
        let (a, b) = (two.step().unwrap(), one.step().unwrap());
        assert!((a.loss - b.loss).abs() < 1e-5 && (a.grad_norm - b.grad_norm).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn a_run_that_is_broken_off_continues_and_ends_like_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let go = |_: &Event| ControlFlow::Continue(());
    let straight = train(&config, &mut { go }).unwrap();
    let config = Config { out: dir.path().join("second"), ..config };
    let mut broken = |e: &Event| match e {
        Event::Step(r) if r.step == 6 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    assert_eq!(train(&config, &mut broken).unwrap().steps, 6);
    let second = train(&config, &mut { go }).unwrap();
    let read = |p: &PathBuf| std::fs::read(p.join("model.safetensors")).unwrap();
    assert!(read(&straight.checkpoint) == read(&second.checkpoint));
    let metrics = std::fs::read_to_string(config.out.join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = metrics
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter(|r| r.get("loss").is_some())
        .map(|r| r["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    let kept = llm_train::checkpoint::list(&config.out).unwrap();
    assert!(kept.len() <= config.keep + 1 && kept.iter().any(|(_, s)| s.step == 12), "{}", kept.len());
}

#[test]
fn every_step_says_which_share_of_the_machine_it_used() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let mut told = None;
    let started = &mut |event: &Event| {
        if let Event::Started { peak, .. } = event {
            told = *peak;
        }
        ControlFlow::Continue(())
    };
    train(&config, started).unwrap();
    let metrics = std::fs::read_to_string(config.out.join("metrics.jsonl")).unwrap();
    let rows = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let steps: Vec<Value> = rows.filter(|row| row["loss"].is_f64()).collect();
    assert_eq!(steps.len(), 12);
    for row in &steps {
        let share = told.map(|peak| row["flops"].as_f64().unwrap() / peak);
        let close = |mfu: f64| share.is_some_and(|share| share > 0.0 && (mfu / share - 1.0).abs() < 1e-12);
        assert!(row["mfu"].as_f64().map_or(share.is_none(), close), "{row}, {told:?}");
    }
}

/// A run in `dir`, whose data is there already, that saves at every step and goes on for `steps`, on which its rate
/// does not depend.
fn saving(dir: &Path, steps: u64) -> Config {
    let mut config = Config { steps, save_every: 1, eval_every: 0, ..settings(dir) };
    config.optim.schedule = Schedule::Constant;
    config
}

/// Not a claim of its own: the child of the next test, which saves until it is killed.
#[test]
fn child_that_saves_until_killed() {
    let Some(dir) = std::env::var_os("LLM_TRAIN_TEST_SAVE") else { return };
    let config = saving(Path::new(&dir), 1 << 40);
    train(&config, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// Number `i` of those that `seed` gives, 0 to 1 (splitmix64).
fn draw(seed: u64, i: u64) -> f64 {
    let z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as f64 / u64::MAX as f64
}

/// The losses of a run, step by step, as its file has them.
fn losses(config: &Config) -> Vec<(u64, f64)> {
    let metrics = std::fs::read_to_string(config.out.join("metrics.jsonl")).unwrap();
    let rows = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter_map(|row| Some((row["step"].as_u64()?, row["loss"].as_f64()?))).collect()
}

#[test]
fn a_kill_at_any_moment_leaves_checkpoints_that_load_and_a_run_that_ends_like_one_without() {
    let dir = tempfile::tempdir().unwrap();
    setup(dir.path());
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    // LLM_TRAIN_KILLS=200 for a long run
    let rounds = number("LLM_TRAIN_KILLS").unwrap_or(6);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("LLM_TRAIN_KILLS_SEED").unwrap_or(now);
    println!("moments as with LLM_TRAIN_KILLS_SEED={seed}");
    let config = saving(dir.path(), 1 << 40);
    let newest =
        || llm_train::checkpoint::list(&config.out).ok().and_then(|l| Some(l.last()?.1.step)).unwrap_or(0);
    let mut last = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_saves_until_killed", "--quiet"])
            .env("LLM_TRAIN_TEST_SAVE", dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut wait = |step| {
            while newest() < step {
                assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        // how long steps take that are saved; then strike at some moment of the next two
        wait(last + 1);
        let start = Instant::now();
        wait(last + 3);
        let moment = start.elapsed().mul_f64(draw(seed, round));
        println!("round {round}: {moment:?} of {:?} behind step {}", start.elapsed(), newest());
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = llm_train::checkpoint::list(&config.out).unwrap();
        assert!(!found.is_empty());
        for (path, state) in &found {
            let trainer = Trainer::resume(&config, path).unwrap();
            assert_eq!(trainer.steps_done(), state.step);
        }
        last = newest();
    }
    let ended = saving(dir.path(), last + 3);
    let never = Config { out: dir.path().join("never"), save_every: 0, ..ended.clone() };
    let [ours, theirs] = [&ended, &never].map(|config| {
        let summary = train(config, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(summary.steps, last + 3);
        let file = |name: &str| std::fs::read(summary.checkpoint.join(name)).unwrap();
        (file("model.safetensors"), file("optimizer.safetensors"), losses(config))
    });
    assert!(ours.0 == theirs.0 && ours.1 == theirs.1, "weights or moments after {} steps", last + 3);
    assert_eq!(ours.2, theirs.2);
    assert_eq!(ours.2.len() as u64, last + 3);
    let names = std::fs::read_dir(&ended.out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let begun: Vec<String> = names.filter(|name| name.starts_with(".step-")).collect();
    assert!(begun.is_empty(), "{begun:?}: what kills left of checkpoints");
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let checkpoint = dir.path().join("checkpoint");
    run(&config, 1).save(&checkpoint).unwrap();
    let mut other = config.clone();
    other.model.layers = 3;
    let e = Trainer::resume(&other, &checkpoint).err().unwrap();
    assert!(e.message().contains("model.layers is 2 there, the configuration asks for 3"), "{e}");
    std::fs::write(checkpoint.join("model.safetensors"), b"short").unwrap();
    let e = Trainer::resume(&config, &checkpoint).err().unwrap();
    assert!(e.message().contains("model.safetensors"), "{e}");
}

#[test]
fn a_checkpoint_says_which_token_ends_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let out = dir.path().join("checkpoint");
    let said = |config: &Config| {
        Trainer::new(config).unwrap().save(&out).unwrap();
        ["config.json", "generation_config.json"].map(|name| {
            let text = std::fs::read_to_string(out.join(name)).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()["eos_token_id"].clone()
        })
    };
    assert_eq!(said(&config), [json!(0), json!(0)]);

    let tokenizer = dir.path().join("second.json");
    let inputs: Vec<Source> = vec![dir.path().join("text.txt").into()];
    let special = vec!["<pad>".to_string(), "<|endoftext|>".to_string()];
    train_tokenizer(&TokenizerOptions {
        inputs: inputs.clone(),
        vocab: 280,
        special,
        output: tokenizer.clone(),
        ..Default::default()
    })
    .unwrap();
    let with = |end: Option<&str>, name: &str| {
        let (inputs, tokenizer, output) = (inputs.clone(), tokenizer.clone(), dir.path().join(name));
        let end = end.map(String::from);
        prepare(&PrepareOptions { inputs, tokenizer, end, output: output.clone(), ..Default::default() })
            .unwrap();
        Config { data: output, ..config.clone() }
    };
    let second = with(Some("<|endoftext|>"), "second");
    assert_eq!(said(&second), [json!(1), json!(1)]);
    // of a model that is trained further its own counts, also where no file of generation says it
    let from = dir.path().join("base");
    std::fs::rename(&out, &from).unwrap();
    std::fs::remove_file(from.join("generation_config.json")).unwrap();
    assert_eq!(said(&Config { from, ..second }), [json!(1), json!(1)]);
    assert_eq!(said(&with(Some(""), "third")), [Value::Null, Value::Null]);
}

#[test]
fn without_held_out_text_the_last_checkpoints_alone_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let (inputs, tokenizer) = (vec![dir.path().join("text.txt").into()], dir.path().join("tokenizer.json"));
    let output = dir.path().join("whole");
    prepare(&PrepareOptions {
        inputs,
        tokenizer,
        output: output.clone(),
        held_out: 0.0,
        ..Default::default()
    })
    .unwrap();
    let config = Config { data: output, steps: 8, save_every: 2, keep: 2, ..config };
    train(&config, &mut |_| ControlFlow::Continue(())).unwrap();
    let kept = llm_train::checkpoint::list(&config.out).unwrap();
    let steps: Vec<u64> = kept.iter().map(|(_, s)| s.step).collect();
    assert_eq!(steps, [6, 8]);
}

#[test]
fn a_checkpoint_takes_the_place_of_an_older_one_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(&setup(dir.path())).unwrap();
    let e = trainer.save(&dir.path().join("data")).unwrap_err();
    assert_eq!(e.status(), Status::INVALID_ARG);
    assert!(e.message().contains("data: is there and is no checkpoint"), "{e}");
    assert!(dir.path().join("data/train.tokens").exists());
    let out = dir.path().join("checkpoint");
    std::fs::create_dir(&out).unwrap();
    for _ in 0..2 {
        trainer.save(&out).unwrap();
    }
    assert!(out.join("training.json").exists());
}
