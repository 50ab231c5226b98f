//! Answers taken apart: text, reasoning and tool calls, while they are being written.
//!
//! ```text
//! pieces ─→ held until no mark can begin in it ─→ mode (text, reasoning, call, header) ─→ segments
//! ```
//!
//! The formats differ in their marks ([`Format`]); the parser is one. Whatever the cuts between pieces, the segments at
//! the end are the same. Nothing of an answer is lost: what looks like a call and is none stays text. White space at
//! the ends of texts is dropped.
//!
//! The text must hold the format's marks, so tokens are to be decoded with special tokens shown. What this file does
//! not know: templates, tokens, tools.

mod call;
mod format;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use call::Body;
pub use format::Format;
use format::{Action, Mode};

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the reader.
    Text,
    /// The model's thinking.
    Reasoning,
    /// A tool to be called.
    ToolCall,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it is.
    pub kind: Kind,
    /// Its text; of a call the arguments as JSON, or all that is there as long as it is not complete.
    pub text: String,
    /// The tool.
    pub name: Option<String>,
    /// The call's id, where the format has one.
    pub id: Option<String>,
    /// Nothing will be added.
    pub complete: bool,
}

impl Segment {
    fn open(kind: Kind, text: &str) -> Self {
        Self { kind, text: text.to_owned(), name: None, id: None, complete: false }
    }

    /// As JSON: `type` of `text`, `reasoning` or `tool_call`, `complete`, and `text` or `name`, `arguments`, `id`.
    pub fn to_json(&self) -> Value {
        match self.kind {
            Kind::ToolCall => json!({
                "type": "tool_call", "name": self.name, "arguments": self.text, "id": self.id, "complete": self.complete,
            }),
            Kind::Text => json!({ "type": "text", "text": self.text, "complete": self.complete }),
            Kind::Reasoning => json!({ "type": "reasoning", "text": self.text, "complete": self.complete }),
        }
    }
}

/// Bytes of a text that are looked through at once.
const AT_ONCE: usize = 256;

/// An answer being taken apart.
#[derive(Clone, Debug)]
pub struct Answer {
    format: Format,
    mode: Mode,
    /// Of this mode, and not decided: it may be the beginning of a mark.
    held: String,
    /// The body of a call or a header, with the mark that began it.
    body: String,
    begun: &'static str,
    /// White space that is text only if something follows.
    space: String,
    /// The tool of a call whose name stands before its body.
    name: Option<String>,
    segments: Vec<Segment>,
    reasoned: bool,
    finished: bool,
}

impl Answer {
    /// The beginning of an answer. `in_reasoning`: the prompt ended with the mark that begins reasoning
    /// ([`Answer::begins_reasoning`]).
    pub fn new(format: Format, in_reasoning: bool) -> Self {
        let mode = if in_reasoning && format != Format::Harmony { Mode::Reasoning } else { format.first() };
        Self {
            format,
            mode,
            held: String::new(),
            body: String::new(),
            begun: "",
            space: String::new(),
            name: None,
            segments: Vec::new(),
            reasoned: in_reasoning,
            finished: false,
        }
    }

    /// Whether a rendered prompt leaves the answer to begin inside reasoning.
    pub fn begins_reasoning(prompt: &str) -> bool {
        let prompt = prompt.trim_end();
        prompt.ends_with("<think>") || prompt.ends_with("[THINK]")
    }

    /// A whole answer.
    pub fn parse(format: Format, in_reasoning: bool, text: &str) -> Vec<Segment> {
        let mut answer = Self::new(format, in_reasoning);
        answer.push(text);
        answer.finish();
        answer.segments
    }

