//! Matrix products at the shape of a 1B model's feed-forward: one token (reading) and a prompt (multiplying).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm_format::quant::encode;
use llm_kernels::{Cpu, Input, Matrix, Type, available};
use std::hint::black_box;

const ROWS: usize = 8192;
const COLS: usize = 2048;

fn products(c: &mut Criterion) {
    // one block repeated: the values do not matter to the time
    let values: Vec<f32> = (0..32 * COLS).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    for ty in [Type::Q4, Type::Q8, Type::F16, Type::F32] {
        let block = encode(ty, &values, 32, COLS);
        let head = if ty.is_integer() { 64 } else { 0 };
        let mut data = block[..head].to_vec();
        (0..ROWS / 32).for_each(|_| data.extend_from_slice(&block[head..]));
        let w = Matrix::new(ty, ROWS, COLS, &data).expect("whole");
        for isa in available() {
            if isa.name() == "scalar" {
                continue;
            }
            let cpu = Cpu::with_isa(0, isa).expect("available");
            for m in [1, 4, 8, 64, 512] {
                if m == 512 && !ty.is_integer() {
                    continue;
                }
                let x = vec![0.5f32; m * COLS];
                let mut out = vec![0f32; m * ROWS];
                let mut input = Input::new();
                let mut group = c.benchmark_group(format!("{ty}/{}", isa.name()));
                group.sample_size(10);
                let work = if m == 1 {
                    Throughput::Bytes(data.len() as u64)
                } else {
                    Throughput::Elements((m * ROWS * COLS) as u64)
                };
                group.throughput(work);
                group.bench_function(format!("m{m}"), |b| {
                    b.iter(|| {
                        input.load(&cpu, &x, m, COLS);
                        cpu.matmul(w, &mut input, None, black_box(&mut out));
                    })
                });
                group.finish();
            }
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
