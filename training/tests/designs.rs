//! Every design from training to inference: its checkpoint is converted and gives the trainer's logits in libllm.

use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Session, SessionOptions};
use llm_train::{Config, ModelConfig, design};

#[allow(dead_code)] // each test of the crate uses a part of it
mod common;
use common::{run, setup};
#[path = "common/designs.rs"]
mod designs;

#[test]
fn a_converted_checkpoint_of_every_design_gives_the_logits_of_the_trained_model() {
    let dir = tempfile::tempdir().unwrap();
    let base = setup(dir.path());
    let runtime = Runtime::new(RuntimeOptions { threads: 2, ..RuntimeOptions::default() }).unwrap();
    let mut all = designs::designs();
    // rotated parts wide enough that the order of their pairs matters
    for (name, model) in all.clone() {
        if matches!(name, "deepseek_v2" | "deepseek_v3") {
            let latent = design::LatentDesign { rope: 6, ..model.latent.clone() };
            all.push((name, ModelConfig { latent, ..model }));
        }
    }
    for (name, model) in all {
        let mut config = Config { model: ModelConfig { vocab: 0, context: 16, ..model }, ..base.clone() };
        // Far enough that positions, heads and layers all matter to the logits.
        config.optim.rate = 1e-2;
        let mut trainer = run(&config, 12);
        let (checkpoint, out) = (dir.path().join("checkpoint"), dir.path().join("model.llm"));
        trainer.save(&checkpoint).unwrap();
        let options = llm_convert::Options { ty: llm_format::quant::Type::F32, ..Default::default() };
        let summary = llm_convert::convert(&checkpoint, &out, &options, &()).unwrap();
        assert_eq!(summary.parameters, trainer.model_parameters() as u64, "{name}");

        let mut ids = vec![0u32; config.model.context];
        trainer.data()[0].train.read(100, &mut ids).unwrap();
        let expected = trainer.logits(&ids).unwrap();
        let vocab = expected.len() / ids.len();
        let model = Model::open_path(&runtime, &out, &OpenOptions::default(), None).unwrap();
        let mut session = Session::new(&model, SessionOptions::default()).unwrap();
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let (mut seen, mut worst, mut largest) = (0, 0.0f32, 0.0f32);
        let mut compare = |index: usize, logits: &[f32]| {
            let row = &expected[index * vocab..(index + 1) * vocab];
            assert_eq!(logits.len(), vocab, "{name}");
            for (a, b) in logits.iter().zip(row) {
                worst = worst.max((a - b).abs());
                largest = largest.max(b.abs());
            }
            seen += 1;
            Ok(())
        };
        session.prefill_each(&ids, None, &mut compare).unwrap();
        assert_eq!(seen, ids.len());
        assert!(largest > 1.0, "{name}: logits of an untrained model, at most {largest}");
        assert!(worst < 1e-4, "{name}: {worst} apart");
    }
}
