//! Slopes of ALiBi (Press et al., arXiv:2108.12409, section 3 and its reference code).

/// One slope a head: 2^(−max·i/n) for i = 1..=n where n heads are a power of two. Otherwise the slopes of the next
/// power of two, first its even places (which are those of the power below), then its odd ones.
pub fn slopes(heads: u32, max: f64) -> Vec<f32> {
    let full = heads.checked_next_power_of_two().unwrap_or(heads);
    let slope = |i: u32| (-max * f64::from(i) / f64::from(full)).exp2() as f32;
    if full == heads {
        return (1..=heads).map(slope).collect();
    }
    let even = (2..=full).step_by(2);
    let odd = (1..=full).step_by(2);
    even.chain(odd).take(heads as usize).map(slope).collect()
}

#[cfg(test)]
mod tests {
    use super::slopes;

    #[test]
    fn eight_heads_halve_from_one_half() {
        let expected: Vec<f32> = (1..=8).map(|i| 0.5f32.powi(i)).collect();
        assert_eq!(slopes(8, 8.0), expected);
    }

    #[test]
    fn other_counts_take_the_power_below_and_then_places_between() {
        // Bloom's way to say it: 8 slopes of 8 heads, then places 1, 3, 5, 7 of the 16.
        let mut expected = slopes(8, 8.0);
        expected.extend([0.5, 1.5, 2.5, 3.5].iter().map(|e: &f32| (-e).exp2()));
        let got = slopes(12, 8.0);
        assert_eq!(got.len(), 12);
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got - expected).abs() <= 1e-7 * expected, "{got} {expected}");
        }
    }

    #[test]
    fn one_head_has_the_least_slope() {
        assert_eq!(slopes(1, 8.0), [1.0 / 256.0]);
    }
}
