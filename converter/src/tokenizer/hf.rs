//! `tokenizer.json` of Hugging Face `tokenizers`.
//!
//! Whatever that library would do differently from what the tables can say is refused by name; nothing is dropped in
//! silence but offsets, padding and truncation, which do not concern ids.

use super::draft::{AddedToken, Draft, bad};
use super::merges::Symbol;
use super::tiktoken::{byte_symbols, numbered, prune, unmap, vocabulary};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llm::tokenizer::oniguruma;
use llm::{Error, Result, Status};
use llm_format::tokens::{
    Behavior, Decoder, Kind, NONE, Normalizer, Pattern, PreTokenizer, Scanner, Scheme, Tables, Token, flag,
    setting,
};
use serde_json::Value;
use std::collections::HashMap;

/// What an unknown character costs more than the dearest token (`unigram/model.rs`).
const UNKNOWN_PENALTY: f64 = 10.0;

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(Status::UNSUPPORTED, format!("tokenizer.json: {}", what.into()))
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("")
}

fn flag_of(value: &Value, key: &str, default: bool) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(default)
}

fn text_of(value: &Value, key: &str) -> Result<String> {
    let text = value.get(key).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| bad(format!("tokenizer.json: {} has no {key:?}", kind(value))))
}

fn char_of(value: &Value, key: &str) -> Result<char> {
    let text = text_of(value, key)?;
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(bad(format!("tokenizer.json: {key:?} of {} is not one character", kind(value)))),
    }
}

/// The steps of `value`, with those of sequences in place of the sequence.
fn flatten<'v>(value: Option<&'v Value>, key: &str) -> Vec<&'v Value> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(value) if kind(value) == "Sequence" => {
            let list = value.get(key).and_then(Value::as_array);
            list.into_iter().flatten().flat_map(|step| flatten(Some(step), key)).collect()
        }
        Some(value) => vec![value],
    }
}

/// The draft of a whole `tokenizer.json`.
pub(crate) fn from_json(json: &Value) -> Result<Draft> {
    let model = json.get("model").ok_or_else(|| bad("tokenizer.json has no model"))?;
    let name = match kind(model) {
        "" if model.get("merges").is_some() => "BPE",
        "" if model.get("vocab").is_some_and(Value::is_array) => "Unigram",
        name => name,
    };
    let mut tables = Tables { settings: setting::SPECIAL_TEXT, ..Tables::default() };
    for step in flatten(json.get("normalizer"), "normalizers") {
        normalizer(step, &mut tables)?;
    }
    let steps = flatten(json.get("pre_tokenizer"), "pretokenizers");
    for (at, step) in steps.iter().enumerate() {
        pre_tokenizer(step, at + 1 == steps.len(), &mut tables)?;
    }
    for step in flatten(json.get("decoder"), "decoders") {
        tables.decoder.push(decoder(step)?);
    }
    let mut draft = match name {
        "BPE" => bpe(model, tables)?,
        "Unigram" => unigram(model, tables)?,
        other => return Err(unsupported(format!("a model of type {other:?}; BPE and Unigram are"))),
    };
    let listed = json.get("added_tokens").and_then(Value::as_array);
    let parsed = |value: &Value| {
        AddedToken::from_json(value).ok_or_else(|| bad("tokenizer.json: an added token without content"))
    };
    let added: Vec<AddedToken> = listed.into_iter().flatten().map(parsed).collect::<Result<_>>()?;
    draft.add_in_order(added)?;
    for step in flatten(json.get("post_processor"), "processors") {
        template(step, &mut draft.tables)?;
    }
    Ok(draft)
}

fn separator(value: &Value) -> Result<Pattern> {
    let found = value.get("pattern");
    if let Some(text) = found.and_then(|p| p.get("String")).and_then(Value::as_str) {
        return Ok(Pattern::Literal(text.to_owned()));
    }
    match found.and_then(|p| p.get("Regex")).and_then(Value::as_str) {
        Some(text) => {
            let text = oniguruma::translate(text)?;
            Ok(Scanner::of(&text).map_or(Pattern::Regex(text), Pattern::Known))
        }
        None => Err(bad(format!("tokenizer.json: {} has no pattern", kind(value)))),
    }
}

