//! tiktoken vocabularies (`base64 rank` lines) and `vocab.json` with `merges.txt`: byte-level BPE whose split pattern
//! and special tokens are not in the file.

use super::draft::{AddedToken, Draft, bad};
use super::merges::{LONGEST, Symbol, Whole, whole};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llm::Result;
use llm_format::tokens::{
    Behavior, Decoder, Merge, NONE, Pattern, PreTokenizer, Scanner, Tables, Token, char_to_byte, flag,
    setting,
};
use serde_json::Value;
use std::collections::HashMap;

/// A published vocabulary: its pattern, its number of ordinary tokens, its special tokens.
type Published = (Scanner, usize, &'static [(&'static str, u32)]);

const PUBLISHED: [Published; 3] = [
    // tiktoken, `openai_public.py`
    (
        Scanner::Cl100k,
        100_256,
        &[
            ("<|endoftext|>", 100_257),
            ("<|fim_prefix|>", 100_258),
            ("<|fim_middle|>", 100_259),
            ("<|fim_suffix|>", 100_260),
            ("<|endofprompt|>", 100_276),
        ],
    ),
    (Scanner::O200k, 199_998, &[("<|endoftext|>", 199_999), ("<|endofprompt|>", 200_018)]),
    // Qwen, `tokenization_qwen2.py`
    (
        Scanner::Qwen2,
        151_643,
        &[("<|endoftext|>", 151_643), ("<|im_start|>", 151_644), ("<|im_end|>", 151_645)],
    ),
];

/// The pattern behind a name or an expression, and its scanner if it has one.
pub(crate) fn pattern(text: &str) -> Pattern {
    let named = Scanner::ALL.into_iter().find(|s| s.name() == text).or_else(|| Scanner::of(text));
    named.map_or_else(|| Pattern::Regex(text.to_owned()), Pattern::Known)
}

/// Tables of byte-level BPE without tokens.
fn byte_level(pattern: Pattern) -> Tables {
    let normalizer = match pattern {
        Pattern::Known(Scanner::Qwen2) => vec![llm_format::tokens::Normalizer::Nfc],
        _ => Vec::new(),
    };
    Tables {
        settings: setting::BYTE_LEVEL,
        normalizer,
        pre_tokenizer: vec![PreTokenizer::Split(pattern, Behavior::Isolated, false)],
        decoder: vec![Decoder::ByteLevel],
        ..Tables::default()
    }
}

/// A tiktoken file. Without a pattern that of the published vocabulary of the same size is taken; without special
/// tokens likewise.
pub(crate) fn from_tiktoken(bytes: &[u8], split: Option<&str>, specials: &[(String, u32)]) -> Result<Draft> {
    let text = std::str::from_utf8(bytes).map_err(|_| bad("a tiktoken file that is not UTF-8"))?;
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let wrong = |what: &str| bad(format!("line {} of a tiktoken file: {what}", number + 1));
        let (token, rank) = line.split_once(' ').ok_or_else(|| wrong("expected a token and its rank"))?;
        let token = STANDARD.decode(token).map_err(|_| wrong("the token is not base64"))?;
        let rank = rank.trim().parse().map_err(|_| wrong("the rank is not a number"))?;
        if token.is_empty() || ranks.insert(token, rank).is_some() {
            return Err(wrong("a token that is empty or stands there twice"));
        }
    }
    if ranks.is_empty() {
        return Err(bad("a tiktoken file without tokens"));
    }
    let published = PUBLISHED.iter().find(|p| p.1 == ranks.len());
    let split = match (split, published) {
        (Some(text), _) => pattern(text),
        (None, Some(published)) => Pattern::Known(published.0),
        (None, None) => {
            let what =
                format!("a tiktoken file of {} tokens names no split pattern: give one of ", ranks.len());
            return Err(bad(what + "gpt2, llama3, qwen2, cl100k, o200k or an expression"));
        }
    };
    let known: Vec<(String, u32)> = match published {
        _ if !specials.is_empty() => specials.to_vec(),
        Some((_, _, list)) => list.iter().map(|(text, id)| ((*text).to_owned(), *id)).collect(),
        None => Vec::new(),
    };
    let mut draft = Draft::new("bpe", byte_level(split));
    // tiktoken looks a whole word up before it merges anything.
    draft.tables.settings |= setting::IGNORE_MERGES;
    draft.vocabulary = ranks;
    fill(&mut draft, |token| Some(token.to_vec()))?;
    let vocabulary = std::mem::take(&mut draft.vocabulary);
    merges_by_rank(&mut draft, &vocabulary)?;
    draft.vocabulary = vocabulary;
    for (content, id) in known {
        draft.add(id, AddedToken::special(content))?;
    }
    Ok(draft)
}

