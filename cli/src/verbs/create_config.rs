//! `libllm create-config`: the settings of a preset as a file to edit.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use llm_train::Config;
use llm_train::presets::PRESETS;

use crate::common;

/// Write the settings of a preset to a file for `train --config`; without a name, list the presets
#[derive(clap::Args)]
pub struct Args {
    /// The preset
    name: Option<String>,
    /// The file to write, JSON if it ends so, else YAML; `-`: standard output
    #[arg(short, long, value_name = "FILE", default_value = "-", requires = "name")]
    out: PathBuf,
    /// Settings to change
    #[arg(value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let Some(name) = &args.name else {
        for preset in PRESETS {
            say!("{:12} {}", preset.name, preset.about)?;
        }
        return Ok(());
    };
    let mut config = Config::preset(name)?;
    for setting in &args.settings {
        config.set(setting)?;
    }
    let json = args.out.extension().is_some_and(|e| e == "json");
    let text = if json { config.to_json() + "\n" } else { config.to_yaml()? };
    if args.out.as_os_str() == "-" {
        say!("{}", text.trim_end())
    } else {
        common::write_whole(&args.out, |out| Ok(out.write_all(text.as_bytes())?))
    }
}
