//! Training of a byte-level BPE vocabulary (Sennrich et al. 2016; GPT-2's bytes and split pattern).
//!
//! ```text
//!   text → words by GPT-2's pattern, counted → each a list of byte tokens
//!   repeat: the most frequent neighbouring pair becomes a token; a tie goes to the greater pair of byte strings
//! ```
//!
//! A heap holds each pair with a count that may be out of date; an entry that is popped and wrong goes back with the
//! right count. A merge visits only the words that hold the pair. Nothing depends on the order of a hash map.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use llm::error::{Error, Result, Status};
use llm::tokenizer::oniguruma;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::source::Source;

/// How a vocabulary cuts text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerKind {
    /// BPE over bytes, words by GPT-2's pattern.
    #[default]
    ByteLevel,
    /// BPE over characters as SentencePiece has it: a space is `▁`, a character without a token is its bytes.
    Bpe,
    /// A unigram language model over pieces, as SentencePiece has it; else as `Bpe`.
    Unigram,
}

/// What `tokenizer train` is asked for.
#[derive(Clone, Debug)]
pub struct TokenizerOptions {
    /// Where the text is.
    pub inputs: Vec<Source>,
    /// How the vocabulary cuts text.
    pub kind: TokenizerKind,
    /// The string of a `.jsonl` row that holds the text.
    pub field: String,
    /// Tokens in all: special tokens, 256 bytes, characters but of `ByteLevel`, then what was found in the text. Fewer
    /// if the text does not have so many.
    pub vocab: usize,
    /// Special tokens, which take the first ids. The first of them ends documents.
    pub special: Vec<String>,
    /// A pair must occur this often to become a token.
    pub min_count: u64,
    /// Share of the text's characters that get tokens of their own, the frequent ones first; not of `ByteLevel`.
    pub coverage: f64,
    /// The `tokenizer.json` to write.
    pub output: PathBuf,
}

impl Default for TokenizerOptions {
    fn default() -> Self {
        TokenizerOptions {
            inputs: Vec::new(),
            kind: TokenizerKind::ByteLevel,
            field: "text".into(),
            vocab: 1024,
            special: vec!["<|endoftext|>".into()],
            min_count: 2,
            coverage: 0.9995,
            output: PathBuf::from("tokenizer.json"),
        }
    }
}

/// Trains a vocabulary on files and writes `tokenizer.json`; returns its size.
///
/// # Errors
/// Those of reading the inputs and writing the output; `INVALID_ARG` for a vocabulary too small for bytes, special tokens
/// and characters, a special token that is empty, named twice, or a token of the text, too, or an output that is an input.
pub fn train_tokenizer(options: &TokenizerOptions) -> Result<usize> {
    if options.special.iter().any(String::is_empty) {
        return Err(Error::new(Status::INVALID_ARG, "special tokens: expected texts, got an empty one"));
    }
    if let Some(twice) =
        (1..options.special.len()).find(|i| options.special[..*i].contains(&options.special[*i]))
    {
        let message = format!("special token {:?}: expected it once", options.special[twice]);
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let output = &options.output;
    let read = |source: &Source| match (source, output.canonicalize()) {
        (Source::File(path), Ok(output)) => path.canonicalize().is_ok_and(|path| path == output),
        _ => false,
    };
    if options.inputs.iter().any(read) {
        let message = format!("{}: the output is a text that is read; choose another name", output.display());
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    if options.kind != TokenizerKind::ByteLevel {
        return crate::pieces::train(options);
    }
    let mut words = Words::default();
    for source in &options.inputs {
        source.documents(&options.field, &mut |piece, _| words.count(piece))?;
    }
    let bpe = Bpe::train(&words, options.vocab, &options.special, options.min_count)?;
    distinct(&options.special, bpe.vocabulary().iter().skip(bpe.special.len()).map(String::as_str))?;
    let text = bpe.to_json().to_string();
    crate::checkpoint::write_file(&options.output, text.as_bytes())?;
    Ok(bpe.size())
}

/// Refuses special tokens that one of the vocabulary's `others` is spelled like: a text could not be told from them.
pub(crate) fn distinct<'a>(special: &[String], mut others: impl Iterator<Item = &'a str>) -> Result<()> {
    let Some(twice) = others.find(|o| special.iter().any(|s| s == o)) else { return Ok(()) };
    let message = format!(
        "special token {twice:?}: the text gives a token of that name, too; choose one that no text has"
    );
    Err(Error::new(Status::INVALID_ARG, message))
}

/// How often each word of a text occurs.
#[derive(Default)]
pub struct Words(HashMap<String, u64>);

impl Words {
    /// Counts the words of `text`, in GPT-2's spelling of bytes.
    ///
    /// # Errors
    /// `INTERNAL` if the splitter fails.
    pub fn count(&mut self, text: &str) -> Result<()> {
        let wrong =
            |e: tokenizers::Error| Error::new(Status::INTERNAL, format!("splitting text into words: {e}"));
        let mut split = PreTokenizedString::from(text);
        ByteLevel::new(false, true, true).pre_tokenize(&mut split).map_err(wrong)?;
        for (word, _, _) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            if let Some(n) = self.0.get_mut(word) {
                *n += 1;
            } else {
                self.0.insert(word.to_string(), 1);
            }
        }
        Ok(())
    }
}

