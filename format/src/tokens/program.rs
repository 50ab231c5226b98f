//! Programs: what happens to text before and after the model, as short lists of tagged records.
//!
//! A program is a u32 count and then that many records: one byte of tag, then the fields in order. Numbers are u32,
//! booleans one byte, strings a u32 length and UTF-8. Programs are parsed when a tokenizer opens; there are at most
//! [`MOST`] records, so this costs nothing in proportion to a vocabulary.

use super::{TokensError, bad};

/// The most records of one program.
const MOST: u32 = 64;

/// What separates text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// These characters.
    Literal(String),
    /// A regular expression of the dialect that SPEC.md describes.
    Regex(String),
    /// A pattern that has a hand-written scanner.
    Known(Scanner),
}

/// The patterns with a hand-written scanner; [`Scanner::regex`] is what each must match exactly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // named after the release that published each
pub enum Scanner {
    Gpt2 = 1,
    Llama3 = 2,
    Qwen2 = 3,
    Cl100k = 4,
    O200k = 5,
}

impl Scanner {
    /// All of them.
    pub const ALL: [Scanner; 5] =
        [Scanner::Gpt2, Scanner::Llama3, Scanner::Qwen2, Scanner::Cl100k, Scanner::O200k];

    /// The expression that a scanner stands for.
    pub fn regex(self) -> &'static str {
        match self {
            Scanner::Gpt2 => r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            Scanner::Llama3 => {
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
            Scanner::Qwen2 => {
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
            Scanner::Cl100k => {
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
            }
            Scanner::O200k => {
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            }
        }
    }

    /// The scanner of exactly this expression.
    pub fn of(regex: &str) -> Option<Scanner> {
        Self::ALL.into_iter().find(|s| s.regex() == regex)
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scanner::Gpt2 => "gpt2",
            Scanner::Llama3 => "llama3",
            Scanner::Qwen2 => "qwen2",
            Scanner::Cl100k => "cl100k",
            Scanner::O200k => "o200k",
        }
    }
}

/// What becomes of the separators of a split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the names of the field
pub enum Behavior {
    Removed = 0,
    Isolated = 1,
    MergedWithPrevious = 2,
    MergedWithNext = 3,
    Contiguous = 4,
}

impl Behavior {
    const ALL: [Behavior; 5] = [
        Behavior::Removed,
        Behavior::Isolated,
        Behavior::MergedWithPrevious,
        Behavior::MergedWithNext,
        Behavior::Contiguous,
    ];
}

/// Where a Metaspace step puts its character in front.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the names of the field
pub enum Scheme {
    Never = 0,
    First = 1,
    Always = 2,
}

/// One step of normalisation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Normalizer {
    /// Unicode form C.
    Nfc,
    /// Unicode form D.
    Nfd,
    /// Unicode form KC.
    Nfkc,
    /// Unicode form KD.
    Nfkd,
    /// Lower case.
    Lowercase,
    /// White space off the ends.
    Strip(bool, bool),
    /// Combining marks away.
    StripAccents,
    /// In front of text that is not empty.
    Prepend(String),
    /// Every match becomes the text.
    Replace(Pattern, String),
    /// The part CHARSMAP, applied to grapheme clusters as Hugging Face does.
    Charsmap,
    /// SentencePiece's own normaliser over the part CHARSMAP (longest match): dummy prefix, remove extra white
    /// space, escape white space, white space as a suffix.
    SentencePiece(bool, bool, bool, bool),
    /// The clean-up of the NMT recipes: control characters away, odd spaces to spaces.
    Nmt,
}

/// One step of splitting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PreTokenizer {
    /// Splits at a pattern; the flag exchanges matches and the rest.
    Split(Pattern, Behavior, bool),
    /// A space in front of a piece without one.
    PrefixSpace,
    /// Spaces become the character; it is put in front by the scheme; the flag splits before each.
    Metaspace(char, Scheme, bool),
    /// Numbers apart; the flag: each digit alone.
    Digits(bool),
    /// Punctuation apart.
    Punctuation(Behavior),
    /// `\w+|[^\w\s]+`.
    Whitespace,
    /// At white space, which is dropped.
    WhitespaceSplit,
    /// At a character, which is dropped.
    Delimiter(char),
}

/// One step from tokens to text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoder {
    /// The bytes behind byte-level characters.
    ByteLevel,
    /// Runs of `<0x..>` tokens become the text they spell, or one U+FFFD for each where they spell none.
    ByteFallback,
    /// All tokens become one.
    Fuse,
    /// In each token every match becomes the text.
    Replace(Pattern, String),
    /// Up to so many of a character off the start and the end of each token.
    Strip(char, u32, u32),
    /// The character becomes a space; none at the start of the text unless the scheme is never.
    Metaspace(char, Scheme),
    /// The suffix becomes a space, or nothing at the end.
    Suffix(String),
    /// A space before each token but the first, or the prefix away; the flag tidies punctuation.
    WordPiece(String, bool),
    /// SentencePiece's own rules: the first space away, bytes decoded one by one, the text of the unknown token;
    /// flags: a dummy prefix is used, extra white space is removed.
    SentencePiece(bool, bool, String),
    /// Tokens with spaces between (a tokenizer without a decoder).
    Join,
}

