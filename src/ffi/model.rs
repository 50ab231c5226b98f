//! Models: options, the four ways to open one, and what a model says about itself.

use std::ffi::{c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};

use super::callback::Callback;
use super::cancel::llm_cancel;
use super::error::llm_error;
use super::file;
use super::guard::{Alive, Host};
use super::handle;
use super::plain::{self, Plain};
use super::ptr::{self, Text};
use super::runtime::llm_runtime;
use super::types::{llm_drop_fn, llm_progress_fn, llm_status};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::model::{Load, Model, OpenOptions, OpenProgress, Verify};
use crate::runtime::Runtime;

/// How to open a model. Class X.
pub struct llm_model_options {
    _opaque: [u8; 0],
}

/// An opened model: weights, tokenizer, metadata. Class S.
pub struct llm_model {
    _opaque: [u8; 0],
}

classes! {
    exclusive llm_model_options(b"mopt"): OpenOptions;
    shared llm_model(b"mode"): Opened;
}

/// A model, what keeps its runtime counted, and its metadata as it is lent.
pub(super) struct Opened {
    pub(super) model: Model,
    alive: Alive,
    meta: OnceLock<Vec<(Text, Text)>>,
}

impl Opened {
    fn new(model: Model, alive: Alive) -> Self {
        Self { model, alive, meta: OnceLock::new() }
    }

    pub(super) fn alive(&self) -> Alive {
        self.alive.clone()
    }

    /// Key and value of each entry: texts as they are, everything else as JSON.
    fn meta(&self) -> &[(Text, Text)] {
        self.meta.get_or_init(|| {
            let entry = |(key, value): (&String, &serde_json::Value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (Text::new(key.as_bytes()), Text::new(value.as_bytes()))
            };
            self.model.metadata().iter().map(entry).collect()
        })
    }
}

/// Map the file: the fastest, and memory is shared; the file must not change while it is open (default).
pub const LLM_LOAD_MAP: i32 = 0;
/// Copy the file into memory: safe against later changes of the file.
pub const LLM_LOAD_COPY: i32 = 1;
/// Map the file and lock it in memory, so that the system never takes its pages away. The system's limit on locked
/// memory must allow it.
pub const LLM_LOAD_MAP_AND_LOCK: i32 = 2;

/// Check the header only, and what is used when it is used.
pub const LLM_VERIFY_HEADER: i32 = 0;
/// Check the structure and the checksums of everything but weights (default).
pub const LLM_VERIFY_STRUCTURE: i32 = 1;
/// Check every checksum: reads the whole file.
pub const LLM_VERIFY_FULL: i32 = 2;

/// Makes options with defaults. NULL_ARG, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_options_new(out_options: *mut *mut llm_model_options) -> llm_status {
    entry!([out_options], |host| ptr::out_handle(host, out_options, "out_options")?
        .put(OpenOptions::default()))
}

/// Whether to map, to copy or to map and lock: one of LLM_LOAD. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_options_set_load_mode(
    options: *mut llm_model_options,
    mode: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.load = match mode {
            LLM_LOAD_MAP => Load::Map,
            LLM_LOAD_COPY => Load::Copy,
            LLM_LOAD_MAP_AND_LOCK => Load::MapAndLock,
            _ => return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_LOAD mode {mode}"))),
        };
        Ok(Status::OK)
    })
}

/// How much to check: one of LLM_VERIFY. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_options_set_verify(
    options: *mut llm_model_options,
    verify: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.verify = match verify {
            LLM_VERIFY_HEADER => Verify::Header,
            LLM_VERIFY_STRUCTURE => Verify::Structure,
            LLM_VERIFY_FULL => Verify::Full,
            _ => return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_VERIFY value {verify}"))),
        };
        Ok(Status::OK)
    })
}

/// Whether a thread of the model reads a mapped file in the background while the first tokens are computed: 1 (default)
/// or 0. It ends with the model at the latest. Linux only, elsewhere without effect. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_options_set_prefetch(
    options: *mut llm_model_options,
    prefetch: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.prefetch = prefetch != 0;
        Ok(Status::OK)
    })
}

