//! f32, f16, bf16: a block is steps of 2048 bytes, 32 lines of 64 bytes; line r holds the next 16 (f32) or 32
//! values of row r. One step feeds 32 outputs from consecutive memory; a line is one vector register.
//!
//! ```text
//! value (row r, input k), V = 64 / size:   block + (k / V) * 2048 + r * 64 + (k % V) * size
//! ```
//! Narrowing rounds to nearest even; values beyond the range of f16 become infinite, as IEEE says (the converter
//! says so to its user).

use super::{HALF, Quant, ROWS, Type};
use half::{bf16, f16};

const LINE: usize = 64;

/// 32-bit floats: exact.
pub const F32: Quant = Quant {
    ty: Type::F32,
    name: "f32",
    id: 1,
    bits: 32.0,
    head: 0,
    block_bytes: |cols| block_bytes(cols, 4),
    decode_row: |_, block, cols, r, out| decode(block, cols, r, out, f32::from_le_bytes),
    decode_int8: None,
};

/// IEEE half precision.
pub const F16: Quant = Quant {
    ty: Type::F16,
    name: "f16",
    id: 2,
    bits: 16.0,
    head: 0,
    block_bytes: |cols| block_bytes(cols, 2),
    decode_row: |_, block, cols, r, out| decode(block, cols, r, out, |b| f16::from_le_bytes(b).to_f32()),
    decode_int8: None,
};

/// bfloat16: the upper half of an f32.
pub const BF16: Quant = Quant {
    ty: Type::Bf16,
    name: "bf16",
    id: 3,
    bits: 16.0,
    head: 0,
    block_bytes: |cols| block_bytes(cols, 2),
    decode_row: |_, block, cols, r, out| decode(block, cols, r, out, |b| bf16::from_le_bytes(b).to_f32()),
    decode_int8: None,
};

fn block_bytes(cols: u64, size: u64) -> Option<u64> {
    cols.div_ceil(HALF as u64).checked_mul(HALF as u64 * ROWS as u64 * size)
}

/// See [`super::Encode`], as the two below.
pub(super) fn encode_f32(_: &[u8], values: &[f32], _: Option<&[f32]>, cols: usize, out: &mut [u8]) {
    encode(values, cols, out, f32::to_le_bytes);
}

pub(super) fn encode_f16(_: &[u8], values: &[f32], _: Option<&[f32]>, cols: usize, out: &mut [u8]) {
    encode(values, cols, out, |v| f16::from_f32(v).to_le_bytes());
}

pub(super) fn encode_bf16(_: &[u8], values: &[f32], _: Option<&[f32]>, cols: usize, out: &mut [u8]) {
    encode(values, cols, out, |v| bf16::from_f32(v).to_le_bytes());
}

fn encode<const S: usize>(values: &[f32], cols: usize, out: &mut [u8], narrow: impl Fn(f32) -> [u8; S]) {
    for (r, row) in values.chunks_exact(cols).enumerate() {
        for (step, line) in row.chunks(LINE / S).enumerate() {
            let to = &mut out[step * ROWS * LINE + r * LINE..][..LINE];
            for (to, &value) in to.chunks_exact_mut(S).zip(line) {
                to.copy_from_slice(&narrow(value));
            }
        }
    }
}

fn decode<const S: usize>(
    block: &[u8],
    cols: usize,
    r: usize,
    out: &mut [f32],
    widen: impl Fn([u8; S]) -> f32,
) {
    for (k, to) in out[..cols].iter_mut().enumerate() {
        let per_line = LINE / S;
        let at = k / per_line * ROWS * LINE + r * LINE + k % per_line * S;
        let mut bytes = [0; S];
        bytes.copy_from_slice(&block[at..at + S]);
        *to = widen(bytes);
    }
}
