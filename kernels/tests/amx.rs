//! Products on matrix tiles: used where they should be, equal to the scalar ones, and the state given back.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use common::{Random, same, scalar};
use llm_emulator::{Unit, executed, install};
use llm_format::quant::encode;
use llm_kernels::dense::gemm::View;
use llm_kernels::dense::{Dense, Heads};
use llm_kernels::{Cpu, Input, Isa, Matrix, Type};
use std::sync::{Mutex, PoisonError};

/// To bf16, ties to even.
fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// The unit's sum: 32 inputs at a time, even and odd ones apart; what these tests use is never denormal.
fn fast_twin(w: &[f32], x: &[f32], start: f32) -> f32 {
    let mut sum = start;
    for (w, x) in w.chunks(32).zip(x.chunks(32)) {
        let mut parts = [0f32; 2];
        for (k, (&w, &x)) in w.iter().zip(x).enumerate() {
            parts[k % 2] = bf16(w).mul_add(bf16(x), parts[k % 2]);
        }
        sum += parts[0] + parts[1];
    }
    sum
}

#[test]
fn fast_products_with_16_bit_weights_are_the_units_at_every_batch_size() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if ready().is_none() {
        return;
    }
    let mut r = Random(4);
    for ty in [Type::F16, Type::Bf16] {
        for (rows, cols) in [(70, 200), (33, 1100)] {
            let data = encode(ty, &r.values(rows * cols), rows, cols);
            let w = Matrix::new(ty, rows, cols, &data).expect("whole");
            let decoded: Vec<Vec<f32>> = (0..rows)
                .map(|row| {
                    let mut to = vec![0f32; cols];
                    llm_format::quant::decode_row(ty, &data, rows, cols, row, &mut to);
                    to
                })
                .collect();
            let bias = r.values(rows);
            let x = r.values(530 * cols);
            for m in [1, 2, 15, 16, 17, 33, 530] {
                let expected: Vec<f32> = (0..m * rows)
                    .map(|i| {
                        fast_twin(&decoded[i % rows], &x[i / rows * cols..][..cols], 0.0) + bias[i % rows]
                    })
                    .collect();
                for threads in [1, 2] {
                    let cpu = Cpu::with_isa(threads, Isa::Amx).expect("installed");
                    let mut input = Input::new();
                    input.set_fast(true);
                    input.load(&cpu, &x[..m * cols], m, cols);
                    let mut out = vec![0f32; m * rows];
                    cpu.matmul(w, &mut input, Some(&bias), &mut out);
                    same(&expected, &out, &format!("{ty} [{rows}, {cols}] x {m}, {threads} threads"));
                }
            }
        }
    }
}

/// `[rows, cols]` of a function.
fn matrix(rows: usize, cols: usize, of: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..rows * cols).map(|i| of(i / cols, i % cols)).collect()
}

#[test]
fn the_three_products_of_training_at_bf16_are_the_units_on_odd_shapes_and_any_number_of_threads() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if ready().is_none() {
        return;
    }
    let mut r = Random(6);
    // whole and part panels, several pieces, runs of sixteen steps and bands
    for (m, n, k) in [
        (1, 1, 1),
        (33, 65, 31),
        (64, 32, 96),
        (70, 300, 40),
        (300, 50, 1030),
        (40, 600, 70),
        (33, 4130, 33),
        (40, 33, 2100),
    ] {
        let (x, w, dy) = (r.values(m * k), r.values(n * k), r.values(m * n));
        let (bias, residual, before) = (r.values(n), r.values(m * n), r.values(n * k));
        let column = |of: &[f32], width: usize, j: usize| -> Vec<f32> {
            of.chunks_exact(width).map(|row| row[j]).collect()
        };
        let y = |start: &dyn Fn(usize, usize) -> f32| {
            matrix(m, n, |i, j| fast_twin(&x[i * k..][..k], &w[j * k..][..k], start(i, j)))
        };
        let dx = matrix(m, k, |i, j| fast_twin(&dy[i * n..][..n], &column(&w, k, j), 0.0));
        let dw = matrix(n, k, |i, j| fast_twin(&column(&dy, n, i), &column(&x, k, j), before[i * k + j]));
        for threads in [1, 2, 3] {
            let mut dense = Dense::with_isa(threads, Isa::Amx).expect("installed");
            dense.set_rounding(true);
            let shape = (m, n, k);
            let what = format!("{shape:?}, {threads} threads");
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
                start if j < n => fast_twin(&x[2 * i * k..][..k], &w[j * k..][..k], start),
                beside => beside,
            });
            let every_other = View::new(&x, half, k, 2 * k);
            dense.product(every_other, View::new(&w, n, k, k).t(), &mut out, stride, true);
            same(&expected, &out, &format!("{what}, strided"));
        }
    }
}

