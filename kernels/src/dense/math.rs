//! Exponential and what follows from it, as fixed sequences of fused multiply-adds without branches, so that a loop
//! over lanes becomes vector code and every instruction set rounds alike. (The crate's own `math` rounds its halves
//! apart for subnormal results, which training does not need.)

use crate::math::TANH;

/// `eˣ` to within 2 units in the last place; 0 below about −87.3 (no denormals), capped above 88.37.
///
/// Range reduction by a rounded multiple of ln 2 in two parts (Cody and Waite), then the polynomial of Moshier's
/// Cephes library (`expf`) on ±ln 2 / 2.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4; // 0.693359375 exactly
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let low = x < -87.336_54;
    let x = if x > 88.37 { 88.37 } else { x };
    let x = if low { -87.336_54 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if low { 0.0 } else { p * scale }
}

/// `tanh x`: a polynomial below 0.625, else `1 − 2/(e^2|x| + 1)`, both made and one taken.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let (a, s) = (x.abs(), x * x);
    let small = (x * s).mul_add(TANH.iter().rev().fold(0.0, |p: f32, c| p.mul_add(s, *c)), x);
    let large = (1.0 - 2.0 / (exp(a + a) + 1.0)).copysign(x);
    if a < 0.625 { small } else { large }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Sixteen running sums by index mod 16, added up as a tree: +8, +4, +2, +1.
#[inline(always)]
pub(super) fn tree(mut lanes: [f32; 16]) -> f32 {
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Folds `f` over the elements in sixteen lanes by index mod 16, then the tree.
#[inline(always)]
pub(super) fn fold1(a: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (whole, rest) = a.as_chunks::<16>();
    for a in whole {
        for l in 0..16 {
            lanes[l] = f(lanes[l], a[l]);
        }
    }
    for (lane, a) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, *a);
    }
    tree(lanes)
}

/// As [`fold1`] over pairs of elements.
#[inline(always)]
pub(super) fn fold2(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    let n = a.len().min(b.len());
    let (whole_a, rest_a) = a[..n].as_chunks::<16>();
    let (whole_b, rest_b) = b[..n].as_chunks::<16>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for l in 0..16 {
            lanes[l] = f(lanes[l], a[l], b[l]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
        *lane = f(*lane, *a, *b);
    }
    tree(lanes)
}

/// A hash of a key and two indices: the bits of counter-based dropout. Two rounds of the finaliser of MurmurHash3.
#[inline(always)]
pub(super) fn hash(key: u64, row: u32, col: u32) -> u32 {
    let mix = |mut h: u32| {
        h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
        h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
        h ^ (h >> 16)
    };
    mix(mix(row ^ key as u32).wrapping_add((key >> 32) as u32) ^ col.wrapping_mul(0x9e37_79b9))
}
