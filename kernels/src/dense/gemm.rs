//! The matrix product `C = A·B` or `C += A·B` over strided f32 operands.
//!
//! ```text
//!   piece of work = part of C, planned so that all threads end together; for each KC = 256 of the inner index
//!     B's block [KC, up to 768] → panels [panel][k][NR] in the second cache        (pack.rs)
//!     for each 192 rows of A (another 192 KiB there) · for each panel (32 KiB, first cache) · for each MR rows → micro kernel
//! ```
//! A is read where it lies if its rows are contiguous (a micro kernel broadcasts single elements of A, so rows need no
//! repacking), else it is packed, 192 rows at a time.
//!
//! The order of a sum: inner index ascending by fused multiply-add from zero inside a block of [`KC`]; the blocks' sums
//! are added to C in ascending order. It is the same for every instruction set, plan and thread count. Products of
//! rounded operands have an order of their own (halves.rs).

use super::pack::{aligned, pack};
use super::{Dense, Isa, Shared, Unit};
use std::cell::RefCell;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;

/// Inner indices per block, part of the order of the sums.
pub const KC: usize = 256;
/// Rows of A that are multiplied with all panels of a block of B before the next: a multiple of every micro kernel's.
const ROWS: usize = 192;
/// Columns of B in a block, at most.
const COLS: usize = 768;
/// The largest micro kernel's rows and columns.
const MAX_MR: usize = 12;
const MAX_NR: usize = 32;

/// A thread's own panels.
#[derive(Default)]
struct Own {
    left: Vec<f32>,
    right: Vec<f32>,
}

thread_local! {
    static OWN: RefCell<Own> = RefCell::default();
}

/// A matrix where it lies: element (i, j) at `data[i·row + j·col]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row: usize,
    pub(super) col: usize,
}

impl<'a> View<'a> {
    /// Row-major `[rows, cols]`, rows `stride` elements apart.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> View<'a> {
        let need = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(cols <= stride && data.len() >= need, "view [{rows}, {cols}] of {} by {stride}", data.len());
        View { data, rows, cols, row: stride, col: 1 }
    }

    /// These rows and columns of it.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn part(self, rows: Range<usize>, cols: Range<usize>) -> View<'a> {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "rows {rows:?}, columns {cols:?}");
        let at = rows.start * self.row + cols.start * self.col;
        View { data: &self.data[at..], rows: rows.len(), cols: cols.len(), ..self }
    }

    /// The transposed matrix, same memory.
    pub fn t(self) -> View<'a> {
        View { rows: self.cols, cols: self.rows, row: self.col, col: self.row, ..self }
    }
}

/// What the sums of a product begin with.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Nothing.
    Zero,
    /// What C holds.
    Own,
    /// One value per column.
    Bias(&'a [f32]),
    /// A matrix that lies like C, plus one value per column where there is a bias.
    Residual(&'a [f32], Option<&'a [f32]>),
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct Shape<'a> {
    mr: usize,
    nr: usize,
    k: usize,
    /// Elements from one row of C to the next.
    stride: usize,
    start: Start<'a>,
}

/// The right operand: where it lies, or all of it in panels as deep as its matrix.
#[derive(Clone, Copy)]
enum Right<'a> {
    View(View<'a>),
    Packed(&'a [f32], usize),
}

fn micro_shape(isa: Isa) -> (usize, usize) {
    if isa == Isa::Avx512 { (12, 32) } else { (6, 16) }
}

impl Dense {
    /// `C[rows, cols] = A·B`, or `C += A·B` if `add`; row i of C starts at `c[i·stride]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product(&mut self, a: View, b: View, c: &mut [f32], stride: usize, add: bool) {
        self.product_from(a, b, c, stride, if add { Start::Own } else { Start::Zero });
    }

    /// As [`Dense::product`]; the threads write what the sums begin with just before they add to it.
    pub(super) fn product_from(&mut self, a: View, b: View, c: &mut [f32], stride: usize, start: Start) {
        check(a, b, c, stride, start);
        if a.rows == 0 || b.cols == 0 {
            return;
        }
        assert!(a.cols > 0, "a product over nothing");
        let unit = self.unit();
        #[cfg(target_arch = "x86_64")]
        if unit.rounds() {
            return super::halves::product(self, unit, a, b, (c, stride), start);
        }
        let isa = unit.isa();
        let (mr, nr) = micro_shape(isa);
        let shape = Shape { mr, nr, k: a.cols, stride, start };
        let (rows, cols) = plan(shape, a.rows, b.cols, self.threads());
        let c = Shared::of(c);
        let (down, across) = (a.rows.div_ceil(rows), b.cols.div_ceil(cols));
        self.pool.run(down * across, |t| {
            let (i0, j0) = (t / across * rows, t % across * cols);
            let (rows, cols) = (rows.min(a.rows - i0), cols.min(b.cols - j0));
            OWN.with_borrow_mut(|own| {
                // SAFETY: the rows and columns of C of piece t belong to no other; `check` proved the extents of A,
                // B and C.
                unsafe { tile(isa, shape, a, (i0, rows), Right::View(b), (j0, cols), c.pointer(), own) };
            });
        });
    }
}

