//! Integer products on tiles: 32 rows × 32 vectors of activations at a time.
//!
//! ```text
//!                       tmm6: vectors 0..16   tmm7: vectors 16..32    [16 groups of four inputs][16 vectors][4]
//! tmm4: rows  0..16     tmm0                  tmm2
//! tmm5: rows 16..32     tmm1                  tmm3                    four products for four loads, 64 inputs each
//! ```
//! Weights are the operand of 16 rows: sixteen lines of a q8 record are a tile as they lie in the file, other types
//! are decoded into the same order. A record's integers are used by all vectors before the next record's turn, and
//! the next record is decoded meanwhile, a few lines after each 32 × 32, on the vector units that tiles leave idle.
//!
//! Sums leave the tiles once per record. They are never set to zero: a tile goes on counting, modulo 2³², whatever
//! it counts, and a sum is the difference of two successive stores. A tile is stored just before its next use, so
//! that nothing waits for a product to end; what was stored is folded between the next products. Floats keep the
//! order of every other instruction set: one fused multiply-add per record, ascending.

use super::tile::{self, TILE, Tiles};
use super::turned::Turned;
use crate::generic::codes::{self, Q8, lines_at, record_bytes, terms};
use crate::generic::rows::{DEPTH, IntBlock, TILE_STREAMS, exponent};
use crate::input::PACKED;
use crate::simd::{Aligned, Simd};
use crate::x86_64::avx512::Avx512 as S;
use core::arch::x86_64::*;
use core::mem::MaybeUninit;

/// Vectors from which on tiles are used. Sixteen cost what one costs, so it pays before they are full.
pub const FROM: usize = 8;
/// Tiles of sums that are kept at a time, 64 KiB: rows and vectors of a slab share them.
const SUMS: usize = 64;

/// Two tiles of sums, rows 0..32 × 16 vectors, that the unit holds and memory does not yet.
#[derive(Clone, Copy)]
struct Pending {
    /// `[2][16][16]` f32; null: nothing pends.
    acc: *mut f32,
    /// 32 row scales.
    rows: *const f32,
    /// 16 vectors' scales.
    vectors: *const f32,
}

const NOTHING: Pending =
    Pending { acc: core::ptr::null_mut(), rows: core::ptr::null(), vectors: core::ptr::null() };

/// The sum tiles of a column of vectors (tmm0 and tmm1, or tmm2 and tmm3) and what was stored of them.
struct Column {
    pending: Pending,
    /// `[2]` stores, new and old in turn, of `[2][16][16]` i32.
    stores: *mut i32,
    /// Which one is the new one.
    new: usize,
}

impl Column {
    /// Where the tiles go now.
    #[inline(always)]
    fn turn(&mut self) -> *mut i32 {
        self.new ^= 1;
        self.stores.wrapping_add(self.new * 512)
    }

    /// Adds tile `t` (0 or 1) of what pends, lately stored, to its sums.
    #[inline(always)]
    unsafe fn fold(&self, t: usize) {
        if self.pending.acc.is_null() {
            return;
        }
        // SAFETY: both stores hold two tiles; what pends has room for two tiles and the scales
        unsafe {
            let new = self.stores.add(self.new * 512 + t * 256);
            let old = self.stores.add((self.new ^ 1) * 512 + t * 256);
            let (acc, rows) = (self.pending.acc.add(t * 256), self.pending.rows.add(t * 16));
            let vectors = S::load(self.pending.vectors);
            for row in 0..16 {
                let at = row * 16;
                let (new, old) =
                    (_mm512_load_si512(new.add(at).cast()), _mm512_load_si512(old.add(at).cast()));
                let sums = S::from_int(S::i_sub(new, old));
                let s = S::mul(S::splat(*rows.add(row)), vectors);
                S::store(acc.add(at), S::fma(sums, s, S::load(acc.add(at))));
            }
        }
    }
}

/// One record's 32 rows × N columns of 16 vectors.
struct Step {
    /// `[2][sets][16][64]` weights.
    a: *const u8,
    sets: usize,
    /// `[sets][16][16][4]` activations, [`PACKED`] lines from a column to the next.
    b: *const u8,
    /// For each column.
    next: [Pending; 2],
}

