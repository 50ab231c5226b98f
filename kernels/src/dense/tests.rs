//! Every product against a slow twin; every instruction set and thread count against each other, bit by bit.

use super::gemm::{KC, View};
use super::*;
use proptest::prelude::*;

/// Deterministic values in −1..1.
pub(super) fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n).map(|i| math::hash(7, seed, i as u32) as f32 / 2_147_483_648.0 - 1.0).collect()
}

fn sets() -> Vec<Isa> {
    crate::detect::available()
}

/// The product by its definition, in the order that [`gemm`] promises.
fn twin(
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    c: &mut [f32],
    mnk: [usize; 3],
    add: bool,
) {
    let [m, n, k] = mnk;
    for i in 0..m {
        for j in 0..n {
            let mut total = if add { Some(c[i * n + j]) } else { None };
            for k0 in (0..k).step_by(KC) {
                let block = (k0..k.min(k0 + KC)).fold(0.0f32, |s, k| a(i, k).mul_add(b(k, j), s));
                total = Some(total.map_or(block, |t| t + block));
            }
            c[i * n + j] = total.unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn products_equal_the_slow_twin_on_odd_shapes_bit_for_bit(m in 1usize..40, n in 1usize..70, k in 1usize..40, deep in 0usize..2) {
        let k = k + deep * KC;
        let (x, w, dy) = (values(m * k, 1), values(n * k, 2), values(m * n, 3));
        let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], values(n * k, 4));
        twin(|i, q| x[i * k + q], |q, j| w[j * k + q], &mut y, [m, n, k], false);
        twin(|i, q| dy[i * n + q], |q, j| w[q * k + j], &mut dx, [m, k, n], false);
        twin(|i, q| dy[q * n + i], |q, j| x[q * k + j], &mut dw, [n, k, m], true);
        for isa in sets() {
            let mut dense = Dense::with_isa(2, isa).unwrap();
            let (mut y2, mut dx2, mut dw2) = (vec![9.0; m * n], vec![9.0; m * k], values(n * k, 4));
            dense.linear(&x, &w, None, None, &mut y2, (m, n, k));
            dense.linear_dx(&dy, &w, &mut dx2, (m, n, k), false);
            dense.linear_dw(&dy, &x, &mut dw2, (m, n, k));
            prop_assert!(y == y2 && dx == dx2 && dw == dw2, "{isa:?}");
            let (bias, residual) = (values(n, 5), values(m * n, 6));
            for (bias, residual) in [(Some(&bias), None), (None, Some(&residual)), (Some(&bias), Some(&residual))] {
                let start = |i: usize| match (residual, bias) {
                    (Some(r), Some(b)) => r[i] + b[i % n],
                    (Some(r), None) => r[i],
                    (None, b) => b.map_or(0.0, |b| b[i % n]),
                };
                let mut expected: Vec<f32> = (0..m * n).map(start).collect();
                twin(|i, q| x[i * k + q], |q, j| w[j * k + q], &mut expected, [m, n, k], true);
                dense.linear(&x, &w, bias.map(|b| &b[..]), residual.map(|r| &r[..]), &mut y2, (m, n, k));
                prop_assert!(expected == y2, "{isa:?}, begun with something");
            }
        }
    }
}

#[test]
fn rows_four_kib_apart_and_many_tiles_give_the_twins_bits() {
    let (m, n, k) = (200, 230, 1024);
    let (x, w) = (values(m * k, 1), values(n * k, 2));
    let mut y = vec![0.0; m * n];
    twin(|i, q| x[i * k + q], |q, j| w[j * k + q], &mut y, [m, n, k], false);
    for isa in sets() {
        let mut y2 = vec![0.0; m * n];
        Dense::with_isa(2, isa).unwrap().product(
            View::new(&x, m, k, k),
            View::new(&w, n, k, k).t(),
            &mut y2,
            n,
            false,
        );
        assert!(y == y2, "{isa:?}");
    }
}

