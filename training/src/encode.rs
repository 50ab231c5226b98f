//! Texts to ids, part by part: some tokenizers put a space before a text, and what continues one must not get it.

use llm::error::{Error, Result, Status};
use serde_json::Value;
use tokenizers::{Encoding, Tokenizer};

/// Where a part of a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The text begins with it.
    Beginning,
    /// A special token lies before it.
    BehindSpecial,
    /// Other text lies before it.
    Inside,
}

/// A tokenizer for texts in parts.
pub(crate) struct Encoder {
    tokenizer: Tokenizer,
    /// The same without a space before texts, where there is one.
    bare: Option<Box<Tokenizer>>,
    /// The space stands behind every special token, too.
    each: bool,
}

impl Encoder {
    /// Of a tokenizer as [`crate::bpe::load`] gives it.
    ///
    /// # Errors
    /// `INTERNAL` if the tokenizer cannot be written and read.
    pub fn new(tokenizer: Tokenizer) -> Result<Encoder> {
        let wrong =
            |e: String| Error::new(Status::INTERNAL, format!("a tokenizer without its first space: {e}"));
        let node = |node: serde_json::Result<Value>| node.map_err(|e| wrong(e.to_string()));
        let mut normalizer = node(serde_json::to_value(tokenizer.get_normalizer()))?;
        let mut splitter = node(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
        let mut each = None;
        strip(&mut normalizer, &mut each);
        strip(&mut splitter, &mut each);
        let bare = if each.is_some() {
            let text = tokenizer.to_string(false).map_err(|e| wrong(e.to_string()))?;
            let mut tree = node(serde_json::from_str(&text))?;
            (tree["normalizer"], tree["pre_tokenizer"]) = (normalizer, splitter);
            let mut bare = Tokenizer::from_bytes(tree.to_string()).map_err(|e| wrong(e.to_string()))?;
            bare.set_encode_special_tokens(true);
            Some(Box::new(bare))
        } else {
            None
        };
        Ok(Encoder { tokenizer, bare, each: each.unwrap_or(false) })
    }

    /// The tokenizer for whole texts.
    #[cfg(test)]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids of a part of a text.
    ///
    /// # Errors
    /// `BAD_FORMAT` for what the tokenizer refuses.
    pub fn encode(&self, text: &str, place: Place) -> Result<Encoding> {
        let bare = match place {
            Place::Beginning => false,
            Place::BehindSpecial => !self.each,
            Place::Inside => true,
        };
        let tokenizer = self.bare.as_deref().filter(|_| bare).unwrap_or(&self.tokenizer);
        let wrong = |e: tokenizers::Error| Error::new(Status::BAD_FORMAT, format!("tokenizing: {e}"));
        tokenizer.encode_fast(text, false).map_err(wrong)
    }
}

/// Takes out of a normalizer or a splitter what puts a space before a text; `each`: whether behind every special token.
fn strip(node: &mut Value, each: &mut Option<bool>) {
    let kind = node.get("type").and_then(Value::as_str).unwrap_or_default().to_string();
    match kind.as_str() {
        "Sequence" => {
            for list in ["normalizers", "pretokenizers"] {
                if let Some(items) = node.get_mut(list).and_then(Value::as_array_mut) {
                    items.iter_mut().for_each(|item| strip(item, each));
                    items.retain(|item| !item.is_null());
                }
            }
        }
        "Prepend" => {
            *each = Some(true);
            *node = Value::Null;
        }
        "Metaspace" if node["prepend_scheme"] != "never" => {
            *each = Some(node["prepend_scheme"] != "first");
            node["prepend_scheme"] = "never".into();
        }
        "ByteLevel" if node["add_prefix_space"] == true => {
            *each = Some(true);
            node["add_prefix_space"] = false.into();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::{TokenizerKind, TokenizerOptions, load, train_tokenizer};
    use serde_json::json;

    #[test]
    fn a_space_before_texts_stands_before_no_part_that_continues_one() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("t.txt"), dir.path().join("tokenizer.json"));
        std::fs::write(&input, "the cat and the hat\n".repeat(20)).unwrap();
        let options = TokenizerOptions {
            inputs: vec![input.into()],
            kind: TokenizerKind::Bpe,
            vocab: 380,
            output: output.clone(),
            ..Default::default()
        };
        train_tokenizer(&options).unwrap();
        let plain: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let normalizer = json!({"type": "Sequence", "normalizers": [prepend, plain["normalizer"]]});
        let first = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        // of each kind: whether a space stands at the beginning, and behind a special token
        for (normalizer, splitter, at_first, behind) in [
            (plain["normalizer"].clone(), Value::Null, false, false),
            (normalizer, Value::Null, true, true),
            (Value::Null, first("always"), true, true),
            (Value::Null, first("first"), true, false),
            (Value::Null, first("never"), false, false),
        ] {
            let mut tree = plain.clone();
            (tree["normalizer"], tree["pre_tokenizer"]) = (normalizer, splitter.clone());
            std::fs::write(&output, tree.to_string()).unwrap();
            let encoder = Encoder::new(load(&output).unwrap()).unwrap();
            let ids = |text: &str, place| encoder.encode(text, place).unwrap().get_ids().to_vec();
            let spaced = |place| {
                let first = encoder.tokenizer().id_to_token(ids("hat", place)[0]);
                first.is_some_and(|token| token.starts_with('▁'))
            };
            assert_eq!(spaced(Place::Beginning), at_first, "{splitter}");
            assert_eq!(spaced(Place::BehindSpecial), behind, "{splitter}");
            assert!(!spaced(Place::Inside), "{splitter}");
            let parts = [ids("the cat and", Place::Beginning), ids(" the hat", Place::Inside)].concat();
            assert_eq!(parts, ids("the cat and the hat", Place::Beginning), "{splitter}");
        }
    }
}
