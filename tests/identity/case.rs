//! What a case is: everything about it follows from its number, so that a failure is run again by naming it.

use llm::kv::KvType;

/// A small generator, the same numbers every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d);
        dice.below(2); // neighbouring seeds part here
        dice
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub fn ids(&mut self, n: usize, vocab: usize) -> Vec<i32> {
        (0..n).map(|_| self.below(vocab) as i32).collect()
    }
}

/// How the session under test comes to its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Fresh,
    Forked,
    PrefixHit,
    Truncated,
    Restored,
    Evicted,
    Swapped,
}

/// Who guesses while the session under test generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guesses {
    Off,
    /// What followed the last time.
    Lookup,
    /// The right tokens, seven of ten times.
    Replay,
    /// The same checkpoint in fewer bits.
    Draft,
    /// The head in the model's own file.
    Own,
}

pub const WAYS: [Way; 7] =
    [Way::Fresh, Way::Forked, Way::PrefixHit, Way::Truncated, Way::Restored, Way::Evicted, Way::Swapped];
pub const KV: [KvType; 4] = [KvType::I8F16, KvType::F16, KvType::I8, KvType::F32];

#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Compute threads: 1 or 2.
    pub threads: usize,
    /// Sessions that run together, the one under test among them.
    pub batch: usize,
    /// Tokens of the prompt in one step; the last of the choices is more than any prompt has.
    pub chunk: usize,
    pub page: usize,
    /// Index into [`KV`].
    pub kv: usize,
    /// Which of the subject's runs it must equal.
    pub plan: usize,
    /// Which of the subject's sets of adapters the session has.
    pub adapters: usize,
    pub way: Way,
    pub guesses: Guesses,
    /// Tokens held when that happens.
    pub at: usize,
}

impl Case {
    pub fn draw(dice: &mut Dice, plans: &[usize], guesses: &[Guesses]) -> Self {
        let plan = dice.below(plans.len());
        Case {
            threads: dice.of(&[1, 2]),
            batch: dice.of(&[1, 1, 1, 2, 2, 2, 7, 16]),
            chunk: dice.of(&[1, 16, 64, 512]),
            page: dice.of(&[16, 32, 64]),
            kv: dice.below(KV.len()),
            plan,
            adapters: dice.of(&[0, 0, 1]),
            way: dice.of(&WAYS),
            guesses: dice.of(guesses),
            at: 1 + dice.below(plans[plan] - 1),
        }
    }
}
