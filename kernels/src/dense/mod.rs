//! Dense f32 kernels for training: matrix products in the three forms a linear layer needs, attention forward and
//! backward, and the vector passes between them.
//!
//! ```text
//!  y = x·wᵀ + b      linear          dx = dy·w       linear_dx       dw += dyᵀ·x     linear_dw
//!  ───────────────────────────────── one product: gemm.rs ─────────────────────────────────
//!      operands as strided views → panels (pack.rs) → 12×32 (AVX-512) or 6×16 (AVX2, scalar) micro kernel
//! ```
//!
//! Every output element is a sum in ascending order of the inner index, in blocks of [`gemm::KC`]; every other
//! reduction runs over 16 lanes by index mod 16 inside pieces of a fixed size whose partial sums are added in order.
//! So neither the number of threads nor the instruction set changes a bit. Only products of operands that may be rounded
//! ([`Dense::set_rounding`]) go to what multiplies bf16 where there is such a unit, which sums in an order of its own
//! (halves.rs).
//!
//! All functions are safe: they check the lengths of what they are given and panic on a mismatch, which is a mistake of
//! the calling code, never of data.
//!
//! What this room does not know: models, tapes, parameters, files. It sees slices and shapes.
mod activate;
mod attention;
pub mod gemm;
#[cfg(target_arch = "x86_64")]
mod halves;
mod loss;
mod math;
mod memory;
#[cfg(target_arch = "x86_64")]
mod micro;
mod norm;
mod optim;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod round;
mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;

#[cfg(test)]
mod tests;

pub use activate::Curve;
pub use attention::Heads;
pub use loss::Bend;
pub use memory::zeros;
pub use norm::Slice;
pub use optim::{AdamW, Lion, Moments8};
pub use rows::Rotated;

use crate::detect::{Isa, detect};
use crate::shared::Shared;
use crate::threads::Pool;

/// What multiplies matrices.
#[derive(Clone, Copy, PartialEq)]
enum Unit {
    /// An instruction set, in f32.
    Exact(Isa),
    /// Operands rounded to bf16, by pairs (AVX-512 BF16).
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// Operands rounded to bf16, on matrix tiles (AMX).
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Unit {
    /// Whether operands are rounded.
    fn rounds(self) -> bool {
        !matches!(self, Unit::Exact(_))
    }

    /// The instruction set for f32 beside it.
    fn isa(self) -> Isa {
        match self {
            Unit::Exact(isa) => isa,
            #[cfg(target_arch = "x86_64")]
            Unit::Pairs | Unit::Tiles => Isa::Avx512,
        }
    }
}

/// The dense kernels with their instruction set, threads and scratch memory.
pub struct Dense {
    isa: Isa,
    rounding: bool,
    pool: Pool,
    /// Partial sums of reductions over rows.
    partial: Vec<f32>,
}

impl Dense {
    /// Kernels on `threads` threads (0: as many as the process may use) with the instruction set that [`detect`] picks.
    pub fn new(threads: usize) -> Dense {
        Dense { isa: detect(), rounding: false, pool: Pool::new(threads), partial: Vec::new() }
    }

    /// As [`Dense::new`] with a chosen instruction set; `None` where the processor lacks it.
    pub fn with_isa(threads: usize, isa: Isa) -> Option<Dense> {
        isa.is_available().then(|| Dense { isa, ..Dense::new(threads) })
    }

    /// The instruction set in use. It was found available when `self` was made.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether products round their operands to bf16 where the machine multiplies those faster (AMX, AVX-512 BF16).
    /// Sums are f32.
    pub fn set_rounding(&mut self, rounding: bool) {
        self.rounding = rounding;
    }

    /// What multiplies now.
    fn unit(&self) -> Unit {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if self.rounding => Unit::Tiles,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if self.rounding && pairs::available() => Unit::Pairs,
            Isa::Amx => Unit::Exact(Isa::Avx512),
            isa => Unit::Exact(isa),
        }
    }

    /// The number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `f(piece, range)` over the pieces of `size` items that make up `0..total`.
    fn pieces(&self, total: usize, size: usize, f: impl Fn(usize, std::ops::Range<usize>) + Sync) {
        self.pool.run(total.div_ceil(size), |i| f(i, i * size..((i + 1) * size).min(total)));
    }

    /// Sums the rows of `[pieces, width]` partial sums in `self.partial` into `out`, in order.
    fn fold_partial(&self, pieces: usize, out: &mut [f32]) {
        let width = out.len();
        for row in self.partial[..pieces * width].chunks_exact(width) {
            for (o, p) in out.iter_mut().zip(row) {
                *o += *p;
            }
        }
    }
}

/// Compiles one body for every instruction set and calls the one asked for.
///
/// The body is plain Rust over 16 lanes, which the compiler turns into vector instructions; fused multiply-adds are
/// written out, so that all versions round alike.
macro_rules! versions {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        // The passes of a training step take their operands one by one: a struct per pass would only rename them.
        #[allow(clippy::too_many_arguments)]
        fn $name(isa: $crate::detect::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn half($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match isa {
                    // SAFETY: a `Dense` holds a isa only after `Isa::is_available` said yes.
                    $crate::detect::Isa::Avx512 | $crate::detect::Isa::Amx => return unsafe { wide($($arg),*) },
                    // SAFETY: as above.
                    $crate::detect::Isa::Avx2 | $crate::detect::Isa::AvxVnni => return unsafe { half($($arg),*) },
                    _ => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            body($($arg),*)
        }
    };
}
use versions;
