//! Where the first value that is no number comes from.

use super::{Engine, Input, Want};
use crate::tape::{Op, Tape};

impl Engine {
    /// The first record of a forward pass over `input` whose result holds a value that is no number, in words; `None` if
    /// there is none.
    pub fn fault(&mut self, tape: &Tape, weights: &[f32], input: &Input) -> Option<String> {
        let values = self.adapter.as_ref().map(|a| (&a.lora.params, &a.values[..]));
        for (params, values) in [Some((&self.params, weights)), values].into_iter().flatten() {
            if let Some(p) = params.list.iter().find(|p| broken(&values[p.range()])) {
                return Some(format!("the weights of {} hold a value that is no number", p.describe()));
            }
        }
        self.turn(tape, input.starts);
        self.at_precision(tape, |engine| engine.first_broken(tape, weights, input))
    }

    /// As the pass itself went: what only rounding to bf16 makes infinite is found, too.
    fn first_broken(&mut self, tape: &Tape, weights: &[f32], input: &Input) -> Option<String> {
        let mut place = "the embedding".to_string();
        for (i, op) in tape.ops.iter().enumerate() {
            if let Some(id) = op.weight() {
                place = self.params.list[id].describe();
            }
            if let Op::Head { .. } = op {
                let loss = self.head(tape, op, weights, input.targets, &mut Want::Loss(&mut || true));
                return (!loss.is_finite())
                    .then(|| "the head is the first whose values are no numbers".into());
            }
            self.make(tape, i, weights, input, false);
            if op.forward().into_iter().any(|b| broken(&self.arena[tape.place(b)])) {
                let what = op.name();
                return Some(format!("{what} at {place} is the first whose values are no numbers"));
            }
        }
        None
    }
}

fn broken(values: &[f32]) -> bool {
    values.iter().any(|v| !v.is_finite())
}

#[cfg(test)]
mod tests {
    use llm::model::arch::{LayerSlot, Slot};

    use crate::config::{Precision, Recompute};
    use crate::design::ModelConfig;
    use crate::engine::{Engine, Input, RouterLosses, Want};
    use crate::params::Params;
    use crate::tape::{How, Tape};
    use crate::twin::tokens;

    #[test]
    fn what_only_bf16_cannot_hold_is_found_at_bf16() {
        let model = ModelConfig { vocab: 19, ..ModelConfig::tiny() }.gpt2_design();
        let (arch, spec) = model.spec().unwrap();
        let params = Params::new(arch, &spec, false);
        // what reads the norm multiplies with zeros: numbers, as long as the norm's are
        let mut weights = vec![0.0; params.total];
        weights[params.place(Slot::Layer(1, LayerSlot::FfnNormBias))].fill(f32::MAX);
        let (ids, targets) = tokens(6, spec.vocab);
        let pass = |precision| {
            let how = How { train: Some(Recompute::None), precision, ..How::default() };
            let tape = Tape::record(&spec, &params, (1, 6), how);
            let mut engine = Engine::new(&spec, &params, 1, RouterLosses::default());
            let input = Input { ids: &ids, targets: &targets, starts: &[], key: (0, 0) };
            let loss = engine.run(&tape, &weights, &input, Want::Loss(&mut || true));
            (loss.is_finite(), engine.fault(&tape, &weights, &input))
        };
        assert_eq!(pass(Precision::F32), (true, None));
        let first = "the norm at 1.FfnNorm is the first whose values are no numbers";
        assert_eq!(pass(Precision::Bf16), (false, Some(first.into())));
    }
}
