//! Functions, filters and tests as Python's Jinja2 and the transformers library have them, where the engine's own
//! are missing or differ.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja::{filters as engine, functions as engine_functions, tests as engine_tests};

use super::clock::{Clock, strftime};
use super::python::{self, Json};
use super::{budget, methods};

/// The text a template gave to `raise_exception`.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// What a filter such as `map` gives in Python: it can be looped over, but has no length and no slices, and it is
/// true even when nothing comes out of it.
#[derive(Debug)]
struct Generator(Vec<Value>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.clone())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

/// Filters of the engine whose results Python makes lazily.
const LAZY: [&str; 9] =
    ["map", "select", "reject", "selectattr", "rejectattr", "items", "unique", "batch", "slice"];

/// Filters that give a list.
const LISTS: [&str; 8] = ["list", "sort", "dictsort", "groupby", "reverse", "zip", "chain", "sum"];

/// The most pieces that `batch` and `slice` make, or fill a piece up to.
const MOST_PIECES: usize = 1 << 20;

/// Adds everything to an environment.
pub(super) fn add(environment: &mut Environment<'static>, clock: Clock) {
    budget::add(environment);
    // Prints every variable, without a bound.
    environment.remove_global("debug");
    environment.add_function("raise_exception", |text: &Value| -> Result<Value, Error> {
        let text = python::str(text)?;
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(text)))
    });
    environment.add_function("strftime_now", move |state: &mut State, format: &str| {
        // The longest directive prints twelve times its own length.
        budget::build(state, format.len().saturating_mul(12))?;
        Ok::<_, Error>(strftime(clock.now(), format))
    });
    for (name, made) in [
        ("dict", Value::from_function(engine_functions::dict)),
        ("namespace", Value::from_function(engine_functions::namespace)),
    ] {
        environment.add_function(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            counted(state, name, &args)?;
            made.call(state, &args)
        });
    }
    for &(name, filter) in FILTERS {
        let filter = filter();
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            // `none | items` is an error in Python only once something is asked of it.
            if name == "items" && args.first().is_some_and(Value::is_undefined) {
                return Ok(Value::from_object(Generator(Vec::new())));
            }
            counted(state, name, &args)?;
            let found = filter.call(state, &args)?;
            if LAZY.contains(&name) {
                let items = found.try_iter()?.collect();
                return Ok(Value::from_object(Generator(items)));
            }
            budget::made(state, found)
        });
    }
    for (name, test) in tests() {
        environment.add_test(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            for arg in &args {
                budget::walk(state, arg)?;
            }
            Ok::<_, Error>(test.call(state, &args)?.is_true())
        });
    }
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("join", join);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
            || (value.kind() == ValueKind::Iterable && value.len().is_some())
    });
    environment.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain && value.downcast_object_ref::<Generator>().is_none()
    });
}

/// Makes a function of a template; one by one they are less code than all at once.
type Made = fn() -> Value;

/// Filters that are counted: ours, and those of the engine whose work grows with what they are given.
const FILTERS: &[(&str, Made)] = &[
    ("tojson", || Value::from_function(tojson)),
    ("string", || Value::from_function(|value: &Value| python::str(value))),
    ("pprint", || Value::from_function(|value: &Value| python::repr(value))),
    ("sort", || Value::from_function(sort)),
    ("int", || Value::from_function(int)),
    ("float", || Value::from_function(float)),
    ("trim", || Value::from_function(trim)),
    ("replace", || Value::from_function(replace)),
    ("indent", || Value::from_function(indent)),
    ("wordcount", || Value::from_function(wordcount)),
    ("center", || Value::from_function(center)),
    ("groupby", || Value::from_function(groupby)),
    ("escape", || Value::from_function(engine::escape)),
    ("e", || Value::from_function(engine::escape)),
    ("safe", || Value::from_function(engine::safe)),
    ("upper", || Value::from_function(engine::upper)),
    ("lower", || Value::from_function(engine::lower)),
    ("title", || Value::from_function(engine::title)),
    ("capitalize", || Value::from_function(engine::capitalize)),
    ("dictsort", || Value::from_function(engine::dictsort)),
    ("items", || Value::from_function(engine::items)),
    ("reverse", || Value::from_function(engine::reverse)),
    ("split", || Value::from_function(engine::split)),
    ("lines", || Value::from_function(engine::lines)),
    ("last", || Value::from_function(engine::last)),
    ("first", || Value::from_function(engine::first)),
    ("min", || Value::from_function(engine::min)),
    ("max", || Value::from_function(engine::max)),
    ("list", || Value::from_function(engine::list)),
    ("batch", || Value::from_function(engine::batch)),
    ("slice", || Value::from_function(engine::slice)),
    ("sum", || Value::from_function(engine::sum)),
    ("select", || Value::from_function(engine::select)),
    ("reject", || Value::from_function(engine::reject)),
    ("selectattr", || Value::from_function(engine::selectattr)),
    ("rejectattr", || Value::from_function(engine::rejectattr)),
    ("map", || Value::from_function(engine::map)),
    ("unique", || Value::from_function(engine::unique)),
    ("chain", || Value::from_function(engine::chain)),
    ("zip", || Value::from_function(engine::zip)),
    ("format", || Value::from_function(engine::format)),
];

