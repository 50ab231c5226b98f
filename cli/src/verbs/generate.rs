//! `libllm generate`: continues a text or a list of ids.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use llm::constraint::{Constraint, Limits};
use llm::model::Model;
use llm::sampler::Sampler;
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::speculative::Speculation;
use llm::session::{Overflow, Session};
use llm::tokenizer::EncodeOptions;

use super::several;
use crate::common::{self, ModelArgs, SamplingArgs};
use crate::speculate::{self, SpecArgs};

/// Continue a text
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue
    #[arg(short, long, value_name = "TEXT", required_unless_present = "tokens_file")]
    prompt: Option<String>,
    /// JSON array of ids in place of a text
    #[arg(long, value_name = "IDS.json", conflicts_with = "prompt")]
    tokens_file: Option<PathBuf>,
    /// Tokens to generate at most (0: as many as the context has room for)
    #[arg(short = 'n', long, default_value_t = 128)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    constraint: ConstraintArgs,
    #[command(flatten)]
    speculation: SpecArgs,
    /// Filters in this order, with their values: "penalties=1.1;top_k=40;temperature=0.8;mirostat=5"
    #[arg(long, value_name = "CHAIN")]
    chain: Option<String>,
    /// End where this text would appear (may be given several times)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Continue the text so many times, with the seed and those that follow it, computed together
    #[arg(long, default_value_t = 1, value_parser = common::positive)]
    count: usize,
    /// Go on past the end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// When the text outgrows --context: error, or keep its head and its newest tokens, which recompute runs through
    /// the model again and shift moves, faster and approximately
    #[arg(long, default_value = "error", value_parser = ["error", "recompute", "shift"])]
    overflow: String,
    /// Tokens at the beginning that --overflow keeps
    #[arg(long, value_name = "N", default_value_t = 0, requires = "overflow")]
    keep: usize,
    /// One JSON object at the end in place of the text: ids, text, reason, timings, what guessing did
    #[arg(long)]
    json: bool,
}

/// What the text must follow.
#[derive(clap::Args)]
#[group(multiple = false)]
struct ConstraintArgs {
    /// Write JSON that is valid under the JSON schema in this file
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Write a text that matches this regular expression
    #[arg(long, value_name = "PATTERN")]
    regex: Option<String>,
    /// Write a text that follows the Lark grammar in this file
    #[arg(long, value_name = "FILE")]
    lark: Option<PathBuf>,
    /// Write one of the texts given so
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
}

