//! Filters as Python's Jinja2 and the transformers library have them, where the engine's own are missing or differ.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::python::{self, Json};
use super::{budget, functions, methods};

/// Jinja2's `join`, of an attribute where one is named.
pub(super) fn join(
    state: &mut State,
    value: &Value,
    separator: Option<&Value>,
    by: Option<String>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let separator = match separator {
        Some(separator) => separator.clone(),
        None => kwargs.get::<Option<Value>>("d")?.unwrap_or_else(|| Value::from("")),
    };
    let by = match by {
        Some(by) => Some(by),
        None => kwargs.get::<Option<String>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let mut items = value.try_iter()?.map(|item| by.as_ref().map_or(item.clone(), |by| attribute(&item, by)));
    budget::join(state, &mut items, &python::str(&separator)?)
}

pub(super) fn trim(state: &mut State, text: &Value, chars: Option<&str>) -> Result<String, Error> {
    let text = python::str(text)?;
    methods::stripped(state, &text, chars)?;
    Ok(methods::strip(&text, chars, true, true).to_owned())
}

pub(super) fn wordcount(text: &str) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
}

pub(super) fn center(text: &str, width: Option<usize>) -> Result<String, Error> {
    let missing = methods::missing(text, width.unwrap_or(80))?;
    let left = missing / 2 + (missing & width.unwrap_or(80) & 1);
    Ok(format!("{}{text}{}", " ".repeat(left), " ".repeat(missing - left)))
}

pub(super) fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

pub(super) fn length(state: &mut State, value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    // Characters are counted one by one.
    budget::look(state, value.as_str().map_or(0, str::len) / 64)?;
    match value.len() {
        Some(len) if !functions::is_generator(value) => Ok(len),
        _ => Err(wrong(format!("a value of type {} has no length", value.kind()))),
    }
}

pub(super) fn replace(text: &Value, old: &str, new: &str, count: Option<i64>) -> Result<String, Error> {
    let text = python::str(text)?;
    let most = count.and_then(|count| usize::try_from(count).ok());
    let found = text.matches(old).take(most.unwrap_or(usize::MAX)).count();
    python::fits(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(match most {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    })
}

/// Jinja2's `indent`: every line but the first and but empty ones, unless asked for.
pub(super) fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => width,
        None => kwargs.get::<Option<Value>>("width")?.unwrap_or_else(|| Value::from(4)),
    };
    let first = match first {
        Some(first) => first,
        None => kwargs.get::<Option<bool>>("first")?.unwrap_or(false),
    };
    let blank = match blank {
        Some(blank) => blank,
        None => kwargs.get::<Option<bool>>("blank")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let margin = match width.as_str() {
        Some(margin) => margin.to_owned(),
        None => " ".repeat(usize::try_from(width)?.min(1024)),
    };
    // As Jinja2 does: a line feed is added, so that the text's own last one ends a line.
    let text = format!("{text}\n");
    let mut out = String::new();
    for (index, line) in methods::lines(&text, false).into_iter().enumerate() {
        python::fits(out.len())?;
        if index > 0 {
            out.push('\n');
        }
        if (index > 0 || first) && (blank || !line.is_empty()) {
            out.push_str(&margin);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// Groups by an attribute: (value, items) pairs, sorted by value.
pub(super) fn groupby(
    value: &Value,
    by: &str,
    default: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<Value>>("default")?.unwrap_or(Value::UNDEFINED),
    };
    kwargs.assert_all_used()?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in value.try_iter()? {
        let found = attribute(&item, by);
        let key = if found.is_undefined() { default.clone() } else { found };
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, items)) => items.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    let order = sorted(groups.len(), |a, b| Ok(compare(&groups[a].0, &groups[b].0)?.is_lt()))?;
    let pair = |at: usize| Value::from((groups[at].0.clone(), Value::from(groups[at].1.clone())));
    Ok(order.into_iter().map(pair).collect())
}

pub(super) fn default(
    value: Value,
    other: Option<Value>,
    boolean: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => kwargs.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => kwargs.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value })
}

/// `int(value)`; `default` where that fails, 0 without one.
pub(super) fn int(
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0)),
    };
    let base = match base {
        Some(base) => base,
        None => kwargs.get::<Option<u32>>("base")?.unwrap_or(10),
    };
    kwargs.assert_all_used()?;
    if !(2..=36).contains(&base) {
        return Err(wrong("int: expected a base from 2 to 36"));
    }
    let whole = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => truncated(f64::try_from(value.clone())?),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim().replace('_', "");
            let digits = match base {
                16 => text.trim_start_matches("0x"),
                8 => text.trim_start_matches("0o"),
                2 => text.trim_start_matches("0b"),
                _ => text.as_str(),
            };
            match i128::from_str_radix(digits, base) {
                Ok(n) => Some(Value::from(n)),
                Err(_) => text.parse::<f64>().ok().and_then(truncated),
            }
        }
        _ => None,
    };
    Ok(whole.unwrap_or(default))
}

fn truncated(x: f64) -> Option<Value> {
    // Beyond 2^63 the digits of a float are not what anyone counts with.
    (x.is_finite() && x.abs() < 9.2e18).then(|| Value::from(x as i64))
}

