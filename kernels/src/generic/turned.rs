//! Integer products for many vectors where weights, not activations, are turned into the order that the instructions
//! want: `smmla` multiplies two rows by two vectors.
//!
//! ```text
//! panel, for each tile of 16 rows:  [4 inputs at a time, 64 of them][16 rows][4 bytes]
//! ```
//! (or in the order that an instruction set's own [`Simd::turned_tiles`] wants). One load of a panel line holds 4
//! inputs of 16 rows; 4 activations broadcast against it add to sixteen i32 sums, one per row, so nothing is summed
//! across lanes. Turning pays from about eight vectors on. Instruction sets with [`Simd::PACKS`] go by `panel.rs`.

use super::codes::{self, record_bytes, terms};
use super::rows::{DEPTH, IntBlock, exponent, finish};
use crate::simd::{Aligned, Simd};
use core::mem::MaybeUninit;

/// Vectors from which on a panel is made.
pub const FROM: usize = 7;
/// Vectors at a time: their sums lie on the stack. Even, so that a token's two terms stay together.
pub const SLAB: usize = 256;

/// One record's panel against a slab of vectors.
pub struct Tiles {
    pub panel: *const u8,
    /// Groups of four inputs: 64, or 32 of a short record.
    pub groups: usize,
    /// First vector's 256 activations; the next one's follow.
    pub x: *const i8,
    pub scale: *const f32,
    pub sum: *const i32,
    pub vectors: usize,
    /// 32 row scales.
    pub rows: *const f32,
    /// `[vectors][32]`.
    pub acc: *mut f32,
}

#[inline(always)]
pub unsafe fn product<S: Simd, const BITS: u8>(a: &IntBlock) {
    // SAFETY: `a` describes whole blocks; panel and sums are written before they are read
    unsafe {
        let mut panel = Aligned(MaybeUninit::<[u8; 32 * DEPTH]>::uninit());
        let mut acc = Aligned(MaybeUninit::<[f32; SLAB * 32]>::uninit());
        let (panel, acc) = (panel.0.as_mut_ptr().cast::<u8>(), acc.0.as_mut_ptr().cast::<f32>());
        let e = S::splat(exponent(a.head));
        for block in 0..a.count {
            let mut from = a.from;
            while from < a.to {
                let vectors = (a.to - from).min(SLAB);
                core::ptr::write_bytes(acc, 0, vectors * 32);
                let mut record = a.blocks.add(block * a.block_bytes);
                for r in 0..a.cols.div_ceil(DEPTH) {
                    let halves = if a.cols - r * DEPTH > 128 { 2 } else { 1 };
                    decode::<S, BITS>(a.head, record, halves, panel);
                    let mut rows = Aligned([0f32; 32]);
                    for tile in 0..2 {
                        let scales = S::load_f16(record.cast::<u16>().add(tile * 16));
                        S::store(rows.0.as_mut_ptr().add(tile * 16), S::mul(scales, e));
                    }
                    let first = r * a.vectors + from;
                    S::turned_tiles(&Tiles {
                        panel,
                        groups: halves * 32,
                        x: a.x.add(first * DEPTH),
                        scale: a.scale.add(first),
                        sum: a.sum.add(first),
                        vectors,
                        rows: rows.0.as_ptr(),
                        acc,
                    });
                    record = record.add(record_bytes(BITS, halves));
                }
                for t in (0..vectors).step_by(terms(BITS)) {
                    finish::<BITS>(a, block, from + t, acc.add(t * 32));
                }
                from += vectors;
            }
        }
    }
}

#[inline(always)]
unsafe fn decode<S: Simd, const BITS: u8>(head: *const u8, record: *const u8, halves: usize, panel: *mut u8) {
    // SAFETY: a record holds what its layout says; a panel holds 8192 bytes, a half of a tile 2048 of them
    unsafe {
        let table = codes::table::<S, BITS>(head);
        let mut sets = Aligned(MaybeUninit::<[u8; 2048]>::uninit());
        let sets = sets.0.as_mut_ptr().cast::<u8>();
        for tile in 0..2 {
            for h in 0..halves {
                codes::tile::<S, BITS, true>(table, record, halves, tile, h, [sets, sets.add(1024)], 64);
                let to = panel.add(tile * 4096 + h * 2048);
                S::panel_part(sets, to);
                S::panel_part(sets.add(1024), to.add(1024));
            }
        }
    }
}

/// All vectors in tiles of T, `N` tiles of 16 rows at a time.
#[inline(always)]
pub unsafe fn tiles<S: Simd, const N: usize, const T: usize>(a: &Tiles) {
    // SAFETY: passed on
    unsafe {
        let mut t = 0;
        while t + T <= a.vectors {
            tile::<S, N, T>(a, t);
            t += T;
        }
        while t + 4 <= a.vectors {
            tile::<S, N, 4>(a, t);
            t += 4;
        }
        while t < a.vectors {
            tile::<S, N, 1>(a, t);
            t += 1;
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const N: usize, const T: usize>(a: &Tiles, vector: usize) {
    // SAFETY: vectors vector..vector + T exist
    unsafe {
        for first in (0..2).step_by(N) {
            let mut sums = [[S::i_splat(0); T]; N];
            for t in 0..T {
                let start = S::i_splat((-S::BIAS).wrapping_mul(*a.sum.add(vector + t)));
                for n in 0..N {
                    sums[n][t] = start;
                }
            }
            let panel = a.panel.add(first * 4096);
            let x = a.x.add(vector * DEPTH).cast::<i32>();
            for g in 0..a.groups {
                let mut w = [S::b_load(panel.add(g * 64)); N];
                for n in 1..N {
                    w[n] = S::b_load(panel.add(n * 4096 + g * 64));
                }
                for t in 0..T {
                    let x = x.add(t * (DEPTH / 4) + g).read_unaligned();
                    for n in 0..N {
                        sums[n][t] = S::dot4(sums[n][t], w[n], x);
                    }
                }
            }
            for t in 0..T {
                let s = S::splat(*a.scale.add(vector + t));
                for n in 0..N {
                    let at = (first + n) * 16;
                    let to = a.acc.add((vector + t) * 32 + at);
                    let s = S::mul(S::load(a.rows.add(at)), s);
                    S::store(to, S::fma(S::from_int(sums[n][t]), s, S::load(to)));
                }
            }
        }
    }
}
