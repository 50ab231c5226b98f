//! Every pass against a slow twin in f64 that follows the method's paper, over steps whose gradients and rates differ.

use super::super::tests::values;
use super::adamw8::BLOCK;
use super::*;

/// More than a piece, and a part of a block at the end.
const N: usize = PIECE + 2 * BLOCK + 77;

/// The size of value `i`'s gradients: from one down to below eps; some values, and a whole block, never have one.
fn size(i: usize) -> f64 {
    let none = i.is_multiple_of(101) || (PIECE..PIECE + BLOCK).contains(&i);
    if none { 0.0 } else { 0.1f64.powi((i % 10) as i32) }
}

fn gradient(step: i32) -> Vec<f32> {
    values(N, 10 + step as u32).iter().enumerate().map(|(i, g)| g * size(i) as f32).collect()
}

/// To a millionth of `size`: f32 rounds a few times.
#[track_caller]
fn near(what: &str, got: &[f32], expected: &[f64], size: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - b).abs();
        assert!(error <= 1e-6 * size(i), "{what}[{i}]: {a}, expected {b}");
    }
}

fn column<const C: usize>(twin: &[[f64; C]], c: usize) -> Vec<f64> {
    twin.iter().map(|values| values[c]).collect()
}

fn adamw(step: i32) -> AdamW {
    let (beta1, beta2) = (0.9f32, 0.95f32);
    let correction = |beta: f32| (1.0 - f64::from(beta).powi(step)) as f32;
    AdamW {
        rate: 0.1 / step as f32,
        beta1,
        beta2,
        eps: 1e-8,
        decay: 0.1,
        scale: 0.7,
        correction1: correction(beta1),
        correction2: correction(beta2),
    }
}

/// One value's step, of which the first is 1, from weight, moments and gradient: algorithm 2 of arXiv:1711.05101.
fn twin_of_adamw(o: &AdamW, step: i32, [w, m, v]: [f64; 3], g: f32) -> [f64; 3] {
    let [rate, beta1, beta2, eps, decay, scale] =
        [o.rate, o.beta1, o.beta2, o.eps, o.decay, o.scale].map(f64::from);
    let g = scale * f64::from(g);
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let (first, second) = (m / (1.0 - beta1.powi(step)), v / (1.0 - beta2.powi(step)));
    [w - rate * (first / (second.sqrt() + eps) + decay * w), m, v]
}

#[test]
fn adamw_steps_as_its_paper_says() {
    let mut dense = Dense::new(2);
    let (mut w, mut m, mut v) = (values(N, 1), vec![0.0; N], vec![0.0; N]);
    let mut twin: Vec<[f64; 3]> = w.iter().map(|w| [f64::from(*w), 0.0, 0.0]).collect();
    for step in 1..=6 {
        let (o, g) = (adamw(step), gradient(step));
        dense.adamw(&o, &mut w, &g, &mut m, &mut v);
        twin.iter_mut().zip(&g).for_each(|(t, g)| *t = twin_of_adamw(&o, step, *t, *g));
        near("weight", &w, &column(&twin, 0), |_| 1.0);
        near("first moment", &m, &column(&twin, 1), size);
        near("second moment", &v, &column(&twin, 2), |i| size(i).powi(2));
    }
}

/// First and second moments by the definition of their codes.
fn decoded(moments: &Moments8) -> Vec<[f64; 2]> {
    let value = |i: usize| {
        let (first, second) = (moments.first_top[i / BLOCK], moments.second_top[i / BLOCK]);
        let (c, d) = (f64::from(moments.first[i] as i8) / 127.0, f64::from(moments.second[i]) / 255.0);
        [f64::from(first) * c * c.abs(), f64::from(second) * d.powi(4)]
    };
    (0..N).map(value).collect()
}

