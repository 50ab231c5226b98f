//! Hand-written scanners for the split patterns in use.
//!
//! Each stands for one regular expression (`llm_format::tokens::Scanner::regex`), which is its specification and the
//! oracle of its test. All of them tile the text: every character belongs to exactly one match. The cases below
//! follow the alternatives of the expressions in their order, because the first one that matches wins.

use super::classes::{Classes, LETTER, LOWER, NUMBER, SPACE, UPPER, classes};
use llm_format::tokens::Scanner;

/// Cuts `text` into the matches of `scanner` and hands them out in order.
pub(crate) fn each_match(scanner: Scanner, text: &str, mut give: impl FnMut(&str)) {
    let at = Cursor { text, classes: classes() };
    let mut start = 0;
    while start < text.len() {
        let end = match scanner {
            Scanner::Gpt2 => at.gpt2(start),
            Scanner::Llama3 => at.llama3(start, 3, false),
            Scanner::Qwen2 => at.llama3(start, 1, false),
            Scanner::Cl100k => at.llama3(start, 3, true),
            Scanner::O200k => at.o200k(start),
        };
        debug_assert!(end > start, "a match of no characters at {start}");
        give(&text[start..end]);
        start = end;
    }
}

struct Cursor<'a> {
    text: &'a str,
    classes: &'static Classes,
}

const LN: u8 = LETTER | NUMBER;
const LNS: u8 = LETTER | NUMBER | SPACE;

