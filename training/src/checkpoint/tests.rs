//! Models of several files, and what a kill leaves of a checkpoint.

use std::process::{Command, Stdio};

use super::*;
use crate::config::OptimConfig;
use crate::design::ModelConfig;

/// Bytes of a file, far less than the models here have.
const MOST: u64 = 20_000;

/// What a checkpoint of a small new model holds.
struct Small {
    state: State,
    blueprint: Blueprint,
    params: Params,
    weights: Vec<f32>,
    optimizer: Optimizer,
}

impl Small {
    fn new(blueprint: Blueprint) -> Small {
        let params = blueprint.params();
        let weights = params.init(7, blueprint.spec.layers.len());
        let optimizer = Optimizer::new(&OptimConfig::default(), &params);
        let state = State {
            step: 3,
            sample: 9,
            began: 0,
            drawn: Vec::new(),
            held_out: None,
            vocabulary_hash: 1,
            config: Config::default(),
        };
        Small { state, blueprint, params, weights, optimizer }
    }

    fn design(model: &ModelConfig) -> Small {
        Small::new(Blueprint::of_design(model).unwrap())
    }

    fn llama() -> Small {
        Small::design(&ModelConfig { vocab: 300, ..ModelConfig::tiny() })
    }

    fn contents(&self) -> Contents<'_> {
        Contents {
            state: &self.state,
            blueprint: &self.blueprint,
            params: &self.params,
            weights: &self.weights,
            adapter: None,
            optimizer: &self.optimizer,
            data: &[],
        }
    }

    /// Whether `dir` holds these values, bit for bit, in one file or in several, but not both.
    fn is_in(&self, dir: &Path) -> bool {
        let read = Files::open(dir).unwrap().load(&self.params).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        dir.join(MODEL).exists() != dir.join(INDEX).exists() && bits(&read) == bits(&self.weights)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn shards(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| name.starts_with("model-")).collect()
}

