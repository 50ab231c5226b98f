//! The tokenizer against the `tokenizers` crate on whole files, and what must hold for any input: streams equal whole
//! lists, long words cost no square, damaged tables give errors or wrong ids and nothing worse.

use llm::mmap::Bytes;
use llm::tokenizer::{EncodeOptions, TextStream, Tokenizer};
use llm_testdata::shared;
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizedString, PreTokenizerWrapper, SplitDelimiterBehavior};
use unicode_normalization::UnicodeNormalization;

fn ours(path: &Path) -> Arc<Tokenizer> {
    let built = llm_convert::tokenizer::load_dir(path, None).unwrap().unwrap();
    Arc::new(Tokenizer::from_tables(Bytes::from(built.tables)).unwrap())
}

fn theirs(dir: &Path) -> tokenizers::Tokenizer {
    if dir.join("tokenizer.json").is_file() {
        return tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    }
    let llama3 = dir.ends_with("llama3");
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let bpe = BPE::from_file(&file("vocab.json"), &file("merges.txt")).ignore_merges(llama3);
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().unwrap());
    if llama3 {
        let pattern = SplitPattern::Regex(llm_format::tokens::Scanner::Llama3.regex().to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
        let steps: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, false).into()];
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    } else {
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    }
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer
}

fn same_on_files(name: &str) {
    let (Some(dir), Some(texts)) = (shared(&format!("data/tokenizers/{name}")), shared("data/text")) else {
        return;
    };
    let (ours, theirs) = (ours(&dir), theirs(&dir));
    for file in ["wiki-demo.txt", "wagahaiwa-nekodearu.txt", "c4-demo.jsonl", "tinystories-200k.txt"] {
        let text = std::fs::read_to_string(texts.join(file)).unwrap();
        // Without spaces between lines the paragraphs stay short: their time grows faster than the text.
        for part in text.split_inclusive('\n') {
            let want: Vec<i32> =
                theirs.encode_fast(part, false).unwrap().get_ids().iter().map(|i| *i as i32).collect();
            let got = ours.encode(part, EncodeOptions { add_special: false, parse_special: true }).unwrap();
            assert_eq!(got, want, "{name} {file}: {part:?}");
            let list: Vec<u32> = want.iter().map(|i| *i as u32).collect();
            assert_eq!(ours.decode_text(&want, false).unwrap(), theirs.decode(&list, false).unwrap());
        }
    }
}

#[test]
fn gpt2_equals_tokenizers_on_whole_files() {
    same_on_files("gpt2");
}

#[test]
fn llama3_equals_tokenizers_on_whole_files() {
    same_on_files("llama3");
}

#[test]
fn phi3_equals_tokenizers_on_whole_files() {
    same_on_files("phi-3-mini");
}

#[test]
fn t5_equals_tokenizers_on_whole_files() {
    same_on_files("t5-small");
}

#[test]
fn roberta_equals_tokenizers_on_whole_files() {
    same_on_files("roberta-base");
}

#[test]
fn streams_equal_whole_lists_and_tokenizers_for_any_ids() {
    let Some(root) = shared("reference/tokenizers") else { return };
    for kind in ["gpt2_bpe", "llama2_spm", "gemma_spm", "unigram", "qwen2_bpe"] {
        let (ours, theirs) = (ours(&root.join(kind)), theirs(&root.join(kind)));
        let size = ours.size() as i32;
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
        let ids = prop::collection::vec(0..size, 0..24);
        let check = runner.run(&(ids, any::<bool>()), |(ids, skip)| {
            let whole = ours.decode_text(&ids, skip).unwrap();
            let mut stream = TextStream::new(&ours, skip);
            let mut text = String::new();
            for id in &ids {
                text.push_str(stream.push(*id).unwrap());
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(&text, &whole);
            let list: Vec<u32> = ids.iter().map(|i| *i as u32).collect();
            prop_assert_eq!(whole, theirs.decode(&list, skip).unwrap());
            Ok(())
        });
        check.unwrap_or_else(|e| panic!("{kind}: {e}"));
    }
}

/// Whether both crates' versions of Unicode say the same of `c`: what it is made of, and its order among marks. The tables
/// of `tokenizers` are older, and letters keep being added that are made of others.
fn known_alike(c: char) -> bool {
    let text = format!("e\u{301}{c}\u{323}{c}");
    let mut theirs = NormalizedString::from(text.as_str());
    theirs.nfkd();
    theirs.get() == text.nfkd().collect::<String>()
}

#[test]
fn any_text_gives_the_ids_of_tokenizers() {
    assert!(known_alike('\u{fb01}') && !known_alike('\u{1ccd6}')); // of version 1 and of version 16

    let Some(root) = shared("reference/tokenizers") else { return };
    for kind in ["gpt2_bpe", "llama3_bpe", "qwen2_bpe", "llama2_spm", "gemma_spm", "unigram"] {
        let (ours, theirs) = (ours(&root.join(kind)), theirs(&root.join(kind)));
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
        let text = "([ \t\n'a-zA-Z0-9.!/]|the|na\u{ef}ve|<tool>|<pad_left>|<\\|bos\\|>|\u{2581}|e\u{301}|\u{6f22}|\u{1f600}|\\PC){0,24}";
        let check = runner.run(&(text, any::<bool>()), |(text, special)| {
            prop_assume!(text.chars().all(known_alike));
            let want: Vec<i32> =
                theirs.encode(text.as_str(), special).unwrap().get_ids().iter().map(|i| *i as i32).collect();
            prop_assert_eq!(ours.encode(&text, ours.options(special)).unwrap(), want);
            Ok(())
        });
        check.unwrap_or_else(|e| panic!("{kind}: {e}"));
    }
}

/// Tables of a tiny tokenizer with something in every part.
fn tiny(unigram: bool) -> Vec<u8> {
    let added = json!([
        {"id": 0, "content": "<u>", "special": true, "normalized": false},
        {"id": 90, "content": "<b>", "special": true, "normalized": false, "lstrip": true, "rstrip": true},
        {"id": 91, "content": "ab", "special": false, "normalized": true, "single_word": true},
    ]);
    let post = json!({"type": "RobertaProcessing", "sep": ["<b>", 7], "cls": ["<b>", 7]});
    let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]});
    let value = if unigram {
        json!({"added_tokens": added, "normalizer": normalizer, "post_processor": post,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true},
            "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true},
            "model": {"type": "Unigram", "unk_id": 0, "vocab":
                [["<u>", 0.0], ["\u{2581}", -2.0], ["a", -2.1], ["ab", -2.2], ["c", -3.0], ["\u{2581}abc", -1.5], ["漢", -4.0]]}})
    } else {
        json!({"added_tokens": added, "normalizer": normalizer, "post_processor": post,
            "pre_tokenizer": {"type": "Digits", "individual_digits": true},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "c"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<u>", "fuse_unk": true, "byte_fallback": true,
                "vocab": {"<u>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "abc": 5, "<0x0A>": 6},
                "merges": ["a b", "ab c"]}})
    };
    llm_convert::tokenizer::from_hf_json(&value).unwrap().tables
}

