//! Unicode classes of characters: one byte of bits each, looked up in a table filled at first use.
//!
//! The ranges are those of `regex-syntax`, so the hand-written scanners and the general expressions agree about
//! every character. The table covers the first three planes' worth of assigned letters directly and the rest by
//! search; filling it takes well under a millisecond.

use std::sync::LazyLock;

/// `\p{L}`
pub(crate) const LETTER: u8 = 1;
/// `\p{N}`
pub(crate) const NUMBER: u8 = 2;
/// `\s`
pub(crate) const SPACE: u8 = 4;
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
pub(crate) const UPPER: u8 = 8;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
pub(crate) const LOWER: u8 = 16;
/// `\p{P}`
pub(crate) const PUNCTUATION: u8 = 32;
/// `\w`
pub(crate) const WORD: u8 = 64;
/// `\p{Mn}`
pub(crate) const MARK: u8 = 128;

const CLASSES: [(u8, &str); 8] = [
    (LETTER, r"\p{L}"),
    (NUMBER, r"\p{N}"),
    (SPACE, r"\s"),
    (UPPER, r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"),
    (LOWER, r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"),
    (PUNCTUATION, r"\p{P}"),
    (WORD, r"\w"),
    (MARK, r"\p{Mn}"),
];

/// Characters below this are looked up directly: the planes where classes change from one to the next.
const DIRECT: u32 = 0x2_0000;

/// The classes of all characters.
pub(crate) struct Classes {
    direct: Box<[u8]>,
    /// Ranges above, sorted by their starts within a class.
    rest: Vec<(u32, u32, u8)>,
}

static CLASSES_TABLE: LazyLock<Classes> = LazyLock::new(Classes::new);

/// The table; fetch it once per text.
pub(crate) fn classes() -> &'static Classes {
    &CLASSES_TABLE
}

impl Classes {
    fn new() -> Classes {
        let mut direct = vec![0u8; DIRECT as usize].into_boxed_slice();
        let mut rest = Vec::new();
        for (bit, pattern) in CLASSES {
            // The patterns are constants of this file; one that did not parse would leave its class empty and
            // fail the tests of every scanner.
            let Ok(hir) = regex_syntax::parse(pattern) else { continue };
            let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(class)) = hir.kind()
            else {
                continue;
            };
            for range in class.ranges() {
                let (start, end) = (range.start() as u32, range.end() as u32);
                if start < DIRECT {
                    direct[start as usize..=end.min(DIRECT - 1) as usize].iter_mut().for_each(|c| *c |= bit);
                }
                if end >= DIRECT {
                    rest.push((start.max(DIRECT), end, bit));
                }
            }
        }
        Classes { direct, rest }
    }

    /// The classes of `c`.
    #[inline]
    pub(crate) fn of(&self, c: char) -> u8 {
        match self.direct.get(c as usize) {
            Some(bits) => *bits,
            None => self.far(c as u32),
        }
    }

    #[cold]
    fn far(&self, c: u32) -> u8 {
        self.rest.iter().filter(|(start, end, _)| (*start..=*end).contains(&c)).fold(0, |bits, r| bits | r.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_the_regular_expressions() {
        for (bit, pattern) in CLASSES {
            let regex = fancy_regex::Regex::new(&format!("^{pattern}$")).unwrap();
            for c in (0..=0x10_FFFF).step_by(7).chain(0..0x3100).filter_map(char::from_u32) {
                let want = regex.is_match(c.encode_utf8(&mut [0; 4])).unwrap();
                assert_eq!(classes().of(c) & bit != 0, want, "{pattern} {:#x}", c as u32);
            }
        }
    }
}
