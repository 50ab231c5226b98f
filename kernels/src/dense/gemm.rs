//! The matrix product `C = A·B` or `C += A·B` over strided f32 operands.
//!
//! ```text
//!   B is packed once into panels of NR columns, [panel][k][NR]; A is read where it lies if its rows are contiguous
//!   (a micro kernel broadcasts single elements of A, so rows need no repacking), and packed per tile if not.
//!
//!   tile = 192×192 of C, one piece of work          KC = 256 of the inner index at a time:
//!   for each KC block · for each panel of B (32 KiB, stays in L1) · for each MR rows of A (stay in L2) → micro kernel
//! ```
//!
//! The order of a sum: inner index ascending by fused multiply-add from zero inside a block of [`KC`]; the blocks' sums
//! are added to C in ascending order. It is the same for every instruction set, tile and thread count.

use super::{Dense, Isa, Shared};
use std::cell::RefCell;

/// Inner indices per block, part of the order of the sums.
pub const KC: usize = 256;
/// Rows and columns of C in one piece of work: multiples of every micro kernel's shape.
const TILE: usize = 192;
/// The largest micro kernel's rows and columns.
const MAX_MR: usize = 12;
const MAX_NR: usize = 32;

thread_local! {
    /// A thread's own panels of A for the current tile.
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A matrix where it lies: element (i, j) at `data[i·row + j·col]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
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
    /// Inner indices of the packed panels, at least `k`.
    deep: usize,
    /// Elements from one row of C to the next.
    stride: usize,
    start: Start<'a>,
}

fn micro_shape(isa: Isa) -> (usize, usize) {
    if matches!(isa, Isa::Avx512 | Isa::Amx) { (12, 32) } else { (6, 16) }
}

impl Dense {
    /// `C[rows, cols] = A·B`, or `C += A·B` if `add`; row i of C starts at `c[i·stride]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product(&mut self, a: View, b: View, c: &mut [f32], stride: usize, add: bool) {
        self.product_from(a, b, c, stride, if add { Start::Own } else { Start::Zero });
    }

    /// As [`Dense::product`]; the threads write what the sums begin with tile by tile, just before they add to it.
    pub(super) fn product_from(&mut self, a: View, b: View, c: &mut [f32], stride: usize, start: Start) {
        let shape = check(self.isa, a, b, c, stride, start);
        if a.rows == 0 || b.cols == 0 {
            return;
        }
        assert!(a.cols > 0, "a product over nothing");
        let panels = b.cols.div_ceil(shape.nr);
        let mut packed = std::mem::take(&mut self.packed);
        let panel_len = shape.k * shape.nr;
        packed.resize(packed.len().max(panels * panel_len), 0.0);
        let space = Shared::new(&mut packed[..panels * panel_len]);
        self.pool.run(panels, |p| {
            // SAFETY: panel p is touched by piece p alone.
            let out = unsafe { space.part(p * panel_len..(p + 1) * panel_len) };
            pack(b.t(), p * shape.nr, shape.nr, 0..shape.k, out);
        });
        let c = Shared::new(c);
        let (down, across) = (a.rows.div_ceil(TILE), b.cols.div_ceil(TILE));
        let isa = self.isa;
        self.pool.run(down * across, |t| {
            let (i0, j0) = (t / across * TILE, t % across * TILE);
            let (rows, cols) = (TILE.min(a.rows - i0), TILE.min(b.cols - j0));
            PANELS.with_borrow_mut(|own| {
                // SAFETY: tile t's rows and columns of C belong to no other piece; `packed` is complete and long
                // enough for every panel; `check` proved the extents of A and C.
                unsafe { tile(isa, shape, a, i0, rows, &packed, j0, cols, c.pointer(0), own) };
            });
        });
        self.packed = packed;
    }
}

/// Packs all of `b` into panels for [`serial`].
pub(super) fn panels(isa: Isa, b: View, out: &mut Vec<f32>) {
    let (_, nr) = micro_shape(isa);
    let len = b.rows * nr;
    out.resize(b.cols.div_ceil(nr) * len, 0.0);
    for (p, panel) in out.chunks_exact_mut(len.max(1)).enumerate() {
        pack(b.t(), p * nr, nr, 0..b.rows, panel);
    }
}