/// Rows and columns of a piece of work: what lets `threads` threads end soonest, counting what is packed again for
/// every piece and preferring several pieces to a thread, since others may take its core.
fn plan(shape: Shape, m: usize, n: usize, threads: usize) -> (usize, usize) {
    /// Elements of C that take as long as packing an element of B, and as bringing one of A.
    const PACK: (usize, usize) = (24, 8);
    let (groups, panels) = (m.div_ceil(shape.mr), n.div_ceil(shape.nr));
    let mut best = (usize::MAX, (m, n));
    let fewest = n.div_ceil(COLS);
    for across in fewest..=panels.min(fewest + 2 * threads) {
        for down in 1..=groups.min(4 * threads) {
            let (rows, cols) = (groups.div_ceil(down) * shape.mr, panels.div_ceil(across) * shape.nr);
            let rounds = (m.div_ceil(rows) * n.div_ceil(cols)).div_ceil(threads);
            let work = rounds * (rows * cols + PACK.0 * cols + PACK.1 * rows);
            let cost = work + work / (16 * rounds);
            if cost < best.0 && cols <= COLS {
                best = (cost, (rows, cols));
            }
        }
    }
    best.1
}

/// A right operand for [`serial`], in panels.
#[derive(Default)]
pub(super) struct Panels {
    pub space: Vec<f32>,
    /// Rows of the matrix, which are its panels' depth.
    pub rows: usize,
}

/// Packs all of `b` into panels.
pub(super) fn panels(unit: Unit, b: View, out: &mut Panels) {
    out.rows = b.rows;
    #[cfg(target_arch = "x86_64")]
    if unit.rounds() {
        return super::halves::panels(b, &mut out.space);
    }
    let isa = unit.isa();
    let (_, nr) = micro_shape(isa);
    out.space.resize(b.cols.div_ceil(nr) * b.rows * nr, 0.0);
    pack(isa, b.t(), 0..b.cols, nr, 0..b.rows, &mut out.space);
}

/// `C = A·B` (or `+=`) by the calling thread alone, for pieces of work that are products themselves (attention).
/// B is the top left `[a.cols, cols]` of what [`panels`] packed.
pub(super) fn serial(unit: Unit, a: View, b: &Panels, cols: usize, c: &mut [f32], stride: usize, add: bool) {
    let need = if a.rows == 0 || cols == 0 { 0 } else { (a.rows - 1) * stride + cols };
    assert!(cols <= stride && c.len() >= need, "product [{}, {cols}] into {}", a.rows, c.len());
    #[cfg(target_arch = "x86_64")]
    if unit.rounds() {
        return super::halves::serial(unit, a, b, cols, c.as_mut_ptr(), stride, add);
    }
    let isa = unit.isa();
    let (mr, nr) = micro_shape(isa);
    let enough = b.space.len() >= cols.div_ceil(nr) * nr * b.rows;
    assert!(a.cols <= b.rows && enough, "panels of another matrix");
    let start = if add { Start::Own } else { Start::Zero };
    let shape = Shape { mr, nr, k: a.cols, stride, start };
    OWN.with_borrow_mut(|own| {
        let right = Right::Packed(&b.space, b.rows);
        // SAFETY: `c` is borrowed mutably and holds the product, the panels hold the operand (both checked above).
        unsafe { tile(isa, shape, a, (0, a.rows), right, (0, cols), c.as_mut_ptr(), own) };
    });
}

