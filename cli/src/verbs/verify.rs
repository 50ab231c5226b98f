//! `libllm verify`: every checksum of a file.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use llm_format::File;

use crate::common;
use crate::progress::Progress;

/// Check every checksum of a .llm file
#[derive(clap::Args)]
pub struct Args {
    /// The .llm file
    file: PathBuf,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let name = || args.file.display().to_string();
    let bytes = common::map(&args.file)?;
    let cancel = crate::stop::on_ctrl_c();
    let progress = Progress::new("verify", true);
    let total = bytes.len() as u64;
    File::parse(&bytes)
        .and_then(|file| {
            file.verify(&mut |done, total| {
                progress.at(done, total, "");
                if cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })
        .with_context(name)?;
    progress.end();
    say!("{}: {total} bytes, every checksum agrees", name())?;
    Ok(())
}
