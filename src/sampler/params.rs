//! What a host can ask of a sampler, one field a number.

use super::{SAMPLERS, refuse};
use crate::error::Result;

/// Parameters of every filter. The defaults choose greedily and filter nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; 0: the likeliest token, no noise. Finite, ≥ 0.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Keep the most typical tokens until their probabilities reach this sum; 1: all. Between 0 and 1.
    pub typical_p: f32,
    /// Keep the likeliest tokens until their probabilities reach this sum; 1: all. Between 0 and 1.
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the likeliest; 0: all. Between 0 and 1.
    pub min_p: f32,
    /// How often the top choices are excluded; 0: never. Between 0 and 1.
    pub xtc_probability: f32,
    /// Tokens at least this likely are top choices; all of them but the least likely are excluded. Between 0 and 1.
    pub xtc_threshold: f32,
    /// Divides positive and multiplies negative logits of tokens seen in the window; 1: off. Finite, > 0.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token seen in the window; 0: off. Finite.
    pub presence_penalty: f32,
    /// Taken from a token's logit once per occurrence in the window; 0: off. Finite.
    pub frequency_penalty: f32,
    /// How many of the most recent accepted tokens the penalties look at; 0: all of them.
    pub penalty_window: u32,
    /// Taken from the logit of a token that would lengthen a repeated sequence, times a power of `dry_base`; 0: off.
    /// Finite, ≥ 0.
    pub dry_multiplier: f32,
    /// How fast that grows with the length of the repetition. Finite, ≥ 1.
    pub dry_base: f32,
    /// Repetitions of fewer tokens than this cost nothing.
    pub dry_allowed_length: u32,
    /// How many of the most recent accepted tokens are searched for repetitions; 0: all of them.
    pub dry_window: u32,
    /// The surprise, in bits, that mirostat steers towards; 0: off. Finite, ≥ 0.
    pub mirostat_tau: f32,
    /// How fast mirostat steers. Finite, ≥ 0.
    pub mirostat_eta: f32,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 64,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_window: 0,
            mirostat_tau: 0.0,
            mirostat_eta: 0.1,
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

/// Refuses what is not between 0 and 1.
pub(super) fn share(field: &str, value: f32) -> Result<()> {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(refuse(field, "a number from 0 to 1", value)) }
}

/// Refuses what is not finite or below `least`.
pub(super) fn at_least(field: &str, least: f32, value: f32) -> Result<()> {
    if value.is_finite() && value >= least {
        Ok(())
    } else {
        Err(refuse(field, &format!("a finite number of {least} or more"), value))
    }
}
