//! A whole run: steps, evaluations, checkpoints, early stopping, and what watches it.
//!
//! ```text
//! data/            what its texts became, where it is given texts   (text)
//! metrics.jsonl    a line per step and evaluation: the source of what follows
//! report.html      curves of it, for any browser, one file          (report)
//! events/          the same for TensorBoard                         (events)
//! ```

pub(crate) mod text;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};
use serde_json::{Value, json};

use crate::checkpoint;
use crate::config::Config;
use crate::data::{PrepareOptions, Prepared};
use crate::events::Events;
use crate::report;
use crate::trainer::{Evaluation, StepReport, Trainer};

/// What a run tells its caller.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run's texts become its data, with its tokenizer, if it has texts and not that data yet.
    Preparing(PrepareOptions),
    /// They have.
    Prepared(Prepared),
    /// The run begins, or continues at this step.
    Started {
        /// Steps done before.
        step: u64,
        /// Trained values.
        parameters: usize,
        /// Floating-point operations per second that [`StepReport::flops`] are measured against, see [`Trainer::peak`].
        peak: Option<f64>,
    },
    /// A step is done.
    Step(StepReport),
    /// The held-out text is being evaluated after this step: comes before every batch of it, and within long ones. `Break`
    /// ends the evaluation without a result.
    Evaluating(u64),
    /// The held-out text was evaluated after this step.
    Evaluated(u64, Evaluation),
    /// A checkpoint was written.
    Saved(PathBuf),
    /// The run ends: so many evaluations in a row were no better than the best.
    Stopped(u64),
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
    /// It ended because evaluations no longer became better.
    pub early: bool,
}

/// Trains as `config` says, continuing from the latest checkpoint in `config.out`. An evaluation that is the best so
/// far leaves a checkpoint, whatever `save_every` says. `watch` sees every event; `Break` ends the run after a last
/// checkpoint, which no evaluation holds up. Every step and evaluation is a line of `metrics.jsonl`.
///
/// # Errors
/// Those of [`Trainer`]'s functions, of preparing texts, and of writing metrics; `MISMATCH` where the texts are others than
/// before.
pub fn train(config: &Config, watch: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Summary> {
    let out = &config.out;
    fs::create_dir_all(out).map_err(|e| Error::from(e).context(out.display()))?;
    let _lock = lock(out)?;
    checkpoint::sweep(out)?;
    let config = &text::prepared(config, watch)?;
    let mut trainer = match checkpoint::list(out)?.last() {
        Some((dir, _)) => Trainer::resume(config, dir)?,
        None => Trainer::new(config)?,
    };
    for file in trainer.data().iter().flat_map(|d| [Some(&d.train), d.held_out.as_ref()]).flatten() {
        file.verify()?;
    }
    if config.patience > 0 && trainer.data().iter().all(|d| d.held_out.is_none()) {
        let message = format!("patience = {}: the data has no held-out text to evaluate", config.patience);
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let mut metrics = Metrics::open(out, trainer.steps_done())?;
    let mut summary = Summary {
        steps: trainer.steps_done(),
        loss: None,
        evaluation: None,
        checkpoint: out.join(checkpoint::name(trainer.steps_done())),
        early: false,
    };
    let peak = (trainer.steps_done() < config.steps).then(|| trainer.peak()).flatten();
    let started = Event::Started { step: trainer.steps_done(), parameters: trainer.parameters(), peak };
    let mut stop = watch(&started).is_break();
    // a run that ended by itself has ended: only with more patience does it go on
    if config.patience > 0 && metrics.since_best() >= config.patience {
        (summary.early, stop) = (true, true);
        let _ = watch(&Event::Stopped(metrics.since_best()));
    }
    let held_out = trainer.data().iter().any(|d| d.held_out.is_some());
    // a run that was stopped between its last step and the evaluation behind it makes up for that
    let mut owed = held_out && trainer.steps_done() == config.steps && trainer.held_out().is_none();
    while !stop && (owed || trainer.steps_done() < config.steps) {
        if !owed {
            let report = trainer.step()?;
            metrics.step(&report, peak)?;
            summary.loss = Some(report.loss);
            stop |= watch(&Event::Step(report)).is_break();
        }
        owed = false;
        let step = trainer.steps_done();
        let last = step == config.steps;
        let due = |every: u64| last || (every > 0 && step.is_multiple_of(every));
        let mut best = false;
        if !stop && due(config.eval_every) && held_out {
            let sequences = if last { 0 } else { config.eval_sequences };
            match trainer.evaluate_until(sequences, &mut || watch(&Event::Evaluating(step)))? {
                ControlFlow::Break(()) => stop = true,
                ControlFlow::Continue((evaluation, each)) => {
                    metrics.evaluation(step, &evaluation, &each, trainer.held_out())?;
                    best = metrics.since_best() == 0;
                    summary.evaluation = Some(evaluation);
                    stop |= watch(&Event::Evaluated(step, evaluation)).is_break();
                    if config.patience > 0 && !last && metrics.since_best() >= config.patience {
                        (summary.early, stop) = (true, true);
                        let _ = watch(&Event::Stopped(metrics.since_best()));
                    }
                }
            }
        }
        // a run that goes astray pushes out no checkpoint from before
        if stop || best || last || (due(config.save_every) && !trainer.is_off_course()) {
            summary.checkpoint = out.join(checkpoint::name(step));
            let lost = "the checkpoint was not written; the run goes on from the one before it with the same command";
            trainer.save(&summary.checkpoint).map_err(|e| e.context(lost))?;
            if !trainer.is_off_course() {
                checkpoint::prune(out, config.keep)?;
            }
            metrics.report(config)?;
            stop |= watch(&Event::Saved(summary.checkpoint.clone())).is_break();
        }
    }
    summary.steps = trainer.steps_done();
    Ok(summary)
}

/// Keeps the run's directory for this process as long as the file lives: two runs would take each other's unfinished
/// files away. The lock goes with the process, however it ends; its file stays.
fn lock(out: &Path) -> Result<fs::File> {
    let path = out.join(".lock");
    let here = |e: std::io::Error| Error::from(e).context(path.display());
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(here)?;
    match file.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            let message = format!(
                "{}: another run works in this directory; wait for its end or give another one as `out`",
                out.display()
            );
            Err(Error::new(Status::BUSY, message))
        }
        // Not every file system has locks; without them nothing is known.
        _ => Ok(file),
    }
}