/// Tests that look at all of what they are given.
fn tests() -> Vec<(&'static str, Value)> {
    let mut tests = Vec::new();
    let mut add = |names: &[&'static str], test: Value| {
        tests.extend(names.iter().map(|&name| (name, test.clone())));
    };
    add(&["eq", "equalto", "=="], Value::from_function(engine_tests::is_eq));
    add(&["ne", "!="], Value::from_function(engine_tests::is_ne));
    add(&["lt", "lessthan", "<"], Value::from_function(engine_tests::is_lt));
    add(&["le", "<="], Value::from_function(engine_tests::is_le));
    add(&["gt", "greaterthan", ">"], Value::from_function(engine_tests::is_gt));
    add(&["ge", ">="], Value::from_function(engine_tests::is_ge));
    add(&["in"], Value::from_function(engine_tests::is_in));
    add(&["sameas"], Value::from_function(engine_tests::is_sameas));
    add(&["startingwith"], Value::from_function(engine_tests::is_startingwith));
    add(&["endingwith"], Value::from_function(engine_tests::is_endingwith));
    add(&["lower"], Value::from_function(engine_tests::is_lower));
    add(&["upper"], Value::from_function(engine_tests::is_upper));
    tests
}

/// Counts what a filter or a function will look at and build, before it does.
fn counted(state: &mut State, name: &str, args: &[Value]) -> Result<(), Error> {
    for arg in args {
        budget::walk(state, arg)?;
    }
    let Some(first) = args.first() else { return Ok(()) };
    let number = args.get(1).and_then(|count| u64::try_from(count.clone()).ok());
    let number = usize::try_from(number.unwrap_or(0)).unwrap_or(usize::MAX);
    if LAZY.contains(&name) || LISTS.contains(&name) || ["dict", "namespace"].contains(&name) {
        let mut items = 0usize;
        for arg in args {
            items = items.saturating_add(budget::count(state, arg)?);
        }
        if ["batch", "slice"].contains(&name) {
            if number > MOST_PIECES {
                return Err(wrong(format!("{name}: expected a number of at most {MOST_PIECES}")));
            }
            items += number;
        }
        budget::build(state, items.saturating_mul(budget::ITEM))?;
        if ["sort", "dictsort", "unique"].contains(&name) {
            let rounds = usize::BITS - items.leading_zeros();
            for _ in 0..rounds {
                budget::walk(state, first)?;
            }
        }
        // Compares every item with every group.
        if name == "groupby" {
            budget::look(state, items.saturating_mul(items) / 4)?;
        }
    }
    match name {
        "split" | "lines" => {
            let separator = args.get(1).filter(|_| name == "split").and_then(Value::as_str);
            methods::pieces(state, first.as_str().unwrap_or_default(), separator)
        }
        "format" => budget::format(state, first.as_str().unwrap_or_default(), &args[1..]),
        "escape" | "e" => budget::build(state, first.as_str().map_or(0, |text| text.len().saturating_mul(6))),
        "sum" => {
            // What is summed may itself be long: with an attribute, nothing but numbers.
            let mut total = 0usize;
            let by = args.get(1..).and_then(|rest| {
                rest.iter().find_map(|arg| match arg.as_str() {
                    Some(by) => Some(by.to_owned()),
                    None => arg.get_attr("attribute").ok()?.as_str().map(str::to_owned),
                })
            });
            for item in first.try_iter()? {
                let item = by.as_ref().map_or(item.clone(), |by| attribute(&item, by));
                if item.as_str().is_some() {
                    return Err(wrong("sum: expected numbers or lists, got text"));
                }
                total = total.saturating_add(budget::count(state, &item)?);
            }
            budget::build(state, total.saturating_mul(budget::ITEM))
        }
        _ => Ok(()),
    }
}

/// Jinja2's `join`, of an attribute where one is named.
fn join(
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

fn trim(text: &Value, chars: Option<&str>) -> Result<String, Error> {
    Ok(methods::strip(&python::str(text)?, chars, true, true).to_owned())
}

fn wordcount(text: &str) -> usize {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
}

fn center(text: &str, width: Option<usize>) -> Result<String, Error> {
    let missing = methods::missing(text, width.unwrap_or(80))?;
    let left = missing / 2 + (missing & width.unwrap_or(80) & 1);
    Ok(format!("{}{text}{}", " ".repeat(left), " ".repeat(missing - left)))
}

fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    match value.len() {
        Some(len) if value.downcast_object_ref::<Generator>().is_none() => Ok(len),
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
fn indent(
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
fn groupby(value: &Value, by: &str, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
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

fn default(
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
fn int(value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs) -> Result<Value, Error> {
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
fn float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
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
fn attribute(value: &Value, path: &str) -> Value {
    path.split('.').fold(value.clone(), |at, part| {
        let found = match part.parse::<usize>() {
            Ok(index) if at.kind() != ValueKind::Map => at.get_item_by_index(index),
            _ => at.get_attr(part),
        };
        found.unwrap_or(Value::UNDEFINED)
    })
}

fn sort(
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
fn sorted(
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
fn tojson(
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
