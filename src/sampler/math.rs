//! exp and ln by own polynomials: the same bits on every machine, which a system's libm does not promise.
//!
//! Only additions, multiplications and divisions in one fixed sequence, each rounded by IEEE rules. No fused
//! operations: where the baseline instruction set lacks them they would be slow calls. Whole rows go through
//! [`llm_kernels::wide`]: a vocabulary is a long way for a token.

use llm_kernels::{Loop, wide};

/// e^x for x ≤ 0 (0 below −87), relative error at most 2·10⁻⁷. Branch-free, so that loops over rows become SIMD.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; the polynomial for e^r is that of Cephes' expf (Moshier, 1989).
#[inline(always)] // into loops that are compiled for wide vectors
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it leaves the nearest whole number in the low bits
    const LN2_HIGH: f32 = 355.0 / 512.0; // nine bits, so that n · LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 0.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    let scale = f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { e * scale }
}

/// Natural logarithm of a finite x ≥ the smallest normal number, relative error at most 5·10⁻¹⁶; −∞ for 0.
///
/// x = 2^n · m with m in [√½, √2); ln m = 2·atanh(s), s = (m − 1)/(m + 1), by its Taylor series to s²¹.
pub fn ln(x: f64) -> f64 {
    const LN2_HIGH: f64 = 0.693_147_180_369_123_8; // fdlibm's split: the low 32 bits are zero, n · LN2_HIGH is exact
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x <= 0.0 {
        return f64::NEG_INFINITY;
    }
    let bits = x.to_bits();
    let mut n = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        n += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 21.0;
    for k in (1..10).rev() {
        p = p * z + 1.0 / f64::from(2 * k + 1);
    }
    let n = n as f64;
    // Small terms first.
    n * LN2_HIGH + (2.0 * s + (2.0 * s * z * p + n * LN2_LOW))
}

/// ln Σ exp(x) of a row without NaN or +∞; −∞ when every entry is. Sixteen partial sums by index mod 16, then the
/// tree +8, +4, +2, +1.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let max = max(row);
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    f64::from(max) + ln(wide(SumExp(row, max)))
}

/// The largest of a row; −∞ without any number.
pub fn max(row: &[f32]) -> f32 {
    wide(Largest(row))
}

/// Whether no entry of a row is NaN or +∞.
pub fn bounded(row: &[f32]) -> bool {
    wide(AllBelowInfinity(row))
}

struct Largest<'a>(&'a [f32]);

impl Loop for Largest<'_> {
    type Result = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let (chunks, rest) = self.0.as_chunks::<32>();
        let mut lanes = [f32::NEG_INFINITY; 32];
        for chunk in chunks {
            for (i, &x) in chunk.iter().enumerate() {
                lanes[i] = larger(lanes[i], x);
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| larger(max, x))
    }
}

struct AllBelowInfinity<'a>(&'a [f32]);

impl Loop for AllBelowInfinity<'_> {
    type Result = bool;

    #[inline(always)]
    fn run(self) -> bool {
        self.0.iter().fold(true, |all, &x| all & (x < f32::INFINITY))
    }
}

/// Σ exp(x − max) of a row and its largest.
struct SumExp<'a>(&'a [f32], f32);

impl Loop for SumExp<'_> {
    type Result = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let SumExp(row, max) = self;
        let (chunks, rest) = row.as_chunks::<16>();
        let mut lanes = [0f64; 16];
        for chunk in chunks {
            // two loops, so that the first one is all of one kind of number
            let mut terms = [0f32; 16];
            for (i, &x) in chunk.iter().enumerate() {
                terms[i] = exp(x - max);
            }
            for (lane, term) in lanes.iter_mut().zip(terms) {
                *lane += f64::from(term);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(exp(x - max));
        }
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_stated_error() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let want = f64::from(x).exp();
            let got = f64::from(exp(x));
            assert!((got - want).abs() <= 2e-7 * want, "exp({x}) = {got}, expected {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn ln_is_within_its_stated_error() {
        let mut x = 1e-300f64;
        while x < 1e300 {
            let (got, want) = (ln(x), x.ln());
            assert!((got - want).abs() <= 5e-16 * want.abs().max(1e-300), "ln({x}) = {got}, expected {want}");
            x *= 1.000_37;
        }
        for r in (0..1u32 << 23).step_by(97).chain([(1 << 23) - 1]) {
            let u = (f64::from(r) + 0.5) / f64::from(1u32 << 23);
            assert!((ln(u) - u.ln()).abs() <= 5e-16 * u.ln().abs(), "ln({u})");
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
    }

    #[test]
    fn what_a_whole_row_is_asked_is_what_its_entries_say() {
        for n in [0, 1, 31, 32, 33, 100, 1003] {
            let mut row: Vec<f32> = (0..n).map(|i| ((i * 37 % 211) as f32) * 0.1 - 30.0).collect();
            let plain = row.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
            assert_eq!((max(&row), bounded(&row)), (plain, true), "{n}");
            for at in 0..n {
                let old = std::mem::replace(&mut row[at], f32::NAN);
                assert!(!bounded(&row), "NaN at {at} of {n}");
                row[at] = f32::INFINITY;
                assert!(!bounded(&row) && max(&row) == f32::INFINITY, "infinity at {at} of {n}");
                row[at] = old;
            }
        }
        assert!(bounded(&[f32::NEG_INFINITY; 40]));
    }

    #[test]
    fn log_sum_exp_equals_the_plain_sum() {
        let row: Vec<f32> = (0..1003).map(|i| ((i * 37 % 211) as f32) * 0.1 - 9.0).collect();
        let plain = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&row) - plain).abs() < 1e-6);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), f64::NEG_INFINITY);
    }
}