fn check(a: View, b: View, c: &[f32], stride: usize, start: Start) {
    assert!(a.cols == b.rows, "product of [{}, {}] and [{}, {}]", a.rows, a.cols, b.rows, b.cols);
    let need = if a.rows == 0 || b.cols == 0 { 0 } else { (a.rows - 1) * stride + b.cols };
    assert!(b.cols <= stride && c.len() >= need, "product [{}, {}] into {}", a.rows, b.cols, c.len());
    let bias_fits = |bias: &[f32]| bias.len() == b.cols;
    let fits = match start {
        Start::Zero | Start::Own => true,
        Start::Bias(bias) => bias_fits(bias),
        Start::Residual(residual, bias) => residual.len() == c.len() && bias.is_none_or(bias_fits),
    };
    assert!(fits, "bias or residual of a product [{}, {}]", a.rows, b.cols);
}

/// One piece of C: rows `i0..i0+rows` of A times columns `j0..j0+cols` of B.
///
/// # Safety
/// - `c` points to row 0 of a matrix of rows `shape.stride` apart that holds this piece, and nothing else reads or
///   writes the piece meanwhile.
/// - `a` has rows `i0..i0+rows` and `shape.k` columns; B has `shape.k` rows and columns `j0..j0+cols`, packed ones as
///   deep as they say, from column 0.
/// - `isa` is available.
#[allow(clippy::too_many_arguments)] // one product's coordinates; grouping them would only rename them
unsafe fn tile(
    isa: Isa,
    shape: Shape,
    a: View,
    (i0, rows): (usize, usize),
    b: Right,
    (j0, cols): (usize, usize),
    c: *mut f32,
    own: &mut Own,
) {
    let Shape { mr, nr, k, stride, start } = shape;
    let packing = a.col != 1;
    let left = aligned(&mut own.left, (ROWS.min(rows).next_multiple_of(mr)) * KC.min(k));
    let right = match b {
        Right::View(_) => aligned(&mut own.right, cols.next_multiple_of(nr) * KC.min(k)),
        Right::Packed(..) => &mut [],
    };
    let mut scratch = [0.0f32; MAX_MR * MAX_NR];
    for k0 in (0..k).step_by(KC) {
        let kc = KC.min(k - k0);
        let start = if k0 == 0 { start } else { Start::Own };
        if let Right::View(b) = b {
            pack(isa, b.t(), j0..j0 + cols, nr, k0..k0 + kc, right);
        }
        for r0 in (0..rows).step_by(ROWS) {
            let (first, n) = (i0 + r0, ROWS.min(rows - r0));
            // the last rows, too few for a micro kernel, are packed with zeros
            let whole = n / mr * mr;
            if packing {
                pack(isa, a, first..first + n, mr, k0..k0 + kc, left);
            } else if whole < n {
                pack(isa, a, first + whole..first + n, mr, k0..k0 + kc, left);
            }
            for j in (0..cols).step_by(nr) {
                let panel = match b {
                    Right::View(_) => &right[j * kc..][..kc * nr],
                    Right::Packed(packed, deep) => &packed[(j0 + j) * deep + k0 * nr..][..kc * nr],
                };
                for i in (0..n).step_by(mr) {
                    let (from, row_step, k_step) = if packing {
                        (left[i * kc..].as_ptr(), 1, mr)
                    } else if i == whole {
                        (left.as_ptr(), 1, mr)
                    } else {
                        (a.data[(first + i) * a.row + k0..].as_ptr(), a.row, 1)
                    };
                    let place = c.wrapping_add((first + i) * stride + j0 + j);
                    let left = Left { at: from, row_step, k_step };
                    let at = (first + i) * stride + j0 + j;
                    if i < whole && j + nr <= cols {
                        let base = match start {
                            Start::Zero => Base::ZERO,
                            Start::Own => Base { at: place, step: stride, bias: std::ptr::null() },
                            Start::Bias(bias) => Base { at: bias[j0 + j..].as_ptr(), ..Base::ZERO },
                            Start::Residual(from, bias) => {
                                let bias = bias.map_or(std::ptr::null(), |b| b[j0 + j..].as_ptr());
                                Base { at: from[at..].as_ptr(), step: stride, bias }
                            }
                        };
                        // SAFETY: the mr×nr part of C at `place` is ours; `from` has mr rows of kc elements (inside
                        // A, or packed and padded); the panel has kc·nr elements; `check` proved the extents of bias
                        // and residual; the isa is available.
                        unsafe { micro(isa, kc, left, panel.as_ptr(), place, stride, base) };
                        continue;
                    }
                    let (h, w) = (mr.min(n - i), nr.min(cols - j));
                    // SAFETY: as above, with the scratch tile in place of C.
                    unsafe { micro(isa, kc, left, panel.as_ptr(), scratch.as_mut_ptr(), nr, Base::ZERO) };
                    for (y, line) in scratch.chunks_exact(nr).take(h).enumerate() {
                        // SAFETY: row i+y, columns j..j+w of this piece lie inside C and are ours.
                        let out =
                            unsafe { std::slice::from_raw_parts_mut(place.wrapping_add(y * stride), w) };
                        finish(start, at + y * stride, j0 + j, line, out);
                    }
                }
            }
        }
    }
}

