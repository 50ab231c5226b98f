//! Pointers from a host, proved one by one: text, slices, outputs, buffers to fill.

use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::ptr;

use super::guard::Host;
use super::handle::{self, Class};
use crate::error::{Error, Result, Status};
use crate::mmap::Bytes;

/// The length that says "ends with NUL".
const NTS: usize = usize::MAX;

fn null(what: &str) -> Error {
    Error::new(Status::NULL_ARG, format!("`{what}` is NULL"))
}

/// The `len` elements at `data`; NULL with 0 is the empty slice.
pub(super) fn slice<'c, T: Copy>(_host: Host<'c>, data: *const T, len: usize, what: &str) -> Result<&'c [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(null(what));
    }
    if !data.is_aligned() {
        return Err(Error::new(Status::INVALID_ARG, format!("`{what}` is not aligned for its element type")));
    }
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Error::new(Status::INVALID_ARG, format!("`{what}`: a length of {len} is impossible")));
    }
    // SAFETY: not NULL, aligned, of a possible size; the host promised `len` readable elements for the call.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// The bytes of a text that may be NUL-terminated.
pub(super) fn bytes<'c>(host: Host<'c>, text: *const c_char, len: usize, what: &str) -> Result<&'c [u8]> {
    if len != NTS {
        return slice(host, text.cast::<u8>(), len, what);
    }
    if text.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL; with LLM_NTS the host promised a terminating NUL.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A text; `BAD_UTF8` where it is not UTF-8.
pub(super) fn text<'c>(host: Host<'c>, text: *const c_char, len: usize, what: &str) -> Result<&'c str> {
    std::str::from_utf8(bytes(host, text, len, what)?).map_err(|e| {
        let at = e.valid_up_to();
        Error::new(Status::BAD_UTF8, format!("`{what}` is not UTF-8 at byte {at}")).with("offset", at as i64)
    })
}

/// A text that must be given: NULL is refused even with length 0.
pub(super) fn text_required<'c>(host: Host<'c>, t: *const c_char, len: usize, what: &str) -> Result<&'c str> {
    if t.is_null() { Err(null(what)) } else { text(host, t, len, what) }
}

/// A text, or `None` for NULL.
pub(super) fn text_optional<'c>(
    host: Host<'c>,
    t: *const c_char,
    len: usize,
    what: &str,
) -> Result<Option<&'c str>> {
    if t.is_null() && (len == 0 || len == NTS) { Ok(None) } else { text(host, t, len, what).map(Some) }
}

/// A path: UTF-8, not empty, no NUL inside.
pub(super) fn path(host: Host<'_>, path: *const c_char, len: usize, what: &str) -> Result<PathBuf> {
    let path = text_required(host, path, len, what)?;
    if path.is_empty() || path.contains('\0') {
        return Err(Error::new(
            Status::INVALID_ARG,
            format!("`{what}`: a path is not empty and holds no NUL"),
        ));
    }
    Ok(PathBuf::from(path))
}

/// An output the host must give: a number, or a pointer.
pub(super) struct Out<'c, T>(&'c mut std::mem::MaybeUninit<T>);

/// A required output. Pointers are set to NULL by [`Out::null`] before anything else can fail.
pub(super) fn out<'c, T: Copy>(_host: Host<'c>, out: *mut T, what: &str) -> Result<Out<'c, T>> {
    if out.is_null() {
        return Err(null(what));
    }
    if !out.is_aligned() {
        return Err(Error::new(Status::INVALID_ARG, format!("`{what}` is not aligned")));
    }
    // SAFETY: not NULL and aligned; the host promised a place for a T, initialised or not.
    Ok(Out(unsafe { &mut *out.cast() }))
}

impl<T: Copy> Out<'_, T> {
    /// Writes the result.
    pub(super) fn put(self, value: T) {
        self.0.write(value);
    }
}

/// A required output for a new handle, NULL from now on.
pub(super) fn out_handle<'c, C: Class>(
    host: Host<'c>,
    handle: *mut *mut C,
    what: &str,
) -> Result<NewHandle<'c, C>> {
    let slot = out(host, handle, what)?;
    Ok(NewHandle(slot.0.write(ptr::null_mut())))
}

