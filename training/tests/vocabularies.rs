//! Trained vocabularies: libllm's tokenizer and the `tokenizers` crate read the same file to the same ids.

use std::io::Write;
use std::path::Path;

use llm::mmap::Bytes;
use llm::tokenizer::{EncodeOptions, Tokenizer};
use llm_train::{PrepareOptions, Source, TokenizerKind, TokenizerOptions, prepare, train_tokenizer};
use serde_json::{Value, json};

/// Text in two kinds of source.
fn sources(dir: &Path) -> Vec<Source> {
    let (plain, packed) = (dir.join("a.txt"), dir.join("b.jsonl.gz"));
    std::fs::write(&plain, &llm_train::quickstart::TEXT[..100_000]).unwrap();
    let file = std::fs::File::create(&packed).unwrap();
    let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    for i in 0..300 {
        let text = format!("Zeile {i}: über die Brücke ging 猫 {} — «naïve».\n\n\tend", i * i);
        writeln!(file, "{}", json!({ "text": text })).unwrap();
    }
    file.finish().unwrap();
    vec![plain.into(), packed.into()]
}

#[test]
fn trained_vocabularies_give_the_ids_of_the_tokenizers_crate() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = sources(dir.path());
    let mut texts: Vec<String> =
        llm_train::quickstart::TEXT[90_000..160_000].split("\n\n").map(String::from).collect();
    texts.extend(
        ["", " ", "\n \n", "  two  spaces ", "<|endoftext|> <0x0A> <unk>", "猫犬 über\u{0}ß🙂🙂", "a\u{301}"]
            .map(String::from),
    );
    if let Some(shared) = llm_testdata::shared("data/text") {
        for name in ["wiki-demo.txt", "wagahaiwa-nekodearu.txt"] {
            let text = std::fs::read_to_string(shared.join(name)).unwrap();
            texts.extend(text.split_inclusive('\n').take(200).map(String::from));
        }
    }
    for kind in [TokenizerKind::ByteLevel, TokenizerKind::Bpe, TokenizerKind::Unigram] {
        let output = dir.path().join("tokenizer.json");
        let inputs = inputs.clone();
        let options =
            TokenizerOptions { inputs, kind, vocab: 1500, output: output.clone(), ..Default::default() };
        assert_eq!(train_tokenizer(&options).unwrap(), 1500);
        let built = llm_convert::tokenizer::load_file(&output, None).unwrap();
        let own = Tokenizer::from_tables(Bytes::from(built.tables)).unwrap();
        let mut theirs = tokenizers::Tokenizer::from_file(&output).unwrap();
        for special in [true, false] {
            theirs.set_encode_special_tokens(!special);
            for text in &texts {
                let expected = theirs.encode_fast(text.as_str(), false).unwrap();
                let expected: Vec<i32> = expected.get_ids().iter().map(|i| *i as i32).collect();
                let options = EncodeOptions { add_special: false, parse_special: special };
                assert_eq!(own.encode(text, options).unwrap(), expected, "{kind:?}, {special}: {text:?}");
                assert_eq!(own.decode_text(&expected, false).unwrap(), *text, "{kind:?}");
            }
        }
    }
}

#[test]
fn data_is_cut_as_the_converted_tokenizer_cuts_it() {
    let dir = tempfile::tempdir().unwrap();
    let (input, tokenizer) = (dir.path().join("t.txt"), dir.path().join("tokenizer.json"));
    let text = "1234567 abc\n12ab ABC\n".repeat(30);
    std::fs::write(&input, &text).unwrap();
    let inputs: Vec<Source> = vec![input.into()];
    let options = TokenizerOptions {
        inputs: inputs.clone(),
        vocab: 300,
        output: tokenizer.clone(),
        ..Default::default()
    };
    train_tokenizer(&options).unwrap();
    let mut tree: Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    // What Oniguruma, for which such files are written, reads otherwise than the engine of the crate.
    for expression in [r"\d{1,3}+", "^1|c$", "a(?i)b|C", r"(?m)c.1", r"\d{2}+"] {
        let split = json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
                           "invert": false});
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": false});
        tree["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, level]});
        std::fs::write(&tokenizer, tree.to_string()).unwrap();
        let output = dir.path().join("data");
        let (inputs, tokenizer) = (inputs.clone(), tokenizer.clone());
        let built = llm_convert::tokenizer::load_file(&tokenizer, None).unwrap();
        let options =
            PrepareOptions { inputs, tokenizer, output: output.clone(), held_out: 0.0, ..Default::default() };
        prepare(&options).unwrap();
        // Behind a header of 128 bytes, which counts them, ids of two bytes; the last one ends the document.
        let data = std::fs::read(output.join("train.tokens")).unwrap();
        let count = u64::from_le_bytes(data[32..40].try_into().unwrap()) as usize;
        let ids = data[128..][..2 * count].chunks(2);
        let got: Vec<i32> = ids.map(|b| i32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
        let own = Tokenizer::from_tables(Bytes::from(built.tables)).unwrap();
        let mut want = own.encode(&text, EncodeOptions::default()).unwrap();
        want.push(0);
        assert_eq!(got, want, "{expression:?}");
    }
}
