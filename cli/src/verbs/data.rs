//! `libllm data prepare`: texts become mapped token files.

use std::path::PathBuf;

use anyhow::Result;
use llm_train::data::Earlier;
use llm_train::{PrepareOptions, Source};

use crate::stop::{AtOnce, Writing};

/// Prepare data for training
#[derive(clap::Subcommand)]
pub enum Data {
    Prepare(PrepareArgs),
}

/// Turn texts into token files
#[derive(clap::Args)]
pub struct PrepareArgs {
    /// Texts (a document each), .jsonl, .ndjson and .json (a document a line), .parquet (a document a row), .gz and .zst of
    /// all but the last; paths, http(s) addresses, hf://datasets/OWNER/NAME/PATH (NAME@REVISION for one of its revisions)
    #[arg(required = true)]
    inputs: Vec<String>,
    /// The tokenizer.json to use; it is copied beside the data
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// Directory that takes train.tokens, held_out.tokens and tokenizer.json
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Put files of the Hub into the Hub's cache first, instead of streaming them
    #[arg(long)]
    download: bool,
    /// The string of a row that holds the text
    #[arg(long, default_value = "text", conflicts_with = "chat")]
    field: String,
    /// The token of the tokenizer that ends every document, whatever it comes from; an empty text: documents follow each
    /// other directly. Without it <|endoftext|>, else the eos_token of tokenizer_config.json beside the tokenizer, else the
    /// first special token of a tokenizer that was trained here
    #[arg(long, value_name = "TOKEN", conflicts_with = "chat")]
    end: Option<String>,
    /// Rows of .jsonl are conversations, of which only the assistant's answers are learned: "messages" with "role" and
    /// "content" or with "from" and "value", "instruction" and "output", or "prompt" and "response"
    #[arg(long)]
    chat: bool,
    /// The chat template to render them with, instead of the one beside the tokenizer
    #[arg(long, value_name = "FILE", requires = "chat")]
    chat_template: Option<PathBuf>,
    /// Share of the text that is kept apart for evaluation
    #[arg(long, default_value_t = 0.1)]
    held_out: f64,
}

/// Runs the verb.
pub fn run(verb: &Data) -> Result<()> {
    let Data::Prepare(args) = verb;
    let inputs: Vec<Source> = args.inputs.iter().map(|name| Source::parse(name)).collect::<Result<_, _>>()?;
    if args.download {
        let _stop = AtOnce::begin(Vec::new, "what was fetched stays; the same command goes on behind it");
        inputs.iter().try_for_each(Source::download)?;
    }
    let options = PrepareOptions {
        inputs,
        field: args.field.clone(),
        tokenizer: args.tokenizer.clone(),
        output: args.out.clone(),
        held_out: args.held_out,
        end: args.end.clone(),
        chat: args.chat,
        template: args.chat_template.clone(),
    };
    let tokenized = {
        let asked = options.clone();
        let left = "no data is ready, what was there before is as it was; where much was done, the same command goes on";
        let _stop = AtOnce::begin(move || asked.unfinished(), left);
        llm_train::data::tokenize(&options, &mut |earlier| match earlier {
            Earlier::Continued(tokens) => note!("going on behind {tokens} tokens, where this was broken off"),
            Earlier::Replaced(reason) => note!("beginning anew what was broken off: {reason}"),
        })?
    };
    // A moment, in which files take each other's place: it comes to its end.
    let _writing = Writing::begin();
    let done = tokenized.settle()?;
    say!(
        "{}: {} tokens to train on, {} held out, vocabulary of {}",
        args.out.display(),
        done.train_tokens,
        done.held_out_tokens,
        done.vocab
    )?;
    if done.held_out_tokens == 0 && args.held_out > 0.0 {
        note!(
            "nothing is held out, so a run on this data is not evaluated: of rows, and of pieces of a packed text, every \
             {}th is, and there are fewer",
            (1.0 / args.held_out).ceil()
        );
    }
    Ok(())
}
