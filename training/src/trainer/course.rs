//! Whether a run still goes where it went: one step far above the others is a spike, many in a row are its end.

use std::collections::VecDeque;

use llm::error::{Error, Status};

use super::Trainer;
use crate::params::Param;

/// Steps whose median is the usual.
const USUAL: usize = 256;

/// What losses and gradient norms usually are, and for how many steps in a row they have been far above that.
#[derive(Default)]
pub(super) struct Course {
    /// Loss and gradient norm of the last steps that were not far above the usual.
    usual: VecDeque<(f64, f64)>,
    /// Steps in a row, up to the last one, that were.
    pub off: u64,
}

impl Course {
    /// Takes a step's loss and gradient norm. `uniform`: the loss where every token is as likely as any other.
    pub fn take(&mut self, loss: f64, norm: f64, uniform: f64) {
        if self.is_far(loss, norm, uniform) {
            self.off += 1;
            return;
        }
        self.off = 0;
        if self.usual.len() == USUAL {
            self.usual.pop_front();
        }
        self.usual.push_back((loss, norm));
    }

    /// The medians of loss and gradient norm; `None` before the first step.
    pub fn usual(&self) -> Option<(f64, f64)> {
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = self.usual.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some((median(|step| step.0)?, median(|step| step.1)?))
    }

    /// A loss half as high again as usual and above that of guessing; or, where the loss does not fall, a gradient that
    /// is a hundred times as long as usual, and as 1, to which it is often cut. A warm-up or a new text brings less.
    fn is_far(&self, loss: f64, norm: f64, uniform: f64) -> bool {
        let Some((usual_loss, usual_norm)) = self.usual() else { return false };
        let worse = loss > uniform + 1.0 && loss > 1.5 * usual_loss;
        worse || (loss > usual_loss && norm > 100.0 * usual_norm.max(1.0))
    }
}

impl Trainer {
    /// The loss where every token is as likely as any other.
    pub(super) fn uniform(&self) -> f64 {
        f64::from(self.blueprint.spec.vocab).ln()
    }

    /// Why a run ends that has been far above the usual for long, at a step of this loss and gradient norm.
    pub(super) fn lost(&self, loss: f64, norm: f64) -> Error {
        let trained = self.engine.adapter.as_ref().map_or(&self.params, |a| &a.lora.params);
        let squares = |p: &Param| self.grads[p.range()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
        let sizes = trained.list.iter().filter(|p| p.trained).map(|p| (p.describe(), squares(p).sqrt()));
        let (name, largest) = sizes.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
        let (usual_loss, usual_norm) = self.course.usual().unwrap_or_default();
        let (step, uniform, off) = (self.step + 1, self.uniform(), self.course.off);
        let message = format!(
            "step {step}: loss {loss:.4}, usually {usual_loss:.4} and {uniform:.4} by guessing; gradient norm \
             {norm:.3e}, usually {usual_norm:.3e}: far above that for {off} steps in a row; the largest gradient is \
             that of {name}, {largest:.3e}; lower optim.rate, or let it run with divergence=0"
        );
        Error::new(Status::BAD_STATE, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most steps in a row that were far above the usual, of steps with these losses and gradient norms, with the
    /// vocabulary of GPT-2.
    fn longest(steps: impl IntoIterator<Item = (f64, f64)>) -> u64 {
        let (mut course, mut longest) = (Course::default(), 0);
        for (loss, norm) in steps {
            course.take(loss, norm, 50_257f64.ln());
            longest = course.off.max(longest);
        }
        longest
    }

    /// -1 to 1, like noise.
    fn noise(i: u32) -> f64 {
        f64::from(i * 7919 % 101) / 50.0 - 1.0
    }

    /// Step `i` of a run that learns.
    fn learning(i: u32) -> (f64, f64) {
        let left = (-f64::from(i) / 200.0).exp();
        (2.5 + 8.3 * left + 0.4 * noise(i), 0.5 + 4.0 * left + 0.3 * noise(i + 1))
    }

    #[test]
    fn what_happens_to_every_run_is_not_far_above_the_usual() {
        assert_eq!(longest((0..2000).map(learning)), 0);
        // spikes are as long as they are, and forgotten
        let spikes = |i: u32| if i % 97 > 90 { (30.0 + noise(i), 5e4) } else { learning(i) };
        assert_eq!(longest((0..2000).map(spikes)), 6);
        // a warm-up that is too fast at first
        let rising = (0..40).map(|i| (10.8 + 0.05 * f64::from(i), 3.0));
        assert_eq!(longest(rising.chain((0..500).map(learning))), 0);
        // a checkpoint that does not fit its text, also where the first step happens to be a good one
        let badly = |i: u32| (4.0 + 12.0 * (-f64::from(i) / 100.0).exp() + noise(i), 20.0 + 5.0 * noise(i));
        assert_eq!(longest((0..1000).map(badly)), 0);
        assert_eq!(longest([(12.0, 1.0)].into_iter().chain((0..1000).map(badly))), 0);
        // a text that is known by heart makes room for another
        let known = (0..400).map(|i| (0.01 + 0.001 * noise(i), 1e-3));
        assert_eq!(longest(known.chain((0..400).map(|i| (9.0 + noise(i), 20.0)))), 0);
    }

    #[test]
    fn a_loss_or_a_gradient_that_stays_far_above_the_usual_is_seen_at_every_step() {
        for learned in [1, 20, 1000] {
            // not at once above the loss of guessing
            let rise = |i: u32| 4.0 + 0.5 * f64::from(i);
            let lost = (0..300).map(|i| (rise(i).min(25.0) + noise(i), 10.0));
            let far = longest((0..learned).map(learning).chain(lost));
            assert!((250..300).contains(&far), "{learned} steps before: {far}");
        }
        let growing = (0..200).map(|i| (4.0 + 0.01 * f64::from(i), 1.5f64.powi(i)));
        let far = longest((0..1000).map(learning).chain(growing));
        assert!((180..200).contains(&far), "{far}");
        // where the loss falls meanwhile nothing is wrong
        let falling = (0..200).map(|i| (2.0 - 0.001 * f64::from(i), 1.5f64.powi(i)));
        assert_eq!(longest((0..1000).map(learning).chain(falling)), 0);
    }
}
