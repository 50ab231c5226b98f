//! Chat: from messages to the text and the tokens a model was trained to answer.
//!
//! ```text
//! messages, tools, variables ─→ template (Jinja) ─→ text ──────────────→ ids
//! text, reasoning, tool calls ←─ parse ←─ the answer's text
//! ```
//!
//! A template is a small program that came with a model. It runs in a sandbox ([`template`]), prints values the way
//! Python does ([`python`]) and reads the clock through [`clock`].
//! What the host wrote can never become a special token: [`origin`] finds out which special tokens of the rendering
//! the template wrote alone, and only those are given their ids.

mod budget;
pub mod clock;
mod filters;
mod functions;
mod methods;
pub mod origin;
#[cfg(test)]
mod origin_tests;
pub mod parse;
mod product;
pub mod python;
mod source;
#[cfg(test)]
mod source_tests;
mod tag;
pub mod template;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use crate::error::{Error, Result, Status};
pub use clock::Clock;
pub use parse::{Answer, Format, Segment};
pub use template::{Limits, Template};

/// Nesting that host JSON may have.
const MAX_DEPTH: usize = 64;

/// A conversation and what else the template may look at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Messages, oldest first: objects with `role`, mostly `content`, and whatever else the template reads.
    pub messages: Vec<Value>,
    /// Tool definitions, a list; the template sees no `tools` without it.
    pub tools: Option<Value>,
    /// Further variables by name, such as `enable_thinking`.
    pub vars: Map<String, Value>,
}

impl Chat {
    /// An empty conversation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a message of text.
    pub fn add(&mut self, role: &str, content: &str) {
        let mut message = Map::new();
        message.insert("role".to_owned(), Value::from(role));
        message.insert("content".to_owned(), Value::from(content));
        self.messages.push(Value::Object(message));
    }

    /// Appends a message given as a JSON object.
    ///
    /// # Errors
    /// `INVALID_ARG` if it is not JSON (detail `offset` is the line's column), not an object, has no `role` of text,
    /// or nests deeper than 64.
    pub fn add_json(&mut self, json: &str) -> Result<()> {
        let message = parse("message", json)?;
        if !message.get("role").is_some_and(Value::is_string) {
            return Err(Error::new(
                Status::INVALID_ARG,
                format!("message: expected an object with a text \"role\", got {}", brief(json)),
            ));
        }
        self.messages.push(message);
        Ok(())
    }

    /// Sets the tool definitions: a JSON list, or null for none.
    ///
    /// # Errors
    /// `INVALID_ARG` for anything else.
    pub fn set_tools_json(&mut self, json: &str) -> Result<()> {
        self.tools = match parse("tools", json)? {
            Value::Null => None,
            list @ Value::Array(_) => Some(list),
            _ => {
                return Err(Error::new(
                    Status::INVALID_ARG,
                    format!("tools: expected a list or null, got {}", brief(json)),
                ));
            }
        };
        Ok(())
    }

    /// Sets a variable the template can read by `name`.
    ///
    /// # Errors
    /// `INVALID_ARG` if `json` is not JSON or nests too deep.
    pub fn set_var_json(&mut self, name: &str, json: &str) -> Result<()> {
        self.vars.insert(name.to_owned(), parse(name, json)?);
        Ok(())
    }

    /// The template's variables, without those the template itself brings.
    pub(crate) fn context(&self, add_generation_prompt: bool) -> Map<String, Value> {
        let mut context = Map::new();
        context.insert("messages".to_owned(), Value::Array(self.messages.clone()));
        if let Some(tools) = &self.tools {
            context.insert("tools".to_owned(), tools.clone());
        }
        context.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        context.extend(self.vars.clone());
        context
    }
}

fn parse(what: &str, json: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(json).map_err(|e| {
        Error::new(Status::INVALID_ARG, format!("{what}: expected JSON, got {}: {e}", brief(json)))
            .with("offset", e.column() as i64)
    })?;
    check_depth(&value, MAX_DEPTH).then_some(value).ok_or_else(|| {
        Error::new(Status::INVALID_ARG, format!("{what}: nests deeper than {MAX_DEPTH} levels"))
    })
}

/// Whether a value nests at most `depth` levels.
fn check_depth(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|v| check_depth(v, depth - 1)),
        Value::Object(map) => depth > 0 && map.values().all(|v| check_depth(v, depth - 1)),
        _ => true,
    }
}

/// The beginning of a text, for messages.
fn brief(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}
