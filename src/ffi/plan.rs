//! What sessions would take of memory.

use super::error::llm_error;
use super::handle;
use super::kv::llm_kv_options;
use super::model::llm_model;
use super::plain::{self, Plain};
use super::session::llm_session_options;
use super::types::llm_status;
use crate::error::{Error, Status};
use crate::kv::KvOptions;
use crate::session::{MemoryPlan, SessionOptions};

/// What sessions of a model take of memory: bytes, unless said otherwise.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_memory_plan {
    /// sizeof(llm_memory_plan), set by the host.
    pub struct_size: u32,
    /// How many sessions.
    pub sessions: u32,
    /// Tokens of each.
    pub tokens: u64,
    /// The model's file, where it is mapped: shared with other processes, and the system may take it back.
    pub weights_mapped: u64,
    /// The model's file, where it was copied.
    pub weights_copied: u64,
    /// Keys and values of a token, all layers.
    pub kv_per_token: u64,
    /// Pages of all sessions when they are full and share nothing.
    pub kv_total: u64,
    /// Activations and logits of all sessions.
    pub scratch: u64,
    /// Of `peak`, what lies in the machine's memory.
    pub host_bytes: u64,
    /// Of `peak`, what lies on other devices.
    pub device_bytes: u64,
    /// The most that is allocated: copied weights, pages, scratch.
    pub peak: u64,
    /// What largest_context was reckoned against.
    pub limit: u64,
    /// Tokens that each of the sessions can have within the limit; 0 if none. It may be more than the model was trained
    /// for.
    pub largest_context: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_memory_plan {
    const NAME: &'static str = "llm_memory_plan";
    const FIRST_SIZE: usize = 128;
}

/// Tells what `sessions` sessions with these options take, each full, before any is made; of the KV options, page and
/// type count. NULL options are the defaults. `limit_bytes` 0: the runtime's limit, and without one the machine's memory
/// less the mapped file. The plan is into a struct whose struct_size the host has set. NULL_ARG, INVALID_ARG also for no
/// sessions, UNSUPPORTED, BUSY. S on the model, X on the options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_model_plan(
    model: *const llm_model,
    kv_options: *mut llm_kv_options,
    session_options: *mut llm_session_options,
    sessions: u32,
    limit_bytes: u64,
    out_plan: *mut llm_memory_plan,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        plain::check(host, out_plan, "out_plan")?;
        let model = handle::get(host, model, "model")?;
        let kv = handle::lock_optional(host, kv_options, "kv_options")?;
        let options = handle::lock_optional(host, session_options, "session_options")?;
        if sessions == 0 {
            return Err(Error::new(Status::INVALID_ARG, "`sessions` is 0, expected at least 1"));
        }
        let (kv_defaults, defaults) = (KvOptions::default(), SessionOptions::default());
        let (kv, options) = (kv.as_deref().unwrap_or(&kv_defaults), options.as_deref().unwrap_or(&defaults));
        let limit = (limit_bytes > 0).then_some(limit_bytes);
        let plan = MemoryPlan::new(&model.model, kv, options, u64::from(sessions), limit)?;
        let plan = llm_memory_plan {
            struct_size: size_of::<llm_memory_plan>() as u32,
            sessions,
            tokens: plan.tokens,
            weights_mapped: plan.weights_mapped,
            weights_copied: plan.weights_copied,
            kv_per_token: plan.kv_per_token,
            kv_total: plan.kv_total,
            scratch: plan.scratch,
            host_bytes: plan.peak,
            device_bytes: 0,
            peak: plan.peak,
            limit: plan.limit,
            largest_context: plan.largest_context,
            reserved: [0; 4],
        };
        plain::write(host, out_plan, &plan, "out_plan")?;
        Ok(Status::OK)
    })
}
