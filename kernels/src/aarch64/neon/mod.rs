//! NEON: sixteen lanes are four registers. Three tables over one implementation, which differ in how bytes multiply.
//!
//! ```text
//! neon            smull + smlal2 → 16-bit pairs (at most 2 · 128 · 127), added in pairs to 32 bits
//! neon-dotprod    sdot: four products into a 32-bit lane
//! neon-i8mm       sdot for few tokens; smmla, 2 rows x 8 inputs x 2 tokens, over the panels of many
//! ```
//! The compiler has no stable intrinsics for `sdot` and `smmla`; they are written as assembly inside functions that
//! have the feature. Comparisons select with `bsl`, because `fmax` and `fmin` treat NaN otherwise than we do.

pub mod dotprod;
pub mod i8mm;
pub mod multiply;

use crate::generic::{float, turned};
use crate::simd::Simd;
use core::arch::aarch64::*;
use core::marker::PhantomData;

/// How a machine multiplies bytes.
///
/// # Safety
/// Implementations compute exactly what is said, and callers promise what those of [`Simd`] promise.
#[allow(clippy::missing_safety_doc)] // said once, above
pub unsafe trait Bytes: Copy + 'static {
    /// Adds the sixteen products w[i] · x[i] to `acc`, any of them to any lane.
    unsafe fn row(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;
    /// Lane r += Σ_c w[4r + c] · x[4r + c].
    unsafe fn quads(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;
    /// [`Simd::panel_part`].
    unsafe fn panel_part(from: *const u8, to: *mut u8);
    /// [`Simd::turned_tiles`].
    unsafe fn turned_tiles(a: &turned::Tiles);
}

/// NEON, multiplying bytes as `L` does.
#[derive(Clone, Copy)]
pub struct Neon<L>(PhantomData<L>);

/// The quarters of sixteen lanes, one after the other.
macro_rules! each {
    ($t:ident; |$($a:ident),+| $e:expr) => {
        $t({ $(let $a = $a.0;)+ $e }, { $(let $a = $a.1;)+ $e }, { $(let $a = $a.2;)+ $e }, { $(let $a = $a.3;)+ $e })
    };
}

/// Wraps bodies of trait methods: `unsafe` by the trait's contract, inlined into their kernel.
macro_rules! lanes {
    ($(fn $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? $body:block)*) => {
        $(#[inline(always)]
        #[allow(unused_unsafe)] // every aarch64 has NEON, so some bodies are empty of it
        unsafe fn $name($($a: $t),*) $(-> $r)? {
            // SAFETY: the trait's caller promises the instruction set and valid pointers
            unsafe { $body }
        })*
    };
}
use lanes;

type F = float32x4x4_t;
type I = int32x4x4_t;
type B = int8x16x4_t;

/// Four lanes that hold +8 and +4 of the tree's sum.
#[inline(always)]
unsafe fn quarter(a: F) -> float32x4_t {
    // SAFETY: every aarch64 has NEON
    unsafe { vaddq_f32(vaddq_f32(a.0, a.2), vaddq_f32(a.1, a.3)) }
}

/// a > b ? a : b
#[inline(always)]
unsafe fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every aarch64 has NEON
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// Lanes +2 of two registers' sums: [a0 + a2, a1 + a3, b0 + b2, b1 + b3].
#[inline(always)]
unsafe fn halves(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every aarch64 has NEON
    unsafe {
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)))
    }
}

/// Four words of each of four rows that lie `stride` bytes apart to four columns.
#[inline(always)]
unsafe fn four_by_four(from: *const u8, stride: usize) -> [uint64x2_t; 4] {
    // SAFETY: the caller has the rows
    unsafe {
        let line = |i: usize| vld1q_u32(from.add(i * stride).cast());
        let (ab, cd) = (vtrnq_u32(line(0), line(1)), vtrnq_u32(line(2), line(3)));
        let low = |x, y| vzip1q_u64(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y));
        let high = |x, y| vzip2q_u64(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y));
        [low(ab.0, cd.0), low(ab.1, cd.1), high(ab.0, cd.0), high(ab.1, cd.1)]
    }
}

