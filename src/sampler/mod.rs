//! Samplers: from one row of logits to one token.
//!
//! ```text
//! logits ─ copy ─ constraint ─ bias ─ penalties ─ dry ─ top_k ─ … ─ temperature ─ mirostat ─ + noise ─ argmax ─ token
//!                              └──────────── the chain: SAMPLERS, in this order ───────────┘
//! ```
//!
//! The default order is that of llama.cpp: penalties see the model's own logits, the cuts see the distribution at
//! temperature 1, and temperature acts late. [`Sampler::with_chain`] takes another order in a text form ([`chain`]).
//!
//! Choosing is argmax(logit + Gumbel noise), which draws exactly from the softmax of the logits ("Gumbel-max"). The
//! noise is a function of (seed, stream, absolute position, token id) and of nothing else ([`noise`]), so the same
//! choice comes out however the token was computed: alone, in a batch, or as a draft that is verified later.
//! Temperature 0 takes the argmax itself; ties go to the lowest id everywhere.
//!
//! Sampling changes nothing that a later choice depends on; only [`Sampler::accept`] does. What it does not know:
//! models, sessions, text. It works on any row of numbers.

mod bias;
mod candidates;
pub mod chain;
mod dry;
pub mod math;
mod min_p;
mod mirostat;
pub mod noise;
mod params;
mod penalties;
pub mod processor;
mod save;
mod temperature;
mod top_k;
mod top_p;
mod typical;
mod xtc;

#[cfg(test)]
mod tests;

use crate::constraint::{self, Constraint};
use crate::error::{Error, Result, Status};
pub use bias::Bias;
use candidates::likeliest;
pub use candidates::{Candidate, Candidates};
pub use chain::{Context, Filter, State};
use llm_format::order;
use llm_kernels::FloatControl;
pub use params::SamplingParams;
pub use penalties::History;
use processor::Processor;
pub use processor::Stage;
use std::sync::Arc;

/// Every filter, in the order of the default chain.
pub static SAMPLERS: &[Filter] = &[
    bias::FILTER,
    penalties::FILTER,
    dry::FILTER,
    top_k::FILTER,
    typical::FILTER,
    top_p::FILTER,
    min_p::FILTER,
    xtc::FILTER,
    temperature::FILTER,
    mirostat::FILTER,
];

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: i32,
    /// Natural logarithm of its probability under the softmax of the logits as given: before bias, penalties, cuts
    /// and temperature. It tells what the model thought, whatever the chain made of it.
    pub log_probability: f32,
}

/// A token that could have been chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// The token.
    pub id: i32,
    /// As [`Choice::log_probability`].
    pub log_probability: f32,
}

/// Chooses tokens: parameters, the tokens accepted so far, and scratch.
#[derive(Clone)]
pub struct Sampler {
    params: SamplingParams,
    chain: Vec<chain::Step>,
    state: State,
    processors: Vec<Processor>,
    constraint: Option<constraint::State>,
    /// The tokens the constraint took since it began.
    constrained: Vec<i32>,
    stream: u64,
    /// Forks made so far; the next child's stream follows from it.
    forks: u64,
    candidates: Candidates,
    /// Scratch of the processors, of the vocabulary's size once there are any.
    row: Vec<f32>,
}

impl Sampler {
    /// A sampler with the default chain.
    ///
    /// # Errors
    /// `INVALID_ARG` naming the parameter that is out of range.
    pub fn new(params: &SamplingParams) -> Result<Self> {
        params.check()?;
        let chain = SAMPLERS.iter().map(|filter| chain::Step::new(filter, params)).collect();
        Ok(Self::of(params.clone(), chain))
    }

    fn of(params: SamplingParams, chain: Vec<chain::Step>) -> Self {
        Self {
            state: State {
                bias: Bias::default(),
                history: History::new(params.penalty_window),
                breakers: Vec::new(),
            },
            params,
            chain,
            processors: Vec::new(),
            constraint: None,
            constrained: Vec::new(),
            stream: 0,
            forks: 0,
            candidates: Candidates::default(),
            row: Vec::new(),
        }
    }

