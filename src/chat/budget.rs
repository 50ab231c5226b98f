//! What one rendering may still build and look at.
//!
//! ```text
//! a + b          ─→ a|llm_part + b|llm_part      both sizes are counted before the engine joins them
//! x | join(', ') ─→ what x holds is counted, then joined by our own filter
//! ```
//!
//! The engine counts instructions, but one instruction may double a text or compare two long lists. Everything that
//! makes a value in proportion to its operands is therefore counted here, before it runs where its size is known: bytes
//! built, whether or not they are kept, and parts looked at. [`super::source`] puts the counting filters into the
//! template, [`super::functions`] and [`super::methods`] count for filters and methods.
//! It does not know what a value costs the engine to the byte: small values and instructions are the engine's to count.

use std::sync::Arc;

use minijinja::value::{Object, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::template::Limits;
use super::{functions, python};

/// Global of the engine that holds the limits.
const NAME: &str = "llm_limits";
/// Bytes of an item in a list.
pub(super) const ITEM: usize = 24;
/// Nesting that values may have.
const MAX_DEPTH: usize = 80;

/// The limits, as the environment keeps them.
#[derive(Debug)]
struct Held(Limits);

impl Object for Held {}

/// What is left to a rendering.
#[derive(Debug, Default)]
struct Left {
    printed: usize,
    built: usize,
    parts: usize,
    /// Left operands of products whose right operands are being computed.
    factors: Vec<Value>,
}

/// Gives an environment its limits.
pub(super) fn set(environment: &mut minijinja::Environment<'static>, limits: Limits) {
    environment.add_global(NAME, Value::from_object(Held(limits)));
}

fn left<'s>(state: &'s mut State) -> &'s mut Left {
    let fresh = state.get_extension::<Left>().is_none().then(|| {
        let held = state.env().globals().find(|(name, _)| *name == NAME).map(|(_, value)| value);
        let limits = held.as_ref().and_then(|held| held.downcast_object_ref::<Held>());
        let limits = limits.map_or_else(Limits::default, |held| held.0);
        Left {
            printed: limits.output,
            built: limits.output.saturating_mul(4),
            parts: usize::try_from(limits.steps).unwrap_or(usize::MAX),
            factors: Vec::new(),
        }
    });
    state.get_or_insert_extension_with(|| fresh.unwrap_or_default())
}

fn take(from: &mut usize, amount: usize, error: ErrorKind) -> Result<(), Error> {
    *from = from.checked_sub(amount).ok_or_else(|| Error::from(error))?;
    Ok(())
}

/// Counts bytes that are printed.
pub(super) fn print(state: &mut State, bytes: usize) -> Result<(), Error> {
    take(&mut left(state).printed, bytes, ErrorKind::WriteFailure)
}

/// Counts bytes that are built.
pub(super) fn build(state: &mut State, bytes: usize) -> Result<(), Error> {
    take(&mut left(state).built, bytes, ErrorKind::WriteFailure)
}

/// Counts parts that are looked at.
pub(super) fn look(state: &mut State, parts: usize) -> Result<(), Error> {
    take(&mut left(state).parts, parts, ErrorKind::OutOfFuel)
}

/// Counts every part of a value, 64 bytes of text as one.
///
/// # Errors
/// `OutOfFuel` beyond the budget; that the value nests too deep.
pub(super) fn walk(state: &mut State, value: &Value) -> Result<(), Error> {
    walk_as(state, value, false)
}

/// The same; what is `kept` in a namespace may hold none: printing, comparing and freeing what holds itself would never
/// end. Nor may it hold the state of a loop, which keeps what it goes through without showing it.
fn walk_as(state: &mut State, value: &Value, kept: bool) -> Result<(), Error> {
    let mut parts = left(state).parts;
    let result = walk_parts(&mut parts, value, MAX_DEPTH, kept);
    left(state).parts = parts;
    result
}

fn walk_parts(parts: &mut usize, value: &Value, depth: usize, kept: bool) -> Result<(), Error> {
    let text = value.as_str().map_or(0, str::len);
    take(parts, 1 + text / 64, ErrorKind::OutOfFuel)?;
    if is_container(value) {
        if depth == 0 {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value nests deeper than {MAX_DEPTH} levels"),
            ));
        }
        for (type_name, what) in [("::Namespace", "a namespace"), ("::Loop", "`loop`")] {
            if kept && is_a(value, type_name) {
                let message = format!("{what} cannot be put into a namespace");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        for item in value.try_iter()? {
            if value.kind() == ValueKind::Map {
                walk_parts(parts, &value.get_item(&item)?, depth - 1, kept)?;
            }
            walk_parts(parts, &item, depth - 1, kept)?;
        }
    }
    Ok(())
}

/// What holds other values. Of what lazy filters give, too, every item counts, and nesting is bounded: freeing follows it.
fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
        || functions::is_generator(value)
}

/// How many items iteration gives, counted as looked at where no length tells.
pub(super) fn count(state: &mut State, value: &Value) -> Result<usize, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.chars().count());
    }
    if !is_container(value) {
        return Ok(0);
    }
    if let Some(length) = value.len() {
        return Ok(length);
    }
    let mut length = 0;
    for _ in value.try_iter()? {
        look(state, 1)?;
        length += 1;
    }
    Ok(length)
}

/// Counts the base of a subscript: of texts, and of what is made item by item, the engine goes through all that is before
/// the item.
pub(super) fn index(state: &mut State, base: &Value) -> Result<(), Error> {
    match base.as_str() {
        Some(text) => look(state, text.len() / 64),
        None if base.kind() == ValueKind::Iterable => {
            let items = count(state, base)?;
            look(state, items)
        }
        None => Ok(()),
    }
}

