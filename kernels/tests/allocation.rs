//! After the first call of a size, nothing allocates.
#![allow(unsafe_code)] // a counting allocator

mod common;

use common::{Random, TYPES};
use llm_format::quant::encode;
use llm_kernels::{
    Activation, Attention, Cpu, GroupRank, Input, Job, KeyType, KvLayout, Level, Matrix, RouteSpec, Row,
    Scoring, ValueType, detect,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_second_step_allocates_nothing() {
    let mut r = Random(1);
    let (rows, cols, m) = (320, 512, 9);
    let cpu = Cpu::with_isa(2, detect()).expect("this machine's own");
    let data = TYPES.map(|ty| (ty, encode(ty, &r.values(rows * cols), rows, cols)));
    let x = r.values(m * cols);
    let mut input = Input::new();
    let (mut out, mut other) = (vec![0f32; m * rows], vec![0f32; m * rows]);
    let layout = KvLayout {
        key: KeyType::I8,
        value: ValueType::F16,
        page_tokens: 64,
        kv_heads: 2,
        key_dim: 64,
        value_dim: 64,
        latent: false,
    };
    let mut pool = vec![0u8; layout.page_bytes()];
    let table = [0u32];
    let batch: Vec<Row> = (0..m as u32).map(|position| Row { table: &table, position }).collect();
    let (kv, q) = (r.values(m * 128), r.values(m * 256));
    let mut heads = vec![0f32; m * 256];
    let router = RouteSpec {
        scoring: Scoring::Softmax,
        count: 8,
        active: 2,
        normalize: true,
        scale: 1.0,
        groups: 1,
        active_groups: 1,
        group_rank: GroupRank::Max,
        choice_bias: None,
    };
    let (mut ids, mut weights) = (vec![0u32; 2], vec![0f32; 2]);
    let mut before = 0;
    for round in 0..3 {
        if round == 1 {
            before = COUNT.load(Ordering::Relaxed);
        }
        input.load(&cpu, &x, m, cols);
        for (ty, data) in &data {
            let matrix = Matrix::new(*ty, rows, cols, data).expect("whole");
            let a = Job { matrix, bias: None, out: &mut out };
            let b = Job { matrix, bias: None, out: &mut other };
            cpu.matmul_group(&mut [a, b], &mut input);
        }
        cpu.activate(Activation::GeluTanh, &mut out);
        cpu.add(&mut out, &other);
        cpu.kv_write(&layout, &mut pool, layout.page_bytes(), 0, &batch, &kv, &kv);
        let a = Attention {
            layout,
            pool: &pool,
            stride: layout.page_bytes(),
            offset: 0,
            q: &q,
            heads: 4,
            rows: &batch,
            scale: 0.125,
            window: None,
            softcap: None,
            alibi: &[],
            sinks: &[],
            level: Level::BatchInvariant,
        };
        cpu.attention(&a, &mut heads);
        cpu.route(&heads[..8], 1, &router, &mut ids, &mut weights);
    }
    assert_eq!(COUNT.load(Ordering::Relaxed) - before, 0, "allocations in later rounds");
}
