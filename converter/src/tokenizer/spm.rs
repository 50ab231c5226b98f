//! SentencePiece models (`.model`): unigram and BPE, by SentencePiece's own rules.
//!
//! The file is one protobuf message, `sentencepiece_model.proto` of google/sentencepiece: pieces (field 1), trainer
//! spec (2), normalizer spec (3), denormalizer spec (5), which is refused.

use super::draft::{AddedToken, Draft, bad};
use super::hf::char_symbols;
use super::merges::{LONGEST, Symbol, Whole, whole};
use super::protobuf::fields;
use llm::{Error, Result, Status};
use llm_format::tokens::{Decoder, Kind, Normalizer, Tables, Token, added, flag, setting};
use std::collections::HashMap;

/// What an unknown character costs more than the dearest token (`kUnkPenalty`).
const UNKNOWN_PENALTY: f32 = 10.0;

/// Types of pieces.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// What is used of the two specs, with the defaults of the proto file.
struct Spec {
    bpe: bool,
    byte_fallback: bool,
    suffix: bool,
    unknown_surface: String,
    names: [String; 4],
    charsmap: Vec<u8>,
    dummy_prefix: bool,
    remove_extra: bool,
    escape: bool,
}

fn text(bytes: Option<&[u8]>, what: &str) -> Result<String> {
    let bytes = bytes.unwrap_or(&[]);
    let text = std::str::from_utf8(bytes).map_err(|_| bad(format!("{what} is not UTF-8")))?;
    Ok(text.to_owned())
}

fn parse(model: &[u8]) -> Result<(Vec<Piece>, Spec)> {
    let mut pieces = Vec::new();
    let mut spec = Spec {
        bpe: false,
        byte_fallback: false,
        suffix: false,
        unknown_surface: " \u{2047} ".to_owned(),
        names: ["<s>", "</s>", "<unk>", "<pad>"].map(str::to_owned),
        charsmap: Vec::new(),
        dummy_prefix: true,
        remove_extra: true,
        escape: true,
    };
    fields(model, |number, value| {
        let Some(message) = value.bytes() else { return Ok(()) };
        match number {
            1 => {
                let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
                fields(message, |number, value| {
                    match number {
                        1 => piece.text = text(value.bytes(), "a piece")?,
                        2 => piece.score = value.float().unwrap_or(0.0),
                        3 => piece.kind = value.number().unwrap_or(NORMAL),
                        _ => {}
                    }
                    Ok(())
                })?;
                pieces.push(piece);
                Ok(())
            }
            2 => fields(message, |number, value| {
                match number {
                    3 => match value.number() {
                        Some(1) | None => spec.bpe = false,
                        Some(2) => spec.bpe = true,
                        Some(n) => {
                            let what =
                                format!("a SentencePiece model of type {n}; unigram (1) and BPE (2) are");
                            return Err(Error::new(Status::UNSUPPORTED, what));
                        }
                    },
                    24 => spec.suffix = value.flag().unwrap_or(false),
                    35 => spec.byte_fallback = value.flag().unwrap_or(false),
                    44 => spec.unknown_surface = text(value.bytes(), "the surface of the unknown piece")?,
                    45 => spec.names[2] = text(value.bytes(), "a name")?,
                    46 => spec.names[0] = text(value.bytes(), "a name")?,
                    47 => spec.names[1] = text(value.bytes(), "a name")?,
                    48 => spec.names[3] = text(value.bytes(), "a name")?,
                    _ => {}
                }
                Ok(())
            }),
            3 => fields(message, |number, value| {
                match number {
                    2 => spec.charsmap = value.bytes().unwrap_or(&[]).to_vec(),
                    3 => spec.dummy_prefix = value.flag().unwrap_or(true),
                    4 => spec.remove_extra = value.flag().unwrap_or(true),
                    5 => spec.escape = value.flag().unwrap_or(true),
                    _ => {}
                }
                Ok(())
            }),
            // The denormalizer, another normalizer spec.
            5 => fields(message, |number, value| match (number, value.bytes()) {
                (2, Some([_, ..])) => {
                    let what =
                        "a SentencePiece model that replaces characters of decoded text (denormalizer_spec)";
                    Err(Error::new(Status::UNSUPPORTED, what))
                }
                _ => Ok(()),
            }),
            _ => Ok(()),
        }
    })?;
    if pieces.is_empty() {
        return Err(bad("not a SentencePiece model: it has no pieces"));
    }
    Ok((pieces, spec))
}

