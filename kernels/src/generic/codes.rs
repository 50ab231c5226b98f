//! How integer records become int8: one routine per type, for every kernel that multiplies with them.
//!
//! ```text
//! record of 32 rows x 256 inputs:  scales | multipliers (not q8) | lines
//!
//! q8            a line per row and set: the integers
//! q4            a line per row and half: nibbles, codes of a table that the group's multiplier has scaled
//! q6 q5         the same nibbles, above them bits from a plane of 2 or 1 bits; code times multiplier
//! q3 q2         planes of 2 (and 1) bits, codes of a small scaled table
//! ```
//! A *set* is 64 inputs of a row (format/SPEC.md): sets 2h and 2h + 1 are half h's low and high one. Multipliers
//! act on 16-byte lanes, each of which holds inputs of one group. What comes out is the form that `dot` takes, or
//! plain int8; the scales are not looked at.

use crate::simd::Simd;

/// int8.
pub const Q8: u8 = 8;
/// 6-bit codes, evenly spaced, a multiplier per 16 inputs.
pub const Q6: u8 = 6;
/// 5-bit codes, evenly spaced, a multiplier per 16 inputs.
pub const Q5: u8 = 5;
/// 4-bit codes of a table, a multiplier per 32 inputs.
pub const Q4: u8 = 4;
/// 3-bit codes of a table, a multiplier per 16 inputs.
pub const Q3: u8 = 3;
/// 2-bit codes of a table, a multiplier per 16 inputs.
pub const Q2: u8 = 2;

/// Int8 terms that an activation has in products with these records.
pub const fn terms(bits: u8) -> usize {
    if bits == Q8 || bits == Q6 { 2 } else { 1 }
}

/// Bytes before a record's lines.
pub const fn lines_at(bits: u8) -> usize {
    match bits {
        Q8 => 64,
        Q4 => 64 + 32 * 8,
        _ => 64 + 32 * 16,
    }
}

/// Bytes of a record of `halves` halves.
pub const fn record_bytes(bits: u8, halves: usize) -> usize {
    lines_at(bits)
        + match bits {
            Q8 => halves * 32 * 128,
            Q6 => halves * 32 * 64 + 32 * 64,
            Q5 => halves * 32 * 64 + 32 * 32,
            Q4 => halves * 32 * 64,
            Q3 => 32 * 64 + 32 * 32,
            _ => 32 * 64,
        }
}

/// A matrix's table, ready for its type's [`line`].
#[inline(always)]
pub unsafe fn table<S: Simd, const BITS: u8>(head: *const u8) -> S::T {
    // SAFETY: a head is 64 bytes
    unsafe {
        if BITS == Q2 {
            // twice the four entries: the multipliers of both sets fit one scaled table
            let entries = head.cast::<[i8; 4]>().read_unaligned();
            let mut twice = [0; 16];
            twice[..4].copy_from_slice(&entries);
            twice[4..8].copy_from_slice(&entries);
            return S::table(twice.as_ptr());
        }
        S::table(head.cast())
    }
}

/// The low and the high set of half `h` of row `16 · tile + row`, 64 inputs each; with `BIASED` in `dot`'s form,
/// else as int8.
#[inline(always)]
pub unsafe fn line<S: Simd, const BITS: u8, const BIASED: bool>(
    table: S::T,
    record: *const u8,
    halves: usize,
    tile: usize,
    row: usize,
    h: usize,
) -> (S::B, S::B) {
    // SAFETY: passed on. Two calls, so that each has its shifts as constants.
    unsafe {
        if h == 0 {
            half::<S, BITS, BIASED>(table, record, halves, tile, row, 0)
        } else {
            half::<S, BITS, BIASED>(table, record, halves, tile, row, 1)
        }
    }
}

