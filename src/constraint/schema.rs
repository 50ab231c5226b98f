//! JSON schemas, brought into the form the grammar engine reads.
//!
//! The engine takes one document with plain references, the keywords of draft 2020-12 and nothing it does not
//! implement. Schemas in the wild have embedded resources, anchors, escaped pointers, the keywords of five drafts, and
//! assertions that no grammar can hold. This file turns the first into the second, or says which keyword at which path
//! stands in the way: an assertion is never ignored.
//!
//! | written | becomes |
//! |---|---|
//! | `$ref` to a pointer, anchor or embedded `$id` | a definition of its own, found by plain pointer |
//! | `items` as an array, `additionalItems`, boolean `exclusiveMinimum` | `prefixItems`, `items`, numbers |
//! | `dependentRequired`, `dependentSchemas`, `dependencies` | `anyOf` of "the property is absent" and what it asks for |
//! | `not` of `required` or `type` | what is left: absent properties, the other types |
//! | annotations, keywords of no draft | nothing |
//!
//! What it does not know: grammars and tokens.

mod formats;
mod pattern;
mod references;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, Status};
use formats::Format;
pub(super) use references::Pointer;
use references::{Place, References};

/// Types of JSON values.
const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// Patterns of property names whose overlap is checked pairwise.
const PATTERNS: usize = 64;

/// Assertions that are copied as they are, given that their value is of the right kind.
const PLAIN: [&str; 10] = [
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "multipleOf",
    "required",
];

/// Assertions of some draft that have no form here.
const REFUSED: [&str; 12] = [
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$recursiveRef",
    "$dynamicRef",
];

/// Versions of JSON Schema, as far as they differ here.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub(super) enum Draft {
    Four,
    Six,
    Seven,
    Nineteen,
    Twenty,
}

impl Draft {
    fn of(schema: &Value, otherwise: Draft) -> Draft {
        let name = schema.get("$schema").and_then(Value::as_str).unwrap_or_default();
        match name.trim_end_matches('#').rsplit_once("json-schema.org/").map(|(_, name)| name) {
            Some("draft-04/schema") => Draft::Four,
            Some("draft-06/schema") => Draft::Six,
            Some("draft-07/schema") => Draft::Seven,
            Some("draft/2019-09/schema") => Draft::Nineteen,
            Some("draft/2020-12/schema") => Draft::Twenty,
            _ => otherwise,
        }
    }

    /// Whether a refused keyword is an assertion in this draft at all.
    fn asserts(self, keyword: &str) -> bool {
        match keyword {
            "contains" | "propertyNames" => self >= Draft::Six,
            "if" | "then" | "else" => self >= Draft::Seven,
            "minContains"
            | "maxContains"
            | "unevaluatedItems"
            | "unevaluatedProperties"
            | "$recursiveRef" => self >= Draft::Nineteen,
            "$dynamicRef" => self == Draft::Twenty,
            _ => true,
        }
    }
}

/// Whether free properties stand beside named ones, where another spelling of a name must not pass for a free one.
pub(super) fn has_free_beside_named(schema: &Value) -> bool {
    match schema {
        Value::Object(keywords) => {
            let named = ["properties", "patternProperties", "required"].iter().any(|key| {
                keywords.get(*key).is_some_and(|value| *value != json!({}) && *value != json!([]))
            });
            (named && keywords.get("additionalProperties") != Some(&Value::Bool(false)))
                || keywords.values().any(has_free_beside_named)
        }
        Value::Array(items) => items.iter().any(has_free_beside_named),
        _ => false,
    }
}

/// Whether a text in it holds a control character that has no short escape.
pub(super) fn has_control(value: &Value) -> bool {
    let control =
        |text: &str| text.chars().any(|c| (c < ' ' && !"\n\r\t\u{8}\u{c}".contains(c)) || c == '\u{7f}');
    match value {
        Value::String(text) => control(text),
        Value::Array(items) => items.iter().any(has_control),
        Value::Object(fields) => fields.iter().any(|(name, value)| control(name) || has_control(value)),
        _ => false,
    }
}

