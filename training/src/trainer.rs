//! A run: samples in a seeded order, steps, evaluation, checkpoints, metrics.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llm::error::{Error, Result, Status};
use llm::model::spec::Spec;
use serde_json::json;

use crate::checkpoint::{self, Contents, State};
use crate::config::Config;
use crate::data::{TokenFile, vocabulary_hash};
use crate::design::{ModelConfig, Position};
use crate::engine::{Engine, Input, RouterLosses, Want};
use crate::optim::{self, Optimizer};
use crate::params::Params;
use crate::random::permuted;
use crate::tape::Tape;

/// The data of a run: token files and the tokenizer that made them.
pub struct Data {
    /// Ids to train on.
    pub train: TokenFile,
    /// Ids kept apart.
    pub held_out: Option<TokenFile>,
    /// `tokenizer.json`, copied into checkpoints.
    pub tokenizer: Option<Vec<u8>>,
}

impl Data {
    /// Opens a directory that [`crate::data::prepare`] made.
    ///
    /// # Errors
    /// Those of [`TokenFile::open`]; `MISMATCH` if the files come from different tokenizers.
    pub fn open(dir: &Path) -> Result<Data> {
        let train = TokenFile::open(&dir.join("train.tokens"))?;
        let path = dir.join("held_out.tokens");
        let held_out = if path.exists() { Some(TokenFile::open(&path)?) } else { None };
        let tokenizer = fs::read(dir.join("tokenizer.json")).ok();
        let hash = train.vocabulary_hash();
        let others =
            [held_out.as_ref().map(TokenFile::vocabulary_hash), tokenizer.as_deref().map(vocabulary_hash)];
        if others.into_iter().flatten().any(|h| h != hash) {
            let message = format!("{}: token files and tokenizer.json do not belong together", dir.display());
            return Err(Error::new(Status::MISMATCH, message));
        }
        Ok(Data { train, held_out: held_out.filter(|f| f.tokens() > 1), tokenizer })
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean loss over the step's tokens, in nats, before the update.
    pub loss: f64,
    /// Learning rate of the update.
    pub lr: f32,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens per second of this step.
    pub tokens_per_second: f64,
}

/// Loss on held-out text.
#[derive(Clone, Copy, Debug)]
pub struct Evaluation {
    /// Nats per token.
    pub nats_per_token: f64,
    /// Nats per byte of text.
    pub nats_per_byte: f64,
    /// Tokens predicted.
    pub tokens: u64,
}

/// A model in training.
pub struct Trainer {
    config: Config,
    data: Data,
    params: Params,
    spec: Spec,
    engine: Engine,
    tape: Tape,
    eval_tape: Tape,
    weights: Vec<f32>,
    grads: Vec<f32>,
    optimizer: Optimizer,
    step: u64,
    sample: u64,
    held_out: Option<f64>,
}

impl Trainer {
    /// A new model on the data of `config.data`, at step 0.
    ///
    /// # Errors
    /// `INVALID_ARG` for a configuration that does not fit itself or the data; those of opening the data.
    pub fn new(config: &Config) -> Result<Trainer> {
        Trainer::with_data(config, Data::open(&config.data)?)
    }