fn normalizer(step: &Value, tables: &mut Tables) -> Result<()> {
    let new = match kind(step) {
        "NFC" => Normalizer::Nfc,
        "NFD" => Normalizer::Nfd,
        "NFKC" => Normalizer::Nfkc,
        "NFKD" => Normalizer::Nfkd,
        "Nmt" => Normalizer::Nmt,
        "Lowercase" => Normalizer::Lowercase,
        "Strip" => Normalizer::Strip(flag_of(step, "strip_left", true), flag_of(step, "strip_right", true)),
        "StripAccents" => Normalizer::StripAccents,
        "Prepend" => Normalizer::Prepend(text_of(step, "prepend")?),
        "Replace" => Normalizer::Replace(separator(step)?, text_of(step, "content")?),
        "Precompiled" => {
            let text = step.get("precompiled_charsmap").and_then(Value::as_str).unwrap_or("");
            if !tables.charsmap.is_empty() {
                return Err(unsupported("two precompiled character maps"));
            }
            let map = STANDARD.decode(text);
            tables.charsmap = map.map_err(|_| bad("tokenizer.json: the character map is not base64"))?;
            Normalizer::Charsmap
        }
        other => return Err(unsupported(format!("a normalizer of type {other:?}"))),
    };
    tables.normalizer.push(new);
    Ok(())
}

fn behavior(step: &Value) -> Result<Behavior> {
    Ok(match step.get("behavior").and_then(Value::as_str) {
        Some("Removed") => Behavior::Removed,
        Some("Isolated") | None => Behavior::Isolated,
        Some("MergedWithPrevious") => Behavior::MergedWithPrevious,
        Some("MergedWithNext") => Behavior::MergedWithNext,
        Some("Contiguous") => Behavior::Contiguous,
        Some(other) => return Err(unsupported(format!("split behaviour {other:?}"))),
    })
}

fn scheme(step: &Value) -> Result<Scheme> {
    if step.get("add_prefix_space").and_then(Value::as_bool) == Some(false) {
        return Ok(Scheme::Never);
    }
    Ok(match step.get("prepend_scheme").and_then(Value::as_str) {
        Some("always") | None => Scheme::Always,
        Some("first") => Scheme::First,
        Some("never") => Scheme::Never,
        Some(other) => return Err(unsupported(format!("prepend scheme {other:?}"))),
    })
}

fn pre_tokenizer(step: &Value, last: bool, tables: &mut Tables) -> Result<()> {
    let new = match kind(step) {
        "Split" => PreTokenizer::Split(separator(step)?, behavior(step)?, flag_of(step, "invert", false)),
        "ByteLevel" => {
            if !last {
                return Err(unsupported("a ByteLevel pre-tokenizer that is not the last one"));
            }
            if flag_of(step, "add_prefix_space", true) {
                tables.pre_tokenizer.push(PreTokenizer::PrefixSpace);
            }
            if flag_of(step, "use_regex", true) {
                let gpt2 = Pattern::Known(Scanner::Gpt2);
                tables.pre_tokenizer.push(PreTokenizer::Split(gpt2, Behavior::Isolated, false));
            }
            tables.settings |= setting::BYTE_LEVEL;
            return Ok(());
        }
        "Metaspace" => PreTokenizer::Metaspace(
            char_of(step, "replacement")?,
            scheme(step)?,
            flag_of(step, "split", true),
        ),
        "Digits" => PreTokenizer::Digits(flag_of(step, "individual_digits", false)),
        "Punctuation" => PreTokenizer::Punctuation(behavior(step)?),
        "Whitespace" => PreTokenizer::Whitespace,
        "WhitespaceSplit" => PreTokenizer::WhitespaceSplit,
        "CharDelimiterSplit" => PreTokenizer::Delimiter(char_of(step, "delimiter")?),
        "BertPreTokenizer" => {
            tables.pre_tokenizer.push(PreTokenizer::WhitespaceSplit);
            PreTokenizer::Punctuation(Behavior::Isolated)
        }
        other => return Err(unsupported(format!("a pre-tokenizer of type {other:?}"))),
    };
    tables.pre_tokenizer.push(new);
    Ok(())
}

fn decoder(step: &Value) -> Result<Decoder> {
    let number = |key: &str| {
        let n = step.get(key).and_then(Value::as_u64).unwrap_or(0);
        u32::try_from(n).map_err(|_| bad(format!("tokenizer.json: {key} of a decoder is {n}")))
    };
    Ok(match kind(step) {
        "ByteLevel" => Decoder::ByteLevel,
        "ByteFallback" => Decoder::ByteFallback,
        "Fuse" => Decoder::Fuse,
        "Replace" => Decoder::Replace(separator(step)?, text_of(step, "content")?),
        "Strip" => Decoder::Strip(char_of(step, "content")?, number("start")?, number("stop")?),
        "Metaspace" => Decoder::Metaspace(char_of(step, "replacement")?, scheme(step)?),
        "BPEDecoder" => Decoder::Suffix(text_of(step, "suffix")?),
        "WordPiece" => Decoder::WordPiece(text_of(step, "prefix")?, flag_of(step, "cleanup", true)),
        other => return Err(unsupported(format!("a decoder of type {other:?}"))),
    })
}