/// Runs every pass once and returns all that was written.
fn everything(isa: Isa, threads: usize) -> Vec<f32> {
    let mut dense = Dense::with_isa(threads, isa).unwrap();
    let (rows, d, all) = (100usize, 36usize, &mut Vec::new());
    let (x, dy) = (values(rows * d, 1), values(rows * d, 2));
    let (w, b) = (values(d, 3), values(d, 4));
    let (mut y, mut stats, mut dx) = (vec![0.0; rows * d], vec![0.0; rows * 2], values(rows * d, 5));
    let (mut dw, mut db) = (vec![0.0; d], vec![0.0; d]);
    dense.norm(&x, &w, Some(&b), true, 1e-5, &mut y, &mut stats);
    dense.norm_back(&dy, &x, &w, &stats, true, &mut dx, true, &mut dw, Some(&mut db));
    all.extend([&y[..], &stats, &dx, &dw, &db].concat());
    dense.norm(&x, &w, None, false, 1e-5, &mut y, &mut stats);
    dense.norm_back(&dy, &x, &w, &stats, false, &mut dx, false, &mut dw, None);
    dense.bias_back(&dy, &mut db);
    all.extend([&y[..], &stats, &dx, &dw, &db].concat());
    let mut g = dy.clone();
    let mut half = vec![0.0; rows * d / 2];
    for curve in [Curve::Silu, Curve::Gelu, Curve::GeluTanh, Curve::Relu, Curve::Relu2] {
        dense.activate(curve, &x, &mut y);
        g.copy_from_slice(&dy);
        dense.activate_back(curve, &mut g, &x);
        all.extend([&y[..], &g].concat());
        dense.gated(curve, &x, d / 2, &mut half);
        dense.gated_back(curve, &dy[..rows * d / 2], &x, d / 2, &mut dx);
        all.extend([&half[..], &dx].concat());
    }
    let clamped = Curve::ClampedSwiglu { alpha: 1.7, limit: 0.8 };
    dense.gated(clamped, &x, d / 2, &mut half);
    dense.gated_back(clamped, &dy[..rows * d / 2], &x, d / 2, &mut dx);
    all.extend([&half[..], &dx].concat());
    let (slice, each) = (Slice { start: 4, heads: 3 }, values(10, 8));
    let (mut stats, mut dw) = (vec![0.0; rows * 6], vec![0.0; 10]);
    dense.slice_norm(&x, d, slice, &each, 1e-5, &mut y, &mut stats);
    dense.slice_norm_back(&dy, &x, d, slice, &each, &stats, &mut dx, &mut dw);
    all.extend([&y[..], &stats, &dx, &dw].concat());
    let (cos, sin) = (values(25 * 4, 9), values(25 * 4, 10));
    for neighbours in [false, true] {
        let what = Rotated { start: 2, step: 11, heads: 3, neighbours };
        dense.rope(&mut y, d, what, 25, &cos, &sin, false);
        all.extend(&y);
        dense.rope(&mut y, d, what, 25, &cos, &sin, true);
        all.extend(&y);
    }
    dense.dropout(&mut g, 0.3, 99);
    all.extend(g);
    let targets: Vec<u32> =
        (0..rows as u32).map(|i| if i % 9 == 0 { u32::MAX } else { i % d as u32 }).collect();
    let mut logits = x.clone();
    all.push(dense.cross_entropy(&mut logits, d, &targets, None, None) as f32);
    all.push(dense.cross_entropy(&mut logits, d, &targets, Some(0.5), None) as f32);
    all.extend(logits);
    let (mut logits, bend) = (x.clone(), Bend { scale: 1.5, softcap: Some(2.0) });
    dense.bend(&mut logits, bend);
    all.extend(&logits);
    all.push(dense.cross_entropy(&mut logits, d, &targets, Some(0.5), Some(bend)) as f32);
    all.extend(logits);
    for (dropout, softcap) in [(0.0, 0.0), (0.25, 0.0), (0.0, 0.6), (0.25, 0.6)] {
        let slopes = [0.5, 0.25, 0.125, 0.0625];
        let sinks = if softcap > 0.0 { &[0.5, -1.0, 3.0, 0.25][..] } else { &[] };
        let h = Heads {
            value_dim: 10,
            scale: 0.3,
            window: 33,
            softcap,
            slopes: &slopes,
            sinks,
            dropout,
            key: 5,
            ..Heads::new(4, 2, 18, 100)
        };
        let (qkv, dout) = (values(rows * (6 * 18 + 20), 6), values(rows * 4 * 10, 7));
        let (mut out, mut lse, mut dqkv) =
            (vec![0.0; rows * 4 * 10], vec![0.0; rows * 4], vec![0.0; qkv.len()]);
        dense.attention(&h, &qkv, &mut out, &mut lse);
        dense.attention_back(&h, &qkv, &out, &lse, &dout, &mut dqkv);
        if !sinks.is_empty() {
            let mut dsinks = [0.0; 4];
            dense.sinks_back(&h, &out, &lse, &dout, &mut dsinks);
            all.extend(dsinks);
        }
        all.extend([out, lse, dqkv].concat());
    }
    let o = AdamW {
        rate: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.1,
        scale: 0.7,
        correction1: 0.1,
        correction2: 0.05,
    };
    let (mut p, mut m, mut v) = (x.clone(), vec![0.0; x.len()], vec![0.0; x.len()]);
    dense.adamw(&o, &mut p, &dy, &mut m, &mut v);
    all.extend([p, m, v].concat());
    let (mut p, mut moments) = (x.clone(), Moments8::new(x.len()));
    for _ in 0..3 {
        dense.adamw8(&o, &mut p, &dy, &mut moments);
    }
    all.extend(p.into_iter().chain(moments.first_top).chain(moments.second_top));
    all.extend(moments.first.iter().chain(&moments.second).map(|c| f32::from(*c)));
    let lion = Lion { rate: 0.1, beta1: 0.9, beta2: 0.99, decay: 0.1, scale: 0.7 };
    let (mut p, mut m, mut u) = (x.clone(), vec![0.0; x.len()], vec![0.0; x.len()]);
    dense.lion(&lion, &mut p, &dy, &mut m);
    dense.nesterov(0.95, 0.7, &dy, &mut m, &mut u);
    dense.apply(0.99, -0.3, &mut p, &u);
    all.extend([p, m, u].concat());
    all.push(dense.sum_squares(&x) as f32);
    std::mem::take(all)
}

