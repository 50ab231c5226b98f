//! Adapters that `peft` made for reference checkpoints, and ranks and factors of some matrices.

use std::path::Path;

use llm::adapter::Adapter;
use llm::error::Status;
use llm_convert::adapter::{AdapterOptions, convert_adapter};
use llm_format::quant::Type;
use llm_train::{Config, Trainer, merge};
use safetensors::SafeTensors;

#[allow(dead_code)] // each test of the crate uses a part of it
mod common;
use common::{advance, bits, run, setup};
#[path = "../../tests/support/mod.rs"]
mod support;
use support::{Reference, adapted, furthest, model, runtime};

/// The logits of the last tokens that stand beside an adapter.
fn expected(adapter: &Path) -> Vec<f32> {
    let bytes = std::fs::read(adapter.join("logits.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor("logits").unwrap().data();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// `testdata/peft/make.py` made them: fused matrices, matrices stored turned round, patterns of ranks and scales,
/// scales by the root of the rank, latent attention.
#[test]
fn adapters_made_by_peft_give_its_logits_here_merged_and_after_further_training_in_libllm() {
    let dir = tempfile::tempdir().unwrap();
    let (setup, runtime) = (setup(dir.path()), runtime(2, None));
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/peft");
    for reference in Reference::all().into_iter().filter(|r| made.join(&r.name).is_dir()) {
        let (name, source) = (&reference.name, made.join(&reference.name));
        let mut config = Config { from: reference.dir.clone(), length: 16, steps: 2, ..setup.clone() };
        (config.optim.rate, config.optim.warmup) = (1e-3, 0);
        let adapting = Config { adapter: source.clone(), ..config.clone() };
        let mut trainer = Trainer::new(&adapting).unwrap_or_else(|e| panic!("{name}: {e}"));
        let ids = reference.ids("short.input_ids");
        let own: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        let expected = expected(&source);
        let most = reference.number("short", "/tolerance/max_abs") as f32;
        let off = |all: &[f32]| furthest(&all[all.len() - expected.len()..], &expected);
        let apart = trainer.logits(&own).unwrap();
        assert!(off(&apart) <= most, "{name}: {}", off(&apart));

        let merged = dir.path().join(format!("{name}-merged"));
        merge(&reference.dir, &source, &merged).unwrap();
        let together = Trainer::new(&Config { from: merged, ..config }).unwrap().logits(&own).unwrap();
        assert!(off(&together) <= 2.0 * most, "{name}, merged: {}", off(&together));

        trainer.step().unwrap();
        let tuned = trainer.logits(&own).unwrap();
        assert!(furthest(&tuned, &apart) > 1e-4, "{name}: nothing was learned");
        let (peft, out) = (dir.path().join(format!("{name}-tuned")), dir.path().join("adapter.llm"));
        trainer.save(&peft).unwrap();
        convert_adapter(&peft, &reference.dir, &out, &AdapterOptions::default()).unwrap();
        let base = model(&runtime, &reference.dir, Type::F32);
        let adapter = Adapter::open_path(&base, &out).unwrap();
        let run = adapted(&base, &reference.options(ids.len(), ids.len()), &ids, &[(adapter, 1.0)]);
        assert!(furthest(&run, &tuned) < 2e-4, "{name}: {} apart", furthest(&run, &tuned));
        let mut resumed = Trainer::resume(&adapting, &peft).unwrap_or_else(|e| panic!("{name}: {e}"));
        resumed.step().unwrap();
        trainer.step().unwrap();
        assert_eq!(bits(resumed.weights()), bits(trainer.weights()), "{name}");
    }
}

#[test]
fn a_run_with_ranks_and_factors_of_some_matrices_resumes_bit_by_bit_with_these_alone() {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path());
    let (from, checkpoint) = (dir.path().join("base"), dir.path().join("adapter"));
    run(&setup, 1).save(&from).unwrap();
    let mut config = Config { from, length: 16, ..setup };
    for assignment in ["lora.rank=4", "rank_pattern=o_proj=2,down_proj=7", r"alpha_pattern=layers\.0\..*=3"] {
        config.set(assignment).unwrap();
    }
    let mut trainer = run(&config, 2);
    trainer.save(&checkpoint).unwrap();
    let mut resumed = Trainer::resume(&config, &checkpoint).unwrap();
    advance(&mut resumed, 3);
    advance(&mut trainer, 3);
    assert_eq!(bits(resumed.weights()), bits(trainer.weights()));
    for other in ["rank_pattern=o_proj=2,down_proj=6", "alpha_pattern=[]", r"alpha_pattern=layers\.0\..*=5"] {
        let mut config = config.clone();
        config.set(other).unwrap();
        let error = Trainer::resume(&config, &checkpoint).err().unwrap();
        assert_eq!(error.status(), Status::MISMATCH, "{other}");
        assert!(error.message().contains("the configuration asks for rank 4"), "{error}");
    }
}
