//! The scalar instruction set: sixteen lanes as an array, plain Rust, any machine. What every other must equal.

use crate::generic::{float, panel};
use crate::math;
use crate::simd::Simd;
use half::{bf16, f16};

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Scalar;

/// Wraps bodies of trait methods: `unsafe` by the trait's contract. Those marked `call` are functions, the others are
/// inlined into their kernel: a kernel holds each many times, and sixteen or sixty-four lanes of plain Rust are longer
/// than a call with their addresses. (What takes the time here is the multiply-add of a machine that has none.)
macro_rules! lanes {
    ($($how:ident fn $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? $body:block)*) => {
        $(lanes!(@ $how fn $name($($a: $t),*) $(-> $r)? $body);)*
    };
    (@ inline fn $($rest:tt)*) => { lanes!(@ #[inline(always)] $($rest)*); };
    (@ call fn $($rest:tt)*) => { lanes!(@ #[inline(never)] $($rest)*); };
    (@ #[$m:meta] $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? $body:block) => {
        #[$m]
        #[allow(unused_unsafe)] // some bodies touch no pointer
        unsafe fn $name($($a: $t),*) $(-> $r)? {
            // SAFETY: pointers are valid as the trait demands of its caller
            unsafe { $body }
        }
    };
}

#[inline(always)]
fn map(a: [f32; 16], f: impl Fn(f32) -> f32) -> [f32; 16] {
    core::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    core::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY: this is the definition the others are held against.
unsafe impl Simd for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [i8; 64];
    type P = [i32; 4];
    type T = [i8; 16];
    const BIAS: i32 = 0;
    const PACKS: bool = true;
    const ACCUMULATORS: usize = 1;
    const WIDEN: usize = 1;

    #[inline(never)]
    unsafe fn exps_down<const N: usize>(x: [Self::F; N]) -> [Self::F; N] {
        x.map(|x| map(x, math::exp))
    }
    #[inline(never)]
    unsafe fn tanhs<const N: usize>(x: [Self::F; N]) -> [Self::F; N] {
        x.map(|x| map(x, math::tanh))
    }

    lanes! {
        call fn splat(x: f32) -> Self::F { [x; 16] }
        call fn load(p: *const f32) -> Self::F { p.cast::<[f32; 16]>().read_unaligned() }
        call fn store(p: *mut f32, x: Self::F) { p.cast::<[f32; 16]>().write_unaligned(x) }
        call fn add(a: Self::F, b: Self::F) -> Self::F { zip(a, b, |a, b| a + b) }
        call fn sub(a: Self::F, b: Self::F) -> Self::F { zip(a, b, |a, b| a - b) }
        call fn mul(a: Self::F, b: Self::F) -> Self::F { zip(a, b, |a, b| a * b) }
        call fn div(a: Self::F, b: Self::F) -> Self::F { zip(a, b, |a, b| a / b) }
        call fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
            core::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        }
        call fn max(a: Self::F, b: Self::F) -> Self::F { zip(a, b, |a, b| if a > b { a } else { b }) }
        call fn min(a: Self::F, b: Self::F) -> Self::F { zip(a, b, |a, b| if a < b { a } else { b }) }
        call fn abs(a: Self::F) -> Self::F { map(a, f32::abs) }
        call fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F { zip(magnitude, sign, f32::copysign) }
        call fn round(a: Self::F) -> Self::F { map(a, f32::round_ties_even) }
        call fn if_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
            core::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
        }
        call fn to_int(a: Self::F) -> Self::I { core::array::from_fn(|i| a[i] as i32) }
        call fn from_int(a: Self::I) -> Self::F { core::array::from_fn(|i| a[i] as f32) }
        call fn pow2(a: Self::I) -> Self::F {
            core::array::from_fn(|i| f32::from_bits((a[i].wrapping_add(127) as u32) << 23))
        }
        call fn i_splat(x: i32) -> Self::I { [x; 16] }
        call fn i_add(a: Self::I, b: Self::I) -> Self::I { core::array::from_fn(|i| a[i].wrapping_add(b[i])) }
        call fn i_sub(a: Self::I, b: Self::I) -> Self::I { core::array::from_fn(|i| a[i].wrapping_sub(b[i])) }
        call fn i_half(a: Self::I) -> Self::I { core::array::from_fn(|i| a[i] >> 1) }
        call fn i_store(p: *mut i32, x: Self::I) { p.cast::<[i32; 16]>().write_unaligned(x) }
        call fn load_f16(p: *const u16) -> Self::F {
            let bits = p.cast::<[u16; 16]>().read_unaligned();
            core::array::from_fn(|i| f16::from_bits(bits[i]).to_f32())
        }
        call fn load_bf16(p: *const u16) -> Self::F {
            let bits = p.cast::<[u16; 16]>().read_unaligned();
            core::array::from_fn(|i| bf16::from_bits(bits[i]).to_f32())
        }
        call fn load_i8(p: *const i8) -> Self::F {
            let v = p.cast::<[i8; 16]>().read_unaligned();
            core::array::from_fn(|i| v[i] as f32)
        }
        call fn store_f16(p: *mut u16, x: Self::F) {
            let bits: [u16; 16] = core::array::from_fn(|i| f16::from_f32(x[i]).to_bits());
            p.cast::<[u16; 16]>().write_unaligned(bits)
        }
        call fn store_i8(p: *mut i8, x: Self::F) {
            let v: [i8; 16] = core::array::from_fn(|i| x[i] as i8);
            p.cast::<[i8; 16]>().write_unaligned(v)
        }
        call fn erf(x: Self::F) -> Self::F { map(x, math::erf) }
        call fn tree(a: Self::F) -> f32 {
            let mut a = a;
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    a[i] += a[i + half];
                }
            }
            a[0]
        }
        call fn b_load(p: *const u8) -> Self::B { p.cast::<[i8; 64]>().read_unaligned() }
        call fn b_store(p: *mut u8, x: Self::B) { p.cast::<[i8; 64]>().write_unaligned(x) }
        inline fn biased(w: Self::B) -> Self::B { w }
        call fn table(p: *const i8) -> Self::T { p.cast::<[i8; 16]>().read_unaligned() }
        call fn scaled(table: Self::T, m: *const i8) -> Self::B {
            let m = m.cast::<[i8; 4]>().read_unaligned();
            core::array::from_fn(|i| ((table[i % 16] as i32 * m[i / 16] as i32 + 64) >> 7).min(127) as i8)
        }
        call fn lookup(line: Self::B, tables: Self::B) -> (Self::B, Self::B) {
            (
                core::array::from_fn(|i| tables[i / 16 * 16 + (line[i] & 15) as usize]),
                core::array::from_fn(|i| tables[i / 16 * 16 + (line[i] as u8 >> 4) as usize]),
            )
        }
        call fn p_zero() -> Self::P { [0; 4] }
        call fn dot(acc: Self::P, w: Self::B, x: Self::B) -> Self::P {
            [acc[0] + (0..64).map(|i| w[i] as i32 * x[i] as i32).sum::<i32>(), 0, 0, 0]
        }
        call fn fold4(p: &[Self::P; 4]) -> Self::P { core::array::from_fn(|i| p[i][0]) }
        call fn fold16(p: &[Self::P; 4]) -> Self::I { core::array::from_fn(|i| p[i / 4][i % 4]) }
        call fn dot4(acc: Self::I, w: Self::B, x: i32) -> Self::I {
            let x = x.to_le_bytes();
            core::array::from_fn(|r| acc[r] + (0..4).map(|c| w[4 * r + c] as i32 * x[c] as i8 as i32).sum::<i32>())
        }
        call fn i_load(p: *const i32) -> Self::I { p.cast::<[i32; 16]>().read_unaligned() }
        inline fn prefetch(_p: *const u8) {}
        inline fn prefetch_far(_p: *const u8) {}
        inline fn tiles(a: &panel::Tiles) { panel::tiles::<Self, 1, 4, 4>(a) }
        inline fn float_tiles(a: &float::FloatBlock) { float::tiles::<Self, 2, 2, 2>(a) }
    }
}

crate::ops::table!(Scalar);
