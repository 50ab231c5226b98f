//! The elementary functions are as near as their documentation says.

use llm_kernels::math::*;

/// Distance in units of the last place of the nearest f32.
fn ulps(got: f32, exact: f64) -> f64 {
    let near = exact as f32;
    let next = f32::from_bits(near.abs().to_bits() + 1);
    let unit = if next.is_finite() { (next - near.abs()) as f64 } else { 2f64.powi(104) };
    (got as f64 - exact).abs() / unit
}

fn sweep(from: f32, to: f32) -> impl Iterator<Item = f32> {
    let n = 200_000;
    (0..=n).map(move |i| from + (to - from) * (i as f32 / n as f32))
}

fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, from: f32, to: f32) -> f64 {
    sweep(from, to).map(|x| ulps(f(x), exact(x as f64))).fold(0.0, f64::max)
}

#[test]
fn exp_is_within_two_ulp() {
    assert!(worst(exp, f64::exp, -103.0, 88.7) <= 2.0);
    assert!(worst(exp, f64::exp, -1.0, 1.0) <= 1.0);
    assert_eq!((exp(0.0), exp(-0.0), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0));
    assert_eq!((exp(f32::INFINITY), exp(-200.0), exp(200.0)), (f32::INFINITY, 0.0, f32::INFINITY));
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn tanh_is_within_three_ulp() {
    let w = worst(tanh, f64::tanh, -10.0, 10.0);
    assert!(w <= 3.0, "{w}");
    assert_eq!((tanh(0.0), tanh(100.0), tanh(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
    assert!(tanh(f32::NAN).is_nan());
    assert_eq!(tanh(1e-30), 1e-30);
}

/// erf by its series (all terms of one sign after the factor), good to double precision for |x| ≤ 5.
fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
    }
    sum * (-x * x).exp() * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn erf_is_within_three_ulp() {
    let w = worst(erf, erf_series, -4.5, 4.5);
    assert!(w <= 3.0, "{w}");
    assert_eq!((erf(0.0), erf(9.0), erf(-f32::INFINITY)), (0.0, 1.0, -1.0));
    assert!(erf(f32::NAN).is_nan());
}

#[test]
fn sigmoid_is_within_three_ulp() {
    let w = worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0);
    assert!(w <= 3.0, "{w}");
}

#[test]
fn log_is_the_rounded_logarithm() {
    assert!(worst(log, f64::ln, 1e-6, 10.0) <= 0.51);
    assert!(worst(log, f64::ln, 10.0, 1e30) <= 0.51);
    assert_eq!((log(1.0), log(0.0)), (0.0, f32::NEG_INFINITY));
    assert!(log(-1.0).is_nan() && (log(1e-44) as f64 - (1e-44f32 as f64).ln()).abs() < 1e-5);
}

#[test]
fn doubles_are_near_the_library() {
    for i in -70_000..70_000 {
        let x = i as f64 * 0.0101;
        let e = x.exp();
        assert!((exp64(x) - e).abs() <= 4e-16 * e, "exp {x}");
        let (s, c) = sin_cos64(x * 100.0);
        assert!((s - (x * 100.0).sin()).abs() < 4e-16, "sin {}", x * 100.0);
        assert!((c - (x * 100.0).cos()).abs() < 4e-16, "cos {}", x * 100.0);
        if i > 0 {
            assert!((log64(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(0.5), "log {x}");
        }
    }
    for theta in [1e4f64, 5e5, 1e6] {
        for i in 0..64 {
            let (p, e) = (pow64(theta, -(i as f64) / 64.0), theta.powf(-(i as f64) / 64.0));
            assert!((p / e - 1.0).abs() < 4e-15);
        }
    }
    assert_eq!((exp64(-1e9), exp64(1e9), log64(0.0)), (0.0, f64::INFINITY, f64::NEG_INFINITY));
    assert!(
        (exp64(-740.0) / (-740.0f64).exp() - 1.0).abs() < 0.1
            && (log64(5e-324) + 744.4400719213812).abs() < 1e-9
    );
}
