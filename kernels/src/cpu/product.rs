//! Matrix products: cuts them into units of row blocks and tokens and runs them in one fork-join.

use super::Cpu;
use crate::generic::codes;
use crate::generic::float::{self, FloatBlock, FloatKind, Widen};
use crate::generic::panel::LANES;
use crate::generic::rows::{IntBlock, STREAMS, TILE_STREAMS};
use crate::input::{Input, Line};
use crate::matrix::{Experts, Matrix};
use crate::ops::TileOps;
use crate::shared::Shared;
use llm_format::quant::{Type, decode_row};
use std::cell::RefCell;
use std::ops::Range;

/// Vectors up to which several blocks are walked together: reading weights is what takes the time.
const STREAMED: usize = 64;
/// Vectors that are worth a unit of their own on matrix tiles.
const TILED: usize = 256;

thread_local! {
    /// A block of weights made f32: every thread's own, as large as its largest.
    static WIDE: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// One product of a group: `out[i] = matrix · x[i] + bias` for all rows i of the shared input.
pub struct Job<'a> {
    /// Weights `[rows, cols]`.
    pub matrix: Matrix<'a>,
    /// `[rows]`, added once at the end.
    pub bias: Option<&'a [f32]>,
    /// `[m, rows]`.
    pub out: &'a mut [f32],
}

/// A proved product: tokens `tokens` of the input, out rows at the same indices.
#[derive(Clone, Copy)]
struct Part<'a> {
    matrix: Matrix<'a>,
    bias: Option<&'a [f32]>,
    out: *mut f32,
    from: usize,
    to: usize,
    /// Which of the input's ranges they are.
    range: usize,
    /// The kernels on matrix tiles, where they compute it.
    tiles: Option<&'static TileOps>,
}

impl Part<'_> {
    /// Whether blocks are walked side by side to read well.
    fn streamed(&self) -> bool {
        self.vectors() <= STREAMED
    }

    /// Int8 vectors, or tokens of a float type.
    fn vectors(&self) -> usize {
        (self.to - self.from) * terms(self.matrix.ty())
    }

    /// Tokens of one unit; a unit is one row block.
    fn tokens(&self, cpu: &Cpu) -> usize {
        let tokens = self.to - self.from;
        let tiles = self.tiles.is_some();
        if self.streamed() && !tiles {
            return tokens.max(1);
        }
        // long inputs with few blocks are cut along the tokens too, so that every thread finds work
        let slabs = self.vectors().div_ceil(if tiles { TILED } else { STREAMED }).max(1);
        let blocks = self.matrix.rows().div_ceil(32);
        let cuts = (cpu.pool.threads() * 4).div_ceil(blocks).clamp(1, slabs);
        let each = tokens.div_ceil(cuts).max(1);
        // whole packs; two tiles of sixteen vectors
        let step = if tiles { 32 / terms(self.matrix.ty()) } else { LANES };
        each.next_multiple_of(step).min(tokens).max(1)
    }

    /// Units that are computed side by side, where they come together and have all tokens.
    fn together(&self, cpu: &Cpu) -> usize {
        if self.tiles.is_none() {
            let blocks = self.matrix.rows().div_ceil(32);
            let streams = if self.matrix.ty().is_integer() { STREAMS } else { float::STREAMS };
            return if self.streamed() {
                streamed(blocks, self.matrix.block_bytes(), cpu.pool.threads(), streams)
            } else {
                1
            };
        }
        if !self.matrix.ty().is_integer() || self.tokens(cpu) < self.to - self.from {
            return 1;
        }
        // with few vectors reading limits, and more blocks are more streams; with many, two blocks share the loads of
        // activations
        if self.vectors() <= 64 { TILE_STREAMS } else { 2 }
    }

    fn units(&self, cpu: &Cpu) -> usize {
        self.matrix.rows().div_ceil(32) * (self.to - self.from).div_ceil(self.tokens(cpu))
    }
}

/// Bytes of weights in a chunk of a product that mostly reads, about: long runs, since each begins with cold lines and
/// ends with fetching what another thread reads.
const CHUNK: usize = 1 << 20;