/// A schema in the engine's form, and where its definitions came from.
#[derive(Debug)]
pub(super) struct Lowered {
    pub(super) schema: Value,
    /// Name of the definition → path in the host's schema.
    pub(super) origins: BTreeMap<String, Pointer>,
}

/// Parses and lowers; `depth` bounds how deep schemas may nest.
///
/// # Errors
/// `SCHEMA` for text that is no JSON, nests too deep, refers to nothing, or asserts what no grammar can hold; the
/// message begins with the path as a JSON pointer.
pub(super) fn lower(text: &str, depth: usize) -> Result<Lowered> {
    let document: Value = serde_json::from_str(text).map_err(|e| {
        Error::new(Status::SCHEMA, format!("schema: expected JSON, got {e}")).with("line", e.line() as i64)
    })?;
    let draft = Draft::of(&document, Draft::Twenty);
    if let Some(other) = document.get("$schema").and_then(Value::as_str)
        && other.starts_with("http")
        && !other.contains("json-schema.org/")
    {
        return Err(refuse("/$schema", format!("expected a draft of json-schema.org, got {other:?}")));
    }
    let mut lowering = Lowering {
        references: References::new(&document, draft <= Draft::Seven)?,
        names: HashMap::new(),
        waiting: Vec::new(),
        depth,
    };
    let mut schema = lowering.schema(&Place::root(&document), draft, 0)?;
    let (mut definitions, mut origins) = (Map::new(), BTreeMap::new());
    while let Some((name, place)) = lowering.waiting.pop() {
        let lowered = lowering.schema(&place, Draft::of(place.node, draft), 0)?;
        origins.insert(name.clone(), place.path);
        definitions.insert(name, lowered);
    }
    if !definitions.is_empty() {
        if !schema.is_object() {
            schema = json!({ "allOf": [schema] });
        }
        schema["$defs"] = Value::Object(definitions);
    }
    Ok(Lowered { schema, origins })
}

fn refuse(path: &(impl std::fmt::Display + ?Sized), what: impl std::fmt::Display) -> Error {
    let path = path.to_string();
    let path = if path.is_empty() { "the root" } else { &path };
    Error::new(Status::SCHEMA, format!("schema, at {path}: {what}"))
}

struct Lowering<'a> {
    references: References<'a>,
    /// Names of referenced nodes, by the node's address in the document.
    names: HashMap<*const Value, String>,
    /// Referenced and not yet lowered.
    waiting: Vec<(String, Place<'a>)>,
    depth: usize,
}