/// Uses everything of a tokenizer whose tables may say anything.
fn exercise(tables: Vec<u8>) {
    let Ok(tokenizer) = Tokenizer::from_tables(Bytes::from(tables)) else { return };
    let tokenizer = Arc::new(tokenizer);
    for text in ["abc  ab <b> c漢\n1a", "", "<u>aaaaaaabcabcabc\u{301}"] {
        for special in [false, true] {
            let options = EncodeOptions { add_special: special, parse_special: special };
            if let Ok(ids) = tokenizer.encode(text, options) {
                tokenizer.decode(&ids, special).unwrap();
            }
        }
    }
    let all: Vec<i32> = (0..tokenizer.size().min(64) as i32).collect();
    tokenizer.decode_text(&all, false).unwrap();
    let mut stream = TextStream::new(&tokenizer, true);
    all.iter().for_each(|id| drop(stream.push(*id).map(str::len)));
    stream.finish();
    for id in all.iter().chain(&[-1, i32::MAX]) {
        let _ = (tokenizer.token_bytes(*id), tokenizer.flags(*id), tokenizer.is_end(*id));
    }
    let _ = (tokenizer.find(b"<b>"), tokenizer.find(b""));
}

#[test]
fn damaged_tables_never_panic() {
    for unigram in [false, true] {
        let good = tiny(unigram);
        assert!(Tokenizer::from_tables(Bytes::from(good.clone())).is_ok());
        for len in 0..good.len() {
            exercise(good[..len].to_vec());
        }
        for at in 0..good.len() {
            for flip in [1u8, 0x80, 0xFF] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                exercise(bad);
            }
        }
    }
}

#[test]
fn a_long_word_costs_no_square() {
    let Some(dir) = shared("data/tokenizers/gpt2") else { return };
    let tokenizer = ours(&dir);
    // A square would be 10¹² steps; the test would not end.
    for text in ["a".repeat(1 << 20), "ab".repeat(1 << 19), "é".repeat(1 << 19), " ".repeat(1 << 20)] {
        let ids = tokenizer.encode(&text, EncodeOptions::default()).unwrap();
        assert_eq!(tokenizer.decode_text(&ids, false).unwrap(), text);
    }
}

#[test]
fn the_same_tokenizer_gives_the_same_tables() {
    for unigram in [false, true] {
        assert_eq!(tiny(unigram), tiny(unigram));
    }
    let Some(dir) = shared("reference/tokenizers/llama2_spm") else { return };
    let build = || llm_convert::tokenizer::load_dir(&dir, None).unwrap().unwrap().tables;
    assert_eq!(build(), build());
}

#[test]
fn a_small_file_cannot_make_a_large_text() {
    let step = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"});
    let steps = vec![step; 60];
    let value = json!({"normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
    let built = llm_convert::tokenizer::from_hf_json(&value).unwrap();
    let tokenizer = Tokenizer::from_tables(Bytes::from(built.tables)).unwrap();
    assert!(tokenizer.encode("a", EncodeOptions::default()).is_err());
    assert!(tokenizer.decode(&[0], false).unwrap().len() < 1 << 18);
}
