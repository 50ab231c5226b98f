//! What adapters add to the products of a step.
//!
//! A row's result depends on its own session's adapters alone: first the matrix itself, then each adapter in the
//! session's order, of each the rank's parts in ascending order. Rows of different sessions only share the reading of A.

use llm_kernels::Input;

use super::arch::LayerSlot;
use crate::adapter::Use;
use crate::backend::{Backend, Product};
use crate::tensor::Tensor;

/// The adapters of a step's rows, for one layer.
#[derive(Clone, Copy)]
pub(crate) struct Adapt<'a> {
    pub(crate) device: &'a dyn Backend,
    /// Of so many rows each, in order; empty where no row has any.
    pub(crate) rows: &'a [(usize, &'a [Use])],
    pub(crate) layer: usize,
}

impl Adapt<'_> {
    /// Adds to `out`, the products of `input` with the matrix at `slot`, what adapters change about them. `low` takes
    /// A x.
    pub(crate) fn add(&self, slot: LayerSlot, input: &mut Input, low: &mut Tensor, out: &mut Tensor) {
        let most = self.rows.iter().map(|(_, uses)| uses.len()).max().unwrap_or(0);
        for nth in 0..most {
            for (i, (_, uses)) in self.rows.iter().enumerate() {
                let Some(one) = uses.get(nth) else { continue };
                let same =
                    |uses: &[Use]| uses.get(nth).filter(|other| other.adapter.is(&one.adapter)).cloned();
                if self.rows[..i].iter().any(|(_, uses)| same(uses).is_some()) {
                    continue; // it was added together with those
                }
                let Some(change) = one.adapter.change(self.layer, slot) else { continue };
                // low [m, rank] = A x, of all rows: A is small, and one product is cheaper than choosing rows.
                self.device.matmul(input, &mut [Product { weight: &change.a, bias: None, out: low }]);
                let mut start = 0;
                for (n, uses) in self.rows {
                    if let Some(one) = same(uses) {
                        let scale = one.scale * change.scale;
                        self.device.add_low_rank(start..start + n, scale, low, &change.b, change.rank(), out);
                    }
                    start += n;
                }
            }
        }
    }
}
