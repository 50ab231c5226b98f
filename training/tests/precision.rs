//! Runs with activations in bf16: they learn as those in f32 do, and give the same bits whatever is not asked to change
//! them; on the processor's own instructions and on matrix tiles, emulated where the machine has none.

use std::process::Command;

use llm_train::{Config, Precision, Recompute, Trainer};

mod common;
use common::{advance, bits, run, setup};

/// Losses of the first steps.
fn losses(config: &Config, steps: u64) -> Vec<f64> {
    let mut trainer = Trainer::new(config).unwrap();
    (0..steps).map(|_| trainer.step().unwrap().loss).collect()
}

/// In f32 and bf16 alike, but not the same; bf16 with any threads and recomputation, resumed or not, the same bits.
fn compare(base: &Config) {
    let bf16 = Config { precision: Precision::Bf16, ..base.clone() };
    let (exact, rounded) = (losses(base, 12), losses(&bf16, 12));
    println!("{exact:?}\n{rounded:?}");
    assert!(rounded[11] < rounded[0] - 0.3, "it learns nothing: {rounded:?}");
    assert!(exact != rounded);
    for (a, b) in exact.iter().zip(&rounded) {
        assert!((a - b).abs() < 0.01, "{exact:?}, at bf16 {rounded:?}");
    }
    let whole = run(&bf16, 6);
    let expected = bits(whole.weights());
    for recompute in [Recompute::Part, Recompute::Block] {
        let other = Config { threads: 1, recompute, ..bf16.clone() };
        assert_eq!(expected, bits(run(&other, 6).weights()), "{recompute:?}, one thread");
    }
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("checkpoint");
    run(&bf16, 3).save(&checkpoint).unwrap();
    let mut resumed = Trainer::resume(&bf16, &checkpoint).unwrap();
    advance(&mut resumed, 3);
    assert_eq!(expected, bits(resumed.weights()), "resumed");
}

#[test]
fn a_run_at_bf16_learns_like_one_in_f32_and_repeats_itself() {
    let dir = tempfile::tempdir().unwrap();
    let config = setup(dir.path());
    compare(&config);
    tiles(&config);
}

#[test]
fn it_does_so_without_a_unit_for_bf16() {
    // this test's process has chosen its instruction set; a new one is told
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "a_run_at_bf16_learns_like_one_in_f32_and_repeats_itself"]);
    let output = again.env("LLM_ISA", "avx2").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

/// The same on tiles; in the same test, for they stay in use once they are there. Not where another unit is asked for.
fn tiles(config: &Config) {
    if std::env::var_os("LLM_ISA").is_some() {
        return;
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        // a machine that has the unit used it above already
        let unit = llm_emulator::install();
        println!("tiles: {unit:?}");
        if unit == Some(llm_emulator::Unit::Emulated) {
            compare(config);
            assert!(llm_emulator::executed() > 0);
        } else if unit.is_none() {
            llm_testdata::not_run("training on matrix tiles: this machine has no AVX-512");
        }
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let _ = config;
}
