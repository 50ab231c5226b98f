//! Where text comes from: a file, a URL, a file of the Hugging Face Hub; plain, compressed, in rows or in columns.
//!
//! ```text
//! name → Source → Blob (bytes at offsets: file | HTTP ranges) ┬ .gz .zst undone ┬ text: one document, in pieces
//!                                                             │                 └ .jsonl: a document per line
//!                                                             └ .parquet: a document per row
//! ```
//! Everything is streamed: memory holds a piece of text, a line, or a page of a column. It does not know tokens.

mod blob;
mod http;
mod hub;
mod parquet;
mod text;
mod zstd;

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llm::error::{Error, Result, Status};

use blob::{Blob, Cursor};

/// Bytes asked of a source at once.
const BUFFER: usize = 256 << 10;

/// A place that holds documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A local file.
    File(PathBuf),
    /// An `http://` or `https://` address.
    Url(String),
    /// A file of a dataset on the Hub: `hf://datasets/OWNER/NAME[@REVISION]/PATH`.
    Hub(HubFile),
}

pub use hub::HubFile;

impl Source {
    /// A name as users write it: a URL, a name on the Hub, else a path.
    ///
    /// # Errors
    /// `INVALID_ARG` for a name on the Hub that is not of the form above.
    pub fn parse(name: &str) -> Result<Source> {
        if name.starts_with("http://") || name.starts_with("https://") {
            return Ok(Source::Url(name.into()));
        }
        match name.strip_prefix("hf://") {
            Some(_) => Ok(Source::Hub(HubFile::parse(name)?)),
            None => Ok(Source::File(name.into())),
        }
    }

    /// Fetches a file of the Hub into the Hub's cache, if it is not there, so that later runs read it from the disk.
    /// Other sources stay where they are.
    ///
    /// # Errors
    /// As reading them.
    pub fn download(&self) -> Result<()> {
        match self {
            Source::Hub(file) => file.download(&hub::Place::of_environment()?).map(drop),
            _ => Ok(()),
        }
    }

    /// The last part of the name, which tells the format.
    fn file_name(&self) -> &str {
        let whole = match self {
            Source::File(path) => return path.file_name().and_then(|n| n.to_str()).unwrap_or_default(),
            Source::Url(url) => url.split(['?', '#']).next().unwrap_or(url),
            Source::Hub(file) => &file.path,
        };
        whole.rsplit('/').next().unwrap_or(whole)
    }

    /// What the name says about the contents.
    pub(crate) fn format(&self) -> Format {
        let name = self.file_name();
        let (name, packed) = match name.rsplit_once('.') {
            Some((stem, "gz")) => (stem, Some(Packed::Gzip)),
            Some((stem, "zst" | "zstd")) => (stem, Some(Packed::Zstd)),
            _ => (name, None),
        };
        match name.rsplit_once('.').map(|(_, e)| e) {
            // sets of rows are also called .json; what is none is refused at its first line
            Some("jsonl" | "ndjson" | "json") => Format::Lines(packed),
            Some("parquet") if packed.is_none() => Format::Columns,
            _ => Format::Text(packed),
        }
    }

    /// Bytes of text, where they are known without reading: of a plain text file.
    ///
    /// # Errors
    /// As opening it.
    pub(crate) fn text_bytes(&self) -> Result<Option<u64>> {
        match (self, self.format()) {
            (Source::File(path), Format::Text(None)) => {
                let len = std::fs::metadata(path).map_err(|e| Error::from(e).context(path.display()))?.len();
                Ok(Some(len))
            }
            _ => Ok(None),
        }
    }

    fn open(&self) -> Result<Blob> {
        match self {
            Source::File(path) => Blob::file(path),
            Source::Url(url) => Blob::http(url, None),
            Source::Hub(file) => file.open(&hub::Place::of_environment()?),
        }
    }

    /// Calls `f(line, row)` for every JSON object of a `.jsonl`.
    ///
    /// # Errors
    /// As [`Source::documents`]; `UNSUPPORTED` for a source of another kind.
    pub(crate) fn rows(&self, f: &mut dyn FnMut(u64, &serde_json::Value) -> Result<()>) -> Result<()> {
        let Format::Lines(packed) = self.format() else {
            let message = format!("{self}: conversations are read from .jsonl, .jsonl.gz and .jsonl.zst");
            return Err(Error::new(Status::UNSUPPORTED, message));
        };
        text::rows(self.undone(&Arc::new(self.open()?), packed)?, self, f)
    }

    fn undone(&self, blob: &Arc<Blob>, packed: Option<Packed>) -> Result<Box<dyn BufRead>> {
        let raw = BufReader::with_capacity(BUFFER, Cursor::new(blob.clone()));
        Ok(match packed {
            None => Box::new(raw),
            Some(Packed::Gzip) => {
                Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(raw)))
            }
            Some(Packed::Zstd) => {
                let undone = zstd::Frames::new(raw).map_err(|e| Error::from(e).context(self))?;
                Box::new(BufReader::with_capacity(BUFFER, undone))
            }
        })
    }

    /// Calls `f(piece, last)` for the pieces of each document; `last` marks the end of a document. In rows the text
    /// is the string `field`.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`; `BAD_UTF8` and `BAD_FORMAT` with file and line or row; what `f` returns.
    pub(crate) fn documents(&self, field: &str, f: &mut dyn FnMut(&str, bool) -> Result<()>) -> Result<()> {
        let blob = Arc::new(self.open()?);
        let read = |packed| self.undone(&blob, packed);
        match self.format() {
            Format::Text(packed) => text::pieces(read(packed)?, self, f),
            Format::Lines(packed) => text::lines(read(packed)?, self, field, &mut |text| f(text, true)),
            Format::Columns => parquet::rows(blob.clone(), self, field, &mut |text| f(text, true)),
        }
    }
}

/// How documents lie in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document of text.
    Text(Option<Packed>),
    /// A JSON object per line.
    Lines(Option<Packed>),
    /// Parquet.
    Columns,
}

/// A compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    Gzip,
    Zstd,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Url(url) => f.write_str(url),
            Source::Hub(file) => write!(f, "{file}"),
        }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Source {
        Source::File(path)
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Source {
        Source::File(path.into())
    }
}

/// An error about the contents of a source.
fn wrong(status: Status, source: &Source, place: impl fmt::Display, what: impl fmt::Display) -> Error {
    Error::new(status, format!("{source}:{place}: {what}"))
}

#[cfg(test)]
mod tests;
