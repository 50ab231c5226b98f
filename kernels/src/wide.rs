//! Plain loops with the machine's wide vectors.
//!
//! What is compiled for every machine of its kind has the vectors of the oldest. A loop over plain numbers that passes
//! through [`wide`] is compiled a second time for newer ones. Its operations and their order stay the same, and none are
//! fused, so its results are the same bits.

/// `f(a)`, compiled for 32-byte vectors and used so where the machine has them. `f` is a function that is always
/// inlined (`#[inline(always)]`), or else it is only slow.
#[inline]
pub fn wide<A, R>(f: impl Fn(A) -> R, a: A) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<A, R>(f: impl Fn(A) -> R, a: A) -> R {
            f(a)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the instructions
            return unsafe { with_avx2(f, a) };
        }
    }
    f(a)
}
