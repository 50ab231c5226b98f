//! Matrix products of every type at shapes of a 1B and of a 135M model: one token (reading), several (sequences that
//! decode together), a prompt (multiplying). `cargo bench -p llm-kernels --bench matmul -- q4/avx512` runs a part.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm_format::quant::encode;
use llm_kernels::{Cpu, Input, Matrix, Type, available};
use std::hint::black_box;
use std::time::Duration;

const TYPES: [Type; 9] =
    [Type::Q8, Type::Q6, Type::Q5, Type::Q4, Type::Q3, Type::Q2, Type::F16, Type::Bf16, Type::F32];
/// Rows, columns, and copies that are used in turn so that small matrices, too, come from memory.
const SHAPES: [(usize, usize, usize); 2] = [(8192, 2048, 16), (1536, 576, 64)];

fn products(c: &mut Criterion) {
    for (rows, cols, copies) in SHAPES {
        // one block repeated: the values do not matter to the time
        let values: Vec<f32> = (0..32 * cols).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
        for ty in TYPES {
            let block = encode(ty, &values, 32, cols);
            let head = if ty.is_integer() { 64 } else { 0 };
            let mut data = block[..head].to_vec();
            (0..rows / 32).for_each(|_| data.extend_from_slice(&block[head..]));
            let data = vec![data; copies];
            for isa in available().into_iter().filter(|isa| isa.name() != "scalar") {
                let cpu = Cpu::with_isa(0, isa).expect("available");
                let mut group = c.benchmark_group(format!("{ty}/{}/{rows}x{cols}", isa.name()));
                group.sample_size(10).warm_up_time(Duration::from_millis(50));
                group.measurement_time(Duration::from_millis(200));
                for m in [1, 4, 8, 16, 64, 512] {
                    let x = vec![0.5f32; m * cols];
                    let mut out = vec![0f32; m * rows];
                    let mut input = Input::new();
                    let work = if m == 1 {
                        Throughput::Bytes(data[0].len() as u64)
                    } else {
                        Throughput::Elements((m * rows * cols) as u64)
                    };
                    group.throughput(work);
                    let mut turn = 0;
                    group.bench_function(format!("m{m}"), |b| {
                        b.iter(|| {
                            turn = (turn + 1) % copies;
                            let w = Matrix::new(ty, rows, cols, &data[turn]).expect("whole");
                            input.load(&cpu, &x, m, cols);
                            cpu.matmul(w, &mut input, None, black_box(&mut out));
                        })
                    });
                }
                group.finish();
            }
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
