//! Attention: one token of one sequence or several at a depth (reading), and a prompt in chunks (multiplying).
//!
//! Decode is given as bytes of keys and values per second, beside a loop that only reads as many. The pool is larger
//! than any cache, and its pages lie in no order.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llm_kernels::{Attention, Cpu, KeyType, KvLayout, Level, Row, ValueType, read_streams};
use memmap2::MmapMut;
use std::hint::black_box;
use std::time::Duration;

/// Bytes of the pool that decoding goes round in.
const POOL: usize = 256 << 20;

struct Shape {
    name: &'static str,
    key: KeyType,
    value: ValueType,
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    latent: bool,
}

impl Shape {
    const fn new(name: &'static str, key: KeyType, value: ValueType, heads: [usize; 2], dim: usize) -> Shape {
        Shape {
            name,
            key,
            value,
            heads: heads[0],
            kv_heads: heads[1],
            key_dim: dim,
            value_dim: dim,
            latent: false,
        }
    }
}

const LATENT: Shape = Shape {
    key_dim: 576,
    value_dim: 512,
    latent: true,
    ..Shape::new("latent 16", KeyType::I8, ValueType::I8, [16, 1], 0)
};

const SHAPES: [Shape; 10] = [
    Shape::new("i8f16 64 4:1", KeyType::I8, ValueType::F16, [32, 8], 64),
    Shape::new("i8f16 64 3:1", KeyType::I8, ValueType::F16, [9, 3], 64),
    Shape::new("i8f16 64 8:1", KeyType::I8, ValueType::F16, [32, 4], 64),
    Shape::new("i8f16 128 4:1", KeyType::I8, ValueType::F16, [32, 8], 128),
    Shape::new("i8f16 128 8:1", KeyType::I8, ValueType::F16, [32, 4], 128),
    Shape::new("i8f16 64 one kv head", KeyType::I8, ValueType::F16, [8, 1], 64),
    Shape::new("i8f16 64 1:1", KeyType::I8, ValueType::F16, [16, 16], 64),
    Shape::new("f16f16 64 4:1", KeyType::F16, ValueType::F16, [32, 8], 64),
    Shape::new("i8i8 64 4:1", KeyType::I8, ValueType::I8, [32, 8], 64),
    LATENT,
];

/// A pool of one layer after another, and what is asked of it.
struct Setup<'a> {
    shape: &'a Shape,
    layout: KvLayout,
    pool: MmapMut,
    table: Vec<u32>,
    q: Vec<f32>,
    out: Vec<f32>,
}

impl<'a> Setup<'a> {
    fn new(shape: &'a Shape, bytes: usize, positions: usize, rows: usize) -> Setup<'a> {
        let layout = KvLayout {
            key: shape.key,
            value: shape.value,
            page_tokens: 64,
            kv_heads: shape.kv_heads,
            key_dim: shape.key_dim,
            value_dim: shape.value_dim,
            latent: shape.latent,
        };
        let pages = (bytes / layout.page_bytes()).max(positions.div_ceil(64));
        // as the library keeps it: in large pages where the system has them
        let mut pool = MmapMut::map_anon(pages * layout.page_bytes()).expect("memory for the pool");
        #[cfg(target_os = "linux")]
        drop(pool.advise(memmap2::Advice::HugePage));
        // halves of moderate size, read as bytes or as halves
        for (i, half) in pool.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *half = ((i * 40_503 % 1024 + 0x2c00) as u16).to_le_bytes();
        }
        // a step that has no factor in common with the number of pages goes through all of them
        let step = (pages / 3..).find(|step| gcd(*step, pages) == 1).unwrap_or(1);
        Setup {
            shape,
            layout,
            pool,
            table: (0..pages).map(|i| (i * step % pages) as u32).collect(),
            q: (0..rows * shape.heads * shape.key_dim)
                .map(|i| (i * 7919 % 2003) as f32 / 1e3 - 1.0)
                .collect(),
            out: vec![0.0; rows * shape.heads * shape.value_dim],
        }
    }

    fn run(&mut self, cpu: &Cpu, rows: &[Row], from: usize) {
        let (qw, ow) = (self.shape.heads * self.shape.key_dim, self.shape.heads * self.shape.value_dim);
        let a = Attention {
            layout: self.layout,
            pool: &self.pool,
            stride: self.layout.page_bytes(),
            offset: 0,
            q: &self.q[from * qw..(from + rows.len()) * qw],
            heads: self.shape.heads,
            rows,
            scale: 0.001,
            window: None,
            softcap: None,
            alibi: &[],
            sinks: &[],
            level: Level::BatchInvariant,
        };
        cpu.attention(&a, black_box(&mut self.out[from * ow..(from + rows.len()) * ow]));
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn decode(c: &mut Criterion) {
    let cpu = Cpu::new(0);
    for shape in &SHAPES {
        let mut group = c.benchmark_group(format!("decode {}", shape.name));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(300));
        for (depth, sequences) in [(4096, 1), (4096, 8), (32_768, 1)] {
            let mut setup = Setup::new(
                shape,
                std::env::var("POOL").map_or(POOL, |s| s.parse().unwrap()),
                depth * sequences,
                sequences,
            );
            let pages = depth / 64;
            let tables: Vec<Vec<u32>> = setup.table.chunks_exact(pages).map(<[u32]>::to_vec).collect();
            let bytes = sequences * pages * setup.layout.page_bytes();
            group.throughput(Throughput::Bytes(bytes as u64));
            let mut turn = 0;
            group.bench_function(BenchmarkId::from_parameter(format!("{sequences} x {depth}")), |b| {
                b.iter(|| {
                    let next = |s: usize| &tables[(turn + s) % tables.len()][..];
                    let row = |s| Row { table: next(s), position: depth as u32 - 1 };
                    let rows: Vec<Row> = (0..sequences).map(row).collect();
                    setup.run(&cpu, &rows, 0);
                    turn += sequences;
                })
            });
            if (depth, sequences) == (4096, 1) {
                let (piece, mut at) = (bytes / 8, 0);
                group.bench_function("only reading", |b| {
                    b.iter(|| {
                        at = if at + 2 * bytes > setup.pool.len() { 0 } else { at + bytes };
                        let part = &setup.pool[at..at + bytes];
                        cpu.pool().run(8, |i| {
                            black_box(read_streams(&part[i * piece..(i + 1) * piece]));
                        });
                    })
                });
            }
        }
        group.finish();
    }
}

fn prefill(c: &mut Criterion) {
    let cpu = Cpu::new(0);
    for shape in [&SHAPES[0], &SHAPES[7], &LATENT] {
        let mut group = c.benchmark_group(format!("prefill {}", shape.name));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(500));
        for length in [512, 4096] {
            if shape.latent && length > 512 {
                continue;
            }
            let mut setup = Setup::new(shape, 0, length, length);
            let table = setup.table.clone();
            let rows: Vec<Row> = (0..length as u32).map(|position| Row { table: &table, position }).collect();
            group.throughput(Throughput::Elements(length as u64));
            group.bench_function(BenchmarkId::from_parameter(length), |b| {
                b.iter(|| {
                    for (i, chunk) in rows.chunks(512).enumerate() {
                        setup.run(&cpu, chunk, i * 512);
                    }
                })
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode, prefill);
criterion_main!(benches);
