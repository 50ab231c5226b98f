//! The linear layer's three products with their biases, embedding lookup, rotary positions, dropout, sums.

use super::gemm::{Start, View};
use super::math::hash;
use super::{Dense, Shared, versions};

/// Elements per piece of an elementwise pass.
const PIECE: usize = 16384;
/// Rows per piece of a bias gradient, part of the order of its sum.
const ROWS: usize = 64;
/// Columns per piece of an embedding gradient.
const COLUMNS: usize = 64;

versions! {
    fn add_to(a: &mut [f32], b: &[f32]) {
        for (a, b) in a.iter_mut().zip(b) {
            *a += *b;
        }
    }
}

/// Heads of a row that are rotated: `heads` of them, `step` apart, the first at `start`; of each, pairs of the `2·half`
/// values that begin there.
#[derive(Clone, Copy, Debug)]
pub struct Rotated {
    /// Where the first head's rotated part begins in a row.
    pub start: usize,
    /// Between heads.
    pub step: usize,
    /// How many.
    pub heads: usize,
    /// Pairs are (2i, 2i + 1) rather than (i, i + half).
    pub neighbours: bool,
}

versions! {
    fn rotate(x: &mut [f32], stride: usize, what: Rotated, first: usize, period: usize, cos: &[f32], sin: &[f32], back: f32) {
        let half = cos.len() / period;
        for (r, row) in x.chunks_mut(stride).enumerate() {
            let p = (first + r) % period;
            let (cos, sin) = (&cos[p * half..][..half], &sin[p * half..][..half]);
            for h in 0..what.heads {
                let head = &mut row[what.start + h * what.step..][..half * 2];
                if what.neighbours {
                    for ((pair, c), s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                        let s = s * back;
                        let [x, y] = *pair;
                        *pair = [x.mul_add(*c, -(y * s)), y.mul_add(*c, x * s)];
                    }
                    continue;
                }
                let (a, b) = head.split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let s = s * back;
                    let (x, y) = (*a, *b);
                    *a = x.mul_add(*c, -(y * s));
                    *b = y.mul_add(*c, x * s);
                }
            }
        }
    }
}

versions! {
    fn drop(x: &mut [f32], first: usize, key: u64, threshold: u32, factor: f32) {
        for (i, x) in x.iter_mut().enumerate() {
            let at = (first + i) as u64;
            let keep = hash(key, (at >> 32) as u32, at as u32) >= threshold;
            *x = if keep { *x * factor } else { 0.0 };
        }
    }
}

/// The hash values below which an element is dropped.
pub(super) fn threshold(rate: f32) -> u32 {
    (f64::from(rate) * 4_294_967_296.0) as u32
}

impl Dense {
    /// `y[m, n] = x[m, k]·w[n, k]ᵀ`, plus `bias[n]`, plus `residual[m, n]`.
    #[allow(clippy::too_many_arguments)] // operands and shape of one layer
    pub fn linear(
        &mut self,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        residual: Option<&[f32]>,
        y: &mut [f32],
        (m, n, k): (usize, usize, usize),
    ) {
        assert!(y.len() == m * n && x.len() == m * k && w.len() == n * k, "linear [{m}, {n}, {k}]");
        let start = match (residual, bias) {
            (Some(residual), bias) => Start::Residual(residual, bias),
            (None, Some(bias)) => Start::Bias(bias),
            (None, None) => Start::Zero,
        };
        self.product_from(View::new(x, m, k, k), View::new(w, n, k, k).t(), y, n, start);
    }

    /// `dx[m, k] = dy[m, n]·w[n, k]`, or `+=` if `add`.
    pub fn linear_dx(
        &mut self,
        dy: &[f32],
        w: &[f32],
        dx: &mut [f32],
        (m, n, k): (usize, usize, usize),
        add: bool,
    ) {
        assert!(dy.len() == m * n && dx.len() == m * k && w.len() == n * k, "linear [{m}, {n}, {k}]");
        self.product(View::new(dy, m, n, n), View::new(w, n, k, k), dx, k, add);
    }

    /// `dw[n, k] += dy[m, n]ᵀ·x[m, k]`.
    pub fn linear_dw(&mut self, dy: &[f32], x: &[f32], dw: &mut [f32], (m, n, k): (usize, usize, usize)) {
        assert!(dy.len() == m * n && x.len() == m * k && dw.len() == n * k, "linear [{m}, {n}, {k}]");
        self.product(View::new(dy, m, n, n).t(), View::new(x, m, k, k), dw, k, true);
    }

    /// `db[n] += Σ rows of dy[m, n]`.
    pub fn bias_back(&mut self, dy: &[f32], db: &mut [f32]) {
        let n = db.len();
        let m = dy.len() / n;
        assert!(dy.len() == m * n, "bias gradient of {} by {n}", dy.len());
        let pieces = m.div_ceil(ROWS);
        let mut partial = std::mem::take(&mut self.partial);
        partial.clear();
        partial.resize(pieces * n, 0.0);
        let shared = Shared::of(&mut partial);
        self.pieces(m, ROWS, |p, r| {
            // SAFETY: each piece takes its own row of partial sums.
            let sums = unsafe { shared.part(p * n..(p + 1) * n) };
            for row in dy[r.start * n..r.end * n].chunks_exact(n) {
                add_to(self.isa, sums, row);
            }
        });
        self.partial = partial;
        self.fold_partial(pieces, db);
    }

