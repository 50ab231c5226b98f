//! Integer products for few tokens: a line of 64 bytes is one row, sixteen rows are folded at a time.
//!
//! ```text
//! record of 32 rows x 256 inputs:  scales | multipliers (q4) | lines, [tile of 16 rows][half][row]
//! ```
//! Up to [`STREAMS`] blocks are walked side by side, record by record; while one block's record is multiplied the
//! next records of all of them are prefetched into the second cache, a line of each in turn and evenly over the work,
//! and from there the record that comes next into the nearest ([`Hints`]). So memory sees several streams and is never
//! idle, and the nearest cache holds two records, however many streams there are.
//!
//! Activations come as int8 vectors, [`terms`] of them a token (see `input.rs`). Each has its own sum, as though it
//! were a token: isum exact over 256 inputs, then fma(f32(isum), scale of the weights · scale of the vector, sum),
//! records ascending. The end adds a token's sums, then the bias.

use super::codes::{self, record_bytes, terms};
use super::{panel, turned};
use crate::simd::Simd;
use core::cell::Cell;

/// Blocks walked together. What fetches lines from memory in numbers is the processor's own look ahead, which sees some
/// twenty lines of a stream; it takes four streams to have as many under way as a core may.
pub const STREAMS: usize = 4;
/// Blocks of few vectors walked together on matrix tiles.
pub const TILE_STREAMS: usize = 4;
/// The most vectors that are multiplied in rows; for more, `packs` is read where the instruction set has packs.
pub const FEW: usize = 2;
/// Inputs of one record.
pub const DEPTH: usize = 256;

/// A product with an int8-decoded matrix: consecutive blocks of 32 rows against int8 vectors `from..to`.
pub struct IntBlock {
    /// The matrix's 64-byte head.
    pub head: *const u8,
    /// First of the blocks.
    pub blocks: *const u8,
    /// How many there are.
    pub count: usize,
    /// Blocks of one stream: they are cut into at most [`STREAMS`] runs of so many, which are walked side by side.
    pub run: usize,
    /// Bytes of one.
    pub block_bytes: usize,
    /// Inputs, a multiple of 128.
    pub cols: usize,
    /// Activations `[records][vectors][256]`, in the records' order; vectors = tokens · terms.
    pub x: *const i8,
    /// Their scales `[records][vectors]`.
    pub scale: *const f32,
    /// Sums of their integers `[records][vectors]`.
    pub sum: *const i32,
    /// Packed for matrix tiles, see [`crate::input::PACKED`]; null where they are not used.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only matrix tiles of x86 read it
    pub tiles: *const u8,
    /// Vectors in `x`.
    pub vectors: usize,
    /// The vectors `from..to` side by side, for more than [`FEW`] of them.
    pub packs: panel::Packs,
    /// First vector, the first of its token.
    pub from: usize,
    /// Behind the last one of a token.
    pub to: usize,
    /// Valid rows, at most 32 · count.
    pub rows: usize,
    /// Of the first row; null without one.
    pub bias: *const f32,
    /// Token 0, first row.
    pub out: *mut f32,
    /// Between tokens.
    pub stride: usize,
}

/// 2^e of a tensor's head.
#[inline(always)]
pub unsafe fn exponent(head: *const u8) -> f32 {
    // SAFETY: a head is 64 bytes
    let e = unsafe { *head.add(16) } as i8 as i32;
    if e >= -126 { f32::from_bits(((e + 127) as u32) << 23) } else { f32::from_bits(1 << (e + 149)) }
}