/// Writes programs.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    fn flag(&mut self, v: bool) {
        self.0.push(u8::from(v));
    }
    fn text(&mut self, s: &str) {
        self.u32(s.len() as u32); // strings of a program come from a file read whole: far below 4 GiB
        self.0.extend_from_slice(s.as_bytes());
    }
    fn pattern(&mut self, p: &Pattern) {
        match p {
            Pattern::Literal(s) => (self.0.push(1), self.text(s)),
            Pattern::Regex(s) => (self.0.push(2), self.text(s)),
            Pattern::Known(s) => (self.0.push(3), self.u32(*s as u32)),
        };
    }
}

/// Reads programs.
struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], TokensError> {
        let Some((head, rest)) = self.0.split_at_checked(n) else {
            return bad(format!("a program ends early: {n} bytes expected, {} left", self.0.len()));
        };
        self.0 = rest;
        Ok(head)
    }
    fn u8(&mut self) -> Result<u8, TokensError> {
        Ok(self.bytes(1)?[0])
    }
    fn flag(&mut self) -> Result<bool, TokensError> {
        Ok(self.u8()? != 0)
    }
    fn u32(&mut self) -> Result<u32, TokensError> {
        let b = self.bytes(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
    fn text(&mut self) -> Result<String, TokensError> {
        let n = self.u32()? as usize;
        match std::str::from_utf8(self.bytes(n)?) {
            Ok(s) => Ok(s.to_owned()),
            Err(_) => bad("a string of a program is not UTF-8"),
        }
    }
    fn character(&mut self) -> Result<char, TokensError> {
        let n = self.u32()?;
        char::from_u32(n).map_or_else(|| bad(format!("{n:#x} in a program is no character")), Ok)
    }
    fn behavior(&mut self) -> Result<Behavior, TokensError> {
        let n = self.u8()?;
        Behavior::ALL.into_iter().find(|b| *b as u8 == n).map_or_else(|| bad("unknown split behaviour"), Ok)
    }
    fn scheme(&mut self) -> Result<Scheme, TokensError> {
        Ok(match self.u8()? {
            0 => Scheme::Never,
            1 => Scheme::First,
            2 => Scheme::Always,
            n => return bad(format!("unknown prepend scheme {n}")),
        })
    }
    fn pattern(&mut self) -> Result<Pattern, TokensError> {
        Ok(match self.u8()? {
            1 => Pattern::Literal(self.text()?),
            2 => Pattern::Regex(self.text()?),
            3 => {
                let n = self.u32()?;
                match Scanner::ALL.into_iter().find(|s| *s as u32 == n) {
                    Some(s) => Pattern::Known(s),
                    None => return bad(format!("unknown split pattern {n}: the file needs a newer library")),
                }
            }
            n => return bad(format!("unknown kind of pattern {n}")),
        })
    }
}

/// A kind of record.
pub(crate) trait Step: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(input: &mut &[u8]) -> Result<Self, TokensError>;
}

/// The bytes of a program.
pub(crate) fn encode<S: Step>(steps: &[S]) -> Result<Vec<u8>, TokensError> {
    if steps.len() > MOST as usize {
        return bad(format!("{} steps, at most {MOST}", steps.len()));
    }
    let mut out = (steps.len() as u32).to_le_bytes().to_vec();
    steps.iter().for_each(|s| s.put(&mut out));
    Ok(out)
}

/// The steps in `bytes`; an absent part is an empty program.
pub(crate) fn decode<S: Step>(bytes: &[u8]) -> Result<Vec<S>, TokensError> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut input = In(bytes);
    let count = input.u32()?;
    if count > MOST {
        return bad(format!("a program of {count} steps, at most {MOST}"));
    }
    let mut rest = input.0;
    (0..count).map(|_| S::take(&mut rest)).collect()
}

macro_rules! step {
    ($name:ty, |$this:ident, $out:ident| $put:expr, |$tag:ident, $input:ident| $take:expr) => {
        impl Step for $name {
            fn put(&self, bytes: &mut Vec<u8>) {
                let mut $out = Out(std::mem::take(bytes));
                let $this = self;
                $put;
                *bytes = $out.0;
            }
            fn take(bytes: &mut &[u8]) -> Result<Self, TokensError> {
                let mut $input = In(bytes);
                let $tag = $input.u8()?;
                let step = $take;
                *bytes = $input.0;
                Ok(step)
            }
        }
    };
}

