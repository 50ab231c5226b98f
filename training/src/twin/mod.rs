//! The slow twin of every op, and of whole models: the forward pass by definition, in f64. Gradients of the kernels, and
//! of models of every design, are compared with central differences of these functions.

#[path = "../../tests/common/designs.rs"]
mod designs;
mod ops;
mod reference;
mod shapes;
mod whole;

pub(crate) use designs::designs;
use llm::model::arch::{LayerSlot, Slot};
use llm_kernels::dense::{Bend, Curve, Dense, Heads, Rotated};
pub(crate) use shapes::{foreign, shapes};

use crate::design;
use crate::params::Params;
use crate::random::{Stream, normal};

/// Small beside the values of a stream before its first norm, large beside the rounding of f64.
const STEP: f64 = 1e-6;

/// Values larger than at the start of a run, so that every path carries weight. Corrections of the choice of experts are
/// below every score, where what is left out of a choice must not come back as a zero.
fn loud(params: &Params, layers: usize) -> Vec<f32> {
    let mut values: Vec<f32> = params.init(3, layers).iter().map(|w| w * 4.0).collect();
    for p in params.list.iter().filter(|p| matches!(p.slot(), Slot::Layer(_, LayerSlot::ChoiceBias))) {
        for (v, i) in values[p.range()].iter_mut().zip(1u8..) {
            *v = f32::from(i * 7 % 5) * 0.01 - 1.0;
        }
    }
    let bias = |part| {
        matches!(
            part,
            LayerSlot::RouterBias
                | LayerSlot::ExpertGateBias
                | LayerSlot::ExpertUpBias
                | LayerSlot::ExpertDownBias
                | LayerSlot::Sinks
        )
    };
    let bias = |slot| matches!(slot, Slot::Layer(_, part) if bias(part)) || slot == Slot::HeadBias;
    for p in params.list.iter().filter(|p| bias(p.slot())) {
        for (v, i) in values[p.range()].iter_mut().zip(1u16..) {
            *v = f32::from(i * 7 % 11) * 0.02 - 0.1;
        }
    }
    values
}

/// Ids and targets of `rows` rows.
pub(crate) fn tokens(rows: u32, vocab: u32) -> (Vec<u32>, Vec<u32>) {
    (0..rows).map(|i| (i * 7 % vocab, i * 5 % vocab)).unzip()
}

fn linear(x: &[f64], w: &[f64], b: Option<&[f64]>, n: usize, k: usize) -> Vec<f64> {
    let mut y = vec![0.0; x.len() / k * n];
    // four rows side by side: one sum waits for itself, and layers of whole presets pass here
    let beside = |rows: &[f64], i: usize| [0, 1, 2, 3].map(|r| rows.get(r * k + i).copied().unwrap_or(0.0));
    let fours: Vec<Vec<[f64; 4]>> =
        x.chunks(4 * k).map(|rows| (0..k).map(|i| beside(rows, i)).collect()).collect();
    for (j, w) in w.chunks_exact(k).take(n).enumerate() {
        for (x, y) in fours.iter().zip(y.chunks_mut(4 * n)) {
            let mut sums = [0.0; 4];
            for (x, w) in x.iter().zip(w) {
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * w);
            }
            for (row, sum) in y.chunks_mut(n).zip(sums) {
                row[j] = sum + b.map_or(0.0, |b| b[j]);
            }
        }
    }
    y
}

fn norm(x: &[f64], w: &[f64], b: Option<&[f64]>, center: bool, eps: f64) -> Vec<f64> {
    let d = w.len();
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = if center { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
        let hat = |i: usize| (x[i] - mean) / (var + eps).sqrt();
        (0..d).map(|i| hat(i) * w[i] + b.map_or(0.0, |b| b[i])).collect()
    };
    x.chunks(d).flat_map(row).collect()
}