impl<'a> Lowering<'a> {
    fn schema(&mut self, place: &Place<'a>, draft: Draft, depth: usize) -> Result<Value> {
        let Place { node, path, .. } = place;
        if depth > self.depth {
            return Err(refuse(path, format!("schemas nest deeper than {}", self.depth)));
        }
        let keywords = match node {
            Value::Bool(_) => return Ok((*node).clone()),
            Value::Object(keywords) => keywords,
            other => {
                return Err(refuse(path, format!("expected an object or a boolean, got {}", brief(other))));
            }
        };
        let draft = Draft::of(node, draft);
        let place = &place.entered(&self.references);
        // Up to draft 7 a reference stands alone.
        if draft <= Draft::Seven
            && let Some(reference) = keywords.get("$ref")
        {
            return Ok(json!({ "$ref": self.reference(reference, place)? }));
        }
        let mut out = Map::new();
        // Conditions that have no keyword of their own.
        let mut also: Vec<Value> = Vec::new();
        for (key, value) in keywords {
            let at = |key: &str| format!("{path}/{}", escape(key));
            match key.as_str() {
                "$ref" => {
                    let target = self.reference(value, place)?;
                    out.insert(key.clone(), target.into());
                }
                "const" => {
                    out.insert(key.clone(), plain_numbers(value));
                }
                "enum" => {
                    let values = list(value, &at(key))?;
                    out.insert(key.clone(), values.iter().map(plain_numbers).collect());
                }
                "type" => {
                    let names = if let Value::Array(names) = value {
                        names.as_slice()
                    } else {
                        std::slice::from_ref(value)
                    };
                    let known = |name: &Value| {
                        name.as_str().is_some_and(|name| name == "integer" || TYPES.contains(&name))
                    };
                    if let Some(wrong) = names.iter().find(|name| !known(name)) {
                        return Err(refuse(
                            &at(key),
                            format!("expected the name of a type, got {}", brief(wrong)),
                        ));
                    }
                    out.insert(key.clone(), value.clone());
                }
                "allOf" | "anyOf" | "oneOf" => {
                    let lowered = self.each(list(value, &at(key))?, place, key, draft, depth)?;
                    if key == "allOf" {
                        also.extend(lowered)
                    } else {
                        drop(out.insert(key.clone(), lowered.into()))
                    }
                }
                "properties" | "patternProperties" => {
                    if key == "patternProperties" && value.as_object().is_some_and(|all| all.len() > PATTERNS)
                    {
                        return Err(refuse(&at(key), format!("more than {PATTERNS} patterns")));
                    }
                    let mut lowered = self.named(value, place, key, draft, depth)?;
                    if key == "patternProperties" {
                        lowered = lowered
                            .into_iter()
                            .map(|(name, value)| (pattern::translated(&name), value))
                            .collect();
                    }
                    out.insert(key.clone(), lowered.into());
                }
                "additionalProperties" => {
                    let lowered = self.schema(&place.child(&[key], value), draft, depth + 1)?;
                    out.insert(key.clone(), lowered);
                }
                "prefixItems" if draft == Draft::Twenty => {
                    let lowered = self.each(list(value, &at(key))?, place, key, draft, depth)?;
                    out.insert(key.clone(), lowered.into());
                }
                "items" if value.is_array() => {
                    let lowered = self.each(list(value, &at(key))?, place, key, draft, depth)?;
                    out.insert("prefixItems".into(), lowered.into());
                    if let Some(rest) = keywords.get("additionalItems") {
                        let lowered =
                            self.schema(&place.child(&["additionalItems"], rest), draft, depth + 1)?;
                        out.insert("items".into(), lowered);
                    }
                }
                "items" => {
                    let lowered = self.schema(&place.child(&[key], value), draft, depth + 1)?;
                    out.insert(key.clone(), lowered);
                }
                "pattern" => {
                    let Some(text) = value.as_str() else {
                        return Err(refuse(&at(key), format!("expected a text, got {}", brief(value))));
                    };
                    also.push(json!({ "pattern": pattern::translated(text) }));
                }
                "format" if may_be_text(keywords) => {
                    match value.as_str().and_then(formats::assertion) {
                        Some(Format::Known) => drop(out.insert(key.clone(), value.clone())),
                        Some(Format::Pattern(pattern, most)) => {
                            also.push(json!({ "pattern": pattern }));
                            also.extend(most.map(|most| json!({ "maxLength": most })));
                        }
                        None => {
                            let what = format!("expected one of {}, got {}", formats::names(), brief(value));
                            return Err(refuse(&at(key), what));
                        }
                    };
                }
                "exclusiveMinimum" | "exclusiveMaximum" if value.is_boolean() => {
                    let bound = if key == "exclusiveMinimum" { "minimum" } else { "maximum" };
                    if let (Some(number), Value::Bool(true)) = (keywords.get(bound), value) {
                        out.insert(key.clone(), number.clone());
                    }
                }
                "exclusiveMinimum" | "exclusiveMaximum" => {
                    out.insert(key.clone(), value.clone());
                }
                "dependentRequired" | "dependentSchemas" | "dependencies" => {
                    also.extend(self.dependencies(value, place, key, draft, depth)?);
                }
                "not" => also.push(self.negated(value, &at(key))?),
                key if REFUSED.contains(&key) && draft.asserts(key) && !is_idle(key, value, keywords) => {
                    return Err(refuse(&at(key), "the keyword cannot be held to by a grammar; remove it"));
                }
                key if PLAIN.contains(&key) => {
                    out.insert(key.to_owned(), value.clone());
                }
                _ => {}
            }
        }
        check_counts(&out, path)?;
        // A pattern that is the only one stands where it was written.
        if let [only] = &also[..]
            && let Some(pattern) = only.get("pattern")
        {
            out.insert("pattern".into(), pattern.clone());
            also.clear();
        }
        if !also.is_empty() {
            out.insert("allOf".into(), also.into());
        }
        Ok(Value::Object(out))
    }

