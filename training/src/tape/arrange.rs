//! Where buffers lie: no two that live at the same time overlap.

use std::ops::Range;

use super::{Buffer, Op, Settled, Step};

impl Op {
    /// The buffers that the forward pass reads or writes.
    pub(crate) fn forward(&self) -> Vec<Buffer> {
        match self {
            Op::Embed { y, .. } => vec![*y],
            Op::Norm { x, y, stats, .. } => vec![*x, *y, *stats],
            Op::SliceNorm { x, y, parts, .. } => {
                [*x, *y].into_iter().chain(parts.iter().map(|p| p.2)).collect()
            }
            Op::Linear { x, residual, y, .. } => {
                [Some(*x), *residual, Some(*y)].into_iter().flatten().collect()
            }
            Op::Rope { x, .. } | Op::Dropout { x, .. } => vec![*x],
            Op::Attention { qkv, y, lse, .. } => vec![*qkv, *y, *lse],
            Op::Expand { q, c, qkv, .. } => vec![*q, *c, *qkv],
            Op::Activate { x, y, .. } | Op::Gated { x, y, .. } => vec![*x, *y],
            Op::Moe(m) => m.forward(),
            Op::Switch { x, z, y, .. } => vec![*x, *z, *y],
            Op::Add { x, branch, y, .. } => vec![*x, *branch, *y],
            Op::Head { x, logits, .. } => vec![*x, *logits],
        }
    }

    /// The buffers that the backward pass reads or writes.
    pub(super) fn backward(&self) -> Vec<Buffer> {
        match self {
            Op::Embed { dy, .. } => vec![*dy],
            Op::Norm { x, stats, dx, dy, .. } => vec![*x, *stats, *dx, *dy],
            Op::SliceNorm { x, parts, dx, dy, .. } => {
                [*x, *dx, *dy].into_iter().chain(parts.iter().map(|p| p.2)).collect()
            }
            Op::Linear { x, dx, dy, .. } => vec![*x, *dx, *dy],
            Op::Rope { dx, .. } | Op::Dropout { dx, .. } => vec![*dx],
            Op::Attention { qkv, y, lse, dqkv, dy, .. } => vec![*qkv, *y, *lse, *dqkv, *dy],
            Op::Expand { c, dq, dc, dqkv, .. } => vec![*c, *dq, *dc, *dqkv],
            Op::Activate { x, dy, .. } => vec![*x, *dy],
            Op::Gated { x, dx, dy, .. } => vec![*x, *dx, *dy],
            Op::Moe(m) => m.backward(),
            Op::Switch { x, z, dx, dz, dy, .. } => vec![*x, *z, *dx, *dz, *dy],
            Op::Add { dy, dbranch, .. } => vec![*dy, *dbranch],
            Op::Head { x, logits, dx, .. } => vec![*x, *logits, *dx],
        }
    }
}

/// When a buffer's values are needed: from a writing to the last reading of what it wrote, once and, where it is
/// computed again or widened, once more.
type Life = Vec<(usize, usize)>;

/// Gives every buffer a place, and returns the length of it all: first fit, by order of birth or those that live longest
/// first, whichever takes less.
pub(super) fn arrange(
    ops: &[Op],
    settled: &[Vec<Settled>],
    back: &[Step],
    sizes: &[usize],
) -> (Vec<Range<usize>>, usize) {
    let mut lives: Vec<Life> = vec![Vec::new(); sizes.len()];
    let mut touch = |b: Buffer, time: usize, anew: bool| match lives[b].last_mut() {
        Some((_, last)) if !anew => *last = time,
        _ => lives[b].push((time, time)),
    };
    for (time, op) in ops.iter().enumerate() {
        op.forward().into_iter().for_each(|b| touch(b, time, false));
        let halves = settled.get(time).into_iter().flatten().filter_map(|s| s.halves);
        halves.for_each(|b| touch(b, time, false));
    }
    for (i, step) in back.iter().enumerate() {
        // The head's backward pass happens at its forward time.
        let time = ops.len() - 1 + i;
        match step {
            Step::Back(op) => ops[*op].backward().into_iter().for_each(|b| touch(b, time, false)),
            Step::Again(op) => {
                let anew = ops[*op].made();
                ops[*op].forward().into_iter().for_each(|b| touch(b, time, anew.contains(&b)));
            }
            Step::Widen { halves, to } => {
                touch(*halves, time, false);
                touch(*to, time, true);
            }
        }
    }
    let mut order: Vec<Buffer> = (0..sizes.len()).filter(|b| !lives[*b].is_empty()).collect();
    order.sort_by_key(|b| (lives[*b][0], *b));
    let by_birth = place(&order, &lives, sizes);
    let length = |b: &Buffer| lives[*b].iter().map(|(first, last)| last - first).sum::<usize>();
    order.sort_by_key(|b| (std::cmp::Reverse(length(b)), *b));
    let by_length = place(&order, &lives, sizes);
    if by_length.1 < by_birth.1 { by_length } else { by_birth }
}

/// First fit in this order.
fn place(order: &[Buffer], lives: &[Life], sizes: &[usize]) -> (Vec<Range<usize>>, usize) {
    let mut places = vec![0..0; sizes.len()];
    let mut total = 0;
    for (i, b) in order.iter().copied().enumerate() {
        let meets = |o: Buffer| {
            lives[b].iter().any(|(first, last)| lives[o].iter().any(|(f, l)| f <= last && first <= l))
        };
        let mut taken: Vec<Range<usize>> =
            order[..i].iter().filter(|o| meets(**o)).map(|o| places[*o].clone()).collect();
        taken.sort_by_key(|r| r.start);
        let need = sizes[b].next_multiple_of(16);
        // the end of what is taken below, as far as that is without a gap
        let mut start = 0;
        for r in taken {
            if start + need <= r.start {
                break;
            }
            start = start.max(r.end.next_multiple_of(16));
        }
        places[b] = start..start + sizes[b];
        total = total.max(start + need);
    }
    (places, total)
}

#[cfg(test)]
mod tests {
    use crate::config::{Precision, Recompute};
    use crate::params::Params;
    use crate::tape::{How, Tape};
    use crate::twin::shapes;

    #[test]
    fn buffers_that_live_together_never_overlap() {
        for (name, arch, spec) in shapes() {
            for dropout in [0.0, 0.1] {
                let params = Params::new(arch, &spec, false);
                let levels = [Recompute::None, Recompute::Part, Recompute::Block].map(Some);
                let all = levels.into_iter().chain([None]);
                for (train, precision) in all.flat_map(|l| [(l, Precision::F32), (l, Precision::Bf16)]) {
                    let tape = Tape::record(&spec, &params, (2, 8), How { train, dropout, precision });
                    for op in &tape.ops {
                        for used in [op.forward(), if train.is_some() { op.backward() } else { Vec::new() }] {
                            for (i, a) in used.iter().enumerate() {
                                for b in &used[..i] {
                                    let (a, b) = (tape.place(*a), tape.place(*b));
                                    assert!(
                                        a.end <= b.start || b.end <= a.start,
                                        "{name}: {op:?}: {a:?} {b:?}"
                                    );
                                    assert!(a.end <= tape.arena && b.end <= tape.arena);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
