//! One mutable slice lent to many threads, each of which takes parts that no other takes.

use std::marker::PhantomData;
use std::ops::Range;

/// A `&mut [T]` that threads cut disjoint parts from.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` is a mutable slice whose parts go to different threads, so it may move and be shared between
// threads exactly when its elements may move between threads.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above; every access goes through parts, whose takers promise that they are disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn of(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The elements at..at + n.
    ///
    /// # Safety
    /// - While the part lives, no other part that overlaps it is alive, on any thread.
    #[allow(clippy::mut_from_ref)] // handing out parts of one mutable slice is what this type is for
    pub(crate) unsafe fn slice(&self, at: usize, n: usize) -> &'a mut [T] {
        assert!(at <= self.len && n <= self.len - at, "part {at}+{n} of {}", self.len);
        // SAFETY: the range lies inside the slice (checked above), which is borrowed mutably for 'a; that no
        // overlapping part is alive is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), n) }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// - As [`Shared::slice`].
    #[allow(clippy::mut_from_ref)] // as above
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        // SAFETY: passed on
        unsafe { self.slice(range.start, range.len()) }
    }

    /// The start, for kernels that stride.
    pub(crate) fn pointer(&self) -> *mut T {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
