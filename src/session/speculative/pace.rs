//! How many tokens to guess: as many as bring the most tokens by time, and none for a while where that is fewer than
//! without.
//!
//! With a chance `a` of each guess to come true, k guesses bring 1 + a + … + aᵏ tokens and cost k guesses and a step of
//! k + 1 tokens. Costs are measured as they come, for each number of tokens apart, since kernels step rather than rise;
//! between and behind measured numbers they are taken as a line. Two things end guessing: the best number brings less than
//! `min_gain`, or guesses have cost more time than a small share of all. It comes back by trying, ever more rarely.

use std::time::Duration;

use super::{Lengths, MOST_DRAFT};

/// Weight of the newest measurement.
const NEW: f64 = 0.2;
/// How fast earlier guesses are forgotten, by guess.
const FADE: f64 = 0.97;
/// What is known of a proposer before its first guess: so many guesses, with this share of true ones.
const PRIOR: (f64, f64) = (3.0, 0.7);
/// Tokens without guesses after they did not pay: the first time, and at most, doubled each time.
const PAUSES: (u32, u32) = (32, 1024);
/// The share of all time that guesses may lose, and plain steps beside.
const LOSS: (f64, f64) = (0.01, 1.5);
/// A step of more tokens than any before it also makes room for them. What it takes beyond so many times what was
/// expected is no price of guessing.
const FIRST: f64 = 2.0;
/// Steps with guesses until a plain one measures again what they have to beat.
const MEASURE: u32 = 64;

/// Measures and decides. All times in seconds.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    lengths: Lengths,
    /// Of a step of so many tokens; 0 where never measured.
    steps: [f64; MOST_DRAFT + 2],
    /// Of one guess.
    guess: f64,
    /// Guesses checked, and true ones among them, fading.
    checked: f64,
    came_true: f64,
    /// Time of all steps, and what guesses saved of it.
    total: f64,
    saved: f64,
    /// The most tokens of a step so far.
    widest: usize,
    /// The longest guess that was measured: the next is twice as long at most, so that its step shows what it costs.
    longest: usize,
    /// Steps with guesses since the last plain one.
    unmeasured: u32,
    /// Plain steps to make before guessing again, and how many the next time.
    pause: u32,
    next_pause: u32,
    switched_off: u64,
}

impl Pace {
    pub(super) fn new(lengths: &Lengths) -> Self {
        Self {
            lengths: lengths.clone(),
            steps: [0.0; MOST_DRAFT + 2],
            guess: 0.0,
            checked: PRIOR.0,
            came_true: PRIOR.0 * PRIOR.1,
            total: 0.0,
            saved: 0.0,
            widest: 1,
            longest: 0,
            unmeasured: 0,
            pause: 0,
            next_pause: PAUSES.0,
            switched_off: 0,
        }
    }

    /// Times that guessing was given up.
    pub(super) fn switched_off(&self) -> u64 {
        self.switched_off
    }

