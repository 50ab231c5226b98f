//! A whole run in a minute: text → vocabulary → token files → a small Llama model → checkpoint.
//!
//! It calls what the commands `tokenizer train`, `data prepare` and `train` call, on files that it writes for them:
//! who gives the commands by hand gets the same checkpoint. The number of steps is fixed, so the result is the same
//! wherever it is made; only the time differs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llm::error::{Error, Result, Status};

use crate::bpe::{TokenizerOptions, train_tokenizer};
use crate::checkpoint;
use crate::config::{Config, OptimConfig};
use crate::data::{PrepareOptions, prepare};
use crate::design::ModelConfig;
use crate::run::{Event, train};
use crate::trainer::{Evaluation, Trainer};

/// The text that comes with the crate: Shakespeare, 1.1 MB (`quickstart/SOURCE.txt`).
pub const TEXT: &str = include_str!("../quickstart/tinyshakespeare.txt");

/// Steps of a quickstart.
pub const STEPS: u64 = 460;

/// Tokens of its vocabulary at most. Whole words as tokens are what a minute of training can learn to put in order:
/// with 1024 tokens the loss per byte is 0.1 higher and a fifth of the words are inventions.
pub const VOCAB: usize = 4096;

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

/// The configuration of a quickstart of `steps` steps in `dir`: that of `config.json` there.
pub fn config(dir: &Path, steps: u64) -> Config {
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
        steps,
        batch: 8,
        ..Config::default()
    }
}

/// Trains a vocabulary and a small model on `text` in `steps` steps ([`STEPS`] unless the caller tries something).
///
/// `dir` takes `source.txt`, its first nine tenths as `train.txt`, `tokenizer.json`, `data`, `config.json` and `run`
/// with the checkpoint. It always begins anew. `watch` sees every event; `Break` ends the training early.
///
/// # Errors
/// Those of writing files; `INVALID_ARG` for a text too short to train on, `BAD_STATE` where `dir/run` holds
/// checkpoints of another run, `CANCELLED` if it was ended before the first step.
pub fn quickstart(
    text: &str,
    dir: &Path,
    steps: u64,
    watch: &mut dyn FnMut(&Event) -> ControlFlow<()>,
) -> Result<Report> {
    std::fs::create_dir_all(dir).map_err(|e| Error::from(e).context(dir.display()))?;
    let config = config(dir, steps);
    clear(&config)?;
    let (source, seen) = (dir.join("source.txt"), dir.join("train.txt"));
    let options = PrepareOptions {
        inputs: vec![source.clone().into()],
        tokenizer: dir.join("tokenizer.json"),
        output: config.data.clone(),
        ..Default::default()
    };
    // The vocabulary, too, sees nothing of the held-out part.
    let border = text.len() - (text.len() as f64 * options.held_out) as usize;
    checkpoint::write_file(&source, text.as_bytes())?;
    checkpoint::write_file(&seen, &text.as_bytes()[..text.ceil_char_boundary(border)])?;
    checkpoint::write_file(&dir.join("config.json"), config.to_json().as_bytes())?;
    let vocab = train_tokenizer(&TokenizerOptions {
        inputs: vec![seen.into()],
        vocab: VOCAB,
        output: options.tokenizer.clone(),
        ..Default::default()
    })?;
    prepare(&options)?;

    let mut untrained = Trainer::new(&config)?;
    let before = untrained.evaluate(0)?;
    let (parameters, per_step) = (untrained.parameters(), untrained.tokens_per_step());
    drop(untrained);
    let _ = watch(&Event::Evaluated(0, before));
    let (mut seconds, mut last, mut after) = (0.0, Instant::now(), None);
    let done = train(&config, &mut |event| {
        match event {
            Event::Step(_) => seconds += last.elapsed().as_secs_f64(),
            Event::Evaluated(step, evaluation) if *step == config.steps => after = Some(*evaluation),
            _ => {}
        }
        last = Instant::now();
        watch(event)
    })?;
    if done.steps == 0 {
        let message = format!("stopped before the first of {steps} steps");
        return Err(Error::new(Status::CANCELLED, message));
    }
    let after = match after {
        Some(evaluation) => evaluation,
        // it was ended early, without one
        None => Trainer::resume(&config, &done.checkpoint)?.evaluate(0)?,
    };
    Ok(Report {
        before,
        after,
        vocab,
        parameters,
        steps: done.steps,
        tokens: done.steps * per_step,
        seconds,
        checkpoint: done.checkpoint,
    })
}

/// Removes the checkpoints that an earlier quickstart left, so that the run begins anew; anyone else's stay.
fn clear(config: &Config) -> Result<()> {
    for (path, state) in checkpoint::list(&config.out)? {
        let mut theirs = state.config;
        theirs.model.vocab = config.model.vocab;
        if theirs != *config {
            let message = format!(
                "{}: a checkpoint of another run; choose a directory for the quickstart",
                path.display()
            );
            return Err(Error::new(Status::BAD_STATE, message));
        }
        checkpoint::remove(&path)?;
    }
    Ok(())
}
