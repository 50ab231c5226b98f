//! exp, tanh, erf on sixteen lanes: the same sequences of IEEE operations as `crate::math`, lane by lane. They are called
//! through [`Simd`], since the scalar instruction set takes that module's instead.

use crate::math::{ERF_BIG, ERF_SMALL, EXP, EXP_HIGH, EXP_LOW, LN2_HIGH, LN2_LOW, ROUND, TANH};
use crate::simd::Simd;

#[inline(always)]
unsafe fn horner<S: Simd, const N: usize>(coefficients: &[f32; N], x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe {
        let mut acc = S::splat(coefficients[N - 1]);
        let mut i = N - 1;
        while i > 0 {
            i -= 1;
            acc = S::fma(acc, x, S::splat(coefficients[i]));
        }
        acc
    }
}

/// e^x. See [`crate::math::exp`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe { exps::<S, 1>([x])[0] }
}

/// e^x of several registers, step by step side by side: one after the other they would wait for themselves.
#[inline(always)]
pub unsafe fn exps<S: Simd, const N: usize>(x: [S::F; N]) -> [S::F; N] {
    // SAFETY: arithmetic only; the machine has S
    unsafe {
        let mut x = x;
        for i in 0..N {
            x[i] = S::min(S::splat(EXP_HIGH), x[i]);
        }
        S::exps_down(x)
    }
}

/// The same for x that are not above [`EXP_HIGH`].
#[inline(always)]
pub unsafe fn exps_down<S: Simd, const N: usize>(x: [S::F; N]) -> [S::F; N] {
    // SAFETY: arithmetic only; the machine has S
    unsafe {
        let (mut r, mut n, mut p) = (x, x, x);
        for i in 0..N {
            let x = S::max(S::splat(EXP_LOW), x[i]);
            n[i] = S::sub(S::fma(x, S::splat(core::f32::consts::LOG2_E), S::splat(ROUND)), S::splat(ROUND));
            r[i] = S::fma(n[i], S::splat(-LN2_HIGH), x);
            r[i] = S::fma(n[i], S::splat(-LN2_LOW), r[i]);
            p[i] = S::splat(EXP[EXP.len() - 1]);
        }
        let mut k = EXP.len() - 1;
        while k > 0 {
            k -= 1;
            for i in 0..N {
                p[i] = S::fma(p[i], r[i], S::splat(EXP[k]));
            }
        }
        for i in 0..N {
            p[i] = S::scale2(p[i], n[i]);
        }
        p
    }
}

/// tanh x. See [`crate::math::tanh`].
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe { S::tanhs([x])[0] }
}

/// tanh of several registers, side by side.
#[inline(always)]
pub unsafe fn tanhs<S: Simd, const N: usize>(x: [S::F; N]) -> [S::F; N] {
    // SAFETY: arithmetic only; the machine has S
    unsafe {
        let mut e = x;
        for i in 0..N {
            let a = S::abs(x[i]);
            e[i] = S::add(a, a);
        }
        let mut e = exps::<S, N>(e);
        for i in 0..N {
            let (a, s) = (S::abs(x[i]), S::mul(x[i], x[i]));
            let small = S::fma(S::mul(x[i], s), horner::<S, _>(&TANH, s), x[i]);
            let big = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e[i], S::splat(1.0))));
            e[i] = S::if_less(a, S::splat(0.625), small, S::copysign(big, x[i]));
        }
        e
    }
}

/// erf x. See [`crate::math::erf`].
#[inline(always)]
pub unsafe fn erf<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe {
        let a = S::min(S::splat(4.0), S::abs(x));
        let s = S::mul(x, x);
        let small = S::fma(x, horner::<S, _>(&ERF_SMALL, s), x);
        let big = S::sub(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), horner::<S, _>(&ERF_BIG, a))));
        S::if_less(a, S::splat(0.9), small, S::copysign(big, x))
    }
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe { S::div(S::splat(1.0), one_plus_exp_minus::<S>(x)) }
}

/// x / (1 + e^−x).
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe { S::div(x, one_plus_exp_minus::<S>(x)) }
}

#[inline(always)]
unsafe fn one_plus_exp_minus<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe { S::add(S::splat(1.0), exp::<S>(S::mul(S::splat(-1.0), x))) }
}

/// x/2 · (1 + erf(x/√2)).
#[inline(always)]
pub unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe {
        let e = S::erf(S::mul(x, S::splat(core::f32::consts::FRAC_1_SQRT_2)));
        S::mul(S::mul(x, S::splat(0.5)), S::add(S::splat(1.0), e))
    }
}

/// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
#[inline(always)]
pub unsafe fn gelu_tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic only; the machine has S
    unsafe {
        let cubic = S::fma(S::mul(S::mul(x, x), x), S::splat(0.044715), x);
        let t = tanh::<S>(S::mul(cubic, S::splat(crate::math::SQRT_2_OVER_PI)));
        S::mul(S::mul(x, S::splat(0.5)), S::add(S::splat(1.0), t))
    }
}
