//! A model in training: steps, evaluation, checkpoints.

mod course;
mod evaluate;
mod fit;

use std::path::{Path, PathBuf};
use std::time::Instant;

use llm::error::{Error, Result, Status};
use llm_kernels::dense::zeros;
use llm_kernels::peak::{self, Operands};

use crate::batches::{Batch, Sampler};
use crate::blueprint::Blueprint;
use crate::checkpoint::{self, Contents, Drawn, State};
use crate::config::{Config, OptimConfig, Precision};
use crate::corpus::{self, Data};
use crate::design::ModelConfig;
use crate::engine::{Adapter, Engine, Input, RouterLosses, Want};
use crate::layout::Files;
use crate::lora::{self, Lora};
use crate::memory;
use crate::optim::{self, Optimizer};
use crate::params::Params;
use crate::tape::{How, Tape};

use course::Course;

/// So many batches in a row without a token to learn end a run.
const BARREN: usize = 1000;

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
    /// Floating-point operations per second of this step.
    pub flops: f64,
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
    /// A directory for each part of the mixture.
    data: Vec<Data>,
    blueprint: Blueprint,
    /// The model's parameters.
    params: Params,
    engine: Engine,
    tape: Tape,
    eval_tape: Tape,
    /// The model's values; with an adapter they stay as they are.
    weights: Vec<f32>,
    /// Of what is trained: the model, or its adapter.
    grads: Vec<f32>,
    optimizer: Optimizer,
    sampler: Sampler,
    /// Tokens per sequence: of evaluations, and of steps where the curriculum does not say.
    length: usize,
    step: u64,
    /// Steps done when the optimizer's state was new.
    began: u64,
    sample: u64,
    /// Samples that came from each directory.
    drawn: Vec<u64>,
    held_out: Option<f64>,
    /// Of the steps since this process began.
    course: Course,
}

impl Trainer {
    /// A new model on the data of `config`, at step 0.
    ///
    /// # Errors
    /// `INVALID_ARG` for a configuration that does not fit itself or the data, `NO_MEMORY` for one that does not fit the
    /// machine, `MISMATCH` for data of another tokenizer than the checkpoint to begin from; those of opening the data.
    pub fn new(config: &Config) -> Result<Trainer> {
        Trainer::with_data(config, Data::open_all(config)?)
    }

    /// As [`Trainer::new`] on data that is already open: a directory for each part of the mixture, or one.
    ///
    /// # Errors
    /// `INVALID_ARG` for a configuration that does not fit itself or the data; those of reading the checkpoint and the
    /// adapter to begin from.
    pub fn with_data(config: &Config, data: Vec<Data>) -> Result<Trainer> {
        let mut trainer = Trainer::empty(config, data)?;
        let from = &trainer.config.from;
        if from.as_os_str().is_empty() {
            trainer.weights = trainer.params.init(trainer.config.seed, trainer.blueprint.spec.layers.len());
        } else {
            trainer.weights = Files::open(from)?.load(&trainer.params)?;
        }
        if let Some(adapter) = &mut trainer.engine.adapter
            && adapter.values.is_empty()
        {
            adapter.values = adapter.lora.init(trainer.config.seed);
        }
        Ok(trainer)
    }

