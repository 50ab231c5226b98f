//! Sets of characters as bits, and the bytes that text of a set can begin with.
//!
//! What a class of an expression means is `regex-syntax`'s answer, as it is for the hand-written scanners; here it
//! becomes a bit per character, up to where the set changes for the last time below [`DIRECT`], and ranges above.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, HirKind};

/// Characters below this are looked up directly: the planes where classes change from one to the next.
const DIRECT: u32 = 0x2_0000;
/// What the sets of one expression may take, in words of eight bytes: more than sixty of the greatest.
const ROOM: usize = 1 << 17;
/// The most bytes of class text in one expression. Published ones have up to a thousand.
const LONGEST: usize = 1 << 12;

/// A set of characters.
pub(super) struct Set {
    /// A bit for every character from 0 on; never less than ASCII.
    bits: Box<[u64]>,
    /// Members behind those, in ascending order, both ends included.
    far: Box<[(u32, u32)]>,
    /// The bytes members begin with in UTF-8.
    pub(super) first: First,
}

impl Set {
    fn new(class: &ClassUnicode) -> Set {
        let ranges = || class.ranges().iter().map(|r| (r.start() as u32, r.end() as u32));
        let changes = ranges().flat_map(|(start, end)| [start, end + 1]).filter(|c| *c <= DIRECT);
        let cover = changes.max().unwrap_or(0).max(128).next_multiple_of(64);
        let mut bits = vec![0u64; cover as usize / 64].into_boxed_slice();
        for (start, end) in ranges().filter(|r| r.0 < cover) {
            for c in start..=end.min(cover - 1) {
                bits[c as usize / 64] |= 1 << (c % 64);
            }
        }
        let mut first = First::default();
        for (start, end) in ranges() {
            (start..(end + 1).min(0x80)).for_each(|c| first.add(c as u8));
            if end >= 0x80 {
                (lead(start.max(0x80))..=lead(end)).for_each(|byte| first.add(byte));
            }
        }
        Set { bits, far: ranges().filter(|r| r.1 >= cover).map(|r| (r.0.max(cover), r.1)).collect(), first }
    }

    #[inline]
    pub(super) fn has(&self, c: u32) -> bool {
        match self.bits.get(c as usize / 64) {
            Some(word) => word >> (c % 64) & 1 != 0,
            None => self.has_far(c),
        }
    }

    #[cold]
    fn has_far(&self, c: u32) -> bool {
        let at = self.far.partition_point(|r| r.1 < c);
        self.far.get(at).is_some_and(|r| r.0 <= c)
    }

    fn words(&self) -> usize {
        self.bits.len() + self.far.len()
    }
}

/// The first byte in UTF-8 of a character beyond ASCII.
fn lead(c: u32) -> u8 {
    match c {
        0..0x800 => 0xC0 | (c >> 6) as u8,
        0x800..0x1_0000 => 0xE0 | (c >> 12) as u8,
        _ => 0xF0 | (c >> 18) as u8,
    }
}

/// What a match of something can begin with.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct First {
    pub(super) bytes: [u64; 4],
    /// It can be empty, so that any byte may follow and also none.
    pub(super) empty: bool,
}

impl First {
    pub(super) const EMPTY: First = First { bytes: [0; 4], empty: true };

    pub(super) fn add(&mut self, byte: u8) {
        self.bytes[byte as usize / 64] |= 1 << (byte % 64);
    }

    pub(super) fn join(&mut self, other: &First) {
        self.bytes.iter_mut().zip(other.bytes).for_each(|(a, b)| *a |= b);
    }

    /// Whether a match can begin with `byte`, or without one at the end of the text.
    #[inline]
    pub(super) fn allows(&self, byte: Option<&u8>) -> bool {
        self.empty || byte.is_some_and(|b| self.bytes[*b as usize / 64] >> (b % 64) & 1 != 0)
    }
}

/// The sets of one expression, each once.
#[derive(Default)]
pub(super) struct Sets {
    pub(super) all: Vec<Set>,
    /// The text each was made of and whether case counts.
    made: Vec<(String, bool)>,
    text: usize,
    words: usize,
}

impl Sets {
    /// The set that `text` names: a class in brackets, `\s`, `\p{..}`.
    pub(super) fn class(&mut self, text: String, any_case: bool) -> Result<u16, String> {
        self.find(text, any_case, |text| {
            let mut parser =
                regex_syntax::ParserBuilder::new().case_insensitive(any_case).nest_limit(32).build();
            let hir = parser.parse(text).map_err(|e| {
                let why = match &e {
                    regex_syntax::Error::Parse(e) => e.kind().to_string(),
                    regex_syntax::Error::Translate(e) => e.kind().to_string(),
                    _ => e.to_string(),
                };
                format!("the class `{text}`: {why}")
            })?;
            let class = match hir.kind() {
                HirKind::Class(Class::Unicode(class)) => Some(class.clone()),
                HirKind::Class(Class::Bytes(class)) => class.to_unicode_class(),
                HirKind::Literal(text) => std::str::from_utf8(&text.0)
                    .ok()
                    .map(|text| ClassUnicode::new(text.chars().map(|c| ClassUnicodeRange::new(c, c)))),
                _ => None,
            };
            class.ok_or_else(|| format!("`{text}` is no class of characters"))
        })
    }

    /// `c` in all its cases; `None` where it has only one.
    pub(super) fn cases(&mut self, c: char) -> Result<Option<u16>, String> {
        let mut class = ClassUnicode::new([ClassUnicodeRange::new(c, c)]);
        class.try_case_fold_simple().map_err(|e| e.to_string())?;
        match class.ranges() {
            [one] if one.start() == one.end() => Ok(None),
            _ => self.find(format!("(?i){c}"), false, |_| Ok(class)).map(Some),
        }
    }

    /// Exactly `c`.
    pub(super) fn one(&mut self, c: char) -> Result<u16, String> {
        self.find(String::from(c), false, |_| Ok(ClassUnicode::new([ClassUnicodeRange::new(c, c)])))
    }

    fn find(
        &mut self,
        text: String,
        any_case: bool,
        make: impl FnOnce(&str) -> Result<ClassUnicode, String>,
    ) -> Result<u16, String> {
        if let Some(at) = self.made.iter().position(|m| m.0 == text && m.1 == any_case) {
            return Ok(at as u16);
        }
        self.text += text.len();
        if self.text > LONGEST {
            return Err(format!("its classes have more than {LONGEST} bytes"));
        }
        let set = Set::new(&make(&text)?);
        self.words += set.words();
        if self.words > ROOM {
            return Err(format!("its classes take more than {} bytes", ROOM * 8));
        }
        self.all.push(set);
        self.made.push((text, any_case));
        Ok((self.all.len() - 1) as u16)
    }
}
