//! The training way: a text becomes a tokenizer, token files, a checkpoint, a file, and words; a run that was
//! interrupted goes on as if it had not been.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use common::{json, names, ok, one_line, p, run, signal, start};
use llm_testdata::shared;

const STEPS: &str = "steps=300";

fn train<'a>(data: &'a str, out: &'a str, threads: &'a str) -> Vec<&'a str> {
    let settings = ["model.context=32", "batch=2", "save_every=1000", "eval_every=150", STEPS, threads];
    [&["train", "--preset", "tiny", "--data", data, "--out", out], &settings[..]].concat()
}

/// The checkpoint whose path a run printed last.
fn printed(out: &str) -> &Path {
    Path::new(out.lines().last().unwrap())
}

#[test]
fn text_becomes_a_model_that_writes() {
    let Some(text) = shared("data/text/the-verdict.txt") else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (tokenizer, data) = (at("tokenizer.json"), at("data"));

    let said = ok(&["tokenizer", "train", p(&text), "-o", &tokenizer, "--size", "320"]);
    assert_eq!(said, format!("{tokenizer}: 320 tokens\n"));
    let said = ok(&["data", "prepare", p(&text), "--tokenizer", &tokenizer, "-o", &data]);
    assert!(said.starts_with(&data) && said.contains("vocabulary of 320"), "{said}");
    let mut made = names(Path::new(&data));
    made.sort();
    assert_eq!(made, ["held_out.tokens", "tokenizer.json", "train.tokens"]);

    // One run goes through; another is interrupted, terminated, and continued by the same command.
    let through = ok(&train(&data, &at("through"), "threads=2"));
    let run_again = at("again");
    let args = train(&data, &run_again, "threads=1");
    let mut done = "0".to_string();
    for name in ["-INT", "-TERM"] {
        let mut child = start(&args);
        let mut heard = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        heard.read_line(&mut line).unwrap();
        assert!(line.contains(&format!("parameters, {done} of 300 steps done")), "{line}");
        signal(&child, name);
        let mut rest = String::new();
        heard.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
        let last = rest.lines().last().unwrap();
        assert!(last.starts_with("libllm: stopped after") && last.contains("of 300 steps"), "{rest}");
        done = last.split_whitespace().nth(3).unwrap().to_string();
    }
    let ran = run(&[&args[..], &["--sample", "I had", "--sample-tokens", "4"]].concat());
    assert_eq!(ran.status, Some(0), "{ran:?}");
    let samples = std::fs::read_to_string(Path::new(&run_again).join("samples.jsonl")).unwrap();
    let sample: serde_json::Value = serde_json::from_str(samples.lines().last().unwrap()).unwrap();
    assert_eq!((sample["step"].as_u64(), sample["prompt"].as_str()), (Some(300), Some("I had")), "{samples}");
    assert!(sample["text"].as_str().is_some_and(|t| !t.is_empty()), "{samples}");
    assert!(ran.err.contains(&format!("parameters, {done} of 300 steps done")), "{done}: {}", ran.err);
    let (through, again) = (printed(&through), printed(&ran.out));
    let weights = |checkpoint: &Path| std::fs::read(checkpoint.join("model.safetensors")).unwrap();
    assert!(weights(through) == weights(again), "an interrupted run ends elsewhere");
    // A finished run has nothing left to do.
    let ran = run(&args);
    assert_eq!((ran.status, printed(&ran.out)), (Some(0), again), "{ran:?}");

    let ran = run(&[&train(&data, &at("none"), "threads=1")[..], &["steps=0"]].concat());
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(one_line(&ran).contains("steps"), "{ran:?}");

    let model = at("model.llm");
    for ty in ["f32", "q8", "q4"] {
        ok(&["convert", p(again), "-o", &model, "--type", ty]);
        ok(&["verify", &model]);
        let report =
            json(&["generate", "-m", &model, "-p", "I had always", "-n", "8", "--ignore-eos", "--json"]);
        assert_eq!(report["ids"].as_array().unwrap().len(), 8, "{report}");
    }
}

