//! The tape: what one step of a model does, as a flat list of records, written once for a shape and replayed.
//!
//! ```text
//!   records    embed · (norm · linear qkv · rope · attention · linear out+x · norm · linear up · act · linear down+x)… · norm · head
//!   forward    the records in order; the head turns into loss and gradient at once
//!   backward   the records in reverse order
//!   arena      one vector; a buffer occupies its place from its first to its last use in that sequence
//! ```
//!
//! What each record saves for its gradient: linear its input, norm its input and (mean, rstd) per row, attention its
//! output and log-sum-exp, activations their input. The residual stream has one gradient buffer: a sum passes its
//! gradient on unchanged, so the buffer is shared and what reads the stream adds to it. Buffers may also be dropped and
//! computed again on the way back (`again.rs`), or wait for it in half the space (`settle.rs`).

use std::ops::Range;

use llm_kernels::dense::{Curve, Rotated, Slice};

use crate::config::{Precision, Recompute};
use crate::params::Params;

mod again;
mod arrange;
mod moe;
mod record;
mod settle;

pub(crate) use again::Step;
pub(crate) use moe::Moe;
pub(crate) use settle::Settled;

/// A buffer of the arena.
pub(crate) type Buffer = usize;
/// A parameter by its place in [`Params::list`].
pub(crate) type Id = usize;

/// What a tape is for.
#[derive(Clone, Copy, Default)]
pub(crate) struct How {
    /// Training, with so much computed again; `None`: evaluation.
    pub train: Option<Recompute>,
    /// Share of the values that training drops.
    pub dropout: f32,
    pub precision: Precision,
}

impl From<Option<Recompute>> for How {
    fn from(train: Option<Recompute>) -> How {
        How { train, ..How::default() }
    }
}

/// Shape of an attention layer.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub value_dim: usize,
    pub scale: f32,
    /// 0: none.
    pub window: usize,
    /// 0: none.
    pub softcap: f32,
    /// ALiBi, or empty.
    pub slopes: Vec<f32>,
}

impl Heads {
    /// Values in a row of queries, keys and values.
    pub fn stride(&self) -> usize {
        self.heads * self.dim + self.kv_heads * (self.dim + self.value_dim)
    }
}

/// One record. `dx`, `dy` and the like are gradient buffers; with `add` they hold the gradient of later uses already.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// `y` = rows of the table times `scale`, plus a table of positions.
    Embed { table: Id, positions: Option<Id>, scale: f32, y: Buffer, dy: Buffer },
    /// LayerNorm if `center`, else RMSNorm.
    Norm {
        x: Buffer,
        w: Id,
        b: Option<Id>,
        center: bool,
        eps: f32,
        y: Buffer,
        stats: Buffer,
        dx: Buffer,
        dy: Buffer,
        add: bool,
    },
    /// RMSNorm of parts of each row, by parts; `y` takes the whole row.
    SliceNorm {
        x: Buffer,
        stride: usize,
        parts: Vec<(Slice, Id, Buffer)>,
        eps: f32,
        y: Buffer,
        dx: Buffer,
        dy: Buffer,
    },
    /// `y = x·wᵀ + b + residual`.
    Linear {
        x: Buffer,
        w: Id,
        b: Option<Id>,
        residual: Option<Buffer>,
        y: Buffer,
        dx: Buffer,
        dy: Buffer,
        add: bool,
    },
    /// Rotates parts of each row in place, by the tables `table`.
    Rope { x: Buffer, stride: usize, parts: Vec<Rotated>, table: usize, dx: Buffer },
    /// `index` names the layer for dropout.
    Attention {
        shape: Heads,
        sinks: Option<Id>,
        qkv: Buffer,
        y: Buffer,
        lse: Buffer,
        dqkv: Buffer,
        dy: Buffer,
        index: usize,
    },
    /// Latent attention: queries `q`, and of `c` (compressed vector, shared rotated key) the keys and values of every
    /// head, to `qkv`.
    Expand {
        shape: Heads,
        rank: usize,
        rope: usize,
        k: Id,
        v: Id,
        q: Buffer,
        c: Buffer,
        qkv: Buffer,
        dq: Buffer,
        dc: Buffer,
        dqkv: Buffer,
    },
    /// In place in the gradient.
    Activate { curve: Curve, x: Buffer, y: Buffer, dy: Buffer },
    /// Gate and up side by side in `x`, `n` each.
    Gated { curve: Curve, n: usize, x: Buffer, y: Buffer, dx: Buffer, dy: Buffer },
    /// A mixture of experts.
    Moe(Box<Moe>),
    /// `y` = `x` times the sigmoid of the row's one value of `z`.
    Switch { x: Buffer, z: Buffer, y: Buffer, dx: Buffer, dz: Buffer, dy: Buffer },
    /// Drops elements of `x` in place, and of its gradient.
    Dropout { x: Buffer, dx: Buffer, index: usize },
    /// `y = x + branch`; `dbranch` takes a copy of the gradient.
    Add { x: Buffer, branch: Buffer, y: Buffer, dy: Buffer, dbranch: Buffer },
    /// Logits of a chunk of rows at a time, their loss, the gradients of `x`, `w` and `b`.
    Head { x: Buffer, w: Id, b: Option<Id>, logits: Buffer, dx: Buffer },
}