/// Blocks of such a chunk: a thread's share of the matrix, or those bytes in `streams` of one length. The pool cuts the
/// last ones smaller, so that the threads end together.
fn streamed(blocks: usize, block_bytes: usize, threads: usize, streams: usize) -> usize {
    let most = (CHUNK / block_bytes).max(1).next_multiple_of(streams);
    blocks.div_ceil(threads).min(most).max(1)
}

impl Cpu {
    /// `out[i] = w · x[i] + bias`, `[m, rows]`.
    ///
    /// # Panics
    /// If the widths of `w` and `x`, or the lengths of `bias` and `out`, do not fit.
    pub fn matmul(&self, w: Matrix, x: &mut Input, bias: Option<&[f32]>, out: &mut [f32]) {
        self.matmul_group(&mut [Job { matrix: w, bias, out }], x);
    }

    /// Several products of one input in one fork-join (q, k, v; gate and up).
    ///
    /// # Panics
    /// As [`Cpu::matmul`].
    pub fn matmul_group(&self, jobs: &mut [Job], x: &mut Input) {
        let m = x.m();
        for job in jobs.iter() {
            check(&job.matrix, x);
            let rows = job.matrix.rows();
            assert!(job.bias.is_none_or(|b| b.len() == rows), "bias of {rows} outputs");
            assert_eq!(job.out.len(), m * rows, "outputs [{m}, {rows}]");
        }
        for job in jobs.iter() {
            self.prepare(job.matrix.ty(), x, std::iter::once(0..m));
        }
        let (count, fast) = (jobs.len(), x.is_fast());
        let jobs = Shared::of(jobs);
        self.products(count, x, |i| {
            let job = jobs.pointer().wrapping_add(i);
            // SAFETY: job i exists; every thread asks, but takes copies, and of the outputs a pointer that may write
            let (matrix, bias, out) =
                unsafe { ((*job).matrix, (*job).bias, (&raw mut *(*job).out).cast::<f32>()) };
            let tiles = self.tile_ops(matrix.ty(), m, fast);
            Part { matrix, bias, out, from: 0, to: m, range: 0, tiles }
        });
    }

    /// Products with experts: rows `tokens` of `x` go through expert `e` for every `(e, tokens)` of `groups`, to
    /// the same rows of `out` (`[m, rows]`). `bias` is `[experts, rows]`. Rows of no group keep what they hold.
    ///
    /// # Panics
    /// If lengths do not fit, an expert does not exist, or groups are not ascending and disjoint.
    pub fn expert_matmul(
        &self,
        w: &Experts,
        groups: &[(usize, Range<usize>)],
        x: &mut Input,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let (m, rows) = (x.m(), w.rows());
        assert_eq!(out.len(), m * rows, "outputs [{m}, {rows}]");
        assert!(bias.is_none_or(|b| b.len() == w.count() * rows), "bias of {} x {rows} outputs", w.count());
        let mut end = 0;
        for (e, tokens) in groups {
            assert!(*e < w.count(), "expert {e} of {}", w.count());
            assert!(
                end <= tokens.start && tokens.start <= tokens.end && tokens.end <= m,
                "rows {tokens:?} of {m}"
            );
            end = tokens.end;
        }
        check(&w.matrix(0), x);
        self.prepare(w.matrix(0).ty(), x, groups.iter().map(|(_, tokens)| tokens.clone()));
        let (out, fast) = (Shared::of(out), x.is_fast());
        self.products(groups.len(), x, |i| {
            let (e, tokens) = &groups[i];
            Part {
                matrix: w.matrix(*e),
                bias: bias.map(|b| &b[e * rows..][..rows]),
                out: out.pointer(),
                from: tokens.start,
                to: tokens.end,
                range: i,
                tiles: self.tile_ops(w.matrix(*e).ty(), tokens.len(), fast),
            }
        });
    }

    /// Makes the forms of `x` that products of `ty` with these ranges of tokens read.
    fn prepare(&self, ty: Type, x: &mut Input, ranges: impl Iterator<Item = Range<usize>> + Clone) {
        x.belong_to(self);
        let most = ranges.clone().map(|tokens| tokens.len()).max().unwrap_or(0);
        let tiles = self.tile_ops(ty, most, x.is_fast());
        if ty.is_integer() {
            let terms = terms(ty);
            x.quantize(self, terms);
            if let Some(tiles) = tiles {
                x.pack(self, tiles, terms);
            }
            x.lay_side_by_side(self, terms, self.ops.tiles.map_or(usize::MAX, |t| t.from), ranges);
        } else if let Some(tiles) = tiles {
            x.pack_bf16(self, tiles);
        }
    }

