//! The slow twin of every op: its forward pass by definition, in f64. Gradients of the kernels are compared with
//! central differences of these functions; the whole model with its own twin.

use crate::config::{Family, ModelConfig};
use crate::engine::{Engine, Want};
use crate::params::{Params, Role};
use crate::random::{Stream, normal};
use crate::tape::Tape;
use llm_kernels::dense::{Dense, Heads};

const STEP: f64 = 1e-5;

fn linear(x: &[f64], w: &[f64], b: Option<&[f64]>, n: usize, k: usize) -> Vec<f64> {
    let row = |x: &[f64], j: usize| -> f64 {
        let sum: f64 = x.iter().zip(&w[j * k..]).map(|(a, b)| a * b).sum();
        sum + b.map_or(0.0, |b| b[j])
    };
    x.chunks(k).flat_map(|x| (0..n).map(|j| row(x, j)).collect::<Vec<_>>()).collect()
}

fn norm(x: &[f64], w: &[f64], b: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let d = w.len();
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = if b.is_some() { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
        let hat = |i: usize| (x[i] - mean) / (var + eps).sqrt();
        (0..d).map(|i| hat(i) * w[i] + b.map_or(0.0, |b| b[i])).collect()
    };
    x.chunks(d).flat_map(row).collect()
}