    /// Everything but the values of the model.
    fn empty(config: &Config, data: Vec<Data>) -> Result<Trainer> {
        let mut config = config.clone();
        if data.len() != config.mixture.len().max(1) {
            let message = format!("{} directories of data: expected those of `mixture`, or one", data.len());
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let vocab = data.iter().map(|d| d.train.vocab()).max().unwrap_or(0);
        let new = config.from.as_os_str().is_empty();
        if new && config.model.vocab == 0 {
            config.model.vocab = vocab;
        }
        config.check()?;
        config.model.check_training()?;
        let blueprint = if new {
            Blueprint::of_design(&config.model)?.ended_like(&data)
        } else {
            Blueprint::of_checkpoint(&config.from)?
        };
        let spec = &blueprint.spec;
        let length = fit::length(&config, spec, &data)?;
        let mut params = blueprint.params();
        let adapter = if !config.adapter.as_os_str().is_empty() {
            let found = lora::read_config(&config.adapter)?;
            let (lora, values) = lora::read(&config.adapter, &found, &params)?;
            config.lora = lora::LoraConfig { dropout: config.lora.dropout, ..found };
            Some(Adapter { lora: Lora { config: config.lora.clone(), ..lora }, values })
        } else if config.lora.rank > 0 {
            Some(Adapter { lora: Lora::new(&config.lora, &params)?, values: Vec::new() })
        } else {
            blueprint.whole().map_err(|e| e.context(config.from.display()))?;
            None
        };
        if adapter.is_some() {
            params.freeze();
        }
        let trained = adapter.as_ref().map_or(&params, |a| &a.lora.params);
        let values = [("weights", params.total), ("gradients", trained.total)];
        memory::check(&values)?;
        let m = &config.model;
        let packed = data.iter().any(|d| d.train.masked());
        let losses = RouterLosses { balance: m.experts.balance, z: m.experts.z_loss };
        let tape = |how, length| Tape::record(spec, &params, (config.batch, length), how);
        let (train_tape, eval_tape) = (tape(training(&config), length), tape(evaluating(&config), length));
        // the largest pass is that of the longest stretch of the curriculum
        let longest = config.curriculum.iter().map(|p| p.length).fold(length, usize::max);
        let pass = if longest > length { tape(training(&config), longest).arena } else { train_tape.arena };
        let (grads, optimizer) = (zeros(trained.total), Optimizer::new(&config.optim, trained));
        // all of a step's tokens are read before its first pass: id, target, and where a document begins
        let tokens = config.batch.saturating_mul(longest).saturating_mul(config.accumulate).saturating_mul(3);
        let mut needs = values.to_vec();
        needs.extend([
            ("the optimizer", optimizer.bytes() / 4),
            ("a pass", pass.max(eval_tape.arena)),
            ("a step's tokens", tokens),
        ]);
        memory::check(&needs)?;
        let mut engine = Engine::new(spec, &params, config.threads, losses);
        engine.adapter = adapter;
        Ok(Trainer {
            engine,
            tape: train_tape,
            eval_tape,
            weights: Vec::new(),
            grads,
            optimizer,
            sampler: Sampler::new(config.seed, config.documents, data.len(), packed),
            drawn: vec![0; data.len()],
            params,
            blueprint,
            data,
            config,
            length,
            step: 0,
            began: 0,
            sample: 0,
            held_out: None,
            course: Course::default(),
        })
    }

    /// Continues from the checkpoint `dir`. The model's shape must be that of `config`; the rest may differ.
    ///
    /// # Errors
    /// Those of [`Trainer::new`] and of reading the checkpoint; `MISMATCH` for another model or tokenizer.
    pub fn resume(config: &Config, dir: &Path) -> Result<Trainer> {
        let mut trainer = Trainer::empty(config, Data::open_all(config)?)?;
        let dir = &checkpoint::place(dir)?;
        let state = checkpoint::state(dir)?;
        match &mut trainer.engine.adapter {
            Some(adapter) => {
                let (found, own) = (lora::read_config(dir)?, &adapter.lora.config);
                if found.change() != own.change() {
                    let message = format!(
                        "{}: holds an adapter of {}, the configuration asks for {}",
                        dir.display(),
                        found.change(),
                        own.change()
                    );
                    return Err(Error::new(Status::MISMATCH, message));
                }
                adapter.values = lora::read(dir, own, &trainer.params)?.1;
                trainer.weights = Files::open(&trainer.config.from)?.load(&trainer.params)?;
            }
            None => {
                let found = Blueprint::of_checkpoint(dir)?;
                if found.spec != trainer.blueprint.spec {
                    let tree = |m: &ModelConfig| serde_json::to_value(m).unwrap_or_default();
                    let (theirs, own) = (tree(&state.config.model), tree(&trainer.config.model));
                    let what = match corpus::difference(&theirs, &own, "model") {
                        Some((place, theirs, own)) => {
                            format!("{place} is {theirs} there, the configuration asks for {own}")
                        }
                        None => {
                            let (theirs, own) =
                                (&found.spec.architecture, &trainer.blueprint.spec.architecture);
                            format!("a {theirs} of another shape than the {own} of the configuration")
                        }
                    };
                    let message = format!("{}: holds another model: {what}", dir.display());
                    return Err(Error::new(Status::MISMATCH, message));
                }
                trainer.weights = Files::open(dir)?.load(&trainer.params)?;
            }
        }
        // two optimizers may keep states of the same names and sizes, as Lion and Muon do of an adapter
        let (theirs, own) = (&state.config.optim, &trainer.config.optim);
        if (theirs.kind, theirs.galore_rank) != (own.kind, own.galore_rank) {
            let say = |o: &OptimConfig| format!("{:?} with galore_rank = {}", o.kind, o.galore_rank);
            let message = format!(
                "{}: was trained by {}, the configuration asks for {}; the settings of `optim` that choose the \
                 optimizer must be those the run began with",
                dir.display(),
                say(theirs),
                say(own)
            );
            return Err(Error::new(Status::MISMATCH, message));
        }
        let trained = trainer.engine.adapter.as_ref().map_or(&trainer.params, |a| &a.lora.params);
        checkpoint::restore(dir, trained, &mut trainer.optimizer)?;
        if state.vocabulary_hash != trainer.vocabulary_hash() {
            let message = format!("{}: was trained with another tokenizer than the data", dir.display());
            return Err(Error::new(Status::MISMATCH, message));
        }
        trainer.drawn = state.drawn_from(&trainer.dirs());
        (trainer.step, trainer.began) = (state.step, state.began);
        (trainer.sample, trainer.held_out) = (state.sample, state.held_out);
        Ok(trainer)
    }

    /// The configuration, its vocabulary filled in.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The data, directory by directory.
    pub fn data(&self) -> &[Data] {
        &self.data
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.data.iter().map(|d| d.dir.clone()).collect()
    }

    fn vocabulary_hash(&self) -> u64 {
        self.data[0].train.vocabulary_hash()
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Nats per token of the windows that every evaluation of the run sees, where they were measured at this step:
    /// checkpoints are compared by it.
    pub fn held_out(&self) -> Option<f64> {
        self.held_out
    }

    /// The number of trained values.
    pub fn parameters(&self) -> usize {
        self.engine.adapter.as_ref().map_or(&self.params, |a| &a.lora.params).count()
    }

    /// The values of the model, trained or not.
    pub fn model_parameters(&self) -> usize {
        self.params.list.iter().map(crate::params::Param::len).sum()
    }

    /// What is trained, as one vector: the model, or its adapter; for comparisons.
    pub fn weights(&self) -> &[f32] {
        self.engine.adapter.as_ref().map_or(&self.weights, |a| &a.values)
    }

    /// Adds the adapter to the model, which from then on is trained whole; without an adapter nothing happens.
    pub fn merge(&mut self) {
        let Some(adapter) = self.engine.adapter.take() else { return };
        adapter.lora.merge(&mut self.engine.dense, &adapter.values, &self.params, &mut self.weights);
        self.config.lora = lora::LoraConfig::default();
        self.config.adapter.clear();
        self.params = self.blueprint.params();
        self.engine.set_params(&self.params);
        self.grads = zeros(self.params.total);
        self.optimizer = Optimizer::new(&self.config.optim, &self.params);
        self.began = self.step;
        self.course = Course::default();
    }

    /// Tokens per step, of the stage that the run is in.
    pub fn tokens_per_step(&self) -> u64 {
        (self.tape.rows() * self.config.accumulate) as u64
    }

    /// Floating-point operations per second of a loop on the run's threads that only multiplies, with operands as the
    /// run's products have them: the limit of [`StepReport::flops`]. It is measured in less than a tenth of a second;
    /// `None` where the instruction set has no such loop.
    pub fn peak(&self) -> Option<f64> {
        let dense = &self.engine.dense;
        let rate = |operands| peak::measure(dense.threads(), dense.isa(), operands);
        let rounded = (self.config.precision == Precision::Bf16).then(|| rate(Operands::Bf16)).flatten();
        // each with its addition
        Some(2.0 * rounded.or_else(|| rate(Operands::F32))?)
    }

    /// Whether the last step's loss or gradient norm was far above the usual; never with `divergence` 0.
    pub(crate) fn is_off_course(&self) -> bool {
        self.course.off > 0
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
    /// Those of reading data; `BAD_STATE` when the loss is no longer a number, with the layer that showed it first, or has
    /// been far above the usual for as many steps as `divergence` says: the weights stay as they were.
    pub fn step(&mut self) -> Result<StepReport> {
        let start = Instant::now();
        let (length, weights) = corpus::stage(&self.config, self.step);
        let length = length.unwrap_or(self.length);
        if length != self.tape.length {
            let shape = (self.config.batch, length);
            self.tape = Tape::record(&self.blueprint.spec, &self.params, shape, training(&self.config));
        }
        self.engine.dense.zero(&mut self.grads);
        self.engine.clear_loads();
        let (mut loss, mut sample, mut drawn) = (0.0, self.sample, self.drawn.clone());
        let (mut batches, mut learned, mut rounds) = (Vec::new(), 0, 0);
        let passes = self.config.accumulate as u64;
        // samples that were cut before an answer have nothing to learn: the next ones take their place
        while learned == 0 {
            if rounds == BARREN {
                let message = format!(
                    "step {}: no token of {BARREN} batches is learned: answers lie beyond {length} tokens; `length` \
                     must reach them",
                    self.step + 1
                );
                return Err(Error::new(Status::INVALID_ARG, message));
            }
            batches.clear();
            for _ in 0..passes {
                let mut batch = Batch::default();
                for _ in 0..self.config.batch {
                    let part = corpus::choose(self.config.seed, sample, &weights);
                    let file = (part, &self.data[part].train);
                    self.sampler.add(file, drawn[part], length, &mut batch)?;
                    (sample, drawn[part]) = (sample.wrapping_add(1), drawn[part].wrapping_add(1));
                }
                batches.push(batch);
            }
            // the mean is over what is learned in all passes together
            learned = batches.iter().map(Batch::learned).sum();
            rounds += 1;
        }
        for (pass, batch) in (0..).zip(&batches) {
            let want = Want::Gradient { scale: 1.0 / learned as f32, grads: &mut self.grads };
            let input = input(batch, (self.config.seed, self.step * passes + pass));
            loss += self.engine.run(&self.tape, &self.weights, &input, want);
        }
        let loss = loss / learned as f64;
        let norm = self.engine.dense.sum_squares(&self.grads).sqrt();
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.diverged(&batches, loss, norm));
        }
        if self.config.divergence > 0 {
            let uniform = self.uniform();
            self.course.take(loss, norm, uniform);
            if self.course.off >= self.config.divergence {
                return Err(self.lost(loss, norm));
            }
        }
        let lr = self.rate(self.step);
        self.update(lr, norm);
        self.step += 1;
        (self.sample, self.drawn) = (sample, drawn);
        self.held_out = None;
        let tokens_per_second = self.tokens_per_step() as f64 / start.elapsed().as_secs_f64();
        let adapted = self.engine.adapter.is_some();
        let flops = self.blueprint.flops(&self.params, length, adapted) * tokens_per_second;
        Ok(StepReport { step: self.step, loss, lr, grad_norm: norm, tokens_per_second, flops })
    }

    /// What went wrong first: a record of the forward pass, else the gradient nearest to the head.
    fn diverged(&mut self, batches: &[Batch], loss: f64, norm: f64) -> Error {
        let first = batches.iter().enumerate().find_map(|(pass, batch)| {
            let key = (self.config.seed, self.step * batches.len() as u64 + pass as u64);
            self.engine.fault(&self.tape, &self.weights, &input(batch, key))
        });
        let trained = self.engine.adapter.as_ref().map_or(&self.params, |a| &a.lora.params);
        let first = first.or_else(|| {
            let broken = |p: &&crate::params::Param| self.grads[p.range()].iter().any(|g| !g.is_finite());
            let name = trained.list.iter().rev().find(broken)?.describe();
            Some(format!("the gradient of {name} is the first that is no number"))
        });
        let first = first.unwrap_or_else(|| "every value is a number, their sum is not".into());
        let step = self.step + 1;
        Error::new(
            Status::BAD_STATE,
            format!("step {step}: loss {loss}, gradient norm {norm}: {first}; lower optim.rate"),
        )
    }

    fn update(&mut self, rate: f32, norm: f64) {
        let o = &self.config.optim;
        let clip = f64::from(o.clip);
        let scale = if clip > 0.0 && norm > clip { (clip / norm) as f32 } else { 1.0 };
        let index = self.step.saturating_sub(self.began);
        let step = optim::Step { index, rate, scale, seed: self.config.seed };
        let Engine { dense, adapter, .. } = &mut self.engine;
        let (params, values) = match adapter {
            Some(adapter) => (&adapter.lora.params, &mut adapter.values),
            None => (&self.params, &mut self.weights),
        };
        self.optimizer.step(dense, o, &step, params, values, &self.grads);
        if self.engine.adapter.is_none() {
            self.engine.correct_choices(self.config.model.experts.bias_rate, &mut self.weights);
        }
    }

    /// The logits `[ids.len(), vocab]` of one sequence of at most the model's context (dynamic NTK: of any length).
    ///
    /// # Errors
    /// `INVALID_ARG` for an empty or too long sequence or an id beyond the vocabulary.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let spec = &self.blueprint.spec;
        let (context, vocab) = (fit::context(spec), spec.vocab);
        if ids.is_empty() || ids.len() > context || ids.iter().any(|id| *id >= vocab) {
            let message = format!("{} ids: expected 1 to {context}, each below {vocab}", ids.len());
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let tape = Tape::record(spec, &self.params, (1, ids.len()), evaluating(&self.config));
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
        let drawn = self.dirs().into_iter().zip(&self.drawn);
        let drawn = drawn.map(|(data, samples)| Drawn { data, samples: *samples }).collect();
        let state = State {
            step: self.step,
            sample: self.sample,
            began: self.began,
            drawn,
            held_out: self.held_out,
            vocabulary_hash: self.vocabulary_hash(),
            config: self.config.clone(),
        };
        let contents = Contents {
            state: &state,
            blueprint: &self.blueprint,
            params: &self.params,
            weights: &self.weights,
            adapter: self.engine.adapter.as_ref(),
            optimizer: &self.optimizer,
            data: &self.data,
        };
        checkpoint::save(dir, &contents)
    }
}

/// The tape of a run's steps.
fn training(config: &Config) -> How {
    How { train: Some(config.recompute), dropout: config.model.dropout, precision: config.precision }
}

/// That of its evaluations.
fn evaluating(config: &Config) -> How {
    How { precision: config.precision, ..How::default() }
}

fn input(batch: &Batch, key: (u64, u64)) -> Input<'_> {
    Input { ids: &batch.ids, targets: &batch.targets, starts: &batch.starts, key }
}