fn template(step: &Value, tables: &mut Tables) -> Result<()> {
    let wrong = || bad(format!("tokenizer.json: post-processor {} is not as expected", kind(step)));
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    match kind(step) {
        "ByteLevel" => return Ok(()),
        "RobertaProcessing" | "BertProcessing" => {
            let second = |key: &str| step.get(key).and_then(|v| v.get(1)).ok_or_else(wrong).and_then(id);
            prefix.push(second("cls")?);
            suffix.push(second("sep")?);
        }
        "TemplateProcessing" => {
            let single = step.get("single").and_then(Value::as_array).ok_or_else(wrong)?;
            let mut seen = false;
            for piece in single {
                if piece.get("Sequence").is_some() {
                    if std::mem::replace(&mut seen, true) {
                        return Err(unsupported("a template with the text in two places"));
                    }
                    continue;
                }
                let name = piece.get("SpecialToken").and_then(|t| t.get("id")).and_then(Value::as_str);
                let token = step.get("special_tokens").and_then(|t| t.get(name?));
                let ids = token.and_then(|t| t.get("ids")).and_then(Value::as_array).ok_or_else(wrong)?;
                let side = if seen { &mut suffix } else { &mut prefix };
                for value in ids {
                    side.push(id(value)?);
                }
            }
            if !seen {
                return Err(unsupported("a template without the text"));
            }
        }
        other => return Err(unsupported(format!("a post-processor of type {other:?}"))),
    }
    // A later processor goes around what the earlier ones made.
    prefix.append(&mut tables.prefix);
    tables.prefix = prefix;
    tables.suffix.append(&mut suffix);
    Ok(())
}

/// Puts the model's vocabulary into the token table.
fn fill(draft: &mut Draft) -> Result<()> {
    let byte_level = draft.tables.settings & setting::BYTE_LEVEL != 0;
    let vocabulary = std::mem::take(&mut draft.vocabulary);
    let limit = vocabulary.len() * 4 + (1 << 16);
    for (text, &id) in &vocabulary {
        if id as usize >= limit {
            return Err(bad(format!("token id {id} in a vocabulary of {} tokens", vocabulary.len())));
        }
        if draft.tables.tokens.len() <= id as usize {
            draft.tables.tokens.resize_with(id as usize + 1, Token::default);
        }
        let slot = &mut draft.tables.tokens[id as usize];
        if slot.flags & flag::PRESENT != 0 {
            return Err(bad(format!("id {id} belongs to two tokens")));
        }
        let mapped = if byte_level { unmap(text) } else { None };
        *slot = match mapped {
            Some(bytes) => Token { bytes, flags: flag::PRESENT | flag::MAPPED | flag::INDEXED, score: 0.0 },
            // Text that is not byte-level characters never reaches a byte-level model.
            None if byte_level => Token { bytes: text.clone(), flags: flag::PRESENT, score: 0.0 },
            None => Token { bytes: text.clone(), flags: flag::PRESENT | flag::INDEXED, score: 0.0 },
        };
    }
    let mut byte_ids = [NONE; 256];
    for byte in 0..=255u8 {
        let text = match byte_level {
            true => llm_format::tokens::byte_to_char(byte).to_string(),
            false => format!("<0x{byte:02X}>"),
        };
        if let Some(id) = vocabulary.get(text.as_bytes()) {
            byte_ids[usize::from(byte)] = *id;
            if !byte_level && draft.tables.settings & setting::BYTE_FALLBACK != 0 {
                draft.tables.tokens[*id as usize].flags |= flag::BYTE;
            }
        }
    }
    draft.tables.byte_ids = byte_ids;
    draft.vocabulary = vocabulary;
    Ok(())
}