/// The product, by the form that suits the number of vectors. Same bits either way. `tiles` is [`Simd::tiles`] in a
/// function with the instruction set's features.
#[inline(always)]
pub unsafe fn product<S: Simd, const BITS: u8>(a: &IntBlock, tiles: unsafe fn(&panel::Tiles)) {
    // SAFETY: passed on
    unsafe {
        let vectors = a.to - a.from;
        if !S::PACKS && vectors >= turned::FROM {
            return turned::product::<S, BITS>(a);
        }
        for first in 0..a.run.min(a.count) {
            match vectors {
                // plain Rust gains nothing from two together, and the code is long
                2 if terms(BITS) == 2 || S::ACCUMULATORS > 1 => few::<S, BITS, 2>(a, first, a.from),
                1 | 2 if terms(BITS) == 1 => {
                    for v in a.from..a.to {
                        few::<S, BITS, 1>(a, first, v);
                    }
                }
                _ if S::PACKS => panel::product::<S, BITS>(a, first, tiles),
                _ => {
                    // without packs, twos and fours of up to six
                    let mut t = a.from;
                    if vectors >= 4 {
                        few::<S, BITS, 4>(a, first, t);
                        t += 4;
                    }
                    match a.to - t {
                        2 => few::<S, BITS, 2>(a, first, t),
                        1 if terms(BITS) == 1 => few::<S, BITS, 1>(a, first, t),
                        3 if terms(BITS) == 1 => few::<S, BITS, 3>(a, first, t),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// What to prefetch during one record's work: its share of the records that come next in all streams, into the second
/// cache, and all of the record that is multiplied next, into the nearest; a line of each stream and as many of that
/// record at a time, evenly over the work. Bursts take the buffers that the work's own loads wait for: with them, eight
/// tokens of q4 took 18 % longer.
pub struct Hints {
    /// Where the share of each stream begins.
    far: [*const u8; STREAMS],
    /// Whether there are several streams. The next record of one is the record that is multiplied next.
    several: bool,
    /// The record that is multiplied next.
    near: *const u8,
    /// Bytes of each share that were fetched.
    done: Cell<usize>,
    /// Lines of each that are fetched in `times` portions.
    lines: Cell<usize>,
    times: Cell<usize>,
    /// What is due, in parts of a line: `times` of them are one.
    due: Cell<usize>,
}

impl Hints {
    /// While the record of `halves` halves at `at` in the first stream, and likewise in stream `stream` of `streams`, is
    /// multiplied: to be given in `times` portions.
    #[inline(always)]
    pub fn new<const BITS: u8>(
        a: &IntBlock,
        at: *const u8,
        halves: usize,
        stream: usize,
        streams: usize,
        times: usize,
    ) -> Hints {
        // With four streams a record fetches a quarter of each next one. Behind a stream's last block another one or
        // the end of the matrix follows: only a hint is read there.
        let (lines, apart) = (lines::<BITS>(), a.run * a.block_bytes);
        let next = at.wrapping_add(record_bytes(BITS, halves));
        let mut far = [next; STREAMS];
        for s in 0..STREAMS {
            // of three streams each also fetches the last quarter of its own
            let (of, share) = if streams == 3 && s == 3 {
                (stream, 3)
            } else {
                (s % streams, stream * (STREAMS / streams) + s / streams)
            };
            far[s] = next.wrapping_add(of * apart + share * lines * 64);
        }
        let near = if stream + 1 < streams { at.wrapping_add((stream + 1) * apart) } else { next };
        let (lines, times) = (Cell::new(lines), Cell::new(times));
        Hints { far, several: streams > 1, near, done: Cell::new(0), lines, times, due: Cell::new(0) }
    }

    /// What is left comes in `times` portions.
    #[inline(always)]
    pub fn spread<const BITS: u8>(&self, times: usize) {
        self.lines.set(lines::<BITS>() - self.done.get() / 64);
        self.times.set(times);
        self.due.set(0);
    }

    /// Prefetches the next portion.
    #[inline(always)]
    pub unsafe fn give<S: Simd>(&self) {
        if S::ACCUMULATORS == 1 {
            return; // plain Rust has no hints to give
        }
        let (mut due, mut done) = (self.due.get() + self.lines.get(), self.done.get());
        while due >= self.times.get() {
            due -= self.times.get();
            for (s, far) in self.far.into_iter().enumerate() {
                // SAFETY: a hint may point anywhere
                unsafe {
                    if self.several {
                        S::prefetch_far(far.wrapping_add(done));
                    }
                    S::prefetch(self.near.wrapping_add(done * STREAMS + s * 64));
                }
            }
            done += 64;
        }
        self.due.set(due);
        self.done.set(done);
    }
}

/// Lines of a stream's next record that one record's work fetches.
const fn lines<const BITS: u8>() -> usize {
    record_bytes(BITS, 2).div_ceil(64).div_ceil(STREAMS)
}

impl IntBlock {
    /// Streams that have a block number `first`.
    #[inline(always)]
    pub fn streams(&self, first: usize) -> usize {
        (self.count - first).div_ceil(self.run)
    }
}

/// Block `first` of every stream.
#[inline(always)]
unsafe fn few<S: Simd, const BITS: u8, const T: usize>(a: &IntBlock, first: usize, vector: usize) {
    // SAFETY: `a` describes `count` whole blocks and the tokens' activations, proved by the caller
    unsafe {
        let mut acc = [[[0f32; 32]; T]; STREAMS];
        let full = record_bytes(BITS, 2);
        let streams = a.streams(first);
        let mut at = a.blocks.add(first * a.block_bytes);
        for r in 0..a.cols.div_ceil(DEPTH) {
            let halves = if a.cols - r * DEPTH > 128 { 2 } else { 1 };
            for (s, acc) in acc.iter_mut().enumerate().take(streams) {
                let record = at.add(s * a.run * a.block_bytes);
                let hints = Hints::new::<BITS>(a, at, halves, s, streams, 32);
                // of known length the record is walked without branches; plain Rust would not gain by the code
                if S::ACCUMULATORS == 1 {
                    few_record::<S, BITS, T>(a, record, halves, r, vector, &hints, acc);
                } else if halves == 2 {
                    few_record::<S, BITS, T>(a, record, 2, r, vector, &hints, acc);
                } else {
                    few_record::<S, BITS, T>(a, record, 1, r, vector, &hints, acc);
                }
            }
            at = at.wrapping_add(full);
        }
        for s in 0..streams {
            for t in (0..T).step_by(terms(BITS)) {
                let acc = acc[s].as_ptr().cast::<f32>().add(t * 32);
                finish::<BITS>(a, s * a.run + first, vector + t, acc);
            }
        }
    }
}

/// Adds a token's `[terms][32]` sums of a block, then the bias, and stores them; `vector` is the token's first.
#[inline(always)]
pub unsafe fn finish<const BITS: u8>(a: &IntBlock, block: usize, vector: usize, acc: *const f32) {
    // SAFETY: only valid rows are stored
    unsafe {
        let token = vector / terms(BITS);
        let valid = (a.rows - block * 32).min(32);
        let out = a.out.add(token * a.stride + block * 32);
        for r in 0..valid {
            let v = if terms(BITS) == 2 { *acc.add(r) + *acc.add(32 + r) } else { *acc.add(r) };
            *out.add(r) = if a.bias.is_null() { v } else { v + *a.bias.add(block * 32 + r) };
        }
    }
}

#[inline(always)]
unsafe fn few_record<S: Simd, const BITS: u8, const T: usize>(
    a: &IntBlock,
    record: *const u8,
    halves: usize,
    r: usize,
    vector: usize,
    hints: &Hints,
    acc: &mut [[f32; 32]; T],
) {
    // SAFETY: as `few`
    unsafe {
        let table = codes::table::<S, BITS>(a.head);
        let first = r * a.vectors + vector;
        let x = a.x.add(first * DEPTH).cast::<u8>();
        for tile in 0..2 {
            let mut quads = [[S::p_zero(); 4]; T];
            for quad in 0..4 {
                let mut p = [[S::p_zero(); 4]; T];
                for l in 0..4 {
                    hints.give::<S>();
                    let row = quad * 4 + l;
                    for h in 0..halves {
                        let (low, high) = codes::line::<S, BITS, true>(table, record, halves, tile, row, h);
                        for t in 0..T {
                            let x = x.add(t * DEPTH + h * 128);
                            p[t][l] = S::dot(p[t][l], low, S::b_load(x));
                            p[t][l] = S::dot(p[t][l], high, S::b_load(x.add(64)));
                        }
                    }
                }
                for t in 0..T {
                    quads[t][quad] = S::fold4(&p[t]);
                }
            }
            let scales = S::mul(S::load_f16(record.cast::<u16>().add(tile * 16)), S::splat(exponent(a.head)));
            for t in 0..T {
                let correction = S::i_splat(S::BIAS * *a.sum.add(first + t));
                let sums = S::i_sub(S::fold16(&quads[t]), correction);
                let s = S::mul(scales, S::splat(*a.scale.add(first + t)));
                let to = acc[t].as_mut_ptr().add(tile * 16);
                S::store(to, S::fma(S::from_int(sums), s, S::load(to)));
            }
        }
    }
}
