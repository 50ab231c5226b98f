//! Snapshots: a session, and a sampler beside it, as bytes or a file.

use std::ffi::{c_char, c_void};
use std::fs::File;
use std::path::Path;

use super::error::llm_error;
use super::guard::Host;
use super::handle;
use super::kv;
use super::plain::{self, Plain};
use super::ptr;
use super::sampler::llm_sampler;
use super::session::{self, llm_session};
use super::types::llm_status;
use crate::error::{Error, Result, Status};
use crate::mmap::{self, Bytes};
use crate::sampler::Sampler;
use crate::session::Session;
use crate::session::snapshot::SnapshotInfo;

/// What a snapshot says about itself.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_snapshot_info {
    /// sizeof(llm_snapshot_info), set by the host.
    pub struct_size: u32,
    /// Version of the layout.
    pub version: u32,
    /// One of LLM_KV_TYPE.
    pub kv_type: i32,
    /// One of LLM_DETERMINISM.
    pub determinism: i32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Length that rotary scaling was told; 0 where it does not matter.
    pub rope_length: u32,
    /// Tokens it holds.
    pub tokens: u64,
    /// Bytes of the whole.
    pub bytes: u64,
    /// 1 if the state of a sampler is in it, else 0.
    pub has_sampler: u32,
    /// Zero.
    pub reserved0: u32,
    /// The model's llm_model_fingerprint.
    pub fingerprint: [u8; 32],
    /// Name of the adapters it was computed with and of their scales, the same on every machine; zeros for none.
    pub adapters: [u8; 32],
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_snapshot_info {
    const NAME: &'static str = "llm_snapshot_info";
    const FIRST_SIZE: usize = 144;
}

fn describe(bytes: &[u8]) -> Result<llm_snapshot_info> {
    let info = SnapshotInfo::read(bytes)?;
    Ok(llm_snapshot_info {
        struct_size: size_of::<llm_snapshot_info>() as u32,
        version: info.version,
        kv_type: kv::type_number(info.kv),
        determinism: session::determinism_number(info.determinism),
        page_tokens: info.page_tokens as u32,
        rope_length: info.rope_length,
        tokens: info.tokens.len() as u64,
        bytes: bytes.len() as u64,
        has_sampler: u32::from(Sampler::is_saved(&info.extra)),
        reserved0: 0,
        fingerprint: info.fingerprint,
        adapters: info.adapters,
        reserved: [0; 4],
    })
}

/// Longer files are asked for their beginning before they are read.
const SHORT: u64 = 1 << 20;
/// Bytes at the beginning of a snapshot that end with the length of the whole.
const HEAD: u64 = 24;

/// The file's bytes, copied, since others may write to it; errors name it.
fn read(path: &Path) -> Result<Bytes> {
    let read = || {
        let file = mmap::open(path)?;
        let length = file.metadata()?.len();
        if length > SHORT {
            check_long(&file, length)?;
        }
        Bytes::read(&file, 0, 0, &mut |_, _| Ok(()))
    };
    read().map_err(|e| e.context(path.display()))
}

/// Refuses a long file that is no snapshot, such as a model, without reading all of it, and one that no memory holds.
fn check_long(file: &File, length: u64) -> Result<()> {
    let head = Bytes::read(file, 0, HEAD, &mut |_, _| Ok(()))?;
    let told = head.get(16..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
    if told != Some(length) {
        // What is wrong with it, since nothing so short is a snapshot.
        SnapshotInfo::read(&head).map_err(|e| e.context(format_args!("{HEAD} of {length} bytes")))?;
    }
    let (memory, _) = mmap::machine_memory();
    if memory > 0 && length > memory {
        let message = format!("a snapshot of {length} bytes; the machine's memory has {memory}");
        let needed = i64::try_from(length).unwrap_or(i64::MAX);
        return Err(Error::new(Status::NO_MEMORY, message).with("needed", needed));
    }
    Ok(())
}

/// Bytes of a snapshot of the session as it is, with the state of a sampler unless that is NULL. NULL_ARG, BUSY. X on
/// both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_snapshot_size(
    session: *mut llm_session,
    sampler: *mut llm_sampler,
    out_bytes: *mut usize,
) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_bytes, "out_bytes")?;
        let session = handle::lock(host, session, "session")?;
        let sampler = handle::lock_optional(host, sampler, "sampler")?;
        out.put(session.session.snapshot_size(sampler.map_or(0, |sampler| sampler.save().len())));
        Ok(Status::OK)
    })
}

