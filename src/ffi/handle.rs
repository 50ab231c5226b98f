//! Handles: what an opaque `llm_*` pointer points to, and how a call gets at the value.
//!
//! ```text
//! llm_session * ─→ ┌ magic │ poisoned │ refs │ owner ┬ value ┐
//!                  │ class │  0 / 1   │  n   │ 0: free, thread: in a call, LENT: held by another handle
//! ```
//!
//! - A wrong class is always noticed (all bodies begin with the magic number). A freed handle is noticed while
//!   something else still refers to its body, and usually afterwards, but then only as far as the allocator left
//!   the bytes alone: that is a help in debugging, not a promise.
//! - `refs` counts the host's one reference, calls in progress, and other handles that hold this one. So a handle
//!   freed from inside a callback, or a session freed before its generation, goes when the last of them does.
//! - Classes are *shared* (S, I: `get`, any number of threads) or *exclusive* (X: `lock`, one thread at a time;
//!   another gets BUSY, the same one inside a callback REENTRANT).
//! - A panic that passes through a `get` or `lock` guard poisons the handle.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::guard::{self, Host};
use crate::error::{Error, Result, Status};

/// A class of handle. The implementing type is the opaque type of the header.
pub(super) trait Class: Sized {
    /// What a handle of this class holds.
    type Value: Send;
    /// Name in messages.
    const NAME: &'static str;
    /// Tells the classes apart in memory.
    const MAGIC: u32;
}

/// Classes whose handles any number of threads may use at once (S and I).
pub(super) trait Shared: Class<Value: Sync> {}

/// Classes whose handles one thread at a time may use (X).
pub(super) trait Exclusive: Class {}

/// Declares the classes: `classes! { shared llm_model(0x..): Value; exclusive llm_session(0x..): Value; }`.
macro_rules! classes {
    ($($kind:ident $name:ident ($magic:literal): $value:ty;)*) => {$(
        impl $crate::ffi::handle::Class for $name {
            type Value = $value;
            const NAME: &'static str = stringify!($name);
            const MAGIC: u32 = u32::from_le_bytes(*$magic);
        }
        classes!(@$kind $name);
    )*};
    (@shared $name:ident) => { impl $crate::ffi::handle::Shared for $name {} };
    (@exclusive $name:ident) => { impl $crate::ffi::handle::Exclusive for $name {} };
}

const FREED: u32 = u32::from_le_bytes(*b"DEAD");
const NOBODY: usize = 0;
const LENT: usize = usize::MAX;

#[repr(C)]
pub(super) struct Body<C: Class> {
    magic: AtomicU32,
    poisoned: AtomicBool,
    refs: AtomicUsize,
    owner: AtomicUsize,
    value: UnsafeCell<C::Value>,
}

// SAFETY: the value is reached through `get` only where the class is `Shared` (its value is Sync), and through
// the exclusive owner otherwise; it is Send in both.
unsafe impl<C: Class> Sync for Body<C> {}

impl<C: Class> Body<C> {
    /// A body outside the heap, which `free` never ends (the out-of-memory error).
    pub(super) const fn fixed(value: C::Value) -> Self {
        Self {
            magic: AtomicU32::new(C::MAGIC),
            poisoned: AtomicBool::new(false),
            refs: AtomicUsize::new(1),
            owner: AtomicUsize::new(NOBODY),
            value: UnsafeCell::new(value),
        }
    }
}

/// A counted reference to a body.
struct Ref<C: Class>(NonNull<Body<C>>);

// SAFETY: a counted pointer to a body that is Sync and whose value is Send.
unsafe impl<C: Class> Send for Ref<C> {}
// SAFETY: as above.
unsafe impl<C: Class> Sync for Ref<C> {}

