//! The way back, and what is computed again on it instead of being kept.
//!
//! ```text
//!   none    back n … back 0
//!   part    … again norm, back linear …          what norms and activations wrote is made anew for its first reader
//!   block   … again the layer, back the layer …  between the two ways only a layer's input is kept
//! ```
//! A record that runs again does what it did before: dropout is keyed by counters, experts are chosen anew from the same
//! scores. So the gradients have the same bits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Buffer, Op};
use crate::config::Recompute;

/// A step of the way back, with the record's place or buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Its forward pass once more.
    Again(usize),
    /// Its backward pass.
    Back(usize),
    /// What waited in half the space has its own again.
    Widen { halves: Buffer, to: Buffer },
}

impl Op {
    /// The buffers that the forward pass writes whole.
    pub(super) fn made(&self) -> Vec<Buffer> {
        match self {
            Op::Embed { y, .. } | Op::Linear { y, .. } | Op::Add { y, .. } => vec![*y],
            Op::Norm { y, stats, .. } => vec![*y, *stats],
            Op::SliceNorm { y, parts, .. } => [*y].into_iter().chain(parts.iter().map(|p| p.2)).collect(),
            Op::Attention { y, lse, .. } => vec![*y, *lse],
            Op::Expand { qkv, .. } => vec![*qkv],
            Op::Activate { y, .. } | Op::Gated { y, .. } | Op::Switch { y, .. } => vec![*y],
            Op::Moe(m) => m.forward().into_iter().filter(|b| *b != m.x).collect(),
            Op::Head { logits, .. } => vec![*logits],
            Op::Rope { .. } | Op::Dropout { .. } => Vec::new(),
        }
    }

    /// The buffer that the forward pass changes in place.
    fn changed(&self) -> Option<Buffer> {
        match self {
            Op::Rope { x, .. } | Op::Dropout { x, .. } => Some(*x),
            _ => None,
        }
    }
}

/// The way back over `ops`.
pub(super) fn steps(ops: &[Op], layers: &[Range<usize>], recompute: Recompute) -> Vec<Step> {
    match recompute {
        Recompute::None => (0..ops.len()).rev().map(Step::Back).collect(),
        Recompute::Part => part(ops),
        Recompute::Block => block(ops, layers),
    }
}

fn part(ops: &[Op]) -> Vec<Step> {
    let cheap = |op: &Op| match op {
        Op::Norm { x, y, .. } | Op::Activate { x, y, .. } | Op::Gated { x, y, .. } => Some((*x, *y)),
        _ => None,
    };
    let changed: BTreeSet<Buffer> = ops.iter().filter_map(Op::changed).collect();
    // what such a record reads is kept, so that none needs another
    let read: BTreeSet<Buffer> = ops.iter().filter_map(cheap).map(|(x, _)| x).collect();
    let mut dropped: BTreeMap<Buffer, usize> = BTreeMap::new();
    for (i, op) in ops.iter().enumerate() {
        if let Some((_, y)) = cheap(op)
            && !changed.contains(&y)
            && !read.contains(&y)
        {
            dropped.insert(y, i);
        }
    }
    let mut steps = Vec::new();
    for (i, op) in ops.iter().enumerate().rev() {
        // the head takes its turn on the way there, where its input still is
        if !matches!(op, Op::Head { .. }) {
            steps.extend(op.backward().iter().filter_map(|b| dropped.remove(b)).map(Step::Again));
        }
        steps.push(Step::Back(i));
    }
    steps
}

fn block(ops: &[Op], layers: &[Range<usize>]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut end = ops.len();
    for layer in layers.iter().rev() {
        steps.extend((layer.end..end).rev().map(Step::Back));
        let mut needed: BTreeSet<Buffer> = ops[layer.clone()].iter().flat_map(Op::backward).collect();
        let mut again = Vec::new();
        for i in layer.clone().rev() {
            if ops[i].made().into_iter().chain(ops[i].changed()).any(|b| needed.contains(&b)) {
                needed.extend(ops[i].forward());
                again.push(Step::Again(i));
            }
        }
        steps.extend(again.into_iter().rev());
        steps.extend(layer.clone().rev().map(Step::Back));
        end = layer.start;
    }
    steps.extend((0..end).rev().map(Step::Back));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;
    use crate::design::ModelConfig;
    use crate::engine::{Engine, Input, RouterLosses, Want};
    use crate::params::Params;
    use crate::tape::{How, Tape};
    use crate::twin::{shapes, tokens};

    const LEVELS: [Recompute; 3] = [Recompute::None, Recompute::Part, Recompute::Block];

    #[test]
    fn loss_and_gradients_have_the_same_bits_whatever_is_computed_again() {
        for (name, arch, spec) in shapes() {
            let params = Params::new(arch, &spec, false);
            let weights: Vec<f32> = params.init(3, spec.layers.len()).iter().map(|w| w * 4.0).collect();
            let (ids, targets) = tokens(2 * spec.context, spec.vocab);
            for (dropout, precision) in
                [(0.0, Precision::F32), (0.2, Precision::F32), (0.0, Precision::Bf16), (0.2, Precision::Bf16)]
            {
                let pass = |recompute| {
                    let how = How { train: Some(recompute), dropout, precision };
                    let tape = Tape::record(&spec, &params, (2, spec.context as usize), how);
                    let losses = RouterLosses { balance: 0.3, z: 0.1 };
                    let mut engine = Engine::new(&spec, &params, 2, losses);
                    let mut grads = vec![0.0; params.total];
                    let input = Input { ids: &ids, targets: &targets, starts: &[], key: (1, 0) };
                    let want = Want::Gradient { scale: 1.0, grads: &mut grads };
                    let loss = engine.run(&tape, &weights, &input, want);
                    (loss.to_bits(), grads.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                };
                let [none, part, block] = LEVELS.map(pass);
                assert!(none == part, "{name}, dropout {dropout}, {precision:?}: part");
                assert!(none == block, "{name}, dropout {dropout}, {precision:?}: block");
            }
        }
    }

    #[test]
    fn the_more_is_computed_again_the_less_is_kept() {
        let model = ModelConfig { vocab: 65, layers: 12, ..ModelConfig::baby_gpt() };
        let (arch, spec) = model.spec().unwrap();
        let params = Params::new(arch, &spec, false);
        let [none, part, block] =
            LEVELS.map(|level| Tape::record(&spec, &params, (1, 256), Some(level)).arena);
        assert!(part * 10 < none * 8 && block * 10 < part * 5, "{none}, {part}, {block} values");
    }
}
