//! Products of operands rounded to bf16, as training asks for them: on matrix tiles, and by pairs where the processor
//! multiplies those.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use common::{Random, bf16, same, tile_sum, tiles};
use llm_emulator::executed;
use llm_kernels::Isa;
use llm_kernels::dense::gemm::View;
use llm_kernels::dense::{Dense, Heads};

/// A sum of products that begins with a value.
type Sum = fn(&[f32], &[f32], f32) -> f32;

/// The instruction sets whose products round, and their sums.
fn units() -> Vec<(Isa, Sum)> {
    let pairs = is_x86_feature_detected!("avx512bf16");
    println!("bf16 by pairs: {pairs}");
    let mut all = vec![(Isa::Amx, tile_sum as Sum)];
    all.extend(pairs.then_some((Isa::Avx512, pair_sum as Sum)));
    all
}

/// Pairs ascending, of a pair the odd input first.
fn pair_sum(w: &[f32], x: &[f32], start: f32) -> f32 {
    let pairs = w.chunks(2).zip(x.chunks(2));
    let terms = pairs.flat_map(|(w, x)| w.iter().zip(x).rev());
    terms.fold(start, |sum, (w, x)| bf16(*w).mul_add(bf16(*x), sum))
}

/// `[rows, cols]` of a function.
fn matrix(rows: usize, cols: usize, of: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..rows * cols).map(|i| of(i / cols, i % cols)).collect()
}

#[test]
fn the_three_products_of_training_at_bf16_are_the_units_on_odd_shapes_and_any_number_of_threads() {
    let Some(_turn) = tiles() else { return };
    let mut r = Random(6);
    for (isa, sum) in units() {
        // whole and part panels, several pieces, runs of sixteen steps and bands
        for shape in [
            (1, 1, 1),
            (33, 65, 31),
            (64, 32, 96),
            (70, 300, 40),
            (300, 50, 1030),
            (40, 600, 70),
            (33, 4130, 33),
            (40, 33, 2100),
        ] {
            compare(isa, sum, shape, &mut r);
        }
    }
}

/// The products of a linear layer of `m` rows from `k` to `n` with the sums they should be.
fn compare(isa: Isa, sum: Sum, (m, n, k): (usize, usize, usize), r: &mut Random) {
    let (x, w, dy) = (r.values(m * k), r.values(n * k), r.values(m * n));
    let (bias, residual, before) = (r.values(n), r.values(m * n), r.values(n * k));
    let column = |of: &[f32], width: usize, j: usize| -> Vec<f32> {
        of.chunks_exact(width).map(|row| row[j]).collect()
    };
    let y = |start: &dyn Fn(usize, usize) -> f32| {
        matrix(m, n, |i, j| sum(&x[i * k..][..k], &w[j * k..][..k], start(i, j)))
    };
    let dx = matrix(m, k, |i, j| sum(&dy[i * n..][..n], &column(&w, k, j), 0.0));
    let dw = matrix(n, k, |i, j| sum(&column(&dy, n, i), &column(&x, k, j), before[i * k + j]));
    for threads in [1, 2, 3] {
        let mut dense = Dense::with_isa(threads, isa).expect("available");
        dense.set_rounding(true);
        let shape = (m, n, k);
        let what = format!("{} {shape:?}, {threads} threads", isa.name());
        let mut out = vec![9.0; m * n];
        dense.linear(&x, &w, None, None, &mut out, shape);
        same(&y(&|_, _| 0.0), &out, &what);
        dense.linear(&x, &w, Some(&bias), Some(&residual), &mut out, shape);
        same(&y(&|i, j| residual[i * n + j] + bias[j]), &out, &format!("{what}, bias and residual"));
        dense.linear(&x, &w, Some(&bias), None, &mut out, shape);
        same(&y(&|_, j| bias[j]), &out, &format!("{what}, bias"));
        let mut out = vec![9.0; m * k];
        dense.linear_dx(&dy, &w, &mut out, shape, false);
        same(&dx, &out, &format!("{what}, dx"));
        let mut out = before.clone();
        dense.linear_dw(&dy, &x, &mut out, shape);
        same(&dw, &out, &format!("{what}, dw"));
        // every other row of x, into part of wider rows
        let (half, stride) = (m.div_ceil(2), n + 5);
        let mut out = r.values(half * stride);
        let expected = matrix(half, stride, |i, j| match out[i * stride + j] {
            start if j < n => sum(&x[2 * i * k..][..k], &w[j * k..][..k], start),
            beside => beside,
        });
        let every_other = View::new(&x, half, k, 2 * k);
        dense.product(every_other, View::new(&w, n, k, k).t(), &mut out, stride, true);
        same(&expected, &out, &format!("{what}, strided"));
    }
}

#[test]
fn training_in_f32_rounds_nothing() {
    let Some(_turn) = tiles() else { return };
    let mut r = Random(7);
    let (x, w) = (r.values(40 * 50), r.values(30 * 50));
    let product = |isa| {
        let mut out = vec![0.0; 40 * 30];
        Dense::with_isa(2, isa).expect("installed").linear(&x, &w, None, None, &mut out, (40, 30, 50));
        out
    };
    let before = executed();
    same(&product(Isa::Avx512), &product(Isa::Amx), "f32");
    assert_eq!(before, executed());
}

/// Two sequences of four query heads over two key heads, as near to f32 as bf16 operands allow.
#[test]
fn attention_and_its_gradient_at_bf16_are_near_those_in_f32() {
    let Some(_turn) = tiles() else { return };
    let mut r = Random(8);
    for (dim, value_dim, length, window) in [(16, 16, 70, 0), (24, 8, 130, 0), (32, 32, 100, 40)] {
        let heads = Heads { value_dim, window, ..Heads::new(4, 2, dim, length) };
        let rows = 2 * length;
        let stride = 4 * dim + 2 * (dim + value_dim);
        // of one precision already: operands that need no rounding leave that of scores and probabilities
        let qkv: Vec<f32> = r.values(rows * stride).into_iter().map(bf16).collect();
        let dout: Vec<f32> = r.values(rows * 4 * value_dim).into_iter().map(bf16).collect();
        let pass = |isa, threads, rounding| {
            let mut dense = Dense::with_isa(threads, isa).expect("available");
            dense.set_rounding(rounding);
            let mut out = vec![0.0; rows * 4 * value_dim];
            let (mut lse, mut dqkv) = (vec![0.0; rows * 4], vec![0.0; qkv.len()]);
            dense.attention(&heads, &qkv, &mut out, &mut lse);
            dense.attention_back(&heads, &qkv, &out, &lse, &dout, &mut dqkv);
            [out, lse, dqkv]
        };
        for (isa, _) in units() {
            let (fast, exact) = (pass(isa, 2, true), pass(isa, 2, false));
            for ((fast, again), exact) in fast.iter().zip(pass(isa, 1, true)).zip(&exact) {
                same(fast, &again, "one thread and two");
                let size = exact.iter().fold(0f32, |m, x| m.max(x.abs()));
                let far = fast.iter().zip(exact).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(far > 0.0 && far < 0.01 * size, "{far} of {size}, heads of {dim}, {isa:?}");
            }
        }
    }
}
