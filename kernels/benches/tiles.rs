//! What the tile unit can do at most: products alone, and products of which each pair of operands is loaded from the
//! nearest cache, as a 32 × 32 product loads them. Measures nothing on a machine without the unit.

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // single instructions
mod native {
    use core::arch::asm;
    use criterion::{Criterion, Throughput};
    use llm_kernels::Isa;

    #[repr(align(64))]
    struct Aligned<T>(T);

    /// Products of one call.
    const PRODUCTS: u64 = 4 * 256;
    /// Multiplications and additions of one.
    const OPERATIONS: u64 = 2 * 16 * 16 * 64;

    /// Eight tiles of 16 × 64 while `f` runs, which may use tile instructions.
    fn configured(f: impl FnOnce()) {
        let mut config = Aligned([0u8; 64]);
        config.0[0] = 1;
        for t in 0..8 {
            config.0[16 + 2 * t] = 64;
            config.0[48 + t] = 16;
        }
        // SAFETY: the caller of `tiles` saw that the unit is there; the configuration is valid
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config.0) };
        f();
        // SAFETY: as above
        unsafe { asm!("tilerelease") };
    }

    fn products() {
        for _ in 0..PRODUCTS / 4 {
            // SAFETY: tiles are configured
            unsafe {
                asm!(
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tdpbssd tmm1, tmm5, tmm6",
                    "tdpbssd tmm2, tmm4, tmm7",
                    "tdpbssd tmm3, tmm5, tmm7",
                    options(nostack, nomem)
                );
            }
        }
    }

    fn with_loads(operands: &[u8; 16384]) {
        for i in 0..PRODUCTS as usize / 4 {
            let p = operands[i % 4 * 4096..].as_ptr();
            // SAFETY: tiles are configured; 4096 bytes lie at `p`
            unsafe {
                asm!(
                    "tileloadd tmm4, [{p} + {s}*1]",
                    "tileloadd tmm6, [{p} + {s}*1 + 1024]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{p} + {s}*1 + 2048]",
                    "tdpbssd tmm1, tmm5, tmm6",
                    "tileloadd tmm7, [{p} + {s}*1 + 3072]",
                    "tdpbssd tmm2, tmm4, tmm7",
                    "tdpbssd tmm3, tmm5, tmm7",
                    p = in(reg) p, s = in(reg) 64usize, options(nostack, readonly)
                );
            }
        }
    }

    pub fn tiles(c: &mut Criterion) {
        if !Isa::Amx.is_available() {
            println!("no AMX on this machine: nothing measured");
            return;
        }
        let operands = Aligned([1u8; 16384]);
        let mut group = c.benchmark_group("tiles, operations of one thread");
        group.throughput(Throughput::Elements(PRODUCTS * OPERATIONS));
        configured(|| {
            group.bench_function("products", |b| b.iter(products));
            group.bench_function("products with loads", |b| b.iter(|| with_loads(&operands.0)));
        });
        group.finish();
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod native {
    pub fn tiles(_: &mut criterion::Criterion) {
        println!("no AMX on this machine: nothing measured");
    }
}

criterion::criterion_group!(benches, native::tiles);
criterion::criterion_main!(benches);
