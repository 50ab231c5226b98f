//! AVX2 with FMA and F16C: sixteen lanes are two registers.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes, so it is given the magnitude of one operand and the other with
//! that one's sign. No product exceeds 128 · 127 in magnitude, so two fit its 16 bits and the sum is exact; a weight of
//! −128, which cannot take another sign, is none that a file may hold.

use crate::generic::{float, panel};
use crate::simd::Simd;
use crate::x86_64::lanes;
use core::arch::x86_64::*;
use core::marker::PhantomData;

/// How bytes are multiplied in registers of 32.
///
/// # Safety
/// Sums are exact for what [`Simd`]'s `dot` and `dot_lanes` are given.
pub unsafe trait Multiply: Copy + 'static {
    /// [`Simd::BIAS`], 0 or 128.
    const BIAS: i32;
    /// Products of 32 weights and 32 activations, added by fours to the eight lanes of `acc`.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn rows(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
    /// The same where `x` is what the next calls have, too.
    ///
    /// # Safety
    /// The machine has the instructions.
    unsafe fn lanes(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// AVX2, FMA, F16C, and a way to multiply bytes.
#[derive(Clone, Copy)]
pub struct Wide<M>(PhantomData<M>);

/// Multiplies with `vpmaddubsw`.
#[derive(Clone, Copy)]
pub struct Pairs;

/// AVX2, FMA, F16C.
pub type Avx2 = Wide<Pairs>;

// SAFETY: two products fit 16 bits, so that the sums are exact.
unsafe impl Multiply for Pairs {
    const BIAS: i32 = 0;
    #[inline(always)]
    unsafe fn rows(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: passed on
        unsafe { dot32(acc, w, x) }
    }
    /// The magnitudes of `x` are made once.
    #[inline(always)]
    unsafe fn lanes(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: passed on
        unsafe { dot32(acc, x, w) }
    }
}

/// Whether the machine and its system have all of it.
pub fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Sum of eight lanes: +4, +2, +1.
#[inline(always)]
pub unsafe fn tree8(a: __m256) -> f32 {
    // SAFETY: the caller has AVX2
    unsafe {
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
    }
}

/// The greatest of eight lanes.
#[inline(always)]
pub unsafe fn top8(a: __m256) -> f32 {
    // SAFETY: the caller has AVX2
    unsafe {
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Exact products of 32 bytes, summed by fours into eight lanes of `acc`.
#[inline(always)]
unsafe fn dot32(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2
    unsafe {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

#[inline(always)]
unsafe fn unpacked(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2
    unsafe { _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)) }
}

/// In every quad of lanes: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
#[inline(always)]
unsafe fn pairs(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2
    unsafe {
        let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
        let (even, odd) = (_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
        _mm256_add_epi32(_mm256_castps_si256(even), _mm256_castps_si256(odd))
    }
}

#[inline(always)]
unsafe fn halved(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2
    unsafe {
        let low = _mm256_permute2x128_si256::<0x20>(a, b);
        _mm256_add_epi32(low, _mm256_permute2x128_si256::<0x31>(a, b))
    }
}

macro_rules! both {
    ($f:ident $(::<$c:tt>)* ($($a:expr),*)) => { ($f$(::<$c>)*($($a.0),*), $f$(::<$c>)*($($a.1),*)) };
}

// SAFETY: every method computes what `Scalar`'s does; the tests hold them together bit for bit.
unsafe impl<M: Multiply> Simd for Wide<M> {
    type F = (__m256, __m256);
    type I = (__m256i, __m256i);
    type B = (__m256i, __m256i);
    type P = __m256i;
    /// The table's low and high eight entries as words, in both 128-bit lanes.
    type T = (__m256i, __m256i);
    const BIAS: i32 = M::BIAS;
    const PACKS: bool = true;

    lanes! {
        fn splat(x: f32) -> Self::F { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        fn load(p: *const f32) -> Self::F { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        fn store(p: *mut f32, x: Self::F) {
            _mm256_storeu_ps(p, x.0);
            _mm256_storeu_ps(p.add(8), x.1)
        }
        fn add(a: Self::F, b: Self::F) -> Self::F { both!(_mm256_add_ps(a, b)) }
        fn sub(a: Self::F, b: Self::F) -> Self::F { both!(_mm256_sub_ps(a, b)) }
        fn mul(a: Self::F, b: Self::F) -> Self::F { both!(_mm256_mul_ps(a, b)) }
        fn div(a: Self::F, b: Self::F) -> Self::F { both!(_mm256_div_ps(a, b)) }
        fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F { both!(_mm256_fmadd_ps(a, b, c)) }
        fn max(a: Self::F, b: Self::F) -> Self::F { both!(_mm256_max_ps(a, b)) }
        fn min(a: Self::F, b: Self::F) -> Self::F { both!(_mm256_min_ps(a, b)) }
        fn abs(a: Self::F) -> Self::F {
            let mask = _mm256_set1_ps(f32::from_bits(0x7fff_ffff));
            (_mm256_and_ps(a.0, mask), _mm256_and_ps(a.1, mask))
        }
        fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F {
            let bit = _mm256_set1_ps(-0.0);
            let a = _mm256_or_ps(_mm256_andnot_ps(bit, magnitude.0), _mm256_and_ps(bit, sign.0));
            (a, _mm256_or_ps(_mm256_andnot_ps(bit, magnitude.1), _mm256_and_ps(bit, sign.1)))
        }
        fn round(a: Self::F) -> Self::F { both!(_mm256_round_ps::<NEAREST>(a)) }
        fn if_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
            let mask = both!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
            both!(_mm256_blendv_ps(y, x, mask))
        }
        fn to_int(a: Self::F) -> Self::I { both!(_mm256_cvtps_epi32(a)) }
        fn from_int(a: Self::I) -> Self::F { both!(_mm256_cvtepi32_ps(a)) }
        fn pow2(a: Self::I) -> Self::F {
            let biased = Self::i_add(a, Self::i_splat(127));
            let bits = both!(_mm256_slli_epi32::<23>(biased));
            both!(_mm256_castsi256_ps(bits))
        }
        fn i_splat(x: i32) -> Self::I { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
        fn i_add(a: Self::I, b: Self::I) -> Self::I { both!(_mm256_add_epi32(a, b)) }
        fn i_sub(a: Self::I, b: Self::I) -> Self::I { both!(_mm256_sub_epi32(a, b)) }
        fn i_half(a: Self::I) -> Self::I { both!(_mm256_srai_epi32::<1>(a)) }
        fn i_store(p: *mut i32, x: Self::I) {
            _mm256_storeu_si256(p.cast(), x.0);
            _mm256_storeu_si256(p.add(8).cast(), x.1)
        }
        fn load_f16(p: *const u16) -> Self::F {
            (_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
        fn load_bf16(p: *const u16) -> Self::F {
            let wide = (
                _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast())),
            );
            let bits = both!(_mm256_slli_epi32::<16>(wide));
            both!(_mm256_castsi256_ps(bits))
        }
        fn load_i8(p: *const i8) -> Self::F {
            let wide = (
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast())),
            );
            both!(_mm256_cvtepi32_ps(wide))
        }
        fn store_f16(p: *mut u16, x: Self::F) {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1))
        }
        fn store_i8(p: *mut i8, x: Self::F) {
            let i = both!(_mm256_cvtps_epi32(x));
            // packs works inside 128-bit lanes; the permutation puts the quarters back in order
            let words = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(i.0, i.1));
            let low = _mm256_castsi256_si128(words);
            _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, _mm256_extracti128_si256::<1>(words)))
        }
        fn tree(a: Self::F) -> f32 { tree8(_mm256_add_ps(a.0, a.1)) }
        fn top(a: Self::F) -> f32 { top8(_mm256_max_ps(a.0, a.1)) }
        fn b_load(p: *const u8) -> Self::B {
            (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast()))
        }
        fn b_store(p: *mut u8, x: Self::B) {
            _mm256_storeu_si256(p.cast(), x.0);
            _mm256_storeu_si256(p.add(32).cast(), x.1)
        }
        fn biased(w: Self::B) -> Self::B {
            if M::BIAS == 0 {
                return w;
            }
            let bias = Self::b_splat(-128);
            both!(_mm256_xor_si256(w, bias))
        }
        fn table(p: *const i8) -> Self::T {
            let words = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
            let low = _mm256_broadcastsi128_si256(_mm256_castsi256_si128(words));
            (low, _mm256_broadcastsi128_si256(_mm256_extracti128_si256::<1>(words)))
        }
        fn scaled(table: Self::T, m: *const i8) -> Self::B {
            // multiplier j in the high byte of every word of lane j: mulhrs gives (t · 256m + 2¹⁴) >> 15
            const PLACE: [u8; 64] = super::high_bytes();
            let m = _mm256_set1_epi32(m.cast::<i32>().read_unaligned());
            let place = Self::b_load(PLACE.as_ptr());
            let (a, b) = (_mm256_shuffle_epi8(m, place.0), _mm256_shuffle_epi8(m, place.1));
            (
                _mm256_packs_epi16(_mm256_mulhrs_epi16(table.0, a), _mm256_mulhrs_epi16(table.1, a)),
                _mm256_packs_epi16(_mm256_mulhrs_epi16(table.0, b), _mm256_mulhrs_epi16(table.1, b)),
            )
        }
        fn scaled8(table: Self::T, m: *const i8) -> Self::B {
            const EVEN: [u8; 64] = super::high_of_pairs(8, 0);
            const ODD: [u8; 64] = super::high_of_pairs(8, 1);
            let m = _mm256_set1_epi64x(m.cast::<i64>().read_unaligned());
            let (even, odd) = (Self::b_load(EVEN.as_ptr()), Self::b_load(ODD.as_ptr()));
            let (m, t) = ((m, m), (table.0, table.0));
            let (even, odd) = (both!(_mm256_shuffle_epi8(m, even)), both!(_mm256_shuffle_epi8(m, odd)));
            let (even, odd) = (both!(_mm256_mulhrs_epi16(t, even)), both!(_mm256_mulhrs_epi16(t, odd)));
            both!(_mm256_packs_epi16(even, odd))
        }
        fn scaled4(table: Self::T, m: *const i8) -> Self::B {
            const PLACE: [u8; 64] = super::high_of_pairs(4, 0);
            let m = _mm256_set1_epi64x(m.cast::<i64>().read_unaligned());
            let (m, t, place) = ((m, m), (table.0, table.0), Self::b_load(PLACE.as_ptr()));
            let m = both!(_mm256_shuffle_epi8(m, place));
            let t = both!(_mm256_mulhrs_epi16(t, m));
            both!(_mm256_packs_epi16(t, t))
        }
        fn pick(tables: Self::B, codes: Self::B) -> Self::B { both!(_mm256_shuffle_epi8(tables, codes)) }
        fn b_splat(x: i8) -> Self::B { (_mm256_set1_epi8(x), _mm256_set1_epi8(x)) }
        fn b_or(a: Self::B, b: Self::B) -> Self::B { both!(_mm256_or_si256(a, b)) }
        fn b_add(a: Self::B, x: i8) -> Self::B {
            let x = Self::b_splat(x);
            both!(_mm256_add_epi8(a, x))
        }
        fn b_field(a: Self::B, shift: i32, mask: u8) -> Self::B {
            let (count, mask) = (_mm_cvtsi32_si128(shift.abs()), Self::b_splat(mask as i8));
            let count = (count, count);
            let a = if shift < 0 { both!(_mm256_sll_epi16(a, count)) } else { both!(_mm256_srl_epi16(a, count)) };
            both!(_mm256_and_si256(a, mask))
        }
        fn b_ones(p: *const u8) -> Self::B {
            let ones = _mm256_loadu_si256(p.cast());
            (ones, _mm256_srli_epi16::<4>(ones))
        }
        fn times(w: Self::B, m: *const i8, odd: usize, shift: u32) -> Self::B {
            // words 256 w and 2^(7 - shift) m: mulhrs gives (2^(15 - shift) w m + 2¹⁴) >> 15
            const EVEN: [u8; 64] = super::high_of_pairs(8, 0);
            const ODD: [u8; 64] = super::high_of_pairs(8, 1);
            let place = Self::b_load(if odd == 0 { EVEN.as_ptr() } else { ODD.as_ptr() });
            let m = _mm256_set1_epi64x(m.cast::<i64>().read_unaligned());
            let count = _mm_cvtsi32_si128(shift as i32 + 1);
            let (m, count) = ((m, m), (count, count));
            let m = both!(_mm256_shuffle_epi8(m, place));
            let m = both!(_mm256_sra_epi16(m, count));
            let zero = Self::b_splat(0);
            let (low, high) = (both!(_mm256_unpacklo_epi8(zero, w)), both!(_mm256_unpackhi_epi8(zero, w)));
            let (low, high) = (both!(_mm256_mulhrs_epi16(low, m)), both!(_mm256_mulhrs_epi16(high, m)));
            both!(_mm256_packs_epi16(low, high))
        }
        fn lookup(line: Self::B, tables: Self::B) -> (Self::B, Self::B) {
            let nibble = (_mm256_set1_epi8(15), _mm256_set1_epi8(15));
            let shifted = both!(_mm256_srli_epi16::<4>(line));
            let (low, high) = (both!(_mm256_and_si256(line, nibble)), both!(_mm256_and_si256(shifted, nibble)));
            (both!(_mm256_shuffle_epi8(tables, low)), both!(_mm256_shuffle_epi8(tables, high)))
        }
        fn p_zero() -> Self::P { _mm256_setzero_si256() }
        fn dot(acc: Self::P, w: Self::B, x: Self::B) -> Self::P { M::rows(M::rows(acc, w.0, x.0), w.1, x.1) }
        fn fold4(p: &[Self::P; 4]) -> Self::P {
            let (x, y) = (unpacked(p[0], p[1]), unpacked(p[2], p[3]));
            _mm256_add_epi32(_mm256_unpacklo_epi64(x, y), _mm256_unpackhi_epi64(x, y))
        }
        fn fold16(p: &[Self::P; 4]) -> Self::I {
            (halved(p[0], p[1]), halved(p[2], p[3]))
        }
        fn dot4(acc: Self::I, w: Self::B, x: i32) -> Self::I {
            let x = _mm256_set1_epi32(x);
            (M::rows(acc.0, w.0, x), M::rows(acc.1, w.1, x))
        }
        fn dot_lanes[const W: usize](acc: Self::I, w: *const u8, x: Self::B) -> Self::I {
            let w = match W {
                4 => _mm256_set1_epi32(w.cast::<i32>().read_unaligned()),
                8 => _mm256_set1_epi64x(w.cast::<i64>().read_unaligned()),
                _ => _mm256_broadcastsi128_si256(_mm_loadu_si128(w.cast())),
            };
            (M::lanes(acc.0, w, x.0), M::lanes(acc.1, w, x.1))
        }
        fn fold_pairs(a: Self::I, b: Self::I) -> Self::I { both!(pairs(a, b)) }
        fn fold_quads(p: [Self::I; 4]) -> Self::I {
            let [a, b, c, d] = p;
            let (x, y) = (both!(pairs(a, b)), both!(pairs(c, d)));
            both!(pairs(x, y))
        }
        fn i_load(p: *const i32) -> Self::I {
            (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast()))
        }
        fn repeat4(p: *const f32) -> Self::F {
            let four = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
            let four = _mm256_castsi256_ps(four);
            (four, four)
        }
        fn transpose(from: *const u8, to: *mut u8) {
            // eight rows of eight columns at a time
            for (rows, columns) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
                let mut r = [_mm256_setzero_ps(); 8];
                for i in 0..8 {
                    r[i] = _mm256_loadu_ps(from.add((rows + i) * 64 + columns * 4).cast());
                }
                let mut q = [_mm256_setzero_ps(); 8];
                for i in [0, 4] {
                    let (a, b) = (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
                    let (c, d) = (_mm256_unpacklo_ps(r[i + 2], r[i + 3]), _mm256_unpackhi_ps(r[i + 2], r[i + 3]));
                    q[i] = _mm256_shuffle_ps::<0x44>(a, c);
                    q[i + 1] = _mm256_shuffle_ps::<0xee>(a, c);
                    q[i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                    q[i + 3] = _mm256_shuffle_ps::<0xee>(b, d);
                }
                for i in 0..4 {
                    let (low, high) = (
                        _mm256_permute2f128_ps::<0x20>(q[i], q[i + 4]),
                        _mm256_permute2f128_ps::<0x31>(q[i], q[i + 4]),
                    );
                    _mm256_storeu_ps(to.add((columns + i) * 64 + rows * 4).cast(), low);
                    _mm256_storeu_ps(to.add((columns + 4 + i) * 64 + rows * 4).cast(), high);
                }
            }
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        fn prefetch_far(p: *const u8) { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        fn tiles(a: &panel::Tiles) { panel::tiles::<Self, 1, 4, 4>(a) }
        fn float_tiles(a: &float::FloatBlock) {
            match a.kind {
                float::FloatKind::F32 => float::tiles::<Self, 2, 3, 4>(a),
                _ => float::halves::<Self, 4>(a),
            }
        }
    }
}

crate::ops::table!(Avx2, "avx2,fma,f16c");
