//! Files looked at without loading them.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::path::Path;

use llm_format::Index;
use serde_json::json;

use super::buffer::llm_buffer;
use super::callback::{self, Callback, Control};
use super::cancel::llm_cancel;
use super::error::llm_error;
use super::handle;
use super::ptr::{self, Text};
use super::types::{llm_drop_fn, llm_progress_fn, llm_status};
use crate::error::{Error, Result, Status};
use crate::mmap::{self, Bytes};

fn map(path: &Path) -> Result<(Bytes, Index)> {
    let map = || -> Result<_> {
        let bytes = Bytes::map(&mmap::open(path)?, 0, 0)?;
        let index = Index::parse(&bytes)?;
        Ok((bytes, index))
    };
    map().map_err(|e| e.context(path.display()))
}

/// Header, metadata and tensor table of a file as JSON, which the host frees: "version", "file_length", "identity",
/// "metadata", "tensors" (name, type, shape, offset, bytes). Reads no weights and needs no runtime. NULL_ARG,
/// BAD_UTF8, INVALID_ARG for what is no file, NOT_FOUND, IO, BAD_FORMAT, BAD_VERSION, CHECKSUM, UNSUPPORTED. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_inspect_path(
    path: *const c_char,
    path_length: usize,
    out_json: *mut *mut llm_buffer,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_json], out_err, |host| {
        let out = ptr::out_handle(host, out_json, "out_json")?;
        let (_, index) = map(&ptr::path(host, path, path_length, "path")?)?;
        out.put(Text::new(describe(&index).to_string().as_bytes()))
    })
}

fn describe(index: &Index) -> serde_json::Value {
    let tensors: Vec<_> = index
        .tensors()
        .iter()
        .map(|t| {
            json!({ "name": t.name, "type": t.ty.name(), "shape": t.shape, "offset": t.offset, "bytes": t.len })
        })
        .collect();
    let (major, minor) = index.version();
    let identity: String = index.identity().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "version": format!("{major}.{minor}"),
        "file_length": index.file_len(),
        "identity": identity,
        "metadata": index.metadata(),
        "tensors": tensors,
    })
}

/// Reads a whole file and compares every checksum, without loading it. Progress (may be NULL) is told bytes and answers
/// LLM_CONTROL; it and the cancel handle (may be NULL) end the call. CHECKSUM with detail OFFSET for damage, and as
/// llm_model_inspect_path; CANCELLED, DEADLINE, CALLBACK. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_verify_path(
    path: *const c_char,
    path_length: usize,
    progress: llm_progress_fn,
    user_data: *mut c_void,
    drop: llm_drop_fn,
    cancel: *const llm_cancel,
    out_err: *mut *mut llm_error,
) -> llm_status {
    let progress = Callback::new(progress, user_data, drop);
    entry!(out_err, |host| {
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let (bytes, index) = map(&ptr::path(host, path, path_length, "path")?)?;
        let mut stopped = None;
        let result = index.verify(&bytes, &mut |done, total| {
            let go_on =
                cancel.as_ref().map_or(Ok(()), |c| c.check()).and_then(|()| tell(&progress, done, total));
            match go_on {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    stopped = Some(e);
                    ControlFlow::Break(())
                }
            }
        });
        match stopped {
            Some(e) => Err(e),
            None => result.map(|()| Status::OK).map_err(Error::from),
        }
    })
}

pub(super) type ProgressFn = unsafe extern "C" fn(*mut c_void, u64, u64) -> super::types::llm_control;

/// Tells progress; anything but CONTINUE is an error.
pub(super) fn tell(progress: &Callback<ProgressFn>, done: u64, total: u64) -> Result<()> {
    let answer = progress.call(|function, data| {
        // SAFETY: the host's function with its own data.
        unsafe { function(data, done, total) }
    });
    match answer.map_or(Ok(Control::Continue), callback::control)? {
        Control::Continue => Ok(()),
        Control::Stop | Control::Cancel => {
            Err(Error::new(Status::CANCELLED, "the progress callback asked to end the call"))
        }
    }
}
