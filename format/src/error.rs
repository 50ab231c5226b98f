//! Errors of the file: what, where, expected, got.

use std::fmt;

/// What kind of thing went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes are not a well-formed file.
    BadFormat,
    /// Another version of the format.
    BadVersion,
    /// Well-formed, but not the bytes that were written.
    Checksum,
    /// Well-formed, but it requires something this library does not know.
    Unsupported,
    /// A size beyond the limits of the format or of this machine.
    TooLarge,
    /// The caller asked the writer for something that no file can hold, or out of order.
    Invalid,
    /// A progress callback said stop.
    Cancelled,
    /// The operating system refused.
    Io,
    /// The directory of a file to be written is not there.
    NotFound,
}

impl ErrorKind {
    /// The name in lower case with dashes, as in the golden files.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::BadFormat => "bad-format",
            ErrorKind::BadVersion => "bad-version",
            ErrorKind::Checksum => "checksum",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::TooLarge => "too-large",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Io => "io",
            ErrorKind::NotFound => "not-found",
        }
    }
}

/// A failure of reading, verifying or writing a file.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind.
    pub kind: ErrorKind,
    /// What, where, expected, got, what to do.
    pub message: String,
    /// The place in the file, in bytes from its start, where one is to blame.
    pub offset: Option<u64>,
    /// The operating system's error code, for [`ErrorKind::Io`] and [`ErrorKind::NotFound`].
    pub os_error: Option<i32>,
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), offset: None, os_error: None }
    }

    /// A defect of the bytes at `offset`.
    pub(crate) fn bad(offset: u64, message: impl Into<String>) -> Error {
        Error { offset: Some(offset), ..Error::new(ErrorKind::BadFormat, message) }
    }

    pub(crate) fn at(self, offset: u64) -> Error {
        Error { offset: Some(offset), ..self }
    }

    pub(crate) fn io(doing: impl fmt::Display, error: &std::io::Error) -> Error {
        let gone = error.kind() == std::io::ErrorKind::NotFound;
        let kind = if gone { ErrorKind::NotFound } else { ErrorKind::Io };
        Error { os_error: error.raw_os_error(), ..Error::new(kind, format!("{doing}: {error}")) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.offset {
            Some(offset) => write!(f, " (at byte {offset})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
