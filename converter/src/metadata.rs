//! The metadata of the file: what the checkpoint's directory says beside its weights.

use std::path::Path;

use llm::{Error, Result, Status};
use llm_format::quant::Type;
use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, read_at_most, read_json_if_there};

/// The most a template, a licence or a model card may be.
const MAX_TEXT: u64 = 1 << 20;

/// Keys of `generation_config.json` that are carried over as they are.
const GENERATION: &[&str] = &[
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
];

/// A text file of bounded size, `None` where it is missing, too long or not UTF-8.
fn text(path: &Path) -> Option<String> {
    let length = std::fs::metadata(path).ok().filter(|m| m.is_file())?.len();
    if length > MAX_TEXT { None } else { std::fs::read_to_string(path).ok() }
}

/// A template's file, `None` where there is none. One that cannot be read is an error: another one in its place, or none,
/// would make other prompts.
fn template(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_at_most(path, MAX_TEXT, "a template")?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let what = format!("{}: expected UTF-8 text, got an invalid byte at offset {at}", path.display());
        Error::new(Status::BAD_FORMAT, what)
    });
    text.map(Some)
}

/// Templates: `chat_template` for one, `chat_templates` for those with a name.
pub(crate) fn templates(dir: &Path, tokenizer: Option<&Value>, out: &mut Map<String, Value>) -> Result<()> {
    let mut default = None;
    let mut named = Map::new();
    match tokenizer.and_then(|t| t.get("chat_template")) {
        Some(Value::String(s)) => default = Some(s.clone()),
        Some(Value::Array(list)) => {
            for item in list {
                let part = |key| item.get(key).and_then(Value::as_str);
                if let (Some(name), Some(template)) = (part("name"), part("template")) {
                    named.insert(name.into(), template.into());
                }
            }
        }
        _ => {}
    }
    // The files of newer checkpoints win over the keys of older ones, as in the transformers library.
    if let Some(s) = template(&dir.join("chat_template.jinja"))? {
        default = Some(s);
    } else if let Some(Value::String(s)) =
        read_json_if_there(&dir.join("chat_template.json"))?.as_ref().and_then(|v| v.get("chat_template"))
    {
        default = Some(s.clone());
    }
    let mut files: Vec<_> = std::fs::read_dir(dir.join("additional_chat_templates"))
        .map(|entries| entries.filter_map(|e| e.ok().map(|e| e.path())).collect())
        .unwrap_or_default();
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "jinja")) {
        if let (Some(name), Some(s)) = (file.file_stem().and_then(|s| s.to_str()), template(file)?) {
            named.insert(name.into(), s.into());
        }
    }
    let default = default.or_else(|| named.remove("default").and_then(|v| v.as_str().map(str::to_owned)));
    if let Some(template) = default {
        out.insert("chat_template".into(), template.into());
    }
    if !named.is_empty() {
        named.sort_keys();
        out.insert("chat_templates".into(), named.into());
    }
    Ok(())
}

/// The tokenizer's kind, and its special tokens' texts, which templates name.
pub(crate) fn tokenizer(kind: &str, config: Option<&Value>) -> Value {
    let mut out = Map::new();
    out.insert("kind".into(), kind.into());
    for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        let token = config.and_then(|c| c.get(key));
        // A plain string, or an object with its text and its flags.
        let content = token.and_then(|t| t.get("content")).or(token).and_then(Value::as_str);
        if let Some(content) = content {
            out.insert(key.into(), content.into());
        }
    }
    for key in ["add_bos_token", "add_eos_token"] {
        if let Some(Value::Bool(b)) = config.and_then(|c| c.get(key)) {
            out.insert(key.into(), (*b).into());
        }
    }
    out.into()
}

/// Defaults for generation: sampling parameters and the ids that begin and end a text.
pub(crate) fn generation(dir: &Path, config: &Value) -> Result<Value> {
    let file = read_json_if_there(&dir.join("generation_config.json"))?;
    let mut out = Map::new();
    for key in GENERATION {
        if let Some(value) =
            file.as_ref().and_then(|f| f.get(*key)).filter(|v| v.is_number() || v.is_boolean())
        {
            out.insert((*key).into(), value.clone());
        }
    }
    for (key, plural) in
        [("bos_token_id", None), ("pad_token_id", None), ("eos_token_id", Some("eos_token_ids"))]
    {
        let value = [file.as_ref(), Some(config)]
            .into_iter()
            .flatten()
            .find_map(|source| source.get(key).filter(|v| !v.is_null()));
        let ids: Vec<u64> = match value {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).collect(),
            Some(one) => one.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        match (plural, ids.first()) {
            (Some(plural), Some(_)) => out.insert(plural.into(), ids.into()),
            (None, Some(id)) => out.insert(key.into(), (*id).into()),
            (_, None) => None,
        };
    }
    Ok(out.into())
}

/// The licence: what the model card's head calls it, or the text of a licence file.
pub(crate) fn license(dir: &Path) -> Option<String> {
    if let Some(card) = text(&dir.join("README.md"))
        && let Some((head, _)) = card.strip_prefix("---").and_then(|rest| rest.split_once("\n---"))
    {
        let line = head.lines().find_map(|line| line.strip_prefix("license:"));
        let name = line.map(|l| l.trim().trim_matches(['"', '\'']));
        if let Some(name) = name.filter(|n| !n.is_empty() && *n != "other") {
            return Some(name.into());
        }
    }
    ["LICENSE", "LICENSE.txt", "LICENSE.md"].iter().find_map(|name| text(&dir.join(name)))
}

/// Where the weights come from.
pub(crate) fn provenance(name: &str, config: &Value, checkpoint: &Checkpoint) -> Value {
    let mut types: Vec<String> = checkpoint.tensors().values().map(|t| t.dtype()).collect();
    types.sort();
    types.dedup();
    let mut out = json!({
        "source": name,
        "format": "safetensors",
        "stored": types,
        "converter": concat!("llm-convert ", env!("CARGO_PKG_VERSION")),
    });
    for key in ["architectures", "transformers_version"] {
        if let (Some(value), Some(map)) = (config.get(key), out.as_object_mut()) {
            map.insert(key.into(), value.clone());
        }
    }
    out
}

/// How the weights are stored.
pub(crate) fn quantization(ty: Type, bits: f64) -> Value {
    json!({
        "type": ty.name(),
        // Two decimals: a file's text should not depend on how a division rounds.
        "bits_per_weight": (bits * 100.0).round() / 100.0,
        "kept": {"vectors": "f32", "routers": "f32", "positions": if ty.is_integer() { "f16" } else { ty.name() }},
    })
}
