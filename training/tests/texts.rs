//! Runs that are given texts: they make their tokenizer and their token files themselves, once.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use llm::error::{Result, Status};
use llm_train::{Config, Event, ModelConfig, Part, train};

#[allow(dead_code)] // each test of the crate uses a part of it
mod common;
use common::{data, write};

/// A small run on a text of `dir`.
fn config(dir: &Path) -> Config {
    let text = dir.join("text.txt");
    write(&text, 7);
    let mut config = Config {
        model: ModelConfig { context: 16, ..ModelConfig::tiny() },
        text: vec![text.to_str().unwrap().into()],
        tokenizer_size: 280,
        out: dir.join("run"),
        steps: 3,
        batch: 2,
        threads: 1,
        eval_every: 0,
        ..Config::default()
    };
    config.optim.warmup = 2;
    config
}

/// Runs it to its end; whether it prepared its text.
fn go(config: &Config) -> Result<bool> {
    let mut prepared = false;
    train(config, &mut |event| {
        prepared |= matches!(event, Event::Prepared(_));
        ControlFlow::Continue(())
    })?;
    Ok(prepared)
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("step-00000003/model.safetensors")).unwrap()
}

#[test]
fn a_run_makes_of_its_text_what_the_single_commands_make_and_a_second_one_shares_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let first = config(dir.path());
    assert!(go(&first).unwrap());
    data(&at("text.txt"), 280, at("tokenizer.json"), at("data"));
    let by_hand = Config { text: Vec::new(), data: at("data"), out: at("by-hand"), ..first.clone() };
    assert!(!go(&by_hand).unwrap());
    let same = |a: PathBuf, b: PathBuf| assert!(fs::read(&a).unwrap() == fs::read(b).unwrap(), "{a:?}");
    for name in ["train.tokens", "held_out.tokens", "tokenizer.json"] {
        same(at("run/data").join(name), at("data").join(name));
    }
    same(at("run/tokenizer.json"), at("tokenizer.json"));
    assert!(weights(&first.out) == weights(&by_hand.out));

    write(&at("other.txt"), 5);
    let text = vec![at("other.txt").to_str().unwrap().into()];
    let second = Config { text, tokenizer: at("run/tokenizer.json"), out: at("second"), ..first.clone() };
    assert!(go(&second).unwrap());
    // a model that is trained further has a tokenizer
    let from = at("run/step-00000003");
    assert!(go(&Config { from, out: at("third"), ..first }).unwrap());
    for out in ["second", "third"] {
        same(at(out).join("step-00000003/tokenizer.json"), at("run/tokenizer.json"));
        assert!(!at(out).join("tokenizer.json").exists());
    }
}

#[test]
fn a_run_goes_on_with_its_own_text_and_tokenizer_alone() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut config = config(dir.path());
    assert!(go(&config).unwrap());
    let (text, original) = (at("text.txt"), fs::read(at("text.txt")).unwrap());
    config.steps = 4;
    let refused = |config: &Config, words: &str| {
        let error = go(config).unwrap_err();
        assert_eq!(error.status(), Status::MISMATCH, "{error}");
        assert!(error.message().contains(words), "{error}");
    };
    write(&text, 5);
    refused(&config, "data was made of text.txt (");
    fs::write(&text, &original).unwrap();
    let size = Config { tokenizer_size: 270, ..config.clone() };
    refused(&size, "a tokenizer of 280 tokens, trained on it, now there is a tokenizer of 270 tokens");
    refused(
        &Config { tokenizer: at("run/tokenizer.json"), ..config.clone() },
        "now there is tokenizer.json (",
    );
    let twice = [&config.text[..], &config.text[..]].concat();
    refused(&Config { text: twice, ..config.clone() }, "1 texts, now there are 2");

    // the same text in another place, then nowhere
    fs::create_dir(at("moved")).unwrap();
    fs::rename(&text, at("moved/text.txt")).unwrap();
    let moved = vec![at("moved/text.txt").to_str().unwrap().to_string()];
    assert!(!go(&Config { text: moved, ..config.clone() }).unwrap());
    config.steps = 5;
    assert!(!go(&config).unwrap());
    // without the data the text is needed, and gives it again
    let tokens = at("run/data/train.tokens");
    let before = fs::read(&tokens).unwrap();
    fs::remove_dir_all(at("run/data")).unwrap();
    config.steps = 6;
    assert_eq!(go(&config).unwrap_err().status(), Status::NOT_FOUND);
    fs::write(&text, &original).unwrap();
    assert!(go(&config).unwrap());
    assert!(fs::read(&tokens).unwrap() == before);
    // who changed the text goes on with the data that there is
    write(&text, 5);
    let data = Config { text: Vec::new(), data: at("run/data"), steps: 7, ..config };
    assert!(!go(&data).unwrap());
    let done = llm_train::checkpoint::list(&at("run")).unwrap();
    assert_eq!(done.last().unwrap().1.step, 7);
}

#[test]
fn before_the_first_checkpoint_a_text_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let stopped = train(&config, &mut |event| match event {
        Event::Started { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(stopped.unwrap().steps, 0);
    let tokens = config.out.join("data/train.tokens");
    let before = fs::read(&tokens).unwrap();
    write(&dir.path().join("text.txt"), 5);
    assert!(go(&config).unwrap());
    assert!(fs::read(&tokens).unwrap() != before);
}

#[test]
fn settings_that_do_not_fit_are_told_before_the_text_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.txt").to_str().unwrap().to_string();
    let config = Config { text: vec![missing], out: dir.path().join("run"), ..Config::default() };
    let refused = |config: &Config, words: &str| {
        let error = go(config).unwrap_err();
        assert!(error.message().contains(words), "{error}");
    };
    refused(&config, "missing.txt");
    let no_heads = ModelConfig { heads: 0, ..ModelConfig::default() };
    refused(&Config { model: no_heads, ..config.clone() }, "model.heads = 0");
    let mixture = vec![Part { data: "web".into(), weight: 1.0 }];
    refused(&Config { mixture, ..config.clone() }, "text and mixture both name the data");
    let named = dir.path().join("none.json");
    let mut own = Config { tokenizer: named.clone(), text: Vec::new(), ..config.clone() };
    own.model.vocab = 300;
    let error = own.check().unwrap_err();
    assert!(error.message().contains("tokenizer: it is for `text`"), "{error}");
    refused(&Config { text: vec![dir.path().to_str().unwrap().into()], ..config.clone() }, "expected a file");
    write(&dir.path().join("missing.txt"), 7);
    refused(&Config { tokenizer: named, ..config }, "the tokenizer of the text: ");
}
