//! Tokenizer files to the tables of a `.llm` file.
//!
//! ```text
//! tokenizer.json   → hf        ┐   (its expressions: `llm::tokenizer::oniguruma`)
//! *.model          → spm       ├→ draft → llm_format::tokens::Tables → bytes
//! *.tiktoken       → tiktoken  │
//! vocab.json + merges.txt      ┘
//! ```
//!
//! An importer knows one kind of file. What lies beside it (`tokenizer_config.json`, `special_tokens_map.json`,
//! `added_tokens.json`, `generation_config.json`, `config.json`) says which tokens were added, which have names and which
//! end a generation.

mod draft;
mod hf;
mod merges;
mod protobuf;
mod spm;
mod tiktoken;

use crate::checkpoint::{read_at_most, read_json_if_there};
use draft::{AddedToken, Draft, bad};
use llm::{Error, Result};
use llm_format::tokens::{Pattern, PreTokenizer, Scanner};
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The largest tokenizer file that is read: several times the largest published one.
const LARGEST: u64 = 512 << 20;

/// Finished tables.
#[derive(Clone, Debug)]
pub struct Built {
    /// The section, for `llm_format::tokens` and `llm::tokenizer::Tokenizer`.
    pub tables: Vec<u8>,
    /// The kind of model: `bpe` or `unigram`.
    pub kind: &'static str,
}

/// Tables of a `tokenizer.json`.
///
/// # Errors
/// `BAD_FORMAT` where it contradicts itself, `UNSUPPORTED` where it asks for what the tables cannot say.
pub fn from_hf_json(json: &Value) -> Result<Built> {
    hf::from_json(json)?.finish()
}

/// Tables of a SentencePiece `.model`.
///
/// # Errors
/// As [`from_hf_json`].
pub fn from_sentencepiece(model: &[u8]) -> Result<Built> {
    spm::from_sentencepiece(model)?.finish()
}

/// Tables of a tiktoken file. `pattern`: `gpt2`, `llama3`, `qwen2`, `cl100k`, `o200k` or an expression; without one,
/// and without special tokens, those of the published vocabulary of the same size are taken.
///
/// # Errors
/// As [`from_hf_json`].
pub fn from_tiktoken(bytes: &[u8], pattern: Option<&str>, specials: &[(String, u32)]) -> Result<Built> {
    tiktoken::from_tiktoken(bytes, pattern, specials)?.finish()
}

/// Tables of a `vocab.json` with its `merges.txt`; `pattern` as for [`from_tiktoken`], `gpt2` without one.
///
/// # Errors
/// As [`from_hf_json`].
pub fn from_vocab_merges(vocab: &[u8], merges: &[u8], pattern: Option<&str>) -> Result<Built> {
    tiktoken::from_vocab_merges(vocab, merges, pattern)?.finish()
}

/// Tables of the tokenizer in a checkpoint's directory; `None` where there is none.
///
/// # Errors
/// As [`from_hf_json`], and where a file cannot be read.
pub fn load_dir(dir: &Path, pattern: Option<&str>) -> Result<Option<Built>> {
    let named = |names: &[&str]| names.iter().map(|n| dir.join(n)).find(|p| p.is_file());
    let ending = |ending: &str| -> Result<Option<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| Error::from(e).context(dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == ending) && path.is_file() {
                found.push(path);
            }
        }
        found.sort();
        Ok(found.into_iter().next())
    };
    let draft = if let Some(path) = named(&["tokenizer.json"]) {
        draft_of(&path, pattern)?
    } else if let Some(path) = named(&["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"]) {
        draft_of(&path, pattern)?
    } else if let Some(path) = ending("tiktoken")? {
        draft_of(&path, pattern)?
    } else if let Some(vocab) = named(&["vocab.json", "encoder.json"]) {
        draft_of(&vocab, pattern)?
    } else {
        return Ok(None);
    };
    beside(dir, draft)?.finish().map(Some)
}

/// Tables of one tokenizer file, of whatever kind: `tokenizer.json`, `vocab.json` (with `merges.txt` beside it), a
/// tiktoken file, or a SentencePiece model. What lies beside it is read too.
///
/// # Errors
/// As [`load_dir`].
pub fn load_file(path: &Path, pattern: Option<&str>) -> Result<Built> {
    let draft = draft_of(path, pattern)?;
    beside(path.parent().unwrap_or(Path::new(".")), draft)?.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, LARGEST, "a tokenizer")
}

fn draft_of(path: &Path, pattern: Option<&str>) -> Result<Draft> {
    let bytes = read(path)?;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let draft = if name.ends_with(".tiktoken") {
        tiktoken::from_tiktoken(&bytes, pattern, &[])
    } else if bytes.first().is_some_and(|b| matches!(b, b'{' | b' ' | b'\n' | b'\r' | b'\t'))
        && json_like(name)
    {
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|e| bad(format!("{}: not JSON: {e}", path.display())))?;
        if json.get("model").is_some_and(Value::is_object) {
            hf::from_json(&json)
        } else {
            let dir = path.parent().unwrap_or(Path::new("."));
            let beside = ["merges.txt", "vocab.bpe"].iter().map(|n| dir.join(n)).find(|p| p.is_file());
            let Some(merges) = beside else {
                return Err(bad(format!(
                    "{}: neither a tokenizer.json nor beside a merges.txt",
                    path.display()
                )));
            };
            let pattern = match pattern {
                Some(named) => Some(named),
                None => guess(dir)?,
            };
            tiktoken::from_vocab_merges(&bytes, &read(&merges)?, pattern)
        }
    } else {
        spm::from_sentencepiece(&bytes)
    };
    draft.map_err(|e| e.context(path.display()))
}

