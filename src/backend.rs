//! What a device computes for the forward pass: some twenty operations over tensors.
//!
//! One call is one operation over all rows, so choosing the device at run time costs one indirect call per operation
//! and nothing per element. Shapes are in the comments, row-major, `m` rows of tokens; callers pass shapes that fit
//! (weights are proven when a model is opened), an implementation may assert them.

use std::fmt::Debug;
use std::ops::Range;

use llm_format::quant::Type;
use llm_kernels::{Input, KvLayout, Level, RouteSpec, Row};

use crate::model::spec::{Activation, NormKind, Pairs};
use crate::tensor::{Matrix, Stack, Tensor, Vector};

/// One product of a group that shares its input: out = x · weightᵀ + bias, `[m, weight.rows]`.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Matrix,
    pub(crate) bias: Option<&'a Vector>,
    pub(crate) out: &'a mut Tensor,
}

/// A norm with its weights.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) kind: NormKind,
    pub(crate) eps: f32,
    /// `[width]`
    pub(crate) weight: Vector,
    /// `[width]`
    pub(crate) bias: Option<Vector>,
}

/// Cosines and sines of every row, `[m, dim/2]` each.
#[derive(Debug, Default)]
pub(crate) struct Angles {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Angles {
    /// Forgets all rows.
    pub(crate) fn clear(&mut self) {
        self.cos.clear();
        self.sin.clear();
    }
}

/// Heads that are rotated: all of a row, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    /// Heads of a row.
    pub(crate) heads: usize,
    /// Width of one.
    pub(crate) head_dim: usize,
    /// Rotated part, the first of each head.
    pub(crate) dim: usize,
    pub(crate) pairs: Pairs,
}

/// Places of `[n0, n1]` runs of values in a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    /// Of the first run.
    pub(crate) start: usize,
    /// Distance along n0.
    pub(crate) outer: usize,
    /// Distance along n1.
    pub(crate) inner: usize,
}

/// One layer's part of the pages, and the rows of the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages<'a> {
    pub(crate) layout: KvLayout,
    /// Of the layer's part in a page.
    pub(crate) offset: usize,
    /// Of a page, all layers.
    pub(crate) stride: usize,
    /// The tokens of the batch, each with its sequence's page table.
    pub(crate) rows: &'a [Row<'a>],
}

/// What attention does with scores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores<'a> {
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<u32>,
    pub(crate) softcap: Option<f32>,
    /// `[heads]` or empty.
    pub(crate) alibi: &'a [f32],
    /// `[heads]`
    pub(crate) sinks: Option<&'a Vector>,
    pub(crate) level: Level,
}

/// A device.
pub(crate) trait Backend: Send + Sync + Debug {
    /// What it is, for logs.
    fn name(&self) -> String;
    /// Name of the instruction set.
    fn isa(&self) -> &'static str;
    /// Threads that compute.
    fn threads(&self) -> usize;
    /// Whether somebody looks at the inputs of products, all of which are computed then.
    fn is_observed(&self) -> bool;

    /// out = weight[ids] · scale, `[m, width]`. Ids are below the matrix's rows.
    fn embed(&self, weight: &Matrix, ids: &[u32], scale: f32, out: &mut Tensor);
    /// Norm of each of `rows` rows of the norm's width.
    fn norm(&self, norm: &Norm, rows: usize, x: &Tensor, out: &mut Tensor);
    /// The same in place.
    fn norm_in_place(&self, norm: &Norm, rows: usize, x: &mut Tensor);
    /// Makes the norm of `m` rows the input of products, first with a matrix of type `next`.
    fn norm_input(&self, norm: &Norm, m: usize, x: &Tensor, input: &mut Input, next: Type);
    /// Makes `x`, `[m, width]`, the input of products.
    fn load(&self, input: &mut Input, x: &Tensor, m: usize, width: usize);
    /// Makes rows `ids` of `x`, `[_, width]`, the input of products.
    fn gather(&self, input: &mut Input, x: &Tensor, width: usize, ids: &[u32]);
    /// Products that share their input.
    fn matmul(&self, input: &mut Input, products: &mut [Product<'_>]);
    /// Rows `groups[i].1` of the input through matrix `groups[i].0` of the stack. `bias` is `[count, rows]`.
    fn matmul_stack(
        &self,
        input: &mut Input,
        weight: &Stack,
        bias: Option<&Vector>,
        groups: &[(usize, Range<usize>)],
        out: &mut Tensor,
    );
    /// out[i] += Σ_j (scale · low[i][j]) · b[j] of each of `rows`, j ascending: low is `[m, rank]`, b `[rank, width]`, out
    /// `[m, width]`.
    fn add_low_rank(
        &self,
        rows: Range<usize>,
        scale: f32,
        low: &Tensor,
        b: &Vector,
        rank: usize,
        out: &mut Tensor,
    );
    /// Rotates the heads of `m` rows.
    fn rope(&self, x: &mut Tensor, m: usize, rotation: Rotation, angles: &Angles);
    /// x = act(x), the first `n` values.
    fn activate(&self, kind: Activation, n: usize, x: &mut Tensor);
    /// Makes act(gate) · up, `shape` = `[m, width]`, the input of products, first with a matrix of type `next`.
    fn gated_input(
        &self,
        kind: Activation,
        shape: [usize; 2],
        gate: &Tensor,
        up: &Tensor,
        input: &mut Input,
        next: Type,
    );
    /// x = x · factor
    fn scale(&self, factor: f32, n: usize, x: &mut Tensor);
    /// x = cap · tanh(x / cap)
    fn softcap(&self, cap: f32, n: usize, x: &mut Tensor);
    /// a = a + b
    fn add(&self, n: usize, a: &mut Tensor, b: &Tensor);
    /// a[t] = a[t] + sigmoid(gate[t]) · b[t] for `m` rows of `width`.
    fn add_switched(&self, m: usize, width: usize, a: &mut Tensor, b: &Tensor, gate: &mut Tensor);
    /// out = 0; then out[rows[i]] += weights[i] · x[i], i ascending, for `m` rows of `width`.
    fn combine(&self, m: usize, width: usize, rows: &[u32], weights: &[f32], x: &Tensor, out: &mut Tensor);
    /// Copies n0 · n1 runs of `width` values.
    fn copy(&self, counts: [usize; 2], width: usize, from: (&Tensor, Runs), to: (&mut Tensor, Runs));
    /// Router logits `[m, count]` to experts (ascending) and weights, `[m, active]` each.
    fn route(&self, logits: &Tensor, m: usize, spec: &RouteSpec<'_>, ids: &mut [u32], weights: &mut [f32]);
    /// Stores keys `[m, kv_heads · key_dim]` and values `[m, kv_heads · value_dim]` (none where latent).
    fn kv_write(&self, pages: &Pages<'_>, pool: &mut [u8], k: &Tensor, v: Option<&Tensor>);
    /// Causal attention of q `[m, heads · key_dim]`: out is `[m, heads · value_dim]`.
    fn attention(&self, pages: &Pages<'_>, pool: &[u8], scores: &Scores<'_>, q: &Tensor, out: &mut Tensor);
}
