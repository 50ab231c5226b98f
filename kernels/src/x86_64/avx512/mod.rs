//! AVX-512 with VNNI: sixteen lanes are one register, and `vpdpbusd` multiplies unsigned weights by activations.
//!
//! Weights are biased by 128 to be unsigned: exact, since the sum of the activations is known.

pub(crate) mod bf16;

use crate::generic::{float, panel};
use crate::simd::Simd;
use crate::x86_64::lanes;
use core::arch::x86_64::*;

/// AVX-512 F, BW, VL, DQ, VNNI with AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx512;

/// Whether the machine and its system have all of it.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && super::avx2::available()
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// Steps of the transposing sums. Functions and not closures, which would not inherit a kernel's features.

/// Four rows to [a | b | c | d], each the four sums after +8 and +4.
#[inline(always)]
unsafe fn four(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512
    unsafe {
        let x = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let y = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xdd>(x, y))
    }
}

/// Two fours to [a a b b] in each lane, after +2.
#[inline(always)]
unsafe fn two(p: __m512, q: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512
    unsafe {
        let (p, q) = (_mm512_castps_pd(p), _mm512_castps_pd(q));
        let (low, high) = (_mm512_unpacklo_pd(p, q), _mm512_unpackhi_pd(p, q));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    }
}

#[inline(always)]
unsafe fn unpacked(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller has AVX-512
    unsafe { _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)) }
}

#[inline(always)]
unsafe fn halved(a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller has AVX-512
    unsafe { _mm512_add_epi32(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b)) }
}