impl Cursor<'_> {
    /// The character at `at`, its classes and where the next begins; `None` at the end.
    #[inline]
    fn get(&self, at: usize) -> Option<(char, u8, usize)> {
        let byte = *self.text.as_bytes().get(at)?;
        if byte < 128 {
            return Some((char::from(byte), self.classes.of(char::from(byte)), at + 1));
        }
        let c = self.text[at..].chars().next()?;
        Some((c, self.classes.of(c), at + c.len_utf8()))
    }

    /// Behind the run of characters from `at` on for which `keep` holds, at most `most` of them.
    #[inline]
    fn run(&self, mut at: usize, most: usize, keep: impl Fn(char, u8) -> bool) -> usize {
        let mut left = most;
        while left > 0
            && let Some((c, class, next)) = self.get(at)
            && keep(c, class)
        {
            at = next;
            left -= 1;
        }
        at
    }

    #[inline]
    fn letters(&self, at: usize) -> usize {
        self.run(at, usize::MAX, |_, class| class & LETTER != 0)
    }

    /// Behind `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at `at`. Without regard to case ſ counts as s.
    fn contraction(&self, at: usize, any_case: bool) -> Option<usize> {
        let rest = self.text.get(at..)?.strip_prefix('\'')?;
        let fold = |b: Option<&u8>| b.map_or(0, |b| if any_case { b.to_ascii_lowercase() } else { *b });
        let bytes = rest.as_bytes();
        match (fold(bytes.first()), fold(bytes.get(1))) {
            (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(at + 3),
            _ if any_case && rest.starts_with('ſ') => Some(at + 1 + 'ſ'.len_utf8()),
            _ => None,
        }
    }

    /// `\s+(?!\S)|\s+`: a run of white space that ends at `end` keeps its last character for what follows.
    fn spaces(&self, start: usize, end: usize) -> usize {
        if end == self.text.len() {
            return end;
        }
        let last = self.text[start..end].char_indices().next_back().map_or(0, |(i, _)| i);
        if last > 0 { start + last } else { end }
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`; with `to_end` `\s++$|\s*[\r\n]|\s+(?!\S)|\s`.
    fn white(&self, start: usize, to_end: bool) -> usize {
        let end = self.run(start, usize::MAX, |_, class| class & SPACE != 0);
        if to_end && end == self.text.len() {
            return end;
        }
        match self.text[start..end].rfind(['\r', '\n']) {
            Some(last) => start + last + 1,
            None => self.spaces(start, end),
        }
    }

    fn gpt2(&self, start: usize) -> usize {
        let Some((c, class, next)) = self.get(start) else { return start };
        if c == '\''
            && let Some(end) = self.contraction(start, false)
        {
            return end;
        }
        // ` ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+`
        let (class, next) = match self.get(next) {
            Some((_, after, behind)) if c == ' ' && after & SPACE == 0 => (after, behind),
            _ => (class, next),
        };
        if class & SPACE != 0 {
            let end = self.run(start, usize::MAX, |_, class| class & SPACE != 0);
            return self.spaces(start, end);
        }
        let kind = class & LN;
        if kind & LETTER != 0 {
            self.letters(next)
        } else if kind & NUMBER != 0 {
            self.run(next, usize::MAX, |_, class| class & NUMBER != 0)
        } else {
            self.run(next, usize::MAX, |_, class| class & LNS == 0)
        }
    }

    /// The expressions of llama3, qwen2 (`digits` 1) and cl100k (`to_end`).
    fn llama3(&self, start: usize, digits: usize, to_end: bool) -> usize {
        let Some((c, class, next)) = self.get(start) else { return start };
        if class & LETTER != 0 {
            return self.letters(next);
        }
        if c == '\''
            && let Some(end) = self.contraction(start, true)
        {
            return end;
        }
        if class & NUMBER != 0 {
            return self.run(next, digits - 1, |_, class| class & NUMBER != 0);
        }
        let after = self.get(next);
        if c != '\r'
            && c != '\n'
            && let Some((_, _, behind)) = after.filter(|a| a.1 & LETTER != 0)
        {
            return self.letters(behind);
        }
        self.symbols(start, |c| c == '\r' || c == '\n').unwrap_or_else(|| self.white(start, to_end))
    }

    /// ` ?[^\s\p{L}\p{N}]+` and then any characters for which `tail` holds.
    fn symbols(&self, start: usize, tail: impl Fn(char) -> bool) -> Option<usize> {
        let (c, class, next) = self.get(start)?;
        let behind = match self.get(next) {
            Some((_, after, behind)) if c == ' ' && after & LNS == 0 => behind,
            _ if class & LNS == 0 => next,
            _ => return None,
        };
        let end = self.run(behind, usize::MAX, |_, class| class & LNS == 0);
        Some(self.run(end, usize::MAX, |c, _| tail(c)))
    }

    fn o200k(&self, start: usize) -> usize {
        let Some((c, class, next)) = self.get(start) else { return start };
        let marked = class & LN == 0 && c != '\r' && c != '\n';
        let from = [marked.then_some(next), Some(start)];
        // `[^\r\n\p{L}\p{N}]?[UPPER]*[LOWER]+` and only then `[^\r\n\p{L}\p{N}]?[UPPER]+[LOWER]*`; each first
        // with its optional character and then without.
        let end = from.into_iter().flatten().find_map(|at| self.upper_then_lower(at));
        let end = end.or_else(|| from.into_iter().flatten().find_map(|at| self.upper(at)));
        if let Some(end) = end {
            return self.contraction(end, true).unwrap_or(end);
        }
        if class & NUMBER != 0 {
            return self.run(next, 2, |_, class| class & NUMBER != 0);
        }
        self.symbols(start, |c| matches!(c, '\r' | '\n' | '/')).unwrap_or_else(|| self.white(start, false))
    }

    fn upper_then_lower(&self, at: usize) -> Option<usize> {
        let mut end = at;
        let mut both = None; // behind the last character that may count as lower case
        while let Some((_, class, next)) = self.get(end)
            && class & UPPER != 0
        {
            end = next;
            if class & LOWER != 0 {
                both = Some(next);
            }
        }
        let lower = self.run(end, usize::MAX, |_, class| class & LOWER != 0);
        if lower > end { Some(lower) } else { both }
    }

    fn upper(&self, at: usize) -> Option<usize> {
        let end = self.run(at, usize::MAX, |_, class| class & UPPER != 0);
        (end > at).then_some(end) // no lower case follows, or the first alternative had matched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The slow twin: the regular expression itself.
    fn by_regex(scanner: Scanner, text: &str) -> Vec<String> {
        let regex = fancy_regex::Regex::new(scanner.regex()).unwrap();
        regex.find_iter(text).map(|m| m.unwrap().as_str().to_owned()).collect()
    }

    fn by_scanner(scanner: Scanner, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        each_match(scanner, text, |m| out.push(m.to_owned()));
        out
    }

    fn same(text: &str) {
        for scanner in Scanner::ALL {
            assert_eq!(by_scanner(scanner, text), by_regex(scanner, text), "{scanner:?} {text:?}");
        }
    }

    #[test]
    fn scanners_cut_where_the_expressions_cut() {
        for text in [
            "",
            " ",
            "  \n \n  ",
            "it's 'S 'ſt they'LL 've'Re 'x ''d",
            "a  b\t\tc \r\n\r\n d",
            "1234567 ½ Ⅻ ١٢٣٤٥",
            "x\u{a0}y\u{3000}z\u{85}w",
            "ǅǅabc ABCdef ʰʰA a\u{301}B\u{301} \u{301}\u{301}x",
            "!!!\n\n/x ?/\r\n/",
            "漢字かな。",
            "end   ",
            "end\n  ",
        ] {
            same(text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn scanners_cut_any_text_where_the_expressions_cut(
            text in "([ \t\r\n'a-dA-DstmlevrSTſǅʰ0-9½!/。漢\u{301}\u{a0}\u{2003}]|\\PC){0,24}"
        ) {
            same(&text);
        }
    }
}
