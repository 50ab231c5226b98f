//! Matrix products equal their slow twins bit for bit, on every instruction set, batch and thread count.

mod common;

use common::{Random, TYPES, cpus, quantize, same, terms, tree};
use llm_format::quant::{decode_int8, decode_row, encode};
use llm_kernels::{Experts, Input, Job, Matrix, Type};
use proptest::prelude::*;
use std::ops::Range;

/// The rules, written down: one output.
fn twin(ty: Type, data: &[u8], rows: usize, cols: usize, row: usize, x: &[f32]) -> f32 {
    if ty.is_integer() {
        let mut acc = [0f32; 2];
        for (b, x) in x.chunks(256).enumerate() {
            let mut w = [0i8; 256];
            let scale = decode_int8(ty, data, rows, cols, row, b, &mut w);
            for (acc, (q, sx)) in acc.iter_mut().zip(terms(ty, x)) {
                let sum: i32 = q.iter().zip(&w).map(|(&q, &w)| q as i32 * w as i32).sum();
                *acc = (sum as f32).mul_add(scale * sx, *acc);
            }
        }
        if matches!(ty, Type::Q8 | Type::Q6) { acc[0] + acc[1] } else { acc[0] }
    } else {
        let mut w = vec![0f32; cols];
        decode_row(ty, data, rows, cols, row, &mut w);
        let mut lanes = [0f32; 16];
        for k in 0..cols {
            lanes[k % 16] = w[k].mul_add(x[k], lanes[k % 16]);
        }
        tree(lanes)
    }
}

/// The twin's `[m, rows]` of `m` rows `x`; every CPU's product has the same bits.
fn hold(ty: Type, data: &[u8], [rows, cols, m]: [usize; 3], x: &[f32], bias: &[f32]) -> Vec<f32> {
    let expected: Vec<f32> = (0..m * rows)
        .map(|i| twin(ty, data, rows, cols, i % rows, &x[i / rows * cols..][..cols]) + bias[i % rows])
        .collect();
    let w = Matrix::new(ty, rows, cols, data).expect("whole");
    for cpu in cpus() {
        let mut input = Input::new();
        input.load(&cpu, x, m, cols);
        let mut out = vec![0f32; m * rows];
        cpu.matmul(w, &mut input, Some(bias), &mut out);
        same(
            &expected,
            &out,
            &format!("{ty} [{rows}, {cols}] x {m} on {} x{}", cpu.isa().name(), cpu.pool().threads()),
        );
    }
    expected
}

fn check(ty: Type, rows: usize, cols: usize, m: usize, seed: u64, spoil: bool) {
    let mut r = Random(seed);
    let data = encode(ty, &r.values(rows * cols), rows, cols);
    let mut x = r.values(m * cols);
    if spoil {
        x[r.below(m * cols)] = [f32::NAN, f32::INFINITY, 1e-30, 0.0][r.below(4)];
        x[..cols.min(256)].fill(1e-39);
    }
    hold(ty, &data, [rows, cols, m], &x, &r.values(rows));
}

#[test]
fn every_batch_size_equals_the_twin() {
    for ty in TYPES {
        for m in [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 17, 31, 48, 64, 65] {
            check(ty, 70, 400, m, m as u64, false);
        }
    }
}

#[test]
fn long_inputs_and_many_rows_equal_the_twin() {
    for ty in TYPES {
        check(ty, 32 * 9 + 5, 1024 + 128, 1, 1, false);
        check(ty, 33, 512, 300, 2, false);
        for m in [2, 3, 8, 12, 17] {
            check(ty, 32 * 9 + 5, 400, m, 1, false);
        }
        // chunks of whole packs and tiles, and of one token less
        check(ty, 33, 259, 2047, 3, false);
        check(ty, 33, 131, 2048, 4, false);
    }
}

#[test]
fn values_that_are_not_finite_make_their_rows_nan_and_no_other() {
    for ty in TYPES {
        for seed in 0..6 {
            check(ty, 40, 300, 3, seed, true);
            check(ty, 40, 300, 9, seed, true);
        }
    }
}

