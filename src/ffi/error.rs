//! The error object: what went wrong, owned by the host or not there.

use std::ffi::c_char;

use super::guard::Host;
use super::handle::{self, Body};
use super::ptr::{self, Text};
use super::types::{LLM_OK, llm_status};
use crate::error::{Error, Result, Status};

/// What went wrong in a call. Class S.
pub struct llm_error {
    _opaque: [u8; 0],
}

classes! { shared llm_error(b"erro"): Report; }

/// The contents of an error object.
pub(super) struct Report {
    status: Status,
    message: Text,
    details: Vec<(i32, i64)>,
}

/// Offset in the file or text at which reading failed, in bytes.
pub const LLM_DETAIL_OFFSET: i32 = 1;
/// Elements or bytes that were needed.
pub const LLM_DETAIL_NEEDED: i32 = 2;
/// Error number of the operating system.
pub const LLM_DETAIL_OS_ERROR: i32 = 3;
/// Index of the offending token in the array that was passed.
pub const LLM_DETAIL_TOKEN_INDEX: i32 = 4;
/// Offset in a grammar or template.
pub const LLM_DETAIL_GRAMMAR_OFFSET: i32 = 5;
/// Slot of a batch.
pub const LLM_DETAIL_SLOT: i32 = 6;
/// Position in a session.
pub const LLM_DETAIL_POSITION: i32 = 7;
/// Line of a template.
pub const LLM_DETAIL_LINE: i32 = 8;

/// Keys of details: the library's word, the header's number.
const KEYS: &[(&str, i32)] = &[
    ("offset", LLM_DETAIL_OFFSET),
    ("needed", LLM_DETAIL_NEEDED),
    ("os_error", LLM_DETAIL_OS_ERROR),
    ("token_index", LLM_DETAIL_TOKEN_INDEX),
    ("grammar_offset", LLM_DETAIL_GRAMMAR_OFFSET),
    ("slot", LLM_DETAIL_SLOT),
    ("position", LLM_DETAIL_POSITION),
    ("line", LLM_DETAIL_LINE),
];

/// What a host gets when there is no memory to say anything else.
static OUT_OF_MEMORY: Body<llm_error> = Body::fixed(Report {
    status: Status::NO_MEMORY,
    message: Text::fixed(c"no memory, not even for an error message"),
    details: Vec::new(),
});

/// Sets `out_err` to NULL if it is there.
pub(super) fn clear(host: Host<'_>, out_err: *mut *mut llm_error) {
    ptr::set_null(host, out_err);
}

/// Gives the host an object for `error` if it asked for one.
pub(super) fn store(host: Host<'_>, out_err: *mut *mut llm_error, error: &Error) {
    if out_err.is_null() {
        return;
    }
    let details =
        KEYS.iter().filter_map(|(word, key)| error.detail(word).map(|value| (*key, value))).collect();
    let report = Report { status: error.status(), message: Text::new(error.message().as_bytes()), details };
    let object = handle::make(report)
        .unwrap_or_else(|_| std::ptr::from_ref(&OUT_OF_MEMORY).cast_mut().cast::<llm_error>());
    ptr::put_optional(host, out_err, object);
}

/// The status code of an error; LLM_OK for NULL. S, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_error_code(error: *const llm_error) -> llm_status {
    entry!(else LLM_OK, |host| Ok(handle::get(host, error, "error")?.status.0))
}

/// The message of an error: what, where, expected, got, what to do. Borrowed until the error is freed; "" for NULL.
/// `out_length` may be NULL. S, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_error_message(error: *const llm_error, out_length: *mut usize) -> *const c_char {
    entry!(else c"".as_ptr(), |host| {
        ptr::put_optional(host, out_length, 0);
        let report = handle::get(host, error, "error")?;
        ptr::put_optional(host, out_length, report.message.len());
        Ok(report.message.as_ptr())
    })
}

/// A number that belongs to the error, by LLM_DETAIL key. NOT_FOUND if the error has none of that kind,
/// INVALID_ARG for an unknown key. S, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_error_detail(
    error: *const llm_error,
    key: i32,
    out_value: *mut i64,
) -> llm_status {
    entry!(
        safe | host | {
            let out = ptr::out(host, out_value, "out_value")?;
            let report = handle::get(host, error, "error")?;
            if !KEYS.iter().any(|(_, known)| *known == key) {
                return Err(Error::new(Status::INVALID_ARG, format!("unknown detail key {key}")));
            }
            out.put(find(&report, key)?);
            Ok(Status::OK)
        }
    )
}

fn find(report: &Report, key: i32) -> Result<i64> {
    let found = report.details.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
    found.ok_or_else(|| Error::new(Status::NOT_FOUND, "the error has no such detail"))
}

/// Frees an error; NULL is allowed. S, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_error_free(error: *mut llm_error) {
    if std::ptr::from_ref(&OUT_OF_MEMORY).addr() == error.addr() {
        return;
    }
    entry!(else (), |host| handle::free(host, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_out_of_memory_error_answers_and_survives_free() {
        let fixed = std::ptr::from_ref(&OUT_OF_MEMORY).cast_mut().cast::<llm_error>();
        for _ in 0..2 {
            // SAFETY: a live error object and a live output.
            unsafe {
                let mut length = 0;
                assert_eq!(llm_error_code(fixed), Status::NO_MEMORY.0);
                assert!(!llm_error_message(fixed, &raw mut length).is_null() && length > 0);
                llm_error_free(fixed);
            }
        }
    }
}