/// `float(value)`; `default` where that fails, 0.0 without one.
pub(super) fn float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => kwargs.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0.0)),
    };
    kwargs.assert_all_used()?;
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => value.as_str().unwrap_or_default().trim().parse().ok(),
        _ => None,
    };
    Ok(number.map_or(default, Value::from))
}

/// Python's order: numbers and booleans with each other, texts, and lists item by item; nothing else.
fn compare(a: &Value, b: &Value) -> Result<Ordering, Error> {
    let number = |v: &Value| match v.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(v.is_true()))),
        ValueKind::Number => f64::try_from(v.clone()).ok(),
        _ => None,
    };
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        // Whole numbers beyond 2^53 still compare exactly.
        return Ok(if a.is_integer() && b.is_integer() {
            a.cmp(b)
        } else {
            x.partial_cmp(&y).unwrap_or(Ordering::Equal)
        });
    }
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        return Ok(x.cmp(y));
    }
    if a.kind() == ValueKind::Seq && b.kind() == ValueKind::Seq {
        for (x, y) in a.try_iter()?.zip(b.try_iter()?) {
            if x != y {
                return compare(&x, &y);
            }
        }
        return Ok(a.len().cmp(&b.len()));
    }
    if a.is_none() && b.is_none() {
        return Ok(Ordering::Equal);
    }
    Err(wrong(format!("values of type {} and {} have no order", a.kind(), b.kind())))
}

/// `a.b.0` of a value, undefined where a part is missing.
pub(super) fn attribute(value: &Value, path: &str) -> Value {
    let mut at = value.clone();
    for part in path.split('.') {
        let found = match part.parse::<usize>() {
            Ok(index) if at.kind() != ValueKind::Map => at.get_item_by_index(index),
            _ => at.get_attr(part),
        };
        at = found.unwrap_or(Value::UNDEFINED);
        // Nothing has no parts, however many are named.
        if at.is_undefined() {
            break;
        }
    }
    at
}

pub(super) fn sort(
    value: &Value,
    reverse: Option<bool>,
    case_sensitive: Option<bool>,
    by: Option<String>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let reverse = match reverse {
        Some(reverse) => reverse,
        None => kwargs.get::<Option<bool>>("reverse")?.unwrap_or(false),
    };
    let case_sensitive = match case_sensitive {
        Some(case_sensitive) => case_sensitive,
        None => kwargs.get::<Option<bool>>("case_sensitive")?.unwrap_or(false),
    };
    let by = match by {
        Some(by) => Some(by),
        None => kwargs.get::<Option<String>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let fold = |key: Value| match key.as_str() {
        Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
        _ => key,
    };
    let keyed: Vec<(Vec<Value>, Value)> = value
        .try_iter()?
        .map(|item| {
            let keys = match &by {
                None => vec![fold(item.clone())],
                Some(paths) => paths.split(',').map(|path| fold(attribute(&item, path))).collect(),
            };
            (keys, item)
        })
        .collect();
    let order = sorted(keyed.len(), |a, b| {
        // Python's reverse keeps the order of equal items: compare the other way round.
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        for (x, y) in keyed[a].0.iter().zip(&keyed[b].0) {
            let order = compare(x, y)?;
            if order.is_ne() {
                return Ok(order.is_lt());
            }
        }
        Ok(false)
    })?;
    Ok(order.into_iter().map(|at| keyed[at].1.clone()).collect())
}

/// The places of `count` items in order, equal ones as they stand: by merging, because what a template compares need
/// not have a total order (NaN has none), which the standard library's sort may answer with a panic.
pub(super) fn sorted(
    count: usize,
    mut before: impl FnMut(usize, usize) -> Result<bool, Error>,
) -> Result<Vec<usize>, Error> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut merged = order.clone();
    let mut width = 1;
    while width < count {
        for start in (0..count).step_by(2 * width) {
            let (middle, end) = ((start + width).min(count), (start + 2 * width).min(count));
            let (mut left, mut right) = (start, middle);
            for slot in &mut merged[start..end] {
                let from_right = right < end && (left == middle || before(order[right], order[left])?);
                let taken = if from_right { &mut right } else { &mut left };
                *slot = order[*taken];
                *taken += 1;
            }
        }
        std::mem::swap(&mut order, &mut merged);
        width *= 2;
    }
    Ok(order)
}

/// `json.dumps` with the transformers library's arguments, in its order.
pub(super) fn tojson(
    value: &Value,
    ascii: Option<Value>,
    indent: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        Some(text) if text.kind() == ValueKind::String => {
            Some(short("indentation", text.as_str().unwrap_or_default())?.to_owned())
        }
        Some(number) if !number.is_none() => Some(" ".repeat(usize::try_from(number)?.min(64))),
        _ => None,
    };
    let mut json = Json::new(indent);
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = separators.as_slice() else {
            return Err(wrong("tojson: expected two separators"));
        };
        json.item = short("separator", item)?.to_owned();
        json.key = short("separator", key)?.to_owned();
    }
    json.ascii = match ascii {
        Some(ascii) => ascii.is_true(),
        None => kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    json.sort = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    json.write(value)
}

/// A text that is written many times.
fn short<'t>(what: &str, text: &'t str) -> Result<&'t str, Error> {
    if text.len() > 1024 {
        return Err(wrong(format!("tojson: expected {what} of at most 1024 bytes, got {}", text.len())));
    }
    Ok(text)
}
