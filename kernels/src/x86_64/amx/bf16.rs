//! Products with 16-bit float weights on tiles, for the `fast` level: activations are rounded to bf16, and so are f16
//! weights; sums are the unit's own, which no other instruction set repeats.
//!
//! ```text
//! a sum over k mod 32:  even and odd k apart, fma ascending from 0  →  even + odd  →  added to the sum so far
//! ```
//! A vector's result depends on its own values only, so it is the same in any batch. 512 inputs of 32 rows are used
//! by all vectors before the next 512 have their turn; sums wait in memory meanwhile.

use super::tile::{self, TILE, Tiles};
use super::turned::Turned;
use crate::generic::float::{FloatBlock, FloatKind};
use crate::simd::{Aligned, Simd};
use crate::x86_64::avx512::Avx512 as S;
use crate::x86_64::avx512::bf16::rounded;
use core::arch::x86_64::*;
use core::mem::MaybeUninit;

/// Inputs of a step: a line of each row.
pub const STEP: usize = 32;
/// Steps of weights that stay in the nearest cache: 32 KiB.
const STEPS: usize = 16;
/// Tiles of sums that are kept at a time, 64 KiB.
const SUMS: usize = 64;

/// Blocks against tokens `a.from..a.to`, packed in `a.tiles`.
#[inline(always)]
pub unsafe fn product(a: &FloatBlock) {
    for b in 0..a.count {
        // SAFETY: passed on
        unsafe { block(&a.only(b)) };
    }
}

/// One block of 32 rows.
#[inline(always)]
unsafe fn block(a: &FloatBlock) {
    // SAFETY: `a` describes a whole block and packed activations; every buffer is written before it is read
    unsafe {
        let mut weights = Aligned(MaybeUninit::<[u8; STEPS * 2 * TILE]>::uninit());
        let mut sums = Aligned(MaybeUninit::<[f32; SUMS * 256]>::uninit());
        let weights = weights.0.as_mut_ptr().cast::<u8>();
        let sums = sums.0.as_mut_ptr().cast::<f32>();
        let _tiles = Tiles::configure();
        let steps = a.cols / STEP;
        let across = a.tokens.div_ceil(16);
        let (mut first, end) = (a.from / 16, a.to.div_ceil(16));
        while first < end {
            let n = (end - first).min(SUMS / 2);
            for start in (0..steps).step_by(STEPS) {
                let count = (steps - start).min(STEPS);
                let block = a.block.add(start * 2 * TILE);
                let mut from = block;
                if a.kind == FloatKind::F16 {
                    for i in 0..count * 32 {
                        let line = block.add(i * 64).cast::<u16>();
                        // the next piece, while this one is used
                        S::prefetch(line.cast::<u8>().wrapping_add(STEPS * 2 * TILE));
                        let (low, high) = (rounded(S::load_f16(line)), rounded(S::load_f16(line.add(16))));
                        _mm256_storeu_si256(weights.add(i * 64).cast(), low);
                        _mm256_storeu_si256(weights.add(i * 64 + 32).cast(), high);
                    }
                    from = weights;
                }
                for vt in (0..n).step_by(2) {
                    let piece = Piece {
                        a: from,
                        b: a.tiles.add((start * across + first + vt) * TILE),
                        stride: across * TILE,
                        steps: count,
                        begin: start == 0,
                        // read where it lies, by the first vectors alone: the next piece is asked for meanwhile
                        hint: a.kind == FloatKind::Bf16 && vt == 0,
                        sums: sums.add(vt * 512),
                    };
                    if vt + 1 < n { multiply::<2>(&piece) } else { multiply::<1>(&piece) }
                }
            }
            for vt in 0..n {
                let turned = Turned::new(sums.add(vt * 512), a.rows, a.bias);
                let vt = first + vt;
                for token in a.from.max(vt * 16)..a.to.min(vt * 16 + 16) {
                    turned.store(token % 16, 1, a.out.add(token * a.stride));
                }
            }
            first += n;
        }
    }
}

/// Some steps of 32 rows × N · 16 vectors.
struct Piece {
    /// `[steps][2][16][64]`
    a: *const u8,
    /// `[steps]` of N tiles, `stride` bytes apart.
    b: *const u8,
    stride: usize,
    steps: usize,
    /// Whether sums begin at zero.
    begin: bool,
    hint: bool,
    /// `[N][2][16][16]`
    sums: *mut f32,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply<const N: usize>(p: &Piece) {
    // SAFETY: the tiles are configured; operands and sums exist
    unsafe {
        if p.begin {
            tile::zero!("tmm0");
            tile::zero!("tmm1");
            if N == 2 {
                tile::zero!("tmm2");
                tile::zero!("tmm3");
            }
        } else {
            tile::load!("tmm0", p.sums, 64);
            tile::load!("tmm1", p.sums.add(256), 64);
            if N == 2 {
                tile::load!("tmm2", p.sums.add(512), 64);
                tile::load!("tmm3", p.sums.add(768), 64);
            }
        }
        for step in 0..p.steps {
            let a = p.a.add(step * 2 * TILE);
            let b = p.b.add(step * p.stride);
            if p.hint {
                for line in 0..32 {
                    S::prefetch(a.wrapping_add(STEPS * 2 * TILE + line * 64));
                }
            }
            tile::load!("tmm4", a, 64);
            tile::load_once!("tmm6", b, 64);
            tile::bf16!("tmm0", "tmm4", "tmm6");
            tile::load!("tmm5", a.add(TILE), 64);
            tile::bf16!("tmm1", "tmm5", "tmm6");
            if N == 2 {
                tile::load_once!("tmm7", b.add(TILE), 64);
                tile::bf16!("tmm2", "tmm4", "tmm7");
                tile::bf16!("tmm3", "tmm5", "tmm7");
            }
        }
        tile::store!("tmm0", p.sums, 64);
        tile::store!("tmm1", p.sums.add(256), 64);
        if N == 2 {
            tile::store!("tmm2", p.sums.add(512), 64);
            tile::store!("tmm3", p.sums.add(768), 64);
        }
    }
}

/// The next 32 values of up to sixteen tokens, `stride` values apart, to a tile of `[16 pairs][16 tokens][2]`; absent
/// tokens are zero.
#[inline(always)]
pub unsafe fn pack(x: *const f32, stride: usize, n: usize, to: *mut u8) {
    // SAFETY: n tokens at `x`, 1024 bytes at `to`
    unsafe {
        let mut lines = Aligned([0u8; TILE]);
        for v in 0..n {
            let (from, line) = (x.add(v * stride), lines.0.as_mut_ptr().add(v * 64));
            _mm256_storeu_si256(line.cast(), rounded(S::load(from)));
            _mm256_storeu_si256(line.add(32).cast(), rounded(S::load(from.add(16))));
        }
        S::transpose(lines.0.as_ptr(), to);
    }
}
