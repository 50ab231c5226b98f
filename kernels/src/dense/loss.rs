//! Softmax cross-entropy over rows of logits; the gradient replaces the logits.

use super::math::{exp, tree};
use super::{Dense, Shared, versions};
use crate::math::log64;

/// Rows per piece, part of the order of the loss's sum.
const PIECE: usize = 16;

versions! {
    /// Returns the sum of the rows' losses; a target beyond the row is a position without loss.
    fn rows_loss(logits: &mut [f32], vocab: usize, targets: &[u32], scale: Option<f32>) -> f64 {
        let mut total = 0.0;
        for (row, target) in logits.chunks_exact_mut(vocab).zip(targets) {
            let target = *target as usize;
            if target >= vocab {
                if scale.is_some() {
                    row.fill(0.0);
                }
                continue;
            }
            let at = row[target];
            let mut tops = [f32::NEG_INFINITY; 16];
            for chunk in row.chunks(16) {
                for (t, x) in tops.iter_mut().zip(chunk) {
                    *t = if *x > *t { *x } else { *t };
                }
            }
            let top = tops.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
            let mut lanes = [0.0f32; 16];
            if let Some(scale) = scale {
                for chunk in row.chunks_mut(16) {
                    for (lane, x) in lanes.iter_mut().zip(chunk) {
                        *x = exp(*x - top);
                        *lane += *x;
                    }
                }
                let sum = tree(lanes);
                total += log64(f64::from(sum)) - f64::from(at - top);
                let factor = scale / sum;
                for x in row.iter_mut() {
                    *x *= factor;
                }
                row[target] -= scale;
            } else {
                for chunk in row.chunks(16) {
                    for (lane, x) in lanes.iter_mut().zip(chunk) {
                        *lane += exp(*x - top);
                    }
                }
                total += log64(f64::from(tree(lanes))) - f64::from(at - top);
            }
        }
        total
    }
}

impl Dense {
    /// The summed negative log likelihood, in nats, of `targets[rows]` under `logits[rows, vocab]`. With `scale` the
    /// logits are replaced by the gradient of `scale · loss`. A target of `u32::MAX` (any beyond the vocabulary) is
    /// a position without loss.
    pub fn cross_entropy(
        &mut self,
        logits: &mut [f32],
        vocab: usize,
        targets: &[u32],
        scale: Option<f32>,
    ) -> f64 {
        let rows = targets.len();
        assert!(
            vocab > 0 && logits.len() == rows * vocab,
            "{} logits of {rows} rows of {vocab}",
            logits.len()
        );
        let mut sums = vec![0.0f64; rows.div_ceil(PIECE)];
        let (logits, shared) = (Shared::of(logits), Shared::of(&mut sums));
        self.pieces(rows, PIECE, |p, r| {
            // SAFETY: each piece takes its own rows and its own sum.
            let (part, sum) = unsafe { (logits.part(r.start * vocab..r.end * vocab), shared.part(p..p + 1)) };
            sum[0] = rows_loss(self.isa, part, vocab, &targets[r], scale);
        });
        sums.iter().sum()
    }
}
