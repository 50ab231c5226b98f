//! Causal attention with grouped heads, forward and backward, one piece of work per (sequence, key head).
//!
//! ```text
//!   for each block of 48 or 64 queries, keys 0..=last of the block:
//!     forward    S = Q·Kᵀ   p = exp(scale·S − max)   O = p·V / Σp          saved: O and lse = max + ln Σp
//!     backward   S again    P = exp(scale·S − lse)   dP = dO·Vᵀ            δ = Σ dO·O per row
//!                dS = scale·P·(dP − δ)               dQ = dS·K    dK += dSᵀ·Q    dV += Pᵀ·dO
//! ```
//!
//! A row of `qkv` holds the query heads, then the key heads, then the value heads, which may have another width. What a
//! query does not see (a window, another document) is masked in the block's scores, which are the only quadratic thing
//! in memory. Dropout of probabilities is a hash of (key, sequence·head·query, key
//! position), made again in the backward pass.
//!
//! Capped scores are c·tanh(scale·S/c) (Gemma 2, arXiv:2408.00118); dS takes the slope 1 − tanh², too. A sink is a logit
//! z of its head with a share of the softmax and no value (arXiv:2309.17453; learned in gpt-oss): max and lse count it,
//! and dz = −Σ exp(z − lse)·δ over the rows.

use super::gemm::{Panels, View, panels, serial};
use super::math::{exp, fold2, hash, tanh, tree};
use super::rows::threshold;
use super::{Dense, Shared, Unit, versions};
use crate::math::log64;
use std::cell::RefCell;

/// Queries per block: whole rows of micro kernels, or whole panels of bf16.
fn block(unit: Unit) -> usize {
    if unit.rounds() { 64 } else { 48 }
}

/// The shape of an attention layer over `qkv[batch·length, heads·dim + kv_heads·(dim + value_dim)]`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a query or key head.
    pub dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Tokens per sequence.
    pub length: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// A token sees this many, itself included; 0: all before it.
    pub window: usize,
    /// Scores become `softcap · tanh(score / softcap)`; 0: they stay.
    pub softcap: f32,
    /// ALiBi: `slopes[head] · (key − query)` is added to the scores; empty: nothing.
    pub slopes: &'a [f32],
    /// A logit of each head that has a share of the softmax and no value; empty: none.
    pub sinks: &'a [f32],
    /// For every row the first position of its sequence that it sees: where its document begins. Empty: 0.
    pub starts: &'a [u32],
    /// Share of the probabilities to drop.
    pub dropout: f32,
    /// Key of the dropout's random numbers.
    pub key: u64,
}

impl Heads<'_> {
    /// Heads as wide in values as in keys, their scores over √dim, without anything else.
    pub fn new(heads: usize, kv_heads: usize, dim: usize, length: usize) -> Heads<'static> {
        Heads {
            heads,
            kv_heads,
            dim,
            value_dim: dim,
            length,
            scale: 1.0 / (dim as f32).sqrt(),
            window: 0,
            softcap: 0.0,
            slopes: &[],
            sinks: &[],
            starts: &[],
            dropout: 0.0,
            key: 0,
        }
    }

    fn stride(&self) -> usize {
        self.heads * self.dim + self.kv_heads * (self.dim + self.value_dim)
    }

    /// The first key that the query at `position` of the sequence that begins at row `first` sees.
    fn low(&self, first: usize, position: usize) -> usize {
        let window = if self.window > 0 { (position + 1).saturating_sub(self.window) } else { 0 };
        let document = self.starts.get(first + position).map_or(0, |s| *s as usize);
        window.max(document).min(position)
    }

    /// What the query of `head` at `position` of the sequence that begins at row `first` sees.
    fn seen(&self, first: usize, position: usize, head: usize) -> Seen {
        Seen {
            low: self.low(first, position),
            high: position + 1,
            scale: self.scale,
            softcap: self.softcap,
            slope: self.slopes.get(head).copied().unwrap_or(0.0),
            sink: self.sinks.get(head).copied().unwrap_or(f32::NEG_INFINITY),
        }
    }
}