fn rope(x: &mut [f64], stride: usize, heads: usize, dim: usize, length: usize, theta: f64) {
    for (r, row) in x.chunks_mut(stride).enumerate() {
        for head in row.chunks_mut(dim).take(heads) {
            for i in 0..dim / 2 {
                let angle = (r % length) as f64 * theta.powf(-((2 * i) as f64) / dim as f64);
                let (a, b) = (head[i], head[i + dim / 2]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    }
}

fn attention(h: &Heads, qkv: &[f64]) -> Vec<f64> {
    let stride = (h.heads + 2 * h.kv_heads) * h.dim;
    let rows = qkv.len() / stride;
    let mut out = vec![0.0; rows * h.heads * h.dim];
    for r in 0..rows {
        let first = r / h.length * h.length;
        for head in 0..h.heads {
            let kv = h.heads + head / (h.heads / h.kv_heads);
            let at = |row: usize, head: usize| &qkv[row * stride + head * h.dim..][..h.dim];
            let dot = |k: usize| -> f64 { at(r, head).iter().zip(at(k, kv)).map(|(a, b)| a * b).sum() };
            let p: Vec<f64> = (first..=r).map(|k| (f64::from(h.scale) * dot(k)).exp()).collect();
            let sum: f64 = p.iter().sum();
            for (k, p) in (first..=r).zip(p) {
                for (d, v) in at(k, kv + h.kv_heads).iter().enumerate() {
                    out[(r * h.heads + head) * h.dim + d] += p / sum * v;
                }
            }
        }
    }
    out
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

fn swiglu(gu: &[f64], f: usize) -> Vec<f64> {
    let row = |r: &[f64]| (0..f).map(|i| r[i] / (1.0 + (-r[i]).exp()) * r[f + i]).collect::<Vec<_>>();
    gu.chunks(2 * f).flat_map(row).collect()
}

fn cross_entropy(logits: &[f64], vocab: usize, targets: &[u32]) -> f64 {
    let rows = logits.chunks(vocab).zip(targets).filter(|(_, t)| (**t as usize) < vocab);
    rows.map(|(row, t)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*t as usize]).sum()
}

fn values(n: usize, seed: u64) -> Vec<f32> {
    (0..n).map(|i| normal(seed, Stream::Weights, 0, i as u64)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Compares `got`, the kernel's gradient of `loss`, with central differences at `x`.
#[track_caller]
fn compare(what: &str, x: &[f32], got: &[f32], loss: impl Fn(&[f64]) -> f64) {
    let mut x = wide(x);
    assert_eq!(x.len(), got.len(), "{what}");
    for (i, got) in got.iter().enumerate() {
        let middle = x[i];
        x[i] = middle + STEP;
        let above = loss(&x);
        x[i] = middle - STEP;
        let expected = (above - loss(&x)) / (2.0 * STEP);
        x[i] = middle;
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= 2e-5 + 2e-4 * expected.abs(), "{what}[{i}]: {got}, expected {expected}");
    }
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

#[test]
fn gradients_of_linear_agree_with_finite_differences() {
    let (m, n, k) = (5, 7, 19);
    let (x, w, b, r, dy) =
        (values(m * k, 1), values(n * k, 2), values(n, 3), values(m * n, 4), values(m * n, 5));
    let mut dense = Dense::new(1);
    let mut y = vec![0.0; m * n];
    dense.linear(&x, &w, Some(&b), Some(&r), &mut y, (m, n, k));
    let plus: Vec<f64> = linear(&wide(&x), &wide(&w), Some(&wide(&b)), n, k)
        .iter()
        .zip(wide(&r))
        .map(|(a, b)| a + b)
        .collect();
    close("y", &y, &plus);
    let (mut dx, mut dw, mut db) = (vec![0.0; m * k], vec![0.0; n * k], vec![0.0; n]);
    dense.linear_dx(&dy, &w, &mut dx, (m, n, k), false);
    dense.linear_dw(&dy, &x, &mut dw, (m, n, k));
    dense.bias_back(&dy, &mut db);
    compare("dx", &x, &dx, |x| dot(&linear(x, &wide(&w), None, n, k), &dy));
    compare("dw", &w, &dw, |w| dot(&linear(&wide(&x), w, None, n, k), &dy));
    compare("db", &b, &db, |b| dot(&linear(&wide(&x), &wide(&w), Some(b), n, k), &dy));
}

#[test]
fn gradients_of_both_norms_agree_with_finite_differences() {
    let (rows, d, eps) = (70, 21, 1e-5f32);
    let (x, w, b, dy) = (values(rows * d, 1), values(d, 2), values(d, 3), values(rows * d, 4));
    let mut dense = Dense::new(2);
    for bias in [Some(&b), None] {
        let (mut y, mut stats) = (vec![0.0; rows * d], vec![0.0; rows * 2]);
        dense.norm(&x, &w, bias.map(|b| &b[..]), eps, &mut y, &mut stats);
        let twin = |x: &[f64], w: &[f64], b: &[f64]| norm(x, w, bias.map(|_| b), f64::from(eps));
        let (x64, w64, b64) = (wide(&x), wide(&w), wide(&b));
        close("y", &y, &twin(&x64, &w64, &b64));
        let (mut dx, mut dw, mut db) = (vec![1.0; rows * d], vec![0.0; d], vec![0.0; d]);
        dense.norm_back(&dy, &x, &w, &stats, &mut dx, true, &mut dw, bias.is_some().then_some(&mut db));
        dx.iter_mut().for_each(|g| *g -= 1.0);
        compare("dx", &x[..d], &dx[..d], |x| dot(&twin(x, &w64, &b64), &dy[..d]));
        compare("dw", &w, &dw, |w| dot(&twin(&x64, w, &b64), &dy));
        if bias.is_some() {
            compare("db", &b, &db, |b| dot(&twin(&x64, &w64, b), &dy));
        }
    }
}

#[test]
fn gradients_of_the_embedding_agree_with_finite_differences() {
    let (d, ids) = (5, [3u32, 1, 3, 0, 2, 3]);
    let (table, positions, dy) = (values(4 * d, 1), values(3 * d, 2), values(ids.len() * d, 3));
    let mut dense = Dense::new(1);
    let twin = |t: &[f64], p: &[f64]| -> Vec<f64> {
        (0..ids.len() * d).map(|i| t[ids[i / d] as usize * d + i % d] + p[i / d % 3 * d + i % d]).collect()
    };
    let mut y = vec![0.0; ids.len() * d];
    dense.embed(&ids, &table, Some(&positions), &mut y);
    close("y", &y, &twin(&wide(&table), &wide(&positions)));
    let (mut dt, mut dp) = (vec![0.0; table.len()], vec![0.0; positions.len()]);
    dense.embed_back(&ids, &dy, &mut dt, Some(&mut dp));
    compare("table", &table, &dt, |t| dot(&twin(t, &wide(&positions)), &dy));
    compare("positions", &positions, &dp, |p| dot(&twin(&wide(&table), p), &dy));
}

#[test]
fn gradients_of_rotary_positions_agree_with_finite_differences() {
    let (rows, heads, dim, length) = (6, 2, 8, 3);
    let stride = heads * dim + 5;
    let (x, dy) = (values(rows * stride, 1), values(rows * stride, 2));
    let angle = |i: usize| (i / 4) as f64 * 100f64.powf(-((2 * (i % 4)) as f64) / 8.0);
    let cos: Vec<f32> = (0..12).map(|i| angle(i).cos() as f32).collect();
    let sin: Vec<f32> = (0..12).map(|i| angle(i).sin() as f32).collect();
    let mut dense = Dense::new(1);
    let twin = |x: &[f64]| {
        let mut x = x.to_vec();
        rope(&mut x, stride, heads, dim, length, 100.0);
        x
    };
    let (mut y, mut dx) = (x.clone(), dy.clone());
    dense.rope(&mut y, stride, heads, length, &cos, &sin, false);
    close("y", &y, &twin(&wide(&x)));
    dense.rope(&mut dx, stride, heads, length, &cos, &sin, true);
    compare("dx", &x, &dx, |x| dot(&twin(x), &dy));
}

#[test]
fn gradients_of_attention_agree_with_finite_differences() {
    // Longer than a block of queries; grouped heads; two sequences.
    for (heads, kv_heads, length) in [(4, 2, 50), (2, 2, 5), (3, 1, 48)] {
        let h = Heads { heads, kv_heads, dim: 6, length, scale: 0.4, dropout: 0.0, key: 0 };
        let (rows, stride) = (2 * length, (heads + 2 * kv_heads) * 6);
        let (qkv, dy) = (values(rows * stride, 1), values(rows * heads * 6, 2));
        let mut dense = Dense::new(2);
        let (mut y, mut lse, mut dqkv) = (vec![0.0; dy.len()], vec![0.0; rows * heads], vec![9.0; qkv.len()]);
        dense.attention(&h, &qkv, &mut y, &mut lse);
        close("y", &y, &attention(&h, &wide(&qkv)));
        dense.attention_back(&h, &qkv, &y, &lse, &dy, &mut dqkv);
        // One sequence is enough for the differences; the other must not leak into it.
        let (one, outs) = (length * stride, length * heads * 6);
        compare("dqkv", &qkv[..one], &dqkv[..one], |x| dot(&attention(&h, x), &dy[..outs]));
    }
}

#[test]
fn gradients_of_attention_with_dropout_agree_with_differences_of_its_own_forward_pass() {
    let h = Heads { heads: 2, kv_heads: 1, dim: 4, length: 7, scale: 0.5, dropout: 0.3, key: 77 };
    let (qkv, dy) = (values(7 * 16, 1), values(7 * 8, 2));
    let (mut y, mut lse, mut dqkv) = (vec![0.0; 56], vec![0.0; 14], vec![0.0; qkv.len()]);
    let mut dense = Dense::new(1);
    dense.attention(&h, &qkv, &mut y, &mut lse);
    dense.attention_back(&h, &qkv, &y, &lse, &dy, &mut dqkv);
    let mut loss = |x: &[f32]| {
        let (mut y, mut lse) = (vec![0.0; 56], vec![0.0; 14]);
        dense.attention(&h, x, &mut y, &mut lse);
        dot(&wide(&y), &dy)
    };
    for i in 0..qkv.len() {
        let (mut above, mut below) = (qkv.clone(), qkv.clone());
        above[i] += 1e-2;
        below[i] -= 1e-2;
        let expected = (loss(&above) - loss(&below)) / f64::from(above[i] - below[i]);
        assert!((f64::from(dqkv[i]) - expected).abs() < 2e-3, "[{i}]: {} {expected}", dqkv[i]);
    }
}

#[test]
fn gradients_of_gelu_and_swiglu_agree_with_finite_differences() {
    let (x, dy) = (values(60, 1), values(60, 2));
    let mut dense = Dense::new(1);
    let (mut y, mut dx) = (vec![0.0; 60], dy.clone());
    dense.gelu(&x, &mut y);
    dense.gelu_back(&mut dx, &x);
    let twin = |x: &[f64]| x.iter().map(|x| gelu(*x)).collect::<Vec<_>>();
    close("gelu", &y, &twin(&wide(&x)));
    compare("gelu", &x, &dx, |x| dot(&twin(x), &dy));
    let (mut y, mut dx) = (vec![0.0; 30], vec![0.0; 60]);
    dense.swiglu(&x, 5, &mut y);
    dense.swiglu_back(&dy[..30], &x, 5, &mut dx);
    close("swiglu", &y, &swiglu(&wide(&x), 5));
    compare("swiglu", &x, &dx, |x| dot(&swiglu(x, 5), &dy[..30]));
}

#[test]
fn gradients_of_cross_entropy_agree_with_finite_differences() {
    let (vocab, targets) = (37, [3u32, u32::MAX, 36, 0]);
    let logits = values(4 * vocab, 1);
    let mut dense = Dense::new(1);
    let mut got = logits.clone();
    let loss = dense.cross_entropy(&mut got, vocab, &targets, Some(0.25));
    assert!((loss - cross_entropy(&wide(&logits), vocab, &targets)).abs() < 1e-5);
    assert_eq!(dense.cross_entropy(&mut logits.clone(), vocab, &targets, None), loss);
    compare("logits", &logits, &got, |x| 0.25 * cross_entropy(x, vocab, &targets));
}

/// The summed loss of a whole model, by definition.
fn model_loss(m: &ModelConfig, params: &Params, weights: &[f64], ids: &[u32], targets: &[u32]) -> f64 {
    let get = |role, layer| params.find(role, layer).map(|i| &weights[params.list[i].range()]);
    let (d, gpt2, eps) = (m.width, m.family == Family::Gpt2, f64::from(m.eps));
    let need = |role, layer| get(role, layer).unwrap();
    let embed = need(Role::Embed, 0);
    let mut x: Vec<f64> = ids.iter().flat_map(|id| embed[*id as usize * d..][..d].to_vec()).collect();
    if let Some(positions) = get(Role::Positions, 0) {
        x.iter_mut().enumerate().for_each(|(i, x)| *x += positions[i % (m.context * d)]);
    }
    let add = |x: &mut Vec<f64>, y: Vec<f64>| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    let (q, kv) = (m.heads * m.head_dim(), m.kv_heads * m.head_dim());
    let scale = 1.0 / (m.head_dim() as f32).sqrt();
    let h = Heads {
        heads: m.heads,
        kv_heads: m.kv_heads,
        dim: m.head_dim(),
        length: m.context,
        scale,
        dropout: 0.0,
        key: 0,
    };
    for l in 0..m.layers {
        let y = norm(&x, need(Role::AttentionNorm, l), get(Role::AttentionNormBias, l), eps);
        let mut qkv = linear(&y, need(Role::Qkv, l), get(Role::QkvBias, l), q + 2 * kv, d);
        if !gpt2 {
            rope(&mut qkv, q + 2 * kv, m.heads + m.kv_heads, m.head_dim(), m.context, m.rope_theta);
        }
        add(&mut x, linear(&attention(&h, &qkv), need(Role::Out, l), get(Role::OutBias, l), d, q));
        let y = norm(&x, need(Role::FeedNorm, l), get(Role::FeedNormBias, l), eps);
        let up = linear(&y, need(Role::Up, l), get(Role::UpBias, l), if gpt2 { m.ffn } else { 2 * m.ffn }, d);
        let y = if gpt2 { up.iter().map(|x| gelu(*x)).collect() } else { swiglu(&up, m.ffn) };
        add(&mut x, linear(&y, need(Role::Down, l), get(Role::DownBias, l), d, m.ffn));
    }
    let y = norm(&x, need(Role::FinalNorm, 0), get(Role::FinalNormBias, 0), eps);
    let head = get(Role::Head, 0).unwrap_or(embed);
    cross_entropy(&linear(&y, head, None, m.vocab, d), m.vocab, targets)
}

#[test]
fn gradients_of_whole_models_agree_with_finite_differences() {
    let tiny = ModelConfig { vocab: 19, width: 16, ffn: 24, context: 6, ..ModelConfig::tiny() };
    let models = [
        tiny.clone(),
        ModelConfig { tied: false, kv_heads: 1, ..tiny.clone() },
        ModelConfig { family: Family::Gpt2, kv_heads: 4, ..tiny },
    ];
    for m in models {
        let params = Params::new(&m);
        // Larger than at the start of a run, so that every path carries weight.
        let weights: Vec<f32> = params.init(3).iter().map(|w| w * 8.0).collect();
        let ids: Vec<u32> = (0..12).map(|i| i * 7 % 19).collect();
        let mut targets: Vec<u32> = (0..12).map(|i| i * 5 % 19).collect();
        targets[4] = u32::MAX;
        let tape = Tape::record(&m, &params, 2, m.context, true);
        let mut engine = Engine::new(&m, &params, 2);
        let mut grads = vec![0.0; params.total];
        let want = Want::Gradient { scale: 1.0, grads: &mut grads };
        let loss = engine.run(&tape, &weights, &ids, &targets, (0, 0), want);
        let mut wide = wide(&weights);
        let twin = model_loss(&m, &params, &wide, &ids, &targets);
        assert!((loss - twin).abs() < 1e-4 * twin, "{loss} {twin}");
        for p in &params.list {
            for i in p.range().step_by(5) {
                let middle = wide[i];
                wide[i] = middle + STEP;
                let above = model_loss(&m, &params, &wide, &ids, &targets);
                wide[i] = middle - STEP;
                let expected = (above - model_loss(&m, &params, &wide, &ids, &targets)) / (2.0 * STEP);
                wide[i] = middle;
                let error = (f64::from(grads[i]) - expected).abs();
                assert!(error < 1e-3 + 1e-3 * expected.abs(), "{p:?} {i}: {} {expected}", grads[i]);
            }
        }
    }
}