    /// A sampler whose chain is given in its text form ([`chain`]): `"penalties=1.1;top_p=0.9;temperature=0.8"`. A
    /// filter that is not named does not act. Without `temperature` the temperature is 1, so that only the parameter
    /// 0 still means greedy.
    ///
    /// # Errors
    /// `INVALID_ARG` for a name that is not in [`SAMPLERS`], a value that is no number, or one out of range.
    pub fn with_chain(params: &SamplingParams, chain: &str) -> Result<Self> {
        let _float = FloatControl::default_for_now();
        params.check()?;
        let mut params = params.clone();
        let steps = chain::parse(&mut params, chain)?;
        Ok(Self::of(params, steps))
    }

    /// The chain's text form, with all values.
    pub fn chain(&self) -> String {
        chain::text(&self.chain)
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The stream of noise this sampler draws from; 0 unless forked or set.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Chooses the stream of noise: samplers with equal seeds and streams make equal choices.
    pub fn set_stream(&mut self, stream: u64) {
        self.stream = stream;
    }

    /// Chooses another seed; all else stays.
    pub fn set_seed(&mut self, seed: u64) {
        self.params.seed = seed;
    }

    /// Replaces the values added to the logits of the given tokens. −∞ forbids a token; of a token named twice the
    /// values add up.
    ///
    /// # Errors
    /// `INVALID_ARG` for a negative id, NaN or +∞; nothing changes then.
    pub fn set_bias(&mut self, bias: &[(i32, f32)]) -> Result<()> {
        let _float = FloatControl::default_for_now();
        self.state.bias = Bias::new(bias)?;
        Ok(())
    }

    /// Names the tokens over which `dry` follows no repetition, such as line ends.
    pub fn set_breakers(&mut self, ids: &[i32]) {
        self.state.breakers = ids.to_vec();
        order::by_number(&mut self.state.breakers, |&id| id.abs_diff(i32::MIN).into());
    }

    /// Adds the host's own code to the pipeline. `pure` says that its changes depend on position and tokens alone;
    /// without that the sampler is not [`Sampler::is_pure`] and nothing can be drafted for it. It runs under the default
    /// floating-point control.
    pub fn add_processor(&mut self, stage: Stage, pure: bool, function: Arc<processor::Function>) {
        self.processors.push(Processor { stage, pure, function });
    }

    /// Puts the tokens accepted from now on under a constraint; none takes it away.
    pub fn set_constraint(&mut self, constraint: Option<&Constraint>) {
        self.constraint = constraint.map(constraint::State::new);
        self.constrained.clear();
    }

    /// Whether the constraint lets nothing follow but an end; false without one.
    pub fn is_complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(constraint::State::is_complete)
    }

    /// The tokens that the constraint lets follow in any case, in order; none without one.
    ///
    /// # Errors
    /// As [`constraint::State::forced`].
    pub fn forced(&mut self) -> Result<Vec<i32>> {
        self.constraint.as_mut().map_or(Ok(Vec::new()), constraint::State::forced)
    }

    /// Whether a choice depends on the logits and the tokens so far alone.
    pub fn is_pure(&self) -> bool {
        self.processors.iter().all(|processor| processor.pure)
    }

    /// Chooses the token at absolute `position` from `logits` (one per token of the vocabulary). Does not accept it:
    /// the same call gives the same answer until [`Sampler::accept`].
    ///
    /// # Errors
    /// `INVALID_ARG` when `logits` is empty or holds NaN or +∞ (detail `token_index`), or the position is beyond
    /// 2³²−1; `DEAD_END` when every token is forbidden (all −∞, or none that the constraint allows); `BUDGET` where the
    /// constraint's limits are met.
    pub fn sample(&mut self, logits: &[f32], position: u64) -> Result<Choice> {
        let _float = FloatControl::default_for_now();
        let position = place(position)?;
        let log_sum = check_logits(logits)?;
        self.filter(logits, position)?;
        let key = self.key(position);
        let candidates = self.candidates.as_slice();
        let chosen = if self.params.temperature == 0.0 {
            candidates::argmax(candidates)
        } else {
            noise::choose(candidates, key)
        };
        let chosen = chosen.filter(|c| c.logit > f32::NEG_INFINITY).ok_or_else(|| {
            Error::new(
                Status::DEAD_END,
                format!("sample: no token is allowed at position {position}: constraint, bias and filters left none"),
            )
        })?;
        // The filled row had at most i32::MAX entries, and the id indexes it.
        let log_probability = log_probability(logits[chosen.id as usize], log_sum);
        Ok(Choice { id: chosen.id as i32, log_probability })
    }