/// A trained vocabulary.
pub struct Bpe {
    special: Vec<String>,
    /// Bytes of each token behind the special ones: 256 single bytes in the order of their spelling, then merges.
    tokens: Vec<Rc<[u8]>>,
    /// Pairs of indices into `tokens`, in the order of the merges.
    merges: Vec<(u32, u32)>,
}

/// A pair that might be merged. The order is that of the merges: count, then the byte strings.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: u64,
    left: Rc<[u8]>,
    right: Rc<[u8]>,
    pair: (u32, u32),
}

impl Bpe {
    /// Trains a vocabulary of at most `vocab` tokens.
    ///
    /// # Errors
    /// `INVALID_ARG` if `vocab` does not hold the bytes and special tokens.
    pub fn train(words: &Words, vocab: usize, special: &[String], min_count: u64) -> Result<Bpe> {
        let base = special.len() + 256;
        if vocab < base {
            let message =
                format!("vocabulary of {vocab}: expected at least {base}, for bytes and special tokens");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let mut alphabet: Vec<(char, u8)> = (0..=255u8).map(|b| (spell(b), b)).collect();
        alphabet.sort_unstable();
        let index: HashMap<char, u32> =
            alphabet.iter().enumerate().map(|(i, (c, _))| (*c, i as u32)).collect();
        let mut tokens: Vec<Rc<[u8]>> = alphabet.iter().map(|(_, b)| Rc::from([*b])).collect();

        let mut sorted: Vec<(&String, u64)> = words.0.iter().map(|(w, n)| (w, *n)).collect();
        sorted.sort_unstable();
        let lists: Vec<(Vec<u32>, u64)> = sorted
            .iter()
            .map(|(w, n)| (w.chars().filter_map(|c| index.get(&c).copied()).collect(), *n))
            .collect();
        let merges = grow(&mut tokens, lists, vocab - special.len(), min_count);
        Ok(Bpe { special: special.to_vec(), tokens, merges })
    }

    /// The number of tokens.
    pub fn size(&self) -> usize {
        self.special.len() + self.tokens.len()
    }

    /// The vocabulary in GPT-2's spelling, by id.
    pub fn vocabulary(&self) -> Vec<String> {
        let spelled = self.tokens.iter().map(|t| spelling(t));
        self.special.iter().cloned().chain(spelled).collect()
    }

    /// The merges in order, in GPT-2's spelling.
    pub fn merges(&self) -> Vec<(String, String)> {
        let token = |i: u32| spelling(&self.tokens[i as usize]);
        self.merges.iter().map(|(a, b)| (token(*a), token(*b))).collect()
    }

    /// The Hugging Face `tokenizer.json`.
    pub fn to_json(&self) -> Value {
        let vocab: serde_json::Map<String, Value> =
            self.vocabulary().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
        let added = self.special.iter().enumerate().map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        });
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let merges: Vec<Value> = self.merges().into_iter().map(|(a, b)| json!([a, b])).collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                      "vocab": vocab, "merges": merges},
        })
    }
}

