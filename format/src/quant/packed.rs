//! What q6 to q2 have in common: codes in bit planes, times a multiplier per group, times a scale per record.
//!
//! ```text
//! record   0 ..       f16 scale[row 0..31]
//!          64 ..      s8 m[row][group]            group = 16 or 32 consecutive inputs
//!          lines      nibble lines, then two-bit lines, then one-bit lines: those that the type has
//! int8 weight = weight(code, m)                   of the type; never a tie, so that every rounding form agrees
//!
//! bits of the code    6  nibble + two    5  nibble + one    4  nibble    3  two + one    2  two
//!
//! nibble line   64 bytes per (tile of 16 rows, half, row): byte i = place i, low nibble low set, high nibble high set
//! two-bit line  64 bytes per row: byte i = place i of sets 0..3 (set 2h + high) at bits 0, 2, 4, 6
//! one-bit line  32 bytes per row: byte j = place j of sets 0..3 at bits 0..3, place j + 32 at bits 4..7
//! ```
//! Lower planes come first in the code's bits. Two- and one-bit lines are as long in a short record, their upper
//! bits zero there. It does not know which codes are good ones: see [`super::search`].

use super::search::Search;
use super::{
    HALF, HEAD, INPUTS, Quant, ROWS, Type, halves, integer_row, low_set, put_scale, record_block_bytes, scale,
};

/// What sets one type of this kind apart from the others.
pub(super) trait Packing {
    /// Its layout and its rule.
    const LAYOUT: Packed;

    /// What finds its codes, made when a matrix is first written.
    fn search() -> &'static Search;
}

/// The entry of [`super::QUANTS`] of the type with packing `P`.
pub(super) const fn entry<P: Packing>(ty: Type, name: &'static str, id: u32) -> Quant {
    Quant {
        ty,
        name,
        id,
        // a multiplier of 8 bits per group, a scale of 16 per record
        bits: P::LAYOUT.bits as f32 + 8.0 / P::LAYOUT.group as f32 + 16.0 / INPUTS as f32,
        head: HEAD,
        block_bytes: |cols| record_block_bytes(cols, P::LAYOUT.bytes(2) as u64, P::LAYOUT.bytes(1) as u64),
        decode_row: |head, block, cols, r, out| integer_row(int8::<P>, head, block, cols, r, out),
        decode_int8: Some(int8::<P>),
    }
}

/// See [`super::Encode`].
pub(super) fn encode_block<P: Packing>(
    head: &[u8],
    values: &[f32],
    importance: Option<&[f32]>,
    cols: usize,
    out: &mut [u8],
) {
    P::LAYOUT.encode_block(P::search(), head, values, importance, cols, out);
}

/// [`super::Quant::decode_int8`] of packing `P`.
fn int8<P: Packing>(
    head: &[u8],
    block: &[u8],
    cols: usize,
    r: usize,
    record: usize,
    out: &mut [i8; INPUTS],
) -> f32 {
    P::LAYOUT.decode_int8(head, block, cols, r, record, out)
}

/// A type of this kind: its layout and its rule.
pub(super) struct Packed {
    /// Bits of a code.
    pub bits: usize,
    /// Inputs that share a multiplier.
    pub group: usize,
    /// The int8 of a code under a multiplier; `table` is the head.
    pub weight: fn(table: &[u8], code: u8, m: i8) -> i8,
}

impl Packed {
    /// Bytes before the lines.
    const fn lines(&self) -> usize {
        64 + ROWS * INPUTS / self.group
    }

    const fn nibbles(&self, hv: usize) -> usize {
        if self.bits >= 4 { ROWS * 64 * hv } else { 0 }
    }

    const fn twos(&self) -> usize {
        if matches!(self.bits, 2 | 3 | 6) { ROWS * 64 } else { 0 }
    }

    const fn ones(&self) -> usize {
        if self.bits % 2 == 1 { ROWS * 32 } else { 0 }
    }

    /// Bytes of a record of `hv` halves.
    pub const fn bytes(&self, hv: usize) -> usize {
        self.lines() + self.nibbles(hv) + self.twos() + self.ones()
    }