/// Where the greatest weights meet the greatest activations, with every pair of signs, sums are largest: those of two
/// products in 16 bits, of a record in 32, and of unsigned weights.
#[test]
fn sums_of_the_greatest_integers_are_exact() {
    let (rows, cols) = (37, 400);
    let sign = |row: usize, k: usize| {
        let positive =
            [true, false, k.is_multiple_of(2), (k / 16).is_multiple_of(2), (k / 64).is_multiple_of(2)]
                [row % 5];
        if positive { 1.0 } else { -1.0 }
    };
    let weights: Vec<f32> = (0..rows * cols).map(|i| sign(i / cols, i % cols)).collect();
    for ty in TYPES {
        let data = encode(ty, &weights, rows, cols);
        for m in [1, 2, 3, 5, 7, 9, 16, 33] {
            let x: Vec<f32> = (0..m * cols).map(|i| 3.0 * sign(i / cols, i % cols)).collect();
            hold(ty, &data, [rows, cols, m], &x, &[0.5; 37]);
        }
    }
}

#[test]
fn results_below_the_least_normal_are_kept() {
    let (rows, cols) = (37, 400);
    let mut r = Random(13);
    let (weights, x) = (r.values(rows * cols), r.values(20 * cols));
    let times = |values: &[f32], factor: f32| values.iter().map(|v| v * factor).collect::<Vec<_>>();
    for ty in TYPES {
        // halves that are denormal themselves; activations of integers that are not yet taken for zero
        let (small, least) = if ty == Type::F16 { (1e-6, 1e-36) } else { (1e-14, 1e-26) };
        let (data, x) = (encode(ty, &times(&weights, small), rows, cols), times(&x, least));
        for m in [1, 2, 6, 20] {
            let out = hold(ty, &data, [rows, cols, m], &x[..m * cols], &[0.0; 37]);
            assert!(out.iter().any(|v| v.is_subnormal()), "{ty} x {m}: nothing small");
        }
    }
}

