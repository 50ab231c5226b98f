//! Where the first value that is no number comes from.

use super::{Engine, Input, Want};
use crate::tape::{Op, Tape};

impl Engine {
    /// The first record of a forward pass over `input` whose result holds a value that is no number, in words; `None` if
    /// there is none.
    pub fn fault(&mut self, tape: &Tape, weights: &[f32], input: &Input) -> Option<String> {
        let broken = |values: &[f32]| values.iter().any(|v| !v.is_finite());
        let values = self.adapter.as_ref().map(|a| (&a.lora.params, &a.values[..]));
        for (params, values) in [Some((&self.params, weights)), values].into_iter().flatten() {
            if let Some(p) = params.list.iter().find(|p| broken(&values[p.range()])) {
                return Some(format!("the weights of {} hold a value that is no number", p.describe()));
            }
        }
        self.turn(tape, input.starts);
        let mut place = "the embedding".to_string();
        for op in &tape.ops {
            if let Some(id) = op.weight() {
                place = self.params.list[id].describe();
            }
            if let Op::Head { .. } = op {
                let loss = self.head(tape, op, weights, input.targets, &mut Want::Loss(&mut || true));
                return (!loss.is_finite())
                    .then(|| "the head is the first whose values are no numbers".into());
            }
            self.forward(tape, op, weights, input);
            if op.forward().into_iter().any(|b| broken(&self.arena[tape.place(b)])) {
                let what = op.name();
                return Some(format!("{what} at {place} is the first whose values are no numbers"));
            }
        }
        None
    }
}