#[inline(always)]
unsafe fn half<S: Simd, const BITS: u8, const BIASED: bool>(
    table: S::T,
    record: *const u8,
    halves: usize,
    tile: usize,
    row: usize,
    h: usize,
) -> (S::B, S::B) {
    // SAFETY: a record holds what its layout says
    unsafe {
        let lines = record.add(lines_at(BITS));
        let r = tile * 16 + row;
        let nibbles = lines.wrapping_add(((tile * halves + h) * 16 + row) * 64);
        let m = record.wrapping_add(64 + r * 16 + h * 8).cast::<i8>();
        let (low, high) = (2 * h as i32, 2 * h as i32 + 1);
        match BITS {
            Q8 => {
                let line = lines.add(((tile * 2 * halves + 2 * h) * 16 + row) * 64);
                let (a, b) = (S::b_load(line), S::b_load(line.add(1024)));
                if BIASED { (S::biased(a), S::biased(b)) } else { (a, b) }
            }
            Q4 => {
                let m = record.add(64 + r * 8 + 4 * h).cast::<i8>();
                S::lookup(S::b_load(nibbles), form::<S, BIASED>(S::scaled(table, m)))
            }
            Q6 => {
                let line = S::b_load(nibbles);
                let twos = S::b_load(lines.add(halves * 2048 + r * 64));
                // twice the code, less 71: odd numbers
                let a = S::b_or(S::b_field(line, -1, 0x1e), S::b_field(twos, 2 * low - 5, 0x60));
                let b = S::b_or(S::b_field(line, 3, 0x1e), S::b_field(twos, 2 * high - 5, 0x60));
                let a = S::times(S::b_add(a, -71), m, 0, 6);
                let b = S::times(S::b_add(b, -71), m, 1, 6);
                (form::<S, BIASED>(a), form::<S, BIASED>(b))
            }
            Q5 => {
                let line = S::b_load(nibbles);
                let ones = S::b_ones(lines.add(halves * 2048 + r * 32));
                // four times the code, less 69
                let a = S::b_or(S::b_field(line, -2, 0x3c), S::b_field(ones, low - 6, 0x40));
                let b = S::b_or(S::b_field(line, 2, 0x3c), S::b_field(ones, high - 6, 0x40));
                let a = S::times(S::b_add(a, -69), m, 0, 6);
                let b = S::times(S::b_add(b, -69), m, 1, 6);
                (form::<S, BIASED>(a), form::<S, BIASED>(b))
            }
            Q3 => {
                let twos = S::b_load(lines.add(r * 64));
                let ones = S::b_ones(lines.add(2048 + r * 32));
                // the low set's table is the lower half of each lane's, the high set's the upper
                let tables = form::<S, BIASED>(S::scaled8(table, m));
                let a = S::b_or(S::b_field(twos, 2 * low, 3), S::b_field(ones, low - 2, 4));
                let b = S::b_or(S::b_field(twos, 2 * high, 3), S::b_field(ones, high - 2, 4));
                (S::pick(tables, a), S::pick(tables, S::b_or(b, S::b_splat(8))))
            }
            _ => {
                let twos = S::b_load(lines.add(r * 64));
                let tables = form::<S, BIASED>(S::scaled4(table, m));
                let (a, b) = (S::b_field(twos, 2 * low, 3), S::b_field(twos, 2 * high, 3));
                (S::pick(tables, a), S::pick(tables, S::b_or(b, S::b_splat(4))))
            }
        }
    }
}

#[inline(always)]
unsafe fn form<S: Simd, const BIASED: bool>(w: S::B) -> S::B {
    // SAFETY: no pointers
    unsafe { if BIASED { S::biased(w) } else { w } }
}

/// Both sets of half `h` of the 16 rows of a tile: row i's low set goes to `to[0] + i · stride`, its high set to
/// `to[1] + i · stride`. Sixteen rows of a set, 64 bytes each, are what a matrix tile takes.
#[inline(always)]
pub unsafe fn tile<S: Simd, const BITS: u8, const BIASED: bool>(
    table: S::T,
    record: *const u8,
    halves: usize,
    tile: usize,
    h: usize,
    to: [*mut u8; 2],
    stride: usize,
) {
    // SAFETY: the caller has room for 16 rows of both sets
    unsafe {
        for row in 0..16 {
            let (a, b) = line::<S, BITS, BIASED>(table, record, halves, tile, row, h);
            S::b_store(to[0].add(row * stride), a);
            S::b_store(to[1].add(row * stride), b);
        }
    }
}
