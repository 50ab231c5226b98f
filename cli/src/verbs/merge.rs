//! `libllm merge`: an adapter becomes part of its model.

use std::path::PathBuf;

use anyhow::Result;

use crate::stop::AtOnce;

/// Add a LoRA adapter (PEFT's layout) to the matrices of its checkpoint
#[derive(clap::Args)]
pub struct Args {
    /// The checkpoint that the adapter was trained on
    base: PathBuf,
    /// The adapter's directory
    adapter: PathBuf,
    /// The new checkpoint's directory
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let unfinished = Vec::from_iter(llm_train::checkpoint::unfinished(&args.out));
    let stop = AtOnce::begin(move || unfinished.clone(), "nothing was written");
    llm_train::merge(&args.base, &args.adapter, &args.out)?;
    drop(stop);
    say!("{}", args.out.display())?;
    Ok(())
}
