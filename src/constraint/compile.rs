//! From a text of the host to a compiled constraint, within limits.
//!
//! The engine's compilers recurse over what they read. Depth is bounded before they see it, and they run on a thread
//! of their own with a stack for everything the bounds allow; the caller waits for it.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Logger, TokenParser};
use serde_json::Value;

use super::schema::{self, Lowered, Pointer};
use super::vocabulary::Vocabulary;
use super::{Constraint, Inner, Limits};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::tokenizer::Tokenizer;

/// Stack of the compiling thread, in bytes; address space, of which only what is used becomes memory.
const STACK: usize = 256 << 20;
/// Attempts at finding the part of a schema that the engine refuses.
const ATTEMPTS: usize = 200;

pub(super) fn json_schema(
    tokenizer: &Arc<Tokenizer>,
    text: &str,
    limits: &Limits,
    cancel: Option<&Cancel>,
) -> Result<Constraint> {
    check_size(text, limits, cancel)?;
    on_a_thread(|| {
        let lowered = schema::lower(text, limits.depth)?;
        if schema::has_control(&lowered.schema) && schema::has_free_beside_named(&lowered.schema) {
            return Err(Error::new(
                Status::SCHEMA,
                "schema, at the root: control characters in texts need `additionalProperties: false` in every object",
            ));
        }
        let vocabulary = Vocabulary::of(tokenizer)?;
        check(cancel)?;
        let parser = build(&vocabulary, grammar_of(&lowered.schema), limits)
            .map_err(|e| refused(&vocabulary, &lowered, limits, cancel, &e))?;
        Ok(constraint(tokenizer, parser))
    })
}

pub(super) fn regex(
    tokenizer: &Arc<Tokenizer>,
    pattern: &str,
    limits: &Limits,
    cancel: Option<&Cancel>,
) -> Result<Constraint> {
    check_size(pattern, limits, cancel)?;
    on_a_thread(|| {
        // A look at the syntax first: its errors point at the place.
        regex_syntax::Parser::new()
            .parse(pattern)
            .map_err(|e| Error::new(Status::GRAMMAR, format!("regular expression: {e}")))?;
        let grammar = TopLevelGrammar::from_regex(pattern);
        whole(tokenizer, grammar, limits, cancel, "regular expression")
    })
}

pub(super) fn lark(
    tokenizer: &Arc<Tokenizer>,
    grammar: &str,
    limits: &Limits,
    cancel: Option<&Cancel>,
) -> Result<Constraint> {
    check_size(grammar, limits, cancel)?;
    check_brackets(grammar, limits.depth)?;
    on_a_thread(|| {
        whole(tokenizer, TopLevelGrammar::from_lark(grammar.to_owned()), limits, cancel, "grammar")
    })
}

pub(super) fn choice(
    tokenizer: &Arc<Tokenizer>,
    texts: &[&str],
    limits: &Limits,
    cancel: Option<&Cancel>,
) -> Result<Constraint> {
    if texts.is_empty() {
        return Err(Error::new(Status::INVALID_ARG, "choice: expected at least one text, got none"));
    }
    let escaped: Vec<_> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
    regex(tokenizer, &format!("({})", escaped.join("|")), limits, cancel)
}

fn constraint(tokenizer: &Arc<Tokenizer>, parser: TokenParser) -> Constraint {
    let inner = Inner { tokenizer: Arc::clone(tokenizer), fresh: Mutex::new(parser) };
    Constraint { inner: Arc::new(inner) }
}

fn whole(
    tokenizer: &Arc<Tokenizer>,
    grammar: TopLevelGrammar,
    limits: &Limits,
    cancel: Option<&Cancel>,
    what: &str,
) -> Result<Constraint> {
    let vocabulary = Vocabulary::of(tokenizer)?;
    check(cancel)?;
    let parser = build(&vocabulary, grammar, limits).map_err(|e| named(what, &e))?;
    Ok(constraint(tokenizer, parser))
}

