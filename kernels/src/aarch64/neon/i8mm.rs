//! NEON with `smmla`: 2 rows x 8 inputs times 8 inputs x 2 tokens into four sums (FEAT_I8MM, Armv8.6 and later).
//!
//! ```text
//! panel of a tile:  [8 inputs at a time, 32 of them][8 pairs of rows][2 rows][8 bytes]
//! one register:     row 2p, its 8 bytes | row 2p + 1, its 8 bytes
//! against it:       token t, its 8 bytes | token t + 1, its 8 bytes
//! gives:            [2p·t, 2p·(t+1), (2p+1)·t, (2p+1)·(t+1)]
//! ```
//! A line of the panel, 64 bytes, is four such registers, so that the panel keeps its size.

use super::dotprod::sdot;
use super::{Bytes, Neon, lanes};
use crate::generic::{rows, turned};
use crate::simd::Simd;
use core::arch::aarch64::*;

/// Multiplies rows with `sdot` and panels with `smmla`.
#[derive(Clone, Copy)]
pub struct I8mm;

/// Whether the machine has it.
pub fn available() -> bool {
    super::dotprod::available() && std::arch::is_aarch64_feature_detected!("i8mm")
}

/// acc[2i + j] += Σ_c w[8i + c] · x[8j + c].
#[inline(always)]
unsafe fn smmla(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: registers only; callers have the instruction
    unsafe {
        core::arch::asm!(
            "smmla {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Bytes of eight inputs of a tile's sixteen rows.
const LINE: usize = 128;

/// One record's panel against 2 · `PAIRS` vectors from `vector` on. With `ODD` there is one vector, and its double is
/// not stored.
#[inline(always)]
unsafe fn tile<const PAIRS: usize, const ODD: bool>(a: &turned::Tiles, vector: usize) {
    // SAFETY: the vectors exist; the panel is what `panel_part` made
    unsafe {
        let other = if ODD { 0 } else { 1 };
        for tile in 0..2 {
            let mut sums = [[vdupq_n_s32(0); 8]; PAIRS];
            let panel = a.panel.add(tile * 4096).cast::<i8>();
            let x = a.x.add(vector * rows::DEPTH);
            // sixteen inputs: one load of each token
            for step in 0..a.groups / 4 {
                let mut xs = [[vdupq_n_s8(0); 2]; PAIRS];
                for pair in 0..PAIRS {
                    let token = |t: usize| {
                        vreinterpretq_s64_s8(vld1q_s8(x.add((2 * pair + t) * rows::DEPTH + step * 16)))
                    };
                    let (first, second) = (token(0), token(other));
                    xs[pair] = [
                        vreinterpretq_s8_s64(vzip1q_s64(first, second)),
                        vreinterpretq_s8_s64(vzip2q_s64(first, second)),
                    ];
                }
                for eight in 0..2 {
                    let line = panel.add((step * 2 + eight) * LINE);
                    for p in 0..8 {
                        let w = vld1q_s8(line.add(p * 16));
                        for pair in 0..PAIRS {
                            sums[pair][p] = smmla(sums[pair][p], w, xs[pair][eight]);
                        }
                    }
                }
            }
            for pair in 0..PAIRS {
                let s = &sums[pair];
                let first = |p: usize| vuzp1q_s32(s[p], s[p + 1]);
                let second = |p: usize| vuzp2q_s32(s[p], s[p + 1]);
                let token = vector + 2 * pair;
                fold(a, tile, token, int32x4x4_t(first(0), first(2), first(4), first(6)));
                if !ODD {
                    fold(a, tile, token + 1, int32x4x4_t(second(0), second(2), second(4), second(6)));
                }
            }
        }
    }
}

/// A record's step of the f32 sum of sixteen rows.
#[inline(always)]
unsafe fn fold(a: &turned::Tiles, tile: usize, vector: usize, sums: int32x4x4_t) {
    type S = Neon<I8mm>;
    // SAFETY: tile and vector exist
    unsafe {
        let s = S::mul(S::load(a.rows.add(tile * 16)), S::splat(*a.scale.add(vector)));
        let to = a.acc.add(vector * 32 + tile * 16);
        S::store(to, S::fma(S::from_int(sums), s, S::load(to)));
    }
}

// SAFETY: `sdot` and `smmla` add exact products.
unsafe impl Bytes for I8mm {
    lanes! {
        fn row(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t { sdot(acc, w, x) }
        fn quads(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t { sdot(acc, w, x) }
        fn panel_part(from: *const u8, to: *mut u8) {
            for pair in 0..8 {
                let row = from.add(pair * 128).cast::<u64>();
                for group in 0..4 {
                    let (a, b) = (vld1q_u64(row.add(group * 2)), vld1q_u64(row.add(8 + group * 2)));
                    let at = to.add(group * 2 * LINE + pair * 16).cast::<u64>();
                    vst1q_u64(at, vzip1q_u64(a, b));
                    vst1q_u64(at.add(LINE / 8), vzip2q_u64(a, b));
                }
            }
        }
        fn turned_tiles(a: &turned::Tiles) {
            let mut t = 0;
            while t + 4 <= a.vectors {
                tile::<2, false>(a, t);
                t += 4;
            }
            if t + 2 <= a.vectors {
                tile::<1, false>(a, t);
                t += 2;
            }
            if t < a.vectors {
                tile::<1, true>(a, t);
            }
        }
    }
}

crate::ops::table!(Neon<I8mm>, "neon,dotprod,i8mm");