    /// As [`Trainer::new`] on data that is already open.
    ///
    /// # Errors
    /// `INVALID_ARG` for a configuration that does not fit itself or the data.
    pub fn with_data(config: &Config, data: Data) -> Result<Trainer> {
        let mut config = config.clone();
        let (vocab, need) = (data.train.vocab(), config.model.context as u64 + 1);
        if config.model.vocab == 0 {
            config.model.vocab = vocab;
        }
        config.check()?;
        if config.model.vocab < vocab {
            let message = format!("model.vocab = {}: the data has {vocab} tokens", config.model.vocab);
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        if data.train.tokens() < need {
            let message = format!("{} ids to train on: a context needs at least {need}", data.train.tokens());
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let m = &config.model;
        let (arch, spec) = m.spec()?;
        let params = Params::new(arch, &spec, m.position == Position::Sinusoidal);
        let tape = |train| Tape::record(&spec, &params, (config.batch, m.context), train, m.dropout);
        let (train_tape, eval_tape) = (tape(true), tape(false));
        Ok(Trainer {
            engine: Engine::new(&spec, &params, config.threads, losses(m)),
            tape: train_tape,
            eval_tape,
            weights: params.init(config.seed, m.layers),
            grads: vec![0.0; params.total],
            optimizer: Optimizer::new(&config.optim, &params),
            params,
            spec,
            data,
            config,
            step: 0,
            sample: 0,
            held_out: None,
        })
    }

    /// Continues from the checkpoint `dir`. The model's shape must be that of `config`; the rest may differ.
    ///
    /// # Errors
    /// Those of [`Trainer::new`] and of reading the checkpoint; `MISMATCH` for another model or tokenizer.
    pub fn resume(config: &Config, dir: &Path) -> Result<Trainer> {
        let mut trainer = Trainer::new(config)?;
        let optimizer = Some((&trainer.params, &mut trainer.optimizer));
        let restored = checkpoint::load(dir, Some(&trainer.config.model), optimizer)?;
        if restored.state.vocabulary_hash != trainer.data.train.vocabulary_hash() {
            let message = format!("{}: was trained with another tokenizer than the data", dir.display());
            return Err(Error::new(Status::MISMATCH, message));
        }
        (trainer.step, trainer.sample) = (restored.state.step, restored.state.sample);
        trainer.held_out = restored.state.held_out;
        trainer.weights = restored.weights;
        Ok(trainer)
    }

    /// The configuration, its vocabulary filled in.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The data.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The number of trained values.
    pub fn parameters(&self) -> usize {
        self.params.count()
    }

    /// The weights, as one vector; for comparisons.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Tokens per step.
    pub fn tokens_per_step(&self) -> u64 {
        (self.tape.rows() * self.config.accumulate) as u64
    }

    /// Bytes of memory that the optimizer's state takes.
    pub fn optimizer_bytes(&self) -> usize {
        self.optimizer.bytes()
    }

    /// The learning rate of the update that ends step `step` (from 0).
    pub fn rate(&self, step: u64) -> f32 {
        optim::rate(&self.config.optim, self.config.steps, step)
    }

    /// One optimizer step: `accumulate` passes, clipping, the update.
    ///
    /// # Errors
    /// Those of reading data; `BAD_STATE` when the loss is no longer a number: the weights stay as they were.
    pub fn step(&mut self) -> Result<StepReport> {
        let start = Instant::now();
        let tokens = self.tokens_per_step();
        self.engine.dense.zero(&mut self.grads);
        let (mut loss, mut sample) = (0.0, self.sample);
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        for pass in 0..self.config.accumulate as u64 {
            self.next_batch(&mut sample, &mut ids, &mut targets)?;
            let want = Want::Gradient { scale: 1.0 / tokens as f32, grads: &mut self.grads };
            let key = (self.config.seed, self.step * self.config.accumulate as u64 + pass);
            let input = Input { ids: &ids, targets: &targets, starts: &[], key };
            loss += self.engine.run(&self.tape, &self.weights, &input, want);
        }
        let loss = loss / tokens as f64;
        let norm = self.engine.dense.sum_squares(&self.grads).sqrt();
        if !loss.is_finite() || !norm.is_finite() {
            let message =
                format!("step {}: loss {loss}, gradient norm {norm}; lower optim.rate", self.step + 1);
            return Err(Error::new(Status::BAD_STATE, message));
        }
        let lr = self.rate(self.step);
        self.update(lr, norm);
        self.step += 1;
        self.sample = sample;
        self.held_out = None;
        let tokens_per_second = tokens as f64 / start.elapsed().as_secs_f64();
        Ok(StepReport { step: self.step, loss, lr, grad_norm: norm, tokens_per_second })
    }

    /// The ids and next ids of the samples from `sample` on.
    fn next_batch(&self, sample: &mut u64, ids: &mut Vec<u32>, targets: &mut Vec<u32>) -> Result<()> {
        let length = self.config.model.context;
        let starts = self.data.train.tokens() - length as u64;
        let mut window = vec![0; length + 1];
        ids.clear();
        targets.clear();
        for _ in 0..self.config.batch {
            let at = permuted(self.config.seed, *sample / starts, *sample % starts, starts);
            self.data.train.read(at, &mut window)?;
            ids.extend_from_slice(&window[..length]);
            targets.extend_from_slice(&window[1..]);
            *sample += 1;
        }
        Ok(())
    }

    fn update(&mut self, rate: f32, norm: f64) {
        let o = &self.config.optim;
        let clip = f64::from(o.clip);
        let scale = if clip > 0.0 && norm > clip { (clip / norm) as f32 } else { 1.0 };
        let step = optim::Step { index: self.step, rate, scale, seed: self.config.seed };
        let dense = &mut self.engine.dense;
        self.optimizer.step(dense, o, &step, &self.params, &mut self.weights, &self.grads);
    }

    /// The loss on the first `sequences` windows (0: all) of the held-out ids, side by side without overlap.
    ///
    /// # Errors
    /// `NOT_FOUND` if the data has no held-out part; those of reading it.
    pub fn evaluate(&mut self, sequences: usize) -> Result<Evaluation> {
        let Some(file) = &self.data.held_out else {
            return Err(Error::new(
                Status::NOT_FOUND,
                "no held-out text: prepare the data with a share above 0",
            ));
        };
        let (batch, length) = (self.config.batch, self.config.model.context);
        let total = file.tokens() - 1;
        let windows = total.div_ceil(length as u64);
        let windows = if sequences == 0 { windows } else { windows.min(sequences as u64) };
        let (mut loss, mut tokens) = (0.0, 0u64);
        for first in (0..windows).step_by(batch) {
            // Places without text get a target that has no loss.
            let (mut ids, mut targets) = (vec![0; batch * length], vec![u32::MAX; batch * length]);
            for (i, w) in (first..windows.min(first + batch as u64)).enumerate() {
                let at = w * length as u64;
                let n = (total - at).min(length as u64) as usize;
                file.read(at, &mut ids[i * length..i * length + n])?;
                file.read(at + 1, &mut targets[i * length..i * length + n])?;
                tokens += n as u64;
            }
            let input = Input { ids: &ids, targets: &targets, starts: &[], key: (0, 0) };
            loss += self.engine.run(&self.eval_tape, &self.weights, &input, Want::Loss);
        }
        let nats_per_token = loss / tokens as f64;
        let nats_per_byte = nats_per_token * file.tokens() as f64 / file.bytes().max(1) as f64;
        self.held_out = Some(nats_per_token);
        Ok(Evaluation { nats_per_token, nats_per_byte, tokens })
    }

    /// The logits `[ids.len(), vocab]` of one sequence of at most the model's context.
    ///
    /// # Errors
    /// `INVALID_ARG` for an empty or too long sequence or an id beyond the vocabulary.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let m = &self.config.model;
        if ids.is_empty() || ids.len() > m.context || ids.iter().any(|id| *id as usize >= m.vocab) {
            let message = format!("{} ids: expected 1 to {}, each below {}", ids.len(), m.context, m.vocab);
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let tape = Tape::record(&self.spec, &self.params, (1, ids.len()), false, 0.0);
        let mut out = Vec::new();
        let targets = vec![u32::MAX; ids.len()];
        let input = Input { ids, targets: &targets, starts: &[], key: (0, 0) };
        self.engine.run(&tape, &self.weights, &input, Want::Logits(&mut out));
        Ok(out)
    }

    /// Writes a checkpoint to `dir`, which appears whole or not at all.
    ///
    /// # Errors
    /// `IO` and what else writing files brings.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let state = State {
            step: self.step,
            sample: self.sample,
            held_out: self.held_out,
            vocabulary_hash: self.data.train.vocabulary_hash(),
            config: self.config.clone(),
        };
        let contents = Contents {
            state: &state,
            params: &self.params,
            weights: &self.weights,
            optimizer: &self.optimizer,
            tokenizer: self.data.tokenizer.as_deref(),
        };
        checkpoint::save(dir, &contents)
    }
}

fn losses(m: &ModelConfig) -> RouterLosses {
    RouterLosses { balance: m.experts.balance, z: m.experts.z_loss }
}

/// What a run tells its caller.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run begins, or continues at this step.
    Started {
        /// Steps done before.
        step: u64,
        /// Trained values.
        parameters: usize,
    },
    /// A step is done.
    Step(StepReport),
    /// The held-out text was evaluated after this step.
    Evaluated(u64, Evaluation),
    /// A checkpoint was written.
    Saved(PathBuf),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// The last evaluation.
    pub evaluation: Option<Evaluation>,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}

