//! Bodies of tool calls: from what stands between a format's marks to a name and arguments.

use serde_json::{Map, Value};

use super::{Kind, Segment};

/// What a body looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// `{"name": …, "arguments": {…}}`, or `<function=name><parameter=key>value</parameter></function>`.
    Object,
    /// Objects with `parameters`, separated by `;`; else a program.
    Python,
    /// A list of objects, or `name[ARGS]{…}` with an id between as `[CALL_ID]id`.
    Mistral,
    /// `function<｜tool▁sep｜>name`, a line end and a fenced object, or `name<｜tool▁sep｜>{…}`.
    DeepSeek,
    /// The arguments alone; the name is known from the header.
    Arguments,
}

/// The calls of a body; `None` if it is not of this kind.
pub(super) fn calls(body: Body, text: &str, name: Option<&str>) -> Option<Vec<Segment>> {
    let text = text.trim();
    match body {
        Body::Object if text.starts_with("<function=") => functions(text),
        Body::Object => objects(text, ""),
        Body::Python => Some(objects(text, ";").unwrap_or_else(|| vec![program(text)])),
        Body::Mistral => mistral(text),
        Body::DeepSeek => deepseek(text),
        Body::Arguments => {
            let value: Value = serde_json::from_str(text).ok()?;
            Some(vec![call(name?, arguments(&value), None)])
        }
    }
}

fn call(name: &str, arguments: String, id: Option<String>) -> Segment {
    Segment { kind: Kind::ToolCall, text: arguments, name: Some(name.to_owned()), id, complete: true }
}

/// Arguments as JSON text; some models write them as a text that holds it.
fn arguments(value: &Value) -> String {
    match value {
        Value::String(text) if serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object()) => {
            text.clone()
        }
        Value::Null => "{}".to_owned(),
        value => value.to_string(),
    }
}

/// A call written as an object.
pub(super) fn object(value: &Value) -> Option<Segment> {
    let fields = value.as_object()?;
    let name = fields.get("name")?.as_str()?;
    let given = fields.get("arguments").or_else(|| fields.get("parameters"))?;
    let id = fields.get("id").and_then(Value::as_str).map(str::to_owned);
    Some(call(name, arguments(given), id))
}

/// Calls as objects or lists of them, one behind the other; `between` may stand between.
fn objects(text: &str, between: &str) -> Option<Vec<Segment>> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next()?.ok()? {
            Value::Array(items) => found.extend(items.iter().map(object).collect::<Option<Vec<_>>>()?),
            value => found.push(object(&value)?),
        }
        rest = rest[values.byte_offset()..].trim_start();
        rest = rest.strip_prefix(between).unwrap_or(rest).trim_start();
    }
    (!found.is_empty()).then_some(found)
}

/// Llama's tools that take a program or one argument: `search.call(query="…")`, or code.
fn program(text: &str) -> Segment {
    let argument = || {
        let (name, rest) = text.split_once(".call(")?;
        let (key, value) = rest.strip_suffix(')')?.split_once('=')?;
        let plain = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_');
        let value: Value = serde_json::from_str(value).ok()?;
        let arguments = Map::from_iter([(key.to_owned(), value)]);
        (plain(name) && plain(key)).then(|| call(name, Value::Object(arguments).to_string(), None))
    };
    argument().unwrap_or_else(|| {
        let arguments = Map::from_iter([("code".to_owned(), Value::from(text))]);
        call("python", Value::Object(arguments).to_string(), None)
    })
}

/// Qwen's coders: every value is text between marks; what reads as JSON other than text is that.
fn functions(text: &str) -> Option<Vec<Segment>> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, tail) = rest.strip_prefix("<function=")?.split_once('>')?;
        let (body, tail) = tail.split_once("</function>")?;
        let mut fields = Map::new();
        let mut inner = body.trim_start();
        while !inner.is_empty() {
            let (key, tail) = inner.strip_prefix("<parameter=")?.split_once('>')?;
            let (value, tail) = tail.split_once("</parameter>")?;
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            let read = serde_json::from_str(value).ok().filter(|v: &Value| !v.is_string());
            fields.insert(key.to_owned(), read.unwrap_or_else(|| value.into()));
            inner = tail.trim_start();
        }
        found.push(call(name, Value::Object(fields).to_string(), None));
        rest = tail.trim_start();
    }
    Some(found)
}

fn mistral(text: &str) -> Option<Vec<Segment>> {
    if text.starts_with('[') {
        return objects(text, "");
    }
    let (head, body) = text.split_once("[ARGS]")?;
    let (name, id) = match head.split_once("[CALL_ID]") {
        Some((name, id)) => (name, Some(id.to_owned())),
        None => (head, None),
    };
    let value: Value = serde_json::from_str(body).ok()?;
    Some(vec![call(name.trim(), arguments(&value), id)])
}

fn deepseek(text: &str) -> Option<Vec<Segment>> {
    let (kind, rest) = text.split_once("<｜tool▁sep｜>")?;
    let (name, body) = match rest.split_once('\n') {
        Some((name, body)) if kind == "function" => (name, body),
        _ => (kind, rest),
    };
    let body = body.trim();
    let body = body.strip_prefix("```json").or_else(|| body.strip_prefix("```")).unwrap_or(body);
    let value: Value = serde_json::from_str(body.strip_suffix("```").unwrap_or(body).trim()).ok()?;
    Some(vec![call(name.trim(), arguments(&value), None)])
}
