//! Bytes at offsets: of a file, or of a server that answers ranges. And a cursor that reads them in order.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use llm::error::{Error, Result, Status};

use super::http::Remote;

/// Something that can be read at any offset.
pub(super) enum Blob {
    File { file: Mutex<File>, len: u64, name: Option<OsString> },
    Http { remote: Box<Mutex<Remote>>, len: Option<u64> },
}

impl Blob {
    pub(super) fn file(path: &Path) -> Result<Blob> {
        let here = |e: io::Error| Error::from(e).context(path.display());
        let file = File::open(path).map_err(here)?;
        let metadata = file.metadata().map_err(here)?;
        if !metadata.is_file() {
            let message = "expected a file; a directory, a pipe or a device cannot be read at any place";
            return Err(Error::new(Status::INVALID_ARG, format!("{}: {message}", path.display())));
        }
        let real = path.canonicalize().map_err(here)?;
        let (len, name) = (metadata.len(), real.file_name().map(OsString::from));
        Ok(Blob::File { file: Mutex::new(file), len, name })
    }

    /// Asks the server for the first bytes; `token` is for that server alone.
    pub(super) fn http(url: &str, token: Option<&str>) -> Result<Blob> {
        let remote = Remote::open(url, token)?;
        let len = remote.len();
        Ok(Blob::Http { remote: Box::new(Mutex::new(remote)), len })
    }

    /// The length, where it is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            Blob::File { len, .. } => Some(*len),
            Blob::Http { len, .. } => *len,
        }
    }

    /// What tells a file from other contents of its name: of a server length and ETag; of a local one length and the
    /// name that links lead to, which in the Hub's cache is the ETag.
    pub(super) fn identity(&self) -> String {
        match self {
            Blob::File { len, name, .. } => format!("{len} {name:?}"),
            Blob::Http { remote, len } => {
                format!("{len:?} {:?}", remote.lock().unwrap_or_else(PoisonError::into_inner).etag())
            }
        }
    }

    /// Reads some bytes from `at` on; 0 at the end.
    pub(super) fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Blob::File { file, .. } => {
                use std::io::{Seek, SeekFrom};
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(at))?;
                file.read(out)
            }
            Blob::Http { remote, .. } => {
                remote.lock().unwrap_or_else(PoisonError::into_inner).read_at(at, out)
            }
        }
    }
}

/// Reads a blob from an offset on.
pub(super) struct Cursor {
    blob: Arc<Blob>,
    at: u64,
}

impl Cursor {
    pub(super) fn at(blob: Arc<Blob>, at: u64) -> Cursor {
        Cursor { blob, at }
    }
}

impl Read for Cursor {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.read_at(self.at, out)?;
        self.at += n as u64;
        Ok(n)
    }
}
