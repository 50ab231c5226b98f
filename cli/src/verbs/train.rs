//! `libllm train`: prepared data becomes a checkpoint.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use llm_train::{Config, Event, StepReport};

use crate::common;
use crate::progress::Progress;
use crate::stop::Writing;

/// Train a model from scratch, or continue a run
#[derive(clap::Args)]
pub struct Args {
    /// A starting point; `libllm create-config` lists them
    #[arg(long, value_name = "NAME", default_value = "small", conflicts_with = "config")]
    preset: String,
    /// A YAML or JSON file of settings; what it leaves out keeps its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of prepared data (the setting `data`)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Directory of the run (the setting `out`): checkpoints, metrics.jsonl. A run found there is continued
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in --out by its own settings, those of its last checkpoint; a directory without one is refused
    #[arg(long, conflicts_with_all = ["preset", "config"])]
    resume: bool,
    /// Single settings, such as model.layers=4 rate=1e-3 steps=500
    #[arg(value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Print the settings as JSON and end
    #[arg(long)]
    show_config: bool,
    /// After every checkpoint let libllm continue this text, and write the result to samples.jsonl
    #[arg(long, value_name = "TEXT")]
    sample: Option<String>,
    /// Tokens of a sample
    #[arg(long, value_name = "N", default_value_t = 100, requires = "sample")]
    sample_tokens: usize,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let mut config = match &args.config {
        _ if args.resume => settings_of_run(args)?,
        Some(file) => {
            let text = common::read_text(file)?;
            Config::from_text(&text).with_context(|| file.display().to_string())?
        }
        None => Config::preset(&args.preset)?,
    };
    if let Some(data) = &args.data {
        config.data.clone_from(data);
    }
    if let Some(out) = &args.out {
        config.out.clone_from(out);
    }
    for setting in &args.settings {
        config.set(setting)?;
    }
    if args.data.is_some() && !config.mixture.is_empty() {
        bail!("--data and the setting `mixture` both name the data: give one of them");
    }
    if args.show_config {
        say!("{}", config.to_json())?;
        return Ok(());
    }
    train(&config, args)
}

/// The settings of the last checkpoint of the run in the directory that the arguments name.
fn settings_of_run(args: &Args) -> Result<Config> {
    let mut named = Config::default();
    for setting in &args.settings {
        named.set(setting)?;
    }
    let out = args.out.clone().unwrap_or(named.out);
    let Some((_, state)) = llm_train::checkpoint::list(&out)?.pop() else {
        bail!("--resume: {}: no checkpoint of a run is there; without --resume one begins", out.display());
    };
    // The run may have been moved.
    Ok(Config { out, ..state.config })
}

/// What is told of a step.
fn told(report: &StepReport) -> String {
    let (speed, work) = (report.tokens_per_second, report.flops / 1e9);
    format!("loss {:.4}  {speed:.0} tokens/s  {work:.1} GFLOP/s", report.loss)
}

/// Trains with progress; Ctrl-C ends the run after a last checkpoint.
fn train(config: &Config, args: &Args) -> Result<()> {
    let cancel = crate::stop::on_ctrl_c();
    // A second Ctrl-C must not cut the checkpoint short.
    let _writing = Writing::begin();
    let progress = Progress::new("train", false);
    let summary = llm_train::train(config, &mut |event| {
        match event {
            Event::Started { step, parameters } => {
                progress.begin(*step);
                note!("{parameters} parameters, {step} of {} steps done", config.steps);
            }
            Event::Step(report) => progress.at(report.step, config.steps, &told(report)),
            // told so that a signal is seen
            Event::Evaluating(_) => {}
            Event::Evaluated(step, held_out) => progress.beside(|| {
                let (token, byte) = (held_out.nats_per_token, held_out.nats_per_byte);
                note!("step {step}: held-out loss {token:.4} nats per token, {byte:.4} per byte");
            }),
            Event::Saved(path) => progress.beside(|| {
                note!("saved {}", path.display());
                // who ends the run does not wait for one
                if let Some(prompt) = args.sample.as_deref().filter(|_| !cancel.is_set())
                    && let Err(error) =
                        super::sample::sample(config, path, (prompt, args.sample_tokens), &cancel)
                {
                    note!("no sample: {error:#}");
                }
            }),
            Event::Stopped(evaluations) => progress.beside(|| {
                note!("{evaluations} evaluations in a row are no better than the best: the run ends");
            }),
        }
        if cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    progress.end();
    // a run that was stopped before its first step has none
    if summary.checkpoint.exists() {
        say!("{}", summary.checkpoint.display())?;
    }
    if summary.steps < config.steps && !summary.early {
        bail!(
            "stopped after {} of {} steps; the same command goes on from there",
            summary.steps,
            config.steps
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_told_with_its_loss_and_its_speed() {
        let report = StepReport {
            step: 7,
            loss: 2.345_67,
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_second: 1234.4,
            flops: 5.67e9,
        };
        assert_eq!(told(&report), "loss 2.3457  1234 tokens/s  5.7 GFLOP/s");
    }
}
