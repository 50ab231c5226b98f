//! The cancel handle.

use std::time::Duration;

use super::handle;
use super::ptr;
use super::types::llm_status;
use crate::cancel::Cancel;
use crate::error::Status;

/// A flag that ends a running call, with an optional deadline. Class I.
pub struct llm_cancel {
    _opaque: [u8; 0],
}

classes! { shared llm_cancel(b"canc"): Cancel; }

/// Makes a flag that is not set, without a deadline. The host frees it; calls that were given it keep what they
/// need. NULL_ARG, NO_MEMORY. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_cancel_new(out_cancel: *mut *mut llm_cancel) -> llm_status {
    entry!([out_cancel], |host| ptr::out_handle(host, out_cancel, "out_cancel")?.put(Cancel::new()))
}

/// Sets the flag: calls that were given it end with CANCELLED, within a layer. One atomic store, without a lock.
/// NULL is ignored. I, callback-safe, async-signal-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_cancel_trigger(cancel: *const llm_cancel) {
    // No panic fence: nothing here can panic, and the fence is not for signal handlers.
    // SAFETY: an exported function's argument.
    unsafe { handle::peek(cancel, |cancel| cancel.trigger()) };
}

/// Sets a deadline this many milliseconds from now, in place of an earlier one; calls end with DEADLINE after it.
/// NULL_ARG. I, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_cancel_set_deadline_ms(
    cancel: *const llm_cancel,
    milliseconds: u64,
) -> llm_status {
    entry!(
        safe | host | {
            handle::get(host, cancel, "cancel")?.set_deadline(Some(Duration::from_millis(milliseconds)));
            Ok(Status::OK)
        }
    )
}

/// 1 if the flag is set, 0 if not (a deadline that passed is not the flag); 0 for NULL. Without a lock.
/// I, callback-safe, async-signal-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_cancel_is_set(cancel: *const llm_cancel) -> i32 {
    // SAFETY: an exported function's argument.
    i32::from(unsafe { handle::peek(cancel, Cancel::is_set) }.unwrap_or(false))
}

/// Clears the flag and the deadline, for the next call. NULL_ARG. I, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_cancel_reset(cancel: *const llm_cancel) -> llm_status {
    entry!(
        safe | host | {
            handle::get(host, cancel, "cancel")?.reset();
            Ok(Status::OK)
        }
    )
}

/// Frees a cancel handle; NULL is allowed. A signal handler must not use it any more. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_cancel_free(cancel: *mut llm_cancel) {
    entry!(else (), |host| handle::free(host, cancel))
}
