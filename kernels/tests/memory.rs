//! Products allocate nothing once their input has been as large before.
#![allow(unsafe_code)] // counts through the global allocator

mod common;

use common::{Random, TYPES};
use llm_format::quant::encode;
use llm_kernels::{Cpu, Input, Job, Matrix};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, counted
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn products_after_the_first_allocate_nothing() {
    let mut r = Random(1);
    let (rows, cols, most) = (70, 600, 40);
    let data = TYPES.map(|ty| encode(ty, &r.values(rows * cols), rows, cols));
    let x = r.values(most * cols);
    let mut outs = TYPES.map(|_| vec![0f32; most * rows]);
    let cpu = Cpu::new(2);
    let mut input = Input::new();
    let mut run = |m: usize| {
        input.load(&cpu, &x[..m * cols], m, cols);
        let mut at = 0;
        let mut jobs = outs.each_mut().map(|out| {
            at += 1;
            let matrix = Matrix::new(TYPES[at - 1], rows, cols, &data[at - 1]).expect("whole");
            Job { matrix, bias: None, out: &mut out[..m * rows] }
        });
        cpu.matmul_group(&mut jobs, &mut input);
    };
    run(most);
    // the test harness's own thread may allocate meanwhile, but not in every round
    let least = (0..10)
        .map(|_| {
            let before = COUNT.load(Ordering::Relaxed);
            [1, 3, most].into_iter().for_each(&mut run);
            COUNT.load(Ordering::Relaxed) - before
        })
        .min();
    assert_eq!(least, Some(0));
}
