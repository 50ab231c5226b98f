//! Guesses from a list: for tests and benches that need a known share of true ones at a known cost.

use std::time::{Duration, Instant};

use super::{Place, Proposer};
use crate::error::Result;
use crate::sampler::noise;

/// Proposes the tokens it was given, some of them spoiled.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Where the first token of the list stands in the sequence.
    start: usize,
    tokens: Vec<i32>,
    /// Chance of each guess to be left as it is.
    acceptance: f64,
    /// Time each guess shall take.
    cost: Duration,
    seed: u64,
}

impl Replay {
    /// Tokens that stand in the sequence from `start` on, each guessed right with a chance of `acceptance`, which
    /// depends on its position and `seed` alone. A guess keeps a processor busy for `cost`.
    pub fn new(start: usize, tokens: Vec<i32>, acceptance: f64, cost: Duration, seed: u64) -> Self {
        Self { start, tokens, acceptance, cost, seed }
    }
}

impl Proposer for Replay {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn propose(&mut self, at: &Place<'_>, most: usize, out: &mut Vec<i32>) -> Result<()> {
        let clock = Instant::now();
        let from = at.position().saturating_sub(self.start).min(self.tokens.len());
        let left = &self.tokens[from..];
        for (i, &id) in left.iter().take(most).enumerate() {
            let position = (at.position() + i) as u32;
            let chance = f64::from(noise::bits(noise::Key { seed: self.seed, stream: 0, position }, 0))
                / f64::from(1u32 << 23);
            out.push(if chance < self.acceptance { id } else { id ^ 1 });
        }
        while clock.elapsed() < self.cost * left.len().min(most) as u32 {
            std::hint::spin_loop();
        }
        Ok(())
    }
}
