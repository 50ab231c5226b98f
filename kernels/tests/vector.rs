//! Norms, activations, rotations, routing: equal on every instruction set, and right.

mod common;

use common::{Random, cpus, same, scalar, tree};
use llm_kernels::{
    Activation, Cpu, GroupRank, Input, Matrix, Pairs, RouteSpec, RowNorm, Scoring, Type, math,
};
use proptest::prelude::*;

/// Runs `f` on every CPU and holds its result to the scalar one's.
fn everywhere(what: &str, f: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let expected = f(&scalar());
    for cpu in cpus() {
        same(&expected, &f(&cpu), &format!("{what} on {} x{}", cpu.isa().name(), cpu.pool().threads()));
    }
    expected
}

/// Values of every kind: ordinary, tiny, huge, infinite, NaN.
fn wild(r: &mut Random, n: usize) -> Vec<f32> {
    (0..n)
        .map(|_| match r.below(12) {
            0 => f32::from_bits(r.bits() as u32),
            1 => [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE][r.below(6)],
            2 => r.value() * 100.0,
            _ => r.value() * 4.0,
        })
        .collect()
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];
const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };

#[test]
fn activations_are_the_scalar_functions_value_by_value() {
    let mut r = Random(1);
    let x = wild(&mut r, 20_003);
    for kind in ACTIVATIONS {
        let out = everywhere(&format!("{kind:?}"), |cpu| {
            let mut x = x.clone();
            cpu.activate(kind, &mut x);
            x
        });
        let one = |v: f32| match kind {
            Activation::Silu => v / (1.0 + math::exp(-v)),
            Activation::Gelu => (v * 0.5) * (1.0 + math::erf(v * std::f32::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                let cubic = ((v * v) * v).mul_add(0.044715, v);
                (v * 0.5) * (1.0 + math::tanh(cubic * 0.797_884_6))
            }
            _ => {
                let positive = if 0.0 > v { 0.0 } else { v };
                if kind == Activation::Relu { positive } else { positive * positive }
            }
        };
        let expected: Vec<f32> = x.iter().map(|&v| one(v)).collect();
        same(&expected, &out, &format!("{kind:?} and its scalar form"));
    }
    let sigmoid = everywhere("sigmoid", |cpu| {
        let mut x = x.clone();
        cpu.sigmoid(&mut x);
        x
    });
    same(&x.iter().map(|&v| math::sigmoid(v)).collect::<Vec<_>>(), &sigmoid, "sigmoid and its scalar form");
    let capped = everywhere("softcap", |cpu| {
        let mut x = x.clone();
        cpu.softcap(&mut x, 30.0);
        x
    });
    let expected: Vec<f32> = x.iter().map(|&v| 30.0 * math::tanh(v / 30.0)).collect();
    same(&expected, &capped, "softcap and its scalar form");
}

#[test]
fn gates_multiply_the_activation() {
    let mut r = Random(2);
    let (gate, up) = (wild(&mut r, 9001), wild(&mut r, 9001));
    for kind in ACTIVATIONS {
        let out = everywhere("gated", |cpu| {
            let mut out = vec![0.0; gate.len()];
            cpu.gated(kind, &gate, &up, &mut out);
            out
        });
        let mut act = gate.clone();
        scalar().activate(kind, &mut act);
        let expected: Vec<f32> = act.iter().zip(&up).map(|(a, u)| a * u).collect();
        same(&expected, &out, "gated");
    }
    let out = everywhere("clamped swiglu", |cpu| {
        let mut out = vec![0.0; gate.len()];
        cpu.gated(CLAMPED, &gate, &up, &mut out);
        out
    });
    for i in 0..gate.len() {
        if gate[i].is_nan() || up[i].is_nan() {
            assert!(out[i].is_nan());
            continue;
        }
        let (g, u) = (gate[i].min(7.0), up[i].clamp(-7.0, 7.0));
        let expected = (u + 1.0) * (g * math::sigmoid(g * 1.702));
        same(&[expected], &out[i..=i], "clamped swiglu and its formula");
    }
}

#[test]
fn sums_of_vectors_are_one_operation_each() {
    let mut r = Random(3);
    let (a, b) = (r.values(10_001), r.values(10_001));
    let added = everywhere("add", |cpu| {
        let mut a = a.clone();
        cpu.add(&mut a, &b);
        a
    });
    same(&a.iter().zip(&b).map(|(x, y)| x + y).collect::<Vec<_>>(), &added, "add");
    let scaled = everywhere("scale", |cpu| {
        let mut a = a.clone();
        cpu.scale(&mut a, 1.7);
        a
    });
    same(&a.iter().map(|x| x * 1.7).collect::<Vec<_>>(), &scaled, "scale");
}

#[test]
fn rows_take_their_terms_in_ascending_order_however_they_are_shared() {
    let mut r = Random(5);
    for (m, n, width) in [(1, 8, 2048), (5, 5, 1001), (30, 200, 33), (40, 40, 130), (3, 0, 16)] {
        let (out, x, factors) = (r.values(m * width), r.values(n * width), r.values(n));
        let chosen: Vec<u32> = (0..n).map(|_| r.below(m) as u32).collect();
        for rows in [Some(&chosen), None].into_iter().filter(|rows| rows.is_some() || n <= m) {
            let added = everywhere("add_rows", |cpu| {
                let mut out = out.clone();
                cpu.add_rows(&mut out, width, &x, rows.map(|r| &r[..]), &factors);
                out
            });
            let mut expected = out.clone();
            for i in 0..n {
                let row = rows.map_or(i, |r| r[i] as usize);
                for c in 0..width {
                    let v = &mut expected[row * width + c];
                    *v = x[i * width + c].mul_add(factors[i], *v);
                }
            }
            same(&expected, &added, "add_rows");
        }
    }
}

#[test]
fn what_adapters_add_is_a_chain_of_fmas_however_it_is_shared() {
    let mut r = Random(4);
    for (m, rank, width) in [(1, 16, 2048), (3, 5, 1001), (8, 33, 40)] {
        let (low, b, out) = (r.values(m * rank), r.values(rank * width), r.values(m * width));
        let added = everywhere("add_low_rank", |cpu| {
            let mut out = out.clone();
            cpu.add_low_rank(0.7, &low, &b, rank, &mut out);
            out
        });
        let mut expected = out;
        for (i, v) in expected.iter_mut().enumerate() {
            let (row, column) = (i / width, i % width);
            for j in 0..rank {
                *v = b[j * width + column].mul_add(0.7 * low[row * rank + j], *v);
            }
        }
        same(&expected, &added, "add_low_rank");
    }
}

fn norm_twins(x: &[f32], w: &[f32], b: Option<&[f32]>, eps: f32) -> (Vec<f32>, Vec<f32>) {
    let n = x.len();
    let (mut squares, mut sums) = ([0f32; 16], [0f32; 16]);
    for i in 0..n {
        squares[i % 16] = x[i].mul_add(x[i], squares[i % 16]);
        sums[i % 16] += x[i];
    }
    let r = 1.0 / (tree(squares) / n as f32 + eps).sqrt();
    let rms = (0..n).map(|i| (x[i] * r) * w[i]).collect();
    let mean = tree(sums) / n as f32;
    let mut squares = [0f32; 16];
    for i in 0..n {
        let d = x[i] - mean;
        squares[i % 16] = d.mul_add(d, squares[i % 16]);
    }
    let r = 1.0 / (tree(squares) / n as f32 + eps).sqrt();
    let layer = (0..n).map(|i| ((x[i] - mean) * r) * w[i]).enumerate();
    (rms, layer.map(|(i, v)| b.map_or(v, |b| v + b[i])).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn norms_equal_their_twins(rows in 1usize..70, width in 1usize..300, seed: u64) {
        let mut r = Random(seed);
        let (x, w, b) = (r.values(rows * width), r.values(width), r.values(width));
        let rms = everywhere("rms", |cpu| {
            let mut out = vec![0.0; x.len()];
            cpu.rms_norm(&x, &w, 1e-5, rows, width, &mut out);
            let mut same_place = x.clone();
            cpu.rms_norm_in_place(&mut same_place, &w, 1e-5, rows, width);
            same(&out, &same_place, "in place");
            out
        });
        let layer = everywhere("layer", |cpu| {
            let mut out = vec![0.0; x.len()];
            cpu.layer_norm(&x, &w, Some(&b), 1e-5, rows, width, &mut out);
            out
        });
        let plain = everywhere("layer", |cpu| {
            let mut out = x.clone();
            cpu.layer_norm_in_place(&mut out, &w, None, 1e-5, rows, width);
            out
        });
        for i in 0..rows {
            let part = i * width..(i + 1) * width;
            same(&norm_twins(&x[part.clone()], &w, None, 1e-5).0, &rms[part.clone()], "rms twin");
            same(&norm_twins(&x[part.clone()], &w, Some(&b), 1e-5).1, &layer[part.clone()], "layer twin");
            same(&norm_twins(&x[part.clone()], &w, None, 1e-5).1, &plain[part.clone()], "layer twin");
        }
    }

    #[test]
    fn rotations_turn_their_pairs_and_nothing_else(
        rows in 1usize..6, heads in 1usize..4, half in 0usize..40, more in 0usize..9, gap in 0usize..5,
        neighbours: bool, seed: u64,
    ) {
        let mut r = Random(seed);
        let (rot, dim) = (2 * half, 2 * half + more.max(1));
        let stride = heads * dim + gap;
        let x = r.values(rows * stride);
        let angles: Vec<f64> = (0..rows * half).map(|_| r.value() as f64 * 9.0).collect();
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            angles.iter().map(|&a| math::sin_cos64(a)).map(|(s, c)| (s as f32, c as f32)).unzip();
        let pairs = if neighbours { Pairs::Neighbours } else { Pairs::Halves };
        let out = everywhere("rope", |cpu| {
            let mut x = x.clone();
            cpu.rope(&mut x, rows, stride, heads, dim, rot, pairs, &cos, &sin);
            x
        });
        let mut expected = x.clone();
        for i in 0..rows {
            for h in 0..heads {
                let head = &mut expected[i * stride + h * dim..][..dim];
                for p in 0..half {
                    let (ia, ib) = if neighbours { (2 * p, 2 * p + 1) } else { (p, p + half) };
                    let (a, b, c, s) = (head[ia], head[ib], cos[i * half + p], sin[i * half + p]);
                    head[ia] = a.mul_add(c, -(b * s));
                    head[ib] = b.mul_add(c, a * s);
                }
            }
        }
        for (e, o) in expected.iter().zip(&out) {
            prop_assert!(e == o); // 0 and −0 are the same rotation
        }
    }

    #[test]
    fn softmax_sums_to_one(rows in 1usize..9, width in 1usize..200, seed: u64) {
        let mut r = Random(seed);
        let x: Vec<f32> = r.values(rows * width).iter().map(|v| v * 20.0).collect();
        let out = everywhere("softmax", |cpu| {
            let mut x = x.clone();
            cpu.softmax(&mut x, rows);
            x
        });
        for (x, out) in x.chunks(width).zip(out.chunks(width)) {
            let top = x.iter().fold(f64::MIN, |m, &v| m.max(v as f64));
            let sum: f64 = x.iter().map(|&v| (v as f64 - top).exp()).sum();
            for (x, o) in x.iter().zip(out) {
                prop_assert!(((*x as f64 - top).exp() / sum - *o as f64).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn argmax_takes_the_lowest_of_equals_and_no_nan() {
    let cpu = scalar();
    assert_eq!(cpu.argmax(&[1.0, 3.0, 3.0, 2.0]), Some(1));
    assert_eq!(cpu.argmax(&[f32::NAN, -2.0, f32::NAN, -1.0]), Some(3));
    assert_eq!(cpu.argmax(&[f32::NEG_INFINITY; 3]), Some(0));
    assert_eq!(cpu.argmax(&[f32::NAN]), None);
    assert_eq!(cpu.argmax(&[]), None);
}

fn route(spec: &RouteSpec, logits: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let rows = logits.len() / spec.count;
    let (mut ids, mut weights) = (vec![0; rows * spec.active], vec![0.0; rows * spec.active]);
    scalar().route(logits, rows, spec, &mut ids, &mut weights);
    for cpu in cpus() {
        let (mut i, mut w) = (ids.clone(), weights.clone());
        cpu.route(logits, rows, spec, &mut i, &mut w);
        assert_eq!(i, ids);
        same(&weights, &w, "expert weights");
    }
    (ids, weights)
}

const PLAIN: RouteSpec = RouteSpec {
    scoring: Scoring::Softmax,
    count: 4,
    active: 2,
    normalize: false,
    scale: 1.0,
    groups: 1,
    active_groups: 1,
    group_rank: GroupRank::Max,
    choice_bias: None,
};

fn near(a: &[f32], b: &[f32]) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
}

#[test]
fn routes_choose_the_best_scores_in_ascending_order() {
    let l = |p: [f32; 4]| p.map(f32::ln);
    let (ids, w) = route(&PLAIN, &[l([0.1, 0.2, 0.3, 0.4]), l([0.4, 0.05, 0.15, 0.4])].concat());
    assert_eq!(ids, [2, 3, 0, 3]);
    near(&w, &[0.3, 0.4, 0.4, 0.4]);
    let normal = RouteSpec { normalize: true, scale: 2.0, ..PLAIN };
    near(&route(&normal, &l([0.1, 0.2, 0.3, 0.4])).1, &[0.6 / 0.7, 0.8 / 0.7]);
    let chosen = RouteSpec { scoring: Scoring::SoftmaxOfChosen, ..PLAIN };
    near(&route(&chosen, &l([0.1, 0.2, 0.3, 0.4])).1, &[0.3 / 0.7, 0.4 / 0.7]);
}

#[test]
fn equal_scores_go_to_the_lower_index() {
    assert_eq!(route(&PLAIN, &[1.0; 4]).0, [0, 1]);
    assert_eq!(route(&PLAIN, &[0.0, 1.0, 0.0, 1.0]).0, [1, 3]);
    assert_eq!(route(&RouteSpec { active: 3, ..PLAIN }, &[0.0, 1.0, 0.0, 0.0]).0, [0, 1, 2]);
}

#[test]
fn a_row_of_nan_still_gets_its_experts() {
    let (ids, w) = route(&PLAIN, &[f32::NAN; 4]);
    assert_eq!(ids, [0, 1]);
    assert!(w.iter().all(|w| w.is_nan()));
}

#[test]
fn groups_and_biases_steer_the_choice_but_not_the_weights() {
    let logit = |p: f32| (p / (1.0 - p)).ln();
    let logits = [0.9, 0.1, 0.5, 0.6].map(logit);
    // group 0 has the best expert, group 1 the two best together
    let grouped = RouteSpec { scoring: Scoring::Sigmoid, groups: 2, ..PLAIN };
    assert_eq!(route(&grouped, &logits).0, [0, 1]);
    let by_two = RouteSpec { group_rank: GroupRank::TopTwo, ..grouped };
    let (ids, w) = route(&by_two, &logits);
    assert_eq!(ids, [2, 3]);
    near(&w, &[0.5, 0.6]);
    let bias = [0.0, 1.0, 0.0, 0.0];
    let biased = RouteSpec { scoring: Scoring::Sigmoid, choice_bias: Some(&bias), normalize: true, ..PLAIN };
    let (ids, w) = route(&biased, &logits);
    assert_eq!(ids, [0, 1]);
    near(&w, &[0.9, 0.1]);
    // and groups that are left out stay out where biases make the others negative
    let low = [-2.0; 4];
    assert_eq!(route(&RouteSpec { choice_bias: Some(&low), ..by_two }, &logits).0, [2, 3]);
}

/// Every product of `input` that reads another form of it: one term, two terms, floats.
fn products(cpu: &Cpu, input: &mut Input, data: &[(Type, Vec<u8>)], rows: usize, cols: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for (ty, data) in data {
        let mut out = vec![0.0; input.m() * rows];
        cpu.matmul(Matrix::new(*ty, rows, cols, data).expect("whole"), input, None, &mut out);
        all.extend(out);
    }
    all
}

#[test]
fn passes_that_write_an_input_equal_those_passes_and_its_loading() {
    let mut r = Random(40);
    for (m, cols) in [(1, 40), (3, 256), (2, 700), (9, 1000), (1, 9000)] {
        let rows = 33;
        let data = [Type::Q4, Type::Q8, Type::F32]
            .map(|ty| (ty, llm_format::quant::encode(ty, &r.values(rows * cols), rows, cols)));
        let (x, y, weight, bias) = (r.values(m * cols), r.values(m * cols), r.values(cols), r.values(cols));
        for next in [Type::Q4, Type::Q8, Type::F32] {
            for layer in [false, true] {
                let norm = RowNorm { layer, eps: 1e-5, weight: &weight, bias: layer.then_some(&bias[..]) };
                everywhere("norm and input", |cpu| {
                    let mut input = Input::new();
                    cpu.norm_input(&norm, &x, m, &mut input, next);
                    let fused = products(cpu, &mut input, &data, rows, cols);
                    let mut normed = vec![0.0; m * cols];
                    match layer {
                        true => cpu.layer_norm(&x, &weight, Some(&bias), 1e-5, m, cols, &mut normed),
                        false => cpu.rms_norm(&x, &weight, 1e-5, m, cols, &mut normed),
                    }
                    input.load(cpu, &normed, m, cols);
                    same(&products(cpu, &mut input, &data, rows, cols), &fused, "norm and input");
                    fused
                });
            }
            everywhere("gate and input", |cpu| {
                let (mut input, mut gated) = (Input::new(), vec![0.0; m * cols]);
                cpu.gated_input(Activation::Silu, &x, &y, m, cols, &mut input, next);
                let fused = products(cpu, &mut input, &data, rows, cols);
                cpu.gated(Activation::Silu, &x, &y, &mut gated);
                input.load(cpu, &gated, m, cols);
                same(&products(cpu, &mut input, &data, rows, cols), &fused, "gate and input");
                fused
            });
        }
    }
}