/// Which keys a query sees, and what becomes of its scores.
#[derive(Clone, Copy)]
struct Seen {
    low: usize,
    /// Behind the last, which is the query's own position.
    high: usize,
    scale: f32,
    /// 0: none.
    softcap: f32,
    slope: f32,
    /// −∞: none.
    sink: f32,
}

impl Seen {
    /// Scores with their cap and the slope's share; returns the factor that is left to be applied.
    #[inline(always)]
    fn lean(&self, row: &mut [f32]) -> f32 {
        if self.softcap > 0.0 {
            for (k, x) in row.iter_mut().enumerate() {
                *x = self.capped(*x, k).0;
            }
            return 1.0;
        }
        if self.slope == 0.0 {
            return self.scale;
        }
        let far = (self.high - 1 - self.low) as f32;
        for (k, x) in row.iter_mut().enumerate() {
            *x = x.mul_add(self.scale, self.slope * (k as f32 - far));
        }
        1.0
    }

    /// The capped score of the `k`th key seen, with the slope's share, and its derivative by the plain one.
    #[inline(always)]
    fn capped(&self, x: f32, k: usize) -> (f32, f32) {
        let far = (self.high - 1 - self.low) as f32;
        let t = tanh(x * self.scale / self.softcap);
        ((k as f32 - far).mul_add(self.slope, self.softcap * t), self.scale * (1.0 - t * t))
    }
}

/// What one thread needs for one piece.
#[derive(Default)]
struct Scratch {
    keys: Panels,
    keys_t: Panels,
    values: Panels,
    scores: Vec<f32>,
    grads: Vec<f32>,
    block: Vec<f32>,
    right: Panels,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Dropout of one row of probabilities.
#[derive(Clone, Copy)]
struct Drop {
    key: u64,
    threshold: u32,
    factor: f32,
}

impl Drop {
    fn of(h: &Heads) -> Option<Drop> {
        let factor = 1.0 / (1.0 - h.dropout);
        (h.dropout > 0.0).then(|| Drop { key: h.key, threshold: threshold(h.dropout), factor })
    }

    /// The factor on the probability of key `k` in the row `index`: 0 where it is dropped.
    #[inline(always)]
    fn kept(self, index: u32, k: usize) -> f32 {
        if hash(self.key, index, k as u32) >= self.threshold { self.factor } else { 0.0 }
    }
}

versions! {
    /// Scores of the seen keys in `row` become exponentials, the rest zeros; returns (maximum, sum), of the sink, too.
    fn soften(row: &mut [f32], range: Seen, drop: Option<Drop>, index: u32) -> (f32, f32) {
        let (seen, hidden) = row.split_at_mut(range.high);
        let (before, seen) = seen.split_at_mut(range.low);
        before.fill(0.0);
        let scale = range.lean(seen);
        let mut tops = [f32::NEG_INFINITY; 16];
        for chunk in seen.chunks(16) {
            for (t, x) in tops.iter_mut().zip(chunk) {
                *t = if *x > *t { *x } else { *t };
            }
        }
        let top = scale * tops.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        let top = if range.sink > top { range.sink } else { top };
        let mut lanes = [0.0f32; 16];
        for chunk in seen.chunks_mut(16) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = exp(x.mul_add(scale, -top));
                *lane += *x;
            }
        }
        if let Some(d) = drop {
            for (k, x) in seen.iter_mut().enumerate() {
                *x *= d.kept(index, range.low + k);
            }
        }
        hidden.fill(0.0);
        (top, tree(lanes) + exp(range.sink - top))
    }
}