impl<C: Class> Ref<C> {
    fn new(handle: *const C, what: &str) -> Result<Self> {
        let body = handle.cast_mut().cast::<Body<C>>();
        let Some(body) = NonNull::new(body) else {
            return Err(Error::new(Status::NULL_ARG, format!("`{what}` is NULL, expected a {}", C::NAME)));
        };
        if !body.is_aligned() {
            return Err(not_a::<C>(what, "a pointer the library did not make"));
        }
        // SAFETY: not NULL and aligned; a host passes what the library gave it, whose bodies all begin with
        // the magic number.
        let magic = unsafe { body.cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire);
        if magic == FREED {
            return Err(not_a::<C>(what, "a handle that was freed"));
        }
        if magic != C::MAGIC {
            return Err(not_a::<C>(what, "another kind of handle"));
        }
        // SAFETY: the magic number says that it is a live body of this class.
        unsafe { body.as_ref() }.refs.fetch_add(1, Ordering::Relaxed);
        Ok(Self(body))
    }

    fn body(&self) -> &Body<C> {
        // SAFETY: this reference is counted, so the body lives.
        unsafe { self.0.as_ref() }
    }

    fn check_poison(&self, what: &str) -> Result<()> {
        if self.body().poisoned.load(Ordering::Acquire) {
            return Err(Error::new(
                Status::POISONED,
                format!("`{what}`: an earlier call on this {} failed with INTERNAL; free it", C::NAME),
            ));
        }
        Ok(())
    }
}

impl<C: Class> Drop for Ref<C> {
    fn drop(&mut self) {
        if self.body().refs.fetch_sub(1, Ordering::Release) == 1 {
            std::sync::atomic::fence(Ordering::Acquire);
            let body = self.0.as_ptr();
            // SAFETY: that was the last reference; `make` allocated the body with this layout.
            unsafe {
                body.drop_in_place();
                dealloc(body.cast(), Layout::new::<Body<C>>());
            }
        }
    }
}

fn not_a<C: Class>(what: &str, got: &str) -> Error {
    Error::new(Status::INVALID_ARG, format!("`{what}` expected a {}, got {got}", C::NAME))
}

/// Puts `value` into a new handle, whose one reference belongs to the host.
pub(super) fn make<C: Class>(value: C::Value) -> Result<*mut C> {
    let layout = Layout::new::<Body<C>>();
    // SAFETY: a body is never of size zero.
    let body = unsafe { alloc(layout) }.cast::<Body<C>>();
    if body.is_null() {
        return Err(Error::new(Status::NO_MEMORY, format!("no memory for a {}", C::NAME)));
    }
    // SAFETY: freshly allocated for this type.
    unsafe { body.write(Body::fixed(value)) };
    Ok(body.cast())
}

/// Ends the host's reference. For NULL and pointers of another class nothing happens; in a child of `fork` the memory is
/// left alone, because the threads a value would wait for do not exist there.
pub(super) fn free<C: Class>(_host: Host<'_>, handle: *mut C) -> Result<()> {
    if guard::forked() {
        return Ok(());
    }
    let reference = Ref::new(handle, "handle")?;
    // Of two frees at once only one ends the host's reference.
    if reference.body().magic.compare_exchange(C::MAGIC, FREED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        drop(Ref(reference.0));
    }
    Ok(())
}

/// Access to a shared value for the length of a call.
pub(super) struct Get<C: Shared> {
    reference: Ref<C>,
    unwinding: bool,
}

/// The value of a shared handle.
pub(super) fn get<C: Shared>(_host: Host<'_>, handle: *const C, what: &str) -> Result<Get<C>> {
    let reference = Ref::new(handle, what)?;
    reference.check_poison(what)?;
    Ok(Get { reference, unwinding: std::thread::panicking() })
}

/// Like [`get`], with NULL for "none".
pub(super) fn get_optional<C: Shared>(
    host: Host<'_>,
    handle: *const C,
    what: &str,
) -> Result<Option<Get<C>>> {
    if handle.is_null() { Ok(None) } else { get(host, handle, what).map(Some) }
}

/// Looks at a shared value without an error object, a lock or a fence, for functions that run in signal handlers;
/// `None` for anything that is not a live handle of the class.
///
/// # Safety
/// - Only on an exported function's argument, which is NULL or a handle that stays alive during the call.
/// - `look` does not panic.
pub(super) unsafe fn peek<C: Shared, R>(handle: *const C, look: impl FnOnce(&C::Value) -> R) -> Option<R> {
    let body = handle.cast::<Body<C>>();
    if body.is_null() || !body.is_aligned() {
        return None;
    }
    // SAFETY: not NULL and aligned; all bodies begin with the magic number.
    if unsafe { &*body.cast::<AtomicU32>() }.load(Ordering::Acquire) != C::MAGIC {
        return None;
    }
    // SAFETY: a live body of this class, whose value nobody has exclusively.
    Some(look(unsafe { &*(*body).value.get() }))
}