#[test]
fn a_model_larger_than_a_file_may_be_is_divided_and_reads_back_equal() {
    let dir = tempfile::tempdir().unwrap();
    let llama = ModelConfig { vocab: 300, ..ModelConfig::tiny() };
    for (i, model) in [llama.clone(), llama.gpt2_design()].iter().enumerate() {
        let small = Small::design(model);
        let (one, several) = (dir.path().join(format!("one-{i}")), dir.path().join(format!("several-{i}")));
        save(&one, &small.contents()).unwrap();
        save_in(&several, &small.contents(), MOST).unwrap();
        assert!(small.is_in(&one) && one.join(MODEL).exists());
        assert!(small.is_in(&several) && several.join(INDEX).exists());

        let index: Value = serde_json::from_slice(&fs::read(several.join(INDEX)).unwrap()).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        let (files, mut tensors, mut total) = (shards(&several), 0, 0);
        assert!(files.len() > 3, "{files:?}");
        for (n, name) in files.iter().enumerate() {
            assert_eq!(*name, format!("model-{:05}-of-{:05}.safetensors", n + 1, files.len()));
            let bytes = fs::read(several.join(name)).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let size: usize = file.tensors().iter().map(|(_, tensor)| tensor.data().len()).sum();
            assert!(size as u64 <= MOST || file.len() == 1, "{name}: {size}");
            for (tensor, _) in file.tensors() {
                assert_eq!(map[&tensor], json!(name), "{tensor}");
            }
            (tensors, total) = (tensors + file.len(), total + size);
        }
        assert_eq!((tensors, json!(total)), (map.len(), index["metadata"]["total_size"].clone()));

        // the converter reads the same
        let bytes = fs::read(one.join(MODEL)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let converted = llm_convert::checkpoint::Checkpoint::open(&several).unwrap();
        assert_eq!((converted.tensors().len(), tensors), (file.len(), file.len()));
        let mut scratch = Vec::new();
        for (name, tensor) in file.tensors() {
            let view = converted.view(&name).unwrap();
            let mut values = vec![0.0f32; view.count() as usize];
            view.read(0, &mut values, &mut scratch).unwrap();
            assert!(bytemuck::cast_slice::<f32, u8>(&values) == tensor.data(), "{name}");
        }
    }
}

#[test]
fn a_checkpoint_in_the_place_of_another_leaves_no_file_of_that() {
    let dir = tempfile::tempdir().unwrap();
    let (small, checkpoint) = (Small::llama(), dir.path().join("step-00000003"));
    for most in [SHARD, MOST, SHARD, MOST / 2, MOST] {
        save_in(&checkpoint, &small.contents(), most).unwrap();
        assert!(small.is_in(&checkpoint) && whole(&checkpoint));
        assert_eq!(checkpoint.join(MODEL).exists(), most == SHARD);
        let files = shards(&checkpoint);
        let end = format!("-of-{:05}.safetensors", files.len());
        assert!(files.is_empty() == (most == SHARD) && files.iter().all(|name| name.ends_with(&end)));
        assert_eq!(names(dir.path()), ["step-00000003"]);
    }
    // nor does one that a kill left under its hidden name
    fs::rename(&checkpoint, hidden(&checkpoint, "old").unwrap()).unwrap();
    save(&checkpoint, &small.contents()).unwrap();
    assert!(small.is_in(&checkpoint));
    assert_eq!(names(dir.path()), ["step-00000003"]);
}

#[test]
fn a_file_of_all_tensors_goes_before_an_index_and_an_index_names_files_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (small, checkpoint) = (Small::llama(), dir.path().join("checkpoint"));
    save_in(&checkpoint, &small.contents(), MOST).unwrap();
    let index = fs::read(checkpoint.join(INDEX)).unwrap();
    let refused = |index: &[u8], why: &str| {
        fs::write(checkpoint.join(INDEX), index).unwrap();
        let e = Files::open(&checkpoint).err().unwrap();
        assert!(e.status() == Status::BAD_FORMAT && e.message().contains(why), "{e}");
        assert!(e.message().contains(INDEX) && !whole(&checkpoint), "{e}");
    };
    refused(b"{}", "no object `weight_map`");
    refused(b"{\"weight_map\": {}}", "names no tensor");
    for file in ["\"../model.safetensors\"", "\"\"", "\"..\"", "\"a/\"", "7"] {
        refused(format!("{{\"weight_map\": {{\"x\": {file}}}}}").as_bytes(), file);
    }
    fs::write(checkpoint.join(INDEX), &index).unwrap();
    assert!(small.is_in(&checkpoint));

    let mut other = Small::llama();
    other.weights.iter_mut().for_each(|v| *v *= 2.0);
    let one = dir.path().join("one");
    save(&one, &other.contents()).unwrap();
    fs::copy(one.join(MODEL), checkpoint.join(MODEL)).unwrap();
    assert!(Files::open(&checkpoint).unwrap().load(&small.params).unwrap() == other.weights);
}

#[test]
fn a_tensor_in_two_files_is_refused_as_by_the_converter() {
    let dir = tempfile::tempdir().unwrap();
    let (small, checkpoint) = (Small::llama(), dir.path().join("checkpoint"));
    save_in(&checkpoint, &small.contents(), MOST).unwrap();
    let mut index: Value = serde_json::from_slice(&fs::read(checkpoint.join(INDEX)).unwrap()).unwrap();
    let first = fs::read(checkpoint.join(&shards(&checkpoint)[0])).unwrap();
    let first = SafeTensors::deserialize(&first).unwrap();
    let (name, tensor) = first.iter().next().unwrap();
    let own = ("own".to_string(), tensor.clone());
    let again = safetensors::serialize([own, (name.to_string(), tensor)], None).unwrap();
    fs::write(checkpoint.join("more.safetensors"), again).unwrap();
    index["weight_map"]["own"] = json!("more.safetensors");
    fs::write(checkpoint.join(INDEX), index.to_string()).unwrap();
    let e = Files::open(&checkpoint).unwrap().load(&small.params).unwrap_err();
    let theirs = llm_convert::checkpoint::Checkpoint::open(&checkpoint).unwrap_err();
    assert_eq!((e.status(), e.message()), (Status::BAD_FORMAT, theirs.message()));
    assert!(e.message().contains(&format!("tensor `{name}` is also in ")), "{e}");
    assert!(!whole(&checkpoint));
}

