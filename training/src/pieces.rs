//! Vocabularies of pieces as SentencePiece has them (Kudo and Richardson, arXiv:1808.06226): text is a row of
//! characters in which a space is `▁`, and what has no token of its own is spelled in bytes.
//!
//! ```text
//!   The cat, 27 cats\n → The · ▁cat · , · ▁ · 27 · ▁cats · \n     words: letters, digits and the rest stay apart
//!   ids: special tokens · <0x00>…<0xFF> · characters, pieces (by merges, or by score)
//! ```
//! Words only say which pieces may form; the trained tokenizer cuts whole texts. Nothing is added to a text and nothing
//! normalized, so decoding gives it back, except that a `▁` of its own becomes a space.

use std::collections::HashMap;
use std::rc::Rc;

use llm::error::{Error, Result, Status};
use serde_json::{Map, Value, json};
use unicode_normalization::char::is_combining_mark;

use crate::bpe::{TokenizerKind, TokenizerOptions, distinct, grow};
use crate::unigram;

/// What a space is written as.
const SPACE: char = '▁';
/// The longest word, in characters: what has no border for so long is cut.
const LONGEST: usize = 1024;
/// The token that a unigram model has for what it cannot spell; here that never happens.
const UNKNOWN: &str = "<unk>";

/// Trains a vocabulary as `options` say and writes it; returns its size.
///
/// # Errors
/// As [`crate::bpe::train_tokenizer`].
pub(crate) fn train(options: &TokenizerOptions) -> Result<usize> {
    if !(options.coverage > 0.0 && options.coverage <= 1.0) {
        let message = format!("coverage {}: expected more than 0 and at most 1", options.coverage);
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let mut words = HashMap::new();
    for source in &options.inputs {
        source.documents(&options.field, &mut |piece, _| {
            count(piece, &mut words);
            Ok(())
        })?;
    }
    let mut special = options.special.clone();
    if options.kind == TokenizerKind::Unigram && !special.iter().any(|s| s == UNKNOWN) {
        special.push(UNKNOWN.into());
    }
    let mut words: Vec<(String, u64)> = words.into_iter().collect();
    words.sort_unstable();
    let alphabet = alphabet(&words, &special, options.coverage);
    let (fixed, need) = (special.len() + 256, special.len() + 256 + alphabet.len());
    if options.vocab < need {
        let message = format!(
            "vocabulary of {}: expected at least {need}, for special tokens, 256 bytes and {} characters; a lower coverage than {} has fewer",
            options.vocab,
            alphabet.len(),
            options.coverage
        );
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let lists = lists(&words, &alphabet);
    let room = options.vocab - fixed;
    let bytes = (0..=255u8).map(|b| format!("<0x{b:02X}>"));
    let names: Vec<String> = special.iter().cloned().chain(bytes).collect();
    let (model, size) = if options.kind == TokenizerKind::Unigram {
        let trained = unigram::train(&lists, &alphabet, room);
        let bytes = names[special.len()..].iter().map(String::as_str);
        distinct(&special, bytes.chain(trained.iter().map(|(piece, _)| piece.as_str())))?;
        // What never stands for text itself is dearer than any way to write it.
        let never = -1000.0;
        let fixed = names.iter().map(|name| json!([name, never]));
        let found = trained.iter().map(|(piece, score)| json!([piece, score]));
        let vocab: Vec<Value> = fixed.chain(found).collect();
        let (size, unknown) = (vocab.len(), special.iter().position(|s| s == UNKNOWN));
        (json!({"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": true}), size)
    } else {
        merged(&names, special.len(), &lists, &alphabet, room, options.min_count)?
    };
    let text = tokenizer(&special, &model).to_string();
    crate::checkpoint::write_file(&options.output, text.as_bytes())?;
    Ok(size)
}

/// The BPE model of `tokenizer.json` and its number of tokens. The first `special` of `names` are special tokens.
fn merged(
    names: &[String],
    special: usize,
    lists: &[(Vec<char>, u64)],
    alphabet: &[char],
    room: usize,
    min_count: u64,
) -> Result<(Value, usize)> {
    let index: HashMap<char, u32> = alphabet.iter().copied().zip(0..).collect();
    let mut tokens: Vec<Rc<[u8]>> = alphabet.iter().map(|c| Rc::from(c.to_string().as_bytes())).collect();
    let lists = lists.iter().map(|(list, n)| (list.iter().map(|c| index[c]).collect(), *n)).collect();
    let merges = grow(&mut tokens, lists, room, min_count);
    let text = |i: u32| String::from_utf8_lossy(&tokens[i as usize]).into_owned();
    let merges: Vec<Value> = merges.iter().map(|(a, b)| json!([text(*a), text(*b)])).collect();
    let all = names.iter().cloned().chain((0..tokens.len() as u32).map(text));
    let all: Vec<String> = all.collect();
    distinct(&names[..special], all[special..].iter().map(String::as_str))?;
    let vocab: Map<String, Value> =
        all.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let size = vocab.len();
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                       "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
                       "vocab": vocab, "merges": merges});
    Ok((model, size))
}

/// The whole `tokenizer.json`.
fn tokenizer(special: &[String], model: &Value) -> Value {
    let added = special.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let (space, mark) = (" ", SPACE.to_string());
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "Replace", "pattern": {"String": space}, "content": mark},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": mark}, "content": space},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    })
}

/// What pieces keep apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Line,
    Letter,
    Digit,
    Other,
}