/// `C = A·B` (or `+=`) by the calling thread alone, for pieces of work that are products themselves (attention).
/// B is the top left `[a.cols, cols]` of a matrix of `deep` rows that [`panels`] packed.
#[allow(clippy::too_many_arguments)] // one product's coordinates
pub(super) fn serial(
    isa: Isa,
    a: View,
    packed: &[f32],
    deep: usize,
    cols: usize,
    c: &mut [f32],
    stride: usize,
    add: bool,
) {
    let (mr, nr) = micro_shape(isa);
    let need = if a.rows == 0 || cols == 0 { 0 } else { (a.rows - 1) * stride + cols };
    assert!(cols <= stride && c.len() >= need, "product [{}, {cols}] into {}", a.rows, c.len());
    assert!(a.cols <= deep && packed.len() >= cols.div_ceil(nr) * nr * deep, "panels of another matrix");
    let start = if add { Start::Own } else { Start::Zero };
    let shape = Shape { mr, nr, k: a.cols, deep, stride, start };
    PANELS.with_borrow_mut(|own| {
        for i0 in (0..a.rows).step_by(TILE) {
            let rows = TILE.min(a.rows - i0);
            // SAFETY: `c` is borrowed mutably and holds the tile, `packed` holds the panels (both checked above).
            unsafe { tile(isa, shape, a, i0, rows, packed, 0, cols, c.as_mut_ptr(), own) };
        }
    });
}

fn check<'a>(isa: Isa, a: View, b: View, c: &[f32], stride: usize, start: Start<'a>) -> Shape<'a> {
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
    let (mr, nr) = micro_shape(isa);
    Shape { mr, nr, k: a.cols, deep: a.cols, stride, start }
}

/// Packs `width` rows of `m` from row `first`, columns `ks`, as `[k][width]`; rows beyond the end are zeros.
fn pack(m: View, first: usize, width: usize, ks: std::ops::Range<usize>, out: &mut [f32]) {
    let rows = width.min(m.rows - first);
    if m.row == 1 && rows == width {
        // A width that the compiler knows is a few moves, any other a call per line.
        return match width {
            32 => pack_lines::<32>(m, first, ks, out),
            16 => pack_lines::<16>(m, first, ks, out),
            12 => pack_lines::<12>(m, first, ks, out),
            _ => pack_lines::<6>(m, first, ks, out),
        };
    }
    if m.row == 1 {
        for (k, out) in ks.zip(out.chunks_exact_mut(width)) {
            let at = k * m.col + first;
            out[..rows].copy_from_slice(&m.data[at..at + rows]);
            out[rows..].fill(0.0);
        }
        return;
    }
    if rows < width {
        out.fill(0.0);
    }
    let n = ks.len();
    for i in 0..rows {
        let line = &m.data[(first + i) * m.row + ks.start * m.col..];
        for k in 0..n {
            out[k * width + i] = line[k * m.col];
        }
    }
}

/// [`pack`] for `W` whole lines that lie side by side.
fn pack_lines<const W: usize>(m: View, first: usize, ks: std::ops::Range<usize>, out: &mut [f32]) {
    for (k, out) in ks.zip(out.as_chunks_mut::<W>().0) {
        out.copy_from_slice(&m.data[k * m.col + first..][..W]);
    }
}

