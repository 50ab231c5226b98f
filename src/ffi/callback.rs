//! Callbacks: the triple of function, user data and drop.

use std::ffi::c_void;

use super::float;
use super::types::{LLM_CONTROL_CANCEL, LLM_CONTROL_CONTINUE, LLM_CONTROL_STOP, llm_control, llm_drop_fn};
use crate::error::{Error, Result, Status};

/// A host's function with its data. Built before anything else is checked, so that `drop` runs exactly once
/// even where the registration fails.
pub(super) struct Callback<F: Copy> {
    function: Option<F>,
    user_data: *mut c_void,
    drop: llm_drop_fn,
}

// SAFETY: the header makes the host promise that a callback with its data may run on the thread that makes the
// blocking call, whichever it is, and that a log sink may run on any thread; nothing here touches the data.
unsafe impl<F: Copy> Send for Callback<F> {}
// SAFETY: as above; calls through a shared reference are serialised by the owner (log) or by the X class.
unsafe impl<F: Copy> Sync for Callback<F> {}

impl<F: Copy> Callback<F> {
    pub(super) fn new(function: Option<F>, user_data: *mut c_void, drop: llm_drop_fn) -> Self {
        Self { function, user_data, drop }
    }

    pub(super) fn is_set(&self) -> bool {
        self.function.is_some()
    }

    /// Runs `call` with the function and its data under the host's floating-point word; `None` if no function
    /// was given.
    pub(super) fn call<R>(&self, call: impl FnOnce(F, *mut c_void) -> R) -> Option<R> {
        self.function.map(|f| float::as_host(|| call(f, self.user_data)))
    }
}

impl<F: Copy> Drop for Callback<F> {
    fn drop(&mut self) {
        if let Some(drop) = self.drop {
            // SAFETY: the host gave this function for this data, and it runs here only.
            float::as_host(|| unsafe { drop(self.user_data) });
        }
    }
}

/// What a control callback wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Control {
    Continue,
    Stop,
    Cancel,
}

/// Reads a control callback's answer.
pub(super) fn control(answer: llm_control) -> Result<Control> {
    match answer {
        LLM_CONTROL_CONTINUE => Ok(Control::Continue),
        LLM_CONTROL_STOP => Ok(Control::Stop),
        LLM_CONTROL_CANCEL => Ok(Control::Cancel),
        other => Err(Error::new(
            Status::CALLBACK,
            format!("a callback answered {other}, expected an LLM_CONTROL value (0, 1 or 2)"),
        )),
    }
}
