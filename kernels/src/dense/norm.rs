//! RMSNorm and LayerNorm, forward and backward.
//!
//! ```text
//!   x̂ = (x − mean)·rstd        y = x̂·w + b         RMSNorm: mean = 0, no b
//!   g = dy·w                   dx = rstd·(g − mean(g) − x̂·mean(g·x̂))      dw += Σ dy·x̂     db += Σ dy
//! ```
//! Forward saves mean and rstd of each row, two floats. Weight gradients are summed over pieces of [`PIECE`] rows.

use super::math::{fold1, fold2};
use super::{Dense, Shared, versions};

/// Rows per piece, part of the order of the sums.
const PIECE: usize = 32;

versions! {
    fn forward(x: &[f32], w: &[f32], b: Option<&[f32]>, center: bool, eps: f32, y: &mut [f32], stats: &mut [f32]) {
        let d = w.len();
        let inverse = 1.0 / d as f32;
        for ((x, y), stats) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(stats.chunks_exact_mut(2)) {
            if center {
                let mean = fold1(x, |s, x| s + x) * inverse;
                let var = fold1(x, |s, x| (x - mean).mul_add(x - mean, s)) * inverse;
                let rstd = 1.0 / (var + eps).sqrt();
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = (x - mean) * rstd * w;
                }
                if let Some(b) = b {
                    for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                        *y = ((x - mean) * rstd).mul_add(*w, *b);
                    }
                }
                (stats[0], stats[1]) = (mean, rstd);
            } else {
                let square = fold1(x, |s, x| x.mul_add(x, s)) * inverse;
                let rstd = 1.0 / (square + eps).sqrt();
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * rstd * w;
                }
                (stats[0], stats[1]) = (0.0, rstd);
            }
        }
    }
}

versions! {
    fn backward(
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        stats: &[f32],
        center: bool,
        dx: &mut [f32],
        add: bool,
        dw: &mut [f32],
        db: &mut [f32],
        hat: &mut [f32],
    ) {
        let d = w.len();
        let inverse = 1.0 / d as f32;
        let rows = dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
        for (((dy, x), dx), stats) in rows.zip(stats.chunks_exact(2)) {
            let (mean, rstd) = (stats[0], stats[1]);
            for (hat, x) in hat.iter_mut().zip(x) {
                *hat = (x - mean) * rstd;
            }
            for ((dw, dy), hat) in dw.iter_mut().zip(dy).zip(&*hat) {
                *dw = dy.mul_add(*hat, *dw);
            }
            let mut shift = 0.0;
            if center {
                for (db, dy) in db.iter_mut().zip(dy) {
                    *db += *dy;
                }
                shift = fold2(dy, w, |s, dy, w| dy.mul_add(w, s)) * inverse;
            }
            // g is made twice: once for its product with x̂, once for dx.
            let mut lanes = [0.0f32; 16];
            for ((dy, w), hat) in dy.chunks(16).zip(w.chunks(16)).zip(hat.chunks(16)) {
                for (((lane, dy), w), hat) in lanes.iter_mut().zip(dy).zip(w).zip(hat) {
                    *lane = (dy * w).mul_add(*hat, *lane);
                }
            }
            let pull = super::math::tree(lanes) * inverse;
            let outs = dx.iter_mut().zip(dy).zip(w).zip(&*hat);
            if add {
                for (((dx, dy), w), hat) in outs {
                    *dx += (dy.mul_add(*w, -shift) - hat * pull) * rstd;
                }
            } else {
                for (((dx, dy), w), hat) in outs {
                    *dx = (dy.mul_add(*w, -shift) - hat * pull) * rstd;
                }
            }
        }
    }
}

/// Heads of a row that are normed each by itself: `heads` of the weight's width, side by side from `start` on.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Where they begin in a row.
    pub start: usize,
    /// How many.
    pub heads: usize,
}

impl Dense {
    /// RMSNorm of parts of each row: `y[rows, stride]` takes the normed heads, and leaves the rest as it is.
    /// `stats[rows, heads, 2]` as in [`Dense::norm`].
    #[allow(clippy::too_many_arguments)] // operands and shape of one pass
    pub fn slice_norm(
        &mut self,
        x: &[f32],
        stride: usize,
        what: Slice,
        w: &[f32],
        eps: f32,
        y: &mut [f32],
        stats: &mut [f32],
    ) {
        let (rows, width, each) = (x.len() / stride, what.heads * w.len(), what.heads * 2);
        assert!(what.start + width <= stride && x.len() == rows * stride && y.len() == x.len(), "{what:?}");
        assert!(stats.len() == rows * each, "stats of {rows} rows of {} heads", what.heads);
        let (y, stats) = (Shared::of(y), Shared::of(stats));
        self.pieces(rows, PIECE, |_, r| {
            for row in r {
                let span = row * stride + what.start..row * stride + what.start + width;
                // SAFETY: rows of a piece belong to that piece alone.
                let (y, stats) = unsafe { (y.part(span.clone()), stats.part(row * each..(row + 1) * each)) };
                forward(self.isa, &x[span], w, None, false, eps, y, stats);
            }
        });
    }

