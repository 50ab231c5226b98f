//! Text as tokens arrive.

use std::ffi::c_char;

use super::handle;
use super::ptr::{self, Text};
use super::tokenizer::llm_tokenizer;
use super::types::{llm_status, llm_token};
use crate::error::{Error, Status};
use crate::tokenizer::TextStream;

/// Takes ids one by one and gives whole characters only. Class X.
pub struct llm_text_stream {
    _opaque: [u8; 0],
}

classes! { exclusive llm_text_stream(b"stre"): Stream; }

/// A stream, and its last text as it is lent.
pub(super) struct Stream {
    stream: TextStream,
    text: Text,
}

/// Leave special tokens out of the text.
pub const LLM_STREAM_SKIP_SPECIAL: u32 = 1;

/// Makes a stream at its beginning, which keeps the tokenizer alive. `flags` are of LLM_STREAM. NULL_ARG,
/// INVALID_ARG. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_text_stream_new(
    tokenizer: *const llm_tokenizer,
    flags: u32,
    out_stream: *mut *mut llm_text_stream,
) -> llm_status {
    entry!([out_stream], |host| {
        let out = ptr::out_handle(host, out_stream, "out_stream")?;
        let tokenizer = handle::get(host, tokenizer, "tokenizer")?;
        if flags & !LLM_STREAM_SKIP_SPECIAL != 0 {
            return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_STREAM flags in {flags:#x}")));
        }
        let stream = TextStream::new(&tokenizer.tokenizer, flags & LLM_STREAM_SKIP_SPECIAL != 0);
        out.put(Stream { stream, text: Text::new(b"") })
    })
}

/// Takes an id and lends the text it completes, until the next call on the stream; often empty in the middle of a
/// character. `out_length` may be NULL. NULL_ARG, INVALID_ARG for an id that is not in the vocabulary, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_text_stream_push(
    stream: *mut llm_text_stream,
    id: llm_token,
    out_text: *mut *const c_char,
    out_length: *mut usize,
) -> llm_status {
    entry!([out_text], |host| {
        let out = ptr::out_borrowed(host, out_text, out_length, "out_text")?;
        let mut lock = handle::lock(host, stream, "stream")?;
        let Stream { stream, text } = &mut *lock;
        text.set(stream.push(id)?.as_bytes());
        out.put_text(text);
        Ok(Status::OK)
    })
}

/// Lends the rest, with U+FFFD for bytes that never became a character; the stream begins anew. `out_length` may
/// be NULL. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_text_stream_finish(
    stream: *mut llm_text_stream,
    out_text: *mut *const c_char,
    out_length: *mut usize,
) -> llm_status {
    entry!([out_text], |host| {
        let out = ptr::out_borrowed(host, out_text, out_length, "out_text")?;
        let mut lock = handle::lock(host, stream, "stream")?;
        let Stream { stream, text } = &mut *lock;
        text.set(stream.finish().as_bytes());
        out.put_text(text);
        Ok(Status::OK)
    })
}

/// Forgets everything pushed. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_text_stream_reset(stream: *mut llm_text_stream) -> llm_status {
    entry!(|host| {
        handle::lock(host, stream, "stream")?.stream.reset();
        Ok(Status::OK)
    })
}

/// Frees a stream; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_text_stream_free(stream: *mut llm_text_stream) {
    entry!(else (), |host| handle::free(host, stream))
}
