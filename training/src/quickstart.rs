//! A whole run in a minute: text → vocabulary → token files → a small Llama model → checkpoint.
//!
//! The number of steps is fixed, so that the result is the same wherever it is made; only the time differs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llm::error::{Error, Result};

use crate::bpe::{Bpe, Words};
use crate::config::{Config, ModelConfig, OptimConfig};
use crate::data::{PrepareOptions, prepare};
use crate::trainer::{Evaluation, Event, Trainer};

/// The text that comes with the crate: Shakespeare, 1.1 MB (`quickstart/SOURCE.txt`).
pub const TEXT: &str = include_str!("../quickstart/tinyshakespeare.txt");

/// Steps of a quickstart.
pub const STEPS: u64 = 460;

/// Tokens of its vocabulary at most. Whole words as tokens are what a minute of training can learn to put in order:
/// with 1024 tokens the loss per byte is 0.1 higher and a fifth of the words are inventions.
const VOCAB: usize = 4096;

/// What a quickstart made.
#[derive(Clone, Debug)]
pub struct Report {
    /// Loss on the held-out tenth before the first step.
    pub before: Evaluation,
    /// Loss on the held-out tenth after the last.
    pub after: Evaluation,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Trained values.
    pub parameters: usize,
    /// Steps done.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training, without evaluation.
    pub seconds: f64,
    /// The checkpoint, a directory that the converter takes.
    pub checkpoint: PathBuf,
}

/// The configuration of a quickstart in `dir`.
pub fn config(dir: &Path) -> Config {
    Config {
        model: ModelConfig {
            layers: 4,
            heads: 4,
            kv_heads: 2,
            width: 256,
            ffn: 512,
            context: 128,
            ..ModelConfig::tiny()
        },
        optim: OptimConfig { rate: 2e-3, min_rate: 1e-4, warmup: 50, ..OptimConfig::default() },
        data: dir.join("data"),
        out: dir.join("run"),
        steps: STEPS,
        batch: 8,
        ..Config::default()
    }
}

/// Trains a vocabulary and a small model on `text` in `steps` steps ([`STEPS`] unless the caller tries
/// something); everything it makes lies in `dir`, the checkpoint in `dir/checkpoint`. `watch` sees every event;
/// `Break` ends the training early.
///
/// # Errors
/// Those of writing files; `INVALID_ARG` for a text too short to train on.
pub fn quickstart(
    text: &str,
    dir: &Path,
    steps: u64,
    watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
) -> Result<Report> {
    let source = dir.join("source.txt");
    std::fs::create_dir_all(dir).map_err(|e| Error::from(e).context(dir.display()))?;
    crate::checkpoint::write_file(&source, text.as_bytes())?;
    let config = Config { steps, ..config(dir) };
    let options = PrepareOptions {
        inputs: vec![source],
        tokenizer: dir.join("tokenizer.json"),
        output: config.data.clone(),
        ..Default::default()
    };
    // The vocabulary, too, sees nothing of the held-out part.
    let mut words = Words::default();
    let border = text.len() - (text.len() as f64 * options.held_out) as usize;
    words.count(&text[..text.floor_char_boundary(border)])?;
    let bpe = Bpe::train(&words, VOCAB, std::slice::from_ref(&options.end), 2)?;
    let vocab = bpe.size();
    crate::checkpoint::write_file(&options.tokenizer, bpe.to_json().to_string().as_bytes())?;
    prepare(&options)?;
    let mut trainer = Trainer::new(&config)?;
    let _ = watch(&Event::Started { step: 0, parameters: trainer.parameters() });
    let before = trainer.evaluate(0)?;
    let _ = watch(&Event::Evaluated(0, before));
    let start = Instant::now();
    while trainer.steps_done() < steps {
        if watch(&Event::Step(trainer.step()?)).is_break() {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = trainer.evaluate(0)?;
    let _ = watch(&Event::Evaluated(trainer.steps_done(), after));
    let checkpoint = dir.join("checkpoint");
    trainer.save(&checkpoint)?;
    let _ = watch(&Event::Saved(checkpoint.clone()));
    Ok(Report {
        before,
        after,
        vocab,
        parameters: trainer.parameters(),
        steps: trainer.steps_done(),
        tokens: trainer.steps_done() * trainer.tokens_per_step(),
        seconds,
        checkpoint,
    })
}