#[test]
fn a_run_goes_on_by_its_own_settings() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (text, tokenizer, data, out, moved) =
        (at("text.txt"), at("tokenizer.json"), at("data"), at("run"), at("moved"));
    std::fs::write(&text, "a text of some lines, one like the other\n".repeat(200)).unwrap();
    ok(&["tokenizer", "train", &text, "-o", &tokenizer, "--size", "280"]);
    ok(&["data", "prepare", &text, "--tokenizer", &tokenizer, "-o", &data]);
    let settings = ["steps=2", "batch=2", "context=16", "seed=5"];
    ok(&[&["train", "--preset", "tiny", "--data", data.as_str(), "--out", out.as_str()][..], &settings]
        .concat());
    std::fs::rename(&out, &moved).unwrap();
    let shown = json(&["train", "--resume", "--out", &moved, "steps=3", "--show-config"]);
    assert_eq!((shown["seed"].as_u64(), shown["steps"].as_u64()), (Some(5), Some(3)), "{shown}");
    assert_eq!((shown["out"].as_str(), shown["data"].as_str()), (Some(moved.as_str()), Some(data.as_str())));
    let ran = run(&["train", "--resume", "--out", &moved, "steps=3"]);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    assert!(ran.err.contains("parameters, 2 of 3 steps done"), "{ran:?}");
    assert_eq!(printed(&ran.out), Path::new(&moved).join("step-00000003"));
    let ran = run(&["train", "--resume", "--out", &out]);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(one_line(&ran).contains("no checkpoint of a run") && one_line(&ran).contains(&out), "{ran:?}");
}

#[test]
fn the_end_of_documents_is_a_token_that_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (text, tokenizer, data) = (at("text.txt"), at("tokenizer.json"), at("data"));
    std::fs::write(&text, "a text of some lines\n".repeat(200)).unwrap();
    let train = ["tokenizer", "train", text.as_str(), "-o", tokenizer.as_str(), "--size", "280"];
    ok(&[&train[..], &["--special", "<|endoftext|>", "--special", "<|stop|>"]].concat());
    let prepare = ["data", "prepare", text.as_str(), "--tokenizer", tokenizer.as_str(), "-o", data.as_str()];
    for (end, ended) in [("<|stop|>", true), ("", false)] {
        ok(&[&prepare[..], &["--end", end]].concat());
        let bytes = std::fs::read(Path::new(&data).join("train.tokens")).unwrap();
        let count = u64::from_le_bytes(bytes[32..40].try_into().unwrap()) as usize;
        let last = u16::from_le_bytes(bytes[126 + 2 * count..128 + 2 * count].try_into().unwrap());
        assert_eq!(last == 1, ended, "{end:?}: {last}");
    }
    let ran = run(&[&prepare[..], &["--end", "</s>"]].concat());
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(one_line(&ran).contains("no token \"</s>\" to end documents"), "{ran:?}");
    let ran = run(&[&train[..], &["--coverage", "0.9"]].concat());
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(one_line(&ran).contains("--coverage"), "{ran:?}");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"stepz": 3}"#).unwrap();
    let all: [(&[&str], &str); 4] = [
        (&["train", "--preset", "huge"], "huge"),
        (&["train", "stepz=3"], "stepz"),
        (&["train", "steps=many"], "steps"),
        (&["train", "--config", p(&config)], "stepz"),
    ];
    for (args, want) in all {
        let ran = run(args);
        assert_eq!(ran.status, Some(1), "{args:?}: {ran:?}");
        assert!(one_line(&ran).contains(want), "{args:?}: {ran:?}");
    }
    // What is written is what the preset and the settings say, in both forms; presets are listed.
    for name in ["c.yaml", "c.json"] {
        let file = dir.path().join(name);
        ok(&["create-config", "gpt2", "-o", p(&file), "steps=7", "optim.rate=5e-4"]);
        let written = ok(&["train", "--config", p(&file), "--show-config", "layers=3"]);
        let said = ["train", "--preset", "gpt2", "--show-config", "steps=7", "optim.rate=5e-4", "layers=3"];
        assert_eq!(written, ok(&said), "{name}");
    }
    let listed = ok(&["create-config"]);
    assert!(["tiny", "baby-gpt", "gpt2-xl"].iter().all(|name| listed.contains(name)), "{listed}");
    // What is shown can be given back.
    let shown = ok(&["train", "--preset", "tiny", "--show-config", "steps=7"]);
    std::fs::write(&config, &shown).unwrap();
    assert_eq!(ok(&["train", "--config", p(&config), "--show-config"]), shown);
}
