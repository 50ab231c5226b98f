//! Every design from training to inference: its checkpoint is converted and gives the trainer's logits in libllm. And
//! the document of our own layout.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use llm::model::arch::read_config;
use llm::model::spec::{
    Activation, Attention, Dense, Experts, Ffn, GroupRank, Heads, Latent, Layer, Norm, NormKind, Pairs,
    QkNorm, Rope, Scaling, Scoring, Shared, Spec,
};
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Session, SessionOptions};
use llm_train::{Config, ModelConfig, Trainer, design};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
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
    let latent = design::LatentDesign { kv_rank: 6, q_rank: 5, nope: 4, rope: 6, value: 3 };
    let deepseek = ModelConfig { latent, eps: 1e-6, tied: false, ..tiny.clone() };
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0});
    let mut vectors: Vec<_> = (0..2).map(|i| (format!("model.layers.{i}.self_attn.sinks"), 4)).collect();
    vectors.push(("lm_head.bias".to_string(), 280));
    type Case<'a> = (&'a str, &'a ModelConfig, &'a dyn Fn(&mut Value), &'a [(String, usize)], &'a [usize]);
    let cases: [Case; 4] = [
        ("capped, with sinks and a bias", &own, &capped, &vectors, &[16]),
        ("longrope", &tiny, &rope(longrope), &[], &[6, 16]),
        ("latent attention whose scores yarn scales", &deepseek, &rope(yarn), &[], &[16]),
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

/// What says how models are described that no published layout equals.
const DOCUMENT: &str = include_str!("../../docs/layout.md");

/// Rows of the document's table under `heading`: the code in their first two cells.
fn documented(heading: &str) -> Vec<[Vec<&'static str>; 2]> {
    let (_, rest) = DOCUMENT.split_once(&format!("\n### {heading}\n")).expect(heading);
    let section = rest.split("\n#").next().unwrap();
    let code = |cell: &'static str| cell.split('`').skip(1).step_by(2).collect::<Vec<_>>();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').skip(1);
        [code(cells.next().unwrap()), code(cells.next().unwrap())]
    })
    .collect()
}

/// The names that the reader of `T` knows in place of the `?` of `probe`: it lists them when it refuses that.
fn accepted<T: DeserializeOwned>(probe: Value) -> Vec<String> {
    let refused = serde_json::from_value::<T>(probe).err().expect("a name that there is not").to_string();
    refused.split('`').skip(3).step_by(2).map(String::from).collect()
}

#[test]
fn the_document_of_our_own_layout_lists_the_keys_and_values_that_are_read() {
    let probe = json!({"?": 0});
    let objects = [
        ("`spec`", accepted::<Spec>(probe.clone())),
        ("`norm`", accepted::<Norm>(probe.clone())),
        ("`layer`", accepted::<Layer>(probe.clone())),
        ("`attention`", accepted::<Attention>(probe.clone())),
        ("`heads`", accepted::<Heads>(probe.clone())),
        ("`qk_norm`", accepted::<QkNorm>(probe.clone())),
        ("`latent`", accepted::<Latent>(probe.clone())),
        ("`ffn`", accepted::<Ffn>(probe.clone())),
        ("`dense`", accepted::<Dense>(probe.clone())),
        ("`activation`", accepted::<Activation>(probe.clone())),
        ("`experts`", accepted::<Experts>(probe.clone())),
        ("`shared`", accepted::<Shared>(probe.clone())),
        ("`rope`", accepted::<Rope>(probe.clone())),
        ("`scaling`", accepted::<Scaling>(probe)),
    ];
    for (heading, names) in objects {
        assert!(names.len() > 1, "{heading}");
        let listed: Vec<_> = documented(heading).into_iter().flat_map(|[names, _]| names).collect();
        assert_eq!(listed, names, "{heading}");
    }
    let values = [
        ("`norm`", "kind", accepted::<NormKind>(json!("?"))),
        ("`experts`", "scoring", accepted::<Scoring>(json!("?"))),
        ("`experts`", "group_rank", accepted::<GroupRank>(json!("?"))),
        ("`rope`", "pairs", accepted::<Pairs>(json!("?"))),
    ];
    for (heading, key, names) in values {
        let rows = documented(heading);
        let [_, listed] = rows.iter().find(|[first, _]| first.contains(&key)).unwrap();
        assert_eq!(listed, &names, "{heading}, {key}");
    }
    for [name, keys] in documented("`scaling`").into_iter().filter(|[name, _]| name != &["none"]) {
        let scaling = name[0];
        assert_eq!(keys, accepted::<Scaling>(json!({scaling: {"?": 0}})), "{scaling}");
    }
    let example = DOCUMENT.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    read_config(&serde_json::from_str(example).unwrap()).unwrap();
}

#[test]
fn the_document_of_our_own_layout_lists_the_tensors_that_are_read() {
    let norm = json!({"kind": "layer", "eps": 1e-5, "bias": true});
    let plain = json!({"kind": "rms", "eps": 1e-5, "bias": false});
    let dense = json!({"inner": 8, "activation": "silu", "bias": true});
    let layer = |attention: Value, ffn: Value| {
        json!({"attention_norm": norm, "attention": attention, "attention_post_norm": norm,
            "ffn_norm": norm, "ffn": ffn, "ffn_post_norm": norm, "parallel": false})
    };
    // what may be null is left out
    let heads = json!({"heads": {"heads": 2, "kv_heads": 1, "head_dim": 4, "scale": 0.5, "alibi": [],
        "sinks": true, "qk_norm": {"norm": plain, "whole": false}, "qkv_bias": true, "out_bias": true}});
    let latent = |q_rank: Value| {
        json!({"latent": {"heads": 2, "nope_dim": 2, "rope_dim": 0, "value_dim": 2, "q_rank": q_rank,
            "kv_rank": 4, "scale": 0.5, "rope": 0, "norm": plain, "bias": true}})
    };
    let experts = json!({"experts": {"count": 2, "active": 1, "expert": dense, "scoring": "sigmoid",
        "normalize": true, "scale": 1.0, "groups": 1, "active_groups": 1, "group_rank": "max",
        "choice_bias": true, "router_bias": true,
        "shared": {"dense": {"inner": 8, "activation": "silu", "bias": false}, "gate": true}}});
    let layers = [
        layer(heads, json!({"gated": dense})),
        layer(latent(Value::Null), json!({"plain": dense})),
        layer(latent(json!(4)), experts),
    ];
    let config = json!({"model_type": "libllm", "spec": {"architecture": "libllm", "vocab": 19, "width": 8,
        "context": 4, "embedding_scale": 1.0, "embedding_norm": norm, "learned_positions": 4, "ropes": [],
        "layers": layers, "final_norm": norm, "tied": false, "head_bias": true, "logit_scale": 1.0}});
    let (arch, spec) = read_config(&config).unwrap();
    let wants = (arch.tensors)(&spec);
    let read: BTreeSet<&str> = wants
        .iter()
        .flat_map(|want| &want.sources)
        .map(|source| {
            let layer = source.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            layer.map_or(&source.name[..], |(_, name)| name)
        })
        .collect();
    let tables = ["Of the model", "Of a layer"].into_iter().flat_map(documented);
    let listed: BTreeSet<&str> = tables.flat_map(|[names, _]| names).collect();
    assert_eq!(listed, read);
}
