//! Softmax cross-entropy over rows of logits; the gradient replaces the logits.
//!
//! Some models scale and cap what their head gives (Gemma 2, arXiv:2408.00118): y = c·tanh(s·x/c), dx = s·(1 − (y/c)²)·dy.

use super::math::{exp, tanh, tree};
use super::{Dense, Shared, versions};
use crate::math::log64;

/// Rows per piece, part of the order of the loss's sum.
const PIECE: usize = 16;
/// Logits per piece of [`Dense::bend`].
const BENT: usize = 16384;

/// What becomes of a head's outputs before they are logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bend {
    /// A factor.
    pub scale: f32,
    /// The scaled output y becomes `softcap · tanh(y / softcap)`; `None`: it stays.
    pub softcap: Option<f32>,
}

versions! {
    fn bend(x: &mut [f32], b: Bend) {
        for x in x.iter_mut() {
            *x *= b.scale;
        }
        if let Some(cap) = b.softcap {
            for x in x {
                *x = cap * tanh(*x / cap);
            }
        }
    }
}

versions! {
    /// Returns the sum of the rows' losses; a target beyond the row is a position without loss.
    fn rows_loss(logits: &mut [f32], vocab: usize, targets: &[u32], scale: Option<f32>, bent: Option<Bend>) -> f64 {
        let mut total = 0.0;
        let mut slopes = Vec::new();
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
                if let Some(bent) = bent {
                    slopes.clear();
                    slopes.extend(row.iter().map(|y| {
                        let t = bent.softcap.map_or(0.0, |cap| *y / cap);
                        bent.scale * (1.0 - t * t)
                    }));
                }
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
                // of none if nothing was bent
                row.iter_mut().zip(&slopes).for_each(|(x, slope)| *x *= slope);
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
    /// A head's outputs become logits.
    pub fn bend(&mut self, x: &mut [f32], b: Bend) {
        let x = Shared::of(x);
        self.pieces(x.len(), BENT, |_, r| {
            // SAFETY: each piece takes its own range.
            bend(self.isa, unsafe { x.part(r) }, b);
        });
    }

    /// The summed negative log likelihood, in nats, of `targets[rows]` under `logits[rows, vocab]`. With `scale` the
    /// logits are replaced by the gradient of `scale · loss`, that of what they were before [`Dense::bend`] where they are
    /// `bent`. A target of `u32::MAX` (any beyond the vocabulary) is a position without loss.
    pub fn cross_entropy(
        &mut self,
        logits: &mut [f32],
        vocab: usize,
        targets: &[u32],
        scale: Option<f32>,
        bent: Option<Bend>,
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
            sum[0] = rows_loss(self.isa, part, vocab, &targets[r], scale, bent);
        });
        sums.iter().sum()
    }
}
