//! A compiled template, set up as the transformers library sets up Jinja2.
//!
//! `trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}` blocks (which only mark training text and print
//! their body), `tojson` without ASCII or HTML escapes, `raise_exception`, `strftime_now`. No autoescape, no loader:
//! a template reaches nothing but its variables. Steps, recursion and output are limited ([`Limits`]).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use super::clock::Clock;
use super::{Chat, budget, functions, methods, origin, python, source};
use crate::error::{Error, Result, Status};
use crate::tokenizer::{EncodeOptions, Special, Tokenizer};

/// Name of the one template of an environment.
const NAME: &str = "chat template";

/// What a rendering may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instructions of the template engine.
    pub steps: u64,
    /// Nested macro calls and blocks.
    pub depth: usize,
    /// Bytes printed in all, into variables and macros too. Operators, filters and methods may build four times as much
    /// in all, whether or not it is kept, and look at `steps` parts of values.
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

    /// The template a model file brings: the one called `name`, or the default one. `metadata` is the file's; the
    /// texts of special tokens come from its tokenizer.
    ///
    /// # Errors
    /// `NOT_FOUND` if the file has no chat template, or none of that name; those of
    /// [`Template::compile`].
    pub fn of_model(
        metadata: &Map<String, Value>,
        tokenizer: Option<&Tokenizer>,
        name: Option<&str>,
    ) -> Result<Self> {
        let named = metadata.get("chat_templates").and_then(Value::as_object);
        let default = || metadata.get("chat_template").and_then(Value::as_str);
        let by_name = |name: &str| named.and_then(|named| named.get(name)).and_then(Value::as_str);
        let source = match name {
            None | Some("default") => default().or_else(|| by_name("default")),
            Some(name) => by_name(name),
        };
        let Some(source) = source else {
            let mut names: Vec<&str> = named.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            if default().is_some() {
                names.insert(0, "default");
            }
            return Err(match name {
                Some(name) if !names.is_empty() => Error::new(
                    Status::NOT_FOUND,
                    format!("chat template {name:?}: expected one of {}", names.join(", ")),
                ),
                _ => Error::new(
                    Status::NOT_FOUND,
                    "the model file has no chat template: compile one from source, or prompt with plain text",
                ),
            });
        };
        let texts = [
            ("bos_token", Special::Bos),
            ("eos_token", Special::Eos),
            ("unk_token", Special::Unknown),
            ("pad_token", Special::Pad),
        ]
        .into_iter()
        .filter_map(|(name, special)| {
            let tokenizer = tokenizer?;
            let text = tokenizer.token_bytes(tokenizer.special(special)?)?;
            Some((name, String::from_utf8(text.into_owned()).ok()?))
        });
        let texts: Vec<(&str, String)> = texts.collect();
        let tokens: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        Self::compile(source, &tokens)
    }

    /// [`Template::compile`] with limits and a clock of the host's choice.
    ///
    /// # Errors
    /// As [`Template::compile`].
    pub fn compile_with(source: &str, tokens: &[(&str, &str)], limits: Limits, clock: Clock) -> Result<Self> {
        let mut environment = Environment::new();
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
        budget::set(&mut environment, limits);
        environment.set_formatter(|out, state, value| {
            let text = python::str(value)?;
            // Counts what goes into `set` blocks and macros too, which the output itself never sees.
            budget::print(state, text.len())?;
            Ok(out.write_str(&text)?)
        });
        environment.set_unknown_method_callback(methods::call);
        functions::add(&mut environment, clock);
        let prepared = source::prepare(source).map_err(|(line, what)| {
            Error::new(Status::BAD_FORMAT, format!("chat template, line {line}: {what}"))
                .with("line", i64::try_from(line).unwrap_or(-1))
        })?;
        environment.add_template_owned(NAME, prepared).map_err(|e| {
            let line = e.line().map_or(-1, |line| i64::try_from(line).unwrap_or(-1));
            Error::new(Status::BAD_FORMAT, format!("chat template, line {line}: {e}")).with("line", line)
        })?;
        // collecting would bring code that sorts
        let mut variables = Map::new();
        for &(name, text) in tokens {
            variables.insert(name.to_owned(), Value::from(text));
        }
        Ok(Self { environment, source: source.to_owned(), tokens: variables, limits })
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
    /// the line where it fails on it; `BUDGET` beyond a limit; `UNSUPPORTED` where the engine itself fails on it.
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
        let (text, breaks) =
            self.render_with_breaks(chat, add_generation_prompt, tokenizer.special_texts())?;
        let options = EncodeOptions { add_special: false, parse_special: true };
        tokenizer.encode_with_breaks(&text, options, &breaks)
    }

    /// Renders a conversation, and says at which bytes of the rendering no special token may reach across, because it
    /// would hold text of the host ([`super::origin`]). `specials` are the texts of special tokens.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_with_breaks<'a>(
        &self,
        chat: &Chat,
        add_generation_prompt: bool,
        specials: impl Iterator<Item = &'a str>,
    ) -> Result<(String, Vec<usize>)> {
        let text = self.render(chat, add_generation_prompt)?;
        let breaks = origin::breaks(self, chat, add_generation_prompt, &text, specials)?;
        Ok((text, breaks))
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
        // The engine has places that it does not expect to come to, and hosts in Rust have no fence against them. A
        // rendering changes nothing of the template.
        let rendered =
            catch_unwind(AssertUnwindSafe(|| template.render_captured_to(context, &mut out).map(drop)));
        match rendered {
            Ok(Ok(())) => String::from_utf8(out.bytes)
                .map_err(|e| Error::new(Status::INTERNAL, format!("chat template: output: {e}"))),
            Ok(Err(e)) => Err(self.explain(&e)),
            Err(_) => Err(Error::new(Status::UNSUPPORTED, "chat template: the engine failed on it")),
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