/// Trains as `config` says, continuing from the latest checkpoint in `config.out`. `watch` sees every event; `Break`
/// ends the run after a last checkpoint. Every step and evaluation is a line of `metrics.jsonl`.
///
/// # Errors
/// Those of [`Trainer`]'s functions and of writing metrics.
pub fn train(config: &Config, watch: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Summary> {
    let out = &config.out;
    fs::create_dir_all(out).map_err(|e| Error::from(e).context(out.display()))?;
    checkpoint::sweep(out)?;
    let mut trainer = match checkpoint::list(out)?.last() {
        Some((dir, _)) => Trainer::resume(config, dir)?,
        None => Trainer::new(config)?,
    };
    let mut metrics = Metrics::open(&out.join("metrics.jsonl"), trainer.step)?;
    let mut summary = Summary {
        steps: trainer.step,
        loss: None,
        evaluation: None,
        checkpoint: out.join(checkpoint::name(trainer.step)),
    };
    let mut stop = watch(&Event::Started { step: trainer.step, parameters: trainer.parameters() }).is_break();
    while trainer.step < config.steps && !stop {
        let report = trainer.step()?;
        metrics.step(&report)?;
        summary.loss = Some(report.loss);
        stop |= watch(&Event::Step(report)).is_break();
        let last = trainer.step == config.steps || stop;
        let due = |every: u64| last || (every > 0 && trainer.step.is_multiple_of(every));
        let (evaluate, save) = (due(config.eval_every), due(config.save_every));
        if evaluate && trainer.data.held_out.is_some() {
            let evaluation = trainer.evaluate(if last { 0 } else { config.eval_sequences })?;
            metrics.evaluation(trainer.step, &evaluation)?;
            summary.evaluation = Some(evaluation);
            stop |= watch(&Event::Evaluated(trainer.step, evaluation)).is_break();
        }
        if save {
            summary.checkpoint = out.join(checkpoint::name(trainer.step));
            trainer.save(&summary.checkpoint)?;
            checkpoint::prune(out, config.keep)?;
            stop |= watch(&Event::Saved(summary.checkpoint.clone())).is_break();
        }
    }
    summary.steps = trainer.step;
    Ok(summary)
}

/// The metrics file: a JSON object per line.
struct Metrics(fs::File);

impl Metrics {
    /// Opens the file and drops the lines of steps that a resumed run does again.
    fn open(path: &Path, step: u64) -> Result<Metrics> {
        let old = fs::read_to_string(path).unwrap_or_default();
        let done = |line: &str| {
            let row: Option<serde_json::Value> = serde_json::from_str(line).ok();
            row.and_then(|r| r.get("step")?.as_u64()).is_some_and(|s| s <= step)
        };
        let kept: String = old.lines().filter(|l| done(l)).flat_map(|l| [l, "\n"]).collect();
        checkpoint::write_file(path, kept.as_bytes())?;
        Ok(Metrics(OpenOptions::new().append(true).open(path)?))
    }

    fn step(&mut self, r: &StepReport) -> Result<()> {
        let row = json!({"step": r.step, "loss": r.loss, "lr": r.lr, "grad_norm": r.grad_norm,
                         "tokens_per_second": r.tokens_per_second});
        Ok(writeln!(self.0, "{row}")?)
    }

    fn evaluation(&mut self, step: u64, e: &Evaluation) -> Result<()> {
        let row = json!({"step": step, "held_out_nats_per_token": e.nats_per_token,
                         "held_out_nats_per_byte": e.nats_per_byte, "held_out_tokens": e.tokens});
        Ok(writeln!(self.0, "{row}")?)
    }
}
