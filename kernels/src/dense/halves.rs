//! Products of operands rounded to bf16, sums in f32: on matrix tiles (tiles.rs) or by pairs (pairs.rs).
//!
//! ```text
//!   for each band of inner indices, rows of A and columns of B, by all threads:
//!   pack       A → [panel of 32 rows][step of 32 inner indices][2 tiles][16 rows][32]
//!              B → [panel of 32 columns][step][2 tiles][16 pairs of inner indices][16 columns][2]
//!   multiply   pieces of C; for each 16 steps: a panel of B (32 KiB, first cache) × the piece's of A (second cache)
//! ```
//! A part of C begins with what the sums begin with and stays in registers for sixteen steps.
//!
//! The order of a sum begins with what it begins with and ascends with the inner index; inside a step it is the unit's
//! own. It hangs on no plan and no number of threads; denormal operands and sums are zero.

use core::arch::x86_64::*;
use core::mem::transmute;
use std::cell::RefCell;
use std::ops::Range;

use super::gemm::{Panels, Start, View, finish};
use super::micro::fetch;
use super::pack::aligned;
use super::{Dense, Shared, Unit, pairs, tiles};
use crate::simd::{Aligned, Simd};
use crate::x86_64::amx::tile::{TILE, Tiles};
use crate::x86_64::avx512::Avx512;
use crate::x86_64::avx512::bf16::{nearest, rounded};

/// Rows and columns of C that are multiplied at a time, and of a panel.
pub(super) const PANEL: usize = 32;
/// Inner indices of a step.
const STEP: usize = 32;
/// Bytes of a panel's step, and how many f32 have as many.
pub(super) const BYTES: usize = 2 * TILE;
const WORDS: usize = BYTES / 4;
/// Steps whose part of a panel stays in the nearest cache.
const STEPS: usize = 16;
/// Rows and columns of a piece, at most.
const PIECE: usize = 256;
/// Panels that are packed together where their lanes lie side by side, at most.
const BESIDE: usize = 8;
/// Rows and columns of C and inner indices whose operands are packed at a time: 32 and 16 MiB.
const BAND: [usize; 3] = [8192, 4096, 2048];
/// Inner indices between those that are packed and those that are fetched.
const AHEAD: usize = 4;

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

/// Both operands in panels, and what multiplies them.
struct Operands<'a> {
    unit: Unit,
    left: &'a [f32],
    right: &'a [f32],
    /// Steps of a panel of each.
    steps: [usize; 2],
}

/// Space for the panels of `lanes` rows (of A) or columns (of B) over `k` inner indices.
fn words(lanes: usize, k: usize) -> usize {
    lanes.div_ceil(PANEL) * k.div_ceil(STEP) * WORDS
}

