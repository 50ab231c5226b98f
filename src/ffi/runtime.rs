//! Runtimes: threads, limits, log sink.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::callback::Callback;
use super::error::llm_error;
use super::guard::{self, Alive};
use super::handle;
use super::ptr::{self, Text};
use super::types::{llm_drop_fn, llm_status};
use crate::error::{Error, Result, Status};
use crate::runtime::{LogLevel, Runtime, RuntimeOptions};

/// What a runtime shall be. Class X.
pub struct llm_runtime_options {
    _opaque: [u8; 0],
}

/// Compute threads, limits and a log sink; several may coexist. Class I.
pub struct llm_runtime {
    _opaque: [u8; 0],
}

classes! {
    exclusive llm_runtime_options(b"ropt"): Options;
    shared llm_runtime(b"runt"): Running;
}

/// Options as they are collected; they may make several runtimes, so the sink is shared.
#[derive(Default)]
pub(super) struct Options {
    threads: usize,
    affinity: Vec<usize>,
    niceness: i32,
    isa: Option<String>,
    ignore_environment: bool,
    host_limit: Option<u64>,
    /// The least level that is logged, if any, and the sink: it may be turned up later.
    log: Option<(Option<LogLevel>, Arc<Callback<LogFn>>)>,
}

/// A runtime, counted for the check after fork.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) runtime: Runtime,
    pub(super) alive: Alive,
}

/// Nothing is logged.
pub const LLM_LOG_OFF: i32 = 0;
/// What went wrong and no status reports.
pub const LLM_LOG_ERROR: i32 = 1;
/// What the host should know.
pub const LLM_LOG_WARN: i32 = 2;
/// What is going on.
pub const LLM_LOG_INFO: i32 = 3;
/// Details for finding faults.
pub const LLM_LOG_DEBUG: i32 = 4;

/// Told whole log records, on any thread, one at a time per runtime. The text ends with NUL and is borrowed for the
/// call. Only callback-safe functions may be called inside.
pub type llm_log_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, text: *const c_char, text_length: usize)>;
type LogFn = unsafe extern "C" fn(*mut c_void, i32, *const c_char, usize);

pub(super) fn level(number: i32) -> Result<Option<LogLevel>> {
    Ok(Some(match number {
        LLM_LOG_OFF => return Ok(None),
        LLM_LOG_ERROR => LogLevel::Error,
        LLM_LOG_WARN => LogLevel::Warn,
        LLM_LOG_INFO => LogLevel::Info,
        LLM_LOG_DEBUG => LogLevel::Debug,
        _ => return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_LOG level {number}"))),
    }))
}

/// Makes options with defaults: the cores the process may use, no limit, silence. NULL_ARG, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_new(out_options: *mut *mut llm_runtime_options) -> llm_status {
    entry!([out_options], |host| ptr::out_handle(host, out_options, "out_options")?.put(Options::default()))
}

/// How many threads compute, the calling one included; 0: as many as the cores the process may use. NULL_ARG,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_set_threads(
    options: *mut llm_runtime_options,
    threads: u32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.threads = threads as usize;
        Ok(Status::OK)
    })
}

/// Binds thread i to core `cores[i mod count]`. Thread 0 is the calling one, which is left where it is; `count` 0
/// binds nobody (default). Linux only, elsewhere without effect. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_set_affinity(
    options: *mut llm_runtime_options,
    cores: *const u32,
    count: usize,
) -> llm_status {
    entry!(|host| {
        let cores = ptr::slice(host, cores, count, "cores")?;
        handle::lock(host, options, "options")?.affinity = cores.iter().map(|&core| core as usize).collect();
        Ok(Status::OK)
    })
}

/// Niceness of the compute threads: -20 (first served; the system may refuse it and leaves them as they are) to 19; 0:
/// the one they inherit (default). The calling thread is left as it is. llm_runtime_new checks it. Linux only, elsewhere
/// without effect. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_set_priority(
    options: *mut llm_runtime_options,
    niceness: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.niceness = niceness;
        Ok(Status::OK)
    })
}