    /// What the pipeline leaves of a row: the tokens that may still be chosen, in ascending order of id, with the logits
    /// to which the noise is added.
    ///
    /// # Errors
    /// As [`Sampler::sample`], other than `DEAD_END`.
    pub fn apply(&mut self, logits: &[f32], position: u64) -> Result<&[Candidate]> {
        let _float = FloatControl::default_for_now();
        let position = place(position)?;
        check_logits(logits)?;
        self.filter(logits, position)?;
        Ok(self.candidates.as_slice())
    }

    fn key(&self, position: u32) -> noise::Key {
        noise::Key { seed: self.params.seed, stream: self.stream, position }
    }

    fn filter(&mut self, logits: &[f32], position: u32) -> Result<()> {
        let key = self.key(position);
        self.candidates.fill(logits);
        if let Some(constraint) = &mut self.constraint {
            let mask = constraint.mask()?;
            self.candidates
                .retain(|c| mask.get(c.id as usize / 32).is_some_and(|word| word >> (c.id % 32) & 1 == 1));
        }
        if !self.processors.is_empty() {
            self.row.resize(logits.len(), 0.0);
        }
        let penalty = |step: &chain::Step| ["penalties", "dry"].contains(&step.filter.name);
        let penalised = self.chain.iter().rposition(penalty).map_or(0, |index| index + 1);
        self.process(Stage::BeforePenalties, position)?;
        for index in 0..=self.chain.len() {
            if index == penalised {
                self.process(Stage::AfterPenalties, position)?;
            }
            if let Some(step) = self.chain.get_mut(index) {
                step.apply(&self.state, key, &mut self.candidates);
            }
        }
        Ok(())
    }

    fn process(&mut self, stage: Stage, position: u32) -> Result<()> {
        let input = processor::Input { position: u64::from(position), ids: self.state.history.ids() };
        for processor in self.processors.iter().filter(|processor| processor.stage == stage) {
            processor.run(&input, &mut self.candidates, &mut self.row)?;
        }
        Ok(())
    }

    /// Takes `id` into the history and the constraint: the only way the sampler's state moves on.
    ///
    /// # Errors
    /// `INVALID_ARG` for a negative id and for a token that the constraint forbids; nothing changes then. `BUDGET`
    /// where the constraint's limits are met.
    pub fn accept(&mut self, id: i32) -> Result<()> {
        if let Some(constraint) = self.constraint.as_mut().filter(|_| id >= 0) {
            constraint.advance(id)?;
            self.constrained.push(id);
        }
        self.remember(id)
    }

    fn remember(&mut self, id: i32) -> Result<()> {
        if id < 0 {
            return Err(Error::new(
                Status::INVALID_ARG,
                format!("accept: expected a token id of 0 or more, got {id}"),
            ));
        }
        self.state.history.push(id);
        let _float = FloatControl::default_for_now();
        self.chain.iter_mut().for_each(|step| step.accept(id.unsigned_abs()));
        Ok(())
    }

    /// [`Sampler::accept`] for each.
    ///
    /// # Errors
    /// As there (detail `token_index`); those before it have been taken.
    pub fn accept_all(&mut self, ids: &[i32]) -> Result<()> {
        for (index, &id) in ids.iter().enumerate() {
            self.accept(id).map_err(|e| e.with("token_index", index as i64))?;
        }
        Ok(())
    }

