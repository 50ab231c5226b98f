//! The rows that are asked for: the last layer, the final norm and the head compute no others.
//!
//! ```text
//! last layer:  keys and values of all m rows | the rest of the layer, norm, head: of the wanted ones
//! ```
//! A prompt's chunk wants its last token, a step of several sessions the last ones of each. Rows do not depend on each
//! other behind attention, so the bits are those of all. It does not know who asks.

use std::ops::Range;

use super::forward::{Batch, Forward};
use super::scratch::Scratch;
use crate::backend::Runs;
use crate::tensor::Tensor;

impl Forward<'_> {
    /// Whether the last layer may leave rows out once their keys and values are written; then `s.choice` has the others.
    pub(super) fn drops(&self, batch: &Batch<'_>, s: &mut Scratch) -> bool {
        let Some(wanted) = batch.wanted else { return false };
        let rows = &mut s.choice.rows;
        rows.clear();
        rows.extend(wanted.iter().flat_map(|range| range.start as u32..range.end as u32));
        // adapters' changes count all rows, and who looks at the inputs of products wants to see all
        rows.len() < batch.ids.len() && batch.adapters.is_empty() && !self.device.is_observed()
    }

    /// Leaves the residual stream with the wanted rows. Returns how many there are.
    pub(super) fn pack(&self, wanted: &[Range<usize>], s: &mut Scratch) -> usize {
        let n = self.gather_rows(wanted, &s.x, &mut s.h);
        std::mem::swap(&mut s.x, &mut s.h);
        n
    }

    /// Copies rows of `[_, width]`, given as ranges, one behind the other. Returns how many there are.
    fn gather_rows(&self, rows: &[Range<usize>], from: &Tensor, to: &mut Tensor) -> usize {
        let width = self.spec.width as usize;
        let mut n = 0;
        for range in rows {
            let source = Runs { start: range.start * width, outer: width, inner: 0 };
            let target = Runs { start: n * width, outer: width, inner: 0 };
            self.device.copy([range.len(), 1], width, (from, source), (to, target));
            n += range.len();
        }
        n
    }

    /// The input of attention's last product: the rows of `s.attended`, or the wanted ones.
    pub(super) fn attended(&self, m: usize, width: usize, s: &mut Scratch) {
        match s.packed {
            true => self.device.gather(&mut s.input, &s.attended, width, &s.choice.rows),
            false => self.device.load(&mut s.input, &s.attended, m, width),
        }
    }

    /// Logits of some rows of the residual stream, given as ranges, to `s.logits`, `[rows, vocab]`: one product for
    /// all of them.
    pub(crate) fn logits(&self, rows: &[Range<usize>], s: &mut Scratch) {
        let n = self.hidden(rows, s);
        self.head(n, s);
    }

    /// Hidden states of some rows of the residual stream to `s.last`, `[rows, width]`: those that the batch wanted, if it
    /// did not want all. Returns how many there are.
    pub(crate) fn hidden(&self, rows: &[Range<usize>], s: &mut Scratch) -> usize {
        let device = self.device;
        let packed = 0..rows.iter().map(Range::len).sum();
        let rows = if s.packed { std::slice::from_ref(&packed) } else { rows };
        let n = self.gather_rows(rows, &s.x, &mut s.last);
        device.norm_in_place(&self.weights.final_norm, n, &mut s.last);
        n
    }

    /// Logits of the `n` hidden states in `s.last`.
    pub(crate) fn head(&self, n: usize, s: &mut Scratch) {
        let (spec, w, device) = (self.spec, self.weights, self.device);
        device.load(&mut s.input, &s.last, n, spec.width as usize);
        self.linear(&w.head, w.head_bias.as_ref(), &mut s.input, &mut s.logits);
        let values = n * spec.vocab as usize;
        if spec.logit_scale != 1.0 {
            device.scale(spec.logit_scale, values, &mut s.logits);
        }
        if let Some(cap) = spec.logit_softcap {
            device.softcap(cap, values, &mut s.logits);
        }
    }
}
