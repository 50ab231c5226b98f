//! NEON with `sdot`: four products of bytes into each 32-bit lane (FEAT_DotProd, Armv8.2 and later).

use super::{Bytes, Neon, lanes};
use crate::generic::turned;
use crate::simd::Simd;
use core::arch::aarch64::*;

/// Multiplies with `sdot`.
#[derive(Clone, Copy)]
pub struct Dotprod;

/// Whether the machine has it.
pub fn available() -> bool {
    super::multiply::available() && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Lane r of `acc` += Σ_c w[4r + c] · x[4r + c].
///
/// # Safety
/// The machine has `sdot`, and the call ends up in a function with the feature on.
#[inline(always)]
pub unsafe fn sdot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // SAFETY: registers only
    unsafe {
        core::arch::asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

// SAFETY: `sdot` adds exact products.
unsafe impl Bytes for Dotprod {
    lanes! {
        fn row(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t { sdot(acc, w, x) }
        fn quads(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t { sdot(acc, w, x) }
        fn panel_part(from: *const u8, to: *mut u8) {
            <Neon<Dotprod> as Simd>::transpose(from, to)
        }
        fn turned_tiles(a: &turned::Tiles) { turned::tiles::<Neon<Dotprod>, 1, 4>(a) }
    }
}

crate::ops::table!(Neon<Dotprod>, "neon,dotprod");
