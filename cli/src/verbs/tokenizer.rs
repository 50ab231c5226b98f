//! `libllm tokenizer train`: a vocabulary from texts.

use std::path::PathBuf;

use anyhow::{Result, bail};
use llm_format::TempFile;
use llm_train::{Source, TokenizerKind, TokenizerOptions};

use crate::stop::AtOnce;

/// Make tokenizers
#[derive(clap::Subcommand)]
pub enum Tokenizer {
    Train(TrainArgs),
}

/// Train a vocabulary: byte-level BPE, or pieces as SentencePiece has them
#[derive(clap::Args)]
pub struct TrainArgs {
    /// Where the text is, as for `data prepare`
    #[arg(required = true)]
    inputs: Vec<String>,
    /// The tokenizer.json to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// How text is cut: BPE over bytes, or over characters in which a space is `▁` (`bpe`, `unigram`)
    #[arg(long, value_enum, default_value_t = Kind::ByteLevel)]
    kind: Kind,
    /// Share of the text's characters with a token of their own, the others are spelled in bytes; not of `byte-level`
    /// (0.9995 without it)
    #[arg(long)]
    coverage: Option<f64>,
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

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    ByteLevel,
    Bpe,
    Unigram,
}

/// Runs the verb.
pub fn run(verb: &Tokenizer) -> Result<()> {
    let Tokenizer::Train(args) = verb;
    llm_format::names_a_file(&args.out)?;
    if args.coverage.is_some() && matches!(args.kind, Kind::ByteLevel) {
        bail!(
            "--coverage: a vocabulary of the kind byte-level covers every text; leave it out, or give --kind"
        );
    }
    let defaults = TokenizerOptions::default();
    let options = TokenizerOptions {
        inputs: args.inputs.iter().map(|name| Source::parse(name)).collect::<Result<_, _>>()?,
        kind: match args.kind {
            Kind::ByteLevel => TokenizerKind::ByteLevel,
            Kind::Bpe => TokenizerKind::Bpe,
            Kind::Unigram => TokenizerKind::Unigram,
        },
        coverage: args.coverage.unwrap_or(defaults.coverage),
        field: args.field.clone(),
        vocab: args.size,
        special: args.special.clone(),
        output: args.out.clone(),
        ..defaults
    };
    let out = args.out.clone();
    let stop = AtOnce::begin(move || TempFile::unfinished(&out), "nothing was written");
    let size = llm_train::train_tokenizer(&options)?;
    drop(stop);
    say!("{}: {size} tokens", args.out.display())?;
    Ok(())
}
