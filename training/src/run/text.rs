//! A run that is given texts: it makes its tokenizer and its token files itself, before the first step.
//!
//! ```text
//! OUT/tokenizer.json     trained on the texts, where none is named
//! OUT/data/              what `data prepare` makes of them
//! OUT/data/text.json     what it was made of: a run goes on with the same texts and tokenizer, or is refused
//! ```
//! Once the data is there the texts are only compared, and may be gone.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest};
use llm::error::{Error, Result, Status};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Event;
use crate::bpe::{TokenizerOptions, train_tokenizer};
use crate::checkpoint;
use crate::config::Config;
use crate::data::{PrepareOptions, optional, remove, tokenize};
use crate::source::Source;

/// What the data of a run was made of, each as it is told to users.
#[derive(PartialEq, Serialize, Deserialize)]
struct Made {
    text: Vec<String>,
    tokenizer: String,
}

/// Checks the settings about texts.
///
/// # Errors
/// `INVALID_ARG` with what does not fit.
pub(crate) fn check(config: &Config) -> Result<()> {
    let message = if !config.text.is_empty() && !config.mixture.is_empty() {
        "text and mixture both name the data: give one of them"
    } else if config.text.is_empty() && !config.tokenizer.as_os_str().is_empty() {
        "tokenizer: it is for `text`; data that is prepared has its own"
    } else {
        return Ok(());
    };
    Err(Error::new(Status::INVALID_ARG, message))
}

/// The run of `config` with its texts prepared as `data`. One without texts stays as it is.
///
/// # Errors
/// `INVALID_ARG` for settings that do not fit, `MISMATCH` for other texts or another tokenizer than those behind the
/// checkpoints; those of [`train_tokenizer`] and [`tokenize`].
pub(super) fn prepared(config: &Config, watch: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Config> {
    if config.text.is_empty() {
        return Ok(config.clone());
    }
    let config = Config { data: config.out.join("data"), ..config.clone() };
    // what does not fit is told before a long text is read
    let mut probe = config.clone();
    if probe.model.vocab == 0 {
        probe.model.vocab = config.tokenizer_size.max(1);
    }
    probe.check()?;
    let inputs = config.text.iter().map(|name| Source::parse(name)).collect::<Result<Vec<_>>>()?;
    let named = tokenizer(&config);
    let record = config.data.join("text.json");
    let before = optional(&record)?.and_then(|bytes| serde_json::from_slice::<Made>(&bytes).ok());
    let made = made(&config, &inputs, named.as_deref(), before.as_ref())?;
    let same = before.as_ref() == Some(&made);
    if same && config.data.join("train.tokens").is_file() {
        return Ok(config);
    }
    if let Some(before) = before.filter(|_| !same)
        && !checkpoint::list(&config.out)?.is_empty()
    {
        let message = format!(
            "{}: the run's data was made of {}; give it as it was, another `out`, or `text= tokenizer= data={}` to go on \
             with the data that there is",
            record.display(),
            difference(&before, &made),
            config.data.display()
        );
        return Err(Error::new(Status::MISMATCH, message));
    }
    let options = PrepareOptions {
        inputs,
        tokenizer: named.clone().unwrap_or_else(|| config.out.join("tokenizer.json")),
        output: config.data.clone(),
        ..PrepareOptions::default()
    };
    if watch(&Event::Preparing(options.clone())).is_break() {
        let message = "stopped before the text was prepared; the same command begins again";
        return Err(Error::new(Status::CANCELLED, message));
    }
    // of other files than those beside it it says nothing any more
    if !same {
        remove(&record)?;
    }
    if named.is_none() {
        train_tokenizer(&TokenizerOptions {
            inputs: options.inputs.clone(),
            vocab: config.tokenizer_size,
            output: options.tokenizer.clone(),
            ..TokenizerOptions::default()
        })?;
    }
    let tokenized = tokenize(&options, &mut |_| ())?;
    let _ = watch(&Event::Prepared(tokenized.prepared()));
    tokenized.settle()?;
    let text = format!("{:#}\n", json!({"text": made.text, "tokenizer": made.tokenizer}));
    checkpoint::write_file(&record, text.as_bytes())?;
    Ok(config)
}

/// The tokenizer that there is: the one named, or that of the checkpoint to begin from.
fn tokenizer(config: &Config) -> Option<PathBuf> {
    if !config.tokenizer.as_os_str().is_empty() {
        return Some(config.tokenizer.clone());
    }
    (!config.from.as_os_str().is_empty()).then(|| config.from.join("tokenizer.json"))
}

/// What the data is made of now.
fn made(config: &Config, inputs: &[Source], tokenizer: Option<&Path>, before: Option<&Made>) -> Result<Made> {
    let text = inputs.iter().enumerate().map(|(i, source)| match source {
        Source::File(path) => mark(path, before.and_then(|before| before.text.get(i))),
        remote => Ok(remote.to_string()),
    });
    let tokenizer = match tokenizer {
        Some(path) => mark(path, before.map(|before| &before.tokenizer))
            .map_err(|e| e.context("the tokenizer of the text"))?,
        None => format!("a tokenizer of {} tokens, trained on it", config.tokenizer_size),
    };
    Ok(Made { text: text.collect::<Result<_>>()?, tokenizer })
}

/// What the file `path` is known by. Of one that is gone what was `known` of it before.
fn mark(path: &Path, known: Option<&String>) -> Result<String> {
    let name = path.file_name().unwrap_or(path.as_os_str()).display();
    let here = |e: std::io::Error| Error::from(e).context(path.display());
    let begin = format!("{name} (");
    let mut file = match (File::open(path), known.filter(|known| known.starts_with(&begin))) {
        (Err(e), Some(known)) if e.kind() == ErrorKind::NotFound => return Ok(known.clone()),
        (opened, _) => opened.map_err(here)?,
    };
    if !file.metadata().map_err(here)?.is_file() {
        let message =
            format!("{}: expected a file, which is read again when the run goes on", path.display());
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    let bytes = std::io::copy(&mut file, &mut digest).map_err(here)?;
    Ok(format!("{name} ({bytes} bytes, CRC-64 {:016x})", digest.finalize()))
}

/// What differs first.
fn difference(before: &Made, now: &Made) -> String {
    let mut pairs = before.text.iter().zip(&now.text).chain([(&before.tokenizer, &now.tokenizer)]);
    match pairs.find(|(there, here)| there != here) {
        Some((there, here)) => format!("{there}, now there is {here}"),
        None => format!("{} texts, now there are {}", before.text.len(), now.text.len()),
    }
}
