//! `libllm train`: prepared data becomes a checkpoint.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use llm_train::{Config, Event};

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

/// Trains with progress; Ctrl-C ends the run after a last checkpoint.
fn train(config: &Config, args: &Args) -> Result<()> {
    let cancel = crate::stop::on_ctrl_c();
    // A second Ctrl-C must not cut the checkpoint short.
    let _writing = Writing::begin();
    let progress = Progress::new("train", false);
    let summary = llm_train::train(config, &mut |event| {
        match event {
            Event::Started { step, parameters } => {
                note!("{parameters} parameters, {step} of {} steps done", config.steps);
            }
            Event::Step(report) => {
                let (speed, work) = (report.tokens_per_second, report.flops / 1e9);
                let message = format!("loss {:.4}  {speed:.0} tokens/s  {work:.1} GFLOP/s", report.loss);
                progress.at(report.step, config.steps, &message);
            }
            Event::Evaluated(step, held_out) => note!(
                "step {step}: held-out loss {:.4} nats per token, {:.4} per byte",
                held_out.nats_per_token,
                held_out.nats_per_byte
            ),
            Event::Saved(path) => {
                note!("saved {}", path.display());
                if let Some(prompt) = &args.sample
                    && let Err(error) = super::sample::sample(config, path, prompt, args.sample_tokens)
                {
                    note!("no sample: {error:#}");
                }
            }
            Event::Stopped(evaluations) => {
                note!("{evaluations} evaluations in a row are no better than the best: the run ends");
            }
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
