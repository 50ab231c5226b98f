//! Rounding to bf16 by integers.

use core::arch::x86_64::*;

/// Sixteen values to bf16, ties to even; any NaN to a quiet one. In the upper halves; the lower ones are zero.
#[inline(always)]
pub unsafe fn nearest(x: __m512) -> __m512i {
    // SAFETY: the caller has AVX-512
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let up = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc0_0000));
        _mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32 as i32))
    }
}

/// [`nearest`] without the lower halves.
#[inline(always)]
pub unsafe fn rounded(x: __m512) -> __m256i {
    // SAFETY: the caller has AVX-512
    unsafe { _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(nearest(x))) }
}
