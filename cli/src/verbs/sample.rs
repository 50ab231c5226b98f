//! What a model in training says: its checkpoint is converted, opened and run as any other.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use llm::Cancel;
use llm::model::{Model, OpenOptions as ModelOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::{Session, SessionOptions};
use llm::tokenizer::EncodeOptions;
use llm_format::quant::Type;
use llm_train::Config;

/// Nothing to show, but an end at Ctrl-C.
struct Quiet<'a>(&'a Cancel);

impl llm_convert::Progress for Quiet<'_> {
    fn advance(&self, _done: u64, _total: u64) -> bool {
        !self.0.is_set()
    }
}

/// Continues `prompt` by `tokens` tokens with the checkpoint `path`; a line of `samples.jsonl` beside it takes the text.
/// `cancel` ends it without one.
pub fn sample(config: &Config, path: &Path, (prompt, tokens): (&str, usize), cancel: &Cancel) -> Result<()> {
    let (merged, file) = (config.out.join("sample-merged"), config.out.join("sample.llm"));
    let adapter = path.join("adapter_config.json").exists();
    let result = (|| {
        if adapter {
            // left by a process that was killed
            let _ = std::fs::remove_dir_all(&merged);
            llm_train::merge(&config.from, path, &merged)?;
        }
        let options = llm_convert::Options { ty: Type::F32, ..llm_convert::Options::default() };
        llm_convert::convert(if adapter { &merged } else { path }, &file, &options, &Quiet(cancel))?;
        generate(&file, prompt, tokens, cancel)
    })();
    // both are made anew each time; where one was not made there is nothing to remove
    let _ = std::fs::remove_dir_all(&merged);
    let _ = std::fs::remove_file(&file);
    let text = result?;
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Some(step) = name.strip_prefix("step-").and_then(|n| n.parse::<u64>().ok()) else {
        bail!("{}: expected the directory of a step", path.display());
    };
    let row = serde_json::json!({"step": step, "prompt": prompt, "text": text});
    let mut out = OpenOptions::new().create(true).append(true).open(config.out.join("samples.jsonl"))?;
    writeln!(out, "{row}")?;
    note!("step {step}: {prompt}{text}");
    Ok(())
}

fn generate(file: &Path, prompt: &str, tokens: usize, cancel: &Cancel) -> Result<String> {
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let model = Model::open_path(&runtime, file, &ModelOptions::default(), None)?;
    let tokenizer = model.tokenizer()?.clone();
    let ids = tokenizer.encode(prompt, EncodeOptions { add_special: true, parse_special: true })?;
    let options = SessionOptions { max_tokens: ids.len() + tokens, ..SessionOptions::default() };
    let mut session = Session::new(&model, options)?;
    let params = SamplingParams { temperature: 0.7, seed: 1, ..SamplingParams::default() };
    let mut sampler = Sampler::new(&params)?;
    session.prefill(&ids, Some(cancel), None)?;
    sampler.accept_prompt(&ids)?;
    let options = GenerationOptions { max_tokens: tokens, ..GenerationOptions::default() };
    let mut generation = Generation::new(Some(tokenizer), options)?;
    let mut text = String::new();
    loop {
        let event = generation.next(&mut session, &mut sampler, Some(cancel))?;
        text.push_str(&event.text);
        if event.kind == Kind::Done {
            return Ok(text);
        }
    }
}
