//! Python's methods of strings, lists and dictionaries: those the engine's collection lacks or has otherwise, and
//! that collection for the rest.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::{budget, filters};

/// Called for a method the engine does not have.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let ours = match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            counted(state, text, method, args)?;
            let found = match method {
                "join" => {
                    let (items,): (&Value,) = from_args(args)?;
                    Some(budget::join(state, &mut items.try_iter()?, text)?)
                }
                _ => string(text, method, args)?,
            };
            let found = match found {
                Some(found) => found,
                None => pycompat::unknown_method_callback(state, value, method, args)?,
            };
            return budget::made(state, found);
        }
        ValueKind::Seq if method != "copy" => {
            budget::walk(state, value)?;
            sequence(value, method, args)?
        }
        ValueKind::Seq => sequence(value, method, args)?,
        ValueKind::Map if method == "copy" => Some(value.clone()),
        _ => None,
    };
    match ours {
        Some(result) => Ok(result),
        None => {
            let found = pycompat::unknown_method_callback(state, value, method, args)?;
            budget::settled(state, found)
        }
    }
}

/// Counts what a method of a text will look at and build, before it does.
fn counted(state: &mut State, text: &str, method: &str, args: &[Value]) -> Result<(), Error> {
    budget::look(state, 1 + text.len() / 64)?;
    for arg in args {
        budget::walk(state, arg)?;
    }
    match method {
        "split" | "rsplit" | "splitlines" => {
            let named = || args.first()?.get_attr("sep").ok().filter(|sep| !sep.is_undefined());
            let separator = args.first().filter(|arg| arg.as_str().is_some()).cloned().or_else(named);
            let separator = separator.as_ref().filter(|_| method != "splitlines");
            pieces(state, text, separator.and_then(Value::as_str))
        }
        "format" => budget::format(state, text, args),
        "strip" | "lstrip" | "rstrip" => stripped(state, text, args.first().and_then(Value::as_str)),
        _ => Ok(()),
    }
}

/// Counts what [`strip`] looks at: each character it takes away among all it may take away.
pub(super) fn stripped(state: &mut State, text: &str, chars: Option<&str>) -> Result<(), Error> {
    budget::look(state, text.len() / 64 * (1 + chars.map_or(0, str::len) / 4))
}

/// Counts the pieces a text is split into.
pub(super) fn pieces(state: &mut State, text: &str, separator: Option<&str>) -> Result<(), Error> {
    let ends = match separator {
        Some(separator) => text.matches(separator).count(),
        None => text.chars().filter(|&c| is_space(c)).count(),
    };
    budget::look(state, text.len() / 64)?;
    budget::build(state, text.len().saturating_add((ends + 1).saturating_mul(2 * budget::ITEM)))
}

/// What `str.strip` takes for white space: Unicode's, and the separators U+001C to U+001F.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `strip` at the asked sides, of white space or of the given characters.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(strips) } else { text };
    if right { text.trim_end_matches(strips) } else { text }
}

fn string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let found = match method {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            Value::from(filters::replace(&Value::from(text), old, new, count)?)
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = text.chars().flat_map(|c| -> Box<dyn Iterator<Item = char>> {
                if c.is_uppercase() { Box::new(c.to_lowercase()) } else { Box::new(c.to_uppercase()) }
            });
            Value::from(swapped.collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "split" | "rsplit" => {
            let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = match separator {
                Some(separator) => Some(separator),
                None => kwargs.get::<Option<Value>>("sep")?,
            };
            let most = match most {
                Some(most) => most,
                None => kwargs.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
            };
            kwargs.assert_all_used()?;
            let separator = separator.as_ref().filter(|s| !s.is_none());
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let pieces = match separator
                .map(|s| s.as_str().ok_or_else(|| wrong("split: expected text to split at")))
            {
                None => split_at_space(text, most, method == "rsplit"),
                Some(separator) => split_at(text, separator?, most, method == "rsplit")?,
            };
            pieces.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = match keep {
                Some(keep) => keep,
                None => kwargs.get::<Option<bool>>("keepends")?.unwrap_or(false),
            };
            kwargs.assert_all_used()?;
            lines(text, keep).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let first = method == "partition";
            let cut = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match cut {
                Some((head, tail)) => [head, separator, tail],
                None if first => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(part) } else { text.rfind(part) };
            let at = at.ok_or_else(|| wrong(format!("{method}: {part:?} does not occur")))?;
            Value::from(text[..at].chars().count())
        }
        "removeprefix" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(part).unwrap_or(text))
        }
        "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(part).unwrap_or(text))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            let missing = missing(text, width)?;
            // Python puts the odd one left where the width is odd too.
            let left = match method {
                "ljust" => 0,
                "rjust" => missing,
                _ => missing / 2 + (missing & width & 1),
            };
            let fill = |n| std::iter::repeat_n(fill.unwrap_or(' '), n);
            Value::from(fill(left).chain(text.chars()).chain(fill(missing - left)).collect::<String>())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let zeros = "0".repeat(missing(text, width)?);
            let sign = text.find(|c| !matches!(c, '+' | '-')).unwrap_or(text.len()).min(1);
            Value::from(format!("{}{zeros}{}", &text[..sign], &text[sign..]))
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        _ => return Ok(None),
    };
    Ok(Some(found))
}

fn sequence(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(match method {
        "copy" => Some(value.clone()),
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *wanted);
            Some(Value::from(at.ok_or_else(|| wrong(format!("index: {wanted} is not in the list")))?))
        }
        _ => None,
    })
}

fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Characters a text lacks to a width; a width no text needs is refused before anything is allocated.
pub(super) fn missing(text: &str, width: usize) -> Result<usize, Error> {
    if width > 1 << 20 {
        return Err(wrong(format!("a width of at most {} was expected, got {width}", 1 << 20)));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

/// `str.title`: a letter behind a letter is lower, any other upper.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_alphabetic();
    }
    out
}

fn split_at<'t>(
    text: &'t str,
    separator: &str,
    most: usize,
    from_right: bool,
) -> Result<Vec<&'t str>, Error> {
    if separator.is_empty() {
        return Err(wrong("split: empty separator"));
    }
    let most = most.saturating_add(1);
    Ok(if from_right {
        let mut pieces: Vec<&str> = text.rsplitn(most, separator).collect();
        pieces.reverse();
        pieces
    } else {
        text.splitn(most, separator).collect()
    })
}

/// Words, at most `most` of them cut off; the rest keeps its inner white space.
fn split_at_space(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = strip(text, None, true, true);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| pieces.len() < most) else {
            pieces.push(rest);
            break;
        };
        let (head, tail) = rest.split_at(at);
        if from_right {
            pieces.push(strip(tail, None, true, false));
            rest = strip(head, None, false, true);
        } else {
            pieces.push(head);
            rest = strip(tail, None, true, false);
        }
    }
    // The last piece keeps the white space at the end of the text that was not looked at.
    if pieces.len() > most
        && let Some(last) = pieces.last_mut()
    {
        *last = if from_right {
            let end = last.as_ptr().addr() - text.as_ptr().addr() + last.len();
            &text[..end]
        } else {
            &text[last.as_ptr().addr() - text.as_ptr().addr()..]
        };
    }
    if from_right {
        pieces.reverse();
    }
    pieces
}

/// `str.splitlines`: all of Python's line ends.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = match rest.find(end) {
            None => (rest.len(), rest.len()),
            Some(at) if rest[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + rest[at..].chars().next().map_or(0, char::len_utf8)),
        };
        out.push(&rest[..if keep { after } else { line }]);
        rest = &rest[after..];
    }
    out
}
