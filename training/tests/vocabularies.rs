//! Trained vocabularies: libllm's tokenizer and the `tokenizers` crate read the same file to the same ids.

use std::io::Write;
use std::path::Path;

use llm::mmap::Bytes;
use llm::tokenizer::{EncodeOptions, Tokenizer};
use llm_train::{Source, TokenizerKind, TokenizerOptions, train_tokenizer};

/// Text in two kinds of source.
fn sources(dir: &Path) -> Vec<Source> {
    let (plain, packed) = (dir.join("a.txt"), dir.join("b.jsonl.gz"));
    std::fs::write(&plain, &llm_train::quickstart::TEXT[..100_000]).unwrap();
    let file = std::fs::File::create(&packed).unwrap();
    let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    for i in 0..300 {
        let text = format!("Zeile {i}: über die Brücke ging 猫 {} — «naïve».\n\n\tend", i * i);
        writeln!(file, "{}", serde_json::json!({ "text": text })).unwrap();
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
