//! Prepared data: the same ids whatever a text came in, files that are refused, what ends a document.

use std::io::Write;

use super::*;
use crate::bpe::{TokenizerOptions, train_tokenizer};

fn prepared(dir: &Path) -> Prepared {
    let text: String = (0..400).map(|i| format!("line {i} of the text\n")).collect();
    std::fs::write(dir.join("a.txt"), &text).unwrap();
    let rows: String = (0..20).map(|i| format!("{{\"text\": \"row {i}\"}}\n")).collect();
    std::fs::write(dir.join("b.jsonl"), rows).unwrap();
    let inputs = ["a.txt", "b.jsonl"].map(|name| dir.join(name).into()).to_vec();
    let tokenizer = dir.join("tokenizer.json");
    let options = TokenizerOptions {
        inputs: inputs.clone(),
        vocab: 300,
        output: tokenizer.clone(),
        ..Default::default()
    };
    train_tokenizer(&options).unwrap();
    prepare(&PrepareOptions { inputs, tokenizer, output: dir.join("data"), ..Default::default() }).unwrap()
}

#[test]
fn prepared_ids_decode_to_the_text_and_the_split_is_a_tenth() {
    let dir = tempfile::tempdir().unwrap();
    let result = prepared(dir.path());
    let tokenizer = crate::bpe::load(&dir.path().join("tokenizer.json")).unwrap();
    let mut texts = Vec::new();
    for name in ["train", "held_out"] {
        let file = TokenFile::open(&dir.path().join(format!("data/{name}.tokens"))).unwrap();
        file.verify().unwrap();
        assert_eq!(file.documents(), if name == "train" { 19 } else { 3 });
        let mut ids = vec![0; file.tokens() as usize];
        file.read(0, &mut ids).unwrap();
        let text = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(text.replace("<|endoftext|>", "").len() as u64, file.bytes());
        texts.push(text);
    }
    assert!(
        result.held_out_tokens * 5 < result.train_tokens && result.held_out_tokens * 15 > result.train_tokens
    );
    let whole = std::fs::read_to_string(dir.path().join("a.txt")).unwrap();
    let first = |t: &str| t.split("<|endoftext|>").next().unwrap().to_string();
    assert_eq!(first(&texts[0]) + &first(&texts[1]), whole);
}

#[test]
fn of_a_short_packed_text_the_end_is_held_out_as_of_a_plain_one() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    // three pieces, of which none is the tenth
    let text: String = (0..30_000).map(|i| format!("line {i} of the text\n")).collect();
    let (plain, packed) = (dir.path().join("c.txt"), dir.path().join("c.txt.gz"));
    std::fs::write(&plain, &text).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    std::fs::write(&packed, gz.finish().unwrap()).unwrap();
    let files = [plain, packed].map(|input| {
        let output = input.with_extension("data");
        let tokenizer = dir.path().join("tokenizer.json");
        let options = PrepareOptions { inputs: vec![input.into()], tokenizer, output, ..Default::default() };
        assert!(prepare(&options).unwrap().held_out_tokens > 0);
        ["train.tokens", "held_out.tokens"].map(|n| std::fs::read(options.output.join(n)).unwrap())
    });
    assert!(files[0] == files[1]);
}

