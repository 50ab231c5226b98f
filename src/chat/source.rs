//! What Jinja2 reads and the engine does not, rewritten before compiling.
//!
//! | in the source | becomes | why |
//! |---|---|---|
//! | `{% generation %}` … `{% endgeneration %}` | a condition that holds | marks training text, prints its body; the tags keep their effect on whitespace |
//! | `+x` where an operand is due | `--x` | unary plus |
//! | `-true` | `-1` | booleans are numbers |
//! | `"a" "b"` | `"a"~"b"` | neighbouring texts are one text |
//! | `"\/"` | `"\\/"` | Python knows no such escape |
//! | `if`, `in`, … where an operand is due | another name | Jinja2 takes them as variables |
//!
//! The walk knows strings, brackets and whether an operand or an operator is due; nothing more of the grammar.

/// Words that are operators, unless an operand is due.
const WORDS: [&str; 6] = ["if", "else", "in", "is", "and", "or"];

/// The most words, texts and signs in a tag between two commas, with those before the brackets that they stand in.
/// Published templates have up to 62 in a whole tag.
const LONGEST: usize = 1000;
/// The most `elif` in a template. Published ones have up to 22.
const MOST_ELIF: usize = 500;

/// The template as the engine reads it.
///
/// # Errors
/// The line and what about it is too long: the engine recurses over chains of operators and of conditions without a
/// bound of its own.
pub(super) fn prepare(source: &str) -> Result<String, (usize, String)> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut elifs = 0;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let too_much = |what: String| (1 + source[..source.len() - rest.len()].matches('\n').count(), what);
        let long = || too_much(format!("an expression of more than {LONGEST} words and signs"));
        let taken = match rest.as_bytes().get(1) {
            Some(b'#') => copy(&mut out, rest, "#}"),
            Some(b'%') => match raw_block(rest) {
                Some(end) => {
                    out.push_str(&rest[..end]);
                    end
                }
                None => {
                    elifs += usize::from(tag_word(rest).is_some_and(|(words, _)| words.starts_with("elif")));
                    if elifs > MOST_ELIF {
                        return Err(too_much(format!("more than {MOST_ELIF} `elif`")));
                    }
                    tag(&mut out, rest, "%}").ok_or_else(long)?
                }
            },
            Some(b'{') => tag(&mut out, rest, "}}").ok_or_else(long)?,
            _ => {
                out.push('{');
                1
            }
        };
        rest = &rest[taken..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Copies through `end`; the number of bytes taken.
fn copy(out: &mut String, text: &str, end: &str) -> usize {
    let length = text.find(end).map_or(text.len(), |at| at + end.len());
    out.push_str(&text[..length]);
    length
}

/// What stands between `{%` and the end of a tag, without whitespace control.
fn tag_word(text: &str) -> Option<(&str, usize)> {
    let end = 2 + text.get(2..)?.find("%}")?;
    Some((text[2..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim(), end + 2))
}

/// Length of a raw block with its tags, if one begins here. One without an end, which is an error, is all there is.
fn raw_block(text: &str) -> Option<usize> {
    let (word, mut at) = tag_word(text)?;
    if word != "raw" {
        return None;
    }
    while let Some(next) = text[at..].find("{%") {
        at += next;
        let Some((word, length)) = tag_word(&text[at..]) else { break };
        at += length;
        if word == "endraw" {
            return Some(at);
        }
    }
    Some(text.len())
}

/// What was read last within a tag.
#[derive(PartialEq)]
enum Last {
    Operand,
    Text,
    Operator,
    /// `.`, `|` or `is`: a name follows that is not a variable.
    BeforeName,
}

/// Rewrites one tag up to `end`; the number of bytes taken. `None` where an expression has more than [`LONGEST`] parts.
fn tag(out: &mut String, text: &str, end: &str) -> Option<usize> {
    let mut at = 2;
    // Since the last comma, and before each open bracket.
    let mut parts = 0;
    let mut open: Vec<usize> = Vec::new();
    out.push_str(&text[..2]);
    if let Some(sign) = text[at..].chars().next().filter(|c| matches!(c, '-' | '+')) {
        out.push(sign);
        at += 1;
    }
    // A statement begins with its name.
    let mut last = if end == "%}" { Last::BeforeName } else { Last::Operator };
    let mut statement = end == "%}";
    // After a sign that stands before an operand.
    let mut signed = false;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        if open.is_empty() && rest.starts_with(end) {
            out.push_str(end);
            return Some(at + end.len());
        }
        // A plus may become two signs.
        parts += if c == '+' { 2 } else { usize::from(!c.is_whitespace()) };
        if parts > LONGEST {
            return None;
        }
        let length = match c {
            c if c.is_whitespace() => {
                out.push(c);
                c.len_utf8()
            }
            '"' | '\'' => {
                if last == Last::Text {
                    out.push('~');
                }
                last = Last::Text;
                let length = string_length(rest, c);
                copy_string(out, &rest[..length]);
                length
            }
            c if c.is_alphanumeric() || c == '_' => {
                let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                let word = &rest[..length];
                if std::mem::take(&mut statement) {
                    out.push_str(match word {
                        "generation" => "if true",
                        "endgeneration" => "endif",
                        word => word,
                    });
                    last = Last::Operator;
                } else if last == Last::BeforeName {
                    out.push_str(word);
                    // `is not NAME`: the name is still to come.
                    if word != "not" {
                        last = Last::Operand;
                    }
                } else if signed && matches!(word, "true" | "True" | "false" | "False") {
                    out.push(if matches!(word, "true" | "True") { '1' } else { '0' });
                    last = Last::Operand;
                } else if last == Last::Operator && WORDS.contains(&word) {
                    // A named argument keeps its name.
                    let named = !open.is_empty() && {
                        let after = rest[length..].trim_start();
                        after.starts_with('=') && !after.starts_with("==")
                    };
                    if !named {
                        out.push_str("variable_");
                    }
                    out.push_str(word);
                    last = Last::Operand;
                } else {
                    out.push_str(word);
                    last = match word {
                        "is" => Last::BeforeName,
                        // `not in` is one operator, which its second word completes.
                        "not" if last == Last::Operator => Last::Operator,
                        word if WORDS.contains(&word) => Last::Operator,
                        _ => Last::Operand,
                    };
                }
                length
            }
            '+' if last == Last::Operator => {
                // Not the sign of whitespace control at the end of the tag.
                out.push_str(if rest[1..].starts_with(end) { "+" } else { "--" });
                1
            }
            c => {
                out.push(c);
                match c {
                    '(' | '[' | '{' => open.push(parts),
                    ')' | ']' | '}' => parts = open.pop().map_or(parts, |before| before + 1),
                    ',' => parts = open.last().copied().unwrap_or(0),
                    _ => {}
                }
                last = match c {
                    ')' | ']' | '}' => Last::Operand,
                    '.' | '|' => Last::BeforeName,
                    _ => Last::Operator,
                };
                c.len_utf8()
            }
        };
        signed = matches!(c, '-' | '+') && last == Last::Operator || signed && c.is_whitespace();
        at += length;
    }
    Some(at)
}

/// Copies a quoted text. Python keeps the backslash of `\/`, the engine drops it.
fn copy_string(out: &mut String, quoted: &str) {
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        out.push(c);
        if c == '\\'
            && let Some(next) = chars.next()
        {
            if next == '/' {
                out.push('\\');
            }
            out.push(next);
        }
    }
}

