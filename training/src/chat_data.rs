//! Conversations as training data: rendered by the model's own chat template, tokens of answers marked as learned.
//!
//! ```text
//! {"messages": [user, assistant, tool, assistant…], "tools": […]}
//!    template over the first k messages, for every k → the texts agree, so what message k added is known
//!    <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n · hello<|im_end|>\n
//!                              read                          ·      learned
//! ```
//! An answer begins where the template, asked for the beginning of an answer, ends. A template may change what it wrote
//! before (leave out the thoughts of earlier answers): then each answer becomes a conversation of its own, with all that
//! the template shows before it, and is learned alone. What a host wrote never becomes a special token. Rows of other
//! forms become such conversations first ([`forms`]).

mod forms;

use std::path::Path;

use llm::chat::{Chat, Template};
use llm::error::{Error, Result, Status};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::encode::{Encoder, Place};
use forms::Conversation;

/// A conversation's ids, which of them are learned, and the bytes of text that those are.
pub(crate) type Marked = (Vec<u32>, Vec<bool>, usize);

/// Renders and marks conversations.
pub(crate) struct Marker {
    template: Template,
    encoder: Encoder,
    /// Special tokens, longest first.
    special: Vec<(String, u32)>,
}

impl Marker {
    /// With the template `source`; `tokens` are the texts of tokens that it may name, such as `bos_token`.
    ///
    /// # Errors
    /// `BAD_FORMAT` for a template that is none.
    pub fn new(source: &str, tokens: &[(&str, &str)], tokenizer: Tokenizer) -> Result<Marker> {
        let template = Template::compile(source, tokens)?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut special: Vec<(String, u32)> =
            added.into_iter().filter(|(_, t)| t.special).map(|(id, t)| (t.content, id)).collect();
        special.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        Ok(Marker { template, encoder: Encoder::new(tokenizer)?, special })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        self.template.source()
    }

    /// The conversations that a row of data holds: one, or one for each answer.
    ///
    /// # Errors
    /// `BAD_FORMAT` for a row of no known form or without answers, for a template that leaves out calls of tools; what
    /// the template refuses.
    pub fn row(&self, row: &Value) -> Result<Vec<Marked>> {
        let wrong = |what: &str| Error::new(Status::BAD_FORMAT, what.to_string());
        let Conversation { messages, tools } = forms::conversation(row)?;
        let mut chat = Chat::new();
        if let Some(tools) = tools {
            chat.set_tools_json(&tools.to_string())?;
        }
        // the text before each answer and behind it
        let mut answers: Vec<(Rendered, Rendered)> = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            let answers_now = message.get("role").and_then(Value::as_str) == Some("assistant");
            let before = if answers_now { Some(self.render(&chat, true)?) } else { None };
            chat.add_json(&message.to_string()).map_err(|e| e.context(format_args!("message {i}")))?;
            if let Some(before) = before {
                let after = self.render(&chat, false)?;
                let Some(answer) = after.text.strip_prefix(&before.text) else {
                    return Err(wrong("the template's text before an answer is not how the answer begins"));
                };
                if let Some(name) = called(message).find(|name| !answer.contains(name)) {
                    let what = format!("the template leaves out the call of {name:?} (`tool_calls`)");
                    return Err(wrong(&what));
                }
                answers.push((before, after));
            }
        }
        if answers.is_empty() {
            return Err(wrong("no message of the role `assistant`"));
        }
        let continues = answers.windows(2).all(|pair| pair[1].0.text.starts_with(&pair[0].1.text));
        if continues {
            let spans: Vec<(usize, usize)> =
                answers.iter().map(|(b, a)| (b.text.len(), a.text.len())).collect();
            let whole = answers.pop().map(|(_, after)| after);
            return Ok(whole.map(|w| self.mark(&w, &spans)).transpose()?.into_iter().collect());
        }
        answers.iter().map(|(b, a)| self.mark(a, &[(b.text.len(), a.text.len())])).collect()
    }

    fn render(&self, chat: &Chat, begin_answer: bool) -> Result<Rendered> {
        let special = self.special.iter().map(|(text, _)| text.as_str());
        let (text, breaks) = self.template.render_with_breaks(chat, begin_answer, special)?;
        Ok(Rendered { text, breaks })
    }

    /// Ids of a text, those of tokens in `spans` learned.
    fn mark(&self, rendered: &Rendered, spans: &[(usize, usize)]) -> Result<Marked> {
        let text = rendered.text.as_str();
        let special: Vec<&(String, u32)> = self.special.iter().filter(|(s, _)| text.contains(s)).collect();
        let (mut ids, mut learned) = (Vec::new(), Vec::new());
        // borders of spans are borders of tokens, as they are when a model answers
        let mut borders: Vec<usize> = spans.iter().flat_map(|(a, b)| [*a, *b]).chain([text.len()]).collect();
        borders.dedup();
        let (mut at, mut place) = (0, Place::Beginning);
        for border in borders {
            let learn = spans.iter().any(|(a, b)| *a <= at && at < *b);
            while at < border {
                let next = next_special(&special, rendered, at, border);
                let start = next.map_or(border, |(start, _, _)| start);
                if start > at {
                    ids.extend_from_slice(self.encoder.encode(&text[at..start], place)?.get_ids());
                    place = Place::Inside;
                }
                at = border;
                if let Some((_, end, id)) = next {
                    ids.push(id);
                    (at, place) = (end, Place::BehindSpecial);
                }
                learned.resize(ids.len(), learn);
            }
        }
        Ok((ids, learned, spans.iter().map(|(a, b)| b - a).sum()))
    }
}

