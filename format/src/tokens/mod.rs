//! Tokenizer tables: one section of the file, searched where it lies.
//!
//! ```text
//! header | part directory | parts, each at a multiple of 8
//!          tokens: offsets + bytes + flags + index      model: pair table, byte ids, scores
//!          added tokens: two sorted lists + their text  programs: normalizer, pre-tokenizer, decoder
//! ```
//!
//! [`Tables`] builds a section, [`Layout`] checks its extents without touching the vocabulary, [`View`] answers
//! lookups. Nothing in a table is trusted: a lookup outside a part finds nothing and every probe has a limit, so a
//! damaged table gives wrong ids or an error and never a panic or a loop without end.
//!
//! This module knows nothing of text: normalising, splitting and merging belong to the library.

mod build;
mod program;
mod view;

pub use build::{Added, Merge, Tables, Token};
pub use program::{Behavior, Decoder, Normalizer, Pattern, PreTokenizer, Scanner, Scheme};
pub use view::{AddedList, AddedToken, Layout, View};

/// Version of the section.
pub const VERSION: u32 = 1;
/// Bytes before the part directory.
pub(crate) const HEADER: usize = 80;
/// Bytes of one entry of the part directory.
pub(crate) const PART: usize = 24;
/// No id, an empty slot.
pub const NONE: u32 = u32::MAX;
/// A lookup in a hash table looks at no more slots than this; the builder makes tables that need no more.
pub const PROBES: u32 = 32;
/// The largest token of a unigram model in bytes; it bounds the walk from one position.
pub const LONGEST: u32 = 4096;

/// What the model section is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Byte-pair encoding: the pair table holds merges.
    Bpe,
    /// Unigram language model: the pair table holds a trie.
    Unigram,
}

/// Bits of the header's `flags`.
pub mod setting {
    /// Words are raw bytes, each an initial symbol (byte-level BPE).
    pub const BYTE_LEVEL: u32 = 1;
    /// A word that is a token becomes that token, whatever the merges say.
    pub const IGNORE_MERGES: u32 = 2;
    /// Neighbouring unknown characters become one unknown token.
    pub const FUSE_UNKNOWN: u32 = 4;
    /// Unknown characters become the tokens of their bytes where all of them exist.
    pub const BYTE_FALLBACK: u32 = 8;
    /// Path scores are rounded to f32 after every addition, as SentencePiece does.
    pub const SINGLE: u32 = 16;
    /// No token has U+2581 behind another character: words may be cut before each run of it.
    pub const WORDS: u32 = 32;
    /// Text of special tokens is recognised even where none are added around the text.
    pub const SPECIAL_TEXT: u32 = 64;
}

/// Bits of a token's flags.
pub mod flag {
    /// The id is in use.
    pub const PRESENT: u16 = 1;
    /// Left out of decoded text on request; never produced from plain text.
    pub const SPECIAL: u16 = 2;
    /// On one of the two lists of added tokens.
    pub const ADDED: u16 = 4;
    /// Stands for a single byte (`<0x0A>`).
    pub const BYTE: u16 = 8;
    /// The unknown token.
    pub const UNKNOWN: u16 = 16;
    /// A control token of SentencePiece: no text of its own.
    pub const CONTROL: u16 = 32;
    /// Ends a generation.
    pub const END: u16 = 64;
    /// Encoding the token's own bytes gives the token.
    pub const WHOLE: u16 = 128;
    /// The token's bytes are decoded from byte-level characters.
    pub const MAPPED: u16 = 256;
    /// Found through the index.
    pub const INDEXED: u16 = 512;
    /// User-defined in SentencePiece: never normalised, never merged.
    pub const USER: u16 = 1024;
}

/// Bits of an added token's flags.
pub mod added {
    /// Takes the white space on its left.
    pub const LSTRIP: u32 = 1;
    /// Takes the white space on its right.
    pub const RSTRIP: u32 = 2;
    /// Matches whole words only.
    pub const SINGLE_WORD: u32 = 4;
    /// Recognised only where special tokens may be.
    pub const SPECIAL: u32 = 8;
    /// Not looked for, only kept as it is by SentencePiece's normaliser; the model finds it.
    pub const PROTECT: u32 = 16;
}

/// Tags of the parts.
pub(crate) mod part {
    pub const OFFSETS: u32 = 1;
    pub const BYTES: u32 = 2;
    pub const FLAGS: u32 = 3;
    pub const INDEX: u32 = 4;
    pub const PAIRS: u32 = 5;
    pub const BYTE_IDS: u32 = 6;
    pub const SCORES: u32 = 7;
    pub const ADDED_RAW: u32 = 8;
    pub const ADDED_NORMAL: u32 = 9;
    pub const ADDED_TEXT: u32 = 10;
    pub const NORMALIZER: u32 = 11;
    pub const PRE_TOKENIZER: u32 = 12;
    pub const DECODER: u32 = 13;
    pub const PREFIX: u32 = 14;
    pub const SUFFIX: u32 = 15;
    pub const CHARSMAP: u32 = 16;
    pub const COUNT: usize = 17;
}

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// The hash of a byte string: eight bytes at a time, little-endian, the last padded with zeros.
#[inline]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut h = (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut mix = |word: u64| {
        h = (h ^ word).wrapping_mul(MULTIPLIER);
        h ^= h >> 32;
    };
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        mix(u64::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        let word = match rest.len() {
            // Two overlapping halves read faster than a byte loop and give the same padded word.
            4..8 => {
                let low = u64::from(u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]));
                let mut high = 0;
                for (i, &b) in rest[4..].iter().enumerate() {
                    high |= u64::from(b) << (32 + 8 * i);
                }
                low | high
            }
            _ => rest.iter().enumerate().fold(0, |w, (i, &b)| w | u64::from(b) << (8 * i)),
        };
        mix(word);
    }
    h
}

/// The hash of a pair of numbers.
#[inline]
pub fn hash_pair(left: u32, right: u32) -> u64 {
    let h = (u64::from(left) | u64::from(right) << 32).wrapping_mul(MULTIPLIER);
    (h ^ h >> 32).wrapping_mul(MULTIPLIER)
}

/// The first slot of `hash` in a table of `slots`.
#[inline]
pub(crate) fn slot(hash: u64, slots: u32) -> u32 {
    (((hash >> 32) * u64::from(slots)) >> 32) as u32
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`): itself where it is
/// printable in Latin-1, else the next free one from U+0100 on.
pub fn byte_to_char(byte: u8) -> char {
    let code = match byte {
        0..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte - 0x7F),
        0xAD => 0x143,
        _ => u32::from(byte),
    };
    char::from_u32(code).unwrap_or('\u{FFFD}')
}

/// The byte behind a byte-level character.
pub fn char_to_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Why a section could not be used or built.
#[derive(Clone, Debug, thiserror::Error)]
#[error("tokenizer tables: {0}")]
pub struct TokensError(pub String);

pub(crate) fn bad<T>(why: impl Into<String>) -> Result<T, TokensError> {
    Err(TokensError(why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_characters_are_a_bijection() {
        let mut seen = std::collections::BTreeSet::new();
        for byte in 0..=255 {
            let c = byte_to_char(byte);
            assert_eq!(char_to_byte(c), Some(byte));
            assert!(seen.insert(c));
        }
    }
}