/// `C = A·B`, plus what the sums begin with, rows of C `stride` apart: as [`Dense::product`], whose checks are made.
pub(super) fn product(
    dense: &Dense,
    unit: Unit,
    a: View,
    b: View,
    (c, stride): (&mut [f32], usize),
    start: Start,
) {
    let (m, n, b) = (a.rows, b.cols, b.t());
    let c = Shared::of(c);
    PACKED.with_borrow_mut(|[left, right]| {
        for ks in bands(a.cols, BAND[2]) {
            for is in bands(m, BAND[0]) {
                let left = pack_all(dense, a.part(is.clone(), ks.clone()), Side::Left, left);
                for js in bands(n, BAND[1]) {
                    let right = pack_all(dense, b.part(js.clone(), ks.clone()), Side::Right, right);
                    let o = Operands { unit, left, right, steps: [ks.len().div_ceil(STEP); 2] };
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
        // SAFETY: each piece takes its own panels; every unit comes with AVX-512
        unsafe { pack(v, side, panels.clone(), shared.part(panels.start * words..panels.end * words)) };
    });
    to
}

/// Rows `is` and columns `js` of C, over the inner indices that the panels hold.
///
/// # Safety
/// - C holds these rows, `stride` apart, and columns, and nothing else touches them meanwhile; the machine has the unit.
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
    // SAFETY: every unit comes with AVX-512
    unsafe { pack(b, Side::Right, all, aligned(out, words(b.rows, b.cols))) };
}

/// As [`super::gemm::serial`], whose checks are made, with what [`panels`] left.
pub(super) fn serial(unit: Unit, a: View, b: &Panels, cols: usize, c: *mut f32, stride: usize, add: bool) {
    // where `aligned` had it begin
    let right = &b.space[b.space.as_ptr().align_offset(64)..];
    assert!(a.cols <= b.rows && right.len() >= words(cols, b.rows), "panels of another matrix");
    LEFT.with_borrow_mut(|left| {
        let left = aligned(left, words(a.rows, a.cols));
        let steps = a.cols.div_ceil(STEP);
        // SAFETY: the unit is there; the caller's C holds the product and is its own; the panels hold the operands
        unsafe {
            pack(a, Side::Left, 0..a.rows.div_ceil(PANEL), left);
            let operands = Operands { unit, left, right, steps: [steps, b.rows.div_ceil(STEP)] };
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
unsafe fn pack(v: View, side: Side, panels: Range<usize>, to: &mut [f32]) {
    // SAFETY: as the caller promises, and asked
    unsafe {
        if pairs::available() { pack_native(v, side, panels, to) } else { pack_plain(v, side, panels, to) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn pack_plain(v: View, side: Side, panels: Range<usize>, to: &mut [f32]) {
    // SAFETY: passed on
    unsafe { pack_with::<Plain>(v, side, panels, to) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn pack_native(v: View, side: Side, panels: Range<usize>, to: &mut [f32]) {
    // SAFETY: passed on
    unsafe { pack_with::<Native>(v, side, panels, to) }
}

#[inline(always)]
unsafe fn pack_with<R: Rounding>(v: View, side: Side, panels: Range<usize>, to: &mut [f32]) {
    assert!(v.col == 1 || v.row == 1, "an operand without contiguous values");
    assert!(to.len() >= panels.len() * words(PANEL, v.cols), "space for panels {panels:?}");
    let steps = v.cols.div_ceil(STEP);
    let to = to.as_mut_ptr().cast::<u8>();
    let tiles = |panel: usize, step: usize| to.wrapping_add(((panel - panels.start) * steps + step) * BYTES);
    let along = v.col == 1;
    // what lies along a lane comes by lanes, else by pairs of inner indices
    let turned = along == (side == Side::Right);
    // as many panels and steps at a time as stay in the nearest cache until they are turned
    let (beside, run) = if along { (1, STEPS) } else { (BESIDE, 1) };
    for from in panels.clone().step_by(beside) {
        let panels = from..panels.end.min(from + beside);
        for first in (0..steps).step_by(run) {
            let run = first..steps.min(first + run);
            // SAFETY: the masks keep every access inside the view, whose extents its maker proved; `to` has room for
            // all tiles (above)
            unsafe {
                if along {
                    for lane in 0..PANEL {
                        let line = tiles(from, first).add(lane * 64);
                        lines_along::<R>(v, from * PANEL + lane, run.clone(), line);
                    }
                } else {
                    for (pair, panel) in (0..STEP / 2).flat_map(|i| panels.clone().map(move |p| (i, p))) {
                        let (line, k) = (tiles(panel, first).add(pair * 64), first * STEP + 2 * pair);
                        line_across::<R>(v, panel * PANEL, k, line);
                        line_across::<R>(v, panel * PANEL + 16, k, line.add(TILE));
                    }
                }
                for (panel, step) in panels.clone().flat_map(|p| run.clone().map(move |step| (p, step))) {
                    let tile = tiles(panel, step);
                    if turned {
                        Avx512::transpose(tile, tile);
                        Avx512::transpose(tile.add(TILE), tile.add(TILE));
                    }
                }
            }
        }
    }
}

/// The first `n` of sixteen.
fn mask(n: usize) -> u16 {
    (1u32 << n.min(16)).wrapping_sub(1) as u16
}

/// Some steps of a lane whose values lie side by side, a line each, [`BYTES`] apart.
#[inline(always)]
unsafe fn lines_along<R: Rounding>(v: View, lane: usize, steps: Range<usize>, to: *mut u8) {
    let from = v.data.as_ptr().wrapping_add(lane * v.row);
    for (i, step) in steps.enumerate() {
        let k = step * STEP;
        let count = if lane < v.rows { v.cols - k } else { 0 };
        let from = from.wrapping_add(k);
        // SAFETY: as in `pack_with`
        unsafe {
            fetch(from.wrapping_add(v.row));
            fetch(from.wrapping_add(v.row + 16));
            let low = _mm512_maskz_loadu_ps(mask(count), from);
            let high = _mm512_maskz_loadu_ps(mask(count.saturating_sub(16)), from.wrapping_add(16));
            _mm512_storeu_si512(to.add(i * BYTES).cast(), R::line(low, high));
        }
    }
}

/// Inner indices `k` and `k` + 1 of sixteen lanes from the first on, which lie side by side.
#[inline(always)]
unsafe fn line_across<R: Rounding>(v: View, first: usize, k: usize, to: *mut u8) {
    let lanes = mask(v.rows.saturating_sub(first));
    let from = v.data.as_ptr().wrapping_add(k * v.col + first);
    let mask = |k| if k < v.cols { lanes } else { 0 };
    // SAFETY: as in `pack_with`
    unsafe {
        fetch(from.wrapping_add(AHEAD * v.col));
        fetch(from.wrapping_add((AHEAD + 1) * v.col));
        let even = _mm512_maskz_loadu_ps(mask(k), from);
        let odd = _mm512_maskz_loadu_ps(mask(k + 1), from.wrapping_add(v.col));
        _mm512_storeu_si512(to.cast(), R::both(even, odd));
    }
}

/// Rounds to bf16, ties to even; any NaN to a quiet one.
trait Rounding {
    /// Thirty-two values in their order.
    unsafe fn line(low: __m512, high: __m512) -> __m512i;
    /// Sixteen pairs.
    unsafe fn both(even: __m512, odd: __m512) -> __m512i;
}

/// By integers.
struct Plain;

impl Rounding for Plain {
    #[inline(always)]
    unsafe fn line(low: __m512, high: __m512) -> __m512i {
        // SAFETY: AVX-512, as the caller has
        unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(rounded(low)), rounded(high)) }
    }

    #[inline(always)]
    unsafe fn both(even: __m512, odd: __m512) -> __m512i {
        // SAFETY: as above
        unsafe { _mm512_or_si512(_mm512_srli_epi32::<16>(nearest(even)), nearest(odd)) }
    }
}

/// By AVX-512 BF16; denormals, which no unit multiplies, to zero.
struct Native;

impl Rounding for Native {
    #[inline(always)]
    unsafe fn line(low: __m512, high: __m512) -> __m512i {
        // SAFETY: AVX-512 BF16, as the caller has
        unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }

    #[inline(always)]
    unsafe fn both(even: __m512, odd: __m512) -> __m512i {
        // SAFETY: as above
        unsafe {
            // word 2i is i, word 2i + 1 is 16 + i
            let order =
                _mm512_cvtepu8_epi32(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
            let order = _mm512_add_epi32(
                _mm512_or_si512(order, _mm512_slli_epi32::<16>(order)),
                _mm512_set1_epi32(16 << 16),
            );
            _mm512_permutexvar_epi16(order, Self::line(even, odd))
        }
    }
}

/// Part of C, over the first `steps` steps: rows and columns begin at whole panels. `zero`: sums begin at zero, else with
/// what C holds.
///
/// # Safety
/// - The machine has the unit.
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
    let block = match o.unit {
        Unit::Pairs => pairs::block,
        _ => tiles::block,
    };
    // SAFETY: the unit is there
    let _configured = (o.unit == Unit::Tiles).then(|| unsafe { Tiles::configure() });
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

#[cfg(test)]
mod tests {
    use super::super::tests::values;
    use super::*;
    use crate::detect::Isa;
    use half::bf16;

    type Pack = unsafe fn(View, Side, Range<usize>, &mut [f32]);

    /// The bits of inner index `k` of `lane` in panels of `steps` steps.
    fn bits(packed: &[f32], side: Side, steps: usize, lane: usize, k: usize) -> u16 {
        let (line, word) = match side {
            Side::Left => (lane % PANEL, k % STEP),
            Side::Right => (lane % PANEL / 16 * 16 + k % STEP / 2, lane % 16 * 2 + k % 2),
        };
        let at = ((lane / PANEL * steps + k / STEP) * PANEL + line) * STEP + word;
        (packed[at / 2].to_bits() >> (at % 2 * 16)) as u16
    }

    #[test]
    fn panels_hold_the_nearest_bf16_and_zeros_beyond_the_end() {
        if !Isa::Avx512.is_available() {
            println!("no AVX-512 here, so nothing packs for it");
            return;
        }
        let mut ways: Vec<Pack> = vec![pack_plain];
        if pairs::available() {
            ways.push(pack_native);
        }
        for (lanes, k) in [(1, 1), (16, 32), (33, 31), (70, 100), (40, 600)] {
            let stride = 700;
            let x = values(stride * stride, 5);
            let along = View::new(&x, lanes, k, stride);
            for v in [along, View::new(&x, k, lanes, stride).t()] {
                for side in [Side::Left, Side::Right] {
                    let (panels, steps) = (lanes.div_ceil(PANEL), k.div_ceil(STEP));
                    for way in &ways {
                        let mut packed = vec![9.0; words(lanes, k)];
                        // SAFETY: the instruction sets are there
                        unsafe { way(v, side, 0..panels, &mut packed) };
                        for (lane, i) in
                            (0..panels * PANEL).flat_map(|l| (0..steps * STEP).map(move |i| (l, i)))
                        {
                            let inside = lane < lanes && i < k;
                            let value = if inside { v.data[lane * v.row + i * v.col] } else { 0.0 };
                            let got = bits(&packed, side, steps, lane, i);
                            assert_eq!(bf16::from_f32(value).to_bits(), got, "{lane}, {i} of {lanes} × {k}");
                        }
                    }
                }
            }
        }
    }
}
