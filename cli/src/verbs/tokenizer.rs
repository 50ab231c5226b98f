//! `libllm tokenizer train`: a byte-level BPE vocabulary from texts.

use std::path::PathBuf;

use anyhow::Result;
use llm_train::{Source, TokenizerOptions};

/// Make tokenizers
#[derive(clap::Subcommand)]
pub enum Tokenizer {
    Train(TrainArgs),
}

/// Train a byte-level BPE vocabulary
#[derive(clap::Args)]
pub struct TrainArgs {
    /// Where the text is, as for `data prepare`
    #[arg(required = true)]
    inputs: Vec<String>,
    /// The tokenizer.json to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Tokens in all
    #[arg(long, default_value_t = 8192)]
    size: usize,
    /// Special tokens; the first one ends documents
    #[arg(long, value_name = "TEXT", default_value = "<|endoftext|>")]
    special: Vec<String>,
    /// The string of a row that holds the text
    #[arg(long, default_value = "text")]
    field: String,
}

/// Runs the verb.
pub fn run(verb: &Tokenizer) -> Result<()> {
    let Tokenizer::Train(args) = verb;
    let options = TokenizerOptions {
        inputs: args.inputs.iter().map(|name| Source::parse(name)).collect::<Result<_, _>>()?,
        field: args.field.clone(),
        vocab: args.size,
        special: args.special.clone(),
        output: args.out.clone(),
        ..TokenizerOptions::default()
    };
    let size = llm_train::train_tokenizer(&options)?;
    say!("{}: {size} tokens", args.out.display())?;
    Ok(())
}
