//! Where buffers lie: no two that live at the same time overlap.

use std::ops::Range;

use super::{Buffer, Op};

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
            Op::Add { dy, dbranch, .. } => vec![*dy, *dbranch],
            Op::Head { x, logits, dx, .. } => vec![*x, *logits, *dx],
        }
    }
}

/// Gives every buffer a place: first fit by order of birth.
pub(super) fn arrange(ops: &[Op], sizes: &[usize], train: bool) -> (Vec<Range<usize>>, usize) {
    let mut life = vec![None; sizes.len()];
    let mut touch = |b: Buffer, time: usize| {
        let (first, _) = *life[b].get_or_insert((time, time));
        life[b] = Some((first, time));
    };
    for (time, op) in ops.iter().enumerate() {
        op.forward().into_iter().for_each(|b| touch(b, time));
    }
    if train {
        // The head's backward pass happens at its forward time.
        for (back, op) in ops.iter().rev().enumerate() {
            op.backward().into_iter().for_each(|b| touch(b, ops.len() - 1 + back));
        }
    }
    let mut order: Vec<Buffer> = (0..sizes.len()).filter(|b| life[*b].is_some()).collect();
    order.sort_by_key(|b| (life[*b], *b));
    let mut places = vec![0..0; sizes.len()];
    let mut placed: Vec<Buffer> = Vec::new();
    let mut total = 0;
    for b in order {
        let (first, last) = life[b].unwrap_or_default();
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|o| life[**o].is_some_and(|(f, l)| f <= last && first <= l))
            .map(|o| places[*o].clone())
            .collect();
        taken.sort_by_key(|r| r.start);
        let need = sizes[b].next_multiple_of(16);
        let start = taken
            .iter()
            .fold(0, |at, r| if at + need <= r.start { at } else { at.max(r.end.next_multiple_of(16)) });
        places[b] = start..start + sizes[b];
        total = total.max(start + need);
        placed.push(b);
    }
    (places, total)
}

#[cfg(test)]
mod tests {
    use crate::params::Params;
    use crate::tape::Tape;
    use crate::twin::designs;

    #[test]
    fn buffers_that_live_together_never_overlap() {
        for (name, model) in designs() {
            for dropout in [0.0, 0.1] {
                let (arch, spec) = model.spec().unwrap();
                let params = Params::new(arch, &spec, false);
                for train in [true, false] {
                    let tape = Tape::record(&spec, &params, (2, 8), train, dropout);
                    for op in &tape.ops {
                        for used in [op.forward(), if train { op.backward() } else { Vec::new() }] {
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
