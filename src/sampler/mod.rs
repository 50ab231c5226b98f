//! Samplers: from one row of logits to one token.
//!
//! ```text
//! logits ─ copy ─ bias ─ penalties ─ top_k ─ top_p ─ min_p ─ temperature ─ + noise ─ argmax ─ token
//!                  └──────── the chain: SAMPLERS, in this order ────────┘
//! ```
//!
//! The default order is that of llama.cpp: penalties see the model's own logits, the cuts see the distribution at
//! temperature 1, and temperature acts last. [`Sampler::with_chain`] takes another order by name.
//!
//! Choosing is argmax(logit + Gumbel noise), which draws exactly from the softmax of the logits ("Gumbel-max"). The
//! noise is a function of (seed, stream, absolute position, token id) and of nothing else ([`noise`]), so the same
//! choice comes out however the token was computed: alone, in a batch, or as a draft that is verified later.
//! Temperature 0 takes the argmax itself; ties go to the lowest id everywhere.
//!
//! Sampling changes nothing in the sampler; only [`Sampler::accept`] does. What it does not know: models, sessions,
//! text. It works on any row of numbers.

mod bias;
mod candidates;
pub mod math;
mod min_p;
pub mod noise;
mod penalties;
mod temperature;
mod top_k;
mod top_p;

#[cfg(test)]
mod tests;

use crate::error::{Error, Result, Status};
pub use bias::Bias;
pub use candidates::{Candidate, Candidates};
pub use penalties::History;

/// What a host can ask of a sampler. The defaults choose greedily and filter nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; 0: the likeliest token, no noise. Finite, ≥ 0.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Keep the likeliest tokens until their probabilities reach this sum; 1: all. Between 0 and 1.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the likeliest; 0: all. Between 0 and 1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in the window; 1: off. Finite, > 0.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token seen in the window; 0: off. Finite.
    pub presence_penalty: f32,
    /// Taken from a token's logit once per occurrence in the window; 0: off. Finite.
    pub frequency_penalty: f32,
    /// How many of the most recent accepted tokens the penalties look at; 0: all of them.
    pub penalty_window: u32,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Checks every field.
    ///
    /// # Errors
    /// `INVALID_ARG` naming the field, what was expected and what was got.
    pub fn check(&self) -> Result<()> {
        SAMPLERS.iter().try_for_each(|filter| (filter.check)(self))
    }
}

/// The parts of a sampler's state that filters read.
#[derive(Clone, Debug)]
pub struct State {
    /// The parameters the sampler was made with.
    pub params: SamplingParams,
    /// Added to logits, by token.
    pub bias: Bias,
    /// Tokens accepted so far.
    pub history: History,
}

/// One filter: its name, its facts, and what it does to the candidates.
pub struct Filter {
    /// Name in the chain's text form.
    pub name: &'static str,
    /// One line for help texts.
    pub about: &'static str,
    /// Refuses parameters this filter cannot work with.
    pub check: fn(&SamplingParams) -> Result<()>,
    /// Changes logits or takes candidates away; keeps the order of ids, and at least one candidate.
    pub apply: fn(&State, &mut Candidates),
}

/// Every filter, in the order of the default chain.
pub static SAMPLERS: &[Filter] =
    &[bias::FILTER, penalties::FILTER, top_k::FILTER, top_p::FILTER, min_p::FILTER, temperature::FILTER];

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: i32,
    /// Natural logarithm of its probability under the softmax of the logits as given: before bias, penalties, cuts
    /// and temperature. It tells what the model thought, whatever the chain made of it.
    pub log_probability: f32,
}

/// Chooses tokens: parameters, the tokens accepted so far, and scratch.
#[derive(Clone)]
pub struct Sampler {
    chain: Vec<&'static Filter>,
    state: State,
    stream: u64,
    /// Forks made so far; the next child's stream follows from it.
    forks: u64,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler with the default chain.
    ///
    /// # Errors
    /// `INVALID_ARG` naming the parameter that is out of range.
    pub fn new(params: &SamplingParams) -> Result<Self> {
        params.check()?;
        Ok(Self {
            chain: SAMPLERS.iter().collect(),
            state: State {
                params: params.clone(),
                bias: Bias::default(),
                history: History::new(params.penalty_window),
            },
            stream: 0,
            forks: 0,
            candidates: Candidates::default(),
        })
    }

