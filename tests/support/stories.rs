//! The trained model of 260 thousand parameters as a checkpoint with its tokenizer.

use std::path::{Path, PathBuf};

/// The checkpoint, written to `dir`, and the published facts about it; `None` without the material.
pub fn checkpoint(dir: &Path) -> Option<(PathBuf, serde_json::Value)> {
    let stories = llm_testdata::shared("data/weights/stories260K")?;
    let checkpoint = dir.join("checkpoint");
    std::fs::create_dir_all(&checkpoint).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(stories.join("hf").join(name), checkpoint.join(name)).unwrap();
    }
    let tokens = std::fs::read(stories.join("tok512.bin")).unwrap();
    std::fs::write(checkpoint.join("tokenizer.model"), sentencepiece(&tokens)).unwrap();
    let facts = std::fs::read(stories.join("reference.json")).unwrap();
    Some((checkpoint, serde_json::from_slice(&facts).unwrap()))
}

/// llama2.c's list of tokens (longest length; then score, length, bytes of each) as a SentencePiece model.
fn sentencepiece(list: &[u8]) -> Vec<u8> {
    let word = |at: usize| <[u8; 4]>::try_from(&list[at..at + 4]).unwrap();
    let (mut at, mut model) = (4, Vec::new());
    for id in 0u32.. {
        if at >= list.len() {
            break;
        }
        let (score, length) = (word(at), u32::from_le_bytes(word(at + 4)) as usize);
        let text = std::str::from_utf8(&list[at + 8..at + 8 + length]).unwrap();
        at += 8 + length;
        // Types of the model: unknown 2, control 3, byte 6, normal 1.
        let (text, kind) = match id {
            0 => ("<unk>".to_owned(), 2),
            1 => ("<s>".to_owned(), 3),
            2 => ("</s>".to_owned(), 3),
            3..259 => (format!("<0x{:02X}>", id - 3), 6),
            _ => (text.replace(' ', "\u{2581}"), 1),
        };
        let mut piece = field(1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend_from_slice(&score);
        piece.extend_from_slice(&[3 << 3, kind]);
        model.extend(field(1, &piece));
    }
    // Trainer: model type BPE (3: 2), byte fallback (35: true). Normalizer: identity, extra spaces kept (4: false).
    model.extend(field(2, &[3 << 3, 2, 0x98, 0x02, 1]));
    model.extend(field(3, &[&field(1, b"identity")[..], &[4 << 3, 0]].concat()));
    model
}

/// A protocol buffers field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut rest = bytes.len();
    while rest >= 0x80 {
        out.push((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out.extend_from_slice(bytes);
    out
}
