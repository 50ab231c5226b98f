//! The scalars and constants of the header. Numbers are never reused.

use std::ffi::c_void;

/// Result of a call: 0 is success, negative a failure, positive success with news.
pub type llm_status = i32;
/// Id of a token.
pub type llm_token = i32;
/// What a control callback answers: one of LLM_CONTROL.
pub type llm_control = i32;

/// Runs once, when the library no longer needs `user_data`; also when the call that was given it fails.
pub type llm_drop_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;
/// Told how far loading or checking is, in bytes. Answers one of LLM_CONTROL; STOP means CANCEL here.
pub type llm_progress_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, done: u64, total: u64) -> llm_control>;
/// Told how far a prefill is: tokens in all, tokens reused, tokens done, milliseconds so far. Answers one of
/// LLM_CONTROL.
pub type llm_prefill_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        total: u32,
        reused: u32,
        done: u32,
        milliseconds: u64,
    ) -> llm_control,
>;

/// Major version of the library.
pub const LLM_VERSION_MAJOR: i32 = 0;
/// Minor version.
pub const LLM_VERSION_MINOR: i32 = 1;
/// Patch version.
pub const LLM_VERSION_PATCH: i32 = 0;
/// Number of the binary interface this header describes; see llm_abi_check.
pub const LLM_ABI: i32 = 1;

/// Success.
pub const LLM_OK: i32 = 0;
/// Success, and there is nothing more to come.
pub const LLM_DONE: i32 = 1;
/// Success, and there is more to come.
pub const LLM_MORE: i32 = 2;
/// An argument is out of its range.
pub const LLM_INVALID_ARG: i32 = -1;
/// A required pointer is NULL.
pub const LLM_NULL_ARG: i32 = -2;
/// The call does not fit the handle's state, or the process was forked while a runtime existed.
pub const LLM_BAD_STATE: i32 = -3;
/// The handle is in a call on another thread, or belongs to a generation or a batch.
pub const LLM_BUSY: i32 = -4;
/// A callback called back into the handle that runs it.
pub const LLM_REENTRANT: i32 = -5;
/// A cancel handle was triggered, or a callback answered CANCEL.
pub const LLM_CANCELLED: i32 = -6;
/// A cancel handle's deadline passed.
pub const LLM_DEADLINE: i32 = -7;
/// The system has no memory.
pub const LLM_NO_MEMORY: i32 = -8;
/// A limit the host set does not allow it.
pub const LLM_BUDGET: i32 = -9;
/// No free page for keys and values.
pub const LLM_KV_FULL: i32 = -10;
/// The session holds as many tokens as it may.
pub const LLM_CONTEXT_FULL: i32 = -11;
/// There is no such thing: file, key, token, template, detail.
pub const LLM_NOT_FOUND: i32 = -12;
/// The operating system refused to read or write.
pub const LLM_IO: i32 = -13;
/// The data is damaged or not in the expected format.
pub const LLM_BAD_FORMAT: i32 = -14;
/// The file's version is not one this library reads.
pub const LLM_BAD_VERSION: i32 = -15;
/// A checksum differs.
pub const LLM_CHECKSUM: i32 = -16;
/// A snapshot, pool, adapter or draft does not belong to this model.
pub const LLM_MISMATCH: i32 = -17;
/// Not supported by this build or for this model.
pub const LLM_UNSUPPORTED: i32 = -18;
/// A device failed.
pub const LLM_DEVICE: i32 = -19;
/// A device is gone.
pub const LLM_DEVICE_LOST: i32 = -20;
/// The buffer is too small; nothing was written but the size needed.
pub const LLM_BUFFER_SMALL: i32 = -21;
/// Text is not UTF-8.
pub const LLM_BAD_UTF8: i32 = -22;
/// A grammar does not compile.
pub const LLM_GRAMMAR: i32 = -23;
/// A schema does not compile or uses what is not supported.
pub const LLM_SCHEMA: i32 = -24;
/// A constraint allows no token.
pub const LLM_DEAD_END: i32 = -25;
/// A callback answered something it may not.
pub const LLM_CALLBACK: i32 = -26;
/// An earlier call on the handle failed with INTERNAL; only freeing it is allowed.
pub const LLM_POISONED: i32 = -27;
/// A defect in the library.
pub const LLM_INTERNAL: i32 = -28;
/// Header and library do not fit together.
pub const LLM_ABI_MISMATCH: i32 = -29;

/// Go on.
pub const LLM_CONTROL_CONTINUE: i32 = 0;
/// End here and keep what was computed.
pub const LLM_CONTROL_STOP: i32 = 1;
/// End with CANCELLED.
pub const LLM_CONTROL_CANCEL: i32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn every_status_has_its_constant() {
        let source = include_str!("types.rs");
        for (status, name) in Status::ALL {
            let name = if *name == "ABI" { "ABI_MISMATCH" } else { name };
            let line = format!("pub const LLM_{name}: i32 = {};", status.0);
            assert!(source.contains(&line), "missing: {line}");
        }
        assert_eq!(LLM_INTERNAL, Status::INTERNAL.0);
    }

    #[test]
    fn the_version_is_the_packages() {
        let version = format!("{LLM_VERSION_MAJOR}.{LLM_VERSION_MINOR}.{LLM_VERSION_PATCH}");
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
    }
}
