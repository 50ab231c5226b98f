//! What a runtime computes on, what it uses, and giving memory back.

use std::ffi::c_char;

use super::handle;
use super::plain::{self, Plain};
use super::ptr;
use super::runtime::{self, llm_runtime};
use super::types::llm_status;
use crate::error::{Error, Status};
use crate::runtime::Memory;

/// The processor.
pub const LLM_DEVICE_CPU: i32 = 0;

/// What a device is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_device_info {
    /// sizeof(llm_device_info), set by the host.
    pub struct_size: u32,
    /// LLM_DEVICE_CPU.
    pub kind: i32,
    /// Bytes of memory it has; 0 where the system does not tell.
    pub total_bytes: u64,
    /// Bytes of it that nobody uses; 0 where the system does not tell.
    pub free_bytes: u64,
    /// Compute threads.
    pub threads: u32,
    /// Which levels it honours: bit LLM_DETERMINISM_BATCH, and so on.
    pub determinism: u32,
    /// Its name with the instruction set in use, ended by NUL.
    pub name: [c_char; 64],
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_device_info {
    const NAME: &'static str = "llm_device_info";
    const FIRST_SIZE: usize = 128;
}

/// How many devices the runtime can compute on; 0 for NULL. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_device_count(runtime: *const llm_runtime) -> usize {
    entry!(else 0, |host| Ok(handle::get(host, runtime, "runtime")?.runtime.devices().len()))
}

/// Describes a device, 0 and up, into a struct whose struct_size the host has set. NOT_FOUND beyond the last, NULL_ARG,
/// INVALID_ARG. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_device_info(
    runtime: *const llm_runtime,
    index: usize,
    out_info: *mut llm_device_info,
) -> llm_status {
    entry!(|host| {
        let runtime = handle::get(host, runtime, "runtime")?;
        plain::check(host, out_info, "out_info")?;
        let devices = runtime.runtime.devices();
        let Some(device) = devices.get(index) else {
            let message = format!("device {index}: the runtime has {}", devices.len());
            return Err(Error::new(Status::NOT_FOUND, message));
        };
        let mut name = [0; 64];
        for (to, from) in name.iter_mut().take(63).zip(device.name.bytes()) {
            *to = from as c_char;
        }
        let info = llm_device_info {
            struct_size: size_of::<llm_device_info>() as u32,
            kind: LLM_DEVICE_CPU,
            total_bytes: device.total,
            free_bytes: device.free,
            threads: device.threads as u32,
            determinism: 0b111,
            name,
            reserved: [0; 4],
        };
        plain::write(host, out_info, &info, "out_info")?;
        Ok(Status::OK)
    })
}

/// Live bytes of a runtime by what they are for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_memory_use {
    /// sizeof(llm_memory_use), set by the host.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Weights that were copied; mapped ones are not counted.
    pub weights: u64,
    /// Pages of KV pools that were ever written and not given back.
    pub kv: u64,
    /// Activations and logits of sessions and batches.
    pub scratch: u64,
    /// All of these.
    pub total: u64,
    /// The limit on them, 0 for none.
    pub limit: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: as above.
unsafe impl Plain for llm_memory_use {
    const NAME: &'static str = "llm_memory_use";
    const FIRST_SIZE: usize = 80;
}

/// What the runtime's models, pools and sessions use, into a struct whose struct_size the host has set. Without a lock.
/// NULL_ARG, INVALID_ARG. I, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_memory_use(
    runtime: *const llm_runtime,
    out_use: *mut llm_memory_use,
) -> llm_status {
    entry!(
        safe | host | {
            let runtime = &handle::get(host, runtime, "runtime")?.runtime;
            let [weights, kv, scratch] =
                [Memory::Weights, Memory::Kv, Memory::Scratch].map(|category| runtime.memory_use(category));
            let now = llm_memory_use {
                struct_size: size_of::<llm_memory_use>() as u32,
                reserved0: 0,
                weights,
                kv,
                scratch,
                total: weights.saturating_add(kv).saturating_add(scratch),
                limit: runtime.host_limit().unwrap_or(0),
                reserved: [0; 4],
            };
            plain::write(host, out_use, &now, "out_use")?;
            Ok(Status::OK)
        }
    )
}

/// Give back the memory of KV pages that hold nothing.
pub const LLM_TRIM_MILD: i32 = 0;
/// Also of those that only the prefix cache keeps and nobody has pinned: they will be computed again.
pub const LLM_TRIM_HARD: i32 = 1;

/// Gives memory back to the system, for an event of memory pressure: one of LLM_TRIM, of all KV pools of the runtime.
/// `out_bytes` (may be NULL) tells how many bytes it were. Waits for steps that are running. NULL_ARG, INVALID_ARG. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_trim(
    runtime: *const llm_runtime,
    level: i32,
    out_bytes: *mut u64,
) -> llm_status {
    entry!(|host| {
        let runtime = handle::get(host, runtime, "runtime")?;
        let hard = match level {
            LLM_TRIM_MILD => false,
            LLM_TRIM_HARD => true,
            other => return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_TRIM level {other}"))),
        };
        ptr::put_optional(host, out_bytes, runtime.runtime.trim(hard));
        Ok(Status::OK)
    })
}

/// Changes what goes to the sink that the runtime was made with: records up to this LLM_LOG level, LLM_LOG_OFF for none.
/// NULL_ARG, INVALID_ARG. I, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_runtime_set_log_level(
    runtime: *const llm_runtime,
    log_level: i32,
) -> llm_status {
    entry!(
        safe | host | {
            handle::get(host, runtime, "runtime")?.runtime.set_log_level(runtime::level(log_level)?);
            Ok(Status::OK)
        }
    )
}