    fn each(
        &mut self,
        values: &'a [Value],
        place: &Place<'a>,
        key: &str,
        draft: Draft,
        depth: usize,
    ) -> Result<Vec<Value>> {
        let item = |(index, value)| {
            self.schema(&place.child(&[key, &usize::to_string(&index)], value), draft, depth + 1)
        };
        values.iter().enumerate().map(item).collect()
    }

    fn named(
        &mut self,
        value: &'a Value,
        place: &Place<'a>,
        key: &str,
        draft: Draft,
        depth: usize,
    ) -> Result<Map<String, Value>> {
        let Value::Object(schemas) = value else {
            return Err(refuse(
                &format!("{}/{key}", place.path),
                format!("expected an object, got {}", brief(value)),
            ));
        };
        let lower = |(name, value): (&'a String, &'a Value)| {
            Ok((name.clone(), self.schema(&place.child(&[key, name], value), draft, depth + 1)?))
        };
        schemas.iter().map(lower).collect()
    }

    /// The plain pointer to what `reference` names.
    fn reference(&mut self, reference: &Value, place: &Place<'a>) -> Result<String> {
        let at = format!("{}/$ref", place.path);
        let Some(text) = reference.as_str() else {
            return Err(refuse(&at, format!("expected a text, got {}", brief(reference))));
        };
        let Some(target) = self.references.find(text, place) else {
            return Err(refuse(&at, format!("nothing in this document is named {text:?}")));
        };
        let count = self.names.len();
        let name = self.names.entry(std::ptr::from_ref(target.node)).or_insert_with(|| {
            let name = format!("r{count}");
            self.waiting.push((name.clone(), target));
            name
        });
        Ok(format!("#/$defs/{name}"))
    }

    /// "The property is absent, or this holds", for each property.
    fn dependencies(
        &mut self,
        value: &'a Value,
        place: &Place<'a>,
        key: &str,
        draft: Draft,
        depth: usize,
    ) -> Result<Vec<Value>> {
        let path = format!("{}/{key}", place.path);
        let Value::Object(all) = value else {
            return Err(refuse(&path, format!("expected an object, got {}", brief(value))));
        };
        let mut out = Vec::new();
        for (name, asked) in all {
            let there = match asked {
                Value::Array(names) if key != "dependentSchemas" => {
                    let mut required = names.clone();
                    required.push(name.as_str().into());
                    json!({ "required": required })
                }
                _ if key == "dependentRequired" => {
                    return Err(refuse(&path, format!("expected an array of names, got {}", brief(asked))));
                }
                _ => {
                    let lowered = self.schema(&place.child(&[key, name], asked), draft, depth + 1)?;
                    json!({ "allOf": [{ "required": [name] }, lowered] })
                }
            };
            out.push(json!({ "anyOf": [{ "properties": { name: false } }, there] }));
        }
        Ok(out)
    }

