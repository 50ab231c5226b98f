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
    use crate::{Attention, Cpu, Input, Isa, KeyType, KvLayout, Level, Matrix, Row, Type, ValueType};
    use llm_format::quant::encode;
    use proptest::prelude::*;
    use std::sync::LazyLock;

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

    /// [`OPS`] with that encoding.
    static TWIN: Ops = Ops {
        q8: evex::OPS.q8,
        q6: evex::OPS.q6,
        q5: evex::OPS.q5,
        q4: evex::OPS.q4,
        q3: evex::OPS.q3,
        q2: evex::OPS.q2,
        pack: evex::OPS.pack,
        keys: evex::OPS.keys,
        ..crate::x86_64::avx2::OPS
    };

    /// Values in −1..1; a small generator, so that a failure repeats.
    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut seed = seed;
        let value = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(value).collect()
    }

    /// Plain Rust, and these kernels in each encoding that the machine has; none, told as not run, without either.
    static CPUS: LazyLock<(Cpu, Vec<Cpu>)> = LazyLock::new(|| {
        let vex = Cpu::with_isa(2, Isa::AvxVnni);
        let evex = crate::x86_64::avx512::available().then(|| Cpu::with_ops(2, &TWIN)).flatten();
        if vex.is_none() && evex.is_none() {
            llm_testdata::not_run("AVX-VNNI's kernels: this machine has neither AVX-VNNI nor AVX-512 VNNI");
        }
        (Cpu::with_isa(1, Isa::Scalar).expect("any machine"), vex.into_iter().chain(evex).collect())
    });

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    /// `[rows, cols]` times `m` vectors, in every type.
    fn check(rows: usize, cols: usize, m: usize, seed: u32) {
        let (scalar, wide) = &*CPUS;
        for ty in [Type::Q8, Type::Q6, Type::Q5, Type::Q4, Type::Q3, Type::Q2, Type::F16] {
            let data = encode(ty, &values(rows * cols, seed), rows, cols);
            let w = Matrix::new(ty, rows, cols, &data).expect("whole");
            let (x, bias) = (values(m * cols, seed + 1), values(rows, seed + 2));
            let product = |cpu: &Cpu| {
                let mut input = Input::new();
                input.load(cpu, &x, m, cols);
                let mut out = vec![0f32; m * rows];
                cpu.matmul(w, &mut input, Some(&bias), &mut out);
                bits(&out)
            };
            let expected = product(scalar);
            for (i, cpu) in wide.iter().enumerate() {
                assert_eq!(expected, product(cpu), "{ty} [{rows}, {cols}] x {m}, {i}");
            }
        }
    }

    #[test]
    fn products_in_registers_of_32_bytes_equal_the_scalar_ones() {
        // every number of lanes that a pack can have, and of vectors behind whole packs
        let small = (1..=20).map(|m| (34, 140, m));
        let shapes = small.chain([(70, 400, 1), (33, 640, 2), (70, 300, 3), (65, 520, 37), (300, 384, 70)]);
        for (rows, cols, m) in shapes {
            check(rows, cols, m, 1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn products_of_odd_shapes_equal_the_scalar_ones(
            rows in 1usize..140, cols in 1usize..900, m in 1usize..70, seed in 0u32..1000,
        ) {
            check(rows, cols, m, seed);
        }
    }

    #[test]
    fn attention_over_int8_keys_in_registers_of_32_bytes_equals_the_scalar_one() {
        let (scalar, wide) = &*CPUS;
        let (tokens, kv_heads) = (150usize, 2);
        for (page_tokens, key_dim, group) in [(16, 40, 1), (32, 64, 3), (64, 129, 4), (16, 8, 7)] {
            let layout = KvLayout {
                key: KeyType::I8,
                value: ValueType::F16,
                page_tokens,
                kv_heads,
                key_dim,
                value_dim: 24,
                latent: false,
            };
            let heads = kv_heads * group;
            let table: Vec<u32> = (0..tokens.div_ceil(page_tokens) as u32).rev().collect();
            let rows: Vec<Row> = (0..tokens as u32).map(|position| Row { table: &table, position }).collect();
            let k = values(tokens * kv_heads * key_dim, 4);
            let v = values(tokens * kv_heads * 24, 5);
            let q = values(tokens * heads * key_dim, 6);
            for asked in [1, 2, 5, tokens] {
                let last = tokens - asked;
                let run = |cpu: &Cpu| {
                    let stride = layout.page_bytes();
                    let mut pool = vec![0u8; table.len() * stride];
                    cpu.kv_write(&layout, &mut pool, stride, 0, &rows, &k, &v);
                    let a = Attention {
                        layout,
                        pool: &pool,
                        stride,
                        offset: 0,
                        q: &q[last * heads * key_dim..],
                        heads,
                        rows: &rows[last..],
                        scale: 0.2,
                        window: None,
                        softcap: None,
                        alibi: &[],
                        sinks: &[],
                        level: Level::BatchInvariant,
                    };
                    let mut out = vec![0f32; asked * heads * 24];
                    cpu.attention(&a, &mut out);
                    bits(&out)
                };
                let expected = run(scalar);
                for (i, cpu) in wide.iter().enumerate() {
                    assert_eq!(expected, run(cpu), "{layout:?}, {heads} heads, {asked} rows, {i}");
                }
            }
        }
    }
}
