//! Rotary angles (arXiv:2104.09864) and their scalings for long contexts, as transformers defines them.
//!
//! Pair i of a head at position p is turned by p · f(i), f(i) = theta^(−2i/dim) after scaling. Frequencies and angles
//! are f64 and become f32 once, as cosine and sine, so a far position loses nothing. Dynamic and longrope scaling
//! depend on the length of the whole sequence, which the session declares.

use llm_kernels::math::{log64, pow64, sin_cos64};

use super::spec::{Rope, Scaling};
use crate::backend::Angles;

/// The frequencies of a rotary table for sequences of one length.
#[derive(Clone, Debug)]
pub struct Frequencies {
    /// `[dim/2]`, radians per position.
    per_position: Vec<f64>,
    /// Factor on cosine and sine.
    factor: f64,
}

impl Frequencies {
    /// Those of `rope` for a sequence of `length` tokens in all.
    pub fn new(rope: &Rope, length: u32) -> Self {
        let dim = f64::from(rope.dim);
        let pairs = (rope.dim / 2) as usize;
        let plain = |theta: f64, i: usize| pow64(theta, -2.0 * i as f64 / dim);
        let each = |f: &dyn Fn(usize) -> f64| (0..pairs).map(f).collect();
        let (per_position, factor) = match &rope.scaling {
            Scaling::None => (each(&|i| plain(rope.theta, i)), 1.0),
            Scaling::Linear { factor } => (each(&|i| plain(rope.theta, i) / factor), 1.0),
            Scaling::Dynamic { factor, original } => {
                // theta · (factor · length / original − (factor − 1))^(dim / (dim − 2))
                let length = f64::from(length.max(*original));
                let growth = factor * length / f64::from(*original) - (factor - 1.0);
                let theta = rope.theta * pow64(growth, dim / (dim - 2.0));
                (each(&|i| plain(theta, i)), 1.0)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let original = f64::from(*original);
                let blend = |i: usize| {
                    let f = plain(rope.theta, i);
                    let wavelength = std::f64::consts::TAU / f;
                    if wavelength < original / high {
                        f
                    } else if wavelength > original / low {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (each(&blend), 1.0)
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor } => {
                // The dimension whose wavelength fits `turns` times into the original context.
                let dimension = |turns: f64| {
                    dim * log64(f64::from(*original) / (turns * std::f64::consts::TAU))
                        / (2.0 * log64(rope.theta))
                };
                let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |i: usize| {
                    let f = plain(rope.theta, i);
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                };
                (each(&blend), *attention_factor)
            }
            Scaling::Longrope { short, long, original, attention_factor } => {
                let factors = if length > *original { long } else { short };
                let stretched = |i: usize| plain(rope.theta, i) / factors.get(i).copied().unwrap_or(1.0);
                (each(&stretched), *attention_factor)
            }
        };
        Self { per_position, factor }
    }

    /// Whether the frequencies depend on the sequence's length.
    pub fn vary(rope: &Rope) -> bool {
        matches!(rope.scaling, Scaling::Dynamic { .. } | Scaling::Longrope { .. })
    }

    /// Cosines and sines of positions 0 to `length` − 1, `[length, dim/2]` each.
    pub fn tables(&self, length: u32) -> (Vec<f32>, Vec<f32>) {
        let mut angles = Angles::default();
        self.angles(0..length, &mut angles);
        (angles.cos, angles.sin)
    }

    /// Cosine and sine of what turns a key `by` positions on: `[dim/2]`, without the factor, which the key has.
    pub(crate) fn turn(&self, by: f64) -> Vec<(f64, f64)> {
        let turned = |frequency: &f64| {
            let (sin, cos) = sin_cos64(by * frequency);
            (cos, sin)
        };
        self.per_position.iter().map(turned).collect()
    }

    /// Appends the angles of `positions`: `[m, dim/2]`.
    pub(crate) fn angles(&self, positions: impl Iterator<Item = u32>, out: &mut Angles) {
        for position in positions {
            for frequency in &self.per_position {
                let (sin, cos) = sin_cos64(f64::from(position) * frequency);
                out.cos.push((cos * self.factor) as f32);
                out.sin.push((sin * self.factor) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::Pairs;

    fn rope(scaling: Scaling) -> Rope {
        Rope { theta: 10_000.0, dim: 64, pairs: Pairs::Halves, scaling }
    }

    #[test]
    fn angles_are_those_of_the_standard_library_to_the_last_bits() {
        let table = Frequencies::new(&rope(Scaling::None), 1);
        let mut angles = Angles::default();
        for position in [0, 1, 1000, 131_071] {
            angles.clear();
            table.angles(std::iter::once(position), &mut angles);
            for (i, (cos, sin)) in angles.cos.iter().zip(&angles.sin).enumerate() {
                let angle = f64::from(position) * 10_000f64.powf(-2.0 * i as f64 / 64.0);
                let (s, c) = angle.sin_cos();
                assert!(
                    (f64::from(*cos) - c).abs() < 1e-7 && (f64::from(*sin) - s).abs() < 1e-7,
                    "{position} {i}"
                );
            }
        }
    }

    /// Every scaling, as the papers and transformers write it, in plain f64 of the standard library.
    fn twin(rope: &Rope, length: u32, position: u32, i: usize) -> (f64, f64) {
        let dim = f64::from(rope.dim);
        let exponent = -2.0 * i as f64 / dim;
        let plain = rope.theta.powf(exponent);
        let (frequency, factor) = match &rope.scaling {
            Scaling::None => (plain, 1.0),
            Scaling::Linear { factor } => (plain / factor, 1.0),
            Scaling::Dynamic { factor, original } => {
                let (length, original) = (f64::from(length.max(*original)), f64::from(*original));
                let growth = (factor * length / original - factor + 1.0).powf(dim / (dim - 2.0));
                ((rope.theta * growth).powf(exponent), 1.0)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let turns = f64::from(*original) * plain / std::f64::consts::TAU;
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                ((1.0 - smooth) * plain / factor + smooth * plain, 1.0)
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor } => {
                let place = |turns: f64| {
                    let longest = f64::from(*original) / (turns * std::f64::consts::TAU);
                    dim * longest.ln() / (2.0 * rope.theta.ln())
                };
                let (mut from, mut to) = (place(*beta_fast), place(*beta_slow));
                if *truncate {
                    (from, to) = (from.floor(), to.ceil());
                }
                let ramp = ((i as f64 - from.max(0.0)) / (to.min(dim - 1.0) - from.max(0.0))).clamp(0.0, 1.0);
                (plain * (1.0 - ramp) + plain / factor * ramp, *attention_factor)
            }
            Scaling::Longrope { short, long, original, attention_factor } => {
                let factors = if length > *original { long } else { short };
                (plain / factors[i], *attention_factor)
            }
        };
        let (sin, cos) = (f64::from(position) * frequency).sin_cos();
        (cos * factor, sin * factor)
    }

    #[test]
    fn every_scaling_is_its_f64_twin_at_positions_up_to_131072() {
        let (short, long) =
            ((0..32).map(|i| 1.0 + f64::from(i) / 64.0), (0..32).map(|i| 1.0 + f64::from(i) * 1.5));
        let yarn = |truncate| Scaling::Yarn {
            factor: 32.0,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate,
            attention_factor: 1.346,
        };
        let scalings = [
            Scaling::None,
            Scaling::Linear { factor: 16.0 },
            Scaling::Dynamic { factor: 4.0, original: 8192 },
            Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 },
            yarn(true),
            yarn(false),
            Scaling::Longrope {
                short: short.collect(),
                long: long.collect(),
                original: 4096,
                attention_factor: 1.19,
            },
        ];
        for scaling in scalings {
            for theta in [10_000.0, 500_000.0] {
                let rope = Rope { theta, ..rope(scaling.clone()) };
                for length in [2048, 32_768, 131_072] {
                    let table = Frequencies::new(&rope, length);
                    let positions = (0..length).filter(|p| p % 997 == 0 || *p + 3 > length);
                    let mut angles = Angles::default();
                    table.angles(positions.clone(), &mut angles);
                    for (n, position) in positions.enumerate() {
                        for i in 0..32 {
                            let (cos, sin) = twin(&rope, length, position, i);
                            let far = (f64::from(angles.cos[n * 32 + i]) - cos)
                                .abs()
                                .max((f64::from(angles.sin[n * 32 + i]) - sin).abs());
                            assert!(
                                far < 2e-7,
                                "{rope:?}: position {position} of {length}, pair {i}: {far:e}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn dynamic_scaling_acts_past_the_original_length_only() {
        let dynamic = rope(Scaling::Dynamic { factor: 2.0, original: 100 });
        let plain = Frequencies::new(&rope(Scaling::None), 1).per_position;
        assert_eq!(Frequencies::new(&dynamic, 100).per_position, plain);
        assert!(Frequencies::new(&dynamic, 200).per_position[1] < plain[1]);
    }
}
