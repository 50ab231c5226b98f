//! Values held in bf16: rounded where they are made, and packed in half the space while they wait.

use super::{Dense, Shared, versions};

/// Values per piece.
const PIECE: usize = 16384;
/// Values that are packed together: the first half in the lower halves of as many words. So many that the compiler
/// takes neighbours to a vector, not one of each group.
const GROUP: usize = 256;

/// The bits of the nearest bf16, ties to even, in the upper half; any NaN to a quiet one.
#[inline(always)]
fn nearest(x: f32) -> u32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    if x.is_nan() { 0x7fc0_0000 } else { up }
}

versions! {
    fn round(x: &mut [f32]) {
        for x in x {
            *x = f32::from_bits(nearest(*x));
        }
    }
}

versions! {
    fn narrow(x: &mut [f32], halves: &mut [f32]) {
        let (groups, rest) = x.as_chunks_mut::<GROUP>();
        let (words, last) = halves.split_at_mut(groups.len() * GROUP / 2);
        for (group, words) in groups.iter_mut().zip(words.as_chunks_mut::<{ GROUP / 2 }>().0) {
            let (low, high) = group.split_at_mut(GROUP / 2);
            for ((low, high), word) in low.iter_mut().zip(high).zip(words) {
                let (a, b) = (nearest(*low), nearest(*high));
                *word = f32::from_bits(a >> 16 | b);
                (*low, *high) = (f32::from_bits(a), f32::from_bits(b));
            }
        }
        // behind the groups, two neighbours to a word
        for (pair, word) in rest.chunks_mut(2).zip(last) {
            pair.iter_mut().for_each(|x| *x = f32::from_bits(nearest(*x)));
            let high = pair.get(1).map_or(0, |x| x.to_bits());
            *word = f32::from_bits(pair[0].to_bits() >> 16 | high);
        }
    }
}

versions! {
    fn widen(halves: &[f32], x: &mut [f32]) {
        let (groups, rest) = x.as_chunks_mut::<GROUP>();
        let (words, last) = halves.split_at(groups.len() * GROUP / 2);
        for (group, words) in groups.iter_mut().zip(words.as_chunks::<{ GROUP / 2 }>().0) {
            let (low, high) = group.split_at_mut(GROUP / 2);
            for ((low, high), word) in low.iter_mut().zip(high).zip(words) {
                *low = f32::from_bits(word.to_bits() << 16);
                *high = f32::from_bits(word.to_bits() & 0xffff_0000);
            }
        }
        for (pair, word) in rest.chunks_mut(2).zip(last) {
            pair[0] = f32::from_bits(word.to_bits() << 16);
            if let Some(x) = pair.get_mut(1) {
                *x = f32::from_bits(word.to_bits() & 0xffff_0000);
            }
        }
    }
}

impl Dense {
    /// Rounds values to bf16, ties to even.
    pub fn round(&mut self, x: &mut [f32]) {
        let x = Shared::of(x);
        self.pieces(x.len(), PIECE, |_, r| {
            // SAFETY: each piece takes its own range.
            round(self.isa, unsafe { x.part(r) });
        });
    }

    /// [`Dense::round`], and a copy in half the space.
    ///
    /// # Panics
    /// Unless `halves` has a word for two values.
    pub fn narrow(&mut self, x: &mut [f32], halves: &mut [f32]) {
        assert!(halves.len() == x.len().div_ceil(2), "{} values in {} words", x.len(), halves.len());
        let (x, halves) = (Shared::of(x), Shared::of(halves));
        self.pieces(x.len(), PIECE, |_, r| {
            let words = r.start / 2..r.end.div_ceil(2);
            // SAFETY: each piece takes its own range; pieces are whole groups.
            let (x, halves) = unsafe { (x.part(r), halves.part(words)) };
            narrow(self.isa, x, halves);
        });
    }

    /// The values that [`Dense::narrow`] left in `halves`.
    ///
    /// # Panics
    /// Unless `halves` has a word for two values.
    pub fn widen(&mut self, halves: &[f32], x: &mut [f32]) {
        assert!(halves.len() == x.len().div_ceil(2), "{} values of {} words", x.len(), halves.len());
        let x = Shared::of(x);
        self.pieces(x.len(), PIECE, |_, r| {
            let words = r.start / 2..r.end.div_ceil(2);
            // SAFETY: each piece takes its own range.
            widen(self.isa, &halves[words], unsafe { x.part(r) });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::values;
    use super::*;
    use half::bf16;

    #[test]
    fn values_are_rounded_to_the_nearest_bf16_and_come_back_from_half_the_space() {
        let special = [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            1e-40,
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
        ];
        for n in [1, 2, 33, 255, 256, 257, 777, PIECE + 300] {
            let mut x = values(n, 3);
            x.iter_mut().zip(special).for_each(|(x, s)| *x = s);
            let expected: Vec<u32> = x.iter().map(|x| bf16::from_f32(*x).to_f32().to_bits()).collect();
            for isa in crate::detect::available() {
                let mut dense = Dense::with_isa(2, isa).unwrap();
                let (mut round, mut narrow) = (x.clone(), x.clone());
                let (mut halves, mut wide) = (vec![9.0; n.div_ceil(2)], vec![9.0; n]);
                dense.round(&mut round);
                dense.narrow(&mut narrow, &mut halves);
                dense.widen(&halves, &mut wide);
                for got in [round, narrow, wide] {
                    assert_eq!(
                        expected,
                        got.into_iter().map(f32::to_bits).collect::<Vec<_>>(),
                        "{n} {isa:?}"
                    );
                }
            }
        }
        let mut nan = [f32::NAN, 1.0];
        Dense::new(1).round(&mut nan);
        assert!(nan[0].is_nan());
    }
}
