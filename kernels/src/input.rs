//! The left side of products: activations, padded, and their int8 forms made when an integer matrix asks for one.
//!
//! ```text
//! one term    x ≈ s · a                 rows of token 0, 1, 2, ..                       for q4
//! two terms   x ≈ s1 · a + s2 · b       rows 2i and 2i + 1: first and second of token i  for q8
//! ```
//! An int8 has an error of half a step in 127 of the block's largest value, about as large as the error of a q4
//! weight but several times that of a q8 weight. The second term is the int8 of what the first leaves over, so
//! that a q8 product is as exact as its weights. To the kernels the terms are rows like any others; only the end
//! of a product adds a token's two sums.

use crate::cpu::{Cpu, terms};
use crate::generic::panel::{LANES, Packing, Packs, SUMS, lanes};
use crate::generic::rows::{DEPTH, FEW};
use crate::ops::{Ops, TileOps};
use crate::shared::Shared;
use llm_format::quant::Type;
use std::ops::Range;

/// Activations `[m, k]` for any number of products. Reuse one: its memory grows to the largest use and stays.
#[derive(Default)]
pub struct Input {
    m: usize,
    k: usize,
    /// k rounded up to 128.
    pub(crate) width: usize,
    /// `[m][width]`, zeros behind k.
    pub(crate) x: Vec<f32>,
    one: Int8,
    two: Int8,
    /// Whose packs and tiles there are: other kernels read others.
    made_for: Option<&'static Ops>,
    fast: bool,
    bf16_made: bool,
    /// `[width/32][m/16 rounded up][16]`, the tiles that [`crate::ops::TileOps::float`] reads.
    pub(crate) bf16: Vec<Line>,
}

/// Lines of 64 bytes that sixteen vectors of one record take for matrix tiles: four sets of
/// `[16 groups of four inputs][16 vectors][4]`, then the vectors' scales.
pub(crate) const PACKED: usize = 65;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

impl Default for Line {
    fn default() -> Line {
        Line([0; 64])
    }
}

/// Activations as int8 rows, `rows` = m · terms.
#[derive(Default)]
pub(crate) struct Int8 {
    /// Whether it is that of the present activations.
    made: bool,
    /// `[width/256 rounded up][rows][256]` in the records' order.
    pub(crate) q: Vec<i8>,
    /// `[width/256 rounded up][rows]`.
    pub(crate) scale: Vec<f32>,
    pub(crate) sum: Vec<i32>,
    side: Side,
    packed: bool,
    /// `[width/256 rounded up][rows/16 rounded up][PACKED]`, the same for matrix tiles.
    pub(crate) tiles: Vec<Line>,
}

/// The same rows as packs (`generic/panel.rs`), for each range of tokens that a product takes by itself.
#[derive(Default)]
struct Side {
    ranges: Vec<Slot>,
    /// Bytes and packs of one record.
    bytes: usize,
    packs: usize,
    x: Vec<Line>,
    scale: Vec<f32>,
    start: Vec<i32>,
}

/// Where a range's packs begin.
#[derive(Clone, Copy, PartialEq)]
struct Slot {
    from: usize,
    to: usize,
    byte: usize,
    pack: usize,
}

/// How the writing of an input is divided.
#[derive(Clone, Copy)]
pub(crate) enum Cut {
    /// By rows, where a row's values depend on each other.
    Rows,
    /// By the 256 inputs of a record as well, so that one long row keeps several threads busy.
    Records,
}

/// Writes columns of a row to their place.
type Write<'a> = &'a (dyn Fn(usize, Range<usize>, &mut [f32]) + Sync);

/// An int8 form that is being made, by several threads.
struct Form<'a> {
    q: Shared<'a, i8>,
    scale: Shared<'a, f32>,
    sum: Shared<'a, i32>,
    terms: usize,
    /// Of all tokens.
    rows: usize,
    quantize: unsafe fn(*const f32, usize, *mut i8, *mut f32, *mut i32),
}