fn grammar_of(schema: &Value) -> TopLevelGrammar {
    let mut schema = schema.clone();
    // The engine reads its options from the schema. White space between tokens is optional and bounded: a model that
    // likes it would never come to an end.
    if let Value::Object(keywords) = &mut schema {
        let mut options = serde_json::json!({ "whitespace_pattern": "\\x20|\\x0A\\x20{0,8}" });
        // Escapes by number would let a property that has a schema of its own pass as a free one under another
        // spelling of its name.
        if schema::has_free_beside_named(&Value::Object(keywords.clone())) {
            options["json_allowed_escapes"] = "nrbtf\\\"".into();
        }
        keywords.insert("x-guidance".into(), options);
    }
    TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(schema))
}

/// Runs the engine's compiler; its own message where it refuses.
fn build(vocabulary: &Vocabulary, grammar: TopLevelGrammar, limits: &Limits) -> Result<TokenParser, String> {
    let parser_limits = ParserLimits {
        initial_lexer_fuel: limits.compile_work,
        step_lexer_fuel: limits.step_work,
        max_lexer_states: limits.lexer_states,
        max_grammar_size: limits.grammar_size,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    let made = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut parser = vocabulary.factory.create_parser_from_init_ext(
            GrammarInit::Serialized(grammar),
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            parser_limits,
        )?;
        parser.start_without_prompt();
        parser.check_stop()?;
        Ok::<_, anyhow::Error>(parser)
    }));
    match made {
        Ok(Ok(parser)) => Ok(parser),
        Ok(Err(e)) => Err(first_line(&e.to_string())),
        Err(_) => Err("the engine failed on it".to_owned()),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(400).collect()
}

/// The error for what the engine said of `what`.
fn named(what: &str, message: &str) -> Error {
    let limit = ["too large", "fuel", "limit", "too complex", "too big"];
    let beyond = limit.iter().any(|word| message.contains(word));
    Error::new(if beyond { Status::BUDGET } else { Status::GRAMMAR }, format!("{what}: {message}"))
}

/// The error for a refused schema, with the path of the smallest part that is refused alone.
fn refused(
    vocabulary: &Vocabulary,
    lowered: &Lowered,
    limits: &Limits,
    cancel: Option<&Cancel>,
    message: &str,
) -> Error {
    let error = named("schema", message);
    if error.status() == Status::BUDGET {
        return error;
    }
    let definitions = lowered.schema.get("$defs");
    let mut attempts = 0;
    let mut message = message.to_owned();
    let mut path = String::new();
    let mut node = &lowered.schema;
    'deeper: loop {
        for (step, child) in children(node, &lowered.origins) {
            attempts += 1;
            if attempts > ATTEMPTS {
                break 'deeper;
            }
            // Each attempt may take as long as the compilation.
            if let Err(e) = check(cancel) {
                return e;
            }
            let mut alone = child.clone();
            if let (Value::Object(alone), Some(definitions)) = (&mut alone, definitions) {
                alone.insert("$defs".into(), definitions.clone());
            }
            if let Err(says) = build(vocabulary, grammar_of(&alone), limits) {
                (message, node) = (says, child);
                match step {
                    Step::Down(step) => path.push_str(&step),
                    Step::Origin(origin) => path = origin.to_string(),
                }
                continue 'deeper;
            }
        }
        break;
    }
    let path = if path.is_empty() { "the root" } else { &path };
    Error::new(Status::SCHEMA, format!("schema, at {path}: {message}"))
}

enum Step {
    /// Appends to the path.
    Down(String),
    /// Is the path.
    Origin(Pointer),
}

/// The schemas directly in a lowered schema. Definitions are tried only from the root.
fn children<'v>(
    node: &'v Value,
    origins: &std::collections::BTreeMap<String, Pointer>,
) -> Vec<(Step, &'v Value)> {
    let Value::Object(keywords) = node else { return Vec::new() };
    let mut found = Vec::new();
    for (key, value) in keywords {
        match (key.as_str(), value) {
            ("$defs", Value::Object(all)) => {
                found.extend(all.iter().map(|(name, value)| {
                    (Step::Origin(origins.get(name).cloned().unwrap_or_default()), value)
                }))
            }
            ("properties" | "patternProperties", Value::Object(all)) => {
                found.extend(all.iter().map(|(name, value)| (Step::Down(format!("/{key}/{name}")), value)));
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems", Value::Array(all)) => {
                let step = |(index, value)| (Step::Down(format!("/{key}/{index}")), value);
                found.extend(all.iter().enumerate().map(step));
            }
            ("items" | "additionalProperties", value) => found.push((Step::Down(format!("/{key}")), value)),
            _ => {}
        }
    }
    // A schema that allows nothing is refused alone and harmless where it stands.
    found.retain(|(_, value)| value.is_object());
    found
}