#[test]
fn documents_end_with_the_token_that_the_tokenizer_has_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, tokenizer) = (dir.path().join("b.jsonl"), dir.path().join("tokenizer.json"));
    std::fs::write(&rows, "{\"text\": \"a row\"}\n".repeat(20)).unwrap();
    let trained = |special: &[&str]| {
        let options = TokenizerOptions {
            inputs: vec![rows.clone().into()],
            vocab: 280,
            special: special.iter().map(|s| (*s).to_string()).collect(),
            output: tokenizer.clone(),
            ..Default::default()
        };
        train_tokenizer(&options).unwrap();
    };
    let last = |config: Option<&str>| {
        let path = dir.path().join("tokenizer_config.json");
        let _ = std::fs::remove_file(&path); // it may not be there
        if let Some(config) = config {
            std::fs::write(&path, config).unwrap();
        }
        let output = dir.path().join("data");
        let (inputs, tokenizer) = (vec![rows.clone().into()], tokenizer.clone());
        prepare(&PrepareOptions { inputs, tokenizer, output: output.clone(), ..Default::default() }).unwrap();
        // what lies beside the tokenizer comes along, what an earlier preparation left does not stay
        assert_eq!(std::fs::read_to_string(output.join("tokenizer_config.json")).ok().as_deref(), config);
        let file = TokenFile::open(&output.join("train.tokens")).unwrap();
        let mut ids = vec![0; file.tokens() as usize];
        file.read(0, &mut ids).unwrap();
        assert_eq!(file.offset(1), ids.len() as u64 / file.documents());
        ids[ids.len() - 1]
    };
    trained(&["</s>", "<|endoftext|>"]);
    assert_eq!(last(None), 1);
    trained(&["</s>", "<|user|>"]);
    assert_eq!(last(None), 0);
    assert_eq!(last(Some(r#"{"eos_token": {"content": "<|user|>"}}"#)), 1);
    assert_eq!(last(None), 0);
    trained(&["<unk>", "</s>"]);
    assert!(last(None) > 1);
}

#[test]
fn the_end_that_is_asked_for_ends_documents_whatever_they_came_in() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = "a row of text, and another one\n".repeat(20);
    let rows = "{\"text\": \"a row of text\"}\n".repeat(20);
    let gz = |text: &str| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    for (name, bytes) in [
        ("a.txt", text.clone().into_bytes()),
        ("b.txt.gz", gz(&text)),
        ("c.jsonl", rows.clone().into_bytes()),
        ("d.json", rows.clone().into_bytes()),
        ("e.jsonl.gz", gz(&rows)),
    ] {
        std::fs::write(at(name), bytes).unwrap();
    }
    let special = vec!["</s>".to_string(), "<|stop|>".to_string()];
    let inputs = vec![at("a.txt").into()];
    let output = at("tokenizer.json");
    train_tokenizer(&TokenizerOptions { inputs, vocab: 280, special, output, ..Default::default() }).unwrap();
    let base = PrepareOptions { tokenizer: at("tokenizer.json"), output: at("data"), ..Default::default() };
    for name in ["a.txt", "b.txt.gz", "c.jsonl", "d.json", "e.jsonl.gz"] {
        for (end, expected) in [(None, Some(0)), (Some("<|stop|>"), Some(1)), (Some(""), None)] {
            let end = end.map(String::from);
            prepare(&PrepareOptions { inputs: vec![at(name).into()], end, ..base.clone() }).unwrap();
            let file = TokenFile::open(&at("data/train.tokens")).unwrap();
            for document in 1..=file.documents() {
                let mut last = [0];
                file.read(file.offset(document) - 1, &mut last).unwrap();
                assert_eq!(Some(last[0]).filter(|id| *id < 2), expected, "{name}");
            }
        }
    }
    for (end, chat, said) in
        [("<|none|>", false, "no token \"<|none|>\""), ("</s>", true, "as their template says")]
    {
        let inputs = vec![at("c.jsonl").into()];
        let e = prepare(&PrepareOptions { inputs, end: Some(end.into()), chat, ..base.clone() }).unwrap_err();
        assert_eq!(e.status(), Status::INVALID_ARG);
        assert!(e.message().contains(said), "{e}");
    }
}

#[test]
fn data_that_is_not_settled_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let output = dir.path().join("data");
    let read = |name: &str| std::fs::read(output.join(name)).unwrap();
    let before = FILES.map(read);
    let inputs = vec![dir.path().join("b.jsonl").into()];
    let tokenizer = dir.path().join("tokenizer.json");
    let options = PrepareOptions { inputs, tokenizer, output: output.clone(), ..Default::default() };
    let tokenized = tokenize(&options).unwrap();
    assert!(options.unfinished().iter().all(|path| path.is_file()) && FILES.map(read) == before);
    drop(tokenized);
    assert!(!options.unfinished().iter().any(|path| path.exists()) && FILES.map(read) == before);
    tokenize(&options).unwrap().settle().unwrap();
    assert!(FILES.map(read) != before);
}

#[test]
fn a_directory_is_prepared_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let (inputs, tokenizer) = (vec![dir.path().join("b.jsonl").into()], dir.path().join("tokenizer.json"));
    let options = PrepareOptions { inputs, tokenizer, output: dir.path().join("data"), ..Default::default() };
    let alone = prepare(&options).unwrap();
    for part in options.unfinished() {
        std::fs::write(&part, "of a process that works, or was killed").unwrap();
        let works = File::open(&part).unwrap();
        works.try_lock().unwrap();
        let e = prepare(&options).unwrap_err();
        assert!(e.status() == Status::BUSY && e.message().contains(".tokens.part: another process"), "{e}");
        assert!(part.exists());
        drop(works);
        assert_eq!(prepare(&options).unwrap().train_tokens, alone.train_tokens);
        for name in FILES {
            TokenFile::open(&options.output.join(name)).unwrap().verify().unwrap();
        }
    }
}

#[test]
fn what_a_tokenizer_says_about_lengths_does_not_shorten_texts() {
    let dir = tempfile::tempdir().unwrap();
    let before = prepared(dir.path());
    let tokenizer = dir.path().join("tokenizer.json");
    let mut tree: serde_json::Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    tree["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    );
    tree["padding"] = serde_json::json!({"strategy": {"Fixed": 100}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    std::fs::write(&tokenizer, tree.to_string()).unwrap();
    let inputs = ["a.txt", "b.jsonl"].map(|name| dir.path().join(name).into()).to_vec();
    let output = dir.path().join("again");
    let after = prepare(&PrepareOptions { inputs, tokenizer, output, ..Default::default() }).unwrap();
    assert_eq!((after.train_tokens, after.held_out_tokens), (before.train_tokens, before.held_out_tokens));
}

#[test]
fn a_damaged_token_file_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let good = std::fs::read(dir.path().join("data/train.tokens")).unwrap();
    let path = dir.path().join("bad.tokens");
    for at in 0..HEAD {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        assert!(TokenFile::open(&path).is_err(), "bit of byte {at}");
    }
    for len in [0, 1, HEAD - 1, HEAD, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(TokenFile::open(&path).is_err(), "cut to {len}");
    }
    let mut bad = good.clone();
    bad[HEAD + 1] = 0xff;
    std::fs::write(&path, &bad).unwrap();
    let file = TokenFile::open(&path).unwrap();
    assert_eq!(file.read(0, &mut [0]).unwrap_err().status(), Status::BAD_FORMAT);
    assert_eq!(file.verify().unwrap_err().status(), Status::CHECKSUM);
}
