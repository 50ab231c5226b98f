//! NEON of every aarch64: products of bytes as 16-bit words.

use super::{Bytes, Neon, lanes};
use crate::generic::turned;
use crate::simd::Simd;
use core::arch::aarch64::*;

/// Multiplies to 16 bits, adds to 32.
#[derive(Clone, Copy)]
pub struct Multiply;

/// Whether the machine has it.
pub fn available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

// SAFETY: a product is at most 128 · 127, so that the sum of two fits 16 bits: the sums are exact.
unsafe impl Bytes for Multiply {
    lanes! {
        fn row(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            vpadalq_s16(acc, vmlal_high_s8(low, w, x))
        }
        fn quads(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(w, x)))
        }
        fn panel_part(from: *const u8, to: *mut u8) {
            <Neon<Multiply> as Simd>::transpose(from, to)
        }
        fn turned_tiles(a: &turned::Tiles) { turned::tiles::<Neon<Multiply>, 1, 4>(a) }
    }
}

crate::ops::table!(Neon<Multiply>, "neon");