impl Op {
    /// The matrix or vector that it works with.
    pub fn weight(&self) -> Option<Id> {
        match self {
            Op::Embed { table, .. } => Some(*table),
            Op::Norm { w, .. } | Op::Linear { w, .. } | Op::Head { w, .. } => Some(*w),
            Op::SliceNorm { parts, .. } => parts.first().map(|p| p.1),
            Op::Expand { k, .. } => Some(*k),
            Op::Moe(m) => Some(m.router),
            _ => None,
        }
    }

    /// What it does, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "the embedding",
            Op::Norm { .. } | Op::SliceNorm { .. } => "the norm",
            Op::Linear { .. } => "the product",
            Op::Rope { .. } => "the rotation",
            Op::Attention { .. } => "attention",
            Op::Expand { .. } => "the expansion of keys and values",
            Op::Activate { .. } | Op::Gated { .. } => "the activation",
            Op::Moe(_) => "the mixture of experts",
            Op::Switch { .. } => "the switch of the shared expert",
            Op::Dropout { .. } => "dropout",
            Op::Add { .. } => "the residual sum",
            Op::Head { .. } => "the head",
        }
    }
}

/// The records of one shape, and where their buffers lie.
#[derive(Clone, Debug)]
pub(crate) struct Tape {
    pub ops: Vec<Op>,
    /// The way back; empty on a tape that is not for training.
    pub back: Vec<Step>,
    /// Of each record, what of its outputs is rounded behind it; empty at f32.
    pub settled: Vec<Vec<Settled>>,
    pub precision: Precision,
    /// Sequences and tokens per sequence.
    pub batch: usize,
    pub length: usize,
    /// Rows of logits that exist at a time.
    pub head_rows: usize,
    /// Share to drop; 0 on a tape that is not for training.
    pub dropout: f32,
    /// Where each buffer lies in the arena.
    places: Vec<Range<usize>>,
    /// Length of the arena.
    pub arena: usize,
}

impl Tape {
    pub fn rows(&self) -> usize {
        self.batch * self.length
    }

    /// The arena's part of a buffer.
    pub fn place(&self, b: Buffer) -> Range<usize> {
        self.places[b].clone()
    }

    /// Records the model for `batch` sequences of `length` tokens. For training buffers live until their gradients are
    /// made, but for what is computed again or waits in half the space.
    pub fn record(
        spec: &llm::model::spec::Spec,
        params: &Params,
        (batch, length): (usize, usize),
        how: impl Into<How>,
    ) -> Tape {
        let How { train, dropout, precision } = how.into();
        let dropout = if train.is_some() { dropout } else { 0.0 };
        let recorded = record::model(spec, params, batch * length, dropout > 0.0);
        let record::Recorded { ops, layers, mut sizes, residual, head_rows } = recorded;
        let mut back = train.map_or_else(Vec::new, |recompute| again::steps(&ops, &layers, recompute));
        let settled = match precision {
            Precision::F32 => Vec::new(),
            Precision::Bf16 => settle::settle(&ops, &residual, &mut back, &mut sizes),
        };
        let (places, arena) = arrange::arrange(&ops, &settled, &back, &sizes);
        Tape { ops, back, settled, precision, batch, length, head_rows, dropout, places, arena }
    }
}
