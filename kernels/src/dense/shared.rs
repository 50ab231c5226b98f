//! One mutable slice lent to many threads, each of which takes a part that no other takes.

use std::marker::PhantomData;
use std::ops::Range;

/// A `&mut [T]` that threads cut disjoint parts from.
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` is a mutable slice whose parts go to different threads, so it may move and be shared between
// threads exactly when its elements may move between threads.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above; every access goes through `part`, whose caller promises disjoint parts.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// - While the part lives, no other part that overlaps it is alive, on any thread.
    #[allow(clippy::mut_from_ref)] // handing out parts of one mutable slice is what this type is for
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: the range lies inside the slice (checked above), which is borrowed mutably for 'a; that no
        // overlapping part is alive is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Pointer to element `index`, for kernels that write strided tiles.
    pub(super) fn pointer(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "element {index} of {}", self.len);
        self.start.wrapping_add(index)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}
