//! The forms in which sets hold conversations, each turned into the messages that chat templates take.
//!
//! ```text
//! {"messages" | "conversations": [{"role", "content", …}, …], "tools"}    as they are
//! {"messages" | "conversations": [{"from", "value"}, …], "tools"}         ShareGPT
//!     human, user → user   gpt, assistant → assistant   system → system   observation, tool → tool
//!     function_call → assistant with `tool_calls`, numbered; what is observed next has the call's number and name
//! {"instruction", "input", "output"}                                      Alpaca: input on the line below instruction
//! {"prompt", "response" | "completion"}
//! all: "system" → a message before the others; but for messages: "history", pairs of question and answer, next
//! ```
//! A row that says that its answer is one of a pair, or unwanted, is not one to learn from. It does not know templates.

use std::collections::VecDeque;

use llm::error::{Error, Result, Status};
use serde_json::{Value, json};

/// Question, what stands on the line below it, and answer, by their keys.
const FORMS: [(&str, Option<&str>, &str); 3] =
    [("instruction", Some("input"), "output"), ("prompt", None, "response"), ("prompt", None, "completion")];

/// Messages and tools of a row.
pub(super) struct Conversation {
    pub messages: Vec<Value>,
    pub tools: Option<Value>,
}

/// Reads a row of any of the forms.
///
/// # Errors
/// `BAD_FORMAT` with the key that does not fit.
pub(super) fn conversation(row: &Value) -> Result<Conversation> {
    if given(row, "rejected").is_some() {
        return Err(wrong("`rejected`: two answers to compare; expected rows with one to learn"));
    }
    if let Some(key) = ["label", "kto_tag"].into_iter().find(|key| row.get(*key) == Some(&json!(false))) {
        let message =
            format!("`{key}` is false: answers that are unwanted; expected rows with answers to learn");
        return Err(wrong(message));
    }
    let list = ["messages", "conversations"].into_iter().find_map(|key| Some((key, given(row, key)?)));
    let (mut messages, as_they_are) = match list {
        Some((key, list)) => listed(key, list)?,
        None => (answered(row)?, false),
    };
    if let Some(system) = text(row, "system")?.filter(|system| !system.is_empty()) {
        if messages.first().is_some_and(|first| first["role"] == "system") {
            return Err(wrong("`system` beside a message of that role: expected one of them"));
        }
        messages.insert(0, message("system", system));
    }
    Ok(Conversation { messages, tools: tools(row, as_they_are)? })
}

/// The messages of a list, and whether they are as they were.
fn listed(key: &str, list: &Value) -> Result<(Vec<Value>, bool)> {
    let expected = || wrong(format!("`{key}`: expected a list of messages, got {}", kind(list)));
    let list = list.as_array().ok_or_else(expected)?;
    let (mut calls, mut as_they_are) = (Calls::default(), true);
    let messages = list.iter().enumerate().map(|(i, message)| {
        if given(message, "role").is_some() || given(message, "from").is_none() {
            return Ok(message.clone());
        }
        as_they_are = false;
        calls.message(message).map_err(|e| e.context(format_args!("{key}.{i}")))
    });
    let messages = messages.collect::<Result<Vec<Value>>>()?;
    Ok((messages, as_they_are))
}

/// The messages of a question with its answer.
fn answered(row: &Value) -> Result<Vec<Value>> {
    let found = FORMS
        .iter()
        .find(|(question, _, answer)| given(row, question).is_some() && given(row, answer).is_some());
    let Some((question, below, answer)) = found else {
        let keys: Vec<&String> = row.as_object().into_iter().flat_map(|row| row.keys()).collect();
        return Err(wrong(format!(
            "keys {keys:?}: expected `messages` or `conversations`, `instruction` and `output`, or `prompt` and \
             `response` or `completion`"
        )));
    };
    let mut messages = Vec::new();
    if let Some(history) = given(row, "history") {
        let pair = |turn: &Value| match turn.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                Some([message("user", question), message("assistant", answer)])
            }
            _ => None,
        };
        let pairs = history.as_array().and_then(|turns| turns.iter().map(pair).collect::<Option<Vec<_>>>());
        let expected = || wrong("`history`: expected a list of pairs of texts, question and answer");
        messages.extend(pairs.ok_or_else(expected)?.into_iter().flatten());
    }
    let mut asked = needed(row, question)?.to_string();
    let input = below.map(|key| text(row, key)).transpose()?.flatten();
    if let Some(input) = input.filter(|input| !input.is_empty()) {
        asked = if asked.is_empty() { input.into() } else { format!("{asked}\n{input}") };
    }
    messages.extend([message("user", &asked), message("assistant", needed(row, answer)?)]);
    Ok(messages)
}

