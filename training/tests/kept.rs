//! What a run keeps: the best evaluated state, whatever `save_every` is, and what it had before it went astray.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use llm::error::Status;
use llm_train::{Config, Event, Schedule, Summary, Trainer, checkpoint, train};

mod common;
use common::{advance, bits, run, setup};

/// Trains; with the steps whose checkpoints were written, and each evaluation's step and loss.
fn watched(config: &Config) -> (Summary, Vec<u64>, Vec<(u64, f64)>) {
    let (mut step, mut saved, mut evaluated) = (0, Vec::new(), Vec::new());
    let summary = train(config, &mut |event| {
        match event {
            Event::Step(report) => step = report.step,
            Event::Evaluated(after, evaluation) => evaluated.push((*after, evaluation.nats_per_token)),
            Event::Saved(_) => saved.push(step),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (summary.unwrap(), saved, evaluated)
}

fn by_loss(a: &(u64, f64), b: &(u64, f64)) -> Ordering {
    a.1.total_cmp(&b.1)
}

/// A checkpoint every four steps, an evaluation of all the held-out text every two.
fn twice(config: Config) -> Config {
    Config { eval_every: 2, eval_sequences: 0, save_every: 4, keep: 1, steps: 14, ..config }
}

/// That of the run's checkpoints the one with the lowest loss is that of `step`, with this `loss` and the weights that
/// there are after so many steps.
fn holds(config: &Config, step: u64, loss: f64) {
    let all = checkpoint::list(&config.out).unwrap();
    let losses = all.iter().filter_map(|(_, state)| Some((state.step, state.held_out?)));
    let (best, held_out) = losses.min_by(by_loss).unwrap();
    // numbers of a file, up to their last digit
    assert!(best == step && (held_out - loss).abs() < 1e-12, "{best}: {held_out}; {step}: {loss}");
    let (place, _) = all.iter().find(|(_, state)| state.step == step).unwrap();
    let mut trainer = Trainer::resume(config, place).unwrap();
    assert_eq!(bits(trainer.weights()), bits(run(config, step).weights()));
    assert_eq!(trainer.evaluate(0).unwrap().nats_per_token, loss);
}

#[test]
fn every_evaluation_that_is_the_best_so_far_leaves_a_checkpoint_and_no_step_leaves_two() {
    let dir = tempfile::tempdir().unwrap();
    let config = twice(setup(dir.path()));
    let (_, saved, evaluated) = watched(&config);
    let (mut expected, mut best) = (Vec::new(), f64::INFINITY);
    for (step, loss) in &evaluated {
        if *loss < best || step.is_multiple_of(4) || *step == 14 {
            expected.push(*step);
        }
        best = best.min(*loss);
    }
    assert_eq!(saved, expected, "{evaluated:?}");
    let (step, loss) = evaluated.into_iter().min_by(by_loss).unwrap();
    holds(&config, step, loss);
}

#[test]
fn the_best_stays_where_nothing_better_comes_also_when_that_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = twice(setup(dir.path()));
    // nothing is learned at this rate: the first evaluation stays the best
    (config.optim.rate, config.optim.min_rate) = (1e-30, 0.0);
    for (patience, expected) in [(0, &[2, 4, 8, 12, 14][..]), (3, &[2, 4, 8][..])] {
        let config = Config { patience, out: dir.path().join(format!("run-{patience}")), ..config.clone() };
        let (summary, saved, evaluated) = watched(&config);
        assert_eq!(saved, expected);
        assert_eq!(summary.early, patience > 0);
        let kept: Vec<u64> = checkpoint::list(&config.out).unwrap().iter().map(|(_, s)| s.step).collect();
        assert_eq!(kept, [2, summary.steps]);
        holds(&config, 2, evaluated[0].1);
    }
}

/// A rate at which no model learns, but for some steps all values stay numbers.
fn absurd(config: &Config) -> Config {
    let mut config = Config { divergence: 5, ..config.clone() };
    (config.optim.rate, config.optim.schedule, config.optim.warmup) = (4.0, Schedule::Constant, 0);
    config
}

#[test]
fn a_run_that_goes_astray_is_reported_with_its_numbers_and_keeps_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { eval_every: 0, ..setup(dir.path()) };
    config.optim.schedule = Schedule::Constant;
    let go = |_: &Event| ControlFlow::Continue(());
    train(&Config { steps: 4, ..config.clone() }, &mut { go }).unwrap();

    // a checkpoint is due at steps 8, 12 and so on
    let error = train(&Config { steps: 1000, ..absurd(&config) }, &mut { go }).unwrap_err();
    assert_eq!(error.status(), Status::BAD_STATE);
    let message = error.message();
    println!("{message}");
    let number = |before: &str| {
        let rest = &message[message.find(before).unwrap() + before.len()..];
        let end = rest.find([',', ' ', ':', ';']).unwrap_or(rest.len());
        rest[..end].parse::<f64>().unwrap()
    };
    let guessing = (Trainer::new(&config).unwrap().config().model.vocab as f64).ln();
    assert!(number("step ") >= 10.0 && number("for ") == 5.0, "{message}");
    assert!(number("loss ") > guessing + 1.0 && number("loss ") > 1.5 * number("usually "), "{message}");
    assert!((number(" and ") - guessing).abs() < 1e-3, "{message}");
    let name = message.split("the largest gradient is that of ").nth(1).unwrap();
    let places = ["0.", "1.", "Embedding", "FinalNorm"];
    assert!(places.iter().any(|place| name.starts_with(place)), "{message}");

    let kept: Vec<u64> = checkpoint::list(&config.out).unwrap().iter().map(|(_, s)| s.step).collect();
    assert_eq!(kept, [4]);
    // from there the run goes on
    let summary = train(&config, &mut { go }).unwrap();
    let whole = Trainer::resume(&config, &summary.checkpoint).unwrap();
    assert_eq!(bits(whole.weights()), bits(run(&config, 12).weights()));
}

#[test]
fn an_absurd_rate_is_reported_from_the_first_steps_and_runs_on_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = absurd(&setup(dir.path()));
    let mut trainer = Trainer::new(&config).unwrap();
    let error = (0..9).find_map(|_| trainer.step().err()).unwrap();
    let after = trainer.steps_done();
    assert!(error.message().contains("far above that for 5 steps in a row"), "{error}");
    // its weights stay as they were
    let before = bits(trainer.weights());
    assert_eq!(trainer.step().unwrap_err().status(), Status::BAD_STATE);
    assert_eq!(bits(trainer.weights()), before);
    advance(&mut Trainer::new(&Config { divergence: 0, ..config }).unwrap(), after + 1);
}

#[test]
fn a_run_that_learns_has_no_step_far_above_the_usual() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { divergence: 1, ..setup(dir.path()) };
    (config.optim.rate, config.optim.min_rate) = (1e-2, 1e-3);
    for model in [config.model.clone(), config.model.clone().gpt2_design()] {
        run(&Config { model, steps: 60, ..config.clone() }, 60);
    }
}
