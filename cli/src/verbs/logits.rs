//! `libllm logits`: the logits of every position of a list of ids, as a safetensors file.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use llm::session::Session;

use crate::common::{self, ModelArgs};

/// Write the logits of every position
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// JSON array of ids
    #[arg(long, value_name = "IDS.json")]
    tokens_file: PathBuf,
    /// Tensor `logits`, F32 [ids, vocabulary]
    #[arg(short, long, value_name = "OUT.safetensors")]
    out: PathBuf,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let model = args.model.open()?;
    let ids = common::read_ids(&args.tokens_file)?;
    common::not_empty(&ids)?;
    let mut options = args.model.run.session_options(ids.len())?;
    // Rotary tables that depend on the length take the whole text's.
    options.rope_length = u32::try_from(ids.len()).ok();
    let mut session = args.model.adapted(Session::new(&model, options)?)?;

    // The rows are written as they come: [T, vocabulary] of a long text would not fit in memory.
    let vocab = model.spec().vocab as usize;
    let bytes = ids.len() as u64 * vocab as u64 * 4;
    let header = serde_json::json!({
        "logits": { "dtype": "F32", "shape": [ids.len(), vocab], "data_offsets": [0, bytes] }
    });
    let mut header = header.to_string();
    // The data begins at a multiple of 8.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let cancel = crate::stop::on_ctrl_c();
    common::write_whole(&args.out, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        session.prefill_each(&ids, Some(&cancel), &mut |_, row| {
            for value in row {
                out.write_all(&value.to_le_bytes())?;
            }
            Ok(())
        })?;
        Ok(())
    })
}
