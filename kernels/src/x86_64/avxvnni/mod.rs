//! AVX-VNNI: AVX2 with `vpdpbusd` in registers of 32 bytes, for machines without AVX-512.
//!
//! Weights are biased by 128 to be unsigned, as in `avx512`; all else is `avx2`'s, down to the functions.

use super::avx2::{Multiply, Wide};
use crate::ops::Ops;
use core::arch::x86_64::*;

/// Multiplies with the VEX form of `vpdpbusd`.
#[derive(Clone, Copy)]
pub struct Vex;

/// Whether the machine and its system have it.
pub fn available() -> bool {
    is_x86_feature_detected!("avxvnni") && super::avx2::available()
}

// SAFETY: `vpdpbusd` adds exact products.
unsafe impl Multiply for Vex {
    const BIAS: i32 = 128;
    #[inline(always)]
    unsafe fn rows(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller has the instruction
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn lanes(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: passed on
        unsafe { Self::rows(acc, w, x) }
    }
}

crate::ops::products!(Wide<Vex>, "avxvnni,avx2,fma,f16c");

/// AVX2's, with products of its own.
pub static OPS: Ops = Ops {
    q8: products::q8,
    q6: products::q6,
    q5: products::q5,
    q4: products::q4,
    q3: products::q3,
    q2: products::q2,
    pack: Some(products::pack),
    keys: products::keys,
    ..super::avx2::OPS
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Input, Isa, Matrix, Type};
    use llm_format::quant::encode;

    /// The same instruction in the encoding of AVX-512 VL, which more machines have.
    #[derive(Clone, Copy)]
    struct Evex;

    // SAFETY: as `Vex`
    unsafe impl Multiply for Evex {
        const BIAS: i32 = 128;
        #[inline(always)]
        unsafe fn rows(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // SAFETY: the caller has the instruction
            unsafe { _mm256_dpbusd_epi32(acc, w, x) }
        }
        #[inline(always)]
        unsafe fn lanes(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // SAFETY: passed on
            unsafe { Self::rows(acc, w, x) }
        }
    }

    mod evex {
        use super::{Evex, Wide};
        crate::ops::table!(Wide<Evex>, "avx512vnni,avx512vl,avx512f,avx2,fma,f16c");
    }

    #[test]
    fn products_in_registers_of_32_bytes_equal_the_scalar_ones() {
        if !crate::x86_64::avx512::available() {
            println!("not run: this machine has no AVX-512 VNNI");
            return;
        }
        let mut seed = 1u32;
        let mut value = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for ty in [Type::Q8, Type::Q6, Type::Q5, Type::Q4, Type::Q3, Type::Q2, Type::F16] {
            for (rows, cols, m) in [(70, 400, 1), (33, 640, 2), (70, 300, 3), (40, 256, 7), (65, 520, 37)] {
                let data = encode(ty, &(0..rows * cols).map(|_| value()).collect::<Vec<_>>(), rows, cols);
                let w = Matrix::new(ty, rows, cols, &data).expect("whole");
                let x: Vec<f32> = (0..m * cols).map(|_| value()).collect();
                let product = |cpu: &Cpu| {
                    let mut input = Input::new();
                    input.load(cpu, &x, m, cols);
                    let mut out = vec![0f32; m * rows];
                    cpu.matmul(w, &mut input, None, &mut out);
                    out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                };
                let scalar = product(&Cpu::with_isa(1, Isa::Scalar).expect("any machine"));
                let wide = product(&Cpu::with_ops(2, &evex::OPS).expect("any machine"));
                assert_eq!(scalar, wide, "{ty} [{rows}, {cols}] x {m}");
            }
        }
    }
}
