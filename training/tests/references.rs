//! Every reference checkpoint that `from=` opens: the trainer computes what the reference does, and what it trained is
//! what libllm runs.

use llm::adapter::Adapter;
use llm_convert::adapter::{AdapterOptions, convert_adapter};
use llm_format::quant::Type;
use llm_train::{Config, Recompute, Trainer};

#[allow(dead_code)] // each test of the crate uses a part of it
mod common;
use common::{bits, setup};
#[path = "../../tests/support/mod.rs"]
mod support;
use support::{Reference, adapted, furthest, logits, model, runtime};

/// A run of one step from `reference`.
fn from(setup: &Config, reference: &Reference) -> Config {
    let mut config = Config { from: reference.dir.clone(), length: 16, steps: 1, ..setup.clone() };
    (config.optim.rate, config.optim.warmup) = (1e-3, 0);
    config
}

fn ids(reference: &Reference, run: &str) -> (Vec<i32>, Vec<u32>) {
    let ids = reference.ids(&format!("{run}.input_ids"));
    (ids.clone(), ids.iter().map(|id| *id as u32).collect())
}

#[test]
fn the_trainer_computes_the_logits_of_every_reference() {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path());
    for reference in Reference::all() {
        let name = &reference.name;
        let mut trainer = Trainer::new(&from(&setup, &reference)).unwrap_or_else(|e| panic!("{name}: {e}"));
        for run in reference.runs() {
            let expected = reference.floats(&format!("{run}.logits_exact"));
            let got = trainer.logits(&ids(&reference, &run).1).unwrap();
            let off = furthest(&got, &expected);
            let squares = got.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            let rms = (squares / got.len() as f64).sqrt();
            let most = |what: &str| reference.number(&run, &format!("/tolerance/{what}"));
            assert!(f64::from(off) <= most("max_abs") && rms <= most("rms"), "{name}, {run}: {off}, {rms}");
        }
    }
}

#[test]
fn a_step_from_every_reference_lowers_the_loss_and_libllm_runs_what_it_gave() {
    let dir = tempfile::tempdir().unwrap();
    let (setup, runtime) = (setup(dir.path()), runtime(2, None));
    for reference in Reference::all() {
        let name = &reference.name;
        let config = from(&setup, &reference);
        let mut trainer = Trainer::new(&config).unwrap();
        let before = trainer.evaluate(0).unwrap().nats_per_token;
        trainer.step().unwrap();
        let after = trainer.evaluate(0).unwrap().nats_per_token;
        assert!(after < before, "{name}: {before} to {after}");
        let mut alone =
            Trainer::new(&Config { threads: 1, recompute: Recompute::Block, ..config.clone() }).unwrap();
        alone.step().unwrap();
        assert!(bits(alone.weights()) == bits(trainer.weights()), "{name}: by one thread, computed again");
        let (ids, own) = ids(&reference, "short");
        let expected = trainer.logits(&own).unwrap();
        let out = dir.path().join("tuned");
        trainer.save(&out).unwrap();
        let again = Trainer::new(&Config { from: out.clone(), ..config }).unwrap().logits(&own).unwrap();
        assert_eq!(bits(&again), bits(&expected), "{name}");
        let options = reference.options(ids.len(), ids.len());
        let run = logits(&model(&runtime, &out, Type::F32), &options, &ids);
        assert!(furthest(&run, &expected) < 2e-4, "{name}: {} apart", furthest(&run, &expected));
    }
}

#[test]
fn an_adapter_of_every_reference_lowers_the_loss_and_libllm_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let (setup, runtime) = (setup(dir.path()), runtime(2, None));
    for reference in Reference::all() {
        let name = &reference.name;
        let mut config = from(&setup, &reference);
        (config.lora.rank, config.lora.alpha, config.optim.rate) = (4, 8.0, 1e-2);
        let mut trainer = Trainer::new(&config).unwrap();
        let before = trainer.evaluate(0).unwrap().nats_per_token;
        trainer.step().unwrap();
        let after = trainer.evaluate(0).unwrap().nats_per_token;
        assert!(after < before, "{name}: {before} to {after}");
        let (ids, own) = ids(&reference, "short");
        let expected = trainer.logits(&own).unwrap();
        let (peft, out) = (dir.path().join("adapter"), dir.path().join("adapter.llm"));
        trainer.save(&peft).unwrap();
        convert_adapter(&peft, &reference.dir, &out, &AdapterOptions::default()).unwrap();
        let base = model(&runtime, &reference.dir, Type::F32);
        let adapter = Adapter::open_path(&base, &out).unwrap();
        let run = adapted(&base, &reference.options(ids.len(), ids.len()), &ids, &[(adapter, 1.0)]);
        assert!(furthest(&run, &expected) < 2e-4, "{name}: {} apart", furthest(&run, &expected));
    }
}
