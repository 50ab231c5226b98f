//! A session's numbers: what it holds, and what its calls have done so far.

use std::time::Duration;

use super::Session;

/// What calls have done since a session was made; a fork begins with zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    reused: u64,
    prefilled: u64,
    decoded: u64,
    prefill: Duration,
    decode: Duration,
}

impl Counters {
    /// A call of `given` tokens took over `reused` of them and computed `computed`, in `time`.
    pub(super) fn call(&mut self, given: usize, reused: usize, computed: usize, time: Duration) {
        self.reused += reused as u64;
        if given == 1 {
            self.decoded += computed as u64;
            self.decode += time;
        } else {
            self.prefilled += computed as u64;
            self.prefill += time;
        }
    }
}

/// A session's numbers at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Tokens it holds.
    pub tokens: usize,
    /// Tokens it can hold.
    pub capacity: usize,
    /// Pages it holds; 0 while it is swapped out.
    pub pages: usize,
    /// Of those, pages that other sessions hold as well.
    pub shared_pages: usize,
    /// Whether its pages are out.
    pub swapped_out: bool,
    /// Tokens that were found in the pool instead of computed.
    pub reused: u64,
    /// Tokens computed and kept by calls of several tokens.
    pub prefilled: u64,
    /// Tokens computed and kept by calls of one token.
    pub decoded: u64,
    /// Time of calls of several tokens; of a batch step, the step's.
    pub prefill: Duration,
    /// Time of calls of one token; of a batch step, the step's.
    pub decode: Duration,
}

impl Session {
    /// Its numbers at this moment.
    pub fn stats(&self) -> SessionStats {
        let ((pages, shared_pages), swapped_out) = {
            let pages = self.pool.lock();
            (pages.held_by(self.table), pages.is_out(self.table))
        };
        let Counters { reused, prefilled, decoded, prefill, decode } = self.counters;
        SessionStats {
            tokens: self.tokens.len(),
            capacity: self.capacity,
            pages,
            shared_pages,
            swapped_out,
            reused,
            prefilled,
            decoded,
            prefill,
            decode,
        }
    }
}
