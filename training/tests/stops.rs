//! How a run ends before its last step, and what it finds of itself when it goes on.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;

use llm_train::{Config, Event, Summary, Trainer, checkpoint, train};
use serde_json::Value;

mod common;
use common::{bits, run, setup};

/// Trains until `stop` says so; with the steps of the evaluations that were made.
fn until(config: &Config, stop: impl Fn(&Event) -> bool) -> (Summary, Vec<u64>) {
    let mut evaluated = Vec::new();
    let summary = train(config, &mut |event| {
        if let Event::Evaluated(step, _) = event {
            evaluated.push(*step);
        }
        if stop(event) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    (summary.unwrap(), evaluated)
}

/// The rows of `metrics.jsonl`.
fn rows(config: &Config) -> Vec<Value> {
    let text = fs::read_to_string(config.out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_that_is_stopped_while_it_evaluates_keeps_its_steps() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { save_every: 0, ..setup(dir.path()) };
    let (summary, _) = until(&config, |e| matches!(e, Event::Evaluated(4, _)));
    assert_eq!(summary.steps, 4);
    assert!(summary.checkpoint.join("training.json").is_file(), "{}", summary.checkpoint.display());
    let (summary, evaluated) = until(&config, |_| false);
    assert_eq!((summary.steps, evaluated), (12, vec![8, 12]));
    let whole = Trainer::resume(&config, &summary.checkpoint).unwrap();
    assert_eq!(bits(whole.weights()), bits(run(&config, 12).weights()));
    let steps: Vec<u64> =
        rows(&config).iter().filter(|r| r["loss"].is_f64()).map(|r| r["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
}

#[test]
fn who_stops_a_run_waits_for_its_checkpoint_and_not_for_an_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    for step in [3, 4] {
        let config = Config { out: dir.path().join(format!("run-{step}")), ..config.clone() };
        let (summary, evaluated) = until(&config, |e| matches!(e, Event::Step(r) if r.step == step));
        assert_eq!((summary.steps, evaluated), (step, vec![]));
        assert!(summary.evaluation.is_none() && summary.checkpoint.join("training.json").is_file());
    }
}

#[test]
fn an_evaluation_that_is_broken_off_costs_no_step() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let expected = bits(run(&config, 12).weights());
    // one in between, and the last, which reads all of the held-out text
    for (step, before, after) in [(4, vec![], vec![8, 12]), (12, vec![4, 8], vec![12])] {
        let config = Config { out: dir.path().join(format!("run-{step}")), ..config.clone() };
        let asked = Cell::new(0);
        let (summary, evaluated) = until(&config, |e| {
            asked.set(asked.get() + u32::from(matches!(e, Event::Evaluating(s) if *s == step)));
            asked.get() == 2
        });
        assert_eq!((summary.steps, evaluated, asked.get()), (step, before, 2));
        let (place, state) = checkpoint::list(&config.out).unwrap().pop().unwrap();
        assert_eq!((&place, state.step, state.held_out), (&summary.checkpoint, step, None));
        let (summary, evaluated) = until(&config, |_| false);
        assert_eq!((summary.steps, evaluated), (12, after));
        let whole = Trainer::resume(&config, &summary.checkpoint).unwrap();
        assert_eq!(bits(whole.weights()), expected);
        assert!(whole.held_out().is_some() && until(&config, |_| false).1.is_empty());
    }
}

#[test]
fn checkpoints_are_compared_by_the_windows_that_every_evaluation_saw() {
    let dir = tempfile::tempdir().unwrap();
    // not a multiple of the batch
    let config = Config { eval_sequences: 4, ..setup(dir.path()) };
    let (summary, _) = until(&config, |_| false);
    let kept = checkpoint::list(&config.out).unwrap();
    let last = kept.last().unwrap().1.held_out.unwrap();
    let mut trainer = Trainer::resume(&config, &summary.checkpoint).unwrap();
    let (some, all) = (trainer.evaluate(4).unwrap(), trainer.evaluate(0).unwrap());
    assert!(some.tokens < all.tokens && (some.nats_per_token - all.nats_per_token).abs() > 1e-6);
    // numbers of a file, up to their last digit
    assert!((last - some.nats_per_token).abs() < 1e-12, "{last}, {some:?}, {all:?}");
    let told = summary.evaluation.unwrap();
    assert_eq!((told.nats_per_token, told.tokens), (all.nats_per_token, all.tokens));
}

#[test]
fn what_metrics_hold_stays_behind_a_damaged_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    until(&config, |e| matches!(e, Event::Step(r) if r.step == 8));
    let before = rows(&config);
    let path = config.out.join("metrics.jsonl");
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"step\": 9, \xff\xfe").unwrap();
    until(&config, |_| false);
    assert_eq!(rows(&config)[..before.len()], before);
    // what cannot be read is not written over
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let e = train(&Config { steps: 13, ..config }, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(e.message().contains("metrics.jsonl: "), "{e}");
}
