//! Products on matrix tiles: used where they should be, equal to the scalar ones, and the state given back.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use common::{Random, same, scalar, tile_sum, tiles};
use llm_emulator::{Unit, executed};
use llm_format::quant::encode;
use llm_kernels::{Cpu, Input, Isa, Matrix, Type};

#[test]
fn fast_products_with_16_bit_weights_are_the_units_at_every_batch_size() {
    let Some(_turn) = tiles() else { return };
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
                        tile_sum(&decoded[i % rows], &x[i / rows * cols..][..cols], 0.0) + bias[i % rows]
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

#[test]
fn fast_changes_nothing_for_other_types_or_without_tiles() {
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

fn product(cpu: &Cpu, w: Matrix, x: &[f32], m: usize) -> Vec<f32> {
    let mut input = Input::new();
    input.load(cpu, x, m, w.cols());
    let mut out = vec![0f32; m * w.rows()];
    cpu.matmul(w, &mut input, None, &mut out);
    out
}

#[test]
fn tiles_are_used_from_eight_vectors_on() {
    let Some((_turn, unit)) = tiles() else { return };
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
    let Some(_turn) = tiles() else { return };
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
    let Some(_turn) = tiles() else { return };
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
    let Some(_turn) = tiles() else { return };
    let mut r = Random(3);
    let data = encode(Type::Q4, &r.values(64 * 256), 64, 256);
    let w = Matrix::new(Type::Q4, 64, 256, &data).expect("whole");
    let cpu = Cpu::with_isa(1, Isa::Amx).expect("installed");
    product(&cpu, w, &r.values(16 * 256), 16);
    assert_eq!([0; 64], llm_emulator::configuration());
}