impl ConstraintArgs {
    /// The constraint, if one is asked for.
    fn compile(&self, model: &Model) -> Result<Option<Constraint>> {
        let limits = Limits::default();
        let tokenizer = || model.tokenizer();
        Ok(Some(if let Some(file) = &self.schema {
            Constraint::json_schema(tokenizer()?, &common::read_text(file)?, &limits, None)?
        } else if let Some(pattern) = &self.regex {
            Constraint::regex(tokenizer()?, pattern, &limits, None)?
        } else if let Some(file) = &self.lark {
            Constraint::lark(tokenizer()?, &common::read_text(file)?, &limits, None)?
        } else if !self.choice.is_empty() {
            let texts: Vec<&str> = self.choice.iter().map(String::as_str).collect();
            Constraint::choice(tokenizer()?, &texts, &limits, None)?
        } else {
            return Ok(None);
        }))
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let model = args.model.open()?;
    let loaded = started.elapsed();
    let prompt = prompt_ids(args, &model)?;
    common::not_empty(&prompt)?;

    let needed = match args.max_tokens {
        0 => prompt.len().max(model.spec().context as usize),
        most => prompt.len().saturating_add(most),
    };
    let mut options = args.model.run.session_options(needed)?;
    options.overflow = match args.overflow.as_str() {
        "recompute" => Overflow::Recompute { head: args.keep },
        "shift" => Overflow::Shift { head: args.keep },
        _ => Overflow::Error,
    };
    let mut session = match args.count {
        1 => args.model.adapted(Session::new(&model, options)?)?,
        _ if args.speculation.is_asked() => {
            bail!("--draft, --own-draft and --ngram go with one continuation, not with --count")
        }
        count => several::session(&args.model, &model, prompt.len(), options, count)?,
    };
    let params = args.sampling.params();
    let mut sampler = match &args.chain {
        Some(chain) => Sampler::with_chain(&params, chain)?,
        None => Sampler::new(&params)?,
    };
    args.sampling.tell_seed(sampler.params());
    let constraint = args.constraint.compile(&model)?;
    let cancel = crate::stop::on_ctrl_c();
    let speculation = args.speculation.start(&model)?;
    if speculation.as_ref().is_some_and(Speculation::wants_hidden) {
        session.keep_hidden();
    }
    let prefill_started = Instant::now();
    session.prefill(&prompt, Some(&cancel), None)?;
    let prefill = prefill_started.elapsed();
    sampler.accept_prompt(&prompt)?;
    sampler.set_constraint(constraint.as_ref());

    let options = GenerationOptions {
        max_tokens: args.max_tokens,
        stop_texts: args.stop.clone(),
        ignore_end: args.ignore_eos,
        ..GenerationOptions::default()
    };
    if args.count > 1 {
        return several::run(&mut session, &sampler, args.count, &options, args.json, &cancel);
    }
    let mut generation = Generation::new(model.tokenizer().ok().cloned(), options)?;
    if let Some(speculation) = speculation {
        generation.speculate(speculation);
    }
    let (mut ids, mut text, mut first_token) = (Vec::new(), String::new(), None);
    let decode_started = Instant::now();
    let mut out = std::io::stdout().lock();
    let reason = loop {
        // The session is not used afterwards, so the last token need not run through the model.
        let enough = args.max_tokens > 0 && ids.len() >= args.max_tokens;
        let event = if enough {
            generation.finish()
        } else {
            generation.next(&mut session, &mut sampler, Some(&cancel))?
        };
        first_token.get_or_insert_with(|| started.elapsed());
        ids.extend_from_slice(&event.ids);
        if args.json {
            text.push_str(&event.text);
        } else {
            out.write_all(event.text.as_bytes())?;
            out.flush()?;
        }
        if event.kind == Kind::Done {
            break event.reason;
        }
    };
    let decode = decode_started.elapsed();
    if args.json {
        let per_second = |n: usize, d: std::time::Duration| n as f64 / d.as_secs_f64().max(1e-9);
        let report = serde_json::json!({
            "ids": ids,
            "text": text,
            "reason": reason.map(|reason| format!("{reason:?}")),
            "prompt_tokens": prompt.len(),
            "dropped_tokens": session.dropped(),
            "timings": {
                "load_ms": loaded.as_secs_f64() * 1e3,
                "first_token_ms": first_token.unwrap_or_default().as_secs_f64() * 1e3,
                "prefill_ms": prefill.as_secs_f64() * 1e3,
                "prefill_tokens_per_second": per_second(prompt.len(), prefill),
                "decode_ms": decode.as_secs_f64() * 1e3,
                "decode_tokens_per_second": per_second(ids.len().saturating_sub(1), decode),
            },
            "speculation": generation.spec_stats().as_ref().map(speculate::report),
            "anonymous_bytes": common::anonymous_bytes(),
        });
        writeln!(out, "{report}")?;
    } else {
        writeln!(out)?;
    }
    Ok(())
}

fn prompt_ids(args: &Args, model: &Model) -> Result<Vec<i32>> {
    match (&args.prompt, &args.tokens_file) {
        (_, Some(file)) => common::read_ids(file),
        (Some(text), None) => {
            let options = EncodeOptions { add_special: true, parse_special: true };
            Ok(model.tokenizer()?.encode(text, options)?)
        }
        (None, None) => bail!("no prompt: give -p TEXT or --tokens-file IDS.json"),
    }
}
