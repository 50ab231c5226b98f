//! `libllm`, the one command: the list of its verbs. Each verb is a file of `verbs/`; what it does lives in the
//! crate the verb belongs to (conversion in `llm-convert`, training in `llm-train`, the rest in `libllm`).
//!
//! Exit status: 0; 1 with one line on standard error that says what, where, expected, got and what to do; 2 for
//! wrong usage. Results go to standard output, progress to standard error.

#![forbid(unsafe_code)]
// `println!` and `eprintln!` panic when the reader is gone; `say!` and `note!` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod common;
mod progress;
mod speculate;
mod stop;
mod verbs;

use clap::{Parser, Subcommand};

/// Trains, converts, inspects and runs language models in one mapped file.
#[derive(Parser)]
#[command(name = "libllm", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Quickstart(verbs::quickstart::Args),
    Convert(verbs::convert::Args),
    Importance(verbs::importance::Args),
    Inspect(verbs::inspect::Args),
    Verify(verbs::verify::Args),
    Generate(Box<verbs::generate::Args>),
    Chat(verbs::chat::Args),
    Logits(verbs::logits::Args),
    Tokenize(verbs::tokenize::TokenizeArgs),
    Detokenize(verbs::tokenize::DetokenizeArgs),
    Perplexity(verbs::perplexity::Args),
    Score(verbs::score::Args),
    Embed(verbs::embed::Args),
    Bench(verbs::bench::Args),
    Train(verbs::train::Args),
    CreateConfig(verbs::create_config::Args),
    Merge(verbs::merge::Args),
    #[command(subcommand)]
    Data(verbs::data::Data),
    #[command(subcommand)]
    Tokenizer(verbs::tokenizer::Tokenizer),
}

fn main() -> std::process::ExitCode {
    let done = match Cli::parse().verb {
        Verb::Quickstart(args) => verbs::quickstart::run(&args),
        Verb::Convert(args) => verbs::convert::run(&args),
        Verb::Importance(args) => verbs::importance::run(&args),
        Verb::Inspect(args) => verbs::inspect::run(&args),
        Verb::Verify(args) => verbs::verify::run(&args),
        Verb::Generate(args) => verbs::generate::run(&args),
        Verb::Chat(args) => verbs::chat::run(&args),
        Verb::Logits(args) => verbs::logits::run(&args),
        Verb::Tokenize(args) => verbs::tokenize::tokenize(&args),
        Verb::Detokenize(args) => verbs::tokenize::detokenize(&args),
        Verb::Perplexity(args) => verbs::perplexity::run(&args),
        Verb::Score(args) => verbs::score::run(&args),
        Verb::Embed(args) => verbs::embed::run(&args),
        Verb::Bench(args) => verbs::bench::run(&args),
        Verb::Train(args) => verbs::train::run(&args),
        Verb::CreateConfig(args) => verbs::create_config::run(&args),
        Verb::Merge(args) => verbs::merge::run(&args),
        Verb::Data(verb) => verbs::data::run(&verb),
        Verb::Tokenizer(verb) => verbs::tokenizer::run(&verb),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        // A reader that closed the pipe has all it wanted.
        Err(error) if common::is_broken_pipe(&error) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            note!("libllm: {}", format!("{error:#}").replace('\n', " "));
            std::process::ExitCode::FAILURE
        }
    }
}
