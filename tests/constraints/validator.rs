//! A plain validator, keyword by keyword as the specification words them: the judge of generated texts. It answers
//! nothing where a keyword is beyond it, and the published suites judge it in turn.

use std::cell::Cell;

use fancy_regex::Regex;
use serde_json::{Map, Value};

/// Keywords that assert nothing here.
const SILENT: [&str; 16] = [
    "$schema",
    "$id",
    "id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "$defs",
    "definitions",
    "readOnly",
    "writeOnly",
    "deprecated",
    "$anchor",
    "format",
    "$vocabulary",
];

/// Whether `data` is valid; `None` where that is beyond it.
pub fn valid(schema: &Value, data: &Value) -> Option<bool> {
    let judge = Judge { root: schema, beyond: Cell::new(false), steps: Cell::new(0) };
    let answer = judge.check(schema, data, 0);
    (!judge.beyond.get()).then_some(answer)
}

struct Judge<'a> {
    root: &'a Value,
    beyond: Cell<bool>,
    steps: Cell<usize>,
}

impl Judge<'_> {
    fn give_up(&self) -> bool {
        self.beyond.set(true);
        true
    }

    fn check(&self, schema: &Value, data: &Value, depth: usize) -> bool {
        self.steps.set(self.steps.get() + 1);
        if depth > 60 || self.steps.get() > 20_000 {
            return self.give_up();
        }
        let keywords = match schema {
            Value::Bool(all) => return *all,
            Value::Object(keywords) => keywords,
            _ => return self.give_up(),
        };
        // Beside a reference the drafts differ.
        let alone = keywords.keys().all(|key| key == "$ref" || SILENT.contains(&key.as_str()));
        if keywords.contains_key("$ref") && !alone {
            return self.give_up();
        }
        keywords.iter().all(|(key, value)| self.keyword(key, value, keywords, data, depth + 1))
    }

    fn keyword(
        &self,
        key: &str,
        value: &Value,
        beside: &Map<String, Value>,
        data: &Value,
        depth: usize,
    ) -> bool {
        let count = |n: usize| value.as_f64().map(|bound| (n as f64).total_cmp(&bound));
        let number = data.as_f64().zip(value.as_f64());
        let all = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let holds = |schema: &Value| self.check(schema, data, depth);
        match (key, data) {
            ("type", _) => match value {
                Value::Array(names) => names.iter().any(|name| is(data, name)),
                name => is(data, name),
            },
            ("const", _) => equal(value, data),
            ("enum", _) => all(value).iter().any(|one| equal(one, data)),
            ("allOf", _) => all(value).iter().all(holds),
            ("anyOf", _) => all(value).iter().any(holds),
            ("oneOf", _) => all(value).iter().filter(|one| holds(one)).count() == 1,
            ("not", _) => !holds(value),
            ("$ref", _) => {
                let target = value.as_str().and_then(|text| text.strip_prefix('#'));
                let target = target.and_then(|pointer| self.root.pointer(pointer));
                target.map_or_else(|| self.give_up(), holds)
            }
            ("minimum", _) => number.is_none_or(|(x, least)| x >= least),
            ("maximum", _) => number.is_none_or(|(x, most)| x <= most),
            ("exclusiveMinimum", _) if value.is_number() => number.is_none_or(|(x, least)| x > least),
            ("exclusiveMaximum", _) if value.is_number() => number.is_none_or(|(x, most)| x < most),
            ("multipleOf", _) => number.is_none_or(|(x, unit)| {
                let times = x / unit;
                (times - times.round()).abs() < 1e-6
            }),
            ("minLength", Value::String(text)) => count(text.chars().count()).is_some_and(|o| o.is_ge()),
            ("maxLength", Value::String(text)) => count(text.chars().count()).is_some_and(|o| o.is_le()),
            ("pattern", Value::String(text)) => self.matches(value.as_str().unwrap_or_default(), text),
            ("minItems", Value::Array(items)) => count(items.len()).is_some_and(|o| o.is_ge()),
            ("maxItems", Value::Array(items)) => count(items.len()).is_some_and(|o| o.is_le()),
            ("items", Value::Array(_)) if value.is_array() => self.give_up(),
            ("items", Value::Array(items)) => {
                let before = beside.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
                items.iter().skip(before).all(|item| self.check(value, item, depth))
            }
            ("prefixItems", Value::Array(items)) => {
                items.iter().zip(all(value)).all(|(item, schema)| self.check(&schema, item, depth))
            }
            ("minProperties", Value::Object(map)) => count(map.len()).is_some_and(|o| o.is_ge()),
            ("maxProperties", Value::Object(map)) => count(map.len()).is_some_and(|o| o.is_le()),
            ("required", Value::Object(map)) => {
                all(value).iter().all(|name| name.as_str().is_some_and(|name| map.contains_key(name)))
            }
            ("properties", Value::Object(map)) => {
                map.iter().all(|(name, item)| value.get(name).is_none_or(|s| self.check(s, item, depth)))
            }
            ("patternProperties", Value::Object(map)) => map.iter().all(|(name, item)| {
                let patterns = value.as_object().into_iter().flatten();
                let matching = patterns.filter(|(pattern, _)| self.matches(pattern, name));
                matching.into_iter().all(|(_, schema)| self.check(schema, item, depth))
            }),
            ("additionalProperties", Value::Object(map)) => {
                let named = |name: &str| beside.get("properties").is_some_and(|all| all.get(name).is_some());
                let matched = |name: &str| {
                    let patterns = beside.get("patternProperties").and_then(Value::as_object);
                    patterns.is_some_and(|all| all.keys().any(|pattern| self.matches(pattern, name)))
                };
                let mut free = map.iter().filter(|(name, _)| !named(name) && !matched(name));
                free.all(|(_, item)| self.check(value, item, depth))
            }
            (
                "minLength"
                | "maxLength"
                | "pattern"
                | "minItems"
                | "maxItems"
                | "items"
                | "prefixItems"
                | "minProperties"
                | "maxProperties"
                | "required"
                | "properties"
                | "patternProperties"
                | "additionalProperties",
                _,
            ) => true,
            (key, _) if SILENT.contains(&key) || key.starts_with("x-") || key.starts_with('_') => true,
            _ => self.give_up(),
        }
    }

    fn matches(&self, pattern: &str, text: &str) -> bool {
        // ASCII digits and words, as ECMA-262 has them.
        let pattern = pattern.replace("\\d", "[0-9]").replace("\\w", "[A-Za-z0-9_]");
        if pattern.contains("\\D") || pattern.contains("\\W") || pattern.contains("\\p") {
            return self.give_up();
        }
        let answer = Regex::new(&pattern).ok().and_then(|regex| regex.is_match(text).ok());
        answer.unwrap_or_else(|| self.give_up())
    }
}

fn is(data: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => data.is_null(),
        Some("boolean") => data.is_boolean(),
        Some("string") => data.is_string(),
        Some("array") => data.is_array(),
        Some("object") => data.is_object(),
        Some("number") => data.is_number(),
        Some("integer") => data.is_i64() || data.is_u64() || data.as_f64().is_some_and(|x| x.fract() == 0.0),
        _ => false,
    }
}

/// Equality of JSON: 1 is 1.0, fields have no order.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| equal(a, b)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(name, a)| y.get(name).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}