fn check(cancel: Option<&Cancel>) -> Result<()> {
    cancel.map_or(Ok(()), Cancel::check)
}

fn check_size(text: &str, limits: &Limits, cancel: Option<&Cancel>) -> Result<()> {
    if text.len() > limits.text_bytes {
        return Err(Error::new(
            Status::BUDGET,
            format!("constraint: expected at most {} bytes of text, got {}", limits.text_bytes, text.len()),
        )
        .with("needed", text.len() as i64));
    }
    check(cancel)
}

/// Refuses brackets that nest deeper than `depth`.
fn check_brackets(grammar: &str, depth: usize) -> Result<()> {
    let (mut open, mut at) = (0usize, 0);
    while let Some(c) = grammar[at..].chars().next() {
        match c {
            '(' | '[' | '{' => {
                open += 1;
                if open > depth {
                    let what = format!("grammar: brackets nest deeper than {depth} at byte {at}");
                    return Err(Error::new(Status::BUDGET, what).with("offset", at as i64));
                }
            }
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        at += literal(&grammar[at..]).unwrap_or(c.len_utf8());
    }
    Ok(())
}

/// Length of what begins here if its brackets are none: a text, a pattern, a comment, a token by its name.
fn literal(rest: &str) -> Option<usize> {
    let line = || rest.find('\n').unwrap_or(rest.len());
    let quoted = |quote: u8| {
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|b| {
            let ends = b == quote && !escaped;
            escaped = b == b'\\' && !escaped;
            ends
        });
        end.map_or(rest.len(), |end| end + 2)
    };
    match rest.as_bytes() {
        [b'/', b'/', ..] | [b'#', ..] => Some(line()),
        [b'/', ..] => Some(quoted(b'/')),
        [b'"', ..] => Some(quoted(b'"')),
        [b'<', ..] => {
            let end = 1 + rest[1..].find(|c: char| c == '<' || c == '>' || c.is_whitespace())?;
            (end > 1 && rest[end..].starts_with('>')).then_some(end + 1)
        }
        _ => None,
    }
}

/// Runs `work` with a stack for deep recursion.
fn on_a_thread(work: impl FnOnce() -> Result<Constraint> + Send) -> Result<Constraint> {
    if cfg!(target_family = "wasm") {
        return work();
    }
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("llm-compile".to_owned()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, work).map_err(|e| {
            Error::new(
                Status::NO_MEMORY,
                format!("constraint: a thread to compile on could not be started: {e}"),
            )
        })?;
        thread.join().unwrap_or_else(|_| Err(Error::new(Status::INTERNAL, "constraint: compiling failed")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_texts_patterns_and_names_close_nothing() {
        for closed in ["\"}\"", "/}/", "/[}\\/}]/", "<}>", "\"\\\"}\""] {
            let grammar = format!("start: {}a", format!("a{{{closed},").repeat(101));
            let e = check_brackets(&grammar, 100).unwrap_err();
            assert_eq!(e.status(), Status::BUDGET, "{closed}");
        }
        for opened in ["\"(\" ", "/\\(/ ", "<(> ", "// (\n", "# (\n", "(\"a\") ", "<( ) "] {
            let grammar = format!("start: {}", opened.repeat(200));
            assert!(check_brackets(&grammar, 100).is_ok(), "{opened}");
        }
        assert!(check_brackets(&"(".repeat(100), 100).is_ok());
        assert_eq!(check_brackets(&"é(".repeat(101), 100).unwrap_err().detail("offset"), Some(302));
    }
}