/// Counts a value just made: the bytes of a text.
pub(super) fn made(state: &mut State, value: Value) -> Result<Value, Error> {
    build(state, value.as_str().map_or(0, str::len))?;
    Ok(value)
}

/// What the engine would make item by item, as a list: until then it keeps what it is made of, unseen where no item shows
/// it, and freeing a long chain of such values would end the stack.
pub(super) fn settled(state: &mut State, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let items = count(state, &value)?;
    build(state, ITEM.saturating_mul(items))?;
    let items: Result<Vec<Value>, Error> = value.try_iter()?.checked().collect();
    Ok(Value::from(items?))
}

/// What [`add`] adds. A template that gave the functions another value, or called the filters itself, would not be
/// counted: where it says these names it means others.
pub(super) const OWN: [&str; 10] = [
    "llm_by",
    "llm_kept",
    "llm_list",
    "llm_look",
    "llm_of",
    "llm_part",
    "llm_raw",
    "llm_slice",
    "llm_text",
    "llm_times",
];

/// Adds the filters and functions that [`super::source`] puts into templates.
pub(super) fn add(environment: &mut minijinja::Environment<'static>) {
    environment.add_filter("llm_part", |state: &mut State, value: Value| part(state, value));
    environment.add_filter("llm_text", |state: &mut State, value: Value| {
        // The engine would print it without a bound.
        let value = if is_container(&value) { Value::from(python::str(&value)?) } else { value };
        made(state, value)
    });
    environment.add_filter("llm_look", |state: &mut State, value: Value| {
        walk(state, &value)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter("llm_list", |state: &mut State, value: Value| {
        build(state, ITEM.saturating_mul(value.len().unwrap_or(0)))?;
        walk(state, &value)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter("llm_slice", |state: &mut State, value: Value| {
        let value = settled(state, value)?;
        made(state, value)
    });
    environment.add_filter("llm_kept", |state: &mut State, value: Value| {
        walk_as(state, &value, true)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter("llm_times", |state: &mut State, value: Value| {
        left(state).factors.push(value.clone());
        value
    });
    environment.add_filter("llm_by", |state: &mut State, by: Value| {
        let factor = left(state).factors.pop().unwrap_or_default();
        let times = |value: &Value| usize::try_from(value.clone()).unwrap_or(0);
        for (value, times) in [(&factor, times(&by)), (&by, times(&factor))] {
            let size = match value.as_str() {
                Some(text) => text.len(),
                None if is_container(value) => ITEM.saturating_mul(count(state, value)?),
                None => 0,
            };
            build(state, size.saturating_mul(times))?;
        }
        Ok::<_, Error>(by)
    });
    environment.add_function("llm_of", |state: &mut State, base: Value| {
        index(state, &base)?;
        Ok::<_, Error>(base)
    });
    environment.add_function("llm_raw", |state: &mut State, bytes: usize| -> Result<&'static str, Error> {
        print(state, bytes)?;
        Ok("")
    });
}

/// Counts an operand of `+`: what is joined is as long as its parts. Lists that were joined before become one: the engine
/// would go through every list they were made of, item by item.
fn part(state: &mut State, value: Value) -> Result<Value, Error> {
    let joined = value.kind() == ValueKind::Iterable && value.len().is_some();
    let bytes = match value.as_str() {
        Some(text) => text.len(),
        None => count(state, &value)?.saturating_mul(ITEM / 2),
    };
    build(state, bytes)?;
    Ok(if joined { Value::from(value.try_iter()?.collect::<Vec<_>>()) } else { value })
}

/// Whether a value is of a type of the engine's own, which has no public name but the one printed for debugging.
fn is_a(value: &Value, type_name: &str) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with(type_name))
}

/// Counts the most that formatting can make of a template and its arguments: widths, and every argument wherever one is
/// put in.
pub(super) fn format(state: &mut State, text: &str, args: &[Value]) -> Result<(), Error> {
    let mut longest = 400;
    let mut numbers = 0usize;
    for arg in args {
        walk(state, arg)?;
        longest = longest.max(match arg.as_str() {
            Some(text) => text.len(),
            None if is_container(arg) => python::repr(arg)?.len(),
            None => 0,
        });
        numbers = numbers.saturating_add(i64::try_from(arg.clone()).map_or(0, |n| n.unsigned_abs() as usize));
    }
    let uses = text.matches(['%', '{']).count();
    let widths = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut size = widths
        .fold(text.len(), |sum, digits| sum.saturating_add(digits.parse::<usize>().unwrap_or(usize::MAX)));
    // A width may be an argument: `%*d`, `{:{}}`.
    let nested = text.split(['}']).any(|piece| piece.replace("{{", "").matches('{').count() > 1);
    if nested || text.contains('*') {
        size = size.saturating_add(numbers.saturating_mul(uses));
    }
    // Escapes of `repr` are up to six bytes for one.
    build(state, size.saturating_add(uses.saturating_mul(longest).saturating_mul(6)))
}

/// Joins what iteration gives.
pub(super) fn join(
    state: &mut State,
    items: &mut dyn Iterator<Item = Value>,
    separator: &str,
) -> Result<Value, Error> {
    let mut out = String::new();
    for (index, item) in items.enumerate() {
        let text = python::str(&item)?;
        let between = if index > 0 { separator } else { "" };
        look(state, 1)?;
        build(state, text.len() + between.len())?;
        out.push_str(between);
        out.push_str(&text);
    }
    Ok(Value::from(Arc::<str>::from(out)))
}
