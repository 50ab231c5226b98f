//! `libllm data prepare`: texts become mapped token files.

use std::path::PathBuf;

use anyhow::Result;
use llm_train::PrepareOptions;

/// Prepare data for training
#[derive(clap::Subcommand)]
pub enum Data {
    Prepare(PrepareArgs),
}

/// Turn texts into token files
#[derive(clap::Args)]
pub struct PrepareArgs {
    /// Text files (a document each) and .jsonl files (a document a line)
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The tokenizer.json to use; it is copied beside the data
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// Directory that takes train.tokens, held_out.tokens and tokenizer.json
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// The string of a .jsonl line that holds the text
    #[arg(long, default_value = "text")]
    field: String,
    /// Share of the text that is kept apart for evaluation
    #[arg(long, default_value_t = 0.1)]
    held_out: f64,
}

/// Runs the verb.
pub fn run(verb: &Data) -> Result<()> {
    let Data::Prepare(args) = verb;
    let options = PrepareOptions {
        inputs: args.inputs.clone(),
        field: args.field.clone(),
        tokenizer: args.tokenizer.clone(),
        output: args.out.clone(),
        held_out: args.held_out,
        ..PrepareOptions::default()
    };
    let done = llm_train::prepare(&options)?;
    say!(
        "{}: {} tokens to train on, {} held out, vocabulary of {}",
        args.out.display(),
        done.train_tokens,
        done.held_out_tokens,
        done.vocab
    )?;
    Ok(())
}
