//! `libllm quickstart`: the whole way once, small: text, tokenizer, training, checkpoint, conversion, mapping,
//! generation. It prints the command that each step stands for.

use std::collections::HashSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::{Session, SessionOptions};
use llm::tokenizer::EncodeOptions;
use llm_format::quant::Type;
use llm_train::{Event, quickstart};

use crate::common;
use crate::progress::Progress;

/// Train, convert, map and run a small model
#[derive(clap::Args)]
pub struct Args {
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value = "libllm-quickstart")]
    dir: PathBuf,
    /// Steps of training; fewer make a poorer model sooner
    #[arg(long, value_name = "N", default_value_t = quickstart::STEPS, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
}

const PROMPT: &str = "ROMEO:";
const SAMPLE_TOKENS: usize = 300;
const TEMPERATURE: f32 = 0.7;
const SEED: u64 = 1;

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let at = |name: &str| common::shell_word(&args.dir.join(name));
    let (source, tokenizer, data) = (at("source.txt"), at("tokenizer.json"), at("data"));
    step(
        1,
        &[
            format!("libllm tokenizer train {} -o {tokenizer} --size {}", at("train.txt"), quickstart::VOCAB),
            format!("libllm data prepare {source} --tokenizer {tokenizer} -o {data}"),
            format!("libllm train --config {}", at("config.json")),
        ],
    )?;
    let trained = train(&args.dir, args.steps)?;
    say!(
        "   {} parameters, {} tokens in {:.0} s, {:.0} tokens/s",
        trained.parameters,
        trained.tokens,
        trained.seconds,
        trained.tokens as f64 / trained.seconds.max(1e-9)
    )?;
    say!(
        "   loss on the held-out tenth: {:.3} nats per byte before, {:.3} after",
        trained.before.nats_per_byte,
        trained.after.nats_per_byte
    )?;

    let types = [Type::F32, Type::Bf16, Type::Q8, Type::Q4];
    let file = |ty: Type| args.dir.join(format!("model-{}.llm", ty.name()));
    let checkpoint = common::shell_word(&trained.checkpoint);
    let command = |ty: Type| {
        format!("libllm convert {checkpoint} -o {} --type {}", common::shell_word(&file(ty)), ty.name())
    };
    step(2, &types.map(command))?;
    for ty in types {
        let options = llm_convert::Options { ty, ..llm_convert::Options::default() };
        say!("   {}", super::convert::convert(&trained.checkpoint, &file(ty), &options)?)?;
    }

    let q4 = file(Type::Q4);
    step(
        3,
        &[format!(
            "libllm generate -m {} -p '{PROMPT}' -n {SAMPLE_TOKENS} --temperature {TEMPERATURE} --seed {SEED}",
            common::shell_word(&q4)
        )],
    )?;
    let sample = generate(&q4)?;
    say!(
        "   words of four letters and more that occur in the source: {:.0} %",
        known_words(&sample) * 100.0
    )?;
    say!("\n{:.0} s in all. The same file from C: see examples/c/hello.c.", started.elapsed().as_secs_f64())?;
    Ok(())
}

fn train(dir: &Path, steps: u64) -> Result<quickstart::Report> {
    let cancel = crate::stop::on_ctrl_c();
    let progress = Progress::new("train", false);
    let report = quickstart::quickstart(quickstart::TEXT, dir, steps, &mut |event| {
        if let Event::Step(step) = event {
            progress.at(step.step, steps, &format!("loss {:.3}", step.loss));
        }
        if cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    progress.end();
    if report.steps < steps {
        bail!("stopped after {} of {steps} steps", report.steps);
    }
    Ok(report)
}

fn step(number: usize, commands: &[String]) -> Result<()> {
    say!("\n{number}. {}", commands.join("\n   "))
}

/// Writes a sample to standard output and returns it.
fn generate(path: &Path) -> Result<String> {
    let opened = Instant::now();
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let model = Model::open_path(&runtime, path, &OpenOptions::default(), None)?;
    let tokenizer = model.tokenizer()?.clone();
    let ids = tokenizer.encode(PROMPT, EncodeOptions { add_special: true, parse_special: false })?;
    let options = SessionOptions { max_tokens: ids.len() + SAMPLE_TOKENS, ..SessionOptions::default() };
    let mut session = Session::new(&model, options)?;
    let mut sampler =
        Sampler::new(&SamplingParams { temperature: TEMPERATURE, seed: SEED, ..SamplingParams::default() })?;
    session.prefill(&ids, None, None)?;
    sampler.accept_prompt(&ids)?;
    let options = GenerationOptions { max_tokens: SAMPLE_TOKENS, ..GenerationOptions::default() };
    let mut generation = Generation::new(Some(tokenizer), options)?;
    let first = opened.elapsed();
    let (mut text, mut count, began) = (String::new(), 0, Instant::now());
    let mut out = std::io::stdout().lock();
    write!(out, "\n{PROMPT}")?;
    loop {
        let event = generation.next(&mut session, &mut sampler, None)?;
        count += event.ids.len();
        text.push_str(&event.text);
        write!(out, "{}", event.text)?;
        out.flush()?;
        if event.kind == Kind::Done {
            break;
        }
    }
    let speed = count as f64 / began.elapsed().as_secs_f64();
    writeln!(
        out,
        "\n\n   mapped and ready in {:.1} ms, then {speed:.0} tokens/s",
        first.as_secs_f64() * 1e3
    )?;
    Ok(text)
}

/// The share of a text's words of four letters and more that the source has too.
fn known_words(text: &str) -> f64 {
    let words = |text: &'static str| text.split(|c: char| !c.is_alphabetic()).map(str::to_lowercase);
    let source: HashSet<String> = words(quickstart::TEXT).collect();
    let long = text.split(|c: char| !c.is_alphabetic()).filter(|word| word.chars().count() >= 4);
    let (mut known, mut all) = (0usize, 0usize);
    for word in long {
        all += 1;
        known += usize::from(source.contains(&word.to_lowercase()));
    }
    known as f64 / all.max(1) as f64
}