impl Int8 {
    /// Makes room for the form of `[m, width]` activations, whose records are to be made all.
    fn form(&mut self, cpu: &Cpu, terms: usize, m: usize, width: usize) -> Form<'_> {
        let (records, rows) = (width.div_ceil(DEPTH), m * terms);
        (self.made, self.packed) = (true, false);
        room(&mut self.q, records * rows * DEPTH);
        room(&mut self.scale, records * rows);
        room(&mut self.sum, records * rows);
        let quantize = if terms == 2 { cpu.ops.quantize_two } else { cpu.ops.quantize };
        let (q, scale, sum) =
            (Shared::of(&mut self.q[..]), Shared::of(&mut self.scale[..]), Shared::of(&mut self.sum[..]));
        Form { q, scale, sum, terms, rows, quantize }
    }
}

impl Form<'_> {
    /// Makes record `r` of token `i` out of its values. Each is made by one thread.
    fn record(&self, i: usize, r: usize, x: &[f32]) {
        let at = r * self.rows + i * self.terms;
        // SAFETY: the record's places are written by the thread that has it, alone; at most 256 values lie at the
        // source and room for the terms at the targets, and the machine has the table's instruction set
        unsafe {
            let q = self.q.slice(at * DEPTH, self.terms * DEPTH);
            let (scale, sum) = (self.scale.slice(at, self.terms), self.sum.slice(at, self.terms));
            (self.quantize)(x.as_ptr(), x.len(), q.as_mut_ptr(), scale.as_mut_ptr(), sum.as_mut_ptr());
        }
    }
}

/// Grows, never shrinks, so that a smaller call after a larger one allocates nothing.
fn room<T: Copy + Default>(v: &mut Vec<T>, n: usize) {
    if v.len() < n {
        v.resize(n, T::default());
    }
}

impl Input {
    /// An empty one.
    pub fn new() -> Input {
        Input::default()
    }