fn class(c: char) -> Class {
    match c {
        SPACE => Class::Space,
        '\n' => Class::Line,
        _ if c.is_alphabetic() || is_combining_mark(c) => Class::Letter,
        _ if c.is_numeric() => Class::Digit,
        _ => Class::Other,
    }
}

/// Adds the words of `text` to `words`.
fn count(text: &str, words: &mut HashMap<String, u64>) {
    let mut add = |word: &str| {
        if let Some(n) = words.get_mut(word) {
            *n += 1;
        } else if !word.is_empty() {
            words.insert(word.to_string(), 1);
        }
    };
    let (mut word, mut length, mut last) = (String::new(), 0, None);
    for c in text.chars() {
        let c = if c == ' ' { SPACE } else { c };
        let now = class(c);
        // one space belongs to what follows it; those before it are a word of their own
        let joins = last == Some(now) || (last == Some(Class::Space) && now != Class::Line);
        if joins && last == Some(Class::Space) && now != Class::Space && length > 1 {
            word.pop();
            add(&word);
            word = SPACE.to_string();
            length = 1;
        } else if !joins || length >= LONGEST {
            add(&word);
            word.clear();
            length = 0;
        }
        word.push(c);
        (length, last) = (length + 1, Some(now));
    }
    add(&word);
}

/// Characters that get tokens, in the order of their numbers: the frequent ones up to the share `coverage` of the text,
/// printable ASCII, the space, and what special tokens are written with, so that their text can be told from them.
fn alphabet(words: &[(String, u64)], special: &[String], coverage: f64) -> Vec<char> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for (word, n) in words {
        word.chars().for_each(|c| *counts.entry(c).or_default() += n);
    }
    let total: u64 = counts.values().sum();
    let mut sorted: Vec<(char, u64)> = counts.into_iter().collect();
    sorted.sort_unstable_by_key(|(c, n)| (std::cmp::Reverse(*n), *c));
    let mut seen = 0;
    let frequent = sorted.into_iter().take_while(|(_, n)| {
        let enough = seen as f64 >= coverage * total as f64;
        seen += n;
        !enough
    });
    let written = special.iter().flat_map(|s| s.chars()).map(|c| if c == ' ' { SPACE } else { c });
    let mut all: Vec<char> =
        frequent.map(|(c, _)| c).chain('!'..='~').chain([SPACE]).chain(written).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Words as rows of characters; one that holds a character without a token is cut there.
fn lists(words: &[(String, u64)], alphabet: &[char]) -> Vec<(Vec<char>, u64)> {
    let mut out = Vec::new();
    for (word, n) in words {
        let parts = word.split(|c| alphabet.binary_search(&c).is_err());
        out.extend(parts.filter(|p| !p.is_empty()).map(|p| (p.chars().collect(), *n)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::{load, train_tokenizer};
    use crate::source::Source;

    #[test]
    fn words_keep_letters_digits_and_the_rest_apart_and_one_space_before_them() {
        let mut words = HashMap::new();
        count("The cat,  27 cats   \n\nnaïve — नमस्ते▁", &mut words);
        let mut found: Vec<&str> = words.keys().map(String::as_str).collect();
        found.sort_unstable();
        let mut expected =
            vec!["The", "▁cat", ",", "▁", "▁27", "▁cats", "▁▁▁", "\n\n", "naïve", "▁—", "▁नमस्ते"];
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(words["▁"], 2);
    }

    fn trained(kind: TokenizerKind, text: &str, vocab: usize) -> (tokenizers::Tokenizer, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("t.txt"), dir.path().join("tokenizer.json"));
        std::fs::write(&input, text).unwrap();
        let inputs = vec![Source::from(input)];
        let options = TokenizerOptions { inputs, kind, vocab, output: output.clone(), ..Default::default() };
        let size = train_tokenizer(&options).unwrap();
        let tokenizer = load(&output).unwrap();
        assert!(size <= vocab && tokenizer.get_vocab_size(true) == size);
        (tokenizer, std::fs::read(&output).unwrap())
    }

    #[test]
    fn trained_pieces_round_trip_any_text_and_come_out_the_same_each_time() {
        let text = "the cat and the hat, naïve Ünïcode 🙂\nthe  end of 1234 things\n".repeat(20);
        for kind in [TokenizerKind::Bpe, TokenizerKind::Unigram] {
            let (tokenizer, bytes) = trained(kind, &text, 420);
            assert!(trained(kind, &text, 420).1 == bytes, "{kind:?}");
            for text in
                ["a <|endoftext|> the 🙂\u{0}\n\n  hat", "", " ", "ελληνικά <0x41> <unk>", "漢字\tthe"]
            {
                let ids = tokenizer.encode(text, false).unwrap();
                assert!(!ids.get_ids().contains(&0), "{kind:?}: special text is plain text");
                assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text, "{kind:?}");
            }
            let ids = tokenizer.encode(" the cat", false).unwrap();
            assert_eq!(ids.get_tokens(), ["▁the", "▁cat"], "{kind:?}");
        }
    }

    #[test]
    fn a_vocabulary_without_room_for_characters_is_refused() {
        let options =
            TokenizerOptions { kind: TokenizerKind::Bpe, vocab: 300, ..TokenizerOptions::default() };
        let e = train_tokenizer(&options).unwrap_err();
        assert!(e.message().contains("expected at least 352"), "{e}");
    }
}
