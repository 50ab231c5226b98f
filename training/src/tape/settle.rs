//! Activations in bf16: rounded when they are made, kept for the way back in half the space.
//!
//! ```text
//!   way there   record → its outputs are rounded → last record that changes b: b also goes to halves (b's place is free
//!               after its last reader)
//!   way back    widen: halves → b → first record that reads b
//! ```
//! Values are rounded before anything reads them, so what is widened is what was read, and what is computed again is
//! what was computed; a mixture of experts does so inside itself, too (`engine/moe.rs`). Not rounded: the residual
//! stream and the embedding before it, to which every layer adds a little; the statistics of norms, log-sum-exps and
//! routers' scores, of which there are few; logits, and gradients.

use std::collections::{BTreeMap, BTreeSet};

use super::{Buffer, Op, Step};

/// An output that is rounded behind its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settled {
    pub buffer: Buffer,
    /// Takes a copy in half the space on the way there.
    pub halves: Option<Buffer>,
}

impl Op {
    /// The activations that the forward pass makes or changes.
    fn activations(&self) -> Vec<Buffer> {
        match self {
            Op::Norm { y, .. }
            | Op::SliceNorm { y, .. }
            | Op::Linear { y, .. }
            | Op::Attention { y, .. }
            | Op::Expand { qkv: y, .. }
            | Op::Activate { y, .. }
            | Op::Gated { y, .. }
            | Op::Switch { y, .. }
            | Op::Add { y, .. }
            | Op::Rope { x: y, .. }
            | Op::Dropout { x: y, .. } => vec![*y],
            Op::Moe(m) => vec![m.gathered, m.up_out, m.act, m.out, m.y],
            Op::Embed { .. } | Op::Head { .. } => Vec::new(),
        }
    }
}

/// What is rounded behind each record: all but the stream. Puts the widening of what waits in half the space
/// into the way back, and the buffers for it behind the others.
pub(super) fn settle(
    ops: &[Op],
    residual: &BTreeSet<Buffer>,
    back: &mut Vec<Step>,
    sizes: &mut Vec<usize>,
) -> Vec<Vec<Settled>> {
    let mut settled: Vec<Vec<Settled>> = Vec::new();
    // the record that changes it last
    let mut last: BTreeMap<Buffer, usize> = BTreeMap::new();
    for (i, op) in ops.iter().enumerate() {
        let rounded: Vec<Buffer> = op.activations().into_iter().filter(|b| !residual.contains(b)).collect();
        last.extend(rounded.iter().map(|b| (*b, i)));
        settled.push(rounded.into_iter().map(|buffer| Settled { buffer, halves: None }).collect());
    }
    let mut steps = Vec::new();
    for step in back.drain(..) {
        let (read, made) = match step {
            Step::Back(i) => (ops[i].backward(), Vec::new()),
            Step::Again(i) => (ops[i].forward(), ops[i].made()),
            Step::Widen { .. } => unreachable!("this adds them"),
        };
        made.iter().for_each(|b| {
            last.remove(b);
        });
        // the head's way back is part of the way there
        let head = matches!(step, Step::Back(i) if matches!(ops[i], Op::Head { .. }));
        for to in read.into_iter().filter(|_| !head) {
            if let Some(i) = last.remove(&to) {
                let halves = sizes.len();
                sizes.push(sizes[to].div_ceil(2));
                let of = settled[i].iter_mut().find(|s| s.buffer == to);
                of.unwrap_or_else(|| unreachable!("record {i} changes it")).halves = Some(halves);
                steps.push(Step::Widen { halves, to });
            }
        }
        steps.push(step);
    }
    *back = steps;
    // a mixture rounds all but its result while it runs: of that, what is packed besides is all that is left to do
    for (op, settled) in ops.iter().zip(&mut settled) {
        if let Op::Moe(m) = op {
            settled.retain(|s| s.buffer == m.y || s.halves.is_some());
        }
    }
    settled
}

#[cfg(test)]
mod tests {
    use crate::config::{Precision, Recompute};
    use crate::design::ModelConfig;
    use crate::engine::{Engine, Input, RouterLosses, Want};
    use crate::params::Params;
    use crate::tape::{How, Tape};
    use crate::twin::{shapes, tokens};

    fn training(precision: Precision) -> How {
        How { train: Some(Recompute::None), precision, ..How::default() }
    }

    #[test]
    fn gradients_of_rounded_activations_are_near_those_in_f32() {
        for (name, arch, spec) in shapes() {
            let params = Params::new(arch, &spec, false);
            let weights = params.init(3, spec.layers.len());
            let (ids, targets) = tokens(2 * spec.context, spec.vocab);
            let pass = |precision| {
                let tape = Tape::record(&spec, &params, (2, spec.context as usize), training(precision));
                let mut engine = Engine::new(&spec, &params, 2, RouterLosses::default());
                let mut grads = vec![0.0; params.total];
                let input = Input { ids: &ids, targets: &targets, starts: &[], key: (1, 0) };
                let want = Want::Gradient { scale: 1.0, grads: &mut grads };
                (engine.run(&tape, &weights, &input, want), grads)
            };
            let (exact, rounded) = (pass(Precision::F32), pass(Precision::Bf16));
            assert!((exact.0 / rounded.0 - 1.0).abs() < 5e-3, "{name}: {} and {}", exact.0, rounded.0);
            let norm = |g: &mut dyn Iterator<Item = f32>| g.map(|g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let size = norm(&mut exact.1.iter().copied());
            let far = norm(&mut exact.1.iter().zip(&rounded.1).map(|(a, b)| a - b)) / size;
            println!("{name}: {far}");
            assert!(far > 1e-5 && far < 0.02, "{name}: {far} of the gradient");
        }
    }

    #[test]
    fn what_waits_for_the_way_back_takes_half_the_space() {
        let model = ModelConfig { vocab: 65, layers: 12, ..ModelConfig::baby_gpt() };
        let (arch, spec) = model.spec().unwrap();
        let params = Params::new(arch, &spec, false);
        let arena = |precision| Tape::record(&spec, &params, (1, 256), training(precision)).arena;
        let (f32, bf16) = (arena(Precision::F32), arena(Precision::Bf16));
        // the residual stream, two of sixteen widths in each layer, stays whole
        assert!(bf16 * 10 < f32 * 7, "{f32} and {bf16} values");
    }
}