#[test]
fn products_of_no_tokens_do_nothing_and_spoil_nothing() {
    let mut r = Random(14);
    let (rows, cols) = (40, 300);
    for ty in TYPES {
        let data = encode(ty, &r.values(2 * rows * cols), 2 * rows, cols);
        let w = Matrix::new(ty, 2 * rows, cols, &data).expect("whole");
        let two = [(); 2].map(|()| encode(ty, &r.values(rows * cols), rows, cols)).concat();
        let experts = Experts::new(ty, 2, rows, cols, &two).expect("whole");
        let x = r.values(3 * cols);
        for cpu in cpus() {
            let mut input = Input::new();
            for fast in [true, false] {
                input.set_fast(fast);
                input.load(&cpu, &[], 0, cols);
                cpu.matmul(w, &mut input, None, &mut []);
                cpu.expert_matmul(&experts, &[(0, 0..0), (1, 0..0)], &mut input, None, &mut []);
                cpu.expert_matmul(&experts, &[], &mut input, None, &mut []);
            }
            input.load(&cpu, &x, 3, cols);
            let mut out = vec![7.0; 3 * rows];
            cpu.expert_matmul(&experts, &[(0, 1..1), (1, 3..3)], &mut input, None, &mut out);
            assert!(out.iter().all(|v| *v == 7.0), "rows of no group keep what they hold");
            let mut out = vec![0.0; 3 * 2 * rows];
            cpu.matmul(w, &mut input, None, &mut out);
            let expected: Vec<f32> = (0..out.len())
                .map(|i| twin(ty, &data, 2 * rows, cols, i % (2 * rows), &x[i / (2 * rows) * cols..][..cols]))
                .collect();
            same(&expected, &out, &format!("{ty} after nothing on {}", cpu.isa().name()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn many_tokens_equal_the_twin_in_every_type(
        rows in 1usize..40, cols in 1usize..300, tokens in prop::array::uniform9(71usize..=2048), seed: u64,
    ) {
        for (ty, m) in TYPES.into_iter().zip(tokens) {
            check(ty, rows, cols, m, seed, false);
        }
    }
}

/// Tokens of each expert: ascending, wherever they begin, some of no expert and some experts without any.
fn some_groups(r: &mut Random, count: usize, m: usize) -> Vec<(usize, Range<usize>)> {
    let mut cuts: Vec<usize> = (0..2 * count).map(|_| r.below(m + 1)).collect();
    cuts.sort_unstable();
    cuts.chunks_exact(2).enumerate().map(|(expert, cuts)| (expert, cuts[0]..cuts[1])).collect()
}

/// Products with five experts of some groups of `m` tokens.
fn check_groups(ty: Type, rows: usize, cols: usize, m: usize, seed: u64) {
    let (count, mut r) = (5, Random(seed));
    let matrices: Vec<Vec<u8>> = (0..count).map(|_| encode(ty, &r.values(rows * cols), rows, cols)).collect();
    let data = matrices.concat();
    let experts = Experts::new(ty, count, rows, cols, &data).expect("whole");
    let (x, bias) = (r.values(m * cols), r.values(count * rows));
    let groups = some_groups(&mut r, count, m);
    let mut expected = vec![7.0f32; m * rows];
    for (expert, tokens) in &groups {
        for i in tokens.clone() {
            for row in 0..rows {
                let product = twin(ty, &matrices[*expert], rows, cols, row, &x[i * cols..][..cols]);
                expected[i * rows + row] = product + bias[*expert * rows + row];
            }
        }
    }
    for cpu in cpus() {
        let mut input = Input::new();
        input.load(&cpu, &x, m, cols);
        let mut out = vec![7.0f32; m * rows];
        cpu.expert_matmul(&experts, &groups, &mut input, Some(&bias), &mut out);
        same(&expected, &out, &format!("{ty} [{rows}, {cols}], {groups:?} on {}", cpu.isa().name()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_groups_of_tokens_equal_the_twin(t in 0..TYPES.len(), rows in 1usize..70, cols in 1usize..400, m in 1usize..160, seed: u64) {
        check_groups(TYPES[t], rows, cols, m, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]
    #[test]
    fn large_groups_of_tokens_equal_the_twin_in_every_type(
        rows in 1usize..40, cols in 1usize..300, tokens in prop::array::uniform9(160usize..=2048), seed: u64,
    ) {
        for (ty, m) in TYPES.into_iter().zip(tokens) {
            check_groups(ty, rows, cols, m, seed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn odd_shapes_equal_the_twin(t in 0..TYPES.len(), rows in 1usize..140, cols in 1usize..900, m in 1usize..70, seed: u64) {
        check(TYPES[t], rows, cols, m, seed, false);
    }
}

#[test]
fn a_group_equals_its_products() {
    let mut r = Random(7);
    let (cols, m) = (384, 3);
    let shapes = [(Type::Q4, 96), (Type::F16, 40), (Type::Q8, 33)];
    let data: Vec<_> =
        shapes.iter().map(|&(ty, rows)| encode(ty, &r.values(rows * cols), rows, cols)).collect();
    let x = r.values(m * cols);
    for cpu in cpus() {
        let mut input = Input::new();
        input.load(&cpu, &x, m, cols);
        let mut outs: Vec<Vec<f32>> = shapes.iter().map(|s| vec![0.0; m * s.1]).collect();
        let mut jobs: Vec<Job> = Vec::new();
        for ((&(ty, rows), data), out) in shapes.iter().zip(&data).zip(&mut outs) {
            jobs.push(Job { matrix: Matrix::new(ty, rows, cols, data).expect("whole"), bias: None, out });
        }
        cpu.matmul_group(&mut jobs, &mut input);
        for ((&(ty, rows), data), out) in shapes.iter().zip(&data).zip(&outs) {
            let mut alone = vec![0.0; m * rows];
            cpu.matmul(Matrix::new(ty, rows, cols, data).expect("whole"), &mut input, None, &mut alone);
            same(&alone, out, "group");
        }
    }
}

#[test]
fn experts_equal_their_matrices() {
    let mut r = Random(8);
    let (count, rows, cols) = (4, 48, 200);
    for ty in TYPES {
        let matrices: Vec<Vec<u8>> =
            (0..count).map(|_| encode(ty, &r.values(rows * cols), rows, cols)).collect();
        let data = matrices.concat();
        let experts = Experts::new(ty, count, rows, cols, &data).expect("whole");
        let bias = r.values(count * rows);
        let tokens = r.values(5 * cols);
        let ids = [4u32, 0, 1, 2, 3, 0, 4, 1, 2, 3, 3, 3];
        let groups = [(0, 0..1), (1, 1..1), (2, 1..10), (3, 10..12)];
        for cpu in cpus() {
            let mut input = Input::new();
            input.gather(&cpu, &tokens, cols, &ids);
            let mut out = vec![0.0; ids.len() * rows];
            cpu.expert_matmul(&experts, &groups, &mut input, Some(&bias), &mut out);
            for (e, range) in &groups {
                for i in range.clone() {
                    let x = &tokens[ids[i] as usize * cols..][..cols];
                    let expected: Vec<f32> = (0..rows)
                        .map(|row| twin(ty, &matrices[*e], rows, cols, row, x) + bias[e * rows + row])
                        .collect();
                    same(&expected, &out[i * rows..][..rows], "expert");
                }
            }
        }
    }
}

#[test]
fn embedding_is_the_decoded_row_times_the_factor() {
    let mut r = Random(9);
    let (rows, cols) = (50, 130);
    for ty in TYPES {
        let data = encode(ty, &r.values(rows * cols), rows, cols);
        let ids = [49u32, 0, 7, 7];
        for cpu in cpus() {
            let mut out = vec![0.0; ids.len() * cols];
            cpu.embed(Matrix::new(ty, rows, cols, &data).expect("whole"), &ids, 1.5, &mut out);
            for (i, &id) in ids.iter().enumerate() {
                let mut row = vec![0.0; cols];
                decode_row(ty, &data, rows, cols, id as usize, &mut row);
                row.iter_mut().for_each(|v| *v *= 1.5);
                same(&row, &out[i * cols..][..cols], "embedding");
            }
        }
    }
}

#[test]
fn a_smaller_input_after_a_larger_one_sees_nothing_of_it() {
    let mut r = Random(10);
    for ty in [Type::Q4, Type::Q8] {
        let [large, small] = [500, 100].map(|cols| encode(ty, &r.values(32 * cols), 32, cols));
        let [large, w] = [(500, &large), (100, &small)]
            .map(|(cols, data)| Matrix::new(ty, 32, cols, data).expect("whole"));
        for cpu in cpus() {
            let mut input = Input::new();
            input.load(&cpu, &[f32::NAN; 9 * 500], 9, 500);
            cpu.matmul(large, &mut input, None, &mut [0.0; 9 * 32]);
            let x = r.values(2 * 100);
            input.load(&cpu, &x, 2, 100);
            let mut out = vec![0.0; 64];
            cpu.matmul(w, &mut input, None, &mut out);
            let expected: Vec<f32> =
                (0..64).map(|i| twin(ty, &small, 32, 100, i % 32, &x[i / 32 * 100..][..100])).collect();
            same(&expected, &out, "after a larger input");
        }
    }
}

#[test]
fn an_input_serves_any_instruction_set_in_turn() {
    let mut r = Random(12);
    let (rows, cols, m) = (40, 300, 9);
    let cpus = cpus();
    for ty in TYPES {
        let data = encode(ty, &r.values(rows * cols), rows, cols);
        let w = Matrix::new(ty, rows, cols, &data).expect("whole");
        let x = r.values(m * cols);
        let expected: Vec<f32> = (0..m * rows)
            .map(|i| twin(ty, &data, rows, cols, i % rows, &x[i / rows * cols..][..cols]))
            .collect();
        let mut input = Input::new();
        input.load(&cpus[0], &x, m, cols);
        for cpu in cpus.iter().chain(cpus.iter().rev()) {
            let mut out = vec![0.0; m * rows];
            cpu.matmul(w, &mut input, None, &mut out);
            same(&expected, &out, &format!("{ty} on {} after others", cpu.isa().name()));
        }
    }
}

/// Error of a product with float activations, as a part of its norm: in one term, and as the kernels do it.
#[test]
fn two_terms_make_q8_products_as_exact_as_their_weights() {
    let mut r = Random(11);
    let (rows, cols, m) = (96, 1000, 9);
    let data = encode(Type::Q8, &r.values(rows * cols), rows, cols);
    let x = r.values(m * cols);
    let (mut exact, mut one) = (Vec::new(), Vec::new());
    for x in x.chunks(cols) {
        for row in 0..rows {
            let (mut e, mut o) = (0f64, 0f64);
            for (b, x) in x.chunks(256).enumerate() {
                let mut w = [0i8; 256];
                let scale = f64::from(decode_int8(Type::Q8, &data, rows, cols, row, b, &mut w));
                let (q, sx) = quantize(x);
                for ((&w, &x), &q) in w.iter().zip(x).zip(&q) {
                    e += scale * f64::from(w) * f64::from(x);
                    o += scale * f64::from(w) * f64::from(sx) * f64::from(q);
                }
            }
            exact.push(e);
            one.push(o);
        }
    }
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    let error = |got: &[f64]| {
        norm(&mut got.iter().zip(&exact).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied())
    };
    let one = error(&one);
    let w = Matrix::new(Type::Q8, rows, cols, &data).expect("whole");
    for cpu in cpus() {
        let mut input = Input::new();
        input.load(&cpu, &x, m, cols);
        let mut out = vec![0f32; m * rows];
        cpu.matmul(w, &mut input, None, &mut out);
        let two = error(&out.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        println!("{}: one term {one:.1e}, two terms {two:.1e}", cpu.isa().name());
        assert!(two < 1e-4 && one > 2e-3, "one term {one:.1e}, two terms {two:.1e}");
    }
}
