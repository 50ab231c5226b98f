//! The CPU as a device: proves shapes, splits work over the pool, calls the instruction set's kernels.
//!
//! Every public function here is safe: it checks lengths with assertions (a wrong length is a programming error of
//! the layer above, which has checked everything that came from outside) and below it nobody asks again. Results do
//! not depend on the number of threads, the instruction set, or what else is in the batch.

mod attention;
mod product;
mod route;
mod vector;

pub use attention::{Attention, Level, Row};
pub use product::Job;
pub(crate) use product::terms;
pub use route::{GroupRank, RouteSpec, Scoring, keep_groups};
pub use vector::RowNorm;

use crate::detect::{Isa, detect};
use crate::ops::Ops;
use crate::threads::Pool;
use std::ops::Range;
use std::sync::Mutex;

/// Activations of feed-forward blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// x/2 · (1 + erf(x/√2))
    Gelu,
    /// The tanh approximation of gelu.
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// max(x, 0)²
    Relu2,
    /// Gated only: gate = min(gate, limit), up = clamp(up, ±limit), (up + 1) · gate · sigmoid(alpha · gate).
    ClampedSwiglu {
        /// alpha
        alpha: f32,
        /// limit
        limit: f32,
    },
}

/// Which values form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// (i, i + dim/2)
    Halves,
    /// (2i, 2i + 1)
    Neighbours,
}

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Map {
    /// An activation.
    Activate(Activation),
    /// 1 / (1 + e^−x)
    Sigmoid,
    /// x · factor
    Scale(f32),
    /// cap · tanh(x / cap)
    Softcap(f32),
}

/// Work, in values touched, below which a pass is not worth a fork-join.
const SMALL: usize = 4096;

/// A CPU with its threads and the kernels of one instruction set.
pub struct Cpu {
    isa: Isa,
    pub(crate) ops: &'static Ops,
    pool: Pool,
    /// Records of attention's parts, as many as were ever needed at once.
    parts: Mutex<Vec<f32>>,
}

impl Cpu {
    /// `threads` in all (0: what the process may use) with the instruction set that [`detect`] chooses.
    pub fn new(threads: usize) -> Cpu {
        Cpu::with_pool(Pool::new(threads), detect())
    }

    /// The same with a given instruction set; `None` if the machine lacks it.
    pub fn with_isa(threads: usize, isa: Isa) -> Option<Cpu> {
        isa.is_available().then(|| Cpu::with_pool(Pool::new(threads), isa))
    }

    /// The same with threads made already.
    ///
    /// # Panics
    /// If the machine lacks `isa`.
    pub fn with_pool(pool: Pool, isa: Isa) -> Cpu {
        assert!(isa.is_available(), "this machine does not have {}", isa.name());
        Cpu { isa, ops: isa.ops(), pool, parts: Mutex::default() }
    }

    /// Kernels that are no instruction set of their own, for a test of them.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(crate) fn with_ops(threads: usize, ops: &'static Ops) -> Option<Cpu> {
        Some(Cpu { ops, ..Cpu::with_isa(threads, Isa::Scalar)? })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads, for other work.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Splits 0..n into ranges over the threads; all in one where `work` (values touched) is small.
    pub(crate) fn split(&self, n: usize, work: usize, f: impl Fn(Range<usize>) + Sync) {
        let chunks =
            if work < SMALL { 1 } else { (self.pool.threads() * 4).min(n).min(work.div_ceil(SMALL / 2)) };
        let size = n.div_ceil(chunks.max(1)).max(1);
        self.pool.run(n.div_ceil(size), |c| f(c * size..((c + 1) * size).min(n)));
    }
}
