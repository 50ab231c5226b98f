//! Products on matrix tiles (AMX): operands rounded to bf16, sums in f32.
//!
//! ```text
//!   for each band of inner indices, rows of A and columns of B, by all threads:
//!   pack       A → [panel of 32 rows][step of 32 inner indices][2 tiles][16 rows][32]
//!              B → [panel of 32 columns][step][2 tiles][16 pairs of inner indices][16 columns][2]
//!   multiply   pieces of C; for each 16 steps: a panel of B (32 KiB, first cache) × the piece's panels of A (second cache)
//! ```
//! A tile of C begins with what the sums begin with and stays in a register for sixteen steps.
//!
//! The order of a sum: what it begins with; then, step by step, even and odd inner indices apart, each ascending by fused
//! multiply-add from zero, even + odd, added. It is the unit's own (Intel's manual, volume 2, "TDPBF16PS") and hangs on
//! no plan and no number of threads; denormal operands and sums are zero.

use core::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::gemm::{Start, View, finish};
use super::micro::fetch;
use super::pack::aligned;
use super::{Dense, Shared};
use crate::simd::Simd;
use crate::x86_64::amx::bf16::{Aligned, nearest, rounded};
use crate::x86_64::amx::tile::{self, TILE, Tiles};
use crate::x86_64::avx512::Avx512;

/// Rows and columns of C that are multiplied at a time, and of a panel.
const PANEL: usize = 32;
/// Inner indices of a step.
const STEP: usize = 32;
/// Bytes of a panel's step, and how many f32 have as many.
const BYTES: usize = 2 * TILE;
const WORDS: usize = BYTES / 4;
/// Steps whose part of a panel stays in the nearest cache.
const STEPS: usize = 16;
/// Rows and columns of a piece, at most.
const PIECE: usize = 256;
/// Panels that are packed together where their lanes lie side by side, at most.
const BESIDE: usize = 8;
/// Rows and columns of C and inner indices whose operands are packed at a time: 32 and 16 MiB.
const BAND: [usize; 3] = [8192, 4096, 2048];
/// Elements along a row that are fetched before they are packed.
const AHEAD: usize = 64;

/// Which operand's order a panel has.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// A line is a lane's 32 inner indices.
    Left,
    /// A line is a pair of inner indices of 16 lanes.
    Right,
}

thread_local! {
    /// Both operands of [`product`].
    static PACKED: RefCell<[Vec<f32>; 2]> = RefCell::default();
    /// The left operand of [`serial`].
    static LEFT: RefCell<Vec<f32>> = RefCell::default();
}

/// Both operands in panels.
struct Operands<'a> {
    left: &'a [f32],
    right: &'a [f32],
    /// Steps of a panel of each.
    steps: [usize; 2],
}

/// Space for the panels of `lanes` rows (of A) or columns (of B) over `k` inner indices.
fn words(lanes: usize, k: usize) -> usize {
    lanes.div_ceil(PANEL) * k.div_ceil(STEP) * WORDS
}

/// `C = A·B`, plus what the sums begin with: as [`Dense::product`], whose checks are made.
pub(super) fn product(dense: &Dense, a: View, b: View, c: &mut [f32], stride: usize, start: Start) {
    let (m, n, b) = (a.rows, b.cols, b.t());
    let c = Shared::of(c);
    PACKED.with_borrow_mut(|[left, right]| {
        for ks in bands(a.cols, BAND[2]) {
            for is in bands(m, BAND[0]) {
                let left = pack_all(dense, a.part(is.clone(), ks.clone()), Side::Left, left);
                for js in bands(n, BAND[1]) {
                    let right = pack_all(dense, b.part(js.clone(), ks.clone()), Side::Right, right);
                    let o = Operands { left, right, steps: [ks.len().div_ceil(STEP); 2] };
                    let start = if ks.start == 0 { start } else { Start::Own };
                    // SAFETY: C holds the product, and nothing else touches it meanwhile; the panels are those of the band
                    unsafe { band(dense, &o, (is.clone(), js), &c, stride, start) };
                }
            }
        }
    });
}

/// `0..total` in parts of `size`.
fn bands(total: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..total).step_by(size).map(move |from| from..total.min(from + size))
}

/// All panels of `v`, by all threads.
fn pack_all<'a>(dense: &Dense, v: View, side: Side, space: &'a mut Vec<f32>) -> &'a [f32] {
    let panels = v.rows.div_ceil(PANEL);
    // where lanes lie side by side, several panels read whole lines, as long as every thread has some
    let beside = if v.col == 1 { 1 } else { BESIDE.min(panels / (2 * dense.threads())).max(1) };
    let to = aligned(space, words(v.rows, v.cols));
    let shared = Shared::of(to);
    dense.pieces(panels, beside, |_, panels| {
        let words = words(PANEL, v.cols);
        // SAFETY: each piece takes its own panels; who asks for tiles has found the unit
        unsafe { pack(v, side, panels.clone(), shared.part(panels.start * words..panels.end * words)) };
    });
    to
}

