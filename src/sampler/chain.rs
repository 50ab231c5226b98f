//! Chains: filters in an order, each with its values, and their text form.
//!
//! ```text
//! penalties;dry;top_k=40;typical=0.95;top_p=0.9;min_p=0.05;xtc;temperature=0.8;mirostat=5
//! ```
//!
//! Filters act in the order they are named; one that is not named does not act, one that is named twice acts twice.
//! Values stand behind `=`, several of them separated by commas in the order of [`Filter::values`]; what is left out
//! at the end, or everything, is taken from the sampler's parameters.

use super::noise::Key;
use super::{Bias, Candidate, Candidates, History, SAMPLERS, SamplingParams};
use crate::error::{Error, Result, Status};

/// What filters read besides their parameters.
#[derive(Clone, Debug)]
pub struct State {
    /// Added to logits, by token.
    pub bias: Bias,
    /// Tokens accepted so far.
    pub history: History,
    /// Tokens over which no repetition is followed, ascending.
    pub breakers: Vec<i32>,
}

/// One application of a filter.
pub struct Context<'a> {
    /// The parameters of this step of the chain.
    pub params: &'a SamplingParams,
    /// Bias and history.
    pub state: &'a State,
    /// What randomness of the filter's own is made from.
    pub key: Key,
    /// What the filter learned from accepted tokens, if it learns.
    pub memory: f32,
}

/// One value of a filter in the text form.
pub struct Value {
    /// Name of the field of [`SamplingParams`].
    pub name: &'static str,
    /// Reads it from text; false where the text is no such number.
    pub set: fn(&mut SamplingParams, &str) -> bool,
    /// Its text.
    pub get: fn(&SamplingParams) -> String,
}

/// A [`Value`] that is the field of the same name.
macro_rules! value {
    ($field:ident) => {
        $crate::sampler::chain::Value {
            name: stringify!($field),
            set: |params, text| match text.parse() {
                Ok(number) => {
                    params.$field = number;
                    true
                }
                Err(_) => false,
            },
            get: |params| params.$field.to_string(),
        }
    };
}
pub(super) use value;

/// How a filter learns from accepted tokens.
pub struct Learn {
    /// Whether there is anything to learn; else it remembers what it started from.
    pub on: fn(&SamplingParams) -> bool,
    /// What it starts from.
    pub start: fn(&SamplingParams) -> f32,
    /// What it remembers after `id` was accepted, which was chosen among what the filter left.
    pub accept: fn(&SamplingParams, f32, &[Candidate], u32) -> f32,
}

/// One filter: its name, its facts, and what it does to the candidates.
pub struct Filter {
    /// Name in the chain's text form.
    pub name: &'static str,
    /// One line for help texts.
    pub about: &'static str,
    /// Values in the text form, in order.
    pub values: &'static [Value],
    /// Refuses parameters this filter cannot work with.
    pub check: fn(&SamplingParams) -> Result<()>,
    /// Changes logits or takes candidates away; keeps the order of ids, and at least one candidate.
    pub apply: fn(&Context, &mut Candidates),
    /// For filters that learn.
    pub learn: Option<Learn>,
}

/// A filter at its place in a chain.
#[derive(Clone)]
pub(super) struct Step {
    pub(super) filter: &'static Filter,
    params: SamplingParams,
    memory: f32,
    /// What the filter left at the last sampling; empty for filters that do not learn.
    seen: Vec<Candidate>,
}

impl Step {
    pub(super) fn new(filter: &'static Filter, params: &SamplingParams) -> Self {
        let memory = filter.learn.as_ref().map_or(0.0, |learn| (learn.start)(params));
        Self { filter, params: params.clone(), memory, seen: Vec::new() }
    }

    pub(super) fn apply(&mut self, state: &State, key: Key, candidates: &mut Candidates) {
        let context = Context { params: &self.params, state, key, memory: self.memory };
        (self.filter.apply)(&context, candidates);
        if self.filter.learn.as_ref().is_some_and(|learn| (learn.on)(&self.params)) {
            self.seen.clear();
            self.seen.extend_from_slice(candidates.as_slice());
        }
    }

    /// Learns from an accepted token, if it is one of those sampled among last.
    pub(super) fn accept(&mut self, id: u32) {
        if let Some(learn) = &self.filter.learn
            && self.seen.binary_search_by_key(&id, |c| c.id).is_ok()
        {
            self.memory = (learn.accept)(&self.params, self.memory, &self.seen, id);
        }
        self.seen.clear();
    }

    /// What it learned.
    pub(super) fn memory(&self) -> f32 {
        self.memory
    }

    /// Goes on from what was learned elsewhere.
    pub(super) fn set_memory(&mut self, memory: f32) {
        self.memory = memory;
    }

    /// Sets the filter's values in `params` to this step's.
    pub(super) fn copy_values(&self, params: &mut SamplingParams) {
        for value in self.filter.values {
            (value.set)(params, &(value.get)(&self.params));
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.filter, &self.params);
    }

    fn text(&self) -> String {
        let values: Vec<_> = self.filter.values.iter().map(|value| (value.get)(&self.params)).collect();
        let equals = if values.is_empty() { "" } else { "=" };
        format!("{}{equals}{}", self.filter.name, values.join(","))
    }
}

/// The text form of `steps`, with all values.
pub(super) fn text(steps: &[Step]) -> String {
    steps.iter().map(Step::text).collect::<Vec<_>>().join(";")
}

/// Steps from the text form. The window of the penalties and the temperature are the sampler's, so that what one
/// step says of them goes into `params` too.
///
/// # Errors
/// `INVALID_ARG` for an unknown name, too many values, a value that is no number or out of range, and for two
/// different windows of penalties.
pub(super) fn parse(params: &mut SamplingParams, text: &str) -> Result<Vec<Step>> {
    let wrong = |what: String| Error::new(Status::INVALID_ARG, format!("sampler chain: {what}"));
    let mut steps = Vec::new();
    let mut window = None;
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, values) = part.split_once('=').unwrap_or((part, ""));
        let name = name.trim();
        let filter = SAMPLERS.iter().find(|filter| filter.name == name).ok_or_else(|| {
            let known: Vec<_> = SAMPLERS.iter().map(|filter| filter.name).collect();
            wrong(format!("expected one of {}, got {name:?}", known.join(", ")))
        })?;
        let mut own = params.clone();
        let given: Vec<_> =
            if values.trim().is_empty() { Vec::new() } else { values.split(',').map(str::trim).collect() };
        if given.len() > filter.values.len() {
            let names: Vec<_> = filter.values.iter().map(|value| value.name).collect();
            return Err(wrong(format!(
                "{name} takes {} values ({}), got {}",
                names.len(),
                names.join(", "),
                given.len()
            )));
        }
        for (value, text) in filter.values.iter().zip(&given) {
            if !(value.set)(&mut own, text) {
                return Err(wrong(format!("{name}, {}: expected a number, got {text:?}", value.name)));
            }
        }
        (filter.check)(&own)?;
        if name == "penalties" {
            if window.is_some_and(|window| window != own.penalty_window) {
                return Err(wrong("penalties named twice need the same penalty_window".to_owned()));
            }
            window = Some(own.penalty_window);
        }
        steps.push(Step::new(filter, &own));
    }
    if let Some(window) = window {
        params.penalty_window = window;
    }
    // The last temperature named is the one that is asked for: 0 means the likeliest token.
    if let Some(step) = steps.iter().rev().find(|step| step.filter.name == "temperature") {
        params.temperature = step.params.temperature;
    }
    Ok(steps)
}
