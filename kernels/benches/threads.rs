//! What it costs to share work: fork and join of the pool with nothing to do, with as many units as threads and with
//! many, awake and (by one job a millisecond) half asleep. Then what two threads are worth beside a process that keeps
//! a core busy: turns of one and of two threads alternate, so that noise from outside hits both alike.

use criterion::{Criterion, criterion_group, criterion_main};
use llm_format::quant::encode;
use llm_kernels::{Cpu, Input, Matrix, Pool, Type};
use std::hint::black_box;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Longer than the pool's threads stay awake.
const IDLE: Duration = Duration::from_millis(2);

fn fork_join(c: &mut Criterion) {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    for threads in [1, 2, 4, 8, 16].into_iter().filter(|&threads| threads <= cores) {
        let pool = Pool::new(threads);
        let mut group = c.benchmark_group(format!("fork and join, {threads} threads"));
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
        for units in [threads, 64] {
            group.bench_function(format!("{units} units"), |b| {
                b.iter(|| pool.run(units, |unit| _ = black_box(unit)));
            });
        }
        group.sample_size(10);
        group.bench_function("after a pause", |b| {
            b.iter_custom(|times| {
                let timed = |_| {
                    std::thread::sleep(IDLE);
                    let began = Instant::now();
                    pool.run(threads, |unit| _ = black_box(unit));
                    began.elapsed()
                };
                (0..times).map(timed).sum()
            });
        });
        group.finish();
    }
}

/// Products of a turn, of different weights: some 70 MB are read, as by a token of a small model.
const PRODUCTS: usize = 8;
const TURNS: usize = 100;

/// A process that keeps a core busy while the value lives.
struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn beside_a_busy_process(_: &mut Criterion) {
    let (rows, cols) = (8192, 2048);
    // one block repeated: the values do not matter to the time
    let values: Vec<f32> = (0..32 * cols).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    let block = encode(Type::Q4, &values, 32, cols);
    let (head, block) = block.split_at(64);
    let weights = vec![[head, &block.repeat(rows / 32)].concat(); PRODUCTS];
    let (x, mut out, mut input) = (vec![0.5f32; cols], vec![0f32; rows], Input::new());
    let cpus = [1, 2].map(Cpu::new);
    for busy in [false, true] {
        let process = busy.then(|| Command::new("sh").args(["-c", "while :; do :; done"]).spawn().map(Busy));
        if let Some(Err(error)) = &process {
            println!("no busy process, nothing measured beside one: {error}");
            return;
        }
        let mut seconds = [Vec::new(), Vec::new()];
        for _ in 0..TURNS {
            for (cpu, seconds) in cpus.iter().zip(&mut seconds) {
                let began = Instant::now();
                for data in &weights {
                    let w = Matrix::new(Type::Q4, rows, cols, data).expect("whole");
                    input.load(cpu, &x, 1, cols);
                    cpu.matmul(w, &mut input, None, black_box(&mut out));
                }
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
        drop(process);
        let ratio = median(seconds[0].iter().zip(&seconds[1]).map(|(one, two)| one / two).collect());
        let [one, two] = seconds.map(|seconds| median(seconds) * 1e3);
        let company = if busy { "beside a busy process" } else { "with nothing beside them" };
        println!("{company}: one thread {one:.2} ms, two {two:.2} ms; two are {ratio:.2} times one");
    }
}

criterion_group!(benches, fork_join, beside_a_busy_process);
criterion_main!(benches);
