//! `libllm train`: prepared data, or texts, become a checkpoint.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use llm_format::TempFile;
use llm_train::{Config, Event, PrepareOptions, StepReport};

use crate::common;
use crate::progress::Progress;
use crate::stop::{AtOnce, Writing};

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
    /// A text in place of prepared data, as `data prepare` takes it; may be given several times (the setting `text`).
    /// The run prepares it in its own directory, as DIR/data
    #[arg(long, conflicts_with = "data")]
    text: Vec<String>,
    /// The tokenizer.json for --text (the setting `tokenizer`). Without it one is trained on the text:
    /// DIR/tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
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
    if !args.text.is_empty() {
        config.text.clone_from(&args.text);
    }
    if let Some(tokenizer) = &args.tokenizer {
        config.tokenizer.clone_from(tokenizer);
    }
    if let Some(out) = &args.out {
        config.out.clone_from(out);
    }
    for setting in &args.settings {
        config.set(setting)?;
    }
    let others = [("mixture", config.mixture.is_empty()), ("text", config.text.is_empty())];
    if let Some((other, _)) = others.into_iter().find(|(_, empty)| args.data.is_some() && !empty) {
        bail!("--data and the setting `{other}` both name the data: give one of them");
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

/// What is told of a step, with its share of the `peak` of operations per second.
fn told(report: &StepReport, peak: Option<f64>) -> String {
    let (speed, work) = (report.tokens_per_second, report.flops / 1e9);
    let share = peak.map_or(String::new(), |peak| format!(" ({:.0} %)", 100.0 * report.flops / peak));
    format!("loss {:.4}  {speed:.0} tokens/s  {work:.1} GFLOP/s{share}", report.loss)
}

/// While it lives, Ctrl-C ends the process and takes away what is being made of the run's texts.
fn preparing(options: &PrepareOptions) -> AtOnce {
    let options = options.clone();
    let unfinished = move || [options.unfinished(), TempFile::unfinished(&options.tokenizer)].concat();
    AtOnce::begin(unfinished, "the text was being prepared; the same command goes on with that")
}

/// Trains with progress; Ctrl-C ends the run after a last checkpoint.
fn train(config: &Config, args: &Args) -> Result<()> {
    let cancel = crate::stop::on_ctrl_c();
    // A second Ctrl-C must not cut the checkpoint short.
    let _writing = Writing::begin();
    let progress = Progress::new("train", false);
    let (mut most, mut at_once) = (None, None);
    let summary = llm_train::train(config, &mut |event| {
        match event {
            Event::Preparing(options) => {
                note!("preparing the text, in {}", options.output.display());
                at_once = Some(preparing(options));
            }
            Event::Prepared(done) => {
                drop(at_once.take());
                let (train, held_out) = (done.train_tokens, done.held_out_tokens);
                note!("{train} tokens to train on, {held_out} held out, vocabulary of {}", done.vocab);
            }
            Event::Started { step, parameters, peak } => {
                progress.begin(*step);
                most = *peak;
                note!("{parameters} parameters, {step} of {} steps done", config.steps);
            }
            Event::Step(report) => progress.at(report.step, config.steps, &told(report, most)),
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
    fn a_step_is_told_with_its_loss_its_speed_and_its_share_of_what_the_machine_multiplies() {
        let report = StepReport {
            step: 7,
            loss: 2.345_67,
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_second: 1234.4,
            flops: 5.67e9,
        };
        assert_eq!(told(&report, None), "loss 2.3457  1234 tokens/s  5.7 GFLOP/s");
        assert_eq!(told(&report, Some(9e9)), "loss 2.3457  1234 tokens/s  5.7 GFLOP/s (63 %)");
    }
}
