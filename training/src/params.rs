//! The parameters of a model: one flat list, one flat vector, names that the checkpoint knows how to spell.
//!
//! Projections that read the same input are one matrix here (`q k v`, `gate up`): one product instead of three. The
//! checkpoint cuts them apart again.

use crate::config::{Family, ModelConfig};
use crate::random::{Stream, normal};
use std::ops::Range;

/// What a parameter is; decides its name in a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Embed,
    Positions,
    /// Norms before attention and before the feed-forward part of a layer.
    AttentionNorm,
    AttentionNormBias,
    FeedNorm,
    FeedNormBias,
    /// Query, key and value projections, in this order.
    Qkv,
    QkvBias,
    Out,
    OutBias,
    /// Llama: gate then up. GPT-2: the first feed-forward matrix.
    Up,
    UpBias,
    Down,
    DownBias,
    FinalNorm,
    FinalNormBias,
    Head,
}

/// One parameter: a matrix `[rows, cols]`, or a vector of `rows` where `cols` is 0.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub role: Role,
    pub layer: usize,
    pub rows: usize,
    pub cols: usize,
    /// Rows of each projection that lies in a matrix, in order.
    pub parts: Vec<usize>,
    offset: usize,
    /// Standard deviation of the initial values; vectors: 1 for norm weights, 0 for biases.
    init: f32,
}

impl Param {
    pub fn len(&self) -> usize {
        self.rows * self.cols.max(1)
    }

    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// A matrix between hidden vectors: not an embedding, not the head.
    pub fn is_hidden_matrix(&self) -> bool {
        self.cols > 0 && !matches!(self.role, Role::Embed | Role::Positions | Role::Head)
    }

    /// Matrices decay, vectors do not.
    pub fn decays(&self) -> bool {
        self.cols > 0
    }
}

/// All parameters of a model in the order in which they lie in memory.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub list: Vec<Param>,
    /// Length of the flat vector. Each parameter begins at a multiple of 16; the gaps stay zero.
    pub total: usize,
}

impl Params {
    pub fn new(m: &ModelConfig) -> Params {
        let mut p = Params { list: Vec::new(), total: 0 };
        let (d, f, std) = (m.width, m.ffn, 0.02);
        let (q, kv) = (m.heads * m.head_dim(), m.kv_heads * m.head_dim());
        // Projections into the residual stream begin smaller, as in GPT-2: their number grows with the depth.
        let residual = std / (2.0 * m.layers as f32).sqrt();
        let gpt2 = m.family == Family::Gpt2;
        p.add(Role::Embed, 0, m.vocab, d, std);
        if gpt2 {
            p.add(Role::Positions, 0, m.context, d, std);
        }
        for layer in 0..m.layers {
            let mut add = |role, bias, rows, cols, init| {
                p.add(role, layer, rows, cols, init);
                if let Some(last) = p.list.last_mut() {
                    match role {
                        Role::Qkv => last.parts = vec![q, kv, kv],
                        Role::Up if !gpt2 => last.parts = vec![f, f],
                        _ => {}
                    }
                }
                if gpt2 {
                    p.add(bias, layer, rows, 0, 0.0);
                }
            };
            add(Role::AttentionNorm, Role::AttentionNormBias, d, 0, 1.0);
            add(Role::Qkv, Role::QkvBias, q + 2 * kv, d, std);
            add(Role::Out, Role::OutBias, d, q, residual);
            add(Role::FeedNorm, Role::FeedNormBias, d, 0, 1.0);
            add(Role::Up, Role::UpBias, if gpt2 { f } else { 2 * f }, d, std);
            add(Role::Down, Role::DownBias, d, f, residual);
        }
        p.add(Role::FinalNorm, 0, d, 0, 1.0);
        if gpt2 {
            p.add(Role::FinalNormBias, 0, d, 0, 0.0);
        }
        if !m.tied {
            p.add(Role::Head, 0, m.vocab, d, std);
        }
        p
    }

    fn add(&mut self, role: Role, layer: usize, rows: usize, cols: usize, init: f32) {
        let param = Param { role, layer, rows, cols, parts: vec![rows], offset: self.total, init };
        self.total += param.len().next_multiple_of(16);
        self.list.push(param);
    }

    /// The index of a parameter that the model has.
    pub fn find(&self, role: Role, layer: usize) -> Option<usize> {
        self.list.iter().position(|p| p.role == role && p.layer == layer)
    }

    /// The number of trained values.
    pub fn count(&self) -> usize {
        self.list.iter().map(Param::len).sum()
    }

    /// Initial values from `seed`: matrices normal, norm weights one, biases zero.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.total];
        for (index, p) in self.list.iter().enumerate() {
            for (i, v) in values[p.range()].iter_mut().enumerate() {
                let draw = || normal(seed, Stream::Weights, index as u64, i as u64);
                *v = if p.cols == 0 { p.init } else { p.init * draw() };
            }
        }
        values
    }
}