step!(
    Normalizer,
    |step, out| match step {
        Normalizer::Nfc => out.0.push(1),
        Normalizer::Nfd => out.0.push(2),
        Normalizer::Nfkc => out.0.push(3),
        Normalizer::Nfkd => out.0.push(4),
        Normalizer::Lowercase => out.0.push(5),
        Normalizer::Strip(l, r) => {
            out.0.push(6);
            out.flag(*l);
            out.flag(*r);
        }
        Normalizer::StripAccents => out.0.push(7),
        Normalizer::Prepend(s) => {
            out.0.push(8);
            out.text(s);
        }
        Normalizer::Replace(p, s) => {
            out.0.push(9);
            out.pattern(p);
            out.text(s);
        }
        Normalizer::Charsmap => out.0.push(10),
        Normalizer::SentencePiece(a, b, c, d) => {
            out.0.push(11);
            [a, b, c, d].into_iter().for_each(|f| out.flag(*f));
        }
        Normalizer::Nmt => out.0.push(12),
    },
    |tag, input| match tag {
        1 => Normalizer::Nfc,
        2 => Normalizer::Nfd,
        3 => Normalizer::Nfkc,
        4 => Normalizer::Nfkd,
        5 => Normalizer::Lowercase,
        6 => Normalizer::Strip(input.flag()?, input.flag()?),
        7 => Normalizer::StripAccents,
        8 => Normalizer::Prepend(input.text()?),
        9 => Normalizer::Replace(input.pattern()?, input.text()?),
        10 => Normalizer::Charsmap,
        11 => Normalizer::SentencePiece(input.flag()?, input.flag()?, input.flag()?, input.flag()?),
        12 => Normalizer::Nmt,
        n => return bad(format!("unknown normalizer step {n}: the file needs a newer library")),
    }
);

step!(
    PreTokenizer,
    |step, out| match step {
        PreTokenizer::Split(p, b, invert) => {
            out.0.push(1);
            out.pattern(p);
            out.0.push(*b as u8);
            out.flag(*invert);
        }
        PreTokenizer::PrefixSpace => out.0.push(2),
        PreTokenizer::Metaspace(c, s, split) => {
            out.0.push(3);
            out.u32(*c as u32);
            out.0.push(*s as u8);
            out.flag(*split);
        }
        PreTokenizer::Digits(each) => {
            out.0.push(4);
            out.flag(*each);
        }
        PreTokenizer::Punctuation(b) => out.0.extend([5, *b as u8]),
        PreTokenizer::Whitespace => out.0.push(6),
        PreTokenizer::WhitespaceSplit => out.0.push(7),
        PreTokenizer::Delimiter(c) => {
            out.0.push(8);
            out.u32(*c as u32);
        }
    },
    |tag, input| match tag {
        1 => PreTokenizer::Split(input.pattern()?, input.behavior()?, input.flag()?),
        2 => PreTokenizer::PrefixSpace,
        3 => PreTokenizer::Metaspace(input.character()?, input.scheme()?, input.flag()?),
        4 => PreTokenizer::Digits(input.flag()?),
        5 => PreTokenizer::Punctuation(input.behavior()?),
        6 => PreTokenizer::Whitespace,
        7 => PreTokenizer::WhitespaceSplit,
        8 => PreTokenizer::Delimiter(input.character()?),
        n => return bad(format!("unknown pre-tokenizer step {n}: the file needs a newer library")),
    }
);

step!(
    Decoder,
    |step, out| match step {
        Decoder::ByteLevel => out.0.push(1),
        Decoder::ByteFallback => out.0.push(2),
        Decoder::Fuse => out.0.push(3),
        Decoder::Replace(p, s) => {
            out.0.push(4);
            out.pattern(p);
            out.text(s);
        }
        Decoder::Strip(c, start, stop) => {
            out.0.push(5);
            [*c as u32, *start, *stop].into_iter().for_each(|v| out.u32(v));
        }
        Decoder::Metaspace(c, s) => {
            out.0.push(6);
            out.u32(*c as u32);
            out.0.push(*s as u8);
        }
        Decoder::Suffix(s) => {
            out.0.push(7);
            out.text(s);
        }
        Decoder::WordPiece(s, tidy) => {
            out.0.push(8);
            out.text(s);
            out.flag(*tidy);
        }
        Decoder::SentencePiece(dummy, extra, unknown) => {
            out.0.push(9);
            out.flag(*dummy);
            out.flag(*extra);
            out.text(unknown);
        }
        Decoder::Join => out.0.push(10),
    },
    |tag, input| match tag {
        1 => Decoder::ByteLevel,
        2 => Decoder::ByteFallback,
        3 => Decoder::Fuse,
        4 => Decoder::Replace(input.pattern()?, input.text()?),
        5 => Decoder::Strip(input.character()?, input.u32()?, input.u32()?),
        6 => Decoder::Metaspace(input.character()?, input.scheme()?),
        7 => Decoder::Suffix(input.text()?),
        8 => Decoder::WordPiece(input.text()?, input.flag()?),
        9 => Decoder::SentencePiece(input.flag()?, input.flag()?, input.text()?),
        10 => Decoder::Join,
        n => return bad(format!("unknown decoder step {n}: the file needs a newer library")),
    }
);
