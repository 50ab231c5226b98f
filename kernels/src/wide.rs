//! Plain loops with the machine's wide vectors.
//!
//! What is compiled for every machine of its kind has the vectors of the oldest. A loop over plain numbers that passes
//! through [`wide`] is compiled a second time for newer ones. Its operations and their order stay the same, and none are
//! fused, so its results are the same bits.

/// A loop, with what it reads.
pub trait Loop {
    /// What it finds.
    type Result;

    /// Runs it. `#[inline(always)]` belongs on it, or else it is only slow: what is not inlined keeps the old vectors.
    fn run(self) -> Self::Result;
}

/// `l.run()`, compiled for 32-byte vectors and used so where the machine has them.
#[inline]
pub fn wide<L: Loop>(l: L) -> L::Result {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<L: Loop>(l: L) -> L::Result {
            l.run()
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the instructions
            return unsafe { with_avx2(l) };
        }
    }
    l.run()
}