    /// Record `index` of a block of `cols` inputs: its halves and where it lies.
    fn record(&self, cols: usize, index: usize) -> (usize, std::ops::Range<usize>) {
        let (hv, at) = (halves(cols, index), index * self.bytes(2));
        (hv, at..at + self.bytes(hv))
    }

    /// Where place `i` of the two sets of half `h` of row `r` lies in a nibble line.
    fn nibble(&self, hv: usize, r: usize, h: usize, i: usize) -> usize {
        self.lines() + (((r / 16) * hv + h) * 16 + r % 16) * 64 + i
    }

    /// The code at place `i` of set `s` of row `r`.
    fn code(&self, record: &[u8], hv: usize, r: usize, s: usize, i: usize) -> u8 {
        let (mut code, mut shift) = (0, 0);
        if self.bits >= 4 {
            code = record[self.nibble(hv, r, s / 2, i)] >> (4 * (s % 2)) & 15;
            shift = 4;
        }
        let twos = self.lines() + self.nibbles(hv);
        if self.twos() > 0 {
            code |= (record[twos + r * 64 + i] >> (2 * s) & 3) << shift;
            shift += 2;
        }
        if self.ones() > 0 {
            let byte = record[twos + self.twos() + r * 32 + i % 32];
            code |= (byte >> (s + 4 * (i / 32)) & 1) << shift;
        }
        code
    }

    /// Puts a code where [`Packed::code`] reads it; the record holds zero bits there.
    fn put(&self, record: &mut [u8], hv: usize, r: usize, s: usize, i: usize, code: u8) {
        let mut code = code;
        if self.bits >= 4 {
            record[self.nibble(hv, r, s / 2, i)] |= (code & 15) << (4 * (s % 2));
            code >>= 4;
        }
        let twos = self.lines() + self.nibbles(hv);
        if self.twos() > 0 {
            record[twos + r * 64 + i] |= (code & 3) << (2 * s);
            code >>= 2;
        }
        if self.ones() > 0 {
            record[twos + self.twos() + r * 32 + i % 32] |= code << (s + 4 * (i / 32));
        }
    }

    /// See [`super::Quant::decode_int8`].
    pub fn decode_int8(
        &self,
        head: &[u8],
        block: &[u8],
        cols: usize,
        r: usize,
        record: usize,
        out: &mut [i8; INPUTS],
    ) -> f32 {
        let (hv, range) = self.record(cols, record);
        let record = &block[range];
        let multipliers = &record[64 + r * (INPUTS / self.group)..][..INPUTS / self.group];
        out.fill(0);
        for s in 0..2 * hv {
            for i in 0..64 {
                let k = s / 2 * HALF + low_set(i) + s % 2 * 16;
                let m = multipliers[k / self.group] as i8;
                out[k] = (self.weight)(head, self.code(record, hv, r, s, i), m);
            }
        }
        scale(head, record, r)
    }

    /// See [`super::Encode`].
    pub fn encode_block(
        &self,
        search: &Search,
        head: &[u8],
        values: &[f32],
        importance: Option<&[f32]>,
        cols: usize,
        out: &mut [u8],
    ) {
        let groups = INPUTS / self.group;
        for (r, row) in values.chunks_exact(cols).enumerate() {
            for (index, inputs) in row.chunks(INPUTS).enumerate() {
                let (hv, range) = self.record(cols, index);
                let record = &mut out[range];
                let importance = importance.map(|all| &all[index * INPUTS..][..inputs.len()]);
                let found = search.record(inputs, importance, |wanted| put_scale(head, record, r, wanted));
                let Some(found) = found else { continue };
                for (to, &m) in record[64 + r * groups..][..groups].iter_mut().zip(&found.multipliers) {
                    *to = m as u8;
                }
                for s in 0..2 * hv {
                    for i in 0..64 {
                        let k = s / 2 * HALF + low_set(i) + s % 2 * 16;
                        self.put(record, hv, r, s, i, found.codes[k]);
                    }
                }
            }
        }
    }
}

/// The rule of the types with a table: 127 at most, since only a forged pair of −128s would give 128.
pub(super) fn table_weight(table: &[u8], code: u8, m: i8) -> i8 {
    ((i32::from(table[usize::from(code)] as i8) * i32::from(m) + 64) >> 7).min(127) as i8
}
