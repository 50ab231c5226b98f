//! `libllm convert`: a checkpoint becomes a .llm file.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use llm::Cancel;
use llm_convert::adapter::{AdapterOptions, convert_adapter, is_adapter};
use llm_format::quant::Type;

use crate::common;
use crate::progress::Progress;
use crate::stop::Writing;

/// Turn a checkpoint, or an adapter of one, into a .llm file
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, or one .safetensors file with its config.json beside it; or the directory of a LoRA
    /// adapter as PEFT saves it
    source: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "OUT.llm")]
    out: PathBuf,
    /// Type of the matrices (without it q4)
    #[arg(long = "type", value_parser = common::types())]
    ty: Option<String>,
    /// Split pattern of the tokenizer where its files carry none: llama3, qwen2, cl100k, gpt2 or a regular
    /// expression
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,
    /// What `libllm importance` wrote for this model: the integer types then keep those inputs best that matter most
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// What an adapter is for: the converted model, or its checkpoint's directory
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Let the adapter run with the very file of --base alone, not with every type of that model
    #[arg(long, requires = "base")]
    only: bool,
    /// A checkpoint of a small model with the same tokenizer: it goes into the file to guess tokens
    #[arg(long, value_name = "DIR")]
    draft: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    llm_format::names_a_file(&args.out)?;
    if is_adapter(&args.source) {
        return adapter(args);
    }
    if args.base.is_some() {
        bail!("--base: {} is not an adapter: it has no adapter_config.json", args.source.display());
    }
    let mut options = llm_convert::Options {
        pattern: args.pattern.clone(),
        importance: args.importance.clone(),
        draft: args.draft.clone(),
        ..llm_convert::Options::default()
    };
    if let Some(ty) = &args.ty {
        options.ty = Type::parse(ty).with_context(|| format!("--type {ty}: unknown"))?;
    }
    let summary = convert(&args.source, &args.out, &options)?;
    say!("{summary}")?;
    Ok(())
}

/// Converts an adapter.
fn adapter(args: &Args) -> Result<()> {
    let Some(base) = &args.base else {
        bail!("{}: an adapter needs its model: name it with --base", args.source.display());
    };
    let of_models = [
        ("--type", args.ty.is_some()),
        ("--pattern", args.pattern.is_some()),
        ("--importance", args.importance.is_some()),
        ("--draft", args.draft.is_some()),
    ];
    if let Some((flag, _)) = of_models.iter().find(|(_, given)| *given) {
        bail!("{flag}: {} is an adapter, for which it says nothing", args.source.display());
    }
    // It takes a moment: Ctrl-C lets it come to its end, and with it to that of its temporary file.
    crate::stop::on_ctrl_c();
    let _writing = Writing::begin();
    let options = AdapterOptions { only: args.only, ..AdapterOptions::default() };
    let summary = convert_adapter(&args.source, base, &args.out, &options)?;
    for warning in &summary.warnings {
        note!("warning: {warning}");
    }
    let (out, count) = (args.out.display(), summary.targets);
    say!(
        "{out}: adapter for {}, {count} matrices, rank {}, {} parameters",
        summary.architecture,
        summary.rank,
        summary.parameters
    )
}

/// Converts with a progress bar and returns a line that says what was written.
pub fn convert(source: &Path, out: &Path, options: &llm_convert::Options) -> Result<String> {
    let watch = Watch::new("convert");
    let done = llm_convert::convert(source, out, options, &watch);
    watch.progress.end();
    let summary = done?;
    for warning in &summary.warnings {
        note!("warning: {warning}");
    }
    Ok(describe(out, options.ty, &summary))
}

/// A line that says what was written.
pub fn describe(out: &Path, ty: Type, summary: &llm_convert::Summary) -> String {
    format!(
        "{}: {} {}, {} tensors, {} bytes, {:.3} bits per weight",
        out.display(),
        summary.architecture,
        ty.name(),
        summary.tensors,
        summary.bytes,
        summary.bits_per_weight
    )
}

/// Shows a conversion, and ends it at Ctrl-C without a trace.
pub struct Watch {
    /// What is shown.
    pub progress: Progress,
    tensor: Mutex<String>,
    cancel: Cancel,
    _writing: Writing,
}

impl Watch {
    /// Watches `what`.
    pub fn new(what: &'static str) -> Self {
        Self {
            progress: Progress::new(what, true),
            tensor: Mutex::default(),
            cancel: crate::stop::on_ctrl_c(),
            _writing: Writing::begin(),
        }
    }
}

impl llm_convert::Progress for Watch {
    fn tensor(&self, name: &str) {
        name.clone_into(&mut self.tensor.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn advance(&self, done: u64, total: u64) -> bool {
        self.progress.at(done, total, &self.tensor.lock().unwrap_or_else(PoisonError::into_inner));
        !self.cancel.is_set()
    }
}