/// The functions that a message calls.
fn called(message: &Value) -> impl Iterator<Item = &str> {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    calls.into_iter().flatten().filter_map(|call| call.get("function")?.get("name")?.as_str())
}

/// The first special token of the template's own in `from..to`, the longest where several begin: its place and id.
fn next_special(
    special: &[&(String, u32)],
    rendered: &Rendered,
    from: usize,
    to: usize,
) -> Option<(usize, usize, u32)> {
    let own = |start: usize, end: usize| !rendered.breaks.iter().any(|b| start < *b && *b < end);
    let found = special.iter().filter_map(|(s, id)| {
        let all = rendered.text[from..to].match_indices(s.as_str());
        let mut places = all.map(|(at, _)| (from + at, from + at + s.len()));
        places.find(|(start, end)| own(*start, *end)).map(|(start, end)| (start, end, *id))
    });
    found.min_by_key(|(start, end, _)| (*start, usize::MAX - end))
}

/// A rendering, and where no special token may reach across.
struct Rendered {
    text: String,
    breaks: Vec<usize>,
}

/// The chat template of a model: `template` if given, else that of `tokenizer_config.json` beside the tokenizer; and the
/// texts of tokens that it may name.
///
/// # Errors
/// `NOT_FOUND` where there is none, `IO`, `BAD_FORMAT`.
pub(crate) fn marker(tokenizer: &Path, template: Option<&Path>) -> Result<Marker> {
    let read =
        |path: &Path| std::fs::read_to_string(path).map_err(|e| Error::from(e).context(path.display()));
    let path = tokenizer.with_file_name("tokenizer_config.json");
    let config: Value = if path.is_file() {
        let wrong = |e: serde_json::Error| Error::new(Status::BAD_FORMAT, format!("{}: {e}", path.display()));
        serde_json::from_str(&read(&path)?).map_err(wrong)?
    } else {
        Value::Null
    };
    let beside = tokenizer.with_file_name("chat_template.jinja");
    let source = match template {
        Some(file) => read(file)?,
        // the file comes first, as for the converter and transformers
        None if beside.is_file() => read(&beside)?,
        None => match config.get("chat_template").and_then(template_of) {
            Some(source) => source.to_string(),
            None => {
                let message = format!(
                    "{}: no chat_template here, and no chat_template.jinja beside it; give one with --chat-template",
                    path.display()
                );
                return Err(Error::new(Status::NOT_FOUND, message));
            }
        },
    };
    let tokens: Vec<(&str, &str)> = ["bos_token", "eos_token", "unk_token", "pad_token"]
        .into_iter()
        .filter_map(|name| {
            let value = config.get(name)?;
            Some((name, value.as_str().or_else(|| value.get("content")?.as_str())?))
        })
        .collect();
    Marker::new(&source, &tokens, crate::bpe::load(tokenizer)?)
}

/// The template of a configuration: a text, or the one called `default` of a list.
fn template_of(config: &Value) -> Option<&str> {
    let named = |t: &&Value| t.get("name").and_then(Value::as_str) == Some("default");
    config.as_str().or_else(|| config.as_array()?.iter().find(named)?.get("template")?.as_str())
}

#[cfg(test)]
mod tests;
