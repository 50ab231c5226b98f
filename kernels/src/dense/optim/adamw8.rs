//! AdamW with moments of eight bits: blocks of 256 values, each with its own largest value (block-wise, as in
//! Dettmers et al. 2021, arXiv:2110.02861).
//!
//! ```text
//! first moment    m = top · c·|c|,  c = code/127 in −1..1      small values keep their sign and size
//! second moment   v = top · c⁴,     c = code/255 in 0..1       seven orders of magnitude below a block's largest
//! ```
//! Codes are powers of a linear scale, not a table, so that a block is decoded and encoded by vector instructions.
//! A second moment above zero never becomes zero: its root divides.

use super::super::{Dense, Shared, versions};
use super::{AdamW, PIECE};

/// Values that share a scale.
pub const BLOCK: usize = 256;

/// Moments of `n` values: codes, and a scale for every 256 of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments8 {
    /// Codes of the first moment, −127 to 127, as bytes.
    pub first: Vec<u8>,
    /// Greatest magnitude of each block.
    pub first_top: Vec<f32>,
    /// Codes of the second moment.
    pub second: Vec<u8>,
    /// Greatest value of each block.
    pub second_top: Vec<f32>,
}

impl Moments8 {
    /// Zeros for `n` values.
    pub fn new(n: usize) -> Moments8 {
        let blocks = n.div_ceil(BLOCK);
        Moments8 {
            first: vec![0; n],
            first_top: vec![0.0; blocks],
            second: vec![0; n],
            second_top: vec![0.0; blocks],
        }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.first.len() + self.second.len() + 4 * (self.first_top.len() + self.second_top.len())
    }
}

/// Rounds to nearest even; exact for magnitudes below 2²².
#[inline(always)]
fn round(x: f32) -> f32 {
    (x + 12_582_912.0) - 12_582_912.0
}

#[inline(always)]
fn inverse(top: f32) -> f32 {
    if top > 0.0 { 1.0 / top } else { 0.0 }
}

#[inline(always)]
fn top(x: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for line in x.as_chunks::<16>().0 {
        for (lane, x) in lanes.iter_mut().zip(line) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.iter().fold(0.0, |a, b| if *b > a { *b } else { a })
}

versions! {
    fn block(o: &AdamW, w: &mut [f32], g: &[f32], m: &mut [u8], m_top: &mut f32, v: &mut [u8], v_top: &mut f32) {
        let n = w.len();
        let factors = o.factors();
        let (mut first, mut second) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        for i in 0..n {
            let c = f32::from(m[i] as i8) / 127.0;
            let d = f32::from(v[i]) / 255.0;
            let before = (*m_top * (c * c.abs()), *v_top * ((d * d) * (d * d)));
            (w[i], first[i], second[i]) = o.value(factors, w[i], g[i], before.0, before.1);
        }
        (*m_top, *v_top) = (top(&first), top(&second));
        let (by_first, by_second) = (inverse(*m_top), inverse(*v_top));
        for i in 0..n {
            let x = first[i] * by_first;
            m[i] = round(x.abs().sqrt().copysign(x) * 127.0) as i8 as u8;
            // rounded down to zero it would be lost: at least the smallest step
            let y = second[i] * by_second;
            let code = round(y.sqrt().sqrt() * 255.0);
            v[i] = if y > 0.0 && code < 1.0 { 1.0 } else { code } as u8;
        }
    }
}

impl Dense {
    /// One AdamW step on `w` with gradient `g` and moments of eight bits. The step uses the moments before they are
    /// rounded.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn adamw8(&mut self, o: &AdamW, w: &mut [f32], g: &[f32], moments: &mut Moments8) {
        let n = w.len();
        let blocks = n.div_ceil(BLOCK);
        let same = g.len() == n
            && (moments.first.len(), moments.second.len()) == (n, n)
            && (moments.first_top.len(), moments.second_top.len()) == (blocks, blocks);
        assert!(same, "adamw8 of {n}, {}, {}", g.len(), moments.first.len());
        let w = Shared::of(w);
        let (m, v) = (Shared::of(&mut moments.first), Shared::of(&mut moments.second));
        let (m_top, v_top) = (Shared::of(&mut moments.first_top), Shared::of(&mut moments.second_top));
        self.pieces(n, PIECE, |_, r| {
            for at in r.clone().step_by(BLOCK) {
                let part = at..(at + BLOCK).min(r.end);
                let i = at / BLOCK;
                // SAFETY: pieces begin at multiples of a block, and each piece takes its own blocks.
                unsafe {
                    let (w, m, v) = (w.part(part.clone()), m.part(part.clone()), v.part(part.clone()));
                    let (m_top, v_top) = (&mut m_top.part(i..i + 1)[0], &mut v_top.part(i..i + 1)[0]);
                    block(self.isa, o, w, &g[part], m, m_top, v, v_top);
                }
            }
        });
    }
}