#[test]
fn training_in_f32_leaves_the_tiles_alone() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if ready().is_none() {
        return;
    }
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

/// A sequence of the `[rows, heads + 2 kv_heads]` heads of `qkv` on tiles and in f32: as near as bf16 operands allow.
#[test]
fn attention_and_its_gradient_at_bf16_are_near_those_in_f32() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if ready().is_none() {
        return;
    }
    let mut r = Random(8);
    for (dim, value_dim, length, window) in [(16, 16, 70, 0), (24, 8, 130, 0), (32, 32, 100, 40)] {
        let heads = Heads {
            heads: 4,
            kv_heads: 2,
            dim,
            value_dim,
            length,
            scale: 1.0 / (dim as f32).sqrt(),
            window,
            softcap: 0.0,
            slopes: &[],
            sinks: &[],
            starts: &[],
            dropout: 0.0,
            key: 0,
        };
        let rows = 2 * length;
        let stride = 4 * dim + 2 * (dim + value_dim);
        // of one precision already: operands that need no rounding leave that of scores and probabilities
        let qkv: Vec<f32> = r.values(rows * stride).into_iter().map(bf16).collect();
        let dout: Vec<f32> = r.values(rows * 4 * value_dim).into_iter().map(bf16).collect();
        let pass = |threads, rounding| {
            let mut dense = Dense::with_isa(threads, Isa::Amx).expect("installed");
            dense.set_rounding(rounding);
            let mut out = vec![0.0; rows * 4 * value_dim];
            let (mut lse, mut dqkv) = (vec![0.0; rows * 4], vec![0.0; qkv.len()]);
            dense.attention(&heads, &qkv, &mut out, &mut lse);
            dense.attention_back(&heads, &qkv, &out, &lse, &dout, &mut dqkv);
            [out, lse, dqkv]
        };
        let (fast, exact) = (pass(2, true), pass(2, false));
        for ((fast, again), exact) in fast.iter().zip(pass(1, true)).zip(&exact) {
            same(fast, &again, "one thread and two");
            let size = exact.iter().fold(0f32, |m, x| m.max(x.abs()));
            let far = fast.iter().zip(exact).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(far > 0.0 && far < 0.01 * size, "{far} of {size}, heads of {dim}");
        }
    }
}

#[test]
fn fast_changes_nothing_for_other_types_or_without_tiles() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut r = Random(5);
    for cpu in common::cpus() {
        for ty in common::TYPES {
            let sixteen_bit = matches!(ty, Type::F16 | Type::Bf16);
            if cpu.isa() == Isa::Amx && sixteen_bit {
                continue;
            }
            let data = encode(ty, &r.values(40 * 300), 40, 300);
            let w = Matrix::new(ty, 40, 300, &data).expect("whole");
            let x = r.values(9 * 300);
            let mut input = Input::new();
            input.set_fast(true);
            input.load(&cpu, &x, 9, 300);
            let mut out = vec![0f32; 9 * 40];
            cpu.matmul(w, &mut input, None, &mut out);
            same(&product(&scalar(), w, &x, 9), &out, &format!("{ty} on {}", cpu.isa().name()));
        }
    }
}

const INTEGERS: [Type; 6] = [Type::Q8, Type::Q6, Type::Q5, Type::Q4, Type::Q3, Type::Q2];

/// Tests that count instructions take turns.
static TURN: Mutex<()> = Mutex::new(());

