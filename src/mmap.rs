//! Bytes that somebody keeps alive: a mapped file, a copy of one, or a buffer of the host.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// A shared, immutable stretch of bytes. Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: usize,
    end: usize,
}

impl Bytes {
    /// The bytes of `owner`, which must be the same at every call of `as_ref`.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Bytes {
        let end = owner.as_ref().len();
        Bytes { owner: Arc::new(owner), start: 0, end }
    }

    /// The part `range` of these bytes.
    ///
    /// # Panics
    /// If the range does not lie inside, like slicing.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} bytes", self.len());
        Bytes { owner: self.owner.clone(), start: self.start + range.start, end: self.start + range.end }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.owner.as_ref().as_ref().get(self.start..self.end).unwrap_or(&[])
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(bytes)
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} bytes)", self.len())
    }
}