versions! {
    /// Scores become (dropped) probabilities, `grads` (dP) becomes dS.
    fn harden(row: &mut [f32], grads: &mut [f32], range: Seen, lse: f32, delta: f32, drop: Option<Drop>, index: u32) {
        let (seen, hidden) = row.split_at_mut(range.high);
        let (dseen, dhidden) = grads.split_at_mut(range.high);
        let (before, seen) = seen.split_at_mut(range.low);
        let (dbefore, dseen) = dseen.split_at_mut(range.low);
        before.fill(0.0);
        dbefore.fill(0.0);
        if range.softcap > 0.0 {
            for (k, (p, g)) in seen.iter_mut().zip(dseen).enumerate() {
                let kept = drop.map_or(1.0, |d| d.kept(index, range.low + k));
                let (score, slope) = range.capped(*p, k);
                let whole = exp(score - lse);
                *g = slope * whole * g.mul_add(kept, -delta);
                *p = whole * kept;
            }
        } else if let Some(d) = drop {
            let (factor, scale) = (range.lean(seen), range.scale);
            for (k, (p, g)) in seen.iter_mut().zip(dseen).enumerate() {
                let kept = d.kept(index, range.low + k);
                let whole = exp(p.mul_add(factor, -lse));
                *g = scale * whole * g.mul_add(kept, -delta);
                *p = whole * kept;
            }
        } else {
            let (factor, scale) = (range.lean(seen), range.scale);
            for (p, g) in seen.iter_mut().zip(dseen) {
                *p = exp(p.mul_add(factor, -lse));
                *g = scale * *p * (*g - delta);
            }
        }
        hidden.fill(0.0);
        dhidden.fill(0.0);
    }
}

versions! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        fold2(a, b, |s, a, b| a.mul_add(b, s))
    }
}

impl Dense {
    /// `out[rows, heads·value_dim]` = attention of `qkv`; `lse[rows, heads]` takes the log-sum-exp of each row's scores.
    pub fn attention(&mut self, h: &Heads, qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
        let rows = check(h, qkv, out, lse);
        let (d, dv, width) = (h.dim, h.value_dim, h.heads * h.value_dim);
        let (out, lse) = (Shared::of(out), Shared::of(lse));
        let (isa, unit) = (self.isa, self.unit());
        let block = block(unit);
        self.pool.run(rows / h.length * h.kv_heads, |piece| {
            let (first, kv) = (piece / h.kv_heads * h.length, piece % h.kv_heads);
            SCRATCH.with_borrow_mut(|s| {
                let (keys, values) = operands(h, qkv, first, kv);
                panels(unit, keys.t(), &mut s.keys_t);
                panels(unit, values, &mut s.values);
                s.block.resize(block * dv, 0.0);
                for head in kv * (h.heads / h.kv_heads)..(kv + 1) * (h.heads / h.kv_heads) {
                    for q0 in (0..h.length).step_by(block) {
                        let (n, end) = (block.min(h.length - q0), (q0 + block).min(h.length));
                        let q = View::new(&qkv[(first + q0) * h.stride() + head * d..], n, d, h.stride());
                        s.scores.resize(s.scores.len().max(block * h.length), 0.0);
                        serial(unit, q, &s.keys_t, end, &mut s.scores, end, false);
                        let mut sums = [1.0f32; 64];
                        for (i, row) in s.scores[..n * end].chunks_exact_mut(end).enumerate() {
                            let row_index = row_index(h, first + q0 + i, head);
                            let seen = h.seen(first, q0 + i, head);
                            let (top, sum) = soften(isa, row, seen, Drop::of(h), row_index);
                            sums[i] = sum;
                            let at = (first + q0 + i) * h.heads + head;
                            // SAFETY: (row, head) belongs to this piece alone.
                            let slot = unsafe { lse.part(at..at + 1) };
                            slot[0] = top + log64(f64::from(sum)) as f32;
                        }
                        let p = View::new(&s.scores, n, end, end);
                        serial(unit, p, &s.values, dv, &mut s.block, dv, false);
                        for (i, row) in s.block[..n * dv].chunks_exact(dv).enumerate() {
                            let at = (first + q0 + i) * width + head * dv;
                            // SAFETY: (row, head) belongs to this piece alone.
                            let out = unsafe { out.part(at..at + dv) };
                            let factor = 1.0 / sums[i];
                            out.iter_mut().zip(row).for_each(|(o, x)| *o = x * factor);
                        }
                    }
                }
            });
        });
    }

