//! A model and its draft, each made of a text by one command: they share a tokenizer, and guesses change no text.

mod common;

use std::fs;
use std::path::Path;

use common::{json, ok, one_line, p, refused, run};

/// Smaller than the presets, and for few steps.
const SMALL: [&str; 7] =
    ["steps=3", "batch=2", "context=32", "layers=1", "model.ffn=64", "threads=2", "eval_every=0"];

/// Words of a language that has a thousand of them.
fn text(seed: usize) -> String {
    let syllables = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "ru"];
    let word = |n: usize| [n % 10, n / 10 % 10, n / 100 % 10].map(|i| syllables[i]).concat();
    (0..6000usize).map(|i| word(i * i * seed % 1009) + if i % 11 == 10 { ".\n" } else { " " }).collect()
}

#[test]
fn a_model_and_its_draft_come_of_one_command_each_and_guess_without_changing_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (source, target, draft, other) = (at("text.txt"), at("target"), at("draft"), at("other"));
    fs::write(&source, text(7)).unwrap();
    let train = |preset: &str, out: &str, more: &[&str]| {
        let args = ["train", "--preset", preset, "--text", source.as_str(), "-o", out];
        run(&[&args[..], more, &SMALL].concat())
    };
    let last = |ran: &common::Ran| {
        assert_eq!(ran.status, Some(0), "{ran:?}");
        ran.out.lines().last().unwrap().to_owned()
    };
    let begun = train("pair", &target, &["width=96"]);
    assert!(begun.err.contains("tokens to train on"), "{begun:?}");
    let tokenizer = format!("{target}/tokenizer.json");
    let of_target = last(&begun);
    let with = ["width=32", "--tokenizer", tokenizer.as_str()];
    let of_draft = last(&train("pair-draft", &draft, &with));
    let bytes = fs::read(&tokenizer).unwrap();
    for copy in [&of_target, &of_draft, &format!("{draft}/data")] {
        assert!(fs::read(Path::new(copy).join("tokenizer.json")).unwrap() == bytes, "{copy}");
    }
    let file = at("pair.llm");
    ok(&["convert", &of_target, "--draft", &of_draft, "-o", &file]);
    let generate = ["generate", "-m", &file, "-p", "bade", "-n", "24", "--temperature", "0", "--json"];
    let generate = [&generate[..], &["--ignore-eos"]].concat();
    let guessed = json(&[&generate[..], &["--own-draft"]].concat());
    assert!(guessed["speculation"]["drafted"].as_u64().is_some_and(|n| n > 0), "{guessed}");
    assert_eq!(guessed["ids"], json(&generate)["ids"]);
    assert_eq!(guessed["ids"].as_array().unwrap().len(), 24, "{guessed}");

    // a tokenizer of its own makes no draft
    let of_other = last(&train("pair-draft", &other, &["width=32", "tokenizer_size=300"]));
    let said = refused(&["convert", &of_target, "--draft", &of_other, "-o", &file]);
    assert!(said.contains("the draft has not the tokenizer of the model"), "{said}");

    // the same command goes on with what there is, and only with it
    let more = train("pair", &target, &["width=96", "save_every=1"]);
    assert!(!more.err.contains("preparing the text") && more.err.contains("3 of 3 steps done"), "{more:?}");
    fs::write(&source, text(11)).unwrap();
    let changed = train("pair", &target, &["width=96"]);
    assert_eq!(changed.status, Some(1), "{changed:?}");
    let said = one_line(&changed);
    assert!(
        said.contains("the run's data was made of text.txt (") && said.contains("`text= tokenizer= data="),
        "{said}"
    );
    let said = refused(&["train", "--resume", "-o", &target, "--data", p(dir.path())]);
    assert!(said.contains("--data and the setting `text` both name the data"), "{said}");
}
