//! What says how to go on with a preparation that was broken off: a file beside the temporary token files, written now
//! and then, whole or not at all.
//!
//! It holds what was asked for (another preparation begins anew), how far the reading is, and what was written by then.
//! What was written later is cut off: the ids that follow from there are the same.

use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};
use llm_format::TempFile;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::writer::Written;
use super::{PrepareOptions, optional, vocabulary_hash};
use crate::source::{Mark, Source};

/// How far the reading is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct At {
    /// The input that is read, counted from 0.
    pub input: usize,
    /// What tells it from other contents of its name.
    pub identity: String,
    /// Where to read on in it.
    pub mark: Mark,
    /// Bytes of its text so far.
    pub seen: u64,
    /// Rows and pieces so far, of all inputs.
    pub number: u64,
}

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    pub asked: Value,
    pub at: At,
    pub written: [Written; 2],
    /// Checksum of the others.
    crc: String,
}

/// The file of a directory.
pub(super) fn path(output: &Path) -> PathBuf {
    output.join("prepare.journal")
}

/// What a process of this number may have begun to write of the file.
pub(super) fn unfinished(output: &Path) -> Vec<PathBuf> {
    TempFile::unfinished(&path(output))
}

/// Everything that the ids depend on, so far as it is known before texts are read.
///
/// # Errors
/// Those of looking at the inputs.
pub(super) fn asked(
    options: &PrepareOptions,
    tokenizer: u64,
    config: Option<&[u8]>,
    template: Option<&str>,
    end: Option<u32>,
) -> Result<Value> {
    let inputs = options.inputs.iter().map(Source::described).collect::<Result<Vec<Value>>>()?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "inputs": inputs,
        "tokenizer": format!("{tokenizer:016x}"),
        "tokenizer_config": config.map(|bytes| format!("{:016x}", vocabulary_hash(bytes))),
        "chat_template": template.map(|text| format!("{:016x}", vocabulary_hash(text.as_bytes()))),
        "field": options.field,
        "held_out": options.held_out.to_string(),
        "end": end,
    }))
}

impl Journal {
    pub fn new(asked: &Value, at: &At, written: [Written; 2]) -> Journal {
        let (asked, at) = (asked.clone(), at.clone());
        let mut journal = Journal { asked, at, written, crc: String::new() };
        journal.crc = journal.checksum();
        journal
    }

    fn checksum(&self) -> String {
        let all = json!([self.asked, self.at, self.written]).to_string();
        format!("{:016x}", vocabulary_hash(all.as_bytes()))
    }

    /// That of a directory; `None` where there is none, an error's text where it cannot be read.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn read(output: &Path) -> Result<Option<std::result::Result<Journal, String>>> {
        let place = path(output);
        let Some(bytes) = optional(&place)? else { return Ok(None) };
        let journal = serde_json::from_slice::<Journal>(&bytes).ok().filter(|j| j.crc == j.checksum());
        Ok(Some(journal.ok_or_else(|| format!("{} is damaged", place.display()))))
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of writing a file.
    pub fn write(&self, output: &Path) -> Result<()> {
        let wrong = |e: serde_json::Error| Error::new(Status::INTERNAL, format!("the journal: {e}"));
        crate::checkpoint::write_file(&path(output), &serde_json::to_vec_pretty(self).map_err(wrong)?)
    }
}
