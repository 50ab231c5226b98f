//! Every optimizer: it learns, its state is as large as it says, and a run that is resumed gives the same bits.

use llm_train::{Config, OptimizerKind, Schedule, Trainer};

mod common;
use common::{advance, bits, run, setup};

/// Each optimizer with a rate that suits it, and its name.
fn all(base: &Config) -> Vec<(&'static str, Config)> {
    let with = |kind, rate: f32, galore_rank| {
        let mut config = base.clone();
        config.optim.kind = kind;
        (config.optim.rate, config.optim.min_rate) = (rate, rate / 10.0);
        (config.optim.galore_rank, config.optim.galore_every, config.optim.galore_scale) =
            (galore_rank, 5, 1.0);
        config
    };
    vec![
        ("adamw", with(OptimizerKind::AdamW, 1e-2, 0)),
        ("adamw8", with(OptimizerKind::AdamW8, 1e-2, 0)),
        ("lion", with(OptimizerKind::Lion, 1e-3, 0)),
        ("muon", with(OptimizerKind::Muon, 1e-2, 0)),
        ("galore, adamw", with(OptimizerKind::AdamW, 1e-2, 8)),
        ("galore, adamw8", with(OptimizerKind::AdamW8, 1e-2, 8)),
    ]
}

/// Mean loss of the last ten of `steps` steps.
fn learned(config: &Config, steps: u64) -> f64 {
    let mut trainer = Trainer::new(&Config { steps, ..config.clone() }).unwrap();
    let losses: Vec<f64> = (0..steps).map(|_| trainer.step().unwrap().loss).collect();
    losses[losses.len() - 10..].iter().sum::<f64>() / 10.0
}

#[test]
fn each_learns_and_eight_bits_learn_like_thirty_two() {
    let dir = tempfile::tempdir().unwrap();
    let base = setup(dir.path());
    let losses: Vec<(&str, f64)> = all(&base).iter().map(|(name, c)| (*name, learned(c, 150))).collect();
    println!("{losses:?}");
    for (name, loss) in &losses {
        assert!(*loss < 2.9, "{name} ends at {loss}; the first loss is 5.6");
    }
    assert!((losses[0].1 - losses[1].1).abs() < 0.05, "adamw {}, adamw8 {}", losses[0].1, losses[1].1);
}

#[test]
fn a_run_resumed_at_any_step_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("checkpoint");
    for (name, config) in all(&setup(dir.path())) {
        let expected = bits(run(&config, 7).weights());
        for at in [1, 5, 6] {
            run(&config, at).save(&checkpoint).unwrap();
            let mut resumed = Trainer::resume(&Config { threads: 1, ..config.clone() }, &checkpoint).unwrap();
            advance(&mut resumed, 7 - at);
            assert_eq!(bits(resumed.weights()), expected, "{name} at {at}");
        }
    }
}

#[test]
fn the_state_takes_the_memory_that_the_method_promises() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<(&str, f64)> = all(&setup(dir.path()))
        .iter()
        .map(|(name, c)| {
            let trainer = Trainer::new(c).unwrap();
            (*name, trainer.optimizer_bytes() as f64 / trainer.parameters() as f64)
        })
        .collect();
    let of = |name: &str| bytes.iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!(of("adamw"), 8.0, "{bytes:?}");
    assert_eq!(of("lion"), 4.0);
    assert!((2.0..2.3).contains(&of("adamw8")), "{bytes:?}");
    assert!((4.0..8.0).contains(&of("muon")), "{bytes:?}");
    assert!(of("galore, adamw") < of("adamw") && of("galore, adamw8") < of("adamw8"), "{bytes:?}");
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    let checkpoint = dir.path().join("checkpoint");
    run(&config, 1).save(&checkpoint).unwrap();
    let mut other = config.clone();
    other.optim.kind = OptimizerKind::Lion;
    let error = Trainer::resume(&other, &checkpoint).err().unwrap();
    let both = error.message().contains("by AdamW") && error.message().contains("for Lion");
    assert!(both && error.message().contains("`optim`"), "{error}");
    // what does not choose the optimizer may change
    let mut rate = config;
    (rate.optim.rate, rate.optim.schedule) = (1e-4, Schedule::Wsd);
    Trainer::resume(&rate, &checkpoint).unwrap();
}

#[test]
fn galore_with_an_optimizer_it_does_not_know_is_refused() {
    let mut config = Config::default();
    config.model.vocab = 300;
    (config.optim.kind, config.optim.galore_rank) = (OptimizerKind::Lion, 4);
    assert!(config.check().unwrap_err().message().contains("GaLore"));
}
