//! `libllm importance`: what the columns of every matrix are multiplied with over a text.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use llm::importance::Importance;
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::tokenizer::EncodeOptions;

use crate::common::{self, ModelArgs};
use crate::progress::Progress;

/// Measure which inputs of every matrix matter over a text, for `convert --importance`
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// UTF-8 text like that which the model is for (`-`: standard input)
    #[arg(long, value_name = "TEXT")]
    file: PathBuf,
    /// The file to write: the mean square of every column's input, a tensor per matrix
    #[arg(short, long, value_name = "OUT.safetensors")]
    out: PathBuf,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let sums = Importance::default();
    let options = RuntimeOptions {
        threads: args.model.run.threads,
        importance: Some(sums.clone()),
        ..RuntimeOptions::default()
    };
    let model = Model::open_path(&Runtime::new(options)?, &args.model.model, &OpenOptions::default(), None)?;
    let text = common::read_text(&args.file)?;
    let ids = model.tokenizer()?.encode(&text, EncodeOptions { add_special: true, parse_special: false })?;
    if ids.is_empty() {
        bail!("{}: expected a text of at least one token, got none", args.file.display());
    }
    // Windows of a chunk's length: what counts is the mix of inputs, not how far back they look.
    let trained = model.spec().context as usize;
    let window =
        if args.model.run.context == 0 { trained.min(args.model.run.chunk) } else { args.model.run.context };
    let window = window.clamp(1, ids.len());
    let mut session = args.model.session(&model, window)?;
    let cancel = crate::stop::on_ctrl_c();
    let mut tensors = 0;
    // Begun before the measuring, so that a place that takes no file is refused before it.
    common::write_whole(&args.out, |out| {
        let progress = Progress::new("importance", false);
        for (i, part) in ids.chunks(window).enumerate() {
            session.reset();
            // Logits behind every token, so that the output matrix sees them all.
            session.prefill_each(part, Some(&cancel), &mut |_, _| Ok(()))?;
            progress.at((i * window + part.len()) as u64, ids.len() as u64, "");
        }
        progress.end();
        let columns = model.importance(&sums);
        tensors = columns.len();
        Ok(out.write_all(&llm_convert::importance::serialize(&columns)?)?)
    })?;
    say!("{}: {tensors} tensors over {} tokens", args.out.display(), ids.len())
}
