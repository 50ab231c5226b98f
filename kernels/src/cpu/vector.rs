//! Norms, rotations, activations and the small passes between products.

use super::{Activation, Cpu, Map, Pairs};
use crate::generic::norm::Norm;
use crate::input::{Cut, Input};
use crate::shared::Shared;
use llm_format::quant::Type;

/// A norm of rows, with its weights.
#[derive(Clone, Copy, Debug)]
pub struct RowNorm<'a> {
    /// Whether the mean is taken off ([`Cpu::layer_norm`]) or not ([`Cpu::rms_norm`]).
    pub layer: bool,
    /// Added under the root.
    pub eps: f32,
    /// `[width]`
    pub weight: &'a [f32],
    /// `[width]`, of a layer norm.
    pub bias: Option<&'a [f32]>,
}

/// Rows from which on threads share them.
const ROWS: usize = 16;

impl Cpu {
    /// `out = x / sqrt(mean(x²) + eps) · weight` for each of `rows` rows of `width`. With `rows · heads` rows of
    /// `head_dim` it is the norm of heads.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, rows: usize, width: usize, out: &mut [f32]) {
        self.norm(self.ops.rms, Some(x), weight, None, eps, rows, width, out);
    }

    /// [`Cpu::rms_norm`] in place.
    pub fn rms_norm_in_place(&self, x: &mut [f32], weight: &[f32], eps: f32, rows: usize, width: usize) {
        self.norm(self.ops.rms, None, weight, None, eps, rows, width, x);
    }

    /// `out = (x − mean) / sqrt(var + eps) · weight + bias` for each row.
    ///
    /// # Panics
    /// If lengths do not fit.
    #[allow(clippy::too_many_arguments)] // a norm's operands
    pub fn layer_norm(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        rows: usize,
        width: usize,
        out: &mut [f32],
    ) {
        self.norm(self.ops.layer, Some(x), weight, bias, eps, rows, width, out);
    }

    /// [`Cpu::layer_norm`] in place.
    pub fn layer_norm_in_place(
        &self,
        x: &mut [f32],
        weight: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        rows: usize,
        width: usize,
    ) {
        self.norm(self.ops.layer, None, weight, bias, eps, rows, width, x);
    }

    #[allow(clippy::too_many_arguments)] // a norm's operands
    fn norm(
        &self,
        kernel: unsafe fn(&Norm),
        x: Option<&[f32]>,
        weight: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        rows: usize,
        width: usize,
        out: &mut [f32],
    ) {
        assert_eq!(weight.len(), width, "a norm's weight");
        assert!(bias.is_none_or(|b| b.len() == width), "a norm's bias of {width}");
        assert_eq!(out.len(), rows * width, "outputs [{rows}, {width}]");
        assert!(x.is_none_or(|x| x.len() == rows * width), "inputs [{rows}, {width}]");
        let out = Shared::of(out);
        self.split(rows, rows * width, |range| {
            for i in range {
                // SAFETY: row i is this thread's alone
                let to = unsafe { out.slice(i * width, width) }.as_mut_ptr();
                let x = x.map_or(to.cast_const(), |x| x[i * width..].as_ptr());
                let bias = bias.map_or(std::ptr::null(), <[f32]>::as_ptr);
                // SAFETY: all pointers hold `width` values; the machine has the table's instruction set
                unsafe { kernel(&Norm { x, out: to, width, weight: weight.as_ptr(), bias, eps }) };
            }
        });
    }

    /// The norm of `m` rows `x` as the input of products, of which the first is with a matrix of type `next`: one pass.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn norm_input(&self, norm: &RowNorm<'_>, x: &[f32], m: usize, input: &mut Input, next: Type) {
        let width = norm.weight.len();
        assert!(norm.bias.is_none_or(|b| b.len() == width), "a norm's bias of {width}");
        assert_eq!(x.len(), m * width, "inputs [{m}, {width}]");
        let kernel = if norm.layer { self.ops.layer } else { self.ops.rms };
        let (weight, eps) = (norm.weight, norm.eps);
        input.fill(self, m, width, Cut::Rows, Some(next), &|i, _, out| {
            let (x, out, weight) = (x[i * width..][..width].as_ptr(), out.as_mut_ptr(), weight.as_ptr());
            let bias = norm.bias.map_or(std::ptr::null(), <[f32]>::as_ptr);
            // SAFETY: all pointers hold `width` values; the machine has the table's instruction set
            unsafe { kernel(&Norm { x, out, width, weight, bias, eps }) };
        });
    }

    /// act(gate) · up, `[m, width]`, as the input of products, of which the first is with a matrix of type `next`.
    ///
    /// # Panics
    /// If lengths do not fit.
    #[allow(clippy::too_many_arguments)] // two operands, their shape, and where they go
    pub fn gated_input(
        &self,
        kind: Activation,
        gate: &[f32],
        up: &[f32],
        m: usize,
        width: usize,
        input: &mut Input,
        next: Type,
    ) {
        assert!(gate.len() == m * width && up.len() == m * width, "gate and up [{m}, {width}]");
        input.fill(self, m, width, Cut::Records, Some(next), &|i, columns, out| {
            let at = i * width + columns.start;
            let (gate, up) = (&gate[at..][..columns.len()], &up[at..][..columns.len()]);
            // SAFETY: all hold as many values as there are columns; the machine has the table's instruction set
            unsafe { (self.ops.gated)(kind, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len()) };
        });
    }

    /// Rotates the first `rot_dim` values of each of `heads` heads of `head_dim` in `rows` rows that lie
    /// `row_stride` apart. `cos` and `sin` are `[rows, rot_dim/2]`: each row's angles.
    ///
    /// # Panics
    /// If lengths do not fit.
    #[allow(clippy::too_many_arguments)] // a strided batch of heads and its tables
    pub fn rope(
        &self,
        x: &mut [f32],
        rows: usize,
        row_stride: usize,
        heads: usize,
        head_dim: usize,
        rot_dim: usize,
        pairs: Pairs,
        cos: &[f32],
        sin: &[f32],
    ) {
        let half = rot_dim / 2;
        assert!(rot_dim.is_multiple_of(2) && rot_dim <= head_dim, "rotated part {rot_dim} of {head_dim}");
        assert!(heads * head_dim <= row_stride, "{heads} heads of {head_dim} in rows of {row_stride}");
        assert_eq!(cos.len(), rows * half, "cosines [{rows}, {half}]");
        assert_eq!(sin.len(), rows * half, "sines [{rows}, {half}]");
        assert!(
            rows == 0 || x.len() >= (rows - 1) * row_stride + heads * head_dim,
            "{rows} rows of {row_stride}"
        );
        let x = Shared::of(x);
        self.split(rows, rows * heads * rot_dim, |range| {
            for i in range {
                for h in 0..heads {
                    // SAFETY: row i is this thread's alone; the tables hold `half` angles for it; the machine has
                    // the table's instruction set
                    unsafe {
                        let head = x.slice(i * row_stride + h * head_dim, head_dim).as_mut_ptr();
                        let (c, s) = (&cos[i * half..][..half], &sin[i * half..][..half]);
                        (self.ops.rope)(head, half, pairs, c.as_ptr(), s.as_ptr());
                    }
                }
            }
        });
    }

    /// x = f(x), each value.
    ///
    /// # Panics
    /// For [`Activation::ClampedSwiglu`], which is gated only.
    pub fn map(&self, f: Map, x: &mut [f32]) {
        assert!(
            !matches!(f, Map::Activate(Activation::ClampedSwiglu { .. })),
            "clamped swiglu is gated only"
        );
        let n = x.len();
        let x = Shared::of(x);
        self.split(n.div_ceil(16), n, |range| {
            let (from, to) = (range.start * 16, (range.end * 16).min(n));
            // SAFETY: the part is this thread's alone; the machine has the table's instruction set
            unsafe { (self.ops.map)(f, x.slice(from, to - from).as_mut_ptr(), to - from) };
        });
    }

    /// x = act(x).
    ///
    /// # Panics
    /// For [`Activation::ClampedSwiglu`], which is gated only.
    pub fn activate(&self, kind: Activation, x: &mut [f32]) {
        self.map(Map::Activate(kind), x);
    }

    /// x = x · factor.
    pub fn scale(&self, x: &mut [f32], factor: f32) {
        self.map(Map::Scale(factor), x);
    }

    /// x = cap · tanh(x / cap).
    pub fn softcap(&self, x: &mut [f32], cap: f32) {
        self.map(Map::Softcap(cap), x);
    }

    /// x = 1 / (1 + e^−x).
    pub fn sigmoid(&self, x: &mut [f32]) {
        self.map(Map::Sigmoid, x);
    }

    /// out = act(gate) · up.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gated(&self, kind: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        let n = out.len();
        assert!(gate.len() == n && up.len() == n, "gate {}, up {}, out {n}", gate.len(), up.len());
        let out = Shared::of(out);
        self.split(n.div_ceil(16), n, |range| {
            let (from, to) = (range.start * 16, (range.end * 16).min(n));
            let (gate, up) = (&gate[from..to], &up[from..to]);
            // SAFETY: the part is this thread's alone; the machine has the table's instruction set
            unsafe {
                let out = out.slice(from, to - from);
                (self.ops.gated)(kind, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len());
            }
        });
    }

    /// a = a + b.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, a: &mut [f32], b: &[f32]) {
        let n = a.len();
        assert_eq!(b.len(), n, "terms of a sum");
        let a = Shared::of(a);
        self.split(n.div_ceil(16), n, |range| {
            let (from, to) = (range.start * 16, (range.end * 16).min(n));
            let b = &b[from..to];
            // SAFETY: the part is this thread's alone; the machine has the table's instruction set
            unsafe { (self.ops.add)(a.slice(from, to - from).as_mut_ptr(), b.as_ptr(), None, b.len()) };
        });
    }

    /// `out[rows[i]] = fma(x[i], factors[i], out[rows[i]])`, i ascending: experts' outputs with their weights. `x` is
    /// `[factors, width]`, `out` as many rows of `width` as there are; without `rows` row i belongs to row i. Threads
    /// share the rows of `out`, or where those are few the width, so that a row is always added to in the same order.
    ///
    /// # Panics
    /// If lengths do not fit, or one of `rows` is not in `out`.
    pub fn add_rows(&self, out: &mut [f32], width: usize, x: &[f32], rows: Option<&[u32]>, factors: &[f32]) {
        let (n, height) = (factors.len(), out.len() / width.max(1));
        assert_eq!(x.len(), n * width, "terms [{n}, {width}]");
        assert_eq!(out.len(), height * width, "outputs [{height}, {width}]");
        let top = rows.map_or(n.checked_sub(1), |r| r.iter().max().map(|&r| r as usize));
        assert!(rows.is_none_or(|r| r.len() == n), "rows of {n} terms");
        assert!(top.is_none_or(|top| top < height), "a term for row {top:?} of {height}");
        let out = Shared::of(out);
        // whole rows are read faster than parts of them
        let tall = height >= ROWS;
        self.split(if tall { height } else { width.div_ceil(16) }, height * width, |range| {
            let (mine, from, to) = match tall {
                true => (range, 0, width),
                false => (0..height, range.start * 16, (range.end * 16).min(width)),
            };
            for (i, &factor) in factors.iter().enumerate() {
                let row = rows.map_or(i, |r| r[i] as usize);
                if !mine.contains(&row) {
                    continue;
                }
                let x = &x[i * width + from..i * width + to];
                // SAFETY: these columns of these rows are this thread's alone; `out` and `x` hold as many values; the
                // machine has the table's instruction set
                unsafe {
                    let out = out.slice(row * width + from, to - from).as_mut_ptr();
                    (self.ops.add)(out, x.as_ptr(), Some(factor), x.len());
                }
            }
        });
    }

    /// `out[i] += Σ_j (scale · low[i][j]) · b[j]`, j ascending, each term by one fma: what an adapter adds to products.
    /// `low` is `[m, rank]`, `b` `[rank, width]`, `out` `[m, width]`. Threads share the width, so that each reads its
    /// part of `b` once for all rows.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub fn add_low_rank(&self, scale: f32, low: &[f32], b: &[f32], rank: usize, out: &mut [f32]) {
        assert!(rank > 0 && b.len().is_multiple_of(rank), "{} values of rank {rank}", b.len());
        let (m, width) = (low.len() / rank, b.len() / rank);
        assert!(low.len() == m * rank && out.len() == m * width, "outputs [{m}, {width}], low {}", low.len());
        let out = Shared::of(out);
        self.split(width.div_ceil(16), m * b.len(), |range| {
            let (from, to) = (range.start * 16, (range.end * 16).min(width));
            for (i, low) in low.chunks_exact(rank).enumerate() {
                // SAFETY: these columns of the rows are this thread's alone
                let out = unsafe { out.slice(i * width + from, to - from) }.as_mut_ptr();
                for (j, low) in low.iter().enumerate() {
                    let b = &b[j * width + from..j * width + to];
                    // SAFETY: `out` and `b` hold as many values; the machine has the table's instruction set
                    unsafe { (self.ops.add)(out, b.as_ptr(), Some(scale * low), b.len()) };
                }
            }
        });
    }

    /// e^(x − max) / Σ over each of `rows` rows, in place.
    ///
    /// # Panics
    /// If `rows` does not divide the length.
    pub fn softmax(&self, x: &mut [f32], rows: usize) {
        assert!(rows > 0 && x.len().is_multiple_of(rows), "{} values in {rows} rows", x.len());
        let width = x.len() / rows;
        let x = Shared::of(x);
        self.split(rows, rows * width, |range| {
            for i in range {
                // SAFETY: row i is this thread's alone; the machine has the table's instruction set
                unsafe { (self.ops.softmax)(x.slice(i * width, width).as_mut_ptr(), width) };
            }
        });
    }

    /// Index of the largest value, the lowest of equal ones; NaN never wins. `None` without any number.
    pub fn argmax(&self, x: &[f32]) -> Option<usize> {
        let mut best: Option<(usize, f32)> = None;
        for (i, &v) in x.iter().enumerate() {
            if !v.is_nan() && best.is_none_or(|(_, b)| v > b) {
                best = Some((i, v));
            }
        }
        best.map(|(i, _)| i)
    }
}