/// Multiplies, and folds what pended in the columns it takes. `LAST`: nobody reads these activations again soon.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn step<const N: usize, const LAST: bool>(columns: &mut [Column; 2], s: &Step) {
    // SAFETY: the tiles are configured; operands hold `sets` tiles each
    unsafe {
        let to = [columns[0].turn(), if N == 2 { columns[1].turn() } else { core::ptr::null_mut() }];
        for set in 0..s.sets {
            let a = s.a.add(set * TILE);
            let b = s.b.add(set * TILE);
            tile::load!("tmm4", a, 64);
            if LAST {
                tile::load_once!("tmm6", b, 64);
            } else {
                tile::load!("tmm6", b, 64);
            }
            if set == 0 {
                tile::store!("tmm0", to[0], 64);
            }
            tile::int8!("tmm0", "tmm4", "tmm6");
            tile::load!("tmm5", a.add(s.sets * TILE), 64);
            if set == 0 {
                tile::store!("tmm1", to[0].add(256), 64);
            }
            tile::int8!("tmm1", "tmm5", "tmm6");
            if N == 2 {
                if LAST {
                    tile::load_once!("tmm7", b.add(PACKED * 64), 64);
                } else {
                    tile::load!("tmm7", b.add(PACKED * 64), 64);
                }
                if set == 0 {
                    tile::store!("tmm2", to[1], 64);
                }
                tile::int8!("tmm2", "tmm4", "tmm7");
                if set == 0 {
                    tile::store!("tmm3", to[1].add(256), 64);
                }
                tile::int8!("tmm3", "tmm5", "tmm7");
            }
            // two or four sets: all of what was stored is folded before the last one's products
            for t in 0..2 {
                if set == t * (s.sets / 2) {
                    columns[0].fold(t);
                }
                if N == 2 && set == t * (s.sets / 2) + s.sets / 4 {
                    columns[1].fold(t);
                }
            }
        }
        for (column, next) in columns.iter_mut().zip(s.next).take(N) {
            column.pending = next;
        }
    }
}

/// Stores and folds what still pends.
#[inline(always)]
unsafe fn drain(columns: &mut [Column; 2]) {
    // SAFETY: the tiles are configured
    unsafe {
        let to = [columns[0].turn(), columns[1].turn()];
        tile::store!("tmm0", to[0], 64);
        tile::store!("tmm1", to[0].add(256), 64);
        tile::store!("tmm2", to[1], 64);
        tile::store!("tmm3", to[1].add(256), 64);
        for column in columns {
            column.fold(0);
            column.fold(1);
            column.pending = NOTHING;
        }
    }
}

/// The weights of one record of all blocks, made line by line.
struct Decoder<const BITS: u8> {
    table: <S as Simd>::T,
    exponent: f32,
    record: *const u8,
    block_bytes: usize,
    halves: usize,
    /// For each block 8192 bytes.
    to: *mut u8,
    /// For each block 32 row scales.
    scales: *mut f32,
    /// Lines made, and to be made.
    done: usize,
    lines: usize,
    /// Place of the next line: its block, and its number in that block's record, `(tile · halves + h) · 16 + row`.
    block: usize,
    line: usize,
}

impl<const BITS: u8> Decoder<BITS> {
    /// Makes lines until `until` of them are made; each also asks for its part of the next record.
    #[inline(always)]
    unsafe fn run(&mut self, until: usize) {
        // SAFETY: blocks, records and buffers exist
        unsafe {
            let lines = self.halves * 32;
            let ahead = record_bytes(BITS, 2).div_ceil(64);
            let per = if self.halves == 2 { ahead.div_ceil(64) } else { ahead.div_ceil(32) };
            while self.done < until {
                let (block, i) = (self.block, self.line);
                let record = self.record.add(block * self.block_bytes);
                if i == 0 {
                    for t in 0..2 {
                        let scales = S::load_f16(record.cast::<u16>().add(t * 16));
                        let to = self.scales.add(block * 32 + t * 16);
                        S::store(to, S::mul(scales, S::splat(self.exponent)));
                    }
                }
                // q8 is read where it lies: this record's lines; else the next one's, while this one is read here
                let hint = if BITS == Q8 { record } else { record.wrapping_add(record_bytes(BITS, 2)) };
                for line in i * per..((i + 1) * per).min(ahead) {
                    S::prefetch(hint.wrapping_add(line * 64));
                }
                if BITS != Q8 {
                    let (pair, row) = (i / 16, i % 16);
                    let (t, h) = if self.halves == 2 { (pair / 2, pair % 2) } else { (pair, 0) };
                    let (low, high) =
                        codes::line::<S, BITS, false>(self.table, record, self.halves, t, row, h);
                    let to = self.to.add(block * 32 * DEPTH + (pair * 32 + row) * 64);
                    S::b_store(to, low);
                    S::b_store(to.add(TILE), high);
                }
                self.done += 1;
                self.line += 1;
                if self.line == lines {
                    (self.line, self.block) = (0, block + 1);
                }
            }
        }
    }
}