    /// The kernels on matrix tiles, where the machine has them and they are to compute such a product: integers of
    /// vectors enough, which gives the same bits, and 16-bit floats of any number, where the caller allows theirs.
    fn tile_ops(&self, ty: Type, tokens: usize, fast: bool) -> Option<&'static TileOps> {
        self.ops.tiles.filter(|t| match ty {
            Type::F32 => false,
            Type::F16 | Type::Bf16 => fast,
            _ => tokens * terms(ty) >= t.from,
        })
    }

    fn products<'p>(&self, count: usize, x: &Input, part: impl Fn(usize) -> Part<'p> + Sync) {
        // units of a part, and those that are computed side by side; kept for as many parts as share an input, since
        // to find them takes longer than to ask a thread
        let cuts = |i| (part(i).units(self), part(i).together(self));
        let mut kept = [(0, 0); 4];
        kept.iter_mut().take(count).enumerate().for_each(|(i, kept)| *kept = cuts(i));
        let cuts = |i: usize| kept.get(i).copied().unwrap_or_else(|| cuts(i));
        let total = (0..count).map(|i| cuts(i).0).sum();
        let most = (0..count).map(|i| cuts(i).1).max().unwrap_or(1);
        self.pool.run_ranges(total, most, |range| {
            let mut start = 0;
            for i in 0..count {
                let (units, step) = cuts(i);
                let end = start + units;
                let mine = range.start.max(start)..range.end.min(end);
                if !mine.is_empty() {
                    let (mut from, to) = (mine.start - start, mine.end - start);
                    let part = part(i);
                    while from < to {
                        self.product_units(&part, x, from..to.min(from + step));
                        from += step;
                    }
                }
                start = end;
                if start >= range.end {
                    return;
                }
            }
        });
    }

    /// Some units: row blocks side by side with all tokens, or one row block with some of the tokens. Units of a
    /// part write disjoint rectangles of its output.
    fn product_units(&self, part: &Part, x: &Input, units: Range<usize>) {
        let (w, tiles) = (&part.matrix, part.tiles);
        let (blocks, tokens) = (units.len(), part.tokens(self));
        let across = (part.to - part.from).div_ceil(tokens);
        let (first, from) = (units.start / across, part.from + units.start % across * tokens);
        let to = (from + tokens).min(part.to);
        let count = blocks.min(w.rows().div_ceil(32) - first);
        let rows = (w.rows() - first * 32).min(count * 32);
        let block_bytes = w.block_bytes();
        let data = &w.blocks()[first * block_bytes..][..count * block_bytes];
        let bias = part.bias.map_or(std::ptr::null(), |b| b[first * 32..].as_ptr());
        let out = part.out.wrapping_add(first * 32);
        let kind = match w.ty() {
            Type::F32 => FloatKind::F32,
            Type::F16 => FloatKind::F16,
            Type::Bf16 => FloatKind::Bf16,
            _ => {
                let terms = terms(w.ty());
                let int8 = x.int8(terms);
                let a = IntBlock {
                    head: w.data().as_ptr(),
                    blocks: data.as_ptr(),
                    count,
                    run: count.div_ceil(STREAMS),
                    block_bytes,
                    cols: x.width,
                    x: int8.q.as_ptr(),
                    scale: int8.scale.as_ptr(),
                    sum: int8.sum.as_ptr(),
                    tiles: if tiles.is_some() { int8.tiles.as_ptr().cast() } else { std::ptr::null() },
                    vectors: x.m() * terms,
                    packs: x.packs(terms, part.range, (from - part.from) * terms),
                    from: from * terms,
                    to: to * terms,
                    rows,
                    bias,
                    out,
                    stride: w.rows(),
                };
                let ops = &self.ops;
                let product = match w.ty() {
                    Type::Q8 => tiles.map_or(ops.q8, |t| t.q8),
                    Type::Q6 => tiles.map_or(ops.q6, |t| t.q6),
                    Type::Q5 => tiles.map_or(ops.q5, |t| t.q5),
                    Type::Q4 => tiles.map_or(ops.q4, |t| t.q4),
                    Type::Q3 => tiles.map_or(ops.q3, |t| t.q3),
                    _ => tiles.map_or(ops.q2, |t| t.q2),
                };
                // SAFETY: `data` holds `count` whole blocks of x.width inputs; the int8 input holds x.m() tokens
                // of that width and from..to lie inside; out rows from..to and bias hold `rows` values from here;
                // the machine has the table's instruction set
                return unsafe { product(&a) };
            }
        };
        let a = FloatBlock {
            kind,
            block: data.as_ptr(),
            count,
            run: count.div_ceil(float::STREAMS),
            block_bytes,
            cols: x.width,
            steps: x.k().div_ceil(if w.ty() == Type::F32 { 16 } else { 32 }),
            x: x.x.as_ptr(),
            tiles: if tiles.is_some() { x.bf16.as_ptr().cast() } else { std::ptr::null() },
            tokens: x.m(),
            from,
            to,
            rows,
            bias,
            out,
            stride: w.rows(),
        };
        match tiles {
            // SAFETY: as above
            Some(tiles) => unsafe { (tiles.float)(&a) },
            None if kind != FloatKind::F32 && to - from >= self.ops.widen_from => self.widened(&a),
            // SAFETY: as above
            None => unsafe { (self.ops.float)(&a) },
        }
    }

    /// The product `a` of 16-bit weights, each block made f32 once for all tokens; the same bits.
    fn widened(&self, a: &FloatBlock) {
        WIDE.with_borrow_mut(|wide| {
            // a line of 32 values a row becomes two of 16
            let steps = a.steps * 2;
            if wide.len() < steps * 32 {
                wide.resize(steps * 32, Line::default());
            }
            let out = wide.as_mut_ptr().cast::<f32>();
            for b in 0..a.count {
                let block = a.only(b);
                let from = Widen { kind: a.kind, block: block.block, steps: a.steps, out };
                let wide = FloatBlock {
                    kind: FloatKind::F32,
                    block: out.cast(),
                    block_bytes: steps * 2048,
                    steps,
                    ..block
                };
                // SAFETY: as in `product_units`; `out` holds the lines of a block
                unsafe {
                    (self.ops.widen)(&from);
                    (self.ops.float)(&wide);
                }
            }
        });
    }

    /// Rows `ids` of `w`, decoded, times `scale`: the embedding of tokens, `[ids, cols]`.
    ///
    /// # Panics
    /// If an id is not below the matrix's rows, or `out` has another length.
    pub fn embed(&self, w: Matrix, ids: &[u32], scale: f32, out: &mut [f32]) {
        let cols = w.cols();
        assert_eq!(out.len(), ids.len() * cols, "embeddings [{}, {cols}]", ids.len());
        if let Some(id) = ids.iter().find(|&&id| id as usize >= w.rows()) {
            panic!("token {id} of {}", w.rows());
        }
        let out = Shared::of(out);
        self.split(ids.len(), ids.len() * cols, |range| {
            for i in range {
                // SAFETY: row i is written by the thread that has i, alone
                let to = unsafe { out.slice(i * cols, cols) };
                decode_row(w.ty(), w.data(), w.rows(), cols, ids[i] as usize, to);
                if scale != 1.0 {
                    to.iter_mut().for_each(|v| *v *= scale);
                }
            }
        });
    }
}

/// Int8 terms of the activations that multiply with `ty`; 1 of a float type.
pub(crate) fn terms(ty: Type) -> usize {
    match ty {
        Type::Q8 => codes::terms(codes::Q8),
        Type::Q6 => codes::terms(codes::Q6),
        _ => 1,
    }
}

fn check(w: &Matrix, x: &Input) {
    assert_eq!(w.cols(), x.k(), "a matrix [{}, {}] against inputs of width {}", w.rows(), w.cols(), x.k());
    // the exact sum over 256 inputs and every index fits; widths beyond are refused by the format
    assert!(x.m() < i32::MAX as usize / 512, "too many tokens at once");
}
