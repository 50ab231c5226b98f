//! Prints the rate of the dense product in its three forms at the shapes of a small model, best of five.

use llm_kernels::Isa;
use llm_kernels::dense::{Dense, Heads};
use std::time::Instant;

fn best(mut f: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..6)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[0]
}

fn main() {
    for threads in [1, 2] {
        for isa in [Isa::Avx2, Isa::Avx512] {
            let Some(mut dense) = Dense::with_isa(threads, isa) else { continue };
            for (m, n, k) in [
                (3072, 1152, 384),
                (3072, 384, 384),
                (3072, 1536, 384),
                (3072, 384, 1536),
                (1024, 1024, 1024),
            ] {
                let (x, w) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
                let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
                let flops = 2.0 * (m * n * k) as f64 / 1e9;
                let a = flops / best(|| dense.linear(&x, &w, None, None, &mut y, (m, n, k)));
                let b = flops / best(|| dense.linear_dx(&y, &w, &mut dx, (m, n, k), false));
                let c = flops / best(|| dense.linear_dw(&y, &x, &mut dw, (m, n, k)));
                println!("{isa:?} {threads} threads [{m}, {n}, {k}]: y {a:.0}  dx {b:.0}  dw {c:.0} GFLOP/s");
            }
            let h = Heads { heads: 6, kv_heads: 6, dim: 64, length: 256, scale: 0.125, dropout: 0.0, key: 0 };
            let rows = 12 * 256;
            let (qkv, mut out, mut lse) =
                (vec![0.1f32; rows * 1152], vec![0.0; rows * 384], vec![0.0; rows * 6]);
            let mut dqkv = vec![0.0; rows * 1152];
            let forward = best(|| dense.attention(&h, &qkv, &mut out, &mut lse));
            let dout = out.clone();
            let back = best(|| dense.attention_back(&h, &qkv, &out, &lse, &dout, &mut dqkv));
            println!(
                "{isa:?} {threads} threads attention 12×6×256×64: {:.2} ms, back {:.2} ms",
                forward * 1e3,
                back * 1e3
            );
            let mut big = vec![0.1f32; rows * 1536];
            let input = big.clone();
            let gelu = best(|| dense.gelu(&input, &mut big));
            println!("{isa:?} {threads} threads gelu of 4.7 M: {:.2} ms", gelu * 1e3);
        }
    }
}
