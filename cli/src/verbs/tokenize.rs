//! `libllm tokenize` and `detokenize`: one JSON value a line in, one a line out.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use llm::mmap::Bytes;
use llm::tokenizer::Tokenizer;

use crate::common;

/// Where the tokenizer comes from.
#[derive(clap::Args)]
// The group that clap makes of a struct would take in all of its fields.
#[group(skip)]
pub struct Source {
    /// The .llm file
    #[arg(short, long, value_name = "FILE", required_unless_present = "tokenizer")]
    model: Option<PathBuf>,
    /// A tokenizer.json, SentencePiece .model or tiktoken file, or a directory with vocab.json and merges.txt
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    tokenizer: Option<PathBuf>,
    /// Split pattern where the tokenizer's files carry none: llama3, qwen2, cl100k, gpt2 or a regular expression
    #[arg(long, value_name = "PATTERN", requires = "tokenizer")]
    pattern: Option<String>,
    /// Lines of JSON in and out (the one form there is)
    #[arg(long)]
    jsonl: bool,
}

/// Turn texts into ids: a JSON string a line in, a JSON array a line out
#[derive(clap::Args)]
pub struct TokenizeArgs {
    #[command(flatten)]
    source: Source,
    /// Add no special token, and take those in the text as text where the tokenizer's maker does
    #[arg(long)]
    no_special: bool,
}

/// Turn ids into texts: a JSON array a line in, a JSON string a line out
#[derive(clap::Args)]
pub struct DetokenizeArgs {
    #[command(flatten)]
    source: Source,
    /// Leave special tokens out of the text
    #[arg(long)]
    skip_special: bool,
}

/// Runs `tokenize`.
pub fn tokenize(args: &TokenizeArgs) -> Result<()> {
    let tokenizer = args.source.open()?;
    let options = tokenizer.options(!args.no_special);
    each_line(|line| {
        let text: String = serde_json::from_str(line).context("expected a JSON string")?;
        Ok(serde_json::to_string(&tokenizer.encode(&text, options)?)?)
    })
}

/// Runs `detokenize`.
pub fn detokenize(args: &DetokenizeArgs) -> Result<()> {
    let tokenizer = args.source.open()?;
    each_line(|line| {
        let ids: Vec<i32> = serde_json::from_str(line).context("expected a JSON array of ids")?;
        Ok(serde_json::to_string(&tokenizer.decode_text(&ids, args.skip_special)?)?)
    })
}

impl Source {
    fn open(&self) -> Result<std::sync::Arc<Tokenizer>> {
        if let Some(model) = &self.model {
            return Ok(common::open(model, 1)?.tokenizer()?.clone());
        }
        let Some(file) = &self.tokenizer else { anyhow::bail!("give -m FILE or --tokenizer FILE") };
        let pattern = self.pattern.as_deref();
        let built = if file.is_dir() {
            llm_convert::tokenizer::load_dir(file, pattern)?
                .with_context(|| format!("{}: no tokenizer file in this directory", file.display()))?
        } else {
            llm_convert::tokenizer::load_file(file, pattern)?
        };
        Ok(std::sync::Arc::new(Tokenizer::from_tables(Bytes::from(built.tables))?))
    }
}

/// Answers each line of standard input (split at line feeds only) with a line.
fn each_line(mut answer: impl FnMut(&str) -> Result<String>) -> Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut input = std::io::BufReader::new(std::io::stdin().lock());
    let (mut line, mut number) = (Vec::new(), 0usize);
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).context("standard input")? == 0 {
            break;
        }
        number += 1;
        let text = std::str::from_utf8(&line).with_context(|| format!("line {number}: expected UTF-8"))?;
        if text.trim().is_empty() {
            continue;
        }
        let answered = answer(text).with_context(|| format!("line {number}"))?;
        writeln!(out, "{answered}")?;
        // Whoever waits for this answer before asking on must get it now.
        if input.buffer().is_empty() {
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(())
}