/// A machine without AVX-512 has nothing to test here.
fn ready() -> Option<Unit> {
    let unit = install();
    println!("tiles: {unit:?}");
    if unit.is_none() {
        llm_testdata::not_run("products on matrix tiles: this machine has no AVX-512");
    }
    unit
}

fn product(cpu: &Cpu, w: Matrix, x: &[f32], m: usize) -> Vec<f32> {
    let mut input = Input::new();
    input.load(cpu, x, m, w.cols());
    let mut out = vec![0f32; m * w.rows()];
    cpu.matmul(w, &mut input, None, &mut out);
    out
}

#[test]
fn tiles_are_used_from_eight_vectors_on() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(unit) = ready() else { return };
    let mut r = Random(1);
    let cpu = Cpu::with_isa(1, Isa::Amx).expect("installed");
    for ty in INTEGERS {
        let data = encode(ty, &r.values(64 * 256), 64, 256);
        let w = Matrix::new(ty, 64, 256, &data).expect("whole");
        let terms = if matches!(ty, Type::Q8 | Type::Q6) { 2 } else { 1 };
        for m in [8 / terms - 1, 8 / terms] {
            let before = executed();
            product(&cpu, w, &r.values(m * 256), m);
            let used = executed() - before;
            // configuration, release, 4 stores at the end, and for each of two blocks 4 · 3 loads, 4 · 2 products, 2 stores
            let expected =
                if unit == Unit::Emulated && m * terms >= 8 { 2 + 4 + 2 * (12 + 8 + 2) } else { 0 };
            assert_eq!(expected, used, "{ty} x {m}");
        }
    }
}

/// Several slabs, every number of blocks in a chunk, odd numbers of vector tiles, short last records.
#[test]
fn large_products_equal_the_scalar_ones() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if ready().is_none() {
        return;
    }
    let mut r = Random(2);
    for (i, ty) in INTEGERS.into_iter().enumerate() {
        let shapes = [(32 * 8 + 7, 640, 24), (90, 384, 270 + i), (40, 1100, 130), (32, 256, 530)];
        for (rows, cols, m) in shapes {
            let data = encode(ty, &r.values(rows * cols), rows, cols);
            let w = Matrix::new(ty, rows, cols, &data).expect("whole");
            let x = r.values(m * cols);
            let expected = product(&scalar(), w, &x, m);
            for threads in [1, 2] {
                let cpu = Cpu::with_isa(threads, Isa::Amx).expect("installed");
                same(
                    &expected,
                    &product(&cpu, w, &x, m),
                    &format!("{ty} [{rows}, {cols}] x {m}, {threads} threads"),
                );
            }
        }
    }
}

/// Sums that overflow the tiles' counters many times: the differences are exact all the same.
#[test]
fn tiles_may_count_past_their_range() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if ready().is_none() {
        return;
    }
    // 256 · 125 · 127 a record: the counter of 2³¹ overflows after 528 records
    let (rows, cols, m) = (32, 256 * 1100, 8);
    let row: Vec<f32> = (0..cols).map(|k| if k % 256 == 0 { 1.0 } else { 0.999 }).collect();
    let data = encode(Type::Q8, &row.repeat(rows), rows, cols);
    let w = Matrix::new(Type::Q8, rows, cols, &data).expect("whole");
    let x = vec![3.0; m * cols];
    let cpu = Cpu::with_isa(1, Isa::Amx).expect("installed");
    same(&product(&scalar(), w, &x, m), &product(&cpu, w, &x, m), "long rows");
}

#[test]
fn a_host_thread_has_its_tiles_released() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if ready().is_none() {
        return;
    }
    let mut r = Random(3);
    let data = encode(Type::Q4, &r.values(64 * 256), 64, 256);
    let w = Matrix::new(Type::Q4, 64, 256, &data).expect("whole");
    let cpu = Cpu::with_isa(1, Isa::Amx).expect("installed");
    product(&cpu, w, &r.values(16 * 256), 16);
    assert_eq!([0; 64], llm_emulator::configuration());
}