    /// The gradients of [`Dense::slice_norm`]: the part of `dx[rows, stride]` is written, `dw` is added to.
    #[allow(clippy::too_many_arguments)] // the operands of one gradient
    pub fn slice_norm_back(
        &mut self,
        dy: &[f32],
        x: &[f32],
        stride: usize,
        what: Slice,
        w: &[f32],
        stats: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
    ) {
        let d = w.len();
        let (rows, width, each) = (x.len() / stride, what.heads * d, what.heads * 2);
        assert!(what.start + width <= stride && x.len() == rows * stride && dx.len() == x.len(), "{what:?}");
        assert!(dy.len() == x.len() && stats.len() == rows * each && dw.len() == d, "norm of {rows} rows");
        let pieces = rows.div_ceil(PIECE);
        let mut partial = std::mem::take(&mut self.partial);
        // Three rows of d per piece: dw, an unused db, and x̂ of the current head.
        partial.clear();
        partial.resize(pieces * d * 3, 0.0);
        let (shared, dx) = (Shared::of(&mut partial), Shared::of(dx));
        self.pieces(rows, PIECE, |p, r| {
            // SAFETY: a piece's three rows of partial sums belong to that piece alone.
            let (dw, db, hat) = unsafe {
                let part = |which: usize| shared.part((which * pieces + p) * d..(which * pieces + p + 1) * d);
                (part(0), part(1), part(2))
            };
            for row in r {
                let span = row * stride + what.start..row * stride + what.start + width;
                // SAFETY: rows of a piece belong to that piece alone.
                let dx = unsafe { dx.part(span.clone()) };
                let stats = &stats[row * each..(row + 1) * each];
                backward(self.isa, &dy[span.clone()], &x[span], w, stats, false, dx, false, dw, db, hat);
            }
        });
        self.partial = partial;
        self.fold_partial(pieces, dw);
    }

    /// `y[rows, d]` = norm of `x[rows, d]` with weight `w[d]` and bias `b`: LayerNorm if `center`, else RMSNorm, which
    /// has no bias. `stats[rows, 2]` takes mean and 1/deviation.
    #[allow(clippy::too_many_arguments)] // operands and shape of one pass
    pub fn norm(
        &mut self,
        x: &[f32],
        w: &[f32],
        b: Option<&[f32]>,
        center: bool,
        eps: f32,
        y: &mut [f32],
        stats: &mut [f32],
    ) {
        let d = w.len();
        let rows = x.len() / d;
        assert!(x.len() == rows * d && y.len() == x.len() && stats.len() == rows * 2, "norm of {}", x.len());
        assert!(b.is_none_or(|b| b.len() == d && center), "norm bias");
        let (y, stats) = (Shared::of(y), Shared::of(stats));
        self.pieces(rows, PIECE, |_, r| {
            let span = r.start * d..r.end * d;
            // SAFETY: rows of a piece belong to that piece alone.
            let (y, stats) = unsafe { (y.part(span.clone()), stats.part(r.start * 2..r.end * 2)) };
            forward(self.isa, &x[span], w, b, center, eps, y, stats);
        });
    }

    /// The gradients of [`Dense::norm`]: `dx` is written, or added to if `add`; `dw` and `db` are added to.
    #[allow(clippy::too_many_arguments)] // the operands of one gradient
    pub fn norm_back(
        &mut self,
        dy: &[f32],
        x: &[f32],
        w: &[f32],
        stats: &[f32],
        center: bool,
        dx: &mut [f32],
        add: bool,
        dw: &mut [f32],
        db: Option<&mut [f32]>,
    ) {
        let d = w.len();
        let rows = x.len() / d;
        assert!(x.len() == rows * d && dy.len() == x.len() && dx.len() == x.len(), "norm of {}", x.len());
        assert!(stats.len() == rows * 2 && dw.len() == d, "norm of {rows} rows of {d}");
        let pieces = rows.div_ceil(PIECE);
        let mut partial = std::mem::take(&mut self.partial);
        // Three rows of d per piece: dw, db, and x̂ of the current row.
        partial.clear();
        partial.resize(pieces * d * 3, 0.0);
        let (shared, dx) = (Shared::of(&mut partial), Shared::of(dx));
        self.pieces(rows, PIECE, |p, r| {
            let span = r.start * d..r.end * d;
            // SAFETY: rows of a piece, and its three rows of partial sums, belong to that piece alone.
            let (dx, dw, db, hat) = unsafe {
                let part = |which: usize| shared.part((which * pieces + p) * d..(which * pieces + p + 1) * d);
                (dx.part(span.clone()), part(0), part(1), part(2))
            };
            let stats = &stats[r.start * 2..r.end * 2];
            backward(self.isa, &dy[span.clone()], &x[span], w, stats, center, dx, add, dw, db, hat);
        });
        self.partial = partial;
        self.fold_partial(pieces, dw);
        if let Some(db) = db {
            assert!(db.len() == d, "norm bias gradient");
            self.partial.drain(..pieces * d);
            self.fold_partial(pieces, db);
        }
    }
}