/// Writes the vocabulary into the token table; `bytes` turns a token's text into its bytes, `None` where the text is
/// not byte-level.
fn fill(draft: &mut Draft, bytes: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Result<()> {
    let vocabulary = std::mem::take(&mut draft.vocabulary);
    let count = vocabulary.len();
    draft.tables.tokens.reserve(count.min(1 << 20));
    let entries: Vec<(&Vec<u8>, u32)> = vocabulary.iter().map(|(text, id)| (text, *id)).collect();
    let limit = count * 4 + (1 << 16);
    let mut byte_ids = [NONE; 256];
    for (text, id) in entries {
        if id as usize >= limit {
            return Err(bad(format!("token id {id} in a vocabulary of {count} tokens")));
        }
        if draft.tables.tokens.len() <= id as usize {
            draft.tables.tokens.resize_with(id as usize + 1, Token::default);
        }
        let slot = &mut draft.tables.tokens[id as usize];
        if slot.flags & flag::PRESENT != 0 {
            return Err(bad(format!("id {id} belongs to two tokens")));
        }
        *slot = match bytes(text) {
            Some(bytes) => Token { bytes, flags: flag::PRESENT | flag::MAPPED | flag::INDEXED, score: 0.0 },
            None => Token { bytes: text.clone(), flags: flag::PRESENT, score: 0.0 },
        };
        if let ([byte], true) = (slot.bytes.as_slice(), slot.flags & flag::MAPPED != 0) {
            byte_ids[usize::from(*byte)] = id;
        }
    }
    draft.tables.byte_ids = byte_ids;
    draft.vocabulary = vocabulary;
    Ok(())
}

/// The bytes of a byte-level vocabulary as symbols; `None` where a byte has no token.
pub(crate) fn byte_symbols(bytes: &[u8], byte_ids: &[u32; 256]) -> Option<Vec<Symbol>> {
    let symbol = |(at, byte): (usize, &u8)| match byte_ids[usize::from(*byte)] {
        NONE => None,
        id => Some(Symbol { id, start: at, end: at + 1 }),
    };
    bytes.iter().enumerate().map(symbol).collect()
}

fn merges_by_rank(draft: &mut Draft, ranks: &HashMap<Vec<u8>, u32>) -> Result<()> {
    let byte_ids = draft.tables.byte_ids;
    let mut merges = Vec::with_capacity(draft.tables.tokens.len());
    for (id, token) in draft.tables.tokens.iter_mut().enumerate() {
        if token.flags & flag::INDEXED == 0 || token.bytes.len() > LONGEST {
            continue;
        }
        let Some(symbols) = byte_symbols(&token.bytes, &byte_ids) else { continue };
        let bytes = &token.bytes;
        let pair =
            |l: Symbol, r: Symbol| bytes.get(l.start..r.end).and_then(|b| ranks.get(b)).map(|r| (*r, *r));
        if let Whole::Yes(last) = whole(id as u32, symbols, pair) {
            token.flags |= flag::WHOLE;
            merges.extend(last);
        }
    }
    draft.tables.merges = merges;
    Ok(())
}

/// Keeps of `merges` those that some token is made by, and marks the tokens that encode to themselves.
pub(crate) fn prune(
    tokens: &mut [Token],
    merges: &[Merge],
    symbols: impl Fn(&[u8]) -> Option<Vec<Symbol>>,
) -> Vec<Merge> {
    let mut pairs: HashMap<(u32, u32), (u32, u32)> = HashMap::with_capacity(merges.len());
    for m in merges {
        let entry = pairs.entry((m.left, m.right)).or_insert((m.rank, m.merged));
        // Of a pair listed twice Hugging Face keeps the later line.
        *entry = (*entry).max((m.rank, m.merged));
    }
    if tokens.iter().any(|t| t.bytes.len() > LONGEST) {
        let all = pairs.into_iter();
        return all.map(|((left, right), (rank, merged))| Merge { left, right, rank, merged }).collect();
    }
    let mut kept = Vec::with_capacity(tokens.len());
    for (id, token) in tokens.iter_mut().enumerate() {
        if token.flags & flag::INDEXED == 0 {
            continue;
        }
        let Some(symbols) = symbols(&token.bytes) else { continue };
        if let Whole::Yes(last) = whole(id as u32, symbols, |l, r| pairs.get(&(l.id, r.id)).copied()) {
            token.flags |= flag::WHOLE;
            kept.extend(last);
        }
    }
    kept
}

/// The bytes behind a byte-level text.
pub(crate) fn unmap(text: &[u8]) -> Option<Vec<u8>> {
    std::str::from_utf8(text).ok()?.chars().map(char_to_byte).collect()
}

/// `vocab.json` and `merges.txt` of a byte-level BPE.
pub(crate) fn from_vocab_merges(vocab: &[u8], merges: &[u8], split: Option<&str>) -> Result<Draft> {
    let json: Value =
        serde_json::from_slice(vocab).map_err(|e| bad(format!("vocab.json is not JSON: {e}")))?;
    let merges = std::str::from_utf8(merges).map_err(|_| bad("merges.txt is not UTF-8"))?;
    let split = pattern(split.unwrap_or("gpt2"));
    let whole_words = split == Pattern::Known(Scanner::Llama3);
    let mut draft = Draft::new("bpe", byte_level(split));
    draft.vocabulary = vocabulary(&json)?;
    let mut list = Vec::new();
    for line in merges.lines().filter(|l| !l.starts_with("#version") && !l.is_empty()) {
        let mut parts = line.split(' ');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(left), Some(right), None) => list.push((left, right)),
            _ => return Err(bad(format!("merge {:?} is not two tokens", line))),
        }
    }
    let merges = numbered(&draft.vocabulary, list.into_iter())?;
    fill(&mut draft, unmap)?;
    let byte_ids = draft.tables.byte_ids;
    let tokens = &mut draft.tables.tokens;
    draft.tables.merges = prune(tokens, &merges, |bytes| byte_symbols(bytes, &byte_ids));
    if whole_words {
        draft.tables.settings |= setting::IGNORE_MERGES;
    }
    // A special token in the vocabulary itself: written like one, and no merge leads to it.
    let made: std::collections::HashSet<u32> = merges.iter().map(|m| m.merged).collect();
    let like = |text: &[u8]| text.starts_with(b"<|") && text.ends_with(b"|>");
    let found: Vec<(String, u32)> = draft
        .vocabulary
        .iter()
        .filter(|(text, id)| like(text) && !made.contains(id))
        .map(|(text, id)| (String::from_utf8_lossy(text).into_owned(), *id))
        .collect();
    for (content, id) in found {
        draft.add(id, AddedToken::special(content))?;
    }
    Ok(draft)
}

/// A JSON object of texts and ids.
pub(crate) fn vocabulary(json: &Value) -> Result<HashMap<Vec<u8>, u32>> {
    let map = json.as_object().ok_or_else(|| bad("the vocabulary is not an object of tokens and ids"))?;
    let mut out = HashMap::with_capacity(map.len());
    for (text, id) in map {
        let known = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < 1 << 28);
        let id = known.ok_or_else(|| bad(format!("token {text:?} has the id {id}")))?;
        out.insert(text.clone().into_bytes(), id);
    }
    Ok(out)
}

/// Merges of texts as merges of ids, ranked in their order.
pub(crate) fn numbered<'a>(
    vocabulary: &HashMap<Vec<u8>, u32>,
    list: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Merge>> {
    let id = |text: &str| {
        let found = vocabulary.get(text.as_bytes()).copied();
        found.ok_or_else(|| bad(format!("a merge names {text:?}, which is not in the vocabulary")))
    };
    let merge = |(rank, (left, right)): (usize, (&str, &str))| {
        let merged = id(&format!("{left}{right}"))?;
        Ok(Merge { left: id(left)?, right: id(right)?, rank: rank as u32, merged })
    };
    list.enumerate().map(merge).collect()
}