/// Rows `is` and columns `js` of C, over the inner indices that the panels hold.
///
/// # Safety
/// - C holds these rows, `stride` apart, and columns, and nothing else touches them meanwhile; the unit is there.
unsafe fn band(
    dense: &Dense,
    o: &Operands,
    (is, js): (Range<usize>, Range<usize>),
    c: &Shared<f32>,
    stride: usize,
    start: Start,
) {
    let (rows, cols) = plan(is.len(), js.len(), dense.threads());
    let across = js.len().div_ceil(cols);
    dense.pool.run(is.len().div_ceil(rows) * across, |t| {
        let (i, j) = (t / across * rows, t % across * cols);
        let part = (i..is.len().min(i + rows), j..js.len().min(j + cols));
        if let Start::Bias(_) | Start::Residual(..) = start {
            for i in part.0.clone() {
                let at = (is.start + i) * stride + js.start + j;
                // SAFETY: the rows and columns of C of a piece belong to no other
                let out = unsafe { c.slice(at, part.1.len()) };
                finish(start, at, js.start + j, &[0.0; PIECE], out);
            }
        }
        let zero = matches!(start, Start::Zero);
        let corner = c.pointer().wrapping_add(is.start * stride + js.start);
        // SAFETY: as above; C and the panels hold the piece, as the caller promises
        unsafe { multiply(o, o.steps[0], part, corner, stride, zero) };
    });
}

/// Rows and columns of a piece of work: as large as leaves every thread several, since others may take its core.
fn plan(m: usize, n: usize, threads: usize) -> (usize, usize) {
    let (mut rows, mut cols) = (PIECE, PIECE);
    while m.div_ceil(rows) * n.div_ceil(cols) < 4 * threads && rows.min(m).max(cols.min(n)) > PANEL {
        let larger = if rows.min(m) >= cols.min(n) { &mut rows } else { &mut cols };
        *larger /= 2;
    }
    (rows, cols)
}

/// Panels of a right operand for [`serial`].
pub(super) fn panels(b: View, out: &mut Vec<f32>) {
    let b = b.t();
    let all = 0..b.rows.div_ceil(PANEL);
    // SAFETY: who asks for tiles has found the unit
    unsafe { pack(b, Side::Right, all, aligned(out, words(b.rows, b.cols))) };
}

/// As [`super::gemm::serial`], whose checks are made, with what [`panels`] left in `packed`.
pub(super) fn serial(
    a: View,
    packed: &[f32],
    deep: usize,
    cols: usize,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    // where `aligned` had it begin
    let right = &packed[packed.as_ptr().align_offset(64)..];
    assert!(a.cols <= deep && right.len() >= words(cols, deep), "panels of another matrix");
    LEFT.with_borrow_mut(|left| {
        let left = aligned(left, words(a.rows, a.cols));
        let steps = a.cols.div_ceil(STEP);
        // SAFETY: the unit is there; the caller's C holds the product and is its own; the panels hold the operands
        unsafe {
            pack(a, Side::Left, 0..a.rows.div_ceil(PANEL), left);
            let operands = Operands { left, right, steps: [steps, deep.div_ceil(STEP)] };
            multiply(&operands, steps, (0..a.rows, 0..cols), c, stride, !add);
        }
    });
}

/// Packs panels of `v`, `[lanes, inner indices]`: lanes and inner indices beyond the end are zeros.
///
/// # Safety
/// - The machine has AVX-512.
///
/// # Panics
/// If `to` is too small or neither direction of `v` is contiguous.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn pack(v: View, side: Side, panels: Range<usize>, to: &mut [f32]) {
    assert!(v.col == 1 || v.row == 1, "an operand without contiguous values");
    assert!(to.len() >= panels.len() * words(PANEL, v.cols), "space for panels {panels:?}");
    let steps = v.cols.div_ceil(STEP);
    for step in 0..steps {
        for panel in panels.clone() {
            let to = to[((panel - panels.start) * steps + step) * WORDS..][..WORDS].as_mut_ptr();
            for half in 0..2 {
                let first = panel * PANEL + half * 16;
                let lanes = v.rows.saturating_sub(first).min(16);
                // SAFETY: lanes and inner indices below the view's end; room for a tile (above)
                unsafe { pack_tile(v, side, (first, lanes), step * STEP, to.add(half * TILE / 4).cast()) };
            }
        }
    }
}