    /// `a += b`.
    pub fn add(&mut self, a: &mut [f32], b: &[f32]) {
        assert!(a.len() == b.len(), "sum of {} and {}", a.len(), b.len());
        let a = Shared::of(a);
        self.pieces(b.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            add_to(self.isa, unsafe { a.part(r.clone()) }, &b[r]);
        });
    }

    /// `out[rows, d]` = rows `ids` of `table[vocab, d]`, plus row `r mod period` of `positions[period, d]`.
    ///
    /// # Panics
    /// If an id is beyond the table: the reader of the data proves ids.
    pub fn embed(&mut self, ids: &[u32], table: &[f32], positions: Option<&[f32]>, out: &mut [f32]) {
        let d = out.len() / ids.len();
        assert!(out.len() == d * ids.len(), "{} ids into {}", ids.len(), out.len());
        let out = Shared::of(out);
        self.pieces(ids.len(), ROWS, |_, r| {
            // SAFETY: each piece takes its own rows.
            let rows = unsafe { out.part(r.start * d..r.end * d) };
            for ((r, id), out) in r.clone().zip(&ids[r]).zip(rows.chunks_exact_mut(d)) {
                out.copy_from_slice(&table[*id as usize * d..][..d]);
                if let Some(positions) = positions {
                    let p = r % (positions.len() / d);
                    add_to(self.isa, out, &positions[p * d..][..d]);
                }
            }
        });
    }

    /// Writes zeros.
    pub fn zero(&mut self, x: &mut [f32]) {
        let x = Shared::of(x);
        self.pieces(x.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            unsafe { x.part(r) }.fill(0.0);
        });
    }

    /// Adds the gradient of [`Dense::embed`] to `table` and `positions`, in the order of the rows.
    pub fn embed_back(&mut self, ids: &[u32], dy: &[f32], table: &mut [f32], positions: Option<&mut [f32]>) {
        let d = dy.len() / ids.len();
        assert!(
            dy.len() == d * ids.len() && table.len().is_multiple_of(d),
            "{} ids of {}",
            ids.len(),
            dy.len()
        );
        if let Some(positions) = positions {
            let length = positions.len();
            let positions = Shared::of(positions);
            self.pieces(length, PIECE, |_, r| {
                // SAFETY: each piece takes its own range.
                let part = unsafe { positions.part(r.clone()) };
                for dy in dy.chunks(length) {
                    let end = r.end.min(dy.len());
                    add_to(self.isa, part, &dy[r.start.min(end)..end]);
                }
            });
        }
        let table = Shared::of(table);
        self.pieces(d, COLUMNS, |_, cols| {
            for (id, dy) in ids.iter().zip(dy.chunks_exact(d)) {
                let at = *id as usize * d;
                // SAFETY: each piece takes its own columns of every row.
                let row = unsafe { table.part(at + cols.start..at + cols.end) };
                add_to(self.isa, row, &dy[cols.clone()]);
            }
        });
    }

    /// Rotates parts of each row of `x[rows, stride]` in place. Row r is at position `r mod period`; `cos` and `sin` are
    /// `[period, half]`. `back` undoes the rotation up to the tables' scale, which is also its gradient.
    #[allow(clippy::too_many_arguments)] // operands and shape of one pass
    pub fn rope(
        &mut self,
        x: &mut [f32],
        stride: usize,
        what: Rotated,
        period: usize,
        cos: &[f32],
        sin: &[f32],
        back: bool,
    ) {
        let half = cos.len() / period;
        assert!(cos.len() == half * period && sin.len() == cos.len(), "rope tables");
        let last = what.start + what.heads.saturating_sub(1) * what.step + half * 2;
        assert!(last <= stride && x.len().is_multiple_of(stride), "{what:?} of {} by {stride}", x.len());
        let x = Shared::of(x);
        self.pieces(x.len() / stride, 16, |_, r| {
            // SAFETY: each piece takes its own rows.
            let rows = unsafe { x.part(r.start * stride..r.end * stride) };
            rotate(self.isa, rows, stride, what, r.start, period, cos, sin, if back { -1.0 } else { 1.0 });
        });
    }

    /// Zeroes the elements of `x` that `(key, index)` chooses with probability `rate` and scales the others by
    /// `1/(1 − rate)`: dropout, and, with the same key, its gradient.
    pub fn dropout(&mut self, x: &mut [f32], rate: f32, key: u64) {
        let x = Shared::of(x);
        let factor = 1.0 / (1.0 - rate);
        self.pieces(x.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            drop(self.isa, unsafe { x.part(r.clone()) }, r.start, key, threshold(rate), factor);
        });
    }
}