/// Tells a callback how far copying and full checking are; it may answer CANCEL. NULL takes it away. NULL_ARG,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_options_set_progress(
    options: *mut llm_model_options,
    progress: llm_progress_fn,
    user_data: *mut c_void,
    drop: llm_drop_fn,
) -> llm_status {
    let progress = Callback::new(progress, user_data, drop);
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        options.progress = progress.is_set().then(|| {
            let tell: OpenProgress = Arc::new(move |done, total| file::tell(&progress, done, total));
            tell
        });
        Ok(Status::OK)
    })
}

/// Frees options; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_options_free(options: *mut llm_model_options) {
    entry!(else (), |host| handle::free(host, options))
}

/// The arguments all openings share.
struct Opening {
    runtime: *const llm_runtime,
    options: *mut llm_model_options,
    cancel: *const llm_cancel,
    out_model: *mut *mut llm_model,
}

impl Opening {
    /// Runs one of the openings between the checks all share.
    fn run(
        self,
        host: Host<'_>,
        open: impl FnOnce(&Runtime, &OpenOptions, Option<&Cancel>) -> Result<Model>,
    ) -> Result<Status> {
        let out = ptr::out_handle(host, self.out_model, "out_model")?;
        let runtime = handle::get(host, self.runtime, "runtime")?;
        let options = handle::lock_optional(host, self.options, "options")?;
        let cancel = handle::get_optional(host, self.cancel, "cancel")?;
        let defaults = OpenOptions::default();
        let model = open(&runtime.runtime, options.as_deref().unwrap_or(&defaults), cancel.as_deref())?;
        out.put(Opened::new(model, runtime.alive.clone()))
    }
}

/// Opens a file. The model keeps the runtime alive. Options and cancel may be NULL. NULL_ARG, BAD_UTF8, INVALID_ARG,
/// NOT_FOUND, IO, BAD_FORMAT, BAD_VERSION, CHECKSUM (detail OFFSET), UNSUPPORTED, NO_MEMORY, BUDGET, CANCELLED,
/// DEADLINE, CALLBACK, BUSY. I on the runtime, X on the options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_open_path(
    runtime: *const llm_runtime,
    path: *const c_char,
    path_length: usize,
    options: *mut llm_model_options,
    cancel: *const llm_cancel,
    out_model: *mut *mut llm_model,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_model], out_err, |host| {
        Opening { runtime, options, cancel, out_model }.run(host, |runtime, options, cancel| {
            Model::open_path(runtime, &ptr::path(host, path, path_length, "path")?, options, cancel)
        })
    })
}

/// Opens a part of a file by its descriptor: `length` bytes from `offset` on, 0 for the rest. The descriptor is
/// duplicated; the host closes its own. As llm_model_open_path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_open_fd(
    runtime: *const llm_runtime,
    fd: c_int,
    offset: u64,
    length: u64,
    options: *mut llm_model_options,
    cancel: *const llm_cancel,
    out_model: *mut *mut llm_model,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_model], out_err, |host| {
        Opening { runtime, options, cancel, out_model }.run(host, |runtime, options, cancel| {
            Model::open_fd(runtime, fd, offset, length, options, cancel)
        })
    })
}

/// What keeps a host's memory: dropped when the last use of the bytes is gone.
struct Memory {
    _owner: Callback<()>,
}

/// Opens a model in memory, which must stay unchanged until `drop` is called with `user_data` (after the model and all
/// that came from it are freed, and also when the call fails); `drop` may be NULL. With load mode copy, or where the
/// address is not a multiple of 64, the bytes are copied. As llm_model_open_path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_open_memory(
    runtime: *const llm_runtime,
    data: *const c_void,
    length: usize,
    user_data: *mut c_void,
    drop: llm_drop_fn,
    options: *mut llm_model_options,
    cancel: *const llm_cancel,
    out_model: *mut *mut llm_model,
    out_err: *mut *mut llm_error,
) -> llm_status {
    let owner = Callback::new(None, user_data, drop);
    entry!([out_model], out_err, |host| {
        Opening { runtime, options, cancel, out_model }.run(host, |runtime, options, cancel| {
            let data = ptr::memory(host, data, length, Memory { _owner: owner }, "data")?;
            Model::open_memory(runtime, data, options, cancel)
        })
    })
}

/// Experts are chosen per token.
pub const LLM_MODEL_EXPERTS: u32 = 1;
/// The file has a tokenizer.
pub const LLM_MODEL_TOKENIZER: u32 = 2;
/// The file has a chat template.
pub const LLM_MODEL_TEMPLATE: u32 = 4;

