//! Where text comes from: a file, a URL, a file of the Hugging Face Hub; plain, compressed, in rows or in columns.
//!
//! ```text
//! name → Source → Blob (bytes at offsets: file | HTTP ranges) ┬ .gz .zst undone ┬ text: one document, in pieces
//!                                                             │                 └ .jsonl: a document per line
//!                                                             └ .parquet: a document per row
//! ```
//! Everything is streamed: memory holds a piece of text, a line, or a page of a column. With each document comes a mark,
//! from which another process can read on. It does not know tokens.

mod blob;
mod http;
mod hub;
mod parquet;
#[cfg(test)]
pub(crate) mod testing;
mod text;
mod zstd;

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use llm::error::{Error, Result, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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

    /// Its name, and of a local file what tells it from other contents of that name.
    ///
    /// # Errors
    /// As opening it.
    pub(crate) fn described(&self) -> Result<Value> {
        let Source::File(path) = self else { return Ok(json!({"name": self.to_string()})) };
        let metadata = std::fs::metadata(path).map_err(|e| Error::from(e).context(path.display()))?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map(|since| since.as_nanos() as u64);
        Ok(json!({"name": self.to_string(), "bytes": metadata.len(), "modified": modified}))
    }

    /// Opens it.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`.
    pub(crate) fn open(&self) -> Result<Opened<'_>> {
        let blob = match self {
            Source::File(path) => Blob::file(path),
            Source::Url(url) => Blob::http(url, None),
            Source::Hub(file) => file.open(&hub::Place::of_environment()?),
        };
        Ok(Opened { source: self, blob: Arc::new(blob?) })
    }

    /// Calls `f(piece, last)` for the pieces of each document; `last` marks the end of a document. In rows the text
    /// is the string `field`.
    ///
    /// # Errors
    /// As [`Source::open`] and [`Opened::documents`].
    pub(crate) fn documents(&self, field: &str, f: &mut dyn FnMut(&str, bool) -> Result<()>) -> Result<()> {
        self.open()?.documents(Mark::default(), field, &mut |text, last, _| f(text, last))
    }
}

/// A place in a source behind which it can be read on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Of text: bytes before it, undone. Of columns: row groups before it.
    pub place: u64,
    /// Of text: bytes behind the place that the next piece begins with, whatever lies there.
    pub carried: u64,
    /// Of text: lines that were read. Of columns: strings of the row group that were read.
    pub count: u64,
}

/// A source that was opened.
pub(crate) struct Opened<'s> {
    source: &'s Source,
    blob: Arc<Blob>,
}

impl Opened<'_> {
    /// What tells a file from other contents of its name.
    pub(crate) fn identity(&self) -> String {
        self.blob.identity()
    }

    /// Calls `f(piece, last, mark)` for the pieces of each document from a mark on; `last` marks the end of a document,
    /// the mark where to read on behind the piece. In rows the text is the string `field`.
    ///
    /// # Errors
    /// `IO`; `BAD_UTF8` and `BAD_FORMAT` with file and line or row; what `f` returns.
    pub(crate) fn documents(
        &self,
        from: Mark,
        field: &str,
        f: &mut dyn FnMut(&str, bool, Mark) -> Result<()>,
    ) -> Result<()> {
        let (source, read) = (self.source, |packed| self.undone(packed, from.place));
        match source.format() {
            Format::Text(packed) => text::pieces(read(packed)?, source, from, f),
            Format::Lines(packed) => {
                text::lines(read(packed)?, source, from, field, &mut |text, mark| f(text, true, mark))
            }
            Format::Columns => {
                let blob = self.blob.clone();
                parquet::rows(blob, source, from, field, &mut |text, mark| f(text, true, mark))
            }
        }
    }

    /// Calls `f(line, row, mark)` for every JSON object of a `.jsonl` from a mark on.
    ///
    /// # Errors
    /// As [`Opened::documents`]; `UNSUPPORTED` for a source of another kind.
    pub(crate) fn rows(&self, from: Mark, f: &mut dyn FnMut(u64, &Value, Mark) -> Result<()>) -> Result<()> {
        let Format::Lines(packed) = self.source.format() else {
            let message =
                format!("{}: conversations are read from .jsonl, .jsonl.gz and .jsonl.zst", self.source);
            return Err(Error::new(Status::UNSUPPORTED, message));
        };
        text::rows(self.undone(packed, from.place)?, self.source, from, f)
    }

    /// The text from byte `from` on; what is packed is undone from the beginning to get there.
    fn undone(&self, packed: Option<Packed>, from: u64) -> Result<Box<dyn BufRead>> {
        let here = |e: io::Error| Error::from(e).context(self.source);
        let begin = if packed.is_some() { 0 } else { from };
        let raw = BufReader::with_capacity(BUFFER, Cursor::at(self.blob.clone(), begin));
        let mut undone: Box<dyn BufRead> = match packed {
            None => return Ok(Box::new(raw)),
            Some(Packed::Gzip) => {
                Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(raw)))
            }
            Some(Packed::Zstd) => {
                Box::new(BufReader::with_capacity(BUFFER, zstd::Frames::new(raw).map_err(here)?))
            }
        };
        let passed = io::copy(&mut (&mut undone).take(from), &mut io::sink()).map_err(here)?;
        if passed < from {
            return Err(shorter(self.source, from, passed));
        }
        Ok(undone)
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

/// An error about a source that ends before a mark of an earlier reading.
fn shorter(source: &Source, expected: u64, got: u64) -> Error {
    let message = format!(
        "{source}: ends behind {got} bytes, but at least {expected} were read of it before; remove prepare.journal in the \
         output directory to begin anew"
    );
    Error::new(Status::MISMATCH, message)
}

/// An error about the contents of a source.
fn wrong(status: Status, source: &Source, place: impl fmt::Display, what: impl fmt::Display) -> Error {
    Error::new(status, format!("{source}:{place}: {what}"))
}

#[cfg(test)]
mod tests;