// SAFETY: every method computes what `Scalar`'s does; the tests hold them together bit for bit.
unsafe impl<L: Bytes> Simd for Neon<L> {
    type F = F;
    type I = I;
    type B = B;
    type P = int32x4_t;
    /// The table's low and high eight entries as words.
    type T = int16x8x2_t;
    const BIAS: i32 = 0;

    lanes! {
        fn splat(x: f32) -> F {
            let x = vdupq_n_f32(x);
            float32x4x4_t(x, x, x, x)
        }
        fn load(p: *const f32) -> F {
            float32x4x4_t(vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12)))
        }
        fn store(p: *mut f32, x: F) {
            vst1q_f32(p, x.0);
            vst1q_f32(p.add(4), x.1);
            vst1q_f32(p.add(8), x.2);
            vst1q_f32(p.add(12), x.3)
        }
        fn add(a: F, b: F) -> F { each!(float32x4x4_t; |a, b| vaddq_f32(a, b)) }
        fn sub(a: F, b: F) -> F { each!(float32x4x4_t; |a, b| vsubq_f32(a, b)) }
        fn mul(a: F, b: F) -> F { each!(float32x4x4_t; |a, b| vmulq_f32(a, b)) }
        fn div(a: F, b: F) -> F { each!(float32x4x4_t; |a, b| vdivq_f32(a, b)) }
        fn fma(a: F, b: F, c: F) -> F { each!(float32x4x4_t; |a, b, c| vfmaq_f32(c, a, b)) }
        fn max(a: F, b: F) -> F { each!(float32x4x4_t; |a, b| greater(a, b)) }
        fn min(a: F, b: F) -> F { each!(float32x4x4_t; |a, b| vbslq_f32(vcltq_f32(a, b), a, b)) }
        fn abs(a: F) -> F { each!(float32x4x4_t; |a| vabsq_f32(a)) }
        fn copysign(magnitude: F, sign: F) -> F {
            let bit = vdupq_n_u32(1 << 31);
            each!(float32x4x4_t; |magnitude, sign| vbslq_f32(bit, sign, magnitude))
        }
        fn round(a: F) -> F { each!(float32x4x4_t; |a| vrndnq_f32(a)) }
        fn if_less(a: F, b: F, x: F, y: F) -> F {
            each!(float32x4x4_t; |a, b, x, y| vbslq_f32(vcltq_f32(a, b), x, y))
        }
        fn to_int(a: F) -> I { each!(int32x4x4_t; |a| vcvtq_s32_f32(a)) }
        fn from_int(a: I) -> F { each!(float32x4x4_t; |a| vcvtq_f32_s32(a)) }
        fn pow2(a: I) -> F {
            let bias = vdupq_n_s32(127);
            each!(float32x4x4_t; |a| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(a, bias))))
        }
        fn i_splat(x: i32) -> I {
            let x = vdupq_n_s32(x);
            int32x4x4_t(x, x, x, x)
        }
        fn i_add(a: I, b: I) -> I { each!(int32x4x4_t; |a, b| vaddq_s32(a, b)) }
        fn i_sub(a: I, b: I) -> I { each!(int32x4x4_t; |a, b| vsubq_s32(a, b)) }
        fn i_half(a: I) -> I { each!(int32x4x4_t; |a| vshrq_n_s32::<1>(a)) }
        fn i_store(p: *mut i32, x: I) {
            vst1q_s32(p, x.0);
            vst1q_s32(p.add(4), x.1);
            vst1q_s32(p.add(8), x.2);
            vst1q_s32(p.add(12), x.3)
        }
        fn load_f16(p: *const u16) -> F {
            let (low, high) = (vld1q_u16(p), vld1q_u16(p.add(8)));
            let halves = uint16x4x4_t(vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high));
            each!(float32x4x4_t; |halves| vcvt_f32_f16(vreinterpret_f16_u16(halves)))
        }
        fn load_bf16(p: *const u16) -> F {
            // the upper half of an f32: interleaved behind zeros
            let (zero, low, high) = (vdupq_n_u16(0), vld1q_u16(p), vld1q_u16(p.add(8)));
            float32x4x4_t(
                vreinterpretq_f32_u16(vzip1q_u16(zero, low)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, low)),
                vreinterpretq_f32_u16(vzip1q_u16(zero, high)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, high)),
            )
        }
        fn load_i8(p: *const i8) -> F {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Self::from_int(int32x4x4_t(
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ))
        }
        fn store_f16(p: *mut u16, x: F) {
            let x = each!(uint16x4x4_t; |x| vreinterpret_u16_f16(vcvt_f16_f32(x)));
            vst1q_u16(p, vcombine_u16(x.0, x.1));
            vst1q_u16(p.add(8), vcombine_u16(x.2, x.3))
        }
        fn store_i8(p: *mut i8, x: F) {
            let x = Self::to_int(x);
            let low = vmovn_high_s32(vmovn_s32(x.0), x.1);
            let high = vmovn_high_s32(vmovn_s32(x.2), x.3);
            vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high))
        }
        fn tree(a: F) -> f32 {
            let a = quarter(a);
            let a = vadd_f32(vget_low_f32(a), vget_high_f32(a));
            vpadds_f32(a)
        }
        fn top(a: F) -> f32 {
            let a = greater(greater(a.0, a.2), greater(a.1, a.3));
            let (low, high) = (vget_low_f32(a), vget_high_f32(a));
            let a = vbsl_f32(vcgt_f32(low, high), low, high);
            let (x, y) = (vget_lane_f32::<0>(a), vget_lane_f32::<1>(a));
            if x > y { x } else { y }
        }
        fn tree16(rows: &[F; 16]) -> F {
            let four = |i: usize| {
                let low = halves(quarter(rows[i]), quarter(rows[i + 1]));
                vpaddq_f32(low, halves(quarter(rows[i + 2]), quarter(rows[i + 3])))
            };
            float32x4x4_t(four(0), four(4), four(8), four(12))
        }
        fn b_load(p: *const u8) -> B {
            let p = p.cast::<i8>();
            int8x16x4_t(vld1q_s8(p), vld1q_s8(p.add(16)), vld1q_s8(p.add(32)), vld1q_s8(p.add(48)))
        }
        fn b_store(p: *mut u8, x: B) {
            let p = p.cast::<i8>();
            vst1q_s8(p, x.0);
            vst1q_s8(p.add(16), x.1);
            vst1q_s8(p.add(32), x.2);
            vst1q_s8(p.add(48), x.3)
        }
        fn biased(w: B) -> B { w }
        fn table(p: *const i8) -> Self::T {
            let bytes = vld1q_s8(p);
            int16x8x2_t(vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes))
        }
        fn scaled(table: Self::T, m: *const i8) -> B {
            let m = vcreate_s8(u64::from(m.cast::<u32>().read_unaligned()));
            let m = vget_low_s16(vmovl_s8(m));
            macro_rules! lane {
                ($j:literal) => {
                    vqrshrn_high_n_s16::<7>(
                        vqrshrn_n_s16::<7>(vmulq_lane_s16::<$j>(table.0, m)),
                        vmulq_lane_s16::<$j>(table.1, m),
                    )
                };
            }
            int8x16x4_t(lane!(0), lane!(1), lane!(2), lane!(3))
        }
        fn lookup(line: B, tables: B) -> (B, B) {
            let nibble = vdupq_n_u8(15);
            let codes = each!(uint8x16x4_t; |line| vreinterpretq_u8_s8(line));
            (
                each!(int8x16x4_t; |tables, codes| vqtbl1q_s8(tables, vandq_u8(codes, nibble))),
                each!(int8x16x4_t; |tables, codes| vqtbl1q_s8(tables, vshrq_n_u8::<4>(codes))),
            )
        }
        fn scaled8(table: Self::T, m: *const i8) -> B {
            let m = vmovl_s8(vld1_s8(m));
            macro_rules! lane {
                ($even:literal, $odd:literal) => {
                    vqrshrn_high_n_s16::<7>(
                        vqrshrn_n_s16::<7>(vmulq_laneq_s16::<$even>(table.0, m)),
                        vmulq_laneq_s16::<$odd>(table.0, m),
                    )
                };
            }
            int8x16x4_t(lane!(0, 1), lane!(2, 3), lane!(4, 5), lane!(6, 7))
        }
        fn scaled4(table: Self::T, m: *const i8) -> B {
            let m = vmovl_s8(vld1_s8(m));
            let (low, high) = (vget_low_s16(table.0), vget_high_s16(table.0));
            macro_rules! lane {
                ($even:literal, $odd:literal) => {{
                    let even = vmul_laneq_s16::<$even>(low, m);
                    let both = vqrshrn_n_s16::<7>(vcombine_s16(even, vmul_laneq_s16::<$odd>(high, m)));
                    vcombine_s8(both, both)
                }};
            }
            int8x16x4_t(lane!(0, 1), lane!(2, 3), lane!(4, 5), lane!(6, 7))
        }
        fn pick(tables: B, codes: B) -> B {
            each!(int8x16x4_t; |tables, codes| vqtbl1q_s8(tables, vreinterpretq_u8_s8(codes)))
        }
        fn b_splat(x: i8) -> B {
            let x = vdupq_n_s8(x);
            int8x16x4_t(x, x, x, x)
        }
        fn b_or(a: B, b: B) -> B { each!(int8x16x4_t; |a, b| vorrq_s8(a, b)) }
        fn b_add(a: B, x: i8) -> B {
            let x = vdupq_n_s8(x);
            each!(int8x16x4_t; |a| vaddq_s8(a, x))
        }
        fn b_field(a: B, shift: i32, mask: u8) -> B {
            // a shift to the left, by a negative number one to the right
            let (left, mask) = (vdupq_n_s8(-shift as i8), vdupq_n_u8(mask));
            each!(int8x16x4_t; |a| {
                vreinterpretq_s8_u8(vandq_u8(vshlq_u8(vreinterpretq_u8_s8(a), left), mask))
            })
        }
        fn b_ones(p: *const u8) -> B {
            let (a, b) = (vld1q_u8(p), vld1q_u8(p.add(16)));
            let bytes = uint8x16x4_t(a, b, vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b));
            each!(int8x16x4_t; |bytes| vreinterpretq_s8_u8(bytes))
        }
        fn times(w: B, m: *const i8, odd: usize, shift: u32) -> B {
            let right = vdupq_n_s16(-(shift as i16));
            let lane = |w: int8x16_t, j: usize| {
                let m = vdupq_n_s8(*m.add(2 * j + odd));
                let low = vrshlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(m)), right);
                let high = vrshlq_s16(vmull_high_s8(w, m), right);
                vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high))
            };
            int8x16x4_t(lane(w.0, 0), lane(w.1, 1), lane(w.2, 2), lane(w.3, 3))
        }
        fn p_zero() -> Self::P { vdupq_n_s32(0) }
        fn dot(acc: Self::P, w: B, x: B) -> Self::P {
            L::row(L::row(L::row(L::row(acc, w.0, x.0), w.1, x.1), w.2, x.2), w.3, x.3)
        }
        fn fold4(p: &[Self::P; 4]) -> Self::P { vpaddq_s32(vpaddq_s32(p[0], p[1]), vpaddq_s32(p[2], p[3])) }
        fn fold16(p: &[Self::P; 4]) -> I { int32x4x4_t(p[0], p[1], p[2], p[3]) }
        fn dot4(acc: I, w: B, x: i32) -> I {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            each!(int32x4x4_t; |acc, w| L::quads(acc, w, x))
        }
        fn transpose(from: *const u8, to: *mut u8) {
            for row in (0..16).step_by(4) {
                for group in (0..16).step_by(4) {
                    let columns = four_by_four(from.add(row * 64 + group * 4), 64);
                    for i in 0..4 {
                        vst1q_u64(to.add((group + i) * 64 + row * 4).cast(), columns[i]);
                    }
                }
            }
        }
        fn gather4(from: *const u8, to: *mut u8) {
            for row in (0..16).step_by(4) {
                let rows = four_by_four(from.add(row * 4), 64);
                for i in 0..4 {
                    vst1q_u64(to.add((row + i) * 16).cast(), rows[i]);
                }
            }
        }
        fn panel_part(from: *const u8, to: *mut u8) { L::panel_part(from, to) }
        fn prefetch(p: *const u8) {
            core::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly))
        }
        fn prefetch_far(p: *const u8) {
            core::arch::asm!("prfm pldl2keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly))
        }
        fn turned_tiles(a: &turned::Tiles) { L::turned_tiles(a) }
        fn float_tiles(a: &float::FloatBlock) {
            match a.kind {
                float::FloatKind::F32 => float::tiles::<Self, 2, 2, 4>(a),
                _ => float::halves::<Self, 4>(a),
            }
        }
    }
}