impl<C: Shared> Deref for Get<C> {
    type Target = C::Value;
    fn deref(&self) -> &C::Value {
        // SAFETY: counted, and nobody has exclusive access to the value of a shared class.
        unsafe { &*self.reference.body().value.get() }
    }
}

impl<C: Shared> Drop for Get<C> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.unwinding {
            self.reference.body().poisoned.store(true, Ordering::Release);
        }
    }
}

/// Exclusive access to a value for the length of a call.
pub(super) struct Lock<C: Exclusive> {
    reference: Ref<C>,
    unwinding: bool,
}

/// The value of an exclusive handle.
pub(super) fn lock<C: Exclusive>(_host: Host<'_>, handle: *const C, what: &str) -> Result<Lock<C>> {
    let reference = Ref::new(handle, what)?;
    let me = this_thread();
    let owner = &reference.body().owner;
    if let Err(holder) = owner.compare_exchange(NOBODY, me, Ordering::Acquire, Ordering::Relaxed) {
        return Err(if holder == me {
            Error::new(
                Status::REENTRANT,
                format!("`{what}`: this {} is inside a call that is running this callback", C::NAME),
            )
        } else if holder == LENT {
            Error::new(
                Status::BUSY,
                format!("`{what}`: this {} belongs to a generation or a batch until that is done", C::NAME),
            )
        } else {
            Error::new(Status::BUSY, format!("`{what}`: this {} is in a call on another thread", C::NAME))
        });
    }
    let lock = Lock { reference, unwinding: std::thread::panicking() };
    lock.reference.check_poison(what)?;
    Ok(lock)
}

/// Like [`lock`], with NULL for "none".
pub(super) fn lock_optional<C: Exclusive>(
    host: Host<'_>,
    handle: *const C,
    what: &str,
) -> Result<Option<Lock<C>>> {
    if handle.is_null() { Ok(None) } else { lock(host, handle, what).map(Some) }
}

impl<C: Exclusive> Lock<C> {
    /// Keeps the value past this call, for another handle. Until the loan ends, calls on this handle are BUSY.
    pub(super) fn lend(self) -> Loan<C> {
        let lock = ManuallyDrop::new(self);
        lock.reference.body().owner.store(LENT, Ordering::Release);
        // SAFETY: `lock` is not dropped, so its reference is moved out exactly once.
        Loan(unsafe { std::ptr::read(&raw const lock.reference) })
    }
}

impl<C: Exclusive> Deref for Lock<C> {
    type Target = C::Value;
    fn deref(&self) -> &C::Value {
        // SAFETY: this lock owns the body.
        unsafe { &*self.reference.body().value.get() }
    }
}

impl<C: Exclusive> DerefMut for Lock<C> {
    fn deref_mut(&mut self) -> &mut C::Value {
        // SAFETY: this lock owns the body, and is itself borrowed exclusively.
        unsafe { &mut *self.reference.body().value.get() }
    }
}

impl<C: Exclusive> Drop for Lock<C> {
    fn drop(&mut self) {
        let body = self.reference.body();
        if std::thread::panicking() && !self.unwinding {
            body.poisoned.store(true, Ordering::Release);
        }
        body.owner.store(NOBODY, Ordering::Release);
    }
}

/// Exclusive access that outlives the call; poisons the lender if a panic passes through its use.
pub(super) struct Loan<C: Exclusive>(Ref<C>);

impl<C: Exclusive> Loan<C> {
    /// Runs `body` on the lent value.
    pub(super) fn with<R>(&mut self, body: impl FnOnce(&mut C::Value) -> R) -> R {
        body(&mut self.borrow())
    }

    /// The lent value, for as long as the guard is there.
    pub(super) fn borrow(&mut self) -> Use<'_, C> {
        Use { loan: self, unwinding: std::thread::panicking() }
    }
}

/// Use of a lent value; a panic that passes through it poisons the lender.
pub(super) struct Use<'a, C: Exclusive> {
    loan: &'a mut Loan<C>,
    unwinding: bool,
}