/// `out` = what its sums begin with, plus `sums`: part of a row, from element `at` of C and column `j0` on.
pub(super) fn finish(start: Start, at: usize, j0: usize, sums: &[f32], out: &mut [f32]) {
    for (i, (o, sum)) in out.iter_mut().zip(sums).enumerate() {
        *o = match start {
            Start::Zero => *sum,
            Start::Own => *o + sum,
            Start::Bias(bias) => bias[j0 + i] + sum,
            Start::Residual(from, None) => from[at + i] + sum,
            Start::Residual(from, Some(bias)) => (from[at + i] + bias[j0 + i]) + sum,
        };
    }
}

/// The left operand of a micro kernel: element (i, k) at `at[i·row_step + k·k_step]`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub at: *const f32,
    pub row_step: usize,
    pub k_step: usize,
}

/// What a micro kernel's sums are added to: elements at `at`, rows `step` apart (0: one row for all), plus one row
/// `bias`; null: nothing.
#[derive(Clone, Copy)]
pub(super) struct Base {
    pub at: *const f32,
    pub step: usize,
    pub bias: *const f32,
}

impl Base {
    /// Nothing.
    pub const ZERO: Base = Base { at: std::ptr::null(), step: 0, bias: std::ptr::null() };
}

/// `C[mr, nr] = base + A·B` over `kc` inner indices; `mr`, `nr` as [`micro_shape`] says.
///
/// # Safety
/// - `a` reads rows below mr and k below kc; `b` reads `kc·nr` elements; `base`, where it is not null, has mr rows and nr
///   columns; `c` has mr rows of nr elements `stride` apart that no one else touches. `base` may be `c` itself.
/// - `isa` is available.
#[inline]
unsafe fn micro(isa: Isa, kc: usize, a: Left, b: *const f32, c: *mut f32, stride: usize, base: Base) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises are those of the kernel.
        Isa::Avx512 => unsafe { super::micro::avx512(kc, a, b, c, stride, base) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises are those of the kernel.
        Isa::Avx2 | Isa::AvxVnni => unsafe { super::micro::avx2(kc, a, b, c, stride, base) },
        _ => {
            let mut acc = [[0.0f32; 16]; 6];
            for k in 0..kc {
                for (i, row) in acc.iter_mut().enumerate() {
                    for (j, sum) in row.iter_mut().enumerate() {
                        // SAFETY: i < 6, j < 16, k < kc: inside what the caller promised.
                        let (x, y) =
                            unsafe { (*a.at.add(i * a.row_step + k * a.k_step), *b.add(k * 16 + j)) };
                        *sum = x.mul_add(y, *sum);
                    }
                }
            }
            for (i, row) in acc.iter().enumerate() {
                for (j, sum) in row.iter().enumerate() {
                    // SAFETY: i < 6, j < 16: inside the caller's tile and what it is added to.
                    unsafe {
                        let mut sum = *sum;
                        if !base.at.is_null() {
                            let mut start = *base.at.add(i * base.step + j);
                            if !base.bias.is_null() {
                                start += *base.bias.add(j);
                            }
                            sum += start;
                        }
                        *c.add(i * stride + j) = sum;
                    }
                }
            }
        }
    }
}
