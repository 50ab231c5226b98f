//! q4: 4-bit codes into a table, a multiplier per 32 inputs, a scale per (row, 256 inputs): 4.3125 bits.
//!
//! ```text
//! record, 4416 bytes (short, 128 inputs: 2368)
//!   0   .. 63   f16 scale[row 0..31]
//!   64  .. 319  s8 m[row][group 0..7], group g = inputs 32g .. 32g + 31
//!   320 ..      byte at 320 + ((nt * hv + h) * 16 + l) * 64 + i: low nibble = low set, high nibble = high set
//!               row = 16 nt + l; hv = halves in the record; h = half
//! int8 weight = (table[code] * m + 64) >> 7           never a tie: the table is odd and m is never +-64
//! ```
//! The multiplier scales the table, not the weights: 16 products per group make a lookup table, and what comes out
//! is int8 like every other type. The steps of the table grow outwards as the density of weights falls.
//!
//! Encoding, per group: try steps around those that put the largest value on either end of the table, each at its
//! best scale in the least-squares sense, and keep that of least squared error. Per record: the largest step fixes the scale,
//! multipliers are rounded to it, and codes are chosen against the integers that will really be decoded.

use super::{HALF, HEAD, INPUTS, Quant, ROWS, Type};
use super::{halves, integer_row, low_set, put_scale, record_block_bytes, round, scale};

/// The entry of [`super::QUANTS`].
pub const Q4: Quant = Quant {
    ty: Type::Q4,
    name: "q4",
    id: 32,
    bits: 4.3125,
    head: HEAD,
    block_bytes: |cols| record_block_bytes(cols, FULL as u64, SHORT as u64),
    encode_block,
    decode_row: |head, block, cols, r, out| integer_row(decode_int8, head, block, cols, r, out),
    decode_int8: Some(decode_int8),
};

/// The table written with every q4 matrix: odd, ascending, denser around zero.
pub const TABLE: [i8; 16] = [-127, -105, -83, -65, -49, -35, -21, -9, 1, 13, 25, 37, 53, 69, 89, 113];

const GROUP: usize = 32;
const CODES: usize = 64 + ROWS * INPUTS / GROUP;
const FULL: usize = CODES + ROWS * INPUTS / 2;
const SHORT: usize = CODES + ROWS * HALF / 2;

/// Where place `i` of half `h` of row `r` lies in a record of `hv` halves.
fn place(hv: usize, r: usize, h: usize, i: usize) -> usize {
    CODES + (((r / 16) * hv + h) * 16 + r % 16) * 64 + i
}

/// The decoded weight. 127 at most: only a forged pair of −128s would give 128.
fn weight(entry: i8, m: i8) -> i8 {
    ((i32::from(entry) * i32::from(m) + 64) >> 7).min(127) as i8
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
    let record = &block[record * FULL..][..CODES + ROWS * HALF / 2 * hv];
    out.fill(0);
    for h in 0..hv {
        for i in 0..64 {
            let k = HALF * h + low_set(i);
            let m = record[64 + r * 8 + k / GROUP] as i8;
            let byte = record[place(hv, r, h, i)];
            out[k] = weight(head[usize::from(byte & 15)] as i8, m);
            out[k + 16] = weight(head[usize::from(byte >> 4)] as i8, m);
        }
    }
    scale(head, record, r)
}

fn encode_block(head: &[u8], values: &[f32], cols: usize, out: &mut [u8]) {
    let table: [i8; 16] = std::array::from_fn(|code| head[code] as i8);
    let search = Search::new(&table);
    for (r, row) in values.chunks_exact(cols).enumerate() {
        for (index, inputs) in row.chunks(INPUTS).enumerate() {
            let hv = halves(cols, index);
            let record = &mut out[index * FULL..][..CODES + ROWS * HALF / 2 * hv];
            let mut x = [0.0; INPUTS];
            x[..inputs.len()].copy_from_slice(inputs);
            encode_record(&table, &search, head, hv, r, &x, record);
        }
    }
}

/// Encodes 256 inputs of row `r` into its record.
fn encode_record(
    table: &[i8; 16],
    search: &Search,
    head: &[u8],
    hv: usize,
    r: usize,
    x: &[f32; INPUTS],
    record: &mut [u8],
) {
    let (groups, _) = x.as_chunks::<GROUP>();
    let groups = &groups[..4 * hv];
    let mut steps = [0.0f32; INPUTS / GROUP];
    let mut finite = true;
    for (step, group) in steps.iter_mut().zip(groups) {
        *step = search.step(group);
        finite &= group.iter().all(|v| v.is_finite());
    }
    let largest = steps.iter().fold(0.0f32, |m, s| m.max(s.abs()));
    let scale = put_scale(head, record, r, if finite { largest * (128.0 / 127.0) } else { f32::NAN });
    if scale.is_nan() || scale == 0.0 {
        return;
    }
    let inverse = 1.0 / scale;
    let mut codes = [0u8; INPUTS];
    let (code_groups, _) = codes.as_chunks_mut::<GROUP>();
    for (g, (group, codes)) in groups.iter().zip(code_groups).enumerate() {
        let y: [f32; GROUP] = std::array::from_fn(|j| group[j] * inverse);
        let wanted = round((steps[g] * inverse * 128.0).clamp(-127.0, 127.0)) as i8;
        let (m, best) = choose(table, wanted, &y);
        *codes = best;
        record[64 + r * 8 + g] = m as u8;
    }
    for h in 0..hv {
        let from = &codes[HALF * h..][..HALF];
        let line = &mut record[place(hv, r, h, 0)..][..64];
        for (to, from) in line.chunks_exact_mut(16).zip(from.chunks_exact(32)) {
            for (i, to) in to.iter_mut().enumerate() {
                *to = from[i] | from[i + 16] << 4;
            }
        }
    }
}