/// Writes the session (tokens, pages, logits) to a buffer, ask or fill, with the state of a sampler unless that is NULL:
/// parameters, bias, noise, accepted tokens, what filters learned; not the host's processors, and of a constraint only
/// the tokens under it. Needs as much memory again during the call. BUFFER_SMALL, UNSUPPORTED, NO_MEMORY, KV_FULL where a
/// swapped session cannot come back, NULL_ARG, BUSY. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_snapshot_buffer(
    session: *mut llm_session,
    sampler: *mut llm_sampler,
    buf: *mut c_void,
    cap: usize,
    out_needed: *mut usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let extra = saved(host, sampler)?;
        let size = session.session.snapshot_size(extra.len());
        if size > cap {
            ptr::put_optional(host, out_needed, size);
            let message = format!("the buffer has room for {cap} bytes, the snapshot has {size}");
            return Err(Error::new(Status::BUFFER_SMALL, message).with("needed", size as i64));
        }
        ptr::check_fill(size, buf.cast::<u8>(), "buf")?;
        ptr::fill(host, &session.session.snapshot(&extra)?, buf.cast(), cap, out_needed)
    })
}

/// As llm_session_snapshot_buffer, to a file: written beside it under another name and renamed into place. IO, BAD_UTF8,
/// NOT_FOUND where its directory is not there, INVALID_ARG, and as there. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_snapshot_path(
    session: *mut llm_session,
    sampler: *mut llm_sampler,
    path: *const c_char,
    path_length: usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let path = ptr::path(host, path, path_length, "path")?;
        let mut session = handle::lock(host, session, "session")?;
        session.session.snapshot_to(&path, &saved(host, sampler)?)?;
        Ok(Status::OK)
    })
}

fn saved(host: Host<'_>, sampler: *mut llm_sampler) -> Result<Vec<u8>> {
    Ok(handle::lock_optional(host, sampler, "sampler")?.map_or(Vec::new(), |sampler| sampler.save()))
}

/// Describes a snapshot in memory, into a struct whose struct_size the host has set. The checksum is compared. Needs no
/// model. BAD_FORMAT, BAD_VERSION, CHECKSUM, NULL_ARG, INVALID_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_snapshot_inspect_buffer(
    data: *const c_void,
    length: usize,
    out_info: *mut llm_snapshot_info,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        plain::check(host, out_info, "out_info")?;
        let bytes = ptr::slice(host, data.cast::<u8>(), length, "data")?;
        plain::write(host, out_info, &describe(bytes)?, "out_info")?;
        Ok(Status::OK)
    })
}

/// Describes the snapshot in a file. NOT_FOUND, IO, BAD_UTF8, INVALID_ARG for what is no file, NO_MEMORY, and as
/// llm_snapshot_inspect_buffer. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_snapshot_inspect_path(
    path: *const c_char,
    path_length: usize,
    out_info: *mut llm_snapshot_info,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        plain::check(host, out_info, "out_info")?;
        let path = ptr::path(host, path, path_length, "path")?;
        let info = describe(&read(&path)?).map_err(|e| e.context(path.display()))?;
        plain::write(host, out_info, &info, "out_info")?;
        Ok(Status::OK)
    })
}

/// Makes an empty session, and a sampler unless that is NULL, what a snapshot holds: both go on with the same bits. The
/// sampler keeps its processors, which must be those of the saved one, and its constraint, which takes the saved tokens
/// again. Everything is checked before anything changes. BAD_STATE if the session holds tokens; BAD_FORMAT, BAD_VERSION,
/// CHECKSUM for damaged bytes; MISMATCH for another model, KV type, page size, determinism, rotary length, adapters,
/// processors or constraint; NOT_FOUND where a sampler is given and none was saved; CONTEXT_FULL, KV_FULL, BUDGET,
/// NO_MEMORY: all is as before then. NULL_ARG, BUSY. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_restore_buffer(
    session: *mut llm_session,
    sampler: *mut llm_sampler,
    data: *const c_void,
    length: usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let mut session = handle::lock(host, session, "session")?;
        let mut sampler = handle::lock_optional(host, sampler, "sampler")?;
        let bytes = ptr::slice(host, data.cast::<u8>(), length, "data")?;
        restore(&mut session.session, sampler.as_deref_mut(), bytes)
    })
}

/// As llm_session_restore_buffer, from a file. NOT_FOUND also where there is no such file, INVALID_ARG for what is no file,
/// IO, BAD_UTF8, and as there. X on both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_restore_path(
    session: *mut llm_session,
    sampler: *mut llm_sampler,
    path: *const c_char,
    path_length: usize,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        let path = ptr::path(host, path, path_length, "path")?;
        let mut session = handle::lock(host, session, "session")?;
        let mut sampler = handle::lock_optional(host, sampler, "sampler")?;
        let restored = restore(&mut session.session, sampler.as_deref_mut(), &read(&path)?);
        restored.map_err(|e| e.context(path.display()))
    })
}

fn restore(session: &mut Session, sampler: Option<&mut Sampler>, bytes: &[u8]) -> Result<Status> {
    let Some(sampler) = sampler else {
        session.restore(bytes)?;
        return Ok(Status::OK);
    };
    // The sampler's part is tried first: it changes nothing yet.
    let info = SnapshotInfo::read(bytes)?;
    if !Sampler::is_saved(&info.extra) {
        return Err(Error::new(Status::NOT_FOUND, "the snapshot holds no sampler: it was made without one"));
    }
    let loaded = sampler.loaded(&info.extra)?;
    session.restore(bytes)?;
    *sampler = loaded;
    Ok(Status::OK)
}