/// The product of `a.count` blocks with vectors `a.from..a.to`, of which `a.tiles` holds the packed form.
#[inline(always)]
pub unsafe fn product<const BITS: u8>(a: &IntBlock) {
    // SAFETY: `a` describes whole blocks and packed activations; every buffer is written before it is read
    unsafe {
        let mut weights = Aligned(MaybeUninit::<[[u8; TILE_STREAMS * 32 * DEPTH]; 2]>::uninit());
        let mut scales = Aligned(MaybeUninit::<[[f32; TILE_STREAMS * 32]; 2]>::uninit());
        let mut sums = Aligned(MaybeUninit::<[f32; SUMS * 256]>::uninit());
        let mut stores = Aligned([0i32; 4 * 512]);
        let weights = weights.0.as_mut_ptr().cast::<u8>();
        let scales = scales.0.as_mut_ptr().cast::<f32>();
        let sums = sums.0.as_mut_ptr().cast::<f32>();
        let stores = stores.0.as_mut_ptr();
        let place = |turn: usize| {
            (weights.add(turn % 2 * TILE_STREAMS * 32 * DEPTH), scales.add(turn % 2 * TILE_STREAMS * 32))
        };
        let _tiles = Tiles::configure();
        let mut columns = [0, 1].map(|c| Column { pending: NOTHING, stores: stores.add(c * 1024), new: 0 });
        let records = a.cols.div_ceil(DEPTH);
        let across = a.vectors.div_ceil(16);
        let (mut first, end) = (a.from / 16, a.to.div_ceil(16));
        while first < end {
            let n = (end - first).min(SUMS / 2 / a.count);
            core::ptr::write_bytes(sums, 0, n * a.count * 512);
            let decoder = |r: usize| {
                let halves = if a.cols - r * DEPTH > 128 { 2 } else { 1 };
                let (to, scales) = place(r);
                Decoder::<BITS> {
                    table: codes::table::<S, BITS>(a.head),
                    exponent: exponent(a.head),
                    record: a.blocks.add(r * record_bytes(BITS, 2)),
                    block_bytes: a.block_bytes,
                    halves,
                    to,
                    scales,
                    done: 0,
                    lines: a.count * halves * 32,
                    block: 0,
                    line: 0,
                }
            };
            let mut now = decoder(0);
            now.run(now.lines);
            for r in 0..records {
                let mut next = (r + 1 < records).then(|| decoder(r + 1));
                let steps = n.div_ceil(2) * a.count;
                for i in 0..steps {
                    let (vt, block) = (i / a.count * 2, i % a.count);
                    let acc = sums.add((vt * a.count + block) * 512);
                    let b = a.tiles.add((r * across + first + vt) * PACKED * 64);
                    let rows = now.scales.add(block * 32).cast_const();
                    let pending = |c: usize| Pending {
                        acc: acc.add(c * a.count * 512),
                        rows,
                        vectors: b.add((c * PACKED + PACKED - 1) * 64).cast(),
                    };
                    let weights = if BITS == Q8 {
                        now.record.add(block * a.block_bytes + lines_at(Q8))
                    } else {
                        now.to.add(block * 32 * DEPTH).cast_const()
                    };
                    let pair = vt + 1 < n;
                    let next_pending = [pending(0), if pair { pending(1) } else { NOTHING }];
                    let s = Step { a: weights, sets: now.halves * 2, b, next: next_pending };
                    match (pair, block + 1 == a.count) {
                        (true, false) => step::<2, false>(&mut columns, &s),
                        (true, true) => step::<2, true>(&mut columns, &s),
                        (false, false) => step::<1, false>(&mut columns, &s),
                        (false, true) => step::<1, true>(&mut columns, &s),
                    }
                    if let Some(next) = &mut next {
                        next.run(next.lines * (i + 1) / steps);
                    }
                }
                if let Some(next) = next {
                    now = next;
                }
            }
            drain(&mut columns);
            for vt in 0..n {
                for block in 0..a.count {
                    finish::<BITS>(a, block, first + vt, sums.add((vt * a.count + block) * 512));
                }
            }
            first += n;
        }
    }
}

/// Sums of 32 rows × 16 vectors to the outputs of their tokens: a token's sums are added, then the bias.
#[inline(always)]
unsafe fn finish<const BITS: u8>(a: &IntBlock, block: usize, vt: usize, sums: *const f32) {
    // SAFETY: two tiles of sums; only tokens of the product are stored
    unsafe {
        let first = block * 32;
        let bias = if a.bias.is_null() { a.bias } else { a.bias.add(first) };
        let turned = Turned::new(sums, (a.rows - first).min(32), bias);
        for vector in (a.from.max(vt * 16)..a.to.min(vt * 16 + 16)).step_by(terms(BITS)) {
            let out = a.out.add(vector / terms(BITS) * a.stride + first);
            turned.store(vector % 16, terms(BITS), out);
        }
    }
}

/// Up to sixteen int8 vectors of one record (256 each, consecutive) and their scales into [`PACKED`] lines:
/// `[4 sets][16 groups of four inputs][16 vectors][4]`, then the scales. Absent vectors are zero.
#[inline(always)]
pub unsafe fn pack(x: *const i8, scales: *const f32, n: usize, to: *mut u8) {
    // SAFETY: n vectors at `x`, n scales, 65 lines at `to`
    unsafe {
        let mut lines = Aligned([0u8; TILE]);
        for set in 0..4 {
            for v in 0..n {
                S::b_store(lines.0.as_mut_ptr().add(v * 64), S::b_load(x.add(v * DEPTH + set * 64).cast()));
            }
            S::transpose(lines.0.as_ptr(), to.add(set * TILE));
        }
        let scales = crate::simd::part::<S>(scales, n, 0.0);
        S::store(to.add(4 * TILE).cast(), scales);
    }
}