#[test]
fn adamw_of_eight_bits_steps_from_what_its_codes_say_and_writes_the_nearest_codes() {
    let mut dense = Dense::new(2);
    let (mut w, mut moments) = (values(N, 1), Moments8::new(N));
    for step in 1..=6 {
        let (o, g) = (adamw(step), gradient(step));
        let before = w.iter().zip(decoded(&moments)).map(|(w, [m, v])| [f64::from(*w), m, v]);
        let twin: Vec<[f64; 3]> = before.zip(&g).map(|(t, g)| twin_of_adamw(&o, step, t, *g)).collect();
        dense.adamw8(&o, &mut w, &g, &mut moments);
        near("weight", &w, &column(&twin, 0), |_| 1.0);
        for (b, block) in twin.chunks(BLOCK).enumerate() {
            let tops = [1, 2].map(|c| block.iter().fold(0.0f64, |top, t| top.max(t[c].abs())));
            near("greatest", &[moments.first_top[b], moments.second_top[b]], &tops, |i| tops[i]);
            for (i, [_, m, v]) in (b * BLOCK..).zip(block) {
                let got = [f64::from(moments.first[i] as i8), f64::from(moments.second[i])];
                let mut exact = [0.0; 2];
                if tops[0] > 0.0 {
                    exact[0] = 127.0 * (m.abs() / tops[0]).sqrt().copysign(*m);
                }
                if *v > 0.0 {
                    // none above zero is lost
                    exact[1] = (255.0 * (v / tops[1]).powf(0.25)).max(1.0);
                }
                for (got, exact) in got.iter().zip(exact) {
                    // the root of a small moment enlarges what f32 rounds
                    assert!((got - exact).abs() <= 0.505, "code {got} of value {i}, exactly {exact}");
                }
            }
        }
    }
}

#[test]
fn lion_steps_as_its_paper_says() {
    let mut dense = Dense::new(2);
    let (mut w, mut m) = (values(N, 1), vec![0.0; N]);
    let mut twin: Vec<[f64; 2]> = w.iter().map(|w| [f64::from(*w), 0.0]).collect();
    for step in 1..=6 {
        let o = Lion { rate: 0.1 / step as f32, beta1: 0.9, beta2: 0.99, decay: 0.1, scale: 0.7 };
        let g = gradient(step);
        dense.lion(&o, &mut w, &g, &mut m);
        let [rate, beta1, beta2, decay, scale] = [o.rate, o.beta1, o.beta2, o.decay, o.scale].map(f64::from);
        for ([w, m], g) in twin.iter_mut().zip(&g) {
            let g = scale * f64::from(*g);
            let direction = beta1 * *m + (1.0 - beta1) * g;
            // a value that never had a gradient only decays
            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
            *w -= rate * (sign + decay * *w);
            *m = beta2 * *m + (1.0 - beta2) * g;
        }
        near("weight", &w, &column(&twin, 0), |_| 1.0);
        near("momentum", &m, &column(&twin, 1), size);
    }
}

#[test]
fn momentum_looks_ahead_and_a_ready_update_is_applied_as_they_say() {
    let mut dense = Dense::new(2);
    let (mut w, mut m, mut u) = (values(N, 1), vec![0.0; N], vec![9.0; N]);
    let mut twin: Vec<[f64; 3]> = w.iter().map(|w| [f64::from(*w), 0.0, 0.0]).collect();
    let factors = [0.95f32, 0.7, 0.99, -0.05];
    let [beta, scale, keep, by] = factors.map(f64::from);
    for step in 1..=4 {
        let g = gradient(step);
        dense.nesterov(factors[0], factors[1], &g, &mut m, &mut u);
        dense.apply(factors[2], factors[3], &mut w, &u);
        for ([w, m, u], g) in twin.iter_mut().zip(&g) {
            let g = scale * f64::from(*g);
            *m = beta * *m + g;
            *u = beta * *m + g;
            *w = keep * *w + by * *u;
        }
        near("weight", &w, &column(&twin, 0), |_| 1.0);
        // sums of several gradients
        near("momentum", &m, &column(&twin, 1), |i| 4.0 * size(i));
        near("update", &u, &column(&twin, 2), |i| 4.0 * size(i));
    }
}

#[test]
fn a_sum_of_squares_is_that_of_every_value() {
    let x = values(2 * N, 1);
    let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let got = Dense::new(2).sum_squares(&x);
    assert!((got - expected).abs() <= 1e-12 * expected, "{got}, expected {expected}");
}
