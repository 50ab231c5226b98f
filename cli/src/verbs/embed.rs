//! `libllm embed`: a vector for each text.

use std::path::PathBuf;

use anyhow::{Result, bail};
use llm::session::Pooling;
use llm::tokenizer::EncodeOptions;

use crate::common::{self, ModelArgs};

/// Make a vector of each text
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A text (may be given several times)
    #[arg(short, long, value_name = "TEXT", required_unless_present = "file")]
    prompt: Vec<String>,
    /// UTF-8 file with a text on each line (`-`: standard input)
    #[arg(long, value_name = "LINES", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// The mean of the hidden states of all tokens, or that of the last or the first one
    #[arg(long, default_value = "mean", value_parser = ["mean", "last", "first"])]
    pooling: String,
    /// Leave the vectors as long as they are (else of length 1)
    #[arg(long)]
    raw: bool,
}

/// Runs the verb: one JSON array per text.
pub fn run(args: &Args) -> Result<()> {
    let model = args.model.open()?;
    let texts = match &args.file {
        Some(file) => common::read_text(file)?.lines().map(str::to_owned).collect(),
        None => args.prompt.clone(),
    };
    let pooling = match args.pooling.as_str() {
        "last" => Pooling::Last,
        "first" => Pooling::First,
        _ => Pooling::Mean,
    };
    let mut all = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let ids =
            model.tokenizer()?.encode(text, EncodeOptions { add_special: true, parse_special: false })?;
        if ids.is_empty() {
            bail!("text {}: expected at least one token, got an empty text", i + 1);
        }
        all.push(ids);
    }
    let longest = all.iter().map(Vec::len).max().unwrap_or(1);
    let mut session = args.model.session(&model, longest)?;
    let cancel = crate::stop::on_ctrl_c();
    for ids in &all {
        session.reset();
        let vector = session.embed(ids, pooling, !args.raw, Some(&cancel), None)?;
        say!("{}", serde_json::to_string(&vector)?)?;
    }
    Ok(())
}