    /// Rows of the present activations.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Their width.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Row `i` of the present activations, `[k]`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.m, "row {i} of {}", self.m);
        &self.x[i * self.width..][..self.k]
    }

    /// Whether products of this input may round as they are fastest ([`crate::Level::Fast`]); off at first, and kept
    /// until it is set again.
    pub fn set_fast(&mut self, fast: bool) {
        self.fast = fast;
    }

    pub(crate) fn is_fast(&self) -> bool {
        self.fast
    }

    /// Takes in `x`, `[m, k]` row-major.
    ///
    /// # Panics
    /// If `x` is not `m * k` long.
    pub fn load(&mut self, cpu: &Cpu, x: &[f32], m: usize, k: usize) {
        assert_eq!(x.len(), m * k, "activations [{m}, {k}]");
        self.load_rows(cpu, m, k, |i| &x[i * k..][..k]);
    }

    /// Takes in rows `ids[0]`, `ids[1]`, .. of `x` (`[_, k]`): the tokens of each expert, gathered.
    ///
    /// # Panics
    /// If an id is outside `x`.
    pub fn gather(&mut self, cpu: &Cpu, x: &[f32], k: usize, ids: &[u32]) {
        self.load_rows(cpu, ids.len(), k, |i| &x[ids[i] as usize * k..][..k]);
    }

    fn load_rows<'x>(&mut self, cpu: &Cpu, m: usize, k: usize, row: impl Fn(usize) -> &'x [f32] + Sync) {
        self.fill(cpu, m, k, Cut::Rows, None, &|i, _, to| to.copy_from_slice(row(i)));
    }

    /// Takes in what `write(row, columns, place)` writes, and makes the int8 form for products with `next` while a
    /// piece is in the nearest cache. Pieces are written by different threads.
    pub(crate) fn fill(
        &mut self,
        cpu: &Cpu,
        m: usize,
        k: usize,
        cut: Cut,
        next: Option<Type>,
        write: Write<'_>,
    ) {
        assert!(k > 0, "activations without width");
        let width = k.next_multiple_of(128);
        (self.m, self.k, self.width) = (m, k, width);
        for int8 in [&mut self.one, &mut self.two] {
            int8.made = false;
            int8.side.ranges.clear();
        }
        self.bf16_made = false;
        room(&mut self.x, m * width);
        let (one, two) = (&mut self.one, &mut self.two);
        let form = next.filter(|ty| ty.is_integer()).map(terms);
        let form = form.map(|terms| if terms == 2 { two } else { one }.form(cpu, terms, m, width));
        let (pieces, depth) = match cut {
            Cut::Rows => (1, width),
            Cut::Records => (width.div_ceil(DEPTH), DEPTH),
        };
        let x = Shared::of(&mut self.x[..m * width]);
        cpu.split(m * pieces, m * width, |range| {
            for piece in range {
                let (i, start) = (piece / pieces, piece % pieces * depth);
                let (end, valid) = ((start + depth).min(width), (start + depth).min(k).max(start));
                // SAFETY: the piece of row i is written by the thread that has it, alone
                let to = unsafe { x.slice(i * width + start, end - start) };
                write(i, start..valid, &mut to[..valid - start]);
                to[valid - start..].fill(0.0);
                if let Some(form) = &form {
                    for (r, x) in to.chunks(DEPTH).enumerate() {
                        form.record(i, start / DEPTH + r, x);
                    }
                }
            }
        });
    }

    /// Forgets packs and tiles that were made for another instruction set. The int8 forms are the same on all.
    pub(crate) fn belong_to(&mut self, cpu: &Cpu) {
        if self.made_for.is_some_and(|ops| std::ptr::eq(ops, cpu.ops)) {
            return;
        }
        self.made_for = Some(cpu.ops);
        for int8 in [&mut self.one, &mut self.two] {
            int8.packed = false;
            int8.side.ranges.clear();
        }
        self.bf16_made = false;
    }

    /// Makes the int8 form of `terms` terms of what was loaded, unless it is there.
    pub(crate) fn quantize(&mut self, cpu: &Cpu, terms: usize) {
        let (m, width, x) = (self.m, self.width, &self.x);
        let int8 = if terms == 2 { &mut self.two } else { &mut self.one };
        if int8.made {
            return;
        }
        let form = int8.form(cpu, terms, m, width);
        let records = width.div_ceil(DEPTH);
        cpu.split(m * records, m * width, |range| {
            for piece in range {
                let (i, r) = (piece / records, piece % records);
                form.record(i, r, &x[i * width + r * DEPTH..i * width + (r * DEPTH + DEPTH).min(width)]);
            }
        });
    }

    /// Packs what [`Input::quantize`] made for matrix tiles, unless that is done.
    pub(crate) fn pack(&mut self, cpu: &Cpu, tiles: &TileOps, terms: usize) {
        let (rows, records) = (self.m * terms, self.width.div_ceil(DEPTH));
        let int8 = if terms == 2 { &mut self.two } else { &mut self.one };
        if core::mem::replace(&mut int8.packed, true) {
            return;
        }
        let across = rows.div_ceil(16);
        room(&mut int8.tiles, records * across * PACKED);
        let (q, scale, to) = (&int8.q, &int8.scale, Shared::of(&mut int8.tiles[..]));
        cpu.split(records * across, records * across * 16 * DEPTH, |range| {
            for i in range {
                let row = i / across * rows + i % across * 16;
                let n = (rows - i % across * 16).min(16);
                // SAFETY: piece i is written by the thread that has i, alone; `n` vectors and scales lie at the
                // sources, and the machine has the table's instruction set
                unsafe {
                    let to = to.slice(i * PACKED, PACKED);
                    let (q, scale) = (&q[row * DEPTH..][..n * DEPTH], &scale[row..][..n]);
                    (tiles.pack)(q.as_ptr(), scale.as_ptr(), n, to.as_mut_ptr().cast());
                }
            }
        });
    }

    /// Makes the packs of every range of tokens out of what [`Input::quantize`] made, unless that is done. Ranges that
    /// the rows' form serves, and those of `tiles` vectors and more, get none.
    pub(crate) fn lay_side_by_side(
        &mut self,
        cpu: &Cpu,
        terms: usize,
        tiles: usize,
        ranges: impl Iterator<Item = Range<usize>> + Clone,
    ) {
        // a machine without packs gets places for none
        let (pack_one, tiles) = cpu.ops.pack.map_or((None, 0), |pack| (Some(pack), tiles));
        let (m, records) = (self.m, self.width.div_ceil(DEPTH));
        let int8 = if terms == 2 { &mut self.two } else { &mut self.one };
        let side = &mut int8.side;
        if side.ranges.iter().map(|r| r.from..r.to).eq(ranges.clone()) {
            return;
        }
        side.ranges.clear();
        let (mut byte, mut pack) = (0, 0);
        for range in ranges {
            side.ranges.push(Slot { from: range.start, to: range.end, byte, pack });
            let vectors = range.len() * terms;
            if vectors > FEW && vectors < tiles {
                let rest = vectors % LANES;
                let rest = if rest == 0 { 0 } else { lanes(rest) };
                byte += (vectors / LANES * LANES + rest) * DEPTH;
                pack += vectors.div_ceil(LANES);
            }
        }
        (side.bytes, side.packs) = (byte, pack);
        room(&mut side.x, records * byte / 64);
        room(&mut side.scale, records * pack * SUMS);
        room(&mut side.start, records * pack * SUMS);
        let (x, scale, start) =
            (Shared::of(&mut side.x[..]), Shared::of(&mut side.scale[..]), Shared::of(&mut side.start[..]));
        let Some(pack_one) = pack_one else { return };
        let (ranges, rows) = (&side.ranges, m * terms);
        let (q, scales, sums) = (&int8.q, &int8.scale, &int8.sum);
        cpu.split(records * pack, records * byte / 4, |jobs| {
            for job in jobs {
                let (r, p) = (job / pack, job % pack);
                // the last range that begins at or before this pack; those without packs come before it
                let slot = ranges[ranges.partition_point(|s| s.pack <= p) - 1];
                let first = (p - slot.pack) * LANES;
                let vectors = ((slot.to - slot.from) * terms - first).min(LANES);
                let at = r * rows + slot.from * terms + first;
                // SAFETY: pack p of record r is written by the thread that has the job, alone; the vectors exist, and
                // the machine has the table's instruction set
                unsafe {
                    let to =
                        x.slice((r * byte + slot.byte + first * DEPTH) / 64, lanes(vectors) * DEPTH / 64);
                    let lane = (r * pack + p) * SUMS;
                    pack_one(&Packing {
                        x: q[at * DEPTH..][..vectors * DEPTH].as_ptr(),
                        scale: scales[at..][..vectors].as_ptr(),
                        sum: sums[at..][..vectors].as_ptr(),
                        vectors,
                        alone: (slot.to - slot.from) * terms <= LANES,
                        to: to.as_mut_ptr().cast(),
                        to_scale: scale.slice(lane, SUMS).as_mut_ptr(),
                        to_start: start.slice(lane, SUMS).as_mut_ptr(),
                    });
                }
            }
        });
    }

    /// The packs of range `i`, from its vector `first` on, a multiple of [`LANES`].
    pub(crate) fn packs(&self, terms: usize, i: usize, first: usize) -> Packs {
        let side = &self.int8(terms).side;
        let slot = side.ranges[i];
        let lane = (slot.pack + first / LANES) * SUMS;
        Packs {
            x: side.x.as_ptr().cast::<i8>().wrapping_add(slot.byte + first * DEPTH),
            record: side.bytes,
            scale: side.scale.as_ptr().wrapping_add(lane),
            start: side.start.as_ptr().wrapping_add(lane),
            packs: side.packs,
            alone: (slot.to - slot.from) * terms <= LANES,
        }
    }

    /// Rounds what was loaded to bf16, packed for matrix tiles, unless that is done.
    pub(crate) fn pack_bf16(&mut self, cpu: &Cpu, tiles: &TileOps) {
        if core::mem::replace(&mut self.bf16_made, true) {
            return;
        }
        let (m, width, across) = (self.m, self.width, self.m.div_ceil(16));
        room(&mut self.bf16, width / 32 * across * 16);
        let (x, to) = (&self.x, Shared::of(&mut self.bf16[..]));
        cpu.split(width / 32 * across, m * width, |range| {
            for i in range {
                let (step, token) = (i / across, i % across * 16);
                // SAFETY: piece i is written by the thread that has i, alone; 32 values of up to 16 tokens lie at the
                // source, and the machine has the table's instruction set
                unsafe {
                    let to = to.slice(i * 16, 16);
                    let from = &x[token * width + step * 32..m * width];
                    (tiles.pack_bf16)(from.as_ptr(), width, (m - token).min(16), to.as_mut_ptr().cast());
                }
            }
        });
    }

    /// What [`Input::quantize`] made.
    pub(crate) fn int8(&self, terms: usize) -> &Int8 {
        if terms == 2 { &self.two } else { &self.one }
    }
}