// SAFETY: every method computes what `Scalar`'s does; the tests hold them together bit for bit.
unsafe impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type P = __m512i;
    /// The table's low and high eight entries as words, in every 128-bit lane.
    type T = (__m512i, __m512i);
    const BIAS: i32 = 128;
    const PACKS: bool = true;
    const ACCUMULATORS: usize = 16;
    const WIDEN: usize = 48;

    lanes! {
        fn splat(x: f32) -> Self::F { _mm512_set1_ps(x) }
        fn load(p: *const f32) -> Self::F { _mm512_loadu_ps(p) }
        fn store(p: *mut f32, x: Self::F) { _mm512_storeu_ps(p, x) }
        fn add(a: Self::F, b: Self::F) -> Self::F { _mm512_add_ps(a, b) }
        fn sub(a: Self::F, b: Self::F) -> Self::F { _mm512_sub_ps(a, b) }
        fn mul(a: Self::F, b: Self::F) -> Self::F { _mm512_mul_ps(a, b) }
        fn div(a: Self::F, b: Self::F) -> Self::F { _mm512_div_ps(a, b) }
        fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F { _mm512_fmadd_ps(a, b, c) }
        fn max(a: Self::F, b: Self::F) -> Self::F { _mm512_max_ps(a, b) }
        fn min(a: Self::F, b: Self::F) -> Self::F { _mm512_min_ps(a, b) }
        fn abs(a: Self::F) -> Self::F { _mm512_and_ps(a, _mm512_set1_ps(f32::from_bits(0x7fff_ffff))) }
        fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign))
        }
        fn round(a: Self::F) -> Self::F { _mm512_roundscale_ps::<NEAREST>(a) }
        fn if_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x)
        }
        fn to_int(a: Self::F) -> Self::I { _mm512_cvtps_epi32(a) }
        fn from_int(a: Self::I) -> Self::F { _mm512_cvtepi32_ps(a) }
        fn pow2(a: Self::I) -> Self::F {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(a, _mm512_set1_epi32(127))))
        }
        fn scale2(x: Self::F, n: Self::F) -> Self::F { _mm512_scalef_ps(x, n) }
        fn i_splat(x: i32) -> Self::I { _mm512_set1_epi32(x) }
        fn i_add(a: Self::I, b: Self::I) -> Self::I { _mm512_add_epi32(a, b) }
        fn i_sub(a: Self::I, b: Self::I) -> Self::I { _mm512_sub_epi32(a, b) }
        fn i_half(a: Self::I) -> Self::I { _mm512_srai_epi32::<1>(a) }
        fn i_store(p: *mut i32, x: Self::I) { _mm512_storeu_si512(p.cast(), x) }
        fn load_f16(p: *const u16) -> Self::F {
            // the plain intrinsic asks for no exceptions, a form that takes no memory operand and one step more
            _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(p.cast()))
        }
        fn load_bf16(p: *const u16) -> Self::F {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn load_i8(p: *const i8) -> Self::F {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
        }
        fn store_f16(p: *mut u16, x: Self::F) { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<NEAREST>(x)) }
        fn store_i8(p: *mut i8, x: Self::F) {
            _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)))
        }
        fn tree(a: Self::F) -> f32 {
            let high = _mm512_castpd_ps(_mm512_shuffle_f64x2::<0xee>(_mm512_castps_pd(a), _mm512_castps_pd(a)));
            let a = _mm512_castps512_ps256(_mm512_add_ps(a, high));
            super::avx2::tree8(a)
        }
        fn top(a: Self::F) -> f32 {
            let high = _mm512_castpd_ps(_mm512_shuffle_f64x2::<0xee>(_mm512_castps_pd(a), _mm512_castps_pd(a)));
            super::avx2::top8(_mm512_castps512_ps256(_mm512_max_ps(a, high)))
        }
        fn tree16(rows: &[Self::F; 16]) -> Self::F {
            let r = rows;
            let x = two(four(r[0], r[4], r[8], r[12]), four(r[1], r[5], r[9], r[13]));
            let y = two(four(r[2], r[6], r[10], r[14]), four(r[3], r[7], r[11], r[15]));
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(x, y), _mm512_shuffle_ps::<0xdd>(x, y))
        }
        fn tree4(rows: [Self::F; 4]) -> Self::F {
            let r = rows;
            let lanes = four(r[0], r[1], r[2], r[3]);
            let lanes = _mm512_add_ps(lanes, _mm512_permute_ps::<0x4e>(lanes));
            let lanes = _mm512_add_ps(lanes, _mm512_permute_ps::<0xb1>(lanes));
            const PLACE: [i32; 16] = [0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12];
            let place = _mm512_loadu_si512(PLACE.as_ptr().cast());
            _mm512_permutexvar_ps(place, lanes)
        }
        fn top4(rows: [Self::F; 4]) -> Self::F {
            let r = rows;
            let x = _mm512_max_ps(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
            let y = _mm512_max_ps(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
            let (x, y) = (_mm512_castps_pd(x), _mm512_castps_pd(y));
            let (low, high) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
            let lanes = _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            let lanes = _mm512_max_ps(lanes, _mm512_shuffle_f32x4::<0x4e>(lanes, lanes));
            _mm512_max_ps(lanes, _mm512_shuffle_f32x4::<0xb1>(lanes, lanes))
        }
        fn b_load(p: *const u8) -> Self::B { _mm512_loadu_si512(p.cast()) }
        fn b_store(p: *mut u8, x: Self::B) { _mm512_storeu_si512(p.cast(), x) }
        fn biased(w: Self::B) -> Self::B { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
        fn table(p: *const i8) -> Self::T {
            let words = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
            let low = _mm512_broadcast_i32x4(_mm256_castsi256_si128(words));
            (low, _mm512_broadcast_i32x4(_mm256_extracti128_si256::<1>(words)))
        }
        fn scaled(table: Self::T, m: *const i8) -> Self::B {
            // multiplier j in the high byte of every word of lane j: mulhrs gives (t · 256m + 2¹⁴) >> 15
            const PLACE: [u8; 64] = super::high_bytes();
            let place = _mm512_loadu_si512(PLACE.as_ptr().cast());
            let m = _mm512_shuffle_epi8(_mm512_set1_epi32(m.cast::<i32>().read_unaligned()), place);
            let (low, high) = (_mm512_mulhrs_epi16(table.0, m), _mm512_mulhrs_epi16(table.1, m));
            _mm512_packs_epi16(low, high)
        }
        fn scaled8(table: Self::T, m: *const i8) -> Self::B {
            const EVEN: [u8; 64] = super::high_of_pairs(8, 0);
            const ODD: [u8; 64] = super::high_of_pairs(8, 1);
            let m = _mm512_set1_epi64(m.cast::<i64>().read_unaligned());
            let even = _mm512_shuffle_epi8(m, Self::b_load(EVEN.as_ptr()));
            let odd = _mm512_shuffle_epi8(m, Self::b_load(ODD.as_ptr()));
            _mm512_packs_epi16(_mm512_mulhrs_epi16(table.0, even), _mm512_mulhrs_epi16(table.0, odd))
        }
        fn scaled4(table: Self::T, m: *const i8) -> Self::B {
            const PLACE: [u8; 64] = super::high_of_pairs(4, 0);
            let m = _mm512_set1_epi64(m.cast::<i64>().read_unaligned());
            let t = _mm512_mulhrs_epi16(table.0, _mm512_shuffle_epi8(m, Self::b_load(PLACE.as_ptr())));
            _mm512_packs_epi16(t, t)
        }
        fn pick(tables: Self::B, codes: Self::B) -> Self::B { _mm512_shuffle_epi8(tables, codes) }
        fn b_splat(x: i8) -> Self::B { _mm512_set1_epi8(x) }
        fn b_or(a: Self::B, b: Self::B) -> Self::B { _mm512_or_si512(a, b) }
        fn b_add(a: Self::B, x: i8) -> Self::B { _mm512_add_epi8(a, _mm512_set1_epi8(x)) }
        fn b_field(a: Self::B, shift: i32, mask: u8) -> Self::B {
            let count = _mm_cvtsi32_si128(shift.abs());
            let a = if shift < 0 { _mm512_sll_epi16(a, count) } else { _mm512_srl_epi16(a, count) };
            _mm512_and_si512(a, _mm512_set1_epi8(mask as i8))
        }
        fn b_ones(p: *const u8) -> Self::B {
            const BY: [u16; 32] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4];
            let ones = _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast()));
            _mm512_srlv_epi16(ones, Self::b_load(BY.as_ptr().cast()))
        }
        fn times(w: Self::B, m: *const i8, odd: usize, shift: u32) -> Self::B {
            // words 256 w and 2^(7 - shift) m: mulhrs gives (2^(15 - shift) w m + 2¹⁴) >> 15
            const EVEN: [u8; 64] = super::high_of_pairs(8, 0);
            const ODD: [u8; 64] = super::high_of_pairs(8, 1);
            let place = Self::b_load(if odd == 0 { EVEN.as_ptr() } else { ODD.as_ptr() });
            let m = _mm512_shuffle_epi8(_mm512_set1_epi64(m.cast::<i64>().read_unaligned()), place);
            let m = _mm512_sra_epi16(m, _mm_cvtsi32_si128(shift as i32 + 1));
            let zero = _mm512_setzero_si512();
            let (low, high) = (_mm512_unpacklo_epi8(zero, w), _mm512_unpackhi_epi8(zero, w));
            _mm512_packs_epi16(_mm512_mulhrs_epi16(low, m), _mm512_mulhrs_epi16(high, m))
        }
        fn lookup(line: Self::B, tables: Self::B) -> (Self::B, Self::B) {
            let nibble = _mm512_set1_epi8(15);
            let low = _mm512_and_si512(line, nibble);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(line), nibble);
            (_mm512_shuffle_epi8(tables, low), _mm512_shuffle_epi8(tables, high))
        }
        fn p_zero() -> Self::P { _mm512_setzero_si512() }
        fn dot(acc: Self::P, w: Self::B, x: Self::B) -> Self::P { _mm512_dpbusd_epi32(acc, w, x) }
        fn fold4(p: &[Self::P; 4]) -> Self::P {
            let (x, y) = (unpacked(p[0], p[1]), unpacked(p[2], p[3]));
            _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y))
        }
        fn fold16(p: &[Self::P; 4]) -> Self::I {
            let (x, y) = (halved(p[0], p[1]), halved(p[2], p[3]));
            _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(x, y), _mm512_shuffle_i32x4::<0xdd>(x, y))
        }
        fn dot4(acc: Self::I, w: Self::B, x: i32) -> Self::I { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)) }
        fn dot_lanes[const W: usize](acc: Self::I, w: *const u8, x: Self::B) -> Self::I {
            let w = match W {
                4 => _mm512_set1_epi32(w.cast::<i32>().read_unaligned()),
                8 => _mm512_set1_epi64(w.cast::<i64>().read_unaligned()),
                _ => _mm512_broadcast_i32x4(_mm_loadu_si128(w.cast())),
            };
            _mm512_dpbusd_epi32(acc, w, x)
        }
        fn fold_pairs(a: Self::I, b: Self::I) -> Self::I {
            let (a, b) = (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
            let (even, odd) = (_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
            _mm512_add_epi32(_mm512_castps_si512(even), _mm512_castps_si512(odd))
        }
        fn fold_quads(p: [Self::I; 4]) -> Self::I { Self::fold4(&p) }
        fn i_load(p: *const i32) -> Self::I { _mm512_loadu_si512(p.cast()) }
        fn repeat4(p: *const f32) -> Self::F { _mm512_broadcast_f32x4(_mm_loadu_ps(p)) }
        fn transpose(from: *const u8, to: *mut u8) {
            // quads[i][c]: lane L holds column 4L + c of rows 4i..4i + 4
            let mut quads = [[_mm512_setzero_si512(); 4]; 4];
            for i in 0..4 {
                let mut r = [_mm512_setzero_si512(); 4];
                for j in 0..4 {
                    r[j] = _mm512_loadu_si512(from.add((4 * i + j) * 64).cast());
                }
                let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
                let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
                quads[i][0] = _mm512_unpacklo_epi64(a, c);
                quads[i][1] = _mm512_unpackhi_epi64(a, c);
                quads[i][2] = _mm512_unpacklo_epi64(b, d);
                quads[i][3] = _mm512_unpackhi_epi64(b, d);
            }
            for c in 0..4 {
                let (q0, q1, q2, q3) = (quads[0][c], quads[1][c], quads[2][c], quads[3][c]);
                let (a, b) = (_mm512_shuffle_i32x4::<0x88>(q0, q1), _mm512_shuffle_i32x4::<0x88>(q2, q3));
                let (d, e) = (_mm512_shuffle_i32x4::<0xdd>(q0, q1), _mm512_shuffle_i32x4::<0xdd>(q2, q3));
                let to = to.add(c * 64).cast::<__m512i>();
                _mm512_storeu_si512(to, _mm512_shuffle_i32x4::<0x88>(a, b));
                _mm512_storeu_si512(to.add(4), _mm512_shuffle_i32x4::<0x88>(d, e));
                _mm512_storeu_si512(to.add(8), _mm512_shuffle_i32x4::<0xdd>(a, b));
                _mm512_storeu_si512(to.add(12), _mm512_shuffle_i32x4::<0xdd>(d, e));
            }
        }
        fn gather4(from: *const u8, to: *mut u8) {
            let mut g = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                g[i] = _mm512_loadu_si512(from.add(i * 64).cast());
            }
            let (a, b) = (_mm512_unpacklo_epi32(g[0], g[1]), _mm512_unpackhi_epi32(g[0], g[1]));
            let (c, d) = (_mm512_unpacklo_epi32(g[2], g[3]), _mm512_unpackhi_epi32(g[2], g[3]));
            // lane L of the i-th: row 4L + i
            let rows = [
                _mm512_unpacklo_epi64(a, c),
                _mm512_unpackhi_epi64(a, c),
                _mm512_unpacklo_epi64(b, d),
                _mm512_unpackhi_epi64(b, d),
            ];
            for i in 0..4 {
                let to = to.add(i * 16);
                _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(rows[i]));
                _mm_storeu_si128(to.add(64).cast(), _mm512_extracti32x4_epi32::<1>(rows[i]));
                _mm_storeu_si128(to.add(128).cast(), _mm512_extracti32x4_epi32::<2>(rows[i]));
                _mm_storeu_si128(to.add(192).cast(), _mm512_extracti32x4_epi32::<3>(rows[i]));
            }
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        fn prefetch_far(p: *const u8) { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        fn portions(vectors: usize, alone: bool) -> usize { panel::portions::<3, 8, 16>(vectors, alone) }
        fn tiles(a: &panel::Tiles) { panel::tiles::<Self, 3, 8, 16>(a) }
        fn float_tiles(a: &float::FloatBlock) {
            // up to here reading takes the time, and a block is read once for eight tokens
            if a.to - a.from < Self::WIDEN { float::turns::<Self>(a) } else { float::tiles::<Self, 4, 6, 16>(a) }
        }
    }
}

crate::ops::table!(Avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");
