//! Randomness that depends on counters alone: (seed, stream, index) → bits. Nothing is drawn from a state, so a run
//! that is resumed, or split another way, sees the same numbers.

/// What a stream of random numbers is for; part of every key, so that no two uses share numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    /// Initial weights.
    Weights = 1,
    /// The order of the samples.
    Order = 2,
    /// Dropout masks.
    Dropout = 3,
    /// Where the search for a gradient's leading directions begins.
    Directions = 4,
    /// Initial values of adapters.
    Adapter = 5,
    /// Which directory of a mixture a sample comes from.
    Mixture = 6,
}

/// A 64-bit mixing function (the finaliser of SplitMix64).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 64 random bits for `(seed, stream, a, b)`.
pub(crate) fn bits(seed: u64, stream: Stream, a: u64, b: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let key = mix(seed.wrapping_add(GOLDEN)) ^ mix(stream as u64).wrapping_mul(GOLDEN);
    mix(mix(key ^ mix(a.wrapping_add(GOLDEN))).wrapping_add(b.wrapping_mul(GOLDEN)))
}

/// A number of the standard normal distribution (Box and Muller).
pub(crate) fn normal(seed: u64, stream: Stream, a: u64, b: u64) -> f32 {
    let r = bits(seed, stream, a, b);
    let u = ((r >> 40) as f64 + 0.5) / f64::from(1u32 << 24);
    let v = (r & 0xff_ffff) as f64 / f64::from(1u32 << 24);
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Element `index` of a permutation of `0..n` chosen by `(seed, epoch)`: a Feistel network of four rounds on the
/// smallest even number of bits that holds n, walked until it lands inside.
///
/// # Panics
/// If `index ≥ n`.
pub(crate) fn permuted(seed: u64, epoch: u64, index: u64, n: u64) -> u64 {
    assert!(index < n, "element {index} of a permutation of {n}");
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = index;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            let f = bits(seed, Stream::Order, epoch, round << 32 | right) & mask;
            (left, right) = (right, left ^ f);
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_visits_every_element_once() {
        for n in [1, 2, 3, 17, 64, 1000] {
            let mut seen: Vec<u64> = (0..n).map(|i| permuted(5, 1, i, n)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
        let order = |seed, epoch| (0..100).map(|i| permuted(seed, epoch, i, 100)).collect::<Vec<_>>();
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let x: Vec<f64> = (0..20_000).map(|i| f64::from(normal(1, Stream::Weights, 2, i))).collect();
        let mean = x.iter().sum::<f64>() / 2e4;
        let var = x.iter().map(|x| x * x).sum::<f64>() / 2e4;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.04, "{mean} {var}");
    }
}