/// What a model is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_model_info {
    /// sizeof(llm_model_info), set by the host.
    pub struct_size: u32,
    /// Flags of LLM_MODEL.
    pub flags: u32,
    /// Layers.
    pub layers: u32,
    /// Query heads of the first layer.
    pub heads: u32,
    /// Key-value heads of the first layer.
    pub kv_heads: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Rows of the embedding: ids are below it.
    pub vocabulary: u32,
    /// Positions the model was trained for.
    pub context: u32,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Zero.
    pub reserved: [u64; 5],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_model_info {
    const NAME: &'static str = "llm_model_info";
    const FIRST_SIZE: usize = 96;
}

/// Describes a model, into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_get_info(
    model: *const llm_model,
    out_info: *mut llm_model_info,
) -> llm_status {
    entry!(|host| {
        let model = handle::get(host, model, "model")?;
        plain::write(host, out_info, &describe(&model.model), "out_info")?;
        Ok(Status::OK)
    })
}

fn describe(model: &Model) -> llm_model_info {
    let info = model.info();
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    llm_model_info {
        struct_size: size_of::<llm_model_info>() as u32,
        flags: flag(info.experts, LLM_MODEL_EXPERTS)
            | flag(info.tokenizer, LLM_MODEL_TOKENIZER)
            | flag(info.template, LLM_MODEL_TEMPLATE),
        layers: info.layers,
        heads: info.heads,
        kv_heads: info.kv_heads,
        width: info.width,
        vocabulary: info.vocab,
        context: info.context,
        parameters: info.parameters,
        file_bytes: info.file_bytes,
        weight_bytes: info.weight_bytes,
        reserved: [0; 5],
    }
}

/// How many metadata entries the file has; 0 for NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_meta_count(model: *const llm_model) -> usize {
    entry!(else 0, |host| Ok(handle::get(host, model, "model")?.meta().len()))
}

/// Key of a metadata entry by index, borrowed until the model is freed; NULL beyond the last. `out_length` may be
/// NULL. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_meta_key_at(
    model: *const llm_model,
    index: usize,
    out_length: *mut usize,
) -> *const c_char {
    entry!(else std::ptr::null(), |host| {
        let model = handle::get(host, model, "model")?;
        let Some((key, _)) = model.meta().get(index) else { return Ok(std::ptr::null()) };
        ptr::put_optional(host, out_length, key.len());
        Ok(key.as_ptr())
    })
}

/// Value of a metadata entry by key, borrowed until the model is freed: texts as they are, everything else as JSON.
/// `out_length` may be NULL. NOT_FOUND, NULL_ARG, BAD_UTF8. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_meta_get(
    model: *const llm_model,
    key: *const c_char,
    key_length: usize,
    out_value: *mut *const c_char,
    out_length: *mut usize,
) -> llm_status {
    entry!([out_value], |host| {
        let out = ptr::out_borrowed(host, out_value, out_length, "out_value")?;
        let model = handle::get(host, model, "model")?;
        let key = ptr::text_required(host, key, key_length, "key")?;
        let found = model.meta().iter().find(|(k, _)| k.bytes() == key.as_bytes());
        let (_, value) =
            found.ok_or_else(|| Error::new(Status::NOT_FOUND, format!("no metadata {key:?}")))?;
        out.put_text(value);
        Ok(Status::OK)
    })
}

/// Writes 32 bytes that name the model's contents, the same on every machine. NULL_ARG. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_fingerprint(model: *const llm_model, out_bytes: *mut u8) -> llm_status {
    entry!(|host| {
        let model = handle::get(host, model, "model")?;
        ptr::fill(host, &model.model.fingerprint(), out_bytes, 32, std::ptr::null_mut())
    })
}

/// Another handle on the same model, to be freed as well. NULL_ARG, NO_MEMORY. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_retain(
    model: *const llm_model,
    out_model: *mut *mut llm_model,
) -> llm_status {
    entry!([out_model], |host| {
        let out = ptr::out_handle(host, out_model, "out_model")?;
        let model = handle::get(host, model, "model")?;
        out.put(Opened::new(model.model.clone(), model.alive()))
    })
}

/// Frees a model handle; NULL is allowed. The weights go with the last handle on the model, its sessions and
/// tokenizers. S.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_free(model: *mut llm_model) {
    entry!(else (), |host| handle::free(host, model))
}