/// Where a new handle goes.
pub(super) struct NewHandle<'c, C>(&'c mut *mut C);

impl<C: Class> NewHandle<'_, C> {
    /// Makes the handle and gives it to the host.
    pub(super) fn put(self, value: C::Value) -> Result<Status> {
        *self.0 = handle::make(value)?;
        Ok(Status::OK)
    }
}

/// A required output for borrowed data and an optional one for its length.
pub(super) struct Borrowed<'c, T> {
    data: &'c mut *const T,
    len: Option<Out<'c, usize>>,
}

/// Outputs for borrowed data: the pointer is NULL from now on.
pub(super) fn out_borrowed<'c, T: Copy>(
    host: Host<'c>,
    data: *mut *const T,
    len: *mut usize,
    what: &str,
) -> Result<Borrowed<'c, T>> {
    let slot = out(host, data, what)?;
    Ok(Borrowed { data: slot.0.write(ptr::null()), len: out_optional(host, len) })
}

impl<T: Copy> Borrowed<'_, T> {
    /// Lends `data`, which the handle keeps as long as the function's comment says.
    pub(super) fn put(self, data: &[T]) {
        *self.data = data.as_ptr();
        if let Some(len) = self.len {
            len.put(data.len());
        }
    }
}

impl Borrowed<'_, c_char> {
    /// Lends a text with its NUL.
    pub(super) fn put_text(self, text: &Text) {
        *self.data = text.as_ptr();
        if let Some(len) = self.len {
            len.put(text.len());
        }
    }
}

/// An output the host may leave out.
pub(super) fn out_optional<'c, T: Copy>(host: Host<'c>, to: *mut T) -> Option<Out<'c, T>> {
    out(host, to, "out").ok()
}

/// What a pointer output holds: a handle, or what is lent.
pub(super) trait Pointer: Copy {
    /// The pointer to nothing.
    const NULL: Self;
}

impl<T> Pointer for *mut T {
    const NULL: Self = ptr::null_mut();
}

impl<T> Pointer for *const T {
    const NULL: Self = ptr::null();
}

/// Sets a pointer output to NULL if it is there.
pub(super) fn set_null<P: Pointer>(host: Host<'_>, to: *mut P) {
    put_optional(host, to, P::NULL);
}

/// Writes `value` unless the host passed NULL.
pub(super) fn put_optional<T: Copy>(host: Host<'_>, to: *mut T, value: T) {
    if let Some(out) = out_optional(host, to) {
        out.put(value);
    }
}

/// Checks that a buffer for `len` elements is there, so that of two buffers both are filled or none.
pub(super) fn check_fill<T>(len: usize, buf: *mut T, what: &str) -> Result<()> {
    if len > 0 && buf.is_null() {
        return Err(null(what));
    }
    if len > 0 && !buf.is_aligned() {
        return Err(Error::new(Status::INVALID_ARG, format!("`{what}` is not aligned for its element type")));
    }
    Ok(())
}

/// The check of the ask-or-fill form, for a call that computes before it fills: writes how many elements there are to
/// be; `BUFFER_SMALL` if `cap` are not enough.
pub(super) fn room<T>(
    host: Host<'_>,
    len: usize,
    buf: *mut T,
    cap: usize,
    out_needed: *mut usize,
) -> Result<()> {
    put_optional(host, out_needed, len);
    if len > cap {
        let message = format!("the buffer has room for {cap}, needed {len}");
        let needed = i64::try_from(len).unwrap_or(i64::MAX);
        return Err(Error::new(Status::BUFFER_SMALL, message).with("needed", needed));
    }
    check_fill(len, buf, "buf")
}