#[test]
fn every_pass_gives_the_same_bits_on_every_instruction_set_and_thread_count() {
    let expected = everything(Isa::Scalar, 1);
    assert!(expected.iter().all(|x| x.is_finite()));
    for isa in sets() {
        for threads in [1, 2, 3] {
            let got = everything(isa, threads);
            let bad = expected.iter().zip(&got).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(bad, None, "{isa:?} with {threads} threads");
        }
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    for i in -870_000..880_000 {
        let x = i as f32 * 1e-4;
        let (got, exact) = (math::exp(x), f64::from(x).exp());
        let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1) - exact as f32);
        assert!((f64::from(got) - exact).abs() <= 2.0 * unit, "exp({x}) = {got}, exactly {exact}");
    }
    assert_eq!(math::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(math::exp(0.0), 1.0);
}

#[test]
fn tanh_is_within_three_units_in_the_last_place() {
    for i in -100_000..100_000 {
        let x = i as f32 * 1e-4;
        let (got, exact) = (math::tanh(x), f64::from(x).tanh());
        let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1) - exact as f32).abs();
        assert!((f64::from(got) - exact).abs() <= 3.0 * unit, "tanh({x}) = {got}, exactly {exact}");
    }
    assert!(math::tanh(f32::INFINITY) == 1.0 && math::tanh(f32::NAN).is_nan());
}

#[test]
fn dropout_drops_the_asked_share_and_keeps_the_mean() {
    let mut x = vec![1.0; 100_000];
    Dense::new(2).dropout(&mut x, 0.2, 12345);
    let dropped = x.iter().filter(|x| **x == 0.0).count() as f64 / 1e5;
    assert!((dropped - 0.2).abs() < 0.01, "{dropped}");
    assert!(x.iter().all(|x| *x == 0.0 || *x == 1.25));
}

#[test]
fn dropout_zeroes_what_the_hash_of_key_and_place_chooses_and_scales_the_rest() {
    let (n, rate, key) = (40_001, 0.3f32, 12_345 | 7 << 32);
    let x = values(n, 1);
    let mut y = x.clone();
    Dense::new(2).dropout(&mut y, rate, key);
    for (i, (x, y)) in x.iter().zip(&y).enumerate() {
        let drawn = f64::from(math::hash(key, 0, i as u32)) / 2f64.powi(32);
        let expected = if drawn < f64::from(rate) { 0.0 } else { x * (1.0 / (1.0 - rate)) };
        assert_eq!(*y, expected, "value {i}");
    }
}

#[test]
fn sums_and_zeros_reach_every_value_and_none_beyond() {
    let n = 40_001;
    let (mut dense, mut sum, b) = (Dense::new(2), values(n, 1), values(n, 2));
    let expected: Vec<f32> = sum.iter().zip(&b).map(|(a, b)| a + b).collect();
    dense.add(&mut sum, &b);
    assert_eq!(sum, expected);
    dense.zero(&mut sum[3..n - 5]);
    assert!(sum[3..n - 5].iter().all(|x| *x == 0.0));
    assert_eq!((&sum[..3], &sum[n - 5..]), (&expected[..3], &expected[n - 5..]));
}
