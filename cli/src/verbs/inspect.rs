//! `libllm inspect`: what is in a .llm file, without reading its weights.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use llm_format::{File, Tensor};

use crate::common;

/// Show what is in a .llm file
#[derive(clap::Args)]
pub struct Args {
    /// The .llm file
    file: PathBuf,
    /// One JSON object, with every tensor
    #[arg(long)]
    json: bool,
    /// List the tensors
    #[arg(long)]
    tensors: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let name = args.file.display().to_string();
    let bytes = common::map(&args.file)?;
    let file = File::parse(&bytes).with_context(|| name.clone())?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if args.json {
        writeln!(out, "{}", as_json(&file, bytes.len()))?;
    } else {
        summary(&mut out, &name, &file, bytes.len())?;
        if args.tensors {
            for t in file.tensors() {
                writeln!(out, "  {:5} {:>12} B  {:?}  {}", t.ty.name(), t.len, t.shape, t.name)?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn weights(tensors: &[Tensor]) -> u64 {
    tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum()
}

fn bits_per_weight(tensors: &[Tensor]) -> f64 {
    let bytes: u64 = tensors.iter().map(|t| t.len).sum();
    8.0 * bytes as f64 / weights(tensors).max(1) as f64
}

fn identity(file: &File<'_>) -> String {
    file.identity().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn as_json(file: &File<'_>, bytes: usize) -> serde_json::Value {
    let tensors: Vec<_> = file
        .tensors()
        .iter()
        .map(|t| {
            serde_json::json!({
                "name": t.name, "type": t.ty.name(), "shape": t.shape, "offset": t.offset, "bytes": t.len
            })
        })
        .collect();
    let (major, minor) = file.index().version();
    serde_json::json!({
        "version": format!("{major}.{minor}"),
        "bytes": bytes,
        "identity": identity(file),
        "weights": weights(file.tensors()),
        "bits_per_weight": bits_per_weight(file.tensors()),
        "metadata": file.metadata(),
        "tensors": tensors,
    })
}

fn summary(out: &mut impl Write, name: &str, file: &File<'_>, bytes: usize) -> Result<()> {
    let (major, minor) = file.index().version();
    writeln!(out, "{name}: .llm {major}.{minor}, {bytes} bytes, identity {}", &identity(file)[..16])?;
    let tensors = file.tensors();
    writeln!(
        out,
        "{} weights in {} tensors, {:.3} bits per weight",
        weights(tensors),
        tensors.len(),
        bits_per_weight(tensors)
    )?;
    let mut types: Vec<&str> = tensors.iter().map(|t| t.ty.name()).collect();
    types.sort_unstable();
    types.dedup();
    for ty in types {
        let of_type: Vec<&Tensor> = tensors.iter().filter(|t| t.ty.name() == ty).collect();
        let len: u64 = of_type.iter().map(|t| t.len).sum();
        writeln!(out, "  {ty}: {} tensors, {len} bytes", of_type.len())?;
    }
    for (key, value) in file.metadata() {
        // A model's layers or a template fill pages: a line shows how each begins, --json all of it.
        let shown = value.to_string();
        let short: String = shown.chars().take(100).collect();
        let more = if short.len() < shown.len() { " …" } else { "" };
        writeln!(out, "{key}: {short}{more}")?;
    }
    Ok(())
}