/// `angle(position, pair)`
fn rope(
    x: &mut [f64],
    stride: usize,
    what: Rotated,
    half: usize,
    length: usize,
    angle: &dyn Fn(usize, usize) -> f64,
) {
    for (r, row) in x.chunks_mut(stride).enumerate() {
        for h in 0..what.heads {
            let head = &mut row[what.start + h * what.step..][..2 * half];
            for i in 0..half {
                let (a, b) = if what.neighbours { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (sin, cos) = angle(r % length, i).sin_cos();
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
            }
        }
    }
}

/// `sinks` in place of those of `h`, for differences; `kept`: the factor on each probability, or empty.
fn attention(h: &Heads, qkv: &[f64], sinks: &[f64], kept: &[f64]) -> Vec<f64> {
    let stride = h.heads * h.dim + h.kv_heads * (h.dim + h.value_dim);
    let rows = qkv.len() / stride;
    let mut out = vec![0.0; rows * h.heads * h.value_dim];
    for r in 0..rows {
        let first = r / h.length * h.length;
        let window = if h.window > 0 { (r + 1).saturating_sub(h.window) } else { 0 };
        let low = (first + h.starts.get(r).map_or(0, |s| *s as usize)).max(window).max(first);
        for head in 0..h.heads {
            let kv = head / (h.heads / h.kv_heads);
            let slope = f64::from(h.slopes.get(head).copied().unwrap_or(0.0));
            let query = &qkv[r * stride + head * h.dim..][..h.dim];
            let score = |k: usize| -> f64 {
                let key = &qkv[k * stride + (h.heads + kv) * h.dim..][..h.dim];
                let dot: f64 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                let (score, cap) = (f64::from(h.scale) * dot, f64::from(h.softcap));
                let score = if cap > 0.0 { cap * (score / cap).tanh() } else { score };
                score + slope * (k as f64 - r as f64)
            };
            let p: Vec<f64> = (low..=r).map(|k| score(k).exp()).collect();
            let sum = p.iter().sum::<f64>() + sinks.get(head).map_or(0.0, |s| s.exp());
            for (k, p) in (low..=r).zip(p) {
                let p = p * kept.get((r * h.heads + head) * h.length + k - first).copied().unwrap_or(1.0);
                let at = k * stride + (h.heads + h.kv_heads) * h.dim + kv * h.value_dim;
                for (d, v) in qkv[at..at + h.value_dim].iter().enumerate() {
                    out[(r * h.heads + head) * h.value_dim + d] += p / sum * v;
                }
            }
        }
    }
    out
}

/// The factors that dropout of `rate` under `key` puts on `n` values, as its kernel draws them from ones.
fn drawn(n: usize, rate: f32, key: u64) -> Vec<f64> {
    let mut ones = vec![1.0; n];
    Dense::new(1).dropout(&mut ones, rate, key);
    factors(&ones, rate)
}

/// Those on the probabilities of attention, `[rows, heads, length]`, as its kernel draws them: scores are equal, and
/// each value names its key.
fn kept(h: &Heads, rows: usize) -> Vec<f64> {
    let probe =
        Heads { value_dim: h.length, dropout: h.dropout, key: h.key, ..Heads::new(h.heads, 1, 1, h.length) };
    let stride = h.heads + 1 + h.length;
    let mut qkv = vec![0.0; rows * stride];
    for (r, row) in qkv.chunks_mut(stride).enumerate() {
        row[h.heads + 1 + r % h.length] = 1.0;
    }
    let (mut y, mut lse) = (vec![0.0; rows * h.heads * h.length], vec![0.0; rows * h.heads]);
    Dense::new(1).attention(&probe, &qkv, &mut y, &mut lse);
    factors(&y, h.dropout)
}

/// What is left is scaled, so that the mean stays.
fn factors(left: &[f32], rate: f32) -> Vec<f64> {
    left.iter().map(|x| if *x > 0.0 { 1.0 / (1.0 - f64::from(rate)) } else { 0.0 }).collect()
}

/// The error function by its series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn activate(curve: Curve, x: f64) -> f64 {
    match curve {
        Curve::Silu => x / (1.0 + (-x).exp()),
        Curve::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Curve::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Curve::Relu => x.max(0.0),
        Curve::Relu2 => x.max(0.0).powi(2),
        Curve::ClampedSwiglu { .. } => panic!("gated only"),
    }
}

/// A gated activation of one value of gate and up.
fn gate(curve: Curve, g: f64, u: f64) -> f64 {
    let Curve::ClampedSwiglu { alpha, limit } = curve else { return activate(curve, g) * u };
    let (alpha, limit) = (f64::from(alpha), f64::from(limit));
    let g = g.min(limit);
    (u.clamp(-limit, limit) + 1.0) * g / (1.0 + (-alpha * g).exp())
}

fn gated(curve: Curve, gu: &[f64], f: usize) -> Vec<f64> {
    let row = |r: &[f64]| (0..f).map(|i| gate(curve, r[i], r[f + i])).collect::<Vec<_>>();
    gu.chunks(2 * f).flat_map(row).collect()
}

fn bend(x: &mut [f64], b: Bend) {
    for x in x {
        *x *= f64::from(b.scale);
        *x = b.softcap.map_or(*x, |cap| f64::from(cap) * (*x / f64::from(cap)).tanh());
    }
}

fn cross_entropy(logits: &[f64], vocab: usize, targets: &[u32]) -> f64 {
    let rows = logits.chunks(vocab).zip(targets).filter(|(_, t)| (**t as usize) < vocab);
    rows.map(|(row, t)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*t as usize]).sum()
}

fn values(n: usize, seed: u64) -> Vec<f32> {
    (0..n).map(|i| normal(seed, Stream::Weights, 0, i as u64)).collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Compares `got`, the kernel's gradient of `loss`, with central differences at `x`.
#[track_caller]
fn compare(what: &str, x: &[f32], got: &[f32], loss: impl Fn(&[f64]) -> f64) {
    let mut x = wide(x);
    assert_eq!(x.len(), got.len(), "{what}");
    for (i, got) in got.iter().enumerate() {
        check(what, &mut x, i, *got, 2e-4, &loss);
    }
}

/// The same for value `i` alone, to the relative error `share`.
#[track_caller]
fn check(what: &str, x: &mut [f64], i: usize, got: f32, share: f64, loss: &impl Fn(&[f64]) -> f64) {
    let middle = x[i];
    x[i] = middle + STEP;
    let above = loss(x);
    x[i] = middle - STEP;
    let expected = (above - loss(x)) / (2.0 * STEP);
    x[i] = middle;
    let error = (f64::from(got) - expected).abs();
    assert!(error <= share * (0.1 + expected.abs()), "{what}[{i}]: {got}, expected {expected}");
}

#[track_caller]
fn close(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*a) - b).abs() <= 1e-5 + 1e-5 * b.abs(), "{what}[{i}]: {a}, expected {b}");
    }
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}
