//! q8: int8 and one scale per (row, 256 inputs), 8.0625 bits.
//!
//! ```text
//! record, 8256 bytes (short, 128 inputs: 4160)
//!   0  .. 63   f16 scale[row 0..31]
//!   64 ..      s8 at 64 + ((nt * 2hv + s) * 16 + l) * 64 + i
//!              row = 16 nt + l; hv = halves in the record; s = 2h low set, 2h + 1 high set of half h
//! ```
//! Encoding: value = nearest integer to weight / scale, the scale that of the least error among some around
//! absmax / 127. How far 256 roundings are off differs from scale to scale, and where inputs matter differently, cutting
//! off the largest may pay. A byte −128 is never written.

use half::f16;

use super::search::weights;
use super::{HALF, INPUTS, Quant, ROWS, Type};
use super::{absmax, exponent, halves, integer_row, low_set, put_scale, record_block_bytes, round, scale};

/// The entry of [`super::QUANTS`].
pub const Q8: Quant = Quant {
    ty: Type::Q8,
    name: "q8",
    id: 16,
    bits: 8.0625,
    head: super::HEAD,
    block_bytes: |cols| record_block_bytes(cols, FULL as u64, SHORT as u64),
    decode_row: |head, block, cols, r, out| integer_row(decode_int8, head, block, cols, r, out),
    decode_int8: Some(decode_int8),
};

const FULL: usize = 64 + ROWS * INPUTS;
const SHORT: usize = 64 + ROWS * HALF;

/// Where place `i` of set `s` of row `r` lies in a record of `hv` halves.
fn place(hv: usize, r: usize, s: usize, i: usize) -> usize {
    64 + (((r / 16) * 2 * hv + s) * 16 + r % 16) * 64 + i
}

/// Factors on absmax / 127 that are tried besides one.
const SCALES: [f32; 11] = [0.975, 0.98, 0.985, 0.99, 0.995, 1.005, 1.01, 1.015, 1.02, 1.025, 1.03];
/// Sums of errors side by side.
const LANES: usize = 16;
/// An error below this part of another is the smaller one, however the sums were rounded.
const SURELY: f32 = 0.9999;

/// The nearest integer to a value over a scale.
fn integer(x: f32, inverse: f32) -> f32 {
    round((x * inverse).clamp(-127.0, 127.0))
}

/// The weighted squared error of `x` under `scale`.
fn error(x: &[f32; INPUTS], weights: &[f32; INPUTS], scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    let mut sums = [0.0f32; LANES];
    for (x, weights) in x.chunks_exact(LANES).zip(weights.chunks_exact(LANES)) {
        for j in 0..LANES {
            let off = x[j] - integer(x[j], inverse) * scale;
            sums[j] += weights[j] * (off * off);
        }
    }
    sums.iter().sum()
}

/// The f16 of the least error; `start`, that of the largest value, where none is surely better.
fn search(x: &[f32; INPUTS], weights: &[f32; INPUTS], start: f32) -> f32 {
    let mut best = (SURELY * error(x, weights, start), start);
    for factor in SCALES {
        let scale = f16::from_f32(start * factor).to_f32();
        let error = error(x, weights, scale);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// See [`super::Encode`].
pub(super) fn encode_block(
    head: &[u8],
    values: &[f32],
    importance: Option<&[f32]>,
    cols: usize,
    out: &mut [u8],
) {
    // In units of a finite matrix' power of two scales are f16, and squares of errors neither vanish nor overflow.
    let unit = exponent(head);
    for (r, row) in values.chunks_exact(cols).enumerate() {
        for (index, inputs) in row.chunks(INPUTS).enumerate() {
            let hv = halves(cols, index);
            let record = &mut out[index * FULL..][..64 + ROWS * HALF * hv];
            let start = put_scale(head, record, r, absmax(inputs) / 127.0);
            if start.is_nan() || start == 0.0 {
                continue;
            }
            let mut x = [0.0; INPUTS];
            for (to, input) in x.iter_mut().zip(inputs) {
                *to = input / unit;
            }
            let weights = weights(importance.map(|all| &all[index * INPUTS..][..inputs.len()]));
            let scale = search(&x, &weights, start / unit);
            put_scale(head, record, r, scale * unit);
            let inverse = 1.0 / scale;
            let mut ints = [0i8; INPUTS];
            for (to, &x) in ints.iter_mut().zip(&x) {
                *to = integer(x, inverse) as i8;
            }
            for s in 0..2 * hv {
                let from = &ints[s / 2 * HALF + s % 2 * 16..];
                let line = &mut record[place(hv, r, s, 0)..][..64];
                for (part, to) in line.chunks_exact_mut(16).enumerate() {
                    for (to, &w) in to.iter_mut().zip(&from[32 * part..]) {
                        *to = w as u8;
                    }
                }
            }
        }
    }
}

fn decode_int8(
    head: &[u8],
    block: &[u8],
    cols: usize,
    r: usize,
    record: usize,
    out: &mut [i8; INPUTS],
) -> f32 {
    let hv = halves(cols, record);
    let record = &block[record * FULL..][..64 + ROWS * HALF * hv];
    out.fill(0);
    for h in 0..hv {
        for i in 0..64 {
            let k = HALF * h + low_set(i);
            out[k] = record[place(hv, r, 2 * h, i)] as i8;
            out[k + 16] = record[place(hv, r, 2 * h + 1, i)] as i8;
        }
    }
    scale(head, record, r)
}