/// Length of a quoted text with its quotes.
fn string_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    fn prepare(source: &str) -> String {
        super::prepare(source).unwrap()
    }

    #[test]
    fn only_what_the_engine_does_not_read_changes() {
        for same in [
            "plain { text } }} %}",
            "{{ a + b - +1 if c else d }}".replace("- +1", "- 1").as_str(),
            "{%- if x is not none and 'a' in y -%}{% endif +%}",
            "{{ x not in y and not z is not defined }}",
            "{# +x 'a' 'b' {% generation %} #}",
            "{% raw %}{{ +x }}{% generation %}{% endraw %}",
            "{{ {'a': {'b': 1}} }}{{ f(x, y=1)[1:] | join('+') }}",
            "{{ 'it\\'s {{ +x }}' }}",
            "{{ unclosed + 'text",
            "{% raw %}{% raw %}{{ +x }}",
            "{%} x {%",
        ] {
            assert_eq!(prepare(same), same);
        }
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let source = "a {%- generation -%} b {% endgeneration %}{% if x %}";
        assert_eq!(prepare(source), "a {%- if true -%} b {% endif %}{% if x %}");
    }

    #[test]
    fn signed_booleans_are_numbers() {
        assert_eq!(prepare("{{ -true + +False - x }}"), "{{ -1 + --0 - x }}");
    }

    #[test]
    fn operands_that_look_like_operators_are_rewritten() {
        assert_eq!(prepare("{{ +x * (+y) + z }}"), "{{ --x * (--y) + z }}");
        assert_eq!(prepare("{{ 'a' \"b\" }}"), "{{ 'a' ~\"b\" }}");
        assert_eq!(prepare("{% if if in in %}"), "{% if variable_if in variable_in %}");
    }

    #[test]
    fn chains_too_long_for_the_engine_are_refused_with_their_line() {
        for tag in ["-", "+", "not ", "1 + ", "a.", "a | trim | ", "1 if 1 else ", "a(0, 1)[2, 3]", "a(0)("] {
            let e = super::prepare(&format!("a\n\n{{{{ {}1 }}}}", tag.repeat(20_000))).unwrap_err();
            assert_eq!(e, (3, "an expression of more than 1000 words and signs".to_owned()), "{tag}");
        }
        let conditions = |n: usize| format!("{{% if a %}}{}{{% endif %}}", "\n{%- elif a %}".repeat(n));
        assert_eq!(super::prepare(&conditions(500)).unwrap(), conditions(500));
        let e = super::prepare(&conditions(501)).unwrap_err();
        assert_eq!(e, (502, "more than 500 `elif`".to_owned()));
        // Lists may be long, text outside of tags, comments and raw blocks may be of any length.
        let text = "1 + ".repeat(2000);
        let list = "{'a': [1, 2 + f(3, 4)]}, ".repeat(2000);
        assert_eq!(super::prepare(&format!("{{{{ [{list}] }}}}")).unwrap(), format!("{{{{ [{list}] }}}}"));
        let whole = format!("{text}{{# {text} #}}{{% raw %}}{{{{ {text} {{% endraw %}}{{{{ '{text}' }}}}");
        assert_eq!(super::prepare(&whole).unwrap(), whole);
    }
}
