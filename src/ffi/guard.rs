//! What stands around every exported function: the fork check, the panic fence, the error object, the
//! floating-point word. `entry!` is the only way in.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use super::error::{self, llm_error};
use super::float::Float;
use super::types::llm_status;
use crate::error::{Error, Result, Status};

/// Stands for the promise a C caller gives by calling: every pointer argument is NULL or what `llm.h` says of
/// it, for the length of the call `'c`. Only `entry!` makes one; the helpers that dereference ask for it.
#[derive(Clone, Copy)]
pub(super) struct Host<'c>(PhantomData<&'c ()>);

impl Host<'_> {
    /// # Safety
    /// - Called on entry of an exported function, for that function's arguments only.
    pub(super) unsafe fn trust() -> Self {
        Host(PhantomData)
    }
}

/// The body of an exported function: `entry!(out_err, |host| ...)` with an error object, `entry!(|host| ...)`
/// without; `entry!(safe |host| ...)` is allowed inside a log sink. `[out_x],` in front names the function's pointer
/// output, which is NULL from then on, also where the call is refused before the closure runs. The closure returns
/// `Result<Status>`. `entry!(else FALLBACK, |host| ...)` is for functions that return a plain value.
macro_rules! entry {
    ([$out:expr], $($rest:tt)*) => {{
        $crate::ffi::ptr::set_null(entry!(@), $out);
        entry!($($rest)*)
    }};
    (else $fallback:expr, |$host:ident| $body:expr) => {
        $crate::ffi::guard::value(entry!(@), $fallback, |$host| $body)
    };
    (safe |$host:ident| $body:expr) => {{
        let no_error = std::ptr::null_mut();
        $crate::ffi::guard::run(entry!(@), no_error, $crate::ffi::guard::Kind::CallbackSafe, |$host| $body)
    }};
    ($err:expr, |$host:ident| $body:expr) => {
        $crate::ffi::guard::run(entry!(@), $err, $crate::ffi::guard::Kind::Plain, |$host| $body)
    };
    (|$host:ident| $body:expr) => {
        entry!(std::ptr::null_mut(), |$host| $body)
    };
    (@) => {
        // SAFETY: the body of an exported function; its caller gives the promise that `Host` stands for.
        unsafe { $crate::ffi::guard::Host::trust() }
    };
}

/// What an entry is, besides what all are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Neither logs nor waits, so that even a log sink may call it.
    CallbackSafe,
}

/// Runs the body of a function that returns a status.
pub(super) fn run<'c>(
    host: Host<'c>,
    out_err: *mut *mut llm_error,
    kind: Kind,
    body: impl FnOnce(Host<'c>) -> Result<Status>,
) -> llm_status {
    let mut body = Some(body);
    run_once(host, out_err, kind, &mut |host| body.take().map_or(Ok(Status::OK), |body| body(host)))
}

/// [`run`] for whichever body, so that what stands around it is in the library once. It calls `body` at most once.
fn run_once<'c>(
    host: Host<'c>,
    out_err: *mut *mut llm_error,
    kind: Kind,
    body: &mut dyn FnMut(Host<'c>) -> Result<Status>,
) -> llm_status {
    error::clear(host, out_err);
    let result = fence(&mut || {
        check_fork()?;
        if kind != Kind::CallbackSafe {
            check_sink()?;
        }
        let _float = Float::enter();
        body(host)
    });
    match result {
        Ok(status) => status.0,
        Err(e) => {
            let status = e.status().0;
            error::store(host, out_err, &e);
            status
        }
    }
}

/// Runs the body of a function that returns a plain value.
pub(super) fn value<'c, T>(host: Host<'c>, fallback: T, body: impl FnOnce(Host<'c>) -> Result<T>) -> T {
    let (mut body, mut value) = (Some(body), None);
    // an error leaves the fallback
    let _ = fence(&mut || {
        value = body.take().map(|body| body(host)).transpose()?;
        Ok(Status::OK)
    });
    value.unwrap_or(fallback)
}

/// Runs `body`; a panic becomes `INTERNAL`. The handles it held poison themselves while unwinding.
fn fence(body: &mut dyn FnMut() -> Result<Status>) -> Result<Status> {
    static HOOK: Once = Once::new();
    HOOK.call_once(keep_panics_quiet);
    let depth = INSIDE.get();
    INSIDE.set(depth + 1);
    // Nothing torn can be seen afterwards: whatever was borrowed exclusively is poisoned by its guard.
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(depth);
    match outcome {
        Ok(result) => result,
        Err(payload) => {
            let what = LAST_PANIC.take().unwrap_or_else(|| text_of(&*payload));
            // A payload may itself panic when dropped; it is a string in all but contrived cases.
            std::mem::forget(payload);
            Err(Error::new(Status::INTERNAL, format!("a defect in libllm: {what}; the handle is poisoned")))
        }
    }
}

