//! SentencePiece's table of character replacements, used where it lies.
//!
//! ```text
//! u32 bytes of the trie | double-array trie: u32 units | replacement strings, each ended by a zero byte
//! ```
//!
//! A unit of the trie (Darts-clone): bits 0..7 label, bit 8 has a value, bit 9 wide offset, bits 10..30 offset, bit
//! 31 set in units that hold a value (bits 0..30: where the replacement begins). The walk ends at the first unit
//! that does not exist or does not carry the byte, so a damaged table only finds less or something else.

/// The table.
#[derive(Clone, Copy)]
pub(crate) struct Charsmap<'a> {
    units: &'a [[u8; 4]],
    strings: &'a [u8],
}

impl<'a> Charsmap<'a> {
    /// The table in `bytes`; an empty one where they are too short.
    pub(crate) fn new(bytes: &'a [u8]) -> Charsmap<'a> {
        let (size, rest) = bytes.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        let (trie, strings) = rest.split_at_checked(u32::from_le_bytes(*size) as usize).unwrap_or((&[], &[]));
        Charsmap { units: trie.as_chunks().0, strings }
    }

    /// Whether nothing is replaced.
    pub(crate) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    fn unit(&self, at: u32) -> Option<u32> {
        self.units.get(at as usize).map(|b| u32::from_le_bytes(*b))
    }

    /// Every prefix of `text` with a replacement, shortest first: its length and where the replacement begins.
    fn prefixes(&self, text: &[u8], mut give: impl FnMut(usize, u32)) -> Option<()> {
        let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
        let mut at = offset(self.unit(0)?);
        for (i, &byte) in text.iter().enumerate() {
            if byte == 0 {
                break;
            }
            at ^= u32::from(byte);
            let unit = self.unit(at)?;
            if unit & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit & 1 << 8 != 0 {
                give(i + 1, self.unit(at)? & !(1 << 31));
            }
        }
        Some(())
    }

    fn string(&self, at: u32) -> &'a str {
        let bytes = self.strings.get(at as usize..).unwrap_or(&[]);
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).unwrap_or("\u{FFFD}")
    }

    /// The replacement of the longest prefix of `text`, with its length: SentencePiece's rule.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, &'a str)> {
        let mut best = None;
        self.prefixes(text, |len, at| best = Some((len, at)));
        best.map(|(len, at)| (len, self.string(at)))
    }

    /// The replacement of the shortest prefix of `text`: what Hugging Face takes for the whole of it.
    pub(crate) fn shortest(&self, text: &[u8]) -> Option<&'a str> {
        let mut first = None;
        self.prefixes(text, |_, at| first = first.or(Some(at)));
        first.map(|at| self.string(at))
    }
}