fn json_like(name: &str) -> bool {
    name.ends_with(".json")
}

/// The split pattern of a `vocab.json` from the class its configuration names; GPT-2's where nothing is said.
fn guess(dir: &Path) -> Result<Option<&'static str>> {
    let config = object(dir, "tokenizer_config.json")?;
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
    let text = config.get("added_tokens_decoder").map(Value::to_string).unwrap_or_default();
    Ok(if class.starts_with("Qwen2") {
        Some("qwen2")
    } else if text.contains("<|begin_of_text|>") && text.contains("<|eot_id|>") {
        Some("llama3")
    } else {
        None
    })
}

/// A JSON file beside the tokenizer; null where it is missing. One that cannot be read is an error: without what it says
/// texts would have other ids, or generations other ends.
fn object(dir: &Path, name: &str) -> Result<Value> {
    Ok(read_json_if_there(&dir.join(name))?.unwrap_or(Value::Null))
}

/// The text of a token that is given as a string or as an object with `content`.
fn content(value: Option<&Value>) -> Option<&str> {
    let value = value?;
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str))
}

fn llama3(draft: &Draft) -> bool {
    let first = draft.tables.pre_tokenizer.first();
    matches!(first, Some(PreTokenizer::Split(Pattern::Known(Scanner::Llama3), ..)))
}

/// Adds a token of a list beside the tokenizer: under the id it has already, else under that of the list if it is free.
fn add_listed(draft: &mut Draft, id: u32, token: AddedToken) -> Result<()> {
    match draft.find(&token.content) {
        Some(known) if draft.added.contains_key(&known) => Ok(()),
        Some(known) => draft.add(known, token),
        None => {
            let taken = draft.slot(id)?.flags != 0 || draft.added.contains_key(&id);
            if taken { Ok(()) } else { draft.add(id, token) }
        }
    }
}

/// `added_tokens.json`, texts and ids, which checkpoints have that were saved before `tokenizer_config.json` listed added
/// tokens. Special are those that have a name.
fn older_list(dir: &Path, config: &Value, map: &Value) -> Result<Vec<(u32, AddedToken)>> {
    const NAMED: [&str; 7] =
        ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let list = object(dir, "added_tokens.json")?;
    let mut special: HashSet<&str> = HashSet::new();
    for source in [config, map] {
        special.extend(NAMED.iter().filter_map(|name| content(source.get(name))));
        let more = source.get("additional_special_tokens").and_then(Value::as_array);
        special.extend(more.into_iter().flatten().filter_map(|token| content(Some(token))));
    }
    let token = |(text, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| bad(format!("added_tokens.json: {text:?} has no token's id")))?;
        let plain = AddedToken { content: text.clone(), normalized: true, flags: 0 };
        Ok((id, if special.contains(text.as_str()) { AddedToken::special(text) } else { plain }))
    };
    list.as_object().into_iter().flatten().map(token).collect()
}

/// Adds what the files beside the tokenizer say.
fn beside(dir: &Path, mut draft: Draft) -> Result<Draft> {
    let config = object(dir, "tokenizer_config.json")?;
    let map = object(dir, "special_tokens_map.json")?;
    if let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, token) in listed {
            let Some(token) = AddedToken::from_json(token) else { continue };
            let id: u32 = id.parse().map_err(|_| bad(format!("tokenizer_config.json: token id {id:?}")))?;
            add_listed(&mut draft, id, token)?;
        }
    } else {
        for (id, token) in older_list(dir, &config, &map)? {
            add_listed(&mut draft, id, token)?;
        }
    }
    for (at, key) in ["bos_token", "eos_token", "unk_token", "pad_token"].into_iter().enumerate() {
        let text = content(config.get(key)).or_else(|| content(map.get(key)));
        let id = text.and_then(|text| draft.find(text));
        // The model's own unknown token is what encoding uses.
        if at != 2 && id.is_some() {
            draft.tables.special[at] = id;
        }
    }
    if draft.tables.special[0].is_none() {
        draft.tables.special[0] = draft.tables.prefix.first().copied();
    }
    // Kinds of files that carry no template of their own.
    let own = matches!(draft.tables.settings & llm_format::tokens::setting::SPECIAL_TEXT, 0);
    if own {
        let wants = |key: &str| config.get(key).and_then(Value::as_bool);
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
        let t5 = class.starts_with("T5");
        match wants("add_bos_token").or(t5.then_some(false)) {
            Some(true) => draft.tables.prefix = draft.tables.special[0].into_iter().collect(),
            Some(false) => draft.tables.prefix.clear(),
            // Llama 3 is published with a template that begins every text.
            None if llama3(&draft) => draft.tables.prefix = draft.tables.special[0].into_iter().collect(),
            None => {}
        }
        if wants("add_eos_token").unwrap_or(t5) {
            draft.tables.suffix = draft.tables.special[1].into_iter().collect();
        }
    }
    for name in ["generation_config.json", "config.json"] {
        let ends = object(dir, name)?;
        let ids: Vec<u64> = match ends.get("eos_token_id") {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).collect(),
            Some(one) => one.as_u64().into_iter().collect(),
            None => continue,
        };
        for id in ids.into_iter().filter_map(|id| u32::try_from(id).ok()) {
            draft.end(id);
        }
        if draft.ends_known {
            break;
        }
    }
    Ok(draft)
}
