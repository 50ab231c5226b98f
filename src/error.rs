//! Errors: a closed set of status codes, and a message that says what, where, expected and got.

use std::fmt;

/// The status codes of the C interface. Numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub i32);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        #[allow(missing_docs)] // the names are the documentation; llm.h explains each
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status($value);)*
            /// Every status, in the order of the table in `llm.h`.
            pub const ALL: &'static [(Status, &'static str)] = &[$((Status::$name, stringify!($name)),)*];
        }
    };
}

statuses! {
    OK = 0, DONE = 1, MORE = 2,
    INVALID_ARG = -1, NULL_ARG = -2, BAD_STATE = -3, BUSY = -4, REENTRANT = -5, CANCELLED = -6, DEADLINE = -7,
    NO_MEMORY = -8, BUDGET = -9, KV_FULL = -10, CONTEXT_FULL = -11, NOT_FOUND = -12, IO = -13, BAD_FORMAT = -14,
    BAD_VERSION = -15, CHECKSUM = -16, MISMATCH = -17, UNSUPPORTED = -18, DEVICE = -19, DEVICE_LOST = -20,
    BUFFER_SMALL = -21, BAD_UTF8 = -22, GRAMMAR = -23, SCHEMA = -24, DEAD_END = -25, CALLBACK = -26,
    POISONED = -27, INTERNAL = -28, ABI = -29,
}

impl Status {
    /// The constant's name without prefix, `"UNKNOWN"` for a number outside the set.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(s, _)| *s == self).map_or("UNKNOWN", |(_, name)| name)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// A failure: its code, what happened, and typed details by key.
#[derive(Clone, Debug)]
pub struct Error {
    status: Status,
    message: String,
    details: Vec<(&'static str, i64)>,
}

/// Result of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with `status` and a `message` that says what, where, expected, got, and what to do.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), details: Vec::new() }
    }

    /// Adds a typed detail, such as `offset`, `needed`, `os_error`, `token_index`.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: i64) -> Self {
        self.details.push((key, value));
        self
    }

    /// Puts `context` and a colon before the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The status code.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The detail stored under `key`.
    pub fn detail(&self, key: &str) -> Option<i64> {
        self.details.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let status = if e.kind() == std::io::ErrorKind::NotFound { Status::NOT_FOUND } else { Status::IO };
        let code = e.raw_os_error();
        let error = Error::new(status, e.to_string());
        match code {
            Some(code) => error.with("os_error", i64::from(code)),
            None => error,
        }
    }
}

impl From<llm_format::Error> for Error {
    fn from(e: llm_format::Error) -> Self {
        use llm_format::ErrorKind;
        let status = match e.kind {
            ErrorKind::BadFormat | ErrorKind::TooLarge => Status::BAD_FORMAT,
            ErrorKind::BadVersion => Status::BAD_VERSION,
            ErrorKind::Checksum => Status::CHECKSUM,
            ErrorKind::Unsupported => Status::UNSUPPORTED,
            ErrorKind::Invalid => Status::INVALID_ARG,
            ErrorKind::Cancelled => Status::CANCELLED,
            ErrorKind::Io => Status::IO,
            ErrorKind::NotFound => Status::NOT_FOUND,
            _ => Status::INTERNAL,
        };
        let mut error = Error::new(status, e.to_string());
        if let Some(offset) = e.offset {
            error = error.with("offset", offset as i64);
        }
        if let Some(code) = e.os_error {
            error = error.with("os_error", i64::from(code));
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use llm_format::ErrorKind as Kind;

    use super::*;

    #[test]
    fn every_kind_of_error_of_a_file_has_its_status() {
        for (kind, status) in [
            (Kind::BadFormat, Status::BAD_FORMAT),
            (Kind::BadVersion, Status::BAD_VERSION),
            (Kind::Checksum, Status::CHECKSUM),
            (Kind::Unsupported, Status::UNSUPPORTED),
            (Kind::TooLarge, Status::BAD_FORMAT),
            (Kind::Invalid, Status::INVALID_ARG),
            (Kind::Cancelled, Status::CANCELLED),
            (Kind::Io, Status::IO),
            (Kind::NotFound, Status::NOT_FOUND),
        ] {
            let error = llm_format::Error { kind, message: "it".into(), offset: Some(7), os_error: Some(2) };
            let error = Error::from(error);
            assert_eq!((error.status(), error.detail("offset")), (status, Some(7)), "{kind:?}");
            assert_eq!(error.detail("os_error"), Some(2));
        }
    }
}