fn bpe(model: &Value, mut tables: Tables) -> Result<Draft> {
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model.get(key).and_then(Value::as_str).is_some_and(|s| !s.is_empty()) {
            return Err(unsupported(format!("a BPE model with {key}")));
        }
    }
    if model.get("dropout").and_then(Value::as_f64).is_some_and(|share| share > 0.0) {
        return Err(unsupported("a BPE model with dropout, which encodes by chance"));
    }
    for (key, bit) in [
        ("fuse_unk", setting::FUSE_UNKNOWN),
        ("byte_fallback", setting::BYTE_FALLBACK),
        ("ignore_merges", setting::IGNORE_MERGES),
    ] {
        if flag_of(model, key, false) {
            tables.settings |= bit;
        }
    }
    let mut draft = Draft::new("bpe", tables);
    draft.vocabulary = vocabulary(model.get("vocab").unwrap_or(&Value::Null))?;
    let unknown = model.get("unk_token").and_then(Value::as_str);
    draft.tables.special[2] = unknown.and_then(|text| draft.vocabulary.get(text.as_bytes()).copied());
    let list = model.get("merges").and_then(Value::as_array);
    let list = list.ok_or_else(|| bad("tokenizer.json: a BPE model without merges"))?;
    let mut pairs = Vec::with_capacity(list.len());
    for merge in list {
        let pair = match merge {
            Value::String(line) => line.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        pairs.push(pair.ok_or_else(|| bad(format!("tokenizer.json: merge {merge} is not two tokens")))?);
    }
    let merges = numbered(&draft.vocabulary, pairs.into_iter())?;
    fill(&mut draft)?;
    let byte_ids = draft.tables.byte_ids;
    let settings = draft.tables.settings;
    let vocabulary = std::mem::take(&mut draft.vocabulary);
    draft.tables.merges = prune(&mut draft.tables.tokens, &merges, |bytes| {
        if settings & setting::BYTE_LEVEL != 0 {
            return byte_symbols(bytes, &byte_ids);
        }
        char_symbols(bytes, &vocabulary, settings & setting::BYTE_FALLBACK != 0, &byte_ids)
    });
    draft.vocabulary = vocabulary;
    Ok(draft)
}

/// The characters of a text as symbols, or their bytes where a character has no token; `None` where neither is.
pub(crate) fn char_symbols(
    bytes: &[u8],
    vocabulary: &HashMap<Vec<u8>, u32>,
    fallback: bool,
    byte_ids: &[u32; 256],
) -> Option<Vec<Symbol>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut out = Vec::new();
    for (start, c) in text.char_indices() {
        let end = start + c.len_utf8();
        if let Some(id) = vocabulary.get(&bytes[start..end]) {
            out.push(Symbol { id: *id, start, end });
            continue;
        }
        if !fallback {
            return None;
        }
        for (at, symbol) in byte_symbols(&bytes[start..end], byte_ids)?.into_iter().enumerate() {
            out.push(Symbol { id: symbol.id, start: start + at, end: start + at + 1 });
        }
    }
    Some(out)
}

fn unigram(model: &Value, mut tables: Tables) -> Result<Draft> {
    if tables.settings & setting::BYTE_LEVEL != 0 {
        return Err(unsupported("a Unigram model behind a ByteLevel pre-tokenizer"));
    }
    tables.kind = Kind::Unigram;
    if flag_of(model, "byte_fallback", false) {
        tables.settings |= setting::BYTE_FALLBACK;
    }
    let list = model.get("vocab").and_then(Value::as_array);
    let list = list.ok_or_else(|| bad("tokenizer.json: a Unigram model without vocabulary"))?;
    let mut lowest = f64::INFINITY;
    let mut draft = Draft::new("unigram", tables);
    for (id, entry) in list.iter().enumerate() {
        let parts = entry.get(0).and_then(Value::as_str).zip(entry.get(1).and_then(Value::as_f64));
        let Some((text, score)) = parts else {
            return Err(bad(format!("tokenizer.json: token {id} is not a text and a score")));
        };
        lowest = lowest.min(score);
        let bytes = text.as_bytes().to_vec();
        draft.vocabulary.insert(bytes.clone(), id as u32);
        draft.tables.tokens.push(Token { bytes: bytes.clone(), flags: flag::PRESENT | flag::INDEXED, score });
        if !bytes.is_empty() {
            draft.tables.pieces.push((bytes, id as u32));
        }
    }
    if let Some(id) = model.get("unk_id").and_then(Value::as_u64) {
        let known = u32::try_from(id).ok().filter(|_| id < list.len() as u64);
        draft.tables.special[2] = Some(known.ok_or_else(|| bad(format!("tokenizer.json: unk_id {id}")))?);
    }
    draft.tables.unknown_score = if lowest.is_finite() { lowest - UNKNOWN_PENALTY } else { 0.0 };
    for byte in 0..=255u8 {
        if let Some(id) = draft.vocabulary.get(format!("<0x{byte:02X}>").as_bytes()) {
            draft.tables.byte_ids[usize::from(byte)] = *id;
        }
    }
    Ok(draft)
}
