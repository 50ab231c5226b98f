//! A compiled template, set up as the transformers library sets up Jinja2.
//!
//! `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}` blocks (which only mark training text and print
//! their body), `tojson` without ASCII or HTML escapes, `raise_exception`, `strftime_now`. No autoescape, no loader:
//! a template reaches nothing but its variables. Steps, recursion and output are limited ([`Limits`]).

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::clock::Clock;
use super::{Chat, functions, methods, origin, python, source};
use crate::error::{Error, Result, Status};
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// Name of the one template of an environment.
const NAME: &str = "chat template";

/// What a rendering may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instructions of the template engine.
    pub steps: u64,
    /// Nested macro calls and blocks.
    pub depth: usize,
    /// Bytes of output.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps: 20_000_000, depth: 200, output: 64 << 20 }
    }
}

/// A template ready to render. Immutable: any thread, concurrently.
pub struct Template {
    environment: Environment<'static>,
    source: String,
    /// Variables of the model, such as `bos_token`.
    tokens: Map<String, Value>,
    limits: Limits,
}

impl Template {
    /// Compiles `source`. `tokens` are variables with texts of the model itself, such as `("bos_token", "<s>")`: not
    /// host text.
    ///
    /// # Errors
    /// `BAD_FORMAT` with the line, if the template is not valid.
    pub fn compile(source: &str, tokens: &[(&str, &str)]) -> Result<Self> {
        Self::compile_with(source, tokens, Limits::default(), Clock::System)
    }

    /// [`Template::compile`] with limits and a clock of the host's choice.
    ///
    /// # Errors
    /// As [`Template::compile`].
    pub fn compile_with(source: &str, tokens: &[(&str, &str)], limits: Limits, clock: Clock) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_debug(false);
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|e| Error::new(Status::INTERNAL, format!("template syntax: {e}")))?,
        );
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(limits.steps));
        environment.set_recursion_limit(limits.depth);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python::str(value)?)?));
        environment.set_unknown_method_callback(methods::call);
        functions::add(&mut environment, clock);
        environment.add_template_owned(NAME, source::prepare(source)).map_err(|e| {
            let line = e.line().map_or(-1, |line| i64::try_from(line).unwrap_or(-1));
            Error::new(Status::BAD_FORMAT, format!("chat template, line {line}: {e}")).with("line", line)
        })?;
        let tokens = tokens.iter().map(|&(name, text)| (name.to_owned(), Value::from(text))).collect();
        Ok(Self { environment, source: source.to_owned(), tokens, limits })
    }

    /// The template's source, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The variables of the model.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.tokens.iter()
    }

    /// Renders a conversation; `add_generation_prompt` asks for the beginning of an answer.
    ///
    /// # Errors
    /// `INVALID_ARG` with the template's own words where it refuses the conversation (`raise_exception`), or with
    /// the line where it fails on it; `BUDGET` beyond a limit.
    pub fn render(&self, chat: &Chat, add_generation_prompt: bool) -> Result<String> {
        self.render_context(&chat.context(add_generation_prompt))
    }

    /// Renders a conversation to token ids: those of the whole rendering with its special tokens, but the text of a
    /// special token that came from the host, wholly or in part, is plain text ([`super::origin`]).
    ///
    /// # Errors
    /// As [`Template::render`] and [`Tokenizer::encode`].
    pub fn render_tokens(
        &self,
        chat: &Chat,
        add_generation_prompt: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<i32>> {
        let text = self.render(chat, add_generation_prompt)?;
        let breaks = origin::breaks(self, chat, add_generation_prompt, &text, tokenizer.special_texts())?;
        let options = EncodeOptions { add_special: false, parse_special: true };
        tokenizer.encode_with_breaks(&text, options, &breaks)
    }

    /// Renders with exactly these variables, besides those of the model.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_context(&self, context: &Map<String, Value>) -> Result<String> {
        let mut variables = self.tokens.clone();
        variables.extend(context.iter().map(|(k, v)| (k.clone(), v.clone())));
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|e| Error::new(Status::INTERNAL, format!("chat template: {e}")))?;
        let mut out = Limited { bytes: Vec::new(), limit: self.limits.output };
        let context =
            minijinja::Value::from_pairs(variables.iter().map(|(k, v)| (k.as_str(), python::value(v))));
        match template.render_captured_to(context, &mut out) {
            Ok(_) => String::from_utf8(out.bytes)
                .map_err(|e| Error::new(Status::INTERNAL, format!("chat template: output: {e}"))),
            Err(e) => Err(self.explain(&e)),
        }
    }

    fn explain(&self, e: &minijinja::Error) -> Error {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
        while let Some(at) = source {
            if let Some(functions::Raised(text)) = at.downcast_ref() {
                return Error::new(Status::INVALID_ARG, text.clone());
            }
            source = at.source();
        }
        let line = e.line().map_or(String::new(), |line| format!(", line {line}"));
        match e.kind() {
            ErrorKind::OutOfFuel => Error::new(
                Status::BUDGET,
                format!("chat template{line}: needed more than {} steps", self.limits.steps),
            ),
            ErrorKind::WriteFailure => Error::new(
                Status::BUDGET,
                format!("chat template{line}: wrote more than {} bytes", self.limits.output),
            ),
            _ => Error::new(Status::INVALID_ARG, format!("chat template{line}: {e}")),
        }
    }
}

/// Output that refuses to grow beyond a limit.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if piece.len() > self.limit - self.bytes.len() {
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
