//! Products allocate nothing once their input has been as large before.

mod common;
#[path = "common/counting.rs"]
mod counting;

use common::{Random, TYPES};
use counting::allocations;
use llm_format::quant::encode;
use llm_kernels::{Cpu, Input, Job, Matrix};

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
    let least = (0..10).map(|_| allocations(|| [1, 3, most].into_iter().for_each(&mut run))).min();
    assert_eq!(least, Some(0));
}