    /// What a step of one token takes; `None` before the first.
    pub(super) fn plain_step(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.steps[1]).ok().filter(|d| !d.is_zero())
    }

    /// How many tokens to guess now.
    pub(super) fn length(&mut self) -> usize {
        if !self.lengths.adaptive {
            return self.lengths.most;
        }
        let lost = -self.saved > LOSS.0 * self.total + LOSS.1 * self.steps[1];
        if self.steps[1] == 0.0 || self.unmeasured >= MEASURE || self.pause > 0 || lost {
            return 0;
        }
        self.best().0
    }

    /// The best number of guesses, and tokens by time with it over those without.
    fn best(&self) -> (usize, f64) {
        let chance = self.came_true / self.checked;
        let gain = |k: usize| {
            let tokens: f64 = (0..=k).map(|i| chance.powi(i as i32)).sum();
            tokens * self.steps[1] / (self.step(k + 1) + k as f64 * self.guess)
        };
        let most = self.lengths.most.min((2 * self.longest).max(self.lengths.least));
        let lengths = self.lengths.least..=most;
        lengths.map(|k| (k, gain(k))).fold((0, 0.0), |best, next| if next.1 > best.1 { next } else { best })
    }

    /// What a step of `tokens` tokens takes, as far as can be told.
    fn step(&self, tokens: usize) -> f64 {
        // A constraint may let more tokens follow than anybody guesses; their steps are not measured.
        let measured = |n: &usize| self.steps.get(*n).is_some_and(|&step| step > 0.0);
        if measured(&tokens) {
            return self.steps[tokens];
        }
        let below = (1..tokens).rev().find(measured).unwrap_or(1);
        let rise = |a: usize, b: usize| ((self.steps[b] - self.steps[a]) / (b - a) as f64).max(0.0);
        let slope = match (tokens + 1..self.steps.len()).find(measured) {
            Some(above) => rise(below, above),
            None if below > 1 => rise(1, below),
            None => 0.04 * self.steps[1],
        };
        self.steps[below] + slope * tokens.saturating_sub(below) as f64
    }

    /// A plain step took so long.
    pub(super) fn plain(&mut self, took: Duration) {
        self.measure(1, took);
        self.total += took.as_secs_f64();
        self.unmeasured = 0;
        self.pause = self.pause.saturating_sub(1);
    }

    /// The proposer had nothing to say.
    pub(super) fn nothing(&mut self, took: Duration) {
        self.saved -= took.as_secs_f64();
    }

    /// Proposing or verifying failed.
    pub(super) fn failed(&mut self) {
        self.switch_off();
    }

    /// A step with guesses: of `drafted` the first `accepted` came true. `ran`: its tokens and time.
    pub(super) fn verified(
        &mut self,
        drafted: usize,
        accepted: usize,
        bonus: bool,
        drafting: Duration,
        ran: (usize, Duration),
    ) {
        let expected = Duration::from_secs_f64(FIRST * self.step(ran.0));
        let ran = if ran.0 > self.widest && !expected.is_zero() {
            (ran.0, ran.1.min(expected))
        } else {
            self.measure(ran.0, ran.1);
            self.longest = self.longest.max(drafted);
            ran
        };
        self.widest = self.widest.max(ran.0);
        if drafted > 0 {
            let each = drafting.as_secs_f64() / drafted as f64;
            self.guess = if self.guess == 0.0 { each } else { self.guess + NEW * (each - self.guess) };
        }
        // Guesses behind the first false one tell nothing.
        for i in 0..drafted.min(accepted + 1) {
            self.checked = self.checked * FADE + 1.0;
            self.came_true = self.came_true * FADE + f64::from(u8::from(i < accepted));
        }
        let took = (drafting + ran.1).as_secs_f64();
        let plain = if self.steps[1] > 0.0 { self.steps[1] } else { took };
        self.total += took;
        self.saved += (accepted + usize::from(bonus)) as f64 * plain - took;
        // Savings of long ago do not pay for losses of today.
        self.saved = self.saved.min(8.0 * plain);
        self.unmeasured += 1;
        if self.lengths.adaptive && self.steps[1] > 0.0 {
            if self.best().1 < self.lengths.min_gain {
                self.switch_off();
            } else {
                self.next_pause = PAUSES.0;
            }
        }
    }

    fn switch_off(&mut self) {
        self.switched_off += 1;
        self.pause = self.next_pause;
        self.next_pause = (2 * self.next_pause).min(PAUSES.1);
        // Known again after a few guesses.
        let chance = self.came_true / self.checked;
        (self.checked, self.came_true) = (PRIOR.0, PRIOR.0 * chance);
    }

    fn measure(&mut self, tokens: usize, took: Duration) {
        let Some(step) = self.steps.get_mut(tokens) else { return };
        let took = took.as_secs_f64();
        // One interrupted step is no measure of the others.
        *step = if *step == 0.0 { took } else { *step + NEW * (took.min(3.0 * *step) - *step) };
    }
}