#[test]
fn values_that_are_stored_less_one_come_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 64, "head_dim": 8,
                        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "vocab_size": 300, "max_position_embeddings": 64});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let blueprint = Blueprint::of_checkpoint(dir.path()).unwrap();
    let (mut small, mut other) = (Small::new(blueprint.clone()), Small::new(blueprint));
    let norms = small.params.wants.iter().filter(|want| want.plus != 0.0);
    let norms: Vec<usize> = norms.flat_map(|want| small.params.place(want.slot)).collect();
    assert!(!norms.is_empty());
    for (i, at) in norms.into_iter().enumerate() {
        small.weights[at] = 0.1 + i as f32 * 0.000_123;
        other.weights[at] = small.weights[at] - 0.7;
    }
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let load = |dir: &Path| Files::open(dir).unwrap().load(&small.params).unwrap();
    save_in(&first, &small.contents(), MOST).unwrap();
    assert!(small.is_in(&first));
    save(&second, &other.contents()).unwrap();
    assert!(other.is_in(&second));
    // the tensors alone hold less, and the state of others adds nothing to them
    fs::remove_file(second.join(STATE)).unwrap();
    let alone = load(&second);
    assert!(!other.is_in(&second));
    fs::rename(first.join(STATE), second.join(STATE)).unwrap();
    assert!(load(&second) == alone && !small.is_in(&first));
}

#[test]
fn what_a_killed_run_left_is_cleared_and_what_it_was_replacing_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (small, checkpoint) = (Small::llama(), dir.path().join("step-00000003"));
    let old = hidden(&checkpoint, "old").unwrap();
    let rest = [".metrics.jsonl.77-0.tmp", ".report.html.1-12.tmp", ".mine.1-2.tmp", "metrics.jsonl"];
    rest.iter().for_each(|name| fs::write(dir.path().join(name), "begun").unwrap());
    for name in ["part", "gone"] {
        // whole or not: nobody misses it
        save_in(&dir.path().join(format!(".step-00000004.{name}")), &small.contents(), MOST).unwrap();
    }
    save_in(&old, &small.contents(), MOST).unwrap();
    sweep(dir.path()).unwrap();
    assert_eq!(names(dir.path()), [".mine.1-2.tmp", "metrics.jsonl", "step-00000003"]);
    assert!(small.is_in(&checkpoint));

    let shard = shards(&checkpoint).swap_remove(1);
    for lost in [INDEX, shard.as_str(), "config.json", "training.json", STATE] {
        save_in(&old, &small.contents(), MOST).unwrap();
        fs::remove_dir_all(&checkpoint).unwrap();
        fs::remove_file(old.join(lost)).unwrap();
        sweep(dir.path()).unwrap();
        assert!(!old.exists() && !checkpoint.exists(), "{lost}");
        save_in(&checkpoint, &small.contents(), MOST).unwrap();
    }
}

/// Not a claim of its own: the child of the next test, which saves until it is killed.
#[test]
fn child_that_saves_until_killed() {
    let Some(dir) = std::env::var_os("LLM_TRAIN_TEST_SHARDS") else { return };
    let (small, dir) = (Small::llama(), PathBuf::from(dir));
    for most in [MOST, SHARD].into_iter().cycle() {
        save_in(&dir, &small.contents(), most).unwrap();
    }
}

#[test]
fn a_kill_while_several_files_replace_one_leaves_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (small, checkpoint) = (Small::llama(), dir.path().join("step-00000003"));
    save(&checkpoint, &small.contents()).unwrap();
    // LLM_TRAIN_KILLS=200 for a long run
    let rounds = std::env::var("LLM_TRAIN_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6u64);
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::tests::child_that_saves_until_killed", "--quiet"])
            .env("LLM_TRAIN_TEST_SHARDS", &checkpoint)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !hidden(&checkpoint, "part").unwrap().exists() {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(10_000 + round * 17_333 % 200_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = place(&checkpoint).unwrap();
        assert!(whole(&found) && small.is_in(&found), "round {round}");
        assert_eq!(state(&found).unwrap().step, 3);
    }
    sweep(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["step-00000003"]);
    assert!(small.is_in(&checkpoint));
}