/// Merges the most frequent pairs of `lists`, sequences of indices into `tokens` with their counts, until there are `size`
/// tokens or no pair occurs `min_count` times. Returns the pairs in order.
pub(crate) fn grow(
    tokens: &mut Vec<Rc<[u8]>>,
    mut lists: Vec<(Vec<u32>, u64)>,
    size: usize,
    min_count: u64,
) -> Vec<(u32, u32)> {
    let mut merges = Vec::new();
    let mut known: HashMap<Rc<[u8]>, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut counts: HashMap<(u32, u32), u64> = HashMap::new();
    let mut places: HashMap<(u32, u32), HashSet<usize>> = HashMap::new();
    for (w, (list, n)) in lists.iter().enumerate() {
        for pair in pairs(list) {
            *counts.entry(pair).or_default() += n;
            places.entry(pair).or_default().insert(w);
        }
    }
    let candidate = |tokens: &[Rc<[u8]>], pair: (u32, u32), count: u64| {
        let token = |i: u32| Rc::clone(&tokens[i as usize]);
        Candidate { count, left: token(pair.0), right: token(pair.1), pair }
    };
    let mut heap: BinaryHeap<Candidate> = counts.iter().map(|(p, n)| candidate(tokens, *p, *n)).collect();
    while tokens.len() < size {
        let Some(top) = heap.pop() else { break };
        let now = counts.get(&top.pair).copied().unwrap_or(0);
        if now != top.count {
            if now > 0 {
                heap.push(Candidate { count: now, ..top });
            }
            continue;
        }
        if now < min_count.max(1) {
            break;
        }
        let bytes: Rc<[u8]> = [&top.left[..], &top.right].concat().into();
        // two pairs may spell the same token
        let new = *known.entry(bytes.clone()).or_insert(tokens.len() as u32);
        if new as usize == tokens.len() {
            tokens.push(bytes);
        }
        merges.push(top.pair);
        let mut changed = HashSet::new();
        for w in places.remove(&top.pair).unwrap_or_default() {
            let (list, n) = &mut lists[w];
            for pair in pairs(list) {
                if let Some(count) = counts.get_mut(&pair) {
                    *count -= *n;
                }
            }
            merge(list, top.pair, new);
            for pair in pairs(list) {
                *counts.entry(pair).or_default() += *n;
                if pair.0 == new || pair.1 == new {
                    places.entry(pair).or_default().insert(w);
                    changed.insert(pair);
                }
            }
        }
        counts.remove(&top.pair);
        heap.extend(changed.into_iter().map(|pair| candidate(tokens, pair, counts[&pair])));
    }
    merges
}

fn pairs(list: &[u32]) -> impl Iterator<Item = (u32, u32)> {
    list.windows(2).map(|w| (w[0], w[1]))
}

/// Replaces each `pair` in `list`, from the left, by `new`.
fn merge(list: &mut Vec<u32>, pair: (u32, u32), new: u32) {
    let (mut from, mut to) = (0, 0);
    while from < list.len() {
        let hit = list[from] == pair.0 && list.get(from + 1) == Some(&pair.1);
        list[to] = if hit { new } else { list[from] };
        from += if hit { 2 } else { 1 };
        to += 1;
    }
    list.truncate(to);
}

/// GPT-2's visible character for a byte: itself where it is printable Latin-1, else the next from U+0100 on.
fn spell(byte: u8) -> char {
    let visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(256 + before).unwrap_or_else(|| unreachable!("fewer than 256 bytes are invisible"))
}

fn spelling(bytes: &[u8]) -> String {
    bytes.iter().map(|b| spell(*b)).collect()
}

