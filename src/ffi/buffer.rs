//! Bytes the library owns and lends.

use std::ffi::c_void;

use super::handle;
use super::ptr::Text;

/// Bytes that the library owns: a text or a document. Class S.
pub struct llm_buffer {
    _opaque: [u8; 0],
}

classes! { shared llm_buffer(b"buff"): Text; }

/// The bytes, borrowed until the buffer is freed; a NUL follows the last one. NULL for NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_buffer_data(buffer: *const llm_buffer) -> *const c_void {
    entry!(else std::ptr::null(), |host| Ok(handle::get(host, buffer, "buffer")?.as_ptr().cast()))
}

/// How many bytes, without the NUL. 0 for NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_buffer_size(buffer: *const llm_buffer) -> usize {
    entry!(else 0, |host| Ok(handle::get(host, buffer, "buffer")?.len()))
}

/// Frees a buffer; NULL is allowed. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_buffer_free(buffer: *mut llm_buffer) {
    entry!(else (), |host| handle::free(host, buffer))
}
