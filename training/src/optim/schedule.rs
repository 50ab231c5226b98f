//! Learning rates over the steps of a run: linear warm-up, then a shape.

use crate::config::{OptimConfig, Schedule};

/// The learning rate of the update that ends step `step` (from 0) of `steps`.
pub(crate) fn rate(o: &OptimConfig, steps: u64, step: u64) -> f32 {
    if step < o.warmup {
        return o.rate * (step + 1) as f32 / o.warmup as f32;
    }
    // 0 at the first step after the warm-up, 1 at the last step
    let span = steps.saturating_sub(o.warmup + 1).max(1);
    let part = ((step - o.warmup) as f64 / span as f64).min(1.0);
    let left = match o.schedule {
        Schedule::Constant => return o.rate,
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * part).cos()),
        Schedule::Linear => 1.0 - part,
        Schedule::Polynomial => (1.0 - part).powf(f64::from(o.power)),
        // warm-up, stable, decay: the rate falls over the last share of the run
        Schedule::Wsd => ((1.0 - part) / f64::from(o.decay_share)).min(1.0),
    };
    o.min_rate + (o.rate - o.min_rate) * left as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule) -> Vec<f32> {
        let o = OptimConfig {
            rate: 1.0,
            min_rate: 0.1,
            warmup: 4,
            schedule,
            power: 2.0,
            decay_share: 0.25,
            ..OptimConfig::default()
        };
        (0..105).map(|step| rate(&o, 105, step)).collect()
    }

    #[test]
    fn every_schedule_warms_up_and_ends_where_it_should() {
        for schedule in
            [Schedule::Cosine, Schedule::Linear, Schedule::Polynomial, Schedule::Wsd, Schedule::Constant]
        {
            let r = rates(schedule);
            assert_eq!(r[..4], [0.25, 0.5, 0.75, 1.0], "{schedule:?}");
            assert_eq!(r[4], 1.0, "{schedule:?}");
            let last = if schedule == Schedule::Constant { 1.0 } else { 0.1 };
            assert!((r[104] - last).abs() < 1e-6, "{schedule:?} ends at {}", r[104]);
            assert!(r[4..].windows(2).all(|w| w[1] <= w[0]), "{schedule:?} rises again");
        }
    }

    #[test]
    fn the_shortest_runs_and_those_that_only_warm_up_have_a_rate_for_every_step() {
        let all =
            [Schedule::Cosine, Schedule::Linear, Schedule::Polynomial, Schedule::Wsd, Schedule::Constant];
        for schedule in all {
            let at = |warmup, steps, step| {
                let o = OptimConfig { rate: 1.0, min_rate: 0.1, warmup, schedule, ..OptimConfig::default() };
                rate(&o, steps, step)
            };
            // without a warm-up the first step has the whole rate, also where it is the last
            assert_eq!([at(0, 1, 0), at(0, 7, 0)], [1.0, 1.0], "{schedule:?}");
            let last = if schedule == Schedule::Constant { 1.0 } else { 0.1 };
            for (warmup, steps, step) in [(0, 2, 1), (1, 3, 2), (0, 7, 6), (0, 7, 100)] {
                let got = at(warmup, steps, step);
                assert!((got - last).abs() < 1e-6, "{schedule:?}, step {step} of {steps}: {got}");
            }
            // a warm-up as long as the run, and longer
            assert_eq!([at(1, 1, 0), at(4, 4, 3), at(100, 4, 3)], [1.0, 1.0, 0.04], "{schedule:?}");
            assert_eq!(at(u64::MAX, 4, 3), 4.0 / u64::MAX as f32);
        }
    }

    #[test]
    fn half_way_each_has_its_own_rate() {
        let at = |schedule| rates(schedule)[54];
        assert!((at(Schedule::Cosine) - 0.55).abs() < 1e-6);
        assert!((at(Schedule::Linear) - 0.55).abs() < 1e-6);
        assert!((at(Schedule::Polynomial) - (0.1 + 0.9 * 0.25)).abs() < 1e-6);
        assert_eq!((at(Schedule::Wsd), rates(Schedule::Wsd)[79]), (1.0, 1.0));
        assert!(rates(Schedule::Wsd)[80] < 1.0);
    }
}
