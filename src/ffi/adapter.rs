//! Adapters: low-rank changes of a model's matrices, and which of them a session runs with.

use std::ffi::{c_char, c_void};

use super::callback::Callback;
use super::cancel::llm_cancel;
use super::error::llm_error;
use super::guard::Alive;
use super::handle;
use super::model::llm_model;
use super::plain::{self, Plain};
use super::ptr;
use super::session::llm_session;
use super::types::{llm_drop_fn, llm_status};
use crate::adapter::Adapter;
use crate::error::Status;

/// An open adapter. Class S.
pub struct llm_adapter {
    _opaque: [u8; 0],
}

classes! {
    shared llm_adapter(b"adap"): Open;
}

/// An adapter, and what keeps the runtime counted that its copy of a file is charged to.
pub(super) struct Open {
    adapter: Adapter,
    _alive: Alive,
}

/// What an adapter is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_adapter_info {
    /// sizeof(llm_adapter_info), set by the host.
    pub struct_size: u32,
    /// Matrices it changes.
    pub targets: u32,
    /// The largest rank among them.
    pub rank: u32,
    /// Zero.
    pub reserved: u32,
    /// Values of all its matrices.
    pub parameters: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// 32 bytes that name its contents, the same on every machine.
    pub fingerprint: [u8; 32],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_adapter_info {
    const NAME: &'static str = "llm_adapter_info";
    const FIRST_SIZE: usize = 64;
}

/// Opens an adapter for a model: a file made by `libllm convert` from PEFT's layout. It is mapped, and read once for its
/// checksums. The host frees it with llm_adapter_free; sessions that use it keep it. NULL_ARG, BAD_UTF8, INVALID_ARG,
/// NOT_FOUND, IO, BAD_FORMAT, BAD_VERSION, CHECKSUM (detail OFFSET), MISMATCH where it does not belong to the model,
/// NO_MEMORY, BUDGET. S on the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_adapter_open_path(
    model: *const llm_model,
    path: *const c_char,
    path_length: usize,
    out_adapter: *mut *mut llm_adapter,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_adapter], out_err, |host| {
        let out = ptr::out_handle(host, out_adapter, "out_adapter")?;
        let model = handle::get(host, model, "model")?;
        let adapter = Adapter::open_path(&model.model, &ptr::path(host, path, path_length, "path")?)?;
        out.put(Open { adapter, _alive: model.alive() })
    })
}

/// What keeps a host's memory: dropped when the last use of the bytes is gone.
struct Memory {
    _owner: Callback<()>,
}

/// Opens an adapter in memory, which must stay unchanged until `drop` is called with `user_data` (after the adapter and
/// all sessions that use it are done with it, and also when the call fails); `drop` may be NULL. Where the address is not
/// a multiple of 64 the bytes are copied. As llm_adapter_open_path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_adapter_open_memory(
    model: *const llm_model,
    data: *const c_void,
    length: usize,
    user_data: *mut c_void,
    drop: llm_drop_fn,
    out_adapter: *mut *mut llm_adapter,
    out_err: *mut *mut llm_error,
) -> llm_status {
    let owner = Callback::new(None, user_data, drop);
    entry!([out_adapter], out_err, |host| {
        let out = ptr::out_handle(host, out_adapter, "out_adapter")?;
        let model = handle::get(host, model, "model")?;
        let data = ptr::memory(host, data, length, Memory { _owner: owner }, "data")?;
        out.put(Open { adapter: Adapter::open_memory(&model.model, data)?, _alive: model.alive() })
    })
}

/// Describes an adapter, into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_adapter_get_info(
    adapter: *const llm_adapter,
    out_info: *mut llm_adapter_info,
) -> llm_status {
    entry!(|host| {
        let adapter = handle::get(host, adapter, "adapter")?;
        let info = adapter.adapter.info();
        let info = llm_adapter_info {
            struct_size: size_of::<llm_adapter_info>() as u32,
            targets: u32::try_from(info.targets).unwrap_or(u32::MAX),
            rank: u32::try_from(info.rank).unwrap_or(u32::MAX),
            reserved: 0,
            parameters: info.parameters,
            file_bytes: info.file_bytes,
            fingerprint: info.fingerprint,
        };
        plain::write(host, out_info, &info, "out_info")?;
        Ok(Status::OK)
    })
}

/// Frees an adapter; NULL is allowed. Sessions that use it go on with it. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_adapter_free(adapter: *mut llm_adapter) {
    entry!(else (), |host| handle::free(host, adapter))
}

/// A session that holds tokens computes them again with its new adapters.
pub const LLM_ADAPTERS_RECOMPUTE: u32 = 1;

/// Runs a session with `count` adapters from now on, each with a factor on its change; 0: with the model as it is. Their
/// changes are added in the order given. They are part of what cached prefixes are found by and of snapshots, and stay
/// when the session is reset or forked. `flags` is 0 or LLM_ADAPTERS_RECOMPUTE, `cancel` may be NULL and ends only such a
/// computation. BAD_STATE for a session that holds tokens, without the flag; MISMATCH for an adapter of another model;
/// INVALID_ARG, NULL_ARG, BUSY: nothing has changed then. As llm_session_prefill where tokens are computed again; the
/// session then has the adapters it had and is empty. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_set_adapters(
    session: *mut llm_session,
    adapters: *const *const llm_adapter,
    scales: *const f32,
    count: usize,
    flags: u32,
    cancel: *const llm_cancel,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let cancel = handle::get_optional(host, cancel, "cancel")?;
        let (adapters, scales) =
            (ptr::slice(host, adapters, count, "adapters")?, ptr::slice(host, scales, count, "scales")?);
        if flags & !LLM_ADAPTERS_RECOMPUTE != 0 {
            let message = format!("unknown flags {flags:#x}, expected 0 or LLM_ADAPTERS_RECOMPUTE");
            return Err(crate::error::Error::new(Status::INVALID_ARG, message));
        }
        let mut all = Vec::new();
        for (adapter, scale) in adapters.iter().zip(scales) {
            all.push((handle::get(host, *adapter, "adapters")?.adapter.clone(), *scale));
        }
        if flags & LLM_ADAPTERS_RECOMPUTE == 0 {
            session.session.set_adapters(&all)?;
        } else {
            session.session.change_adapters(&all, cancel.as_deref(), None)?;
        }
        Ok(Status::OK)
    })
}