/// An instruction set in place of the best one ("scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "neon-dotprod",
/// "neon-i8mm"), for tests; NULL: the best one (default). llm_runtime_new checks it. BAD_UTF8, NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_set_isa(
    options: *mut llm_runtime_options,
    name: *const c_char,
    name_length: usize,
) -> llm_status {
    entry!(|host| {
        let name = ptr::text_optional(host, name, name_length, "name")?;
        handle::lock(host, options, "options")?.isa = name.map(str::to_owned);
        Ok(Status::OK)
    })
}

/// Whether the environment is read (default) or, with 0, not: LLM_ISA then means nothing. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_set_environment(
    options: *mut llm_runtime_options,
    read: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.ignore_environment = read == 0;
        Ok(Status::OK)
    })
}

/// Bytes of memory that models and sessions of the runtime may allocate, mapped weights not counted; 0: no limit.
/// What would exceed it gets BUDGET. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_set_host_limit(
    options: *mut llm_runtime_options,
    bytes: u64,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.host_limit = (bytes > 0).then_some(bytes);
        Ok(Status::OK)
    })
}

/// Sends records up to this LLM_LOG level to a sink; without one nothing is logged anywhere. A sink with LLM_LOG_OFF is
/// told nothing until llm_runtime_set_log_level. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_set_log(
    options: *mut llm_runtime_options,
    log_level: i32,
    sink: llm_log_fn,
    user_data: *mut c_void,
    drop: llm_drop_fn,
) -> llm_status {
    let sink = Callback::new(sink, user_data, drop);
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        options.log = Some((level(log_level)?, Arc::new(sink)));
        Ok(Status::OK)
    })
}

/// Frees options; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_options_free(options: *mut llm_runtime_options) {
    entry!(else (), |host| handle::free(host, options))
}

/// Starts a runtime with its threads. NULL options are the defaults. The environment variable LLM_ISA names an
/// instruction set in place of the best one and of the options'. NULL_ARG, INVALID_ARG, UNSUPPORTED, NO_MEMORY, BUSY. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_new(
    options: *mut llm_runtime_options,
    out_runtime: *mut *mut llm_runtime,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_runtime], out_err, |host| {
        let out = ptr::out_handle(host, out_runtime, "out_runtime")?;
        let options = handle::lock_optional(host, options, "options")?;
        let mut chosen = RuntimeOptions::default();
        let mut off = false;
        if let Some(options) = &options {
            chosen.threads = options.threads;
            chosen.affinity = options.affinity.clone();
            chosen.niceness = options.niceness;
            chosen.isa = options.isa.clone();
            chosen.ignore_environment = options.ignore_environment;
            chosen.host_limit = options.host_limit;
            if let Some((level, sink)) = &options.log {
                let sink = Arc::clone(sink);
                off = level.is_none();
                chosen.log_level = level.or(Some(LogLevel::Error));
                chosen.log = Some(Box::new(move |level, record| tell(&sink, level, record)));
            }
        }
        let runtime = Runtime::new(chosen)?; // it logs no errors
        if off {
            runtime.set_log_level(None);
        }
        out.put(Running { runtime, alive: Alive::new() })
    })
}

fn tell(sink: &Callback<LogFn>, level: LogLevel, record: &str) {
    let text = Text::new(record.as_bytes());
    guard::in_sink(|| {
        sink.call(|function, data| {
            // SAFETY: the host's function with its own data; the text lives for the call.
            unsafe { function(data, level as i32, text.as_ptr(), text.len()) }
        });
    });
}

/// Another handle on the same runtime, to be freed as well. NULL_ARG, NO_MEMORY. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_retain(
    runtime: *const llm_runtime,
    out_runtime: *mut *mut llm_runtime,
) -> llm_status {
    entry!([out_runtime], |host| {
        let out = ptr::out_handle(host, out_runtime, "out_runtime")?;
        let runtime = handle::get(host, runtime, "runtime")?;
        out.put(runtime.clone())
    })
}

/// Frees a runtime handle; NULL is allowed. The threads end with the last handle on the runtime, its models and
/// their sessions. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_free(runtime: *mut llm_runtime) {
    entry!(else (), |host| handle::free(host, runtime))
}