/// How far from the wanted multiplier others are tried.
const NEAR: i8 = 1;

/// The multiplier out of `wanted` and its neighbours with the least squared error over `y` (inputs over scale), and
/// the codes under it.
fn choose(table: &[i8; 16], wanted: i8, y: &[f32; GROUP]) -> (i8, [u8; GROUP]) {
    let mut best = (f32::INFINITY, 0);
    for m in wanted.saturating_sub(NEAR).max(-127)..=wanted.saturating_add(NEAR) {
        if m == 64 || m == -64 {
            continue; // a multiplier of 64 would make ties
        }
        let error = error(&levels(table, m), y);
        if error < best.0 {
            best = (error, m);
        }
    }
    (best.1, codes(&levels(table, best.1), best.1 < 0, y))
}

/// The weights of the 16 codes under multiplier `m`, ascending: from the last code down where `m` is negative.
fn levels(table: &[i8; 16], m: i8) -> [f32; 16] {
    let mut levels = table.map(|entry| f32::from(weight(entry, m)));
    if m < 0 {
        levels.reverse();
    }
    levels
}

/// The squared error of `y` against the nearest levels. Walks all of `y` up the levels together, past each boundary
/// that lies below: written so that it vectorises.
fn error(levels: &[f32; 16], y: &[f32; GROUP]) -> f32 {
    let mut errors = [0.0f32; 8];
    for y in y.as_chunks::<8>().0 {
        let mut value = [levels[0]; 8];
        for pair in levels.windows(2) {
            let (boundary, gap) = (0.5 * (pair[0] + pair[1]), pair[1] - pair[0]);
            for j in 0..8 {
                value[j] += if y[j] > boundary { gap } else { 0.0 };
            }
        }
        for j in 0..8 {
            errors[j] += (y[j] - value[j]) * (y[j] - value[j]);
        }
    }
    errors.iter().sum()
}

/// The codes of the nearest levels.
fn codes(levels: &[f32; 16], descending: bool, y: &[f32; GROUP]) -> [u8; GROUP] {
    let mut rank = [0i32; GROUP];
    for pair in levels.windows(2) {
        let boundary = 0.5 * (pair[0] + pair[1]);
        for j in 0..GROUP {
            rank[j] += i32::from(y[j] > boundary);
        }
    }
    rank.map(|rank| if descending { 15 - rank as u8 } else { rank as u8 })
}

/// The search for a group's step.
struct Search {
    /// From a value in half steps to the nearest entry of the table.
    nearest: [f32; 512],
    /// The values, in steps, that a group's largest value is tried as: around either end of the table, because the
    /// two ends differ and a group may lie better on the table's mirror image.
    places: [f32; 6],
}

/// How far apart the places around an end are.
const APART: f32 = 5.0;

impl Search {
    fn new(table: &[i8; 16]) -> Search {
        let nearest = std::array::from_fn(|at| {
            let value = (at as f32 - 256.0) * 0.5;
            let entries = table.iter().map(|&e| f32::from(e));
            entries.fold(f32::INFINITY, |b, e| if (e - value).abs() < (b - value).abs() { e } else { b })
        });
        let (first, last) = (f32::from(table[0]), f32::from(table[15]));
        let places = [first, first - APART, first + APART, last, last - APART, last + APART];
        Search { nearest, places }
    }

    /// The signed step `a` for which `a * table` lies closest to `group`; 0 for a group of zeros.
    fn step(&self, group: &[f32; GROUP]) -> f32 {
        let largest = group.iter().fold(0.0f32, |b, &v| if v.abs() > b.abs() { v } else { b });
        if largest == 0.0 || !largest.is_finite() {
            return 0.0;
        }
        // In units of the largest value, so that squares neither overflow nor vanish.
        let unit: [f32; GROUP] = std::array::from_fn(|j| group[j] / largest);
        let mut best = (-1.0, 0.0);
        for place in self.places {
            let (mut cross, mut square) = ([0.0f32; 4], [0.0f32; 4]);
            for (j, &u) in unit.iter().enumerate() {
                let q = self.nearest[half_steps(u * place)];
                cross[j % 4] += q * u;
                square[j % 4] += q * q;
            }
            let cross = (cross[0] + cross[1]) + (cross[2] + cross[3]);
            let square = (square[0] + square[1]) + (square[2] + square[3]);
            // With the best step cross / square the error is |u|^2 - cross^2 / square.
            let gain = cross * cross / square;
            if gain > best.0 {
                best = (gain, cross / square);
            }
        }
        best.1 * largest
    }
}

/// The index of `value`, in half steps, in [`Search::nearest`]; the mantissa of a number just above 2^23 is that
/// number's integer part.
fn half_steps(value: f32) -> usize {
    let clamped = (value * 2.0).clamp(-256.0, 255.0);
    (((clamped + (12_582_912.0 + 256.0)).to_bits()) & 511) as usize
}