impl<C: Exclusive> Deref for Use<'_, C> {
    type Target = C::Value;
    fn deref(&self) -> &C::Value {
        // SAFETY: the owner mark says LENT and this is the one loan, which the guard borrows exclusively.
        unsafe { &*self.loan.0.body().value.get() }
    }
}

impl<C: Exclusive> DerefMut for Use<'_, C> {
    fn deref_mut(&mut self) -> &mut C::Value {
        // SAFETY: as above, and the guard is itself borrowed exclusively.
        unsafe { &mut *self.loan.0.body().value.get() }
    }
}

impl<C: Exclusive> Drop for Use<'_, C> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.unwinding {
            self.loan.0.body().poisoned.store(true, Ordering::Release);
        }
    }
}

impl<C: Exclusive> Drop for Loan<C> {
    fn drop(&mut self) {
        self.0.body().owner.store(NOBODY, Ordering::Release);
    }
}

/// A number for this thread, neither `NOBODY` nor `LENT`: the address of one of its variables.
fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter;
    struct Word;
    classes! {
        exclusive Counter(b"test"): i32;
        shared Word(b"word"): std::sync::Arc<&'static str>;
    }

    fn host() -> Host<'static> {
        // SAFETY: every pointer in these tests comes from `make`.
        unsafe { Host::trust() }
    }

    fn status<T>(result: Result<T>) -> Status {
        result.err().map_or(Status::OK, |e| e.status())
    }

    #[test]
    fn a_second_call_is_reentrant_on_the_same_thread_and_busy_on_another() {
        let handle = make::<Counter>(1).unwrap();
        let held = lock(host(), handle, "h").unwrap();
        assert_eq!(status(lock(host(), handle, "h")), Status::REENTRANT);
        let address = handle.addr();
        std::thread::spawn(move || {
            let handle = std::ptr::with_exposed_provenance_mut::<Counter>(address);
            assert_eq!(status(lock(host(), handle, "h")), Status::BUSY);
        })
        .join()
        .unwrap();
        drop(held);
        assert_eq!(status(lock(host(), handle, "h")), Status::OK);
        free(host(), handle).unwrap();
    }

    #[test]
    fn a_lent_handle_is_busy_and_may_be_freed_before_its_loan() {
        let handle = make::<Counter>(1).unwrap();
        let mut loan = lock(host(), handle, "h").unwrap().lend();
        assert_eq!(status(lock(host(), handle, "h")), Status::BUSY);
        free(host(), handle).unwrap();
        assert_eq!(status(lock(host(), handle, "h")), Status::INVALID_ARG);
        loan.with(|n| *n += 1);
        assert_eq!(loan.with(|n| *n), 2);
    }

    #[test]
    fn another_class_and_null_are_refused() {
        let handle = make::<Counter>(1).unwrap();
        assert_eq!(status(get(host(), handle.cast::<Word>(), "h")), Status::INVALID_ARG);
        assert_eq!(status(get::<Word>(host(), std::ptr::null(), "h")), Status::NULL_ARG);
        assert_eq!(status(free(host(), handle.cast::<Word>())), Status::INVALID_ARG);
        assert_eq!(status(lock(host(), handle, "h")), Status::OK);
        free(host(), handle).unwrap();
    }

    #[test]
    fn a_panic_poisons_the_handle_it_held() {
        let handle = make::<Counter>(1).unwrap();
        let caught = std::panic::catch_unwind(|| {
            let _held = lock(host(), handle, "h").unwrap();
            std::panic::resume_unwind(Box::new("defect"));
        });
        assert!(caught.is_err());
        assert_eq!(status(lock(host(), handle, "h")), Status::POISONED);
        free(host(), handle).unwrap();
    }

    #[test]
    fn a_value_freed_inside_a_call_lives_until_the_call_ends() {
        let value = std::sync::Arc::new("alive");
        let handle = make::<Word>(value.clone()).unwrap();
        let held = get(host(), handle, "h").unwrap();
        free(host(), handle).unwrap();
        assert_eq!((**held, std::sync::Arc::strong_count(&value)), ("alive", 2));
        drop(held);
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
    }
}