    /// The segments so far; the last may grow. Text becomes reasoning if its end shows that it was.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Takes a piece of text.
    pub fn push(&mut self, piece: &str) {
        if self.finished {
            return;
        }
        // Piece by piece, as it does not matter: what is left is moved and looked through behind every mark.
        let mut rest = piece;
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.floor_char_boundary(AT_ONCE));
            self.held.push_str(head);
            self.advance();
            rest = tail;
        }
    }

    /// Takes of what is held all that is decided.
    fn advance(&mut self) {
        loop {
            let marks = self.format.marks(self.mode);
            let first = marks.filter_map(|(mark, action)| Some((self.held.find(mark)?, mark, action)));
            // The earliest, and of those the longest.
            match first.min_by_key(|(at, mark, _)| (*at, usize::MAX - mark.len())) {
                Some((at, mark, action)) => {
                    let rest = self.held.split_off(at + mark.len());
                    let before = std::mem::replace(&mut self.held, rest);
                    self.take(&before[..at]);
                    self.act(mark, action);
                }
                None => break,
            }
        }
        let sure = self.held.len() - undecided(&self.held, self.format.marks(self.mode));
        let rest = self.held.split_off(sure);
        let before = std::mem::replace(&mut self.held, rest);
        self.take(&before);
    }

    /// Nothing follows: what was held is decided.
    pub fn finish(&mut self) {
        if self.finished {
            return;
        }
        self.finished = true;
        let held = std::mem::take(&mut self.held);
        self.take(&held);
        if self.mode == Mode::Header && !self.body.trim().is_empty() {
            // Never a message: the model did not answer in its format.
            let body = std::mem::take(&mut self.body);
            self.mode = Mode::Text;
            self.take(&body);
        }
        let complete = !matches!(self.mode, Mode::Call(Body::Object | Body::DeepSeek | Body::Arguments));
        self.close(complete);
    }

    /// Text of the present mode, which holds no mark.
    fn take(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let kind = match self.mode {
            Mode::Text => Kind::Text,
            Mode::Reasoning => Kind::Reasoning,
            Mode::Header => return self.body.push_str(text),
            Mode::Call(_) => {
                self.body.push_str(text);
                let open =
                    self.segments.last_mut().filter(|last| last.kind == Kind::ToolCall && !last.complete);
                if let Some(open) = open {
                    open.text.push_str(text);
                }
                return;
            }
        };
        let open = self.segments.last().is_some_and(|last| last.kind == kind && !last.complete);
        let text = if open { text } else { text.trim_start() };
        let end = text.trim_end();
        if end.is_empty() {
            if open {
                self.space.push_str(text);
            }
            return;
        }
        if !open {
            self.segments.push(Segment::open(kind, ""));
        }
        if let Some(last) = self.segments.last_mut() {
            last.text.push_str(&std::mem::take(&mut self.space));
            last.text.push_str(end);
        }
        self.space.push_str(&text[end.len()..]);
    }

    fn act(&mut self, mark: &'static str, action: Action) {
        match action {
            Action::Skip => {}
            Action::Enter(mode) => {
                self.close(true);
                self.enter(mark, mode, None);
            }
            Action::Leave => {
                if self.mode == Mode::Reasoning && self.format != Format::Harmony && mark != "</think>" {
                    // The turn ended while thinking.
                    self.close(true);
                    return;
                }
                self.close(true);
                self.enter("", self.format.first(), None);
            }
            Action::LeaveReasoning => {
                if self.mode == Mode::Text && !self.reasoned {
                    self.segments
                        .iter_mut()
                        .filter(|s| s.kind == Kind::Text)
                        .for_each(|s| s.kind = Kind::Reasoning);
                }
                self.reasoned = true;
                self.close(true);
                self.enter("", Mode::Text, None);
            }
            Action::Message => {
                let header = std::mem::take(&mut self.body);
                let (mode, name) = message(&header);
                self.enter(mark, mode, name);
            }
        }
    }

    fn enter(&mut self, mark: &'static str, mode: Mode, name: Option<String>) {
        self.reasoned |= mode == Mode::Reasoning;
        (self.mode, self.begun, self.name) = (mode, mark, name);
        self.body.clear();
        if matches!(mode, Mode::Call(_)) {
            let mut segment = Segment::open(Kind::ToolCall, "");
            segment.name.clone_from(&self.name);
            self.segments.push(segment);
        }
    }

    /// Ends the present segment. `complete`: by its own mark, or by one that may end it.
    fn close(&mut self, complete: bool) {
        self.space.clear();
        let Mode::Call(body) = self.mode else {
            // Once: behind many marks in a row there is nothing new to look at.
            if let Some(last) = self.segments.last_mut().filter(|last| !last.complete) {
                last.complete = true;
                self.bare_call();
            }
            return;
        };
        let text = std::mem::take(&mut self.body);
        let open = self.segments.pop();
        match call::calls(body, &text, self.name.as_deref()) {
            Some(calls) => self.segments.extend(calls),
            // Cut off: what there is of it.
            None if !complete => self.segments.extend(open),
            None => {
                let text = format!("{}{text}", if body == Body::Arguments { "" } else { self.begun });
                let mut segment = Segment::open(Kind::Text, text.trim());
                segment.complete = true;
                self.segments.push(segment);
            }
        }
    }

    /// Llama 3 may call by an object alone, which is text until it is whole.
    fn bare_call(&mut self) {
        let alone = self.format == Format::Llama3 && self.mode == Mode::Text;
        let Some(last) = self.segments.last_mut().filter(|last| alone && last.kind == Kind::Text) else {
            return;
        };
        let text = last.text.strip_prefix("<|python_tag|>").unwrap_or(&last.text);
        if text.starts_with('{')
            && let Some(calls) = serde_json::from_str(text).ok().as_ref().and_then(call::object)
        {
            *last = calls;
        }
    }
}

/// What a message of harmony is, by its header: `…<|channel|>analysis to=functions.name <|constrain|>json`.
fn message(header: &str) -> (Mode, Option<String>) {
    let word = |text: &str| {
        let end = text.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let channel =
        header.split_once("<|channel|>").map(|(_, rest)| word(rest.trim_start())).unwrap_or_default();
    if let Some((_, rest)) = header.split_once("to=") {
        let name = word(rest);
        let name = name.strip_prefix("functions.").unwrap_or(&name).to_owned();
        return (Mode::Call(Body::Arguments), Some(name));
    }
    (if channel == "analysis" { Mode::Reasoning } else { Mode::Text }, None)
}

/// Bytes at the end of `text` that begin a mark.
fn undecided(text: &str, marks: impl Iterator<Item = (&'static str, Action)> + Clone) -> usize {
    let longest = marks.clone().map(|(mark, _)| mark.len()).max().unwrap_or(0);
    let from = text.len().saturating_sub(longest.saturating_sub(1));
    let places = (from..text.len()).filter(|&at| text.is_char_boundary(at));
    let begins = |at: &usize| {
        marks.clone().any(|(mark, _)| mark.starts_with(&text[*at..]) && mark.len() > text.len() - at)
    };
    places.into_iter().find(begins).map_or(0, |at| text.len() - at)
}