thread_local! {
    static INSIDE: Cell<u32> = const { Cell::new(0) };
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The default hook writes to standard error, which belongs to the host. Ours keeps the text for the error
/// object where the panic is inside a call from C, and leaves all others to the hook that was there.
fn keep_panics_quiet() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if INSIDE.try_with(Cell::get).unwrap_or(0) == 0 {
            // Our own threads hand what they catch to the call that they work for.
            if !is_ours(std::thread::current().name()) {
                previous(info);
            }
            return;
        }
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let text = format!("{}{place}", text_of(info.payload()));
        let _ = LAST_PANIC.try_with(|slot| slot.replace(Some(text)));
    }));
}

/// Whether a thread of this name works for a call: one of a runtime's pool, or one that compiles a constraint.
fn is_ours(name: Option<&str>) -> bool {
    let rest = name.and_then(|name| name.strip_prefix("llm-"));
    rest.is_some_and(|rest| rest == "compile" || rest.parse::<u32>().is_ok())
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(s), _) => (*s).to_owned(),
        (_, Some(s)) => s.clone(),
        _ => "panic without a text".to_owned(),
    }
}

thread_local! {
    static IN_SINK: Cell<bool> = const { Cell::new(false) };
}

/// Runs a host's log sink. The runtime holds its log locked meanwhile, so calls that could log are answered with
/// `REENTRANT` while the sink runs on their thread.
pub(super) fn in_sink(sink: impl FnOnce()) {
    let outer = IN_SINK.replace(true);
    sink();
    IN_SINK.set(outer);
}

fn check_sink() -> Result<()> {
    if IN_SINK.get() {
        return Err(Error::new(
            Status::REENTRANT,
            "called from inside a log sink; only callback-safe functions are",
        ));
    }
    Ok(())
}

/// Process that owns the live runtimes, and how many there are. A child of `fork` has a copy of the numbers but
/// none of the threads, so everything there is answered with `BAD_STATE`.
static OWNER: AtomicU32 = AtomicU32::new(0);
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// Held by everything that keeps a runtime's threads alive.
#[derive(Clone)]
pub(super) struct Alive(#[allow(dead_code /* held for its drop */)] Arc<AliveCount>);

struct AliveCount;

impl Alive {
    /// Counts one runtime until the last clone is dropped.
    pub(super) fn new() -> Self {
        // The owner first: who sees the count must not see another owner, and take this process for a child.
        OWNER.store(std::process::id(), Ordering::Release);
        ALIVE.fetch_add(1, Ordering::AcqRel);
        Self(Arc::new(AliveCount))
    }
}

impl Drop for AliveCount {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether this process is a child of `fork` that inherited a runtime.
pub(super) fn forked() -> bool {
    ALIVE.load(Ordering::Acquire) != 0 && OWNER.load(Ordering::Acquire) != std::process::id()
}

fn check_fork() -> Result<()> {
    if forked() {
        return Err(Error::new(
            Status::BAD_STATE,
            "this process was forked while a runtime existed; call exec, or create the runtime after fork",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::{
        LLM_INTERNAL, LLM_OK, LLM_POISONED, LLM_REENTRANT, handle, llm_chat_add, llm_chat_free, llm_chat_new,
        llm_error_code, llm_error_free, llm_error_message,
    };
    use std::ffi::CStr;
    use std::ptr::null_mut;

    #[test]
    fn our_own_threads_are_known_by_their_names() {
        assert!(["llm-1", "llm-12", "llm-compile"].into_iter().all(|name| is_ours(Some(name))));
        for name in [None, Some(""), Some("main"), Some("llm-"), Some("llm-server"), Some("my-llm-1")] {
            assert!(!is_ours(name), "{name:?}");
        }
    }

    #[test]
    fn a_pointer_output_is_null_also_where_the_call_is_refused() {
        let mut chat = std::ptr::without_provenance_mut(8);
        // SAFETY: a live output.
        in_sink(|| assert_eq!(unsafe { llm_chat_new(&raw mut chat) }, LLM_REENTRANT));
        assert!(chat.is_null());
    }

    #[test]
    fn a_panic_becomes_internal_with_its_place_and_poisons_the_handle() {
        let (mut chat, mut error) = (null_mut(), null_mut());
        let text = c"hello".as_ptr();
        // SAFETY: live handles and outputs, freed once at the end.
        unsafe {
            assert_eq!(llm_chat_new(&raw mut chat), LLM_OK);
            let status = run(Host::trust(), &raw mut error, Kind::Plain, |host| {
                let _held = handle::lock(host, chat, "chat")?;
                panic!("a planted defect");
            });
            assert_eq!((status, llm_error_code(error)), (LLM_INTERNAL, LLM_INTERNAL));
            let message = CStr::from_ptr(llm_error_message(error, null_mut())).to_str().unwrap();
            assert!(message.contains("a planted defect at src/ffi/guard.rs:"), "{message}");
            llm_error_free(error);
            assert_eq!(llm_chat_add(chat, text, 5, text, 5), LLM_POISONED);
            llm_chat_free(chat);
        }
    }
}
