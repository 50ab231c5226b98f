//! Tokens that are added to a vocabulary: those listed beside its file, and the ids of those that have none.

use llm::mmap::Bytes;
use llm::tokenizer::{EncodeOptions, Tokenizer};
use llm_convert::tokenizer::{Built, from_hf_json, load_dir};
use serde_json::json;

const SPECIAL: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };

fn tokenizer(built: Built) -> Tokenizer {
    Tokenizer::from_tables(Bytes::from(built.tables)).unwrap()
}

#[test]
fn older_checkpoints_list_added_tokens_in_a_file_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    put("vocab.json", json!({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}).to_string());
    put("merges.txt", "a b\n".into());
    put("added_tokens.json", json!({"<|im_start|>": 5, "  ": 4}).to_string());
    put("special_tokens_map.json", json!({"additional_special_tokens": ["<|im_start|>"]}).to_string());
    let ours = || tokenizer(load_dir(dir.path(), None).unwrap().unwrap());
    let (text, ids) = ("<|im_start|>ab  ", [5, 2, 4]);
    assert_eq!(ours().encode(text, SPECIAL).unwrap(), ids);
    assert_eq!(ours().decode_text(&ids, false).unwrap(), text);
    assert_eq!(ours().decode_text(&ids, true).unwrap(), "ab  ", "a special token has a name");

    // The list of a newer checkpoint counts alone.
    put("tokenizer_config.json", json!({"added_tokens_decoder": {}}).to_string());
    assert!(ours().decode_text(&ids, false).is_err());
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    put("added_tokens.json", json!({"<|im_start|>": "five"}).to_string());
    let refused = load_dir(dir.path(), None).unwrap_err();
    assert!(refused.message().contains("added_tokens.json") && refused.message().contains("<|im_start|>"));
    // One that was cut short is not one that is missing.
    for name in ["added_tokens.json", "special_tokens_map.json", "generation_config.json"] {
        put("added_tokens.json", "{}".into());
        put(name, "{\"<|im_start|>\": 5".into());
        let cut = load_dir(dir.path(), None).unwrap_err();
        assert!(cut.message().contains(name) && cut.message().contains("malformed JSON"), "{cut}");
        put(name, "{}".into());
    }
    load_dir(dir.path(), None).unwrap();
}

#[test]
fn added_tokens_of_a_unigram_model_are_numbered_behind_its_lines() {
    // Two lines of the same text: four lines, three texts.
    let vocab = json!([["<unk>", 0.0], ["a", -1.0], ["a", -2.0], ["b", -1.5]]);
    let added = json!({"id": 4, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false});
    let whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [added],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": vocab}});
    let theirs: tokenizers::Tokenizer = whole.to_string().parse().unwrap();
    let want = theirs.encode_fast("<x>ba", false).unwrap();
    let ours = tokenizer(from_hf_json(&whole).unwrap()).encode("<x>ba", SPECIAL).unwrap();
    assert_eq!(ours.iter().map(|id| *id as u32).collect::<Vec<_>>(), want.get_ids());
    assert_eq!(ours, [4, 3, 2]);
}