/// The tools of a row, where there are some. Those beside messages that stay as they are stay so, too; others may lack
/// what templates have around each.
fn tools(row: &Value, as_they_are: bool) -> Result<Option<Value>> {
    let tools = match given(row, "tools") {
        None => return Ok(None),
        Some(Value::String(none)) if none.trim().is_empty() => return Ok(None),
        // some sets keep the list as a text
        Some(Value::String(list)) => {
            serde_json::from_str(list).map_err(|e| wrong(format!("`tools`: {e}; expected a list as JSON")))?
        }
        Some(list) => list.clone(),
    };
    let list = match tools {
        Value::Array(list) => list,
        Value::Null => return Ok(None),
        other => return Err(wrong(format!("`tools`: expected a list, got {}", kind(&other)))),
    };
    if as_they_are {
        return Ok(Some(Value::Array(list)));
    }
    let whole = |tool: Value| match tool.get("name") {
        Some(_) => json!({"type": "function", "function": tool}),
        None => tool,
    };
    Ok(Some(list).filter(|list| !list.is_empty()).map(|list| list.into_iter().map(whole).collect()))
}

/// The calls of a conversation.
#[derive(Default)]
struct Calls {
    made: usize,
    /// Number and name of those of the last message whose results were not read.
    open: VecDeque<(String, String)>,
}

impl Calls {
    /// A message of ShareGPT.
    fn message(&mut self, given: &Value) -> Result<Value> {
        let (from, value) = (needed(given, "from")?, needed(given, "value")?);
        match from {
            "human" | "user" => Ok(message("user", value)),
            "gpt" | "assistant" => Ok(message("assistant", value)),
            "system" => Ok(message("system", value)),
            "observation" | "tool" => {
                let mut result = message("tool", value);
                if let Some((id, name)) = self.open.pop_front() {
                    (result["tool_call_id"], result["name"]) = (id.into(), name.into());
                }
                Ok(result)
            }
            "function_call" => self.call(value),
            other => Err(wrong(format!(
                "`from` is {other:?}: expected human, user, gpt, assistant, system, function_call, observation \
                 or tool"
            ))),
        }
    }

    /// The message of a call, or of several in a list.
    fn call(&mut self, value: &str) -> Result<Value> {
        let bad = |what: String| {
            let expected = r#"expected {"name": "…", "arguments": {…}} as JSON, or a list of such"#;
            wrong(format!("`value` of a function_call: {what}; {expected}"))
        };
        let list = match serde_json::from_str::<Value>(value).map_err(|e| bad(e.to_string()))? {
            Value::Array(list) => list,
            one => vec![one],
        };
        if list.is_empty() {
            return Err(bad("no call".into()));
        }
        self.open.clear();
        let mut calls = Vec::new();
        for call in &list {
            let name = call.get("name").and_then(Value::as_str).ok_or_else(|| bad("no `name`".into()))?;
            let arguments = match call.get("arguments") {
                // some sets keep them as a text
                Some(Value::String(text)) => serde_json::from_str(text).ok(),
                arguments => arguments.cloned(),
            };
            let arguments = arguments.filter(Value::is_object);
            let arguments = arguments.ok_or_else(|| bad(format!("no object `arguments` of {name:?}")))?;
            self.made += 1;
            // nine letters and digits: what Mistral's templates demand
            let id = format!("call{:05}", self.made);
            let function = json!({"name": name, "arguments": arguments});
            calls.push(json!({"id": id, "type": "function", "function": function}));
            self.open.push_back((id, name.to_string()));
        }
        let mut message = message("assistant", "");
        message["tool_calls"] = calls.into();
        Ok(message)
    }
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// What a row has at `key`, but null.
fn given<'r>(row: &'r Value, key: &str) -> Option<&'r Value> {
    row.get(key).filter(|value| !value.is_null())
}

/// The text at `key`, where there is something.
fn text<'r>(row: &'r Value, key: &str) -> Result<Option<&'r str>> {
    let Some(value) = given(row, key) else { return Ok(None) };
    let expected = || wrong(format!("`{key}`: expected a text, got {}", kind(value)));
    value.as_str().map(Some).ok_or_else(expected)
}

/// The text at `key`, which must be there.
fn needed<'r>(row: &'r Value, key: &str) -> Result<&'r str> {
    text(row, key)?.ok_or_else(|| wrong(format!("no `{key}`: expected a text")))
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(Status::BAD_FORMAT, what)
}