/// Loads a `tokenizer.json` for preparing data: special tokens in a text are plain text, and nothing is cut to a length
/// or filled up to one. Its expressions mean what they mean to the converter, and so in the model that is trained on them.
pub(crate) fn load(path: &Path) -> Result<tokenizers::Tokenizer> {
    let wrong = |e: tokenizers::Error| Error::new(Status::BAD_FORMAT, format!("{}: {e}", path.display()));
    if !path.is_file() {
        return Err(Error::new(Status::NOT_FOUND, format!("{}: no tokenizer here", path.display())));
    }
    let here = |e: Error| e.context(path.display());
    let json = as_converted(std::fs::read(path).map_err(|e| here(e.into()))?).map_err(here)?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(wrong)?;
    tokenizer.set_encode_special_tokens(true);
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(wrong)?;
    Ok(tokenizer)
}

/// A `tokenizer.json` for an engine of expressions that is not the one they were written for.
fn as_converted(json: Vec<u8>) -> Result<Vec<u8>> {
    let wrong = |e: serde_json::Error| Error::new(Status::BAD_FORMAT, format!("no tokenizer.json: {e}"));
    let mut tree: Value = serde_json::from_slice(&json).map_err(wrong)?;
    if tree.pointer("/model/dropout").and_then(Value::as_f64).is_some_and(|share| share > 0.0) {
        let what = "a BPE model with dropout, which encodes by chance; set `dropout` to null";
        return Err(Error::new(Status::UNSUPPORTED, what));
    }
    let mut changed = false;
    for part in ["normalizer", "pre_tokenizer", "decoder"] {
        if let Some(node) = tree.get_mut(part) {
            changed |= translate(node)?;
        }
    }
    Ok(if changed { tree.to_string().into_bytes() } else { json })
}

