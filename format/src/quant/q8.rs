//! q8: int8 and one scale per (row, 256 inputs), 8.0625 bits.
//!
//! ```text
//! record, 8256 bytes (short, 128 inputs: 4160)
//!   0  .. 63   f16 scale[row 0..31]
//!   64 ..      s8 at 64 + ((nt * 2hv + s) * 16 + l) * 64 + i
//!              row = 16 nt + l; hv = halves in the record; s = 2h low set, 2h + 1 high set of half h
//! ```
//! Encoding: scale = absmax / 127 rounded to f16, value = nearest integer. A byte −128 is never written.

use super::{HALF, INPUTS, Quant, ROWS, Type};
use super::{absmax, halves, integer_row, low_set, put_scale, record_block_bytes, round, scale};

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

/// See [`super::Encode`]. No input matters more than another: the scale is that of the largest.
pub(super) fn encode_block(head: &[u8], values: &[f32], _: Option<&[f32]>, cols: usize, out: &mut [u8]) {
    for (r, row) in values.chunks_exact(cols).enumerate() {
        for (index, inputs) in row.chunks(INPUTS).enumerate() {
            let hv = halves(cols, index);
            let record = &mut out[index * FULL..][..64 + ROWS * HALF * hv];
            let scale = put_scale(head, record, r, absmax(inputs) / 127.0);
            if scale.is_nan() || scale == 0.0 {
                continue;
            }
            let inverse = 1.0 / scale;
            let mut ints = [0i8; INPUTS];
            for (to, &x) in ints.iter_mut().zip(inputs) {
                *to = round((x * inverse).clamp(-127.0, 127.0)) as i8;
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