    /// The gradient of [`Dense::attention`]'s `qkv`, written to `dqkv`, from its output, its log-sum-exp and the
    /// gradient `dout` of its output.
    pub fn attention_back(
        &mut self,
        h: &Heads,
        qkv: &[f32],
        out: &[f32],
        lse: &[f32],
        dout: &[f32],
        dqkv: &mut [f32],
    ) {
        let rows = check(h, qkv, out, lse);
        assert!(dout.len() == out.len() && dqkv.len() == qkv.len(), "attention gradient of {rows} rows");
        let (d, dv, width, stride) = (h.dim, h.value_dim, h.heads * h.value_dim, h.stride());
        let dqkv = Shared::of(dqkv);
        let (isa, unit) = (self.isa, self.unit());
        let block = block(unit);
        self.pool.run(rows / h.length * h.kv_heads, |piece| {
            let (first, kv) = (piece / h.kv_heads * h.length, piece % h.kv_heads);
            SCRATCH.with_borrow_mut(|s| {
                let (keys, values) = operands(h, qkv, first, kv);
                panels(unit, keys, &mut s.keys);
                panels(unit, keys.t(), &mut s.keys_t);
                panels(unit, values.t(), &mut s.values);
                s.block.resize(block * d, 0.0);
                s.scores.resize(s.scores.len().max(block * h.length), 0.0);
                s.grads.resize(s.grads.len().max(block * h.length), 0.0);
                for (grad, dim) in [(&mut s.dk, d), (&mut s.dv, dv)] {
                    grad.clear();
                    grad.resize(h.length * dim, 0.0);
                }
                for head in kv * (h.heads / h.kv_heads)..(kv + 1) * (h.heads / h.kv_heads) {
                    for q0 in (0..h.length).step_by(block) {
                        let (n, end) = (block.min(h.length - q0), (q0 + block).min(h.length));
                        let q = View::new(&qkv[(first + q0) * stride + head * d..], n, d, stride);
                        let g = View::new(&dout[(first + q0) * width + head * dv..], n, dv, width);
                        serial(unit, q, &s.keys_t, end, &mut s.scores, end, false);
                        serial(unit, g, &s.values, end, &mut s.grads, end, false);
                        for i in 0..n {
                            let (row, at) = (first + q0 + i, (first + q0 + i) * width + head * dv);
                            let delta = dot(isa, &dout[at..at + dv], &out[at..at + dv]);
                            let span = i * end..(i + 1) * end;
                            let (p, ds) = (&mut s.scores[span.clone()], &mut s.grads[span]);
                            let (lse, index) = (lse[row * h.heads + head], row_index(h, row, head));
                            let seen = h.seen(first, q0 + i, head);
                            harden(isa, p, ds, seen, lse, delta, Drop::of(h), index);
                        }
                        let (p, ds) = (View::new(&s.scores, n, end, end), View::new(&s.grads, n, end, end));
                        serial(unit, ds, &s.keys, d, &mut s.block, d, false);
                        for (i, row) in s.block[..n * d].chunks_exact(d).enumerate() {
                            let at = (first + q0 + i) * stride + head * d;
                            // SAFETY: this query head's columns of this row belong to this piece alone.
                            unsafe { dqkv.part(at..at + d) }.copy_from_slice(row);
                        }
                        panels(unit, q, &mut s.right);
                        serial(unit, ds.t(), &s.right, d, &mut s.dk, d, true);
                        panels(unit, g, &mut s.right);
                        serial(unit, p.t(), &s.right, dv, &mut s.dv, dv, true);
                    }
                }
                let rows = s.dk.chunks_exact(d).zip(s.dv.chunks_exact(dv)).enumerate();
                for (i, (dk, dv)) in rows {
                    let at = (first + i) * stride + (h.heads + kv) * d;
                    // SAFETY: this key head's and value head's columns of this row belong to this piece alone.
                    unsafe { dqkv.part(at..at + d) }.copy_from_slice(dk);
                    let at = (first + i) * stride + (h.heads + h.kv_heads) * d + kv * h.value_dim;
                    // SAFETY: as above.
                    unsafe { dqkv.part(at..at + h.value_dim) }.copy_from_slice(dv);
                }
            });
        });
    }

