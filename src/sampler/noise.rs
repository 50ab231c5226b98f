//! Noise by counter: a number for (seed, stream, absolute position, token id), computed, never drawn in sequence.
//!
//! ```text
//! Philox4x32-10:  key     = seed (64 bit)
//!                 counter = id / 4 · position · stream (64 bit)   →  4 words, one for each of 4 neighbouring ids
//! r = top 23 bits of the word     u = (r + ½) · 2⁻²³     g = −ln(−ln u)   a standard Gumbel variate
//! ```
//!
//! argmax(logit + g) is a draw from softmax(logit). Philox is the counter-based generator of Salmon et al.,
//! "Parallel random numbers: as easy as 1, 2, 3" (2011); its published test vectors are a test here.

use llm_kernels::{Loop, wide};

use super::{Candidate, math};

/// What the noise of one choice depends on, besides the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The sampler's seed.
    pub seed: u64,
    /// The sampler's stream: forks differ in it.
    pub stream: u64,
    /// Absolute position of the token to be chosen.
    pub position: u32,
}

/// Philox's multipliers, and what its key grows by.
const FACTORS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(STEPS[0]), key[1].wrapping_add(STEPS[1])];
        }
        let [a, b, c, d] = counter;
        let low = u64::from(a) * FACTORS[0];
        let high = u64::from(c) * FACTORS[1];
        counter =
            [(high >> 32) as u32 ^ b ^ key[0], high as u32, (low >> 32) as u32 ^ d ^ key[1], low as u32];
    }
    counter
}

/// The words of the four ids 4·`quad` .. 4·`quad` + 3.
fn words(key: Key, quad: u32) -> [u32; 4] {
    philox(
        [quad, key.position, key.stream as u32, (key.stream >> 32) as u32],
        [key.seed as u32, (key.seed >> 32) as u32],
    )
}

/// The 23 random bits of a token.
pub fn bits(key: Key, id: u32) -> u32 {
    words(key, id / 4)[(id % 4) as usize] >> 9
}

/// What a filter's own randomness is for. Each has noise of its own, apart from that of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Whether top choices are excluded.
    Xtc = 0,
}

/// The 23 random bits of a filter. Tokens take their words from ids / 4 < 2²⁹, filters from 2³¹ on.
pub fn own(key: Key, tag: Tag) -> u32 {
    words(key, 1 << 31 | tag as u32)[0] >> 9
}

/// The Gumbel variate of 23 random bits; between −2.82 and 16.64, rising with `r`.
pub fn gumbel(r: u32) -> f64 {
    let u = (f64::from(r) + 0.5) / f64::from(1u32 << 23);
    -math::ln(-math::ln(u))
}

/// The stream of a sampler's `n`-th fork: SplitMix64's finaliser (Steele et al. 2014) over parent and count.
pub fn child_stream(parent: u64, n: u64) -> u64 {
    let mut z =
        parent.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// argmax(logit + noise), the lowest id among equals. Candidates are in ascending order of id.
///
/// Most tokens cannot win and cost no logarithm: with j leading ones in r, u < 1 − 2⁻ʲ⁻¹ and g < (j + 1)·ln 2, so a
/// token whose logit plus that bound does not reach the best so far is skipped. This never changes the result.
pub(super) fn choose(candidates: &[Candidate], key: Key) -> Option<Candidate> {
    wide(Likeliest { candidates, key })
}

struct Likeliest<'a> {
    candidates: &'a [Candidate],
    key: Key,
}

impl Loop for Likeliest<'_> {
    type Result = Option<Candidate>;

    #[inline(always)]
    fn run(self) -> Option<Candidate> {
        let Likeliest { candidates, key } = self;
        let mut best: Option<(Candidate, f64)> = None;
        let mut block = (u32::MAX, [[0u32; QUADS]; 4]);
        for &c in candidates {
            if c.logit == f32::NEG_INFINITY {
                continue;
            }
            let logit = f64::from(c.logit);
            let floor = best.map_or(f64::NEG_INFINITY, |(_, score)| score);
            if logit + 16.7 < floor {
                continue;
            }
            if block.0 != c.id / BLOCK {
                block = (c.id / BLOCK, blocks(key, c.id / BLOCK));
            }
            let r = block.1[(c.id % 4) as usize][(c.id % BLOCK / 4) as usize] >> 9;
            let leading_ones = (!(r << 9)).leading_zeros();
            if logit + 0.694 * f64::from(leading_ones + 1) < floor {
                continue;
            }
            let score = logit + gumbel(r);
            if score > floor {
                best = Some((c, score));
            }
        }
        best.map(|(c, _)| c)
    }
}

/// Quads whose words are made side by side, and their ids.
const QUADS: usize = 8;
const BLOCK: u32 = 4 * QUADS as u32;

/// [`words`] of quads `block` · 8 .. + 7: word i of quad j is `[i][j]`.
#[inline(always)]
fn blocks(key: Key, block: u32) -> [[u32; QUADS]; 4] {
    let (mut k0, mut k1) = (key.seed as u32, (key.seed >> 32) as u32);
    let mut a: [u32; QUADS] = std::array::from_fn(|j| block * QUADS as u32 + j as u32);
    let (mut b, mut c) = ([key.position; QUADS], [key.stream as u32; QUADS]);
    let mut d = [(key.stream >> 32) as u32; QUADS];
    for round in 0..10 {
        if round > 0 {
            (k0, k1) = (k0.wrapping_add(STEPS[0]), k1.wrapping_add(STEPS[1]));
        }
        for j in 0..QUADS {
            let low = u64::from(a[j]) * FACTORS[0];
            let high = u64::from(c[j]) * FACTORS[1];
            (a[j], b[j]) = ((high >> 32) as u32 ^ b[j] ^ k0, high as u32);
            (c[j], d[j]) = ((low >> 32) as u32 ^ d[j] ^ k1, low as u32);
        }
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_side_by_side_are_the_words() {
        let key = Key { seed: 0x0123_4567_89ab_cdef, stream: u64::MAX - 77, position: 4_000_000_000 };
        for block in [0, 1, 4007, u32::MAX / BLOCK] {
            let all = blocks(key, block);
            for (j, quad) in (block * QUADS as u32..).take(QUADS).enumerate() {
                assert_eq!(std::array::from_fn(|i| all[i][j]), words(key, quad), "quad {quad}");
            }
        }
    }
}