    /// Takes the prompt into the history, so that penalties see it. The constraint does not: it begins behind the prompt.
    ///
    /// # Errors
    /// `INVALID_ARG` for a negative id (detail `token_index`); those before it have been taken.
    pub fn accept_prompt(&mut self, ids: &[i32]) -> Result<()> {
        for (index, &id) in ids.iter().enumerate() {
            self.remember(id).map_err(|e| e.with("token_index", index as i64))?;
        }
        Ok(())
    }

    /// Forgets the accepted tokens and what filters learned from them, and puts the constraint back to its beginning;
    /// parameters, bias, seed and stream stay.
    pub fn reset(&mut self) {
        if let Some(constraint) = &mut self.constraint {
            constraint.reset();
        }
        self.constrained.clear();
        self.state.history.clear();
        self.chain.iter_mut().for_each(chain::Step::reset);
    }

    /// A copy that goes its own way: same parameters, bias and history, but a stream of noise of its own.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        self.forks += 1;
        let mut child = self.clone();
        child.stream = noise::child_stream(self.stream, self.forks);
        child.forks = 0;
        child
    }

    /// Makes `copy` choose as this one would from other logits: for guesses. What it was is forgotten, but its buffers
    /// stay.
    pub fn imitate(&self, copy: &mut Option<Self>) {
        let (candidates, row) = copy.take().map(|old| (old.candidates, old.row)).unwrap_or_default();
        *copy = Some(Self {
            params: self.params.clone(),
            chain: self.chain.clone(),
            state: self.state.clone(),
            processors: self.processors.clone(),
            constraint: self.constraint.clone(),
            constrained: self.constrained.clone(),
            stream: self.stream,
            forks: self.forks,
            candidates,
            row,
        });
    }

    /// A copy that makes the same choices as this one would.
    #[must_use]
    pub fn fork_same_stream(&self) -> Self {
        self.clone()
    }
}

/// The `n` likeliest tokens of a row and their log-probabilities under its softmax; the lower id first among equals.
///
/// # Errors
/// `INVALID_ARG` as [`Sampler::sample`].
pub fn top(logits: &[f32], n: usize) -> Result<Vec<Alternative>> {
    let _float = FloatControl::default_for_now();
    let log_sum = check_logits(logits)?;
    let mut all = Candidates::default();
    all.fill(logits);
    let ranked = likeliest(all.scratch(), n);
    let alternative =
        |c: &Candidate| Alternative { id: c.id as i32, log_probability: log_probability(c.logit, log_sum) };
    Ok(ranked.iter().map(alternative).collect())
}

/// A token's log-probability by the row's [`math::log_sum_exp`]; −∞, not NaN, in a row where nothing is possible.
fn log_probability(logit: f32, log_sum: f64) -> f32 {
    if logit == f32::NEG_INFINITY { logit } else { (f64::from(logit) - log_sum) as f32 }
}

/// The position as noise counts it.
fn place(position: u64) -> Result<u32> {
    u32::try_from(position).map_err(|_| {
        Error::new(Status::INVALID_ARG, format!("sample: position must be below 2^32, got {position}"))
    })
}

/// Refuses NaN and +∞ and an empty row; ln Σ exp of the rest (−∞ when all are −∞).
fn check_logits(logits: &[f32]) -> Result<f64> {
    if logits.is_empty() || i32::try_from(logits.len()).is_err() {
        return Err(Error::new(
            Status::INVALID_ARG,
            format!("sample: expected 1 to 2^31-1 logits, got {}", logits.len()),
        ));
    }
    // NaN and +inf are the only values not below +inf.
    let bad = |&x: &f32| x.partial_cmp(&f32::INFINITY) != Some(std::cmp::Ordering::Less);
    if !math::bounded(logits)
        && let Some(index) = logits.iter().position(bad)
    {
        return Err(Error::new(
            Status::INVALID_ARG,
            format!("sample: expected finite logits or -inf, got {} for token {index}", logits[index]),
        )
        .with("token_index", index as i64));
    }
    Ok(math::log_sum_exp(logits))
}

/// The error for a parameter out of range.
fn refuse(field: &str, expected: &str, got: impl std::fmt::Display) -> Error {
    Error::new(Status::INVALID_ARG, format!("sampling parameter {field}: expected {expected}, got {got}"))
}
