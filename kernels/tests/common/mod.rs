//! Shared by the tests: random numbers, matrices, the slow twins.
#![allow(dead_code)] // each test file uses its part

use llm_emulator::{Unit, install};
use llm_kernels::{Cpu, Isa, Type, available};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// A small generator (splitmix64), so that a failure repeats.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly gaussian.
    pub fn value(&mut self) -> f32 {
        (0..4).map(|_| (self.bits() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// Every instruction set of this machine, and tiles where they can be emulated, with one and with two threads; the
/// first is scalar with one.
pub fn cpus() -> Vec<Cpu> {
    install();
    tell_lacking();
    let all = available().into_iter().flat_map(|isa| [1, 2].map(|threads| Cpu::with_isa(threads, isa)));
    all.map(|cpu| cpu.expect("available")).collect()
}

/// Says once which of the architecture's instruction sets these tests go without.
fn tell_lacking() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        let is_ours = |isa: &Isa| isa.name().starts_with("neon") == cfg!(target_arch = "aarch64");
        for isa in Isa::ALL.into_iter().filter(is_ours).filter(|isa| !isa.is_available()) {
            llm_testdata::lacks(&format!("{}: these tests go without it", isa.name()));
        }
    });
}

/// Tests that count instructions take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Matrix tiles, the processor's or emulated, and this test's turn with them; a machine without AVX-512 has none.
pub fn tiles() -> Option<(MutexGuard<'static, ()>, Unit)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let unit = install();
    println!("tiles: {unit:?}");
    if unit.is_none() {
        llm_testdata::not_run("products on matrix tiles: this machine has no AVX-512");
    }
    Some((turn, unit?))
}

pub fn scalar() -> Cpu {
    Cpu::with_isa(1, Isa::Scalar).expect("any machine")
}

pub const TYPES: [Type; 9] =
    [Type::F32, Type::F16, Type::Bf16, Type::Q8, Type::Q6, Type::Q5, Type::Q4, Type::Q3, Type::Q2];

/// Equal as bits, except that any NaN equals any NaN.
pub fn same(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(), "{what}: value {i}: {x:e} and {y:e}");
    }
}

/// Sixteen partial sums by index mod 16, then the tree.
pub fn tree(lanes: [f32; 16]) -> f32 {
    let mut l = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            l[i] += l[i + half];
        }
    }
    l[0]
}

/// One int8 term of up to 256 activations: (integers, scale).
pub fn quantize(x: &[f32]) -> (Vec<i8>, f32) {
    if x.iter().any(|v| !v.is_finite()) {
        return (vec![0; x.len()], f32::NAN);
    }
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    if amax < 2f32.powi(-90) {
        return (vec![0; x.len()], 0.0);
    }
    let scale = amax / 127.0;
    let inverse = 1.0 / scale;
    (x.iter().map(|v| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).collect(), scale)
}

/// The terms that a product with `ty` takes of up to 256 activations; the second is that of what the first leaves.
pub fn terms(ty: Type, x: &[f32]) -> Vec<(Vec<i8>, f32)> {
    let (a, s) = quantize(x);
    if !matches!(ty, Type::Q8 | Type::Q6) {
        return vec![(a, s)];
    }
    let second = if s.is_finite() {
        quantize(&a.iter().zip(x).map(|(&a, &x)| (-s).mul_add(f32::from(a), x)).collect::<Vec<_>>())
    } else {
        (vec![0; x.len()], 0.0)
    };
    vec![(a, s), second]
}

/// To bf16, ties to even.
pub fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// A sum as tiles of bf16 make it: 32 inputs at a time, even and odd ones apart; what these tests use is never denormal.
pub fn tile_sum(w: &[f32], x: &[f32], start: f32) -> f32 {
    let mut sum = start;
    for (w, x) in w.chunks(32).zip(x.chunks(32)) {
        let mut parts = [0f32; 2];
        for (k, (&w, &x)) in w.iter().zip(x).enumerate() {
            parts[k % 2] = bf16(w).mul_add(bf16(x), parts[k % 2]);
        }
        sum += parts[0] + parts[1];
    }
    sum
}
