//! A tokenizer without training, for tests and benches.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// A tokenizer whose tokens are the characters of `text`, which is ASCII, in the spelling of byte-level tokenizers.
pub fn tokenizer(text: &str) -> Value {
    let all: BTreeSet<char> = text.chars().collect();
    let spelled = all.iter().map(|c| match c {
        ' ' => 'Ġ',
        '\n' => 'Ċ',
        other => *other,
    });
    let vocab: Map<String, Value> = spelled.enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level,
           "model": {"type": "BPE", "vocab": vocab, "merges": []}})
}