/// One tile: `lanes` lanes from the first on, up to 32 inner indices from `k` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn pack_tile(v: View, side: Side, (first, lanes): (usize, usize), k: usize, to: *mut u8) {
    let mut lines = Aligned([0u8; TILE]);
    let along = v.col == 1;
    // what lies along a lane comes by lanes, else by pairs of inner indices
    let turned = along == (side == Side::Right);
    let lines_to = if turned { lines.0.as_mut_ptr() } else { to };
    let count = (v.cols - k).min(STEP);
    let mask = |n: usize| (1u32 << n.min(16)).wrapping_sub(1) as u16;
    // SAFETY: the masks keep every access inside the view, whose extents its maker proved; 1024 bytes at `lines_to`
    // and `to`
    unsafe {
        if along {
            let (low, high) = (mask(count), mask(count.saturating_sub(16)));
            for lane in 0..16 {
                let line = lines_to.add(lane * 64).cast::<__m256i>();
                let (low, high) = if lane < lanes { (low, high) } else { (0, 0) };
                let from = v.data.as_ptr().wrapping_add((first + lane) * v.row + k);
                fetch(from.wrapping_add(AHEAD));
                let (a, b) =
                    (_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from.wrapping_add(16)));
                _mm256_storeu_si256(line, rounded(a));
                _mm256_storeu_si256(line.add(1), rounded(b));
            }
        } else {
            let load = |i: usize| {
                let lanes = if i < count { mask(lanes) } else { 0 };
                nearest(_mm512_maskz_loadu_ps(lanes, v.data.as_ptr().wrapping_add((k + i) * v.col + first)))
            };
            for pair in 0..16 {
                let (even, odd) = (load(2 * pair), load(2 * pair + 1));
                let both = _mm512_or_si512(_mm512_srli_epi32::<16>(even), odd);
                _mm512_storeu_si512(lines_to.add(pair * 64).cast(), both);
            }
        }
        if turned {
            Avx512::transpose(lines.0.as_ptr(), to);
        }
    }
}

/// Part of C, over the first `steps` steps: rows and columns begin at whole panels. `zero`: sums begin at zero, else with
/// what C holds.
///
/// # Safety
/// - The unit is there.
/// - C's element (i, j) is at `c[i·stride + j]`, exists for the part, and no one else touches the part meanwhile.
///
/// # Panics
/// If the operands have no such panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply(
    o: &Operands,
    steps: usize,
    (rows, cols): (Range<usize>, Range<usize>),
    c: *mut f32,
    stride: usize,
    zero: bool,
) {
    let mut scratch = Aligned([0.0f32; PANEL * PANEL]);
    // SAFETY: the unit is there
    let _tiles = unsafe { Tiles::configure() };
    for first in (0..steps).step_by(STEPS) {
        let count = STEPS.min(steps - first);
        let zero = zero && first == 0;
        let part = |of: usize, panels: &[f32], lane: usize| -> *const u8 {
            let at = (lane / PANEL * o.steps[of] + first) * WORDS;
            panels[at..][..count * WORDS].as_ptr().cast()
        };
        for j in cols.clone().step_by(PANEL) {
            let b = part(1, o.right, j);
            for i in rows.clone().step_by(PANEL) {
                let a = part(0, o.left, i);
                let place = c.wrapping_add(i * stride + j);
                let (h, w) = (PANEL.min(rows.end - i), PANEL.min(cols.end - j));
                // SAFETY: `h` rows of `w` elements at `place` are the caller's to give; a scratch block holds the rest of
                // a block that is not whole; `count` steps of both panels exist
                unsafe {
                    if h == PANEL && w == PANEL {
                        block(count, a, b, place, stride, zero);
                        continue;
                    }
                    let spare = scratch.0.as_mut_ptr();
                    for y in (0..h).filter(|_| !zero) {
                        place.wrapping_add(y * stride).copy_to_nonoverlapping(spare.add(y * PANEL), w);
                    }
                    block(count, a, b, spare, PANEL, zero);
                    for y in 0..h {
                        spare.add(y * PANEL).copy_to_nonoverlapping(place.wrapping_add(y * stride), w);
                    }
                }
            }
        }
    }
}

/// 32 × 32 elements of C.
///
/// # Safety
/// - The tiles are configured; `steps` steps of a panel lie at `a` and `b`, 32 rows of 32 elements at `c`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn block(steps: usize, a: *const u8, b: *const u8, c: *mut f32, stride: usize, zero: bool) {
    let (down, bytes) = (c.wrapping_add(16 * stride), stride * 4);
    // SAFETY: as the caller promises
    unsafe {
        if zero {
            tile::zero!("tmm0");
            tile::zero!("tmm1");
            tile::zero!("tmm2");
            tile::zero!("tmm3");
        } else {
            tile::load!("tmm0", c, bytes);
            tile::load!("tmm1", down, bytes);
            tile::load!("tmm2", c.wrapping_add(16), bytes);
            tile::load!("tmm3", down.wrapping_add(16), bytes);
        }
        for step in 0..steps {
            let (a, b) = (a.add(step * BYTES), b.add(step * BYTES));
            // a panel of A is used once before all others, one of B by each of them
            tile::load_once!("tmm4", a, 64);
            tile::load!("tmm6", b, 64);
            tile::bf16!("tmm0", "tmm4", "tmm6");
            tile::load_once!("tmm5", a.add(TILE), 64);
            tile::bf16!("tmm1", "tmm5", "tmm6");
            tile::load!("tmm7", b.add(TILE), 64);
            tile::bf16!("tmm2", "tmm4", "tmm7");
            tile::bf16!("tmm3", "tmm5", "tmm7");
        }
        tile::store!("tmm0", c, bytes);
        tile::store!("tmm1", down, bytes);
        tile::store!("tmm2", c.wrapping_add(16), bytes);
        tile::store!("tmm3", down.wrapping_add(16), bytes);
    }
}