    /// A sampler whose chain is given by name, separated by commas: `"penalties,temperature,top_p"`. A filter that
    /// is not named does not act; one that is named twice acts twice. Without `temperature` the temperature is 1, so
    /// that only the parameter 0 still means greedy.
    ///
    /// # Errors
    /// `INVALID_ARG` for a name that is not in [`SAMPLERS`] or a parameter out of range.
    pub fn with_chain(params: &SamplingParams, chain: &str) -> Result<Self> {
        let mut sampler = Self::new(params)?;
        sampler.chain.clear();
        for name in chain.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let filter = SAMPLERS.iter().find(|filter| filter.name == name).ok_or_else(|| {
                let known: Vec<_> = SAMPLERS.iter().map(|filter| filter.name).collect();
                Error::new(
                    Status::INVALID_ARG,
                    format!("sampler chain: expected one of {}, got {name:?}", known.join(", ")),
                )
            })?;
            sampler.chain.push(filter);
        }
        Ok(sampler)
    }

    /// The chain's text form.
    pub fn chain(&self) -> String {
        self.chain.iter().map(|filter| filter.name).collect::<Vec<_>>().join(",")
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.state.params
    }

    /// The stream of noise this sampler draws from; 0 unless forked or set.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Chooses the stream of noise: samplers with equal seeds and streams make equal choices.
    pub fn set_stream(&mut self, stream: u64) {
        self.stream = stream;
    }

    /// Replaces the values added to the logits of the given tokens. −∞ forbids a token; of a token named twice the
    /// values add up.
    ///
    /// # Errors
    /// `INVALID_ARG` for a negative id, NaN or +∞; nothing changes then.
    pub fn set_bias(&mut self, bias: &[(i32, f32)]) -> Result<()> {
        self.state.bias = Bias::new(bias)?;
        Ok(())
    }

    /// Chooses the token at absolute `position` from `logits` (one per token of the vocabulary). Does not accept it:
    /// the same call gives the same answer until [`Sampler::accept`].
    ///
    /// # Errors
    /// `INVALID_ARG` when `logits` is empty or holds NaN or +∞ (detail `token_index`), or the position is beyond
    /// 2³²−1; `DEAD_END` when every token is forbidden (all −∞).
    pub fn sample(&mut self, logits: &[f32], position: u64) -> Result<Choice> {
        let position = u32::try_from(position).map_err(|_| {
            Error::new(Status::INVALID_ARG, format!("sample: position must be below 2^32, got {position}"))
        })?;
        let log_sum = check_logits(logits)?;
        self.candidates.fill(logits);
        for filter in &self.chain {
            (filter.apply)(&self.state, &mut self.candidates);
        }
        let key = noise::Key { seed: self.state.params.seed, stream: self.stream, position };
        let candidates = self.candidates.as_slice();
        let chosen = if self.state.params.temperature == 0.0 {
            candidates::argmax(candidates)
        } else {
            noise::choose(candidates, key)
        };
        let chosen = chosen.filter(|c| c.logit > f32::NEG_INFINITY).ok_or_else(|| {
            Error::new(
                Status::DEAD_END,
                format!("sample: no token is allowed at position {position}: bias and filters left none"),
            )
        })?;
        // The filled row had at most i32::MAX entries, and the id indexes it.
        let log_probability = (f64::from(logits[chosen.id as usize]) - log_sum) as f32;
        Ok(Choice { id: chosen.id as i32, log_probability })
    }

    /// Takes `id` into the history: the only way the sampler's state moves on.
    ///
    /// # Errors
    /// `INVALID_ARG` for a negative id.
    pub fn accept(&mut self, id: i32) -> Result<()> {
        if id < 0 {
            return Err(Error::new(
                Status::INVALID_ARG,
                format!("accept: expected a token id of 0 or more, got {id}"),
            ));
        }
        self.state.history.push(id);
        Ok(())
    }

    /// Takes the prompt into the history, so that penalties see it.
    ///
    /// # Errors
    /// `INVALID_ARG` for a negative id (detail `token_index`); those before it have been taken.
    pub fn accept_prompt(&mut self, ids: &[i32]) -> Result<()> {
        for (index, &id) in ids.iter().enumerate() {
            self.accept(id).map_err(|e| e.with("token_index", index as i64))?;
        }
        Ok(())
    }

    /// Forgets the accepted tokens; parameters, bias, seed and stream stay.
    pub fn reset(&mut self) {
        self.state.history.clear();
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

    /// A copy that makes the same choices as this one would.
    #[must_use]
    pub fn fork_same_stream(&self) -> Self {
        self.clone()
    }
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
    if let Some(index) =
        logits.iter().position(|&x| x.partial_cmp(&f32::INFINITY) != Some(std::cmp::Ordering::Less))
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
