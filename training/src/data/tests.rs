//! Prepared data: the same ids whatever a text came in, files that are refused, what ends a document.

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
