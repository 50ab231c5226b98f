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
//! | `a + b`, `a ~ b`, `a == b`, `a in b` | `a|llm_part + b|llm_part`, … | what they cost is counted ([`super::budget`]) |
//! | `a * b` | `(a)|llm_times*(b)|llm_by` | the same; the product must be known before it is made |
//! | `[a]`, `a[1:]`, `set n.x = a` | `([a]|llm_list)`, `(llm_of(a)[1:]|llm_slice)`, `set n.x =(a)|llm_kept` | the same; and nesting is bounded |
//! | `a[b]`, `a.100` | `llm_of(a)[(b)|llm_look]`, `llm_of(a).100` | the same: the engine goes through a text up to its `b`th character |
//! | `llm_of` and the like | another name | these are ours |
//! | long text outside of tags | `te{{llm_raw(1000)}}xt` | the same |
//!
//! Filters bind closer than operators, so that counting changes no precedence; a whole product is put into brackets.
//! This file tells tags from comments, raw blocks and the text between them; what is within a tag is for [`super::tag`].

use std::ops::Range;

use super::product::SHORT;
use super::tag::{LONGEST, tag};

/// The most `elif` in a template. Published ones have up to 22.
const MOST_ELIF: usize = 500;
/// What is wrong with text that [`raw`] has no place in.
const BLANK: &str = "more than 1000 bytes of white space and single characters";

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
        let line = |rest: &str| 1 + source[..source.len() - rest.len()].matches('\n').count();
        raw(&mut out, &rest[..at], ["", ""]).ok_or_else(|| (line(rest), BLANK.to_owned()))?;
        rest = &rest[at..];
        let too_much = |what: String| (line(rest), what);
        let long = || too_much(format!("an expression of more than {LONGEST} words and signs"));
        let taken = match rest.as_bytes().get(1) {
            Some(b'#') => copy(&mut out, rest, "#}"),
            Some(b'%') => match raw_block(rest) {
                Some((inner, end)) => {
                    out.push_str(&rest[..inner.start]);
                    raw(&mut out, &rest[inner.clone()], ["{% endraw %}", "{% raw %}"])
                        .ok_or_else(|| too_much(BLANK.to_owned()))?;
                    out.push_str(&rest[inner.end..end]);
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
    let line = 1 + source[..source.len() - rest.len()].matches('\n').count();
    raw(&mut out, rest, ["", ""]).ok_or_else(|| (line, BLANK.to_owned()))?;
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

/// A raw block's text and its length with its tags, if one begins here. One without an end, which is an error, is all
/// there is.
fn raw_block(text: &str) -> Option<(Range<usize>, usize)> {
    let (word, mut at) = tag_word(text)?;
    if word != "raw" {
        return None;
    }
    let start = at;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        let Some((word, length)) = tag_word(&text[at..]) else { break };
        if word == "endraw" {
            return Some((start..at, at + length));
        }
        at += length;
    }
    Some((text.len()..text.len(), text.len()))
}

/// Copies text outside of tags. What goes into a variable or comes from a macro does not pass the printing of values,
/// so longer text is counted by a call within it: between two characters that are no white space, where no rule
/// about the white space beside tags applies. `around` closes and opens a raw block.
fn raw(out: &mut String, text: &str, around: [&str; 2]) -> Option<()> {
    if text.len() <= SHORT / 2 {
        out.push_str(text);
        return Some(());
    }
    let mut before = ' ';
    let split = text
        .char_indices()
        .find(|&(_, c)| !std::mem::replace(&mut before, c).is_whitespace() && !c.is_whitespace());
    match split {
        Some((at, _)) => {
            out.push_str(&text[..at]);
            let [close, open] = around;
            out.push_str(&format!("{close}{{{{llm_raw({})}}}}{open}", text.len()));
            out.push_str(&text[at..]);
        }
        None if text.len() > LONGEST => return None,
        None => out.push_str(text),
    }
    Some(())
}