/// Puts every expression in `node` into words that mean the same here; true if one was in others.
fn translate(node: &mut Value) -> Result<bool> {
    let mut changed = false;
    match node {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "Regex" => {
                        let new = oniguruma::translate(text)?;
                        changed |= new != *text;
                        *text = new;
                    }
                    value => changed |= translate(value)?,
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                changed |= translate(value)?;
            }
        }
        _ => {}
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_vocabulary_comes_out_id_by_id_and_its_merges_in_order() {
        let Some(dir) = llm_testdata::shared("data/tokenizers/bpe-training") else { return };
        let mut words = Words::default();
        words.count(&std::fs::read_to_string(dir.join("corpus.en")).unwrap()).unwrap();
        let bpe = Bpe::train(&words, 500, &["<|endoftext|>".into()], 2).unwrap();
        let merges = std::fs::read_to_string(dir.join("train-bpe-reference-merges.txt")).unwrap();
        let got: Vec<String> = bpe.merges().iter().map(|(a, b)| format!("{a} {b}")).collect();
        let expected: Vec<&str> = merges.lines().filter(|l| !l.is_empty()).collect();
        assert_eq!(got, expected);
        let text = std::fs::read_to_string(dir.join("train-bpe-reference-vocab.json")).unwrap();
        let vocab: HashMap<String, u32> = serde_json::from_str(&text).unwrap();
        assert_eq!(bpe.vocabulary().into_iter().zip(0..).collect::<HashMap<_, _>>(), vocab);
    }

    #[test]
    fn ties_go_to_the_greater_pair_and_repeats_merge_from_the_left() {
        let mut words = Words::default();
        words.count("aaaa aaaa bc bd").unwrap();
        let merges = Bpe::train(&words, 300, &[], 1).unwrap().merges();
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        // "aa" six times, then "aa aa" twice, then " b" twice, then pairs seen once: the greatest byte strings first.
        assert_eq!(merges[..3], [pair("a", "a"), pair("aa", "aa"), pair("Ġ", "b")]);
        assert_eq!(merges[3..], [pair("Ġb", "d"), pair("Ġb", "c"), pair("Ġ", "aaaa")]);
    }

    #[test]
    fn a_special_token_that_the_text_gives_too_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("t.txt");
        std::fs::write(&input, "### a ### b\n".repeat(50)).unwrap();
        for kind in [TokenizerKind::ByteLevel, TokenizerKind::Bpe, TokenizerKind::Unigram] {
            let train = |special: &str| {
                train_tokenizer(&TokenizerOptions {
                    inputs: vec![input.clone().into()],
                    kind,
                    vocab: 400,
                    special: vec![special.into()],
                    output: dir.path().join("tokenizer.json"),
                    ..Default::default()
                })
            };
            let e = train("a").unwrap_err();
            assert!(e.message().contains("special token \"a\": "), "{kind:?}: {e}");
            assert!(train("").is_err());
            train("<|###|>").unwrap();
        }
    }

    #[test]
    fn a_text_is_not_overwritten_with_its_vocabulary() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("t.txt");
        let text = "a text ".repeat(50);
        std::fs::write(&input, &text).unwrap();
        for kind in [TokenizerKind::ByteLevel, TokenizerKind::Bpe, TokenizerKind::Unigram] {
            let output = dir.path().join("../").join(dir.path().file_name().unwrap()).join("t.txt");
            let inputs = vec![input.clone().into()];
            let options = TokenizerOptions { inputs, kind, vocab: 400, output, ..Default::default() };
            let e = train_tokenizer(&options).unwrap_err();
            assert!(e.status() == Status::INVALID_ARG && e.message().contains("another name"), "{e}");
            assert_eq!(std::fs::read_to_string(&input).unwrap(), text);
        }
    }

    #[test]
    fn the_written_tokenizer_round_trips_any_text() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("t.txt"), dir.path().join("tokenizer.json"));
        std::fs::write(&input, "the cat and the hat, naïve Ünïcode 🙂\n".repeat(20)).unwrap();
        let options = TokenizerOptions {
            inputs: vec![input.into()],
            vocab: 300,
            output: output.clone(),
            ..Default::default()
        };
        let size = train_tokenizer(&options).unwrap();
        let tokenizer = load(&output).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), size);
        let text = "a <|endoftext|> the 🙂\u{0}\n\n  hat";
        let ids = tokenizer.encode(text, false).unwrap();
        assert!(ids.get_ids().iter().all(|id| *id != 0), "special text is plain text");
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
    }

    #[test]
    fn expressions_cut_a_text_as_the_published_package_cuts_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let plain = Bpe::train(&Words::default(), 256, &[], 2).unwrap().to_json();
        let loaded = |expression: &str, dropout: Value| {
            let mut tree = plain.clone();
            tree["model"]["dropout"] = dropout;
            let split = json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
                               "invert": false});
            tree["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split]});
            std::fs::write(&path, tree.to_string()).unwrap();
            load(&path)
        };
        // What `tokenizers` with Oniguruma makes of them; the engine here reads the first seven otherwise.
        let wants: [(&str, &str, &[&str]); 8] = [
            (r"\d{1,3}+", "1234567", &["1234567"]),
            (r"\d{2}+", "12345", &["1234", "5"]),
            ("^b", "a\nb", &["a\n", "b"]),
            ("a$", "a\nb", &["a", "\nb"]),
            ("a(?i)b|C", "aB C c AB ab", &["aB", " C c AB ", "ab"]),
            ("(?m)a.b", "a\nb", &["a\nb"]),
            (r"\w+", "aé_½\u{301}\u{203f}\u{200d}a", &["aé_½\u{301}\u{203f}", "\u{200d}", "a"]),
            (r" ?\p{L}+|\s+(?!\S)", "the cat  ", &["the", " cat", "  "]),
        ];
        for (expression, text, want) in wants {
            let tokenizer = loaded(expression, Value::Null).unwrap();
            let mut cut = PreTokenizedString::from(text);
            tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut cut).unwrap();
            let pieces = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let got: Vec<&str> = pieces.into_iter().map(|(piece, _, _)| piece).collect();
            assert_eq!(got, want, "{expression:?}");
        }
        let refused = |expression, dropout| loaded(expression, dropout).map(|_| ()).unwrap_err();
        let e = refused(r"(a)\1", Value::Null);
        assert!(e.status() == Status::UNSUPPORTED && e.message().contains(r"`\1`"), "{e}");
        assert!(refused("a", json!(0.1)).message().contains("dropout"));
    }
}