    /// Adds the gradient of [`Dense::attention`]'s sinks to `dsinks[heads]`, the rows in their order.
    pub fn sinks_back(&mut self, h: &Heads, out: &[f32], lse: &[f32], dout: &[f32], dsinks: &mut [f32]) {
        let (heads, dv) = (h.heads, h.value_dim);
        assert!(
            h.sinks.len() == heads && dsinks.len() == heads && dout.len() == out.len(),
            "sinks of {heads} heads"
        );
        assert!(out.len() == lse.len() * dv && lse.len().is_multiple_of(heads), "outputs of {heads} heads");
        let dsinks = Shared::of(dsinks);
        let isa = self.isa;
        self.pieces(heads, 1, |head, range| {
            let mut sum = 0.0f64;
            for at in (head..lse.len()).step_by(heads) {
                let delta = dot(isa, &dout[at * dv..(at + 1) * dv], &out[at * dv..(at + 1) * dv]);
                sum -= f64::from(exp(h.sinks[head] - lse[at]) * delta);
            }
            // SAFETY: each piece takes its own head.
            let slot = unsafe { dsinks.part(range) };
            slot[0] += sum as f32;
        });
    }
}

/// Names the row (token, head) for dropout.
fn row_index(h: &Heads, row: usize, head: usize) -> u32 {
    (row * h.heads + head) as u32
}

/// Keys and values of one head over one sequence, `[length, dim]` and `[length, value_dim]`.
fn operands<'a>(h: &Heads, qkv: &'a [f32], first: usize, kv: usize) -> (View<'a>, View<'a>) {
    let row = first * h.stride();
    let (keys, values) =
        (row + (h.heads + kv) * h.dim, row + (h.heads + h.kv_heads) * h.dim + kv * h.value_dim);
    let view = |at: usize, dim: usize| View::new(&qkv[at..], h.length, dim, h.stride());
    (view(keys, h.dim), view(values, h.value_dim))
}

fn check(h: &Heads, qkv: &[f32], out: &[f32], lse: &[f32]) -> usize {
    assert!(h.kv_heads > 0 && h.heads.is_multiple_of(h.kv_heads), "{} heads over {}", h.heads, h.kv_heads);
    assert!(h.dim > 0 && h.value_dim > 0 && h.length > 0, "heads of {} and {}", h.dim, h.value_dim);
    assert!(h.slopes.is_empty() || h.slopes.len() == h.heads, "slopes of {} heads", h.heads);
    assert!(h.sinks.is_empty() || h.sinks.len() == h.heads, "sinks of {} heads", h.heads);
    let rows = qkv.len() / h.stride();
    assert!(
        qkv.len() == rows * h.stride() && rows.is_multiple_of(h.length),
        "{} of qkv for rows of {}",
        qkv.len(),
        h.stride()
    );
    assert!(h.starts.is_empty() || h.starts.len() == rows, "starts of {rows} rows");
    assert!(
        out.len() == rows * h.heads * h.value_dim && lse.len() == rows * h.heads,
        "outputs of {rows} rows"
    );
    rows
}
