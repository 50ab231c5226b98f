//! Elementary functions with our own polynomials, so that a result does not depend on a machine's C library.
//!
//! The f32 functions are fixed sequences of IEEE operations; `generic/math.rs` runs the same sequences on sixteen
//! lanes and gives the same bits. The f64 functions serve rotary angles and the sampler's noise, where few values
//! are needed and the result must not vary. Polynomials are Taylor series where the interval is short enough, and
//! otherwise interpolation at Chebyshev nodes computed with 40 digits.

/// exp(r) for |r| ≤ ln2/2, to r⁷/7!.
pub(crate) const EXP: [f32; 8] =
    [1.0, 1.0, 0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];
/// ln 2 in two parts; the first has few bits, so its product with a small integer is exact.
pub(crate) const LN2_HIGH: f32 = 355.0 / 512.0;
pub(crate) const LN2_LOW: f32 = -0.000_212_194_44;
/// Below this e^x rounds to zero, above the other it is infinite.
pub(crate) const EXP_LOW: f32 = -104.0;
pub(crate) const EXP_HIGH: f32 = 89.0;
/// 1.5 · 2²³: added to a small number it rounds it to an integer, since no fraction fits beside it.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// (tanh(x)/x − 1)/x² in x², for x² ≤ 0.4.
pub(crate) const TANH: [f32; 6] =
    [-0.333_333_34, 0.133_333, -0.053_958_46, 0.021_762_503, -0.008_323_187, 0.002_269_501_8];
/// erf(x)/x − 1 in x², for x² ≤ 0.85.
pub(crate) const ERF_SMALL: [f32; 8] = [
    0.128_379_17,
    -0.376_126_38,
    0.112_837_88,
    -0.026_865_823,
    0.005_222_355,
    -0.000_850_683,
    0.000_114_590_87,
    -0.000_010_308_931,
];
/// −ln erfc(x) for 0.875 ≤ x ≤ 4.
pub(crate) const ERF_BIG: [f32; 10] = [
    -0.000_333_017_22,
    1.130_315_2,
    0.631_622_6,
    0.110_350_49,
    -0.026_636_725,
    0.004_867_787,
    -0.000_631_268_95,
    0.000_052_820_62,
    -0.000_002_382_699_7,
    0.000_000_035_332_63,
];
pub(crate) const SQRT_2_OVER_PI: f32 = 0.797_884_6;

fn horner(coefficients: &[f32], x: f32) -> f32 {
    let (last, rest) = coefficients.split_last().unwrap_or((&0.0, &[]));
    rest.iter().rev().fold(*last, |acc, &c| acc.mul_add(x, c))
}

fn pow2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x: n = round(x/ln 2), a polynomial in x − n·ln 2, times 2ⁿ in two halves so that subnormal results round once.
pub fn exp(x: f32) -> f32 {
    let x = if EXP_HIGH < x { EXP_HIGH } else { x };
    let x = if EXP_LOW > x { EXP_LOW } else { x };
    let n = x.mul_add(core::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let n = n as i32;
    horner(&EXP, r) * pow2(n >> 1) * pow2(n - (n >> 1))
}

/// tanh x: a polynomial below 0.625, else 1 − 2/(e^2|x| + 1).
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    if a < 0.625 {
        let s = x * x;
        (x * s).mul_add(horner(&TANH, s), x)
    } else {
        (1.0 - 2.0 / (exp(a + a) + 1.0)).copysign(x)
    }
}

/// erf x: x + x·P(x²) below 0.9, else 1 − e^−Q(|x|), and ±1 from 4 on.
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let a = if 4.0 < a { 4.0 } else { a };
    if a < 0.9 {
        x.mul_add(horner(&ERF_SMALL, x * x), x)
    } else {
        (1.0 - exp(0.0 - horner(&ERF_BIG, a))).copysign(x)
    }
}

/// 1 / (1 + e^−x).
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// ln x for x ≥ 0: the exponent times ln 2 plus the logarithm of the mantissa, computed in f64 and rounded.
pub fn log(x: f32) -> f32 {
    log64(x as f64) as f32
}

/// e^x in f64, within 1 ulp or so.
pub fn exp64(x: f64) -> f64 {
    const LN2_HIGH: f64 = 0.693_147_180_559_208_2;
    const LN2_LOW: f64 = 7.371_002_565_167_799e-13;
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(-746.0, 710.0);
    let n = (x * core::f64::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // Taylor to r^14/14!, |r| ≤ 0.347
    let mut sum = 1.0;
    for k in (1..=14).rev() {
        sum = f64::mul_add(sum, r / k as f64, 1.0);
    }
    let n = n as i64;
    let pow2 = |n: i64| f64::from_bits(((n + 1023) as u64) << 52);
    sum * pow2(n >> 1) * pow2(n - (n >> 1))
}

/// ln x in f64: x = 2ᵉ·m with m in √½..√2, ln m = 2·atanh((m − 1)/(m + 1)) by its series.
pub fn log64(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x.is_infinite() {
        return x;
    }
    let (x, shift) = if x < f64::MIN_POSITIVE { (x * 18_014_398_509_481_984.0, 54) } else { (x, 0) };
    let bits = x.to_bits();
    let mut e = (bits >> 52) as i64 - 1023 - shift;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > core::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut sum = 0.0;
    for k in (1..=11).rev() {
        sum = f64::mul_add(sum, s2, 1.0 / (2 * k + 1) as f64);
    }
    let tail = 2.0 * s * s2 * sum;
    let e = e as f64;
    // ln 2 in two parts, small terms first
    const LN2_HIGH: f64 = 0.693_147_180_559_208_2;
    const LN2_LOW: f64 = 7.371_002_565_167_799e-13;
    e.mul_add(LN2_HIGH, 2.0 * s + e.mul_add(LN2_LOW, tail))
}

/// base^exponent for base > 0, as e^(exponent · ln base).
pub fn pow64(base: f64, exponent: f64) -> f64 {
    exp64(exponent * log64(base))
}

/// (sin x, cos x) in f64 for |x| up to 2²⁰ · π/2 or so: reduction by π/2 in three parts, then Taylor series.
pub fn sin_cos64(x: f64) -> (f64, f64) {
    const P1: f64 = 1.570_796_326_734_125_6;
    const P2: f64 = 6.077_100_506_303_966e-11;
    const P3: f64 = 2.022_266_248_795_950_6e-21;
    let n = (x * core::f64::consts::FRAC_2_PI).round_ties_even();
    let r = n.mul_add(-P3, n.mul_add(-P2, n.mul_add(-P1, x)));
    let s = r * r;
    let (mut sin, mut cos) = (1.0, 1.0);
    for k in (1..=9).rev() {
        sin = f64::mul_add(sin, -s / ((2 * k) * (2 * k + 1)) as f64, 1.0);
        cos = f64::mul_add(cos, -s / ((2 * k - 1) * (2 * k)) as f64, 1.0);
    }
    let sin = sin * r;
    match n as i64 & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}
