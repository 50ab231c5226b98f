//! What the weight types cost and keep: bits, relative error on normally distributed weights, speed of encoding.
//! `cargo run --release -p llm-format --example types [rows]`

use llm_format::quant::{self, QUANTS};

fn main() {
    let rows = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(256);
    let cols = 2048;
    let values = gaussian(rows * cols, 7);
    println!("type    bits  relative RMSE   million weights/s, one thread");
    for quant in QUANTS {
        let start = std::time::Instant::now();
        let matrix = quant::encode(quant.ty, &values, rows, cols);
        let speed = values.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        let decoded = quant::decode(quant.ty, &matrix, rows, cols);
        let error: f64 = values.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let whole: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        println!("{:4} {:7} {:14.5} {:13.1}", quant.name, quant.bits, (error / whole).sqrt(), speed);
    }
}

/// Normally distributed weights out of a counter: splitmix64, then Box and Muller.
fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let one = |_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32 * 0.02;
    (0..count).map(one).collect()
}
