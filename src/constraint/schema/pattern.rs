//! Regular expressions as schemas write them (ECMA-262), as the engine reads them (the syntax of the crate `regex`).

/// White space and line ends of ECMA-262: U+FEFF is one, U+0085 is not, unlike in Unicode's own property.
const SPACE: &str =
    r"\t\n\x0B\x0C\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}";
/// What a dot stands for.
const DOT: &str = r"[^\n\r\x{2028}\x{2029}]";

/// The pattern with `\s`, `\S`, the dot and hyphens that are no ranges spelled out. `\d` and `\w` are made ASCII by the
/// engine.
pub(super) fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut in_class = false;
    let mut member = Member::Whole;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let range = c == '-' && member == Member::Single && !chars.as_str().starts_with(']');
        member = match member {
            _ if range => Member::Range,
            Member::Range => Member::Whole,
            _ => Member::Single,
        };
        match c {
            '\\' => match chars.next() {
                Some('s') if in_class => {
                    out.push_str(SPACE);
                    member = Member::Whole;
                }
                Some('s') => out.push_str(&format!("[{SPACE}]")),
                Some('S') => out.push_str(&format!("[^{SPACE}]")),
                Some(other) => {
                    out.extend(['\\', other]);
                    if "dDwW".contains(other) {
                        member = Member::Whole;
                    }
                }
                None => out.push('\\'),
            },
            // In ECMA-262 a bracket inside a class is a character like any other.
            '[' if in_class => out.push_str("\\["),
            '[' => {
                in_class = true;
                member = Member::Whole;
                out.push('[');
                if chars.as_str().starts_with('^') {
                    chars.next();
                    out.push('^');
                }
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            '.' if !in_class => out.push_str(DOT),
            // Signs that combine classes in the engine's syntax, two of them in a row, and are characters here.
            '-' if in_class && !range => out.push_str("\\-"),
            '&' | '~' if in_class => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

/// What stands before a character in a class.
#[derive(Clone, Copy, PartialEq)]
enum Member {
    /// A character that a range can begin with.
    Single,
    /// The hyphen of a range.
    Range,
    /// Nothing, a range, or a class of its own.
    Whole,
}

#[cfg(test)]
mod tests {
    use super::translated;

    #[test]
    fn hyphens_are_ranges_or_characters_and_never_differences() {
        for (written, read) in [
            (r"^[a-z0-9]+-[.]$", r"^[a-z0-9]+-[.]$"),
            (r"[+--]", r"[+-\-]"),
            (r"[^+--]", r"[^+-\-]"),
            (r"[--b]", r"[\--b]"),
            (r"[a-c--e]", r"[a-c\--e]"),
            (r"[\w-.]", r"[\w\-.]"),
            (r"[-a]", r"[\-a]"),
            (r"[^-a-]", r"[^\-a\-]"),
            (r"[\--\.]", r"[\--\.]"),
            (r"a--b[&&]", r"a--b[\&\&]"),
        ] {
            assert_eq!(translated(written), read, "{written}");
            if written.contains('[') {
                assert!(regex_syntax::parse(read).is_ok(), "{read}");
            }
        }
    }
}
