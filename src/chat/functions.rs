//! What a template can call: functions, filters and tests as Python's Jinja2 and the transformers library have them, the
//! engine's own and ours ([`super::filters`]), with what they cost counted before they run ([`super::budget`]).

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja::{filters as engine, functions as engine_functions, tests as engine_tests};

use super::clock::{Clock, strftime};
use super::filters::{self, wrong};
use super::{budget, methods, python};

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
        // Not a copy of all items: a loop may end at the first, and begin again and again.
        let items = Arc::clone(self);
        Enumerator::Iter(Box::new((0..self.0.len()).map(move |at| items.0[at].clone())))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

/// Whether a value is what a lazy filter gave. It has no length and no slices, but holds all its items.
pub(super) fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
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
            let by_name = args.get(1).and_then(Value::as_str).filter(|_| name == "map");
            if by_name.is_some_and(|by| budget::OWN.contains(&by)) {
                return Err(Error::from(ErrorKind::UnknownFilter));
            }
            counted(state, name, &args)?;
            let found = filter.call(state, &args)?;
            if LAZY.contains(&name) {
                let items = found.try_iter()?.collect();
                return Ok(Value::from_object(Generator(items)));
            }
            // Where names meet, the engine's chain keeps the values that others hide.
            let found = match name {
                "chain" if found.kind() == ValueKind::Map => pairs(&found)?,
                _ => budget::settled(state, found)?,
            };
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
    environment.add_filter("length", filters::length);
    environment.add_filter("count", filters::length);
    environment.add_filter("attr", |state: &mut State, value: Value, key: Value| {
        budget::index(state, &value)?;
        budget::walk(state, &key)?;
        value.get_item(&key)
    });
    environment.add_filter("default", filters::default);
    environment.add_filter("d", filters::default);
    environment.add_filter("join", filters::join);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
            || (value.kind() == ValueKind::Iterable && value.len().is_some())
    });
    environment
        .add_test("callable", |value: &Value| value.kind() == ValueKind::Plain && !is_generator(value));
}

/// A dictionary of its own with what another shows.
fn pairs(map: &Value) -> Result<Value, Error> {
    let pair = |key: Value| map.get_item(&key).map(|value| (key, value));
    let pairs: Result<Vec<_>, Error> = map.try_iter()?.map(pair).collect();
    Ok(Value::from_pairs(pairs?))
}

/// Makes a function of a template; one by one they are less code than all at once.
type Made = fn() -> Value;

/// Filters that are counted: ours, and those of the engine whose work grows with what they are given.
const FILTERS: &[(&str, Made)] = &[
    ("tojson", || Value::from_function(filters::tojson)),
    ("string", || Value::from_function(|value: &Value| python::str(value))),
    ("pprint", || Value::from_function(|value: &Value| python::repr(value))),
    ("sort", || Value::from_function(filters::sort)),
    ("int", || Value::from_function(filters::int)),
    ("float", || Value::from_function(filters::float)),
    ("trim", || Value::from_function(filters::trim)),
    ("replace", || Value::from_function(filters::replace)),
    ("indent", || Value::from_function(filters::indent)),
    ("wordcount", || Value::from_function(filters::wordcount)),
    ("center", || Value::from_function(filters::center)),
    ("groupby", || Value::from_function(filters::groupby)),
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
            let items = budget::count(state, first)?;
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
        "sort" => {
            // Every item is looked at under each of these names.
            let names = attribute_of(args).map_or(1, |by| by.split(',').count());
            let keys = budget::count(state, first)?.saturating_mul(names);
            budget::build(state, keys.saturating_mul(budget::ITEM))
        }
        "sum" => {
            // What is summed may itself be long: with an attribute, nothing but numbers.
            let mut total = 0usize;
            let by = attribute_of(args);
            for item in first.try_iter()? {
                let item = by.as_ref().map_or(item.clone(), |by| filters::attribute(&item, by));
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

/// The name of an attribute among a filter's arguments.
fn attribute_of(args: &[Value]) -> Option<String> {
    args.get(1..)?.iter().find_map(|arg| match arg.as_str() {
        Some(by) => Some(by.to_owned()),
        None => arg.get_attr("attribute").ok()?.as_str().map(str::to_owned),
    })
}
