//! Every design from training to inference: its checkpoint is converted and gives the trainer's logits in libllm.

use std::fs;
use std::path::Path;

use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Session, SessionOptions};
use llm_train::{Config, ModelConfig, Trainer, design};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

#[allow(dead_code)] // each test of the crate uses a part of it
mod common;
use common::{advance, run, setup};
#[path = "common/designs.rs"]
mod designs;

fn runtime() -> Runtime {
    Runtime::new(RuntimeOptions { threads: 2, ..RuntimeOptions::default() }).unwrap()
}

/// Saves `trainer` and converts it: its logits over the first `length` ids from the 100th on are those of libllm.
fn agree(name: &str, runtime: &Runtime, trainer: &mut Trainer, dir: &Path, length: usize) {
    let (checkpoint, out) = (dir.join("checkpoint"), dir.join("model.llm"));
    trainer.save(&checkpoint).unwrap();
    let options = llm_convert::Options { ty: llm_format::quant::Type::F32, ..Default::default() };
    let summary = llm_convert::convert(&checkpoint, &out, &options, &()).unwrap();
    assert_eq!(summary.parameters, trainer.model_parameters() as u64, "{name}");

    let mut ids = vec![0u32; length];
    trainer.data()[0].train.read(100, &mut ids).unwrap();
    let expected = trainer.logits(&ids).unwrap();
    let vocab = expected.len() / ids.len();
    let model = Model::open_path(runtime, &out, &OpenOptions::default(), None).unwrap();
    let options = SessionOptions { max_tokens: length, ..SessionOptions::default() };
    let mut session = Session::new(&model, options).unwrap();
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

#[test]
fn a_converted_checkpoint_of_every_design_gives_the_logits_of_the_trained_model() {
    let dir = tempfile::tempdir().unwrap();
    let base = setup(dir.path());
    let runtime = runtime();
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
        agree(name, &runtime, &mut trainer, dir.path(), config.model.context);
    }
}

/// Changes the model that a checkpoint describes, and adds vectors to its tensors.
fn change(checkpoint: &Path, change: &dyn Fn(&mut Value), vectors: &[(String, usize)]) {
    let path = checkpoint.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    let path = checkpoint.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let made: Vec<(&str, Vec<u8>)> = vectors
        .iter()
        .map(|(name, n)| (&name[..], (0..*n).flat_map(|i| (i as f32 * 0.1 - 0.2).to_le_bytes()).collect()))
        .collect();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    for (name, data) in &made {
        let view = TensorView::new(Dtype::F32, vec![data.len() / 4], data).unwrap();
        tensors.push((name.to_string(), view));
    }
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
}

#[test]
fn what_only_checkpoints_of_others_have_is_trained_and_gives_the_same_logits_once_converted() {
    let dir = tempfile::tempdir().unwrap();
    let (base, runtime, from) = (setup(dir.path()), runtime(), dir.path().join("from"));
    let tiny = ModelConfig { vocab: 0, context: 16, ..ModelConfig::tiny() };
    let own = ModelConfig { norm: design::NormDesign::Layer, ..tiny.clone() };
    let rope = |scaling: Value| {
        move |config: &mut Value| {
            config["original_max_position_embeddings"] = json!(8);
            config["rope_scaling"] = scaling.clone();
        }
    };
    let capped = |config: &mut Value| {
        let spec = &mut config["spec"];
        (spec["logit_scale"], spec["logit_softcap"], spec["head_bias"]) =
            (json!(0.5), json!(5.0), json!(true));
        for layer in spec["layers"].as_array_mut().unwrap() {
            let heads = &mut layer["attention"]["heads"];
            (heads["softcap"], heads["sinks"]) = (json!(0.5), json!(true));
        }
    };
    let longrope = json!({"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0]});
    let mut vectors: Vec<_> = (0..2).map(|i| (format!("model.layers.{i}.self_attn.sinks"), 4)).collect();
    vectors.push(("lm_head.bias".to_string(), 280));
    type Case<'a> = (&'a str, &'a ModelConfig, &'a dyn Fn(&mut Value), &'a [(String, usize)], &'a [usize]);
    let cases: [Case; 3] = [
        ("capped, with sinks and a bias", &own, &capped, &vectors, &[16]),
        ("longrope", &tiny, &rope(longrope), &[], &[6, 16]),
        // its angles stretch past the context
        ("dynamic", &tiny, &rope(json!({"rope_type": "dynamic", "factor": 2.0})), &[], &[12, 32]),
    ];
    for (name, model, described, vectors, lengths) in cases {
        let mut config = Config { model: model.clone(), ..base.clone() };
        config.optim.rate = 1e-2;
        run(&config, 12).save(&from).unwrap();
        change(&from, described, vectors);
        let length = lengths.iter().copied().max().unwrap();
        let mut trainer = Trainer::new(&Config { from: from.clone(), length, ..config }).unwrap();
        let first = trainer.step().unwrap().loss;
        advance(&mut trainer, 10);
        let last = trainer.step().unwrap().loss;
        assert!(last < first, "{name}: {first} to {last}");
        for length in lengths {
            agree(name, &runtime, &mut trainer, dir.path(), *length);
        }
    }
}