/// The metrics file, a JSON object per line, and what is made of it.
struct Metrics {
    dir: PathBuf,
    file: fs::File,
    events: Events,
    /// Held-out losses so far, on what every evaluation sees.
    losses: Vec<f64>,
}

impl Metrics {
    /// Opens the files and drops the lines of steps that a resumed run does again.
    fn open(dir: &Path, step: u64) -> Result<Metrics> {
        let path = dir.join("metrics.jsonl");
        let here = |e: std::io::Error| Error::from(e).context(path.display());
        let old = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(here)?,
        };
        // what a crash left of a line is no text, perhaps
        let old = String::from_utf8_lossy(&old);
        let row = |line: &str| serde_json::from_str::<Value>(line).ok();
        let done = |line: &&str| row(line).and_then(|r| r.get("step")?.as_u64()).is_some_and(|s| s <= step);
        let kept: Vec<&str> = old.lines().filter(done).collect();
        let text: String = kept.iter().flat_map(|l| [l, "\n"]).collect();
        checkpoint::write_file(&path, text.as_bytes())?;
        let loss = |line: &&str| {
            let row = row(line)?;
            row.get("held_out_compared").or(row.get("held_out_nats_per_token"))?.as_f64()
        };
        let losses = kept.iter().filter_map(loss).collect();
        let file = OpenOptions::new().append(true).open(&path).map_err(here)?;
        Ok(Metrics { dir: dir.into(), file, events: Events::create(&dir.join("events"), step)?, losses })
    }

    fn line(&mut self, row: &Value) -> Result<()> {
        let here = |e: std::io::Error| Error::from(e).context(self.dir.join("metrics.jsonl").display());
        // in one piece, or not at all
        self.file.write_all(format!("{row}\n").as_bytes()).map_err(here)?;
        self.events.add(row)
    }

    /// `peak`: what `flops` are a share of.
    fn step(&mut self, r: &StepReport, peak: Option<f64>) -> Result<()> {
        let mut row = json!({"step": r.step, "loss": r.loss, "lr": r.lr, "grad_norm": r.grad_norm,
                             "tokens_per_second": r.tokens_per_second, "flops": r.flops});
        if let Some(peak) = peak {
            row["mfu"] = json!(r.flops / peak);
        }
        self.line(&row)
    }

    /// `compared`: the loss on what every evaluation of the run sees.
    fn evaluation(
        &mut self,
        step: u64,
        e: &Evaluation,
        each: &[(PathBuf, Evaluation)],
        compared: Option<f64>,
    ) -> Result<()> {
        let compared = compared.unwrap_or(e.nats_per_token);
        self.losses.push(compared);
        let mut row = json!({"step": step, "held_out_nats_per_token": e.nats_per_token,
                             "held_out_nats_per_byte": e.nats_per_byte, "held_out_tokens": e.tokens});
        if each.len() > 1 {
            let one = |(dir, e): &(PathBuf, Evaluation)| (dir.display().to_string(), json!(e.nats_per_token));
            row["held_out_of"] = Value::Object(each.iter().map(one).collect());
        }
        if compared != e.nats_per_token {
            row["held_out_compared"] = json!(compared);
        }
        self.line(&row)
    }

    /// Evaluations since the best.
    fn since_best(&self) -> u64 {
        let best = self.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let first = self.losses.iter().position(|l| *l == best).unwrap_or(0);
        self.losses.len().saturating_sub(first + 1) as u64
    }

    fn report(&self, config: &Config) -> Result<()> {
        let path = self.dir.join("metrics.jsonl");
        let rows = fs::read_to_string(&path).map_err(|e| Error::from(e).context(path.display()))?;
        checkpoint::write_file(&self.dir.join("report.html"), report::html(config, &rows).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_one_run_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        let refused = lock(dir.path()).unwrap_err();
        assert_eq!(refused.status(), Status::BUSY);
        assert!(refused.message().contains("another run"), "{}", refused.message());
        drop(first);
        lock(dir.path()).unwrap();
    }
}