/// The draft of a model file.
pub(crate) fn from_sentencepiece(model: &[u8]) -> Result<Draft> {
    let (pieces, spec) = parse(model)?;
    let mut tables = Tables {
        kind: if spec.bpe { Kind::Bpe } else { Kind::Unigram },
        settings: setting::FUSE_UNKNOWN | setting::SINGLE,
        charsmap: spec.charsmap,
        ..Tables::default()
    };
    let normalizer =
        Normalizer::SentencePiece(spec.dummy_prefix, spec.remove_extra, spec.escape, spec.suffix);
    tables.normalizer.push(normalizer);
    let decoder = Decoder::SentencePiece(spec.dummy_prefix, spec.remove_extra, spec.unknown_surface);
    tables.decoder.push(decoder);
    if spec.byte_fallback {
        tables.settings |= setting::BYTE_FALLBACK;
    }
    let mut draft = Draft::new(if spec.bpe { "bpe" } else { "unigram" }, tables);
    let (mut lowest, mut highest) = (f32::INFINITY, f32::NEG_INFINITY);
    for (id, piece) in pieces.iter().enumerate() {
        let id = u32::try_from(id).map_err(|_| bad("too many pieces"))?;
        let bytes = piece.text.clone().into_bytes();
        let mut flags = flag::PRESENT;
        match piece.kind {
            NORMAL | USER_DEFINED => flags |= flag::INDEXED,
            UNKNOWN => {
                flags |= flag::UNKNOWN;
                draft.tables.special[2] = Some(id);
            }
            CONTROL => flags |= flag::CONTROL,
            BYTE => flags |= flag::BYTE,
            UNUSED => {}
            n => return Err(bad(format!("piece {id} is of the unknown type {n}"))),
        }
        if piece.kind == NORMAL {
            lowest = lowest.min(piece.score);
            highest = highest.max(piece.score);
        }
        if piece.kind == USER_DEFINED {
            flags |= flag::USER;
            let protect = if spec.bpe { 0 } else { added::PROTECT };
            let token = AddedToken { content: piece.text.clone(), normalized: true, flags: protect };
            draft.added.insert(id, token);
        }
        if matches!(piece.kind, UNKNOWN | CONTROL) && !bytes.is_empty() {
            draft.special.insert(bytes.clone());
            draft.added.insert(id, AddedToken::special(piece.text.clone()));
        }
        if flags & flag::INDEXED != 0 && !bytes.is_empty() {
            draft.vocabulary.insert(bytes.clone(), id);
            draft.tables.pieces.push((bytes.clone(), id));
        }
        draft.tables.tokens.push(Token { bytes, flags, score: f64::from(piece.score) });
    }
    for byte in 0..=255u8 {
        let text = format!("<0x{byte:02X}>");
        if let Some(id) = pieces.iter().position(|p| p.kind == BYTE && p.text == text) {
            draft.tables.byte_ids[usize::from(byte)] = id as u32;
        }
    }
    draft.tables.unknown_score = f64::from(lowest - UNKNOWN_PENALTY);
    draft.tables.max_score = f64::from(highest);
    if draft.tables.special[2].is_none() {
        return Err(bad("a SentencePiece model without an unknown piece"));
    }
    let control = |name: &str| pieces.iter().position(|p| p.kind == CONTROL && p.text == name);
    for (at, name) in spec.names.iter().enumerate().filter(|(at, _)| *at != 2) {
        draft.tables.special[at] = control(name).map(|id| id as u32);
    }
    // The usual template: a beginning of text where the model has one.
    draft.tables.prefix = draft.tables.special[0].into_iter().collect();
    if spec.bpe {
        draft.tables.pieces.clear();
        merges(&mut draft, &pieces)?;
    }
    Ok(draft)
}

/// The merges of a BPE model: any two neighbours whose text together is a piece merge, the highest score first.
fn merges(draft: &mut Draft, pieces: &[Piece]) -> Result<()> {
    let mut scores: Vec<f32> = pieces.iter().map(|p| p.score).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    scores.dedup_by(|a, b| a.total_cmp(b).is_eq());
    let rank = |score: f32| scores.partition_point(|s| s.total_cmp(&score).is_gt()) as u32;
    let ranks: HashMap<&[u8], (u32, u32)> = draft
        .vocabulary
        .iter()
        .map(|(text, id)| (text.as_slice(), (rank(pieces[*id as usize].score), *id)))
        .collect();
    let mut found = Vec::new();
    let byte_ids = draft.tables.byte_ids;
    for (id, token) in draft.tables.tokens.iter_mut().enumerate() {
        if token.flags & flag::INDEXED == 0
            || token.flags & flag::USER != 0
            || token.bytes.len() > LONGEST * 4
        {
            continue;
        }
        let bytes = &token.bytes;
        let Some(symbols) = char_symbols(bytes, &draft.vocabulary, false, &byte_ids) else { continue };
        let pair = |l: Symbol, r: Symbol| bytes.get(l.start..r.end).and_then(|b| ranks.get(b)).copied();
        if let Whole::Yes(last) = whole(id as u32, symbols, pair) {
            token.flags |= flag::WHOLE;
            found.extend(last);
        }
    }
    draft.tables.merges = found;
    Ok(())
}