    /// The complement of a schema that has one: of `true` and `false`, of `required` alone, of `type` alone.
    fn negated(&self, value: &Value, path: &str) -> Result<Value> {
        let alone =
            |keywords: &Map<String, Value>, key: &str| keywords.len() == 1 && keywords.contains_key(key);
        match value {
            Value::Bool(all) => return Ok(Value::Bool(!all)),
            Value::Object(keywords) if keywords.is_empty() => return Ok(Value::Bool(false)),
            Value::Object(keywords) if alone(keywords, "required") => {
                let names = list(&value["required"], path)?;
                if names.iter().all(Value::is_string) && !names.is_empty() {
                    let absent =
                        |name: &Value| json!({ "properties": { name.as_str().unwrap_or_default(): false } });
                    let absent: Vec<Value> = names.iter().map(absent).collect();
                    return Ok(json!({ "type": "object", "anyOf": absent }));
                }
            }
            Value::Object(keywords) if alone(keywords, "type") => {
                let names: Vec<&str> = match &value["type"] {
                    Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
                    name => name.as_str().into_iter().collect(),
                };
                // What is a number and not an integer has no type of its own.
                if !names.is_empty() && (!names.contains(&"integer") || names.contains(&"number")) {
                    let rest: Vec<&str> = TYPES.into_iter().filter(|name| !names.contains(name)).collect();
                    return Ok(if rest.is_empty() { Value::Bool(false) } else { json!({ "type": rest }) });
                }
            }
            _ => {}
        }
        Err(refuse(path, "only `required` and `type` can be negated; say what is allowed instead"))
    }
}

/// Whether the keyword `type` leaves texts, to which alone a format applies.
fn may_be_text(keywords: &Map<String, Value>) -> bool {
    match keywords.get("type") {
        Some(Value::Array(names)) => names.iter().any(|name| name == "string"),
        Some(name) => name == "string",
        None => true,
    }
}

/// Whether an assertion that has no form here asserts nothing.
fn is_idle(key: &str, value: &Value, beside: &Map<String, Value>) -> bool {
    match key {
        "uniqueItems" => {
            value == false || beside.get("maxItems").and_then(Value::as_u64).is_some_and(|n| n <= 1)
        }
        "if" => !beside.contains_key("then") && !beside.contains_key("else"),
        "then" | "else" => !beside.contains_key("if"),
        "minContains" | "maxContains" => !beside.contains_key("contains"),
        "contains" => {
            beside.get("minContains").and_then(Value::as_u64) == Some(0)
                && !beside.contains_key("maxContains")
        }
        "propertyNames" | "unevaluatedItems" | "unevaluatedProperties" => {
            *value == true || value.as_object().is_some_and(Map::is_empty)
        }
        _ => false,
    }
}

/// A text may name a free property twice, which then is one property: so free properties cannot be counted.
fn check_counts(out: &Map<String, Value>, path: &Pointer) -> Result<()> {
    let least = out.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    let required = out.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    let closed = out.get("additionalProperties") == Some(&Value::Bool(false))
        && !out.contains_key("patternProperties");
    if least > required + 1 && !closed {
        let path = format!("{path}/minProperties");
        return Err(refuse(&path, "more properties than one beside the required ones cannot be counted"));
    }
    Ok(())
}

fn list<'v>(value: &'v Value, path: &str) -> Result<&'v [Value]> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| refuse(path, format!("expected an array, got {}", brief(value))))
}

/// Whole numbers without fraction or exponent, which is how they are to be written.
fn plain_numbers(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            // Up to 2^63 it is exactly the whole number that is written.
            Some(x) if x.fract() == 0.0 && x.abs() < 9_223_372_036_854_775_808.0 => (x as i64).into(),
            _ => value.clone(),
        },
        Value::Array(items) => items.iter().map(plain_numbers).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), plain_numbers(value))).collect()
        }
        _ => value.clone(),
    }
}

/// A name as part of a JSON pointer.
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The beginning of a value.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
