//! Regular expressions as schemas write them (ECMA-262), as the engine reads them (the syntax of the crate `regex`).

/// White space and line ends of ECMA-262: U+FEFF is one, U+0085 is not, unlike in Unicode's own property.
const SPACE: &str =
    r"\t\n\x0B\x0C\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}";
/// What a dot stands for.
const DOT: &str = r"[^\n\r\x{2028}\x{2029}]";

/// The pattern with `\s`, `\S` and the dot spelled out. `\d` and `\w` are made ASCII by the engine.
pub(super) fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut in_class = false;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('s') if in_class => out.push_str(SPACE),
                Some('s') => out.push_str(&format!("[{SPACE}]")),
                Some('S') => out.push_str(&format!("[^{SPACE}]")),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            // In ECMA-262 a bracket inside a class is a character like any other.
            '[' if in_class => out.push_str("\\["),
            '[' => {
                in_class = true;
                out.push('[');
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            '.' if !in_class => out.push_str(DOT),
            // Signs that combine classes in the engine's syntax, and are characters here.
            '&' | '~' if in_class => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}
