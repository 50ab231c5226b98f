//! What it costs to share work: fork and join of the pool with nothing to do, with as many units as threads and with
//! many, awake and (by one job a millisecond) half asleep.

use criterion::{Criterion, criterion_group, criterion_main};
use llm_kernels::Pool;
use std::hint::black_box;
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

criterion_group!(benches, fork_join);
criterion_main!(benches);
