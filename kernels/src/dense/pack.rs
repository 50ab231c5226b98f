//! Copies of operands in the order in which micro kernels read them: panels of `width` rows, `[panel][k][width]`.
//!
//! ```text
//!   rows contiguous    16×16 blocks are turned in registers (AVX-512), else element by element
//!   columns contiguous lines of `width` elements are moved, eight inner indices at a time: reading goes along the rows
//! ```

use std::ops::Range;

use super::Isa;
use super::gemm::View;

/// Elements along a row that are fetched before they are turned.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 64;

/// The first `n` elements of `space` from a cache line's beginning on.
pub(super) fn aligned(space: &mut Vec<f32>, n: usize) -> &mut [f32] {
    const LINE: usize = 64;
    if space.len() < n + LINE / 4 {
        space.resize(n + LINE / 4, 0.0);
    }
    let skip = space.as_ptr().align_offset(LINE).min(LINE / 4);
    &mut space[skip..skip + n]
}

/// Packs `rows` of `m`, columns `ks`, in panels of `width` rows, each `[k][width]`; rows beyond the end are zeros.
///
/// # Panics
/// If `out` or `m` is too small.
pub(super) fn pack(isa: Isa, m: View, rows: Range<usize>, width: usize, ks: Range<usize>, out: &mut [f32]) {
    let (count, kc) = (rows.len(), ks.len());
    assert!(rows.end <= m.rows && ks.end <= m.cols, "panels of rows {rows:?}, columns {ks:?}");
    assert!(out.len() >= count.div_ceil(width) * width * kc, "space for panels of {count} rows");
    if m.row == 1 {
        // A width that the compiler knows is a few moves, any other a call per line.
        match width {
            32 => lines::<32>(m, rows, ks, out),
            16 => lines::<16>(m, rows, ks, out),
            12 => lines::<12>(m, rows, ks, out),
            _ => lines::<6>(m, rows, ks, out),
        }
        return;
    }
    for (p, panel) in out.chunks_exact_mut(width * kc).take(count.div_ceil(width)).enumerate() {
        let first = rows.start + p * width;
        let some = width.min(rows.end - first);
        if some < width {
            panel.fill(0.0);
        }
        let turned = turn(isa, m, first, some, width, &ks, panel);
        for i in 0..some {
            // behind the blocks, and rows that make no block
            let done = if i < turned.0 { turned.1 } else { 0 };
            let line = &m.data[(first + i) * m.row + ks.start * m.col..];
            for k in done..kc {
                panel[k * width + i] = line[k * m.col];
            }
        }
    }
}

/// Turns blocks of sixteen rows and sixteen columns where there is an instruction set for it; returns of how many rows
/// how many columns are done.
fn turn(
    isa: Isa,
    m: View,
    first: usize,
    rows: usize,
    width: usize,
    ks: &Range<usize>,
    panel: &mut [f32],
) -> (usize, usize) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && m.col == 1 {
        let (rows, cols) = (rows / 16 * 16, ks.len() / 16 * 16);
        for i in (0..rows).step_by(16) {
            for k in (0..cols).step_by(16) {
                let from = &m.data[(first + i) * m.row + ks.start + k..][..15 * m.row + 16];
                let to = &mut panel[k * width + i..][..15 * width + 16];
                for row in 0..16 {
                    super::micro::fetch(from.as_ptr().wrapping_add(row * m.row + AHEAD));
                }
                // SAFETY: both slices hold sixteen rows of sixteen elements, so far apart; the isa is available.
                unsafe { super::micro::turn16(from.as_ptr(), m.row, to.as_mut_ptr(), width) };
            }
        }
        return (rows, cols);
    }
    let _ = (isa, m, first, rows, width, ks, panel);
    (0, 0)
}

/// [`pack`] where the elements of a column lie side by side.
fn lines<const W: usize>(m: View, rows: Range<usize>, ks: Range<usize>, out: &mut [f32]) {
    let (count, kc) = (rows.len(), ks.len());
    for k0 in (0..kc).step_by(8) {
        for (p, panel) in out.chunks_exact_mut(W * kc).take(count.div_ceil(W)).enumerate() {
            let some = W.min(count - p * W);
            let at = ks.start * m.col + rows.start + p * W;
            let to = &mut panel[k0 * W..kc.min(k0 + 8) * W];
            for (k, to) in (k0..).zip(to.as_chunks_mut::<W>().0) {
                let from = &m.data[k * m.col + at..][..some];
                #[cfg(target_arch = "x86_64")]
                super::micro::fetch(from.as_ptr().wrapping_add(8 * m.col));
                match from.first_chunk::<W>() {
                    Some(from) => *to = *from,
                    None => {
                        to[..some].copy_from_slice(from);
                        to[some..].fill(0.0);
                    }
                }
            }
        }
    }
}