/// One tile of C: rows `i0..i0+rows` of A times columns `j0..j0+cols` of the packed B.
///
/// # Safety
/// - `c` points to row 0 of a matrix of rows `shape.stride` apart that holds this tile, and nothing else reads or
///   writes the tile meanwhile.
/// - `packed` holds all panels of B; `a` has rows `i0..i0+rows` and `shape.k` columns.
/// - `isa` is available.
#[allow(clippy::too_many_arguments)] // one product's coordinates; grouping them would only rename them
unsafe fn tile(
    isa: Isa,
    shape: Shape,
    a: View,
    i0: usize,
    rows: usize,
    packed: &[f32],
    j0: usize,
    cols: usize,
    c: *mut f32,
    own: &mut Vec<f32>,
) {
    let Shape { mr, nr, k, deep, stride, start } = shape;
    if !matches!(start, Start::Zero | Start::Own) {
        for y in 0..rows {
            let at = (i0 + y) * stride + j0;
            // SAFETY: row y, columns j0..j0+cols of C belong to this tile.
            let out = unsafe { std::slice::from_raw_parts_mut(c.wrapping_add(at), cols) };
            begin(start, at, j0, out);
        }
    }
    // Rows a multiple of 4 KiB apart would all fall into one set of the first-isa cache.
    let pack_all = a.col != 1 || a.row.is_multiple_of(1024);
    let groups = rows.div_ceil(mr);
    let ragged = !rows.is_multiple_of(mr);
    if pack_all {
        own.resize(own.len().max(groups * mr * KC), 0.0);
    } else if ragged {
        own.resize(own.len().max(mr * KC), 0.0);
    }
    let mut scratch = [0.0f32; MAX_MR * MAX_NR];
    for k0 in (0..k).step_by(KC) {
        let kc = KC.min(k - k0);
        let add = k0 > 0 || !matches!(start, Start::Zero);
        if pack_all {
            for g in 0..groups {
                pack(a, i0 + g * mr, mr, k0..k0 + kc, &mut own[g * mr * KC..][..kc * mr]);
            }
        } else if ragged {
            pack(a, i0 + rows / mr * mr, mr, k0..k0 + kc, &mut own[..kc * mr]);
        }
        for j in (0..cols).step_by(nr) {
            let panel = (j0 + j) / nr;
            let b = &packed[(panel * deep + k0) * nr..][..kc * nr];
            for g in 0..groups {
                let i = g * mr;
                let (left, row_step, k_step) = if pack_all {
                    (own[i * KC..].as_ptr(), 1, mr)
                } else if i + mr > rows {
                    (own.as_ptr(), 1, mr)
                } else {
                    (a.data[(i0 + i) * a.row + k0 * a.col..].as_ptr(), a.row, 1)
                };
                let whole = i + mr <= rows && j + nr <= cols;
                let place = c.wrapping_add((i0 + i) * stride + j0 + j);
                if whole {
                    // SAFETY: the mr×nr tile at `place` is ours and inside C; `left` has mr rows of kc elements
                    // (inside A, or packed and padded); b has kc·nr elements; the isa is available.
                    unsafe { micro(isa, kc, left, row_step, k_step, b.as_ptr(), place, stride, add) };
                    continue;
                }
                let (h, w) = (mr.min(rows - i), nr.min(cols - j));
                // SAFETY: as above, with the scratch tile in place of C.
                unsafe {
                    micro(isa, kc, left, row_step, k_step, b.as_ptr(), scratch.as_mut_ptr(), nr, false)
                };
                for (y, line) in scratch.chunks_exact(nr).take(h).enumerate() {
                    // SAFETY: row i+y, columns j..j+w of this tile lie inside C and are ours.
                    let out = unsafe { std::slice::from_raw_parts_mut(place.wrapping_add(y * stride), w) };
                    for (o, v) in out.iter_mut().zip(line) {
                        *o = if add { *o + *v } else { *v };
                    }
                }
            }
        }
    }
}

/// Writes what the sums of `out` begin with: part of a row, from element `at` of C and column `j0` on.
fn begin(start: Start, at: usize, j0: usize, out: &mut [f32]) {
    let n = out.len();
    match start {
        Start::Zero | Start::Own => {}
        Start::Bias(bias) => out.copy_from_slice(&bias[j0..j0 + n]),
        Start::Residual(residual, None) => out.copy_from_slice(&residual[at..at + n]),
        Start::Residual(residual, Some(bias)) => {
            for ((o, r), b) in out.iter_mut().zip(&residual[at..at + n]).zip(&bias[j0..j0 + n]) {
                *o = r + b;
            }
        }
    }
}

/// `C[mr, nr] = A·B` (or `+=`) over `kc` inner indices; `mr`, `nr` as [`micro_shape`] says.
///
/// # Safety
/// - `a` reads `a[i·row_step + k·k_step]` for i < mr, k < kc; `b` reads `kc·nr` elements; `c` has mr rows of nr elements
///   `stride` apart that no one else touches.
/// - `isa` is available.
#[allow(clippy::too_many_arguments)] // see `tile`
#[inline]
unsafe fn micro(
    isa: Isa,
    kc: usize,
    a: *const f32,
    row_step: usize,
    k_step: usize,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises are those of the kernel.
        Isa::Avx512 | Isa::Amx => unsafe { super::micro::avx512(kc, a, row_step, k_step, b, c, stride, add) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promises are those of the kernel.
        Isa::Avx2 => unsafe { super::micro::avx2(kc, a, row_step, k_step, b, c, stride, add) },
        _ => {
            let mut acc = [[0.0f32; 16]; 6];
            for k in 0..kc {
                for (i, row) in acc.iter_mut().enumerate() {
                    for (j, sum) in row.iter_mut().enumerate() {
                        // SAFETY: i < 6, j < 16, k < kc: inside what the caller promised.
                        *sum =
                            unsafe { (*a.add(i * row_step + k * k_step)).mul_add(*b.add(k * 16 + j), *sum) };
                    }
                }
            }
            for (i, row) in acc.iter().enumerate() {
                for (j, sum) in row.iter().enumerate() {
                    // SAFETY: i < 6, j < 16: inside the caller's tile.
                    unsafe {
                        let out = c.add(i * stride + j);
                        *out = if add { *out + sum } else { *sum };
                    }
                }
            }
        }
    }
}
