//! How a run ends before its last step, and what it finds of itself when it goes on.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;

use llm_train::{Config, Event, Summary, Trainer, train};
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