/// The ask-or-fill form: writes how many elements there are, then copies all of them or none.
pub(super) fn fill<T: Copy>(
    host: Host<'_>,
    data: &[T],
    buf: *mut T,
    cap: usize,
    out_needed: *mut usize,
) -> Result<Status> {
    room(host, data.len(), buf, cap, out_needed)?;
    if data.is_empty() {
        return Ok(Status::OK);
    }
    // SAFETY: the host promised `cap` writable elements, and `data` has no more. A copy that allows for overlap: the
    // buffer may be what was lent to the host before.
    unsafe { ptr::copy(data.as_ptr(), buf, data.len()) };
    Ok(Status::OK)
}

/// Memory of the host that it keeps until `owner` is dropped.
pub(super) fn memory(
    host: Host<'_>,
    data: *const c_void,
    len: usize,
    owner: impl Send + Sync + 'static,
    what: &str,
) -> Result<Bytes> {
    let data = data.cast::<u8>();
    if data.is_null() {
        return Err(null(what));
    }
    slice(host, data, len, what)?;
    // SAFETY: not NULL and of a possible length; the host promised that the bytes stay and do not change until its
    // drop function runs, which is when the owner is dropped.
    Ok(unsafe { Bytes::from_raw(data, len, owner) })
}

/// A text that is lent to hosts: UTF-8 or raw bytes, with a NUL behind it.
pub(super) struct Text(std::borrow::Cow<'static, [u8]>);

impl Text {
    /// A copy of `bytes` with a NUL.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut text = Self(std::borrow::Cow::Borrowed(b"\0"));
        text.set(bytes);
        text
    }

    /// A static text, which ends with its NUL.
    pub(super) const fn fixed(text: &'static CStr) -> Self {
        Self(std::borrow::Cow::Borrowed(text.to_bytes_with_nul()))
    }

    /// Replaces the text, keeping the allocation.
    pub(super) fn set(&mut self, bytes: &[u8]) {
        let buf = self.0.to_mut();
        buf.clear();
        buf.extend_from_slice(bytes);
        buf.push(0);
    }

    /// The first byte.
    pub(super) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    /// The text without its NUL.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.get(..self.len()).unwrap_or_default()
    }

    /// Length without the NUL.
    pub(super) fn len(&self) -> usize {
        self.0.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host<'static> {
        // SAFETY: every pointer in these tests is NULL or comes from a live array.
        unsafe { Host::trust() }
    }

    #[test]
    fn text_is_length_or_nul_terminated_and_must_be_utf8() {
        let t = c"ab\xC3\xA9";
        assert_eq!(text(host(), t.as_ptr(), NTS, "t").unwrap(), "abé");
        assert_eq!(text(host(), t.as_ptr(), 2, "t").unwrap(), "ab");
        let e = text(host(), t.as_ptr(), 3, "t").unwrap_err();
        assert_eq!((e.status(), e.detail("offset")), (Status::BAD_UTF8, Some(2)));
        assert_eq!(text(host(), ptr::null(), 0, "t").unwrap(), "");
        assert_eq!(text(host(), ptr::null(), 1, "t").unwrap_err().status(), Status::NULL_ARG);
        assert_eq!(text(host(), ptr::null(), NTS, "t").unwrap_err().status(), Status::NULL_ARG);
    }

    #[test]
    fn a_small_buffer_is_left_untouched_and_told_what_is_needed() {
        let (mut buf, mut needed) = ([7i32; 2], 0usize);
        let e = fill(host(), &[1, 2, 3], buf.as_mut_ptr(), 2, &raw mut needed).unwrap_err();
        assert_eq!((e.status(), needed, buf), (Status::BUFFER_SMALL, 3, [7, 7]));
        assert_eq!(fill(host(), &[1, 2], buf.as_mut_ptr(), 2, &raw mut needed).unwrap(), Status::OK);
        assert_eq!((needed, buf), (2, [1, 2]));
    }

    #[test]
    fn impossible_lengths_and_odd_addresses_are_refused() {
        let data = [0i32; 2];
        assert_eq!(slice(host(), data.as_ptr(), usize::MAX, "d").unwrap_err().status(), Status::INVALID_ARG);
        let odd = data.as_ptr().wrapping_byte_add(1);
        assert_eq!(slice(host(), odd, 1, "d").unwrap_err().status(), Status::INVALID_ARG);
    }
}
