//! A sampler as bytes: everything its later choices depend on, to go on elsewhere with the same ones.
//!
//! ```text
//! magic "llmsampl"  version u32, 1  constrained u32, 0 or 1  seed u64  stream u64  forks u64
//! parameters, chain: u32 length, text
//! bias: u32 count, (u32, f32) each      breakers, history, ids under the constraint: u32 count, i32 each
//! what filters learned: u32 count, f32 each      processors: u32 count, (stage u8, pure u8) each
//! ```
//! Little-endian. Code of the host and compiled constraints are not in it: who loads it has a sampler with the same
//! processors, and with a constraint where there was one, through which the tokens go again.

use llm_kernels::FloatControl;

use super::chain::{self, Step};
use super::processor::{Processor, Stage};
use super::{Bias, History, SAMPLERS, Sampler, SamplingParams};
use crate::constraint;
use crate::error::{Error, Result, Status};

const MAGIC: &[u8; 8] = b"llmsampl";
const VERSION: u32 = 1;

impl Sampler {
    /// Whether `bytes` begin like those of [`Sampler::save`].
    pub fn is_saved(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }

    /// Parameters, bias, noise, accepted tokens and what filters learned from them, as bytes for [`Sampler::loaded`].
    /// A choice that was sampled and not accepted is not in it: sample again.
    pub fn save(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::from(self.constraint.is_some()).to_le_bytes());
        for number in [self.params.seed, self.stream, self.forks] {
            out.extend(number.to_le_bytes());
        }
        let all: Vec<_> = SAMPLERS.iter().map(|filter| Step::new(filter, &self.params)).collect();
        for text in [chain::text(&all), self.chain()] {
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        }
        let mut list = |count: usize, bytes: &mut dyn Iterator<Item = [u8; 4]>| {
            out.extend((count as u32).to_le_bytes());
            bytes.for_each(|word| out.extend(word));
        };
        let bias = self.state.bias.pairs();
        let words = &mut bias.iter().flat_map(|(id, value)| [id.to_le_bytes(), value.to_le_bytes()]);
        list(bias.len(), words);
        for ids in [&self.state.breakers[..], self.state.history.ids(), &self.constrained] {
            list(ids.len(), &mut ids.iter().map(|id| id.to_le_bytes()));
        }
        list(self.chain.len(), &mut self.chain.iter().map(|step| step.memory().to_le_bytes()));
        out.extend((self.processors.len() as u32).to_le_bytes());
        self.processors.iter().for_each(|processor| out.extend(code(processor)));
        out
    }

    /// The sampler that was saved, with this one's processors and under this one's constraint, which takes the tokens
    /// again. This one stays as it is.
    ///
    /// # Errors
    /// `BAD_FORMAT`, `BAD_VERSION` for bytes that no sampler was saved as; `MISMATCH` where processors or constraint
    /// are other than they were; what the constraint answers.
    pub fn loaded(&self, bytes: &[u8]) -> Result<Sampler> {
        let _float = FloatControl::default_for_now();
        let mut input = Input(bytes);
        if input.take(MAGIC.len())? != MAGIC {
            return Err(bad("is not the state of a sampler"));
        }
        let version = input.u32()?;
        if version != VERSION {
            let message = format!("the sampler's state has version {version}; this library reads {VERSION}");
            return Err(Error::new(Status::BAD_VERSION, message));
        }
        let constrained = input.u32()? != 0;
        let [seed, stream, forks] = [input.u64()?, input.u64()?, input.u64()?];
        let refused = |e: Error| bad(&format!("has a chain that is none: {e}"));
        let mut params = SamplingParams { seed, ..SamplingParams::default() };
        for step in chain::parse(&mut params.clone(), input.text()?).map_err(refused)? {
            step.copy_values(&mut params);
        }
        params.check().map_err(refused)?;
        let mut steps = chain::parse(&mut params.clone(), input.text()?).map_err(refused)?;
        let bias: Vec<_> = input.list::<8>()?.iter().map(|pair| (word(pair, 0), word(pair, 4))).collect();
        let bias: Vec<_> =
            bias.into_iter().map(|(id, value)| (i32::from_le_bytes(id), f32::from_le_bytes(value))).collect();
        let [breakers, history, taken] = [input.ids()?, input.ids()?, input.ids()?];
        let memories = input.list::<4>()?;
        if memories.len() != steps.len() || history.iter().any(|id| *id < 0) {
            return Err(bad("holds what does not fit its chain"));
        }
        for (step, memory) in steps.iter_mut().zip(memories) {
            let memory = f32::from_le_bytes(*memory);
            if !memory.is_finite() {
                return Err(bad("holds a number that is none"));
            }
            step.set_memory(memory);
        }
        let processors = input.list::<2>()?;
        if !input.0.is_empty() {
            return Err(bad("has bytes too many"));
        }
        if !self.processors.iter().map(code).eq(processors.iter().copied()) {
            let message = format!(
                "the saved sampler had {} processors, this one has {}, or at other stages: add the same ones first",
                processors.len(),
                self.processors.len()
            );
            return Err(Error::new(Status::MISMATCH, message));
        }
        let constraint = match (&self.constraint, constrained) {
            (None, false) => None,
            (Some(own), true) => Some(replay(own.clone(), &taken)?),
            (own, _) => {
                let (had, has) = if own.is_some() { ("none", "one") } else { ("one", "none") };
                let message = format!(
                    "the saved sampler had {had} of constraints, this one has {has}: set the same constraint first"
                );
                return Err(Error::new(Status::MISMATCH, message));
            }
        };
        let mut sampler = Sampler::of(params, steps);
        sampler.state.bias = Bias::new(&bias).map_err(refused)?;
        sampler.state.history = History::new(sampler.params.penalty_window);
        history.iter().for_each(|id| sampler.state.history.push(*id));
        sampler.set_breakers(&breakers);
        sampler.processors = self.processors.clone();
        (sampler.constraint, sampler.constrained) = (constraint, taken);
        (sampler.stream, sampler.forks) = (stream, forks);
        Ok(sampler)
    }
}

/// A constraint's state from its beginning, behind `ids`.
fn replay(mut state: constraint::State, ids: &[i32]) -> Result<constraint::State> {
    state.reset();
    for (index, &id) in ids.iter().enumerate() {
        state.advance(id).map_err(|e| match e.status() {
            Status::INVALID_ARG => Error::new(
                Status::MISMATCH,
                format!("the constraint is not the one that was saved under: {e}"),
            )
            .with("token_index", index as i64),
            _ => e,
        })?;
    }
    Ok(state)
}

fn code(processor: &Processor) -> [u8; 2] {
    let stage = match processor.stage {
        Stage::BeforePenalties => 0,
        Stage::AfterPenalties => 1,
    };
    [stage, u8::from(processor.pure)]
}

fn bad(what: &str) -> Error {
    Error::new(Status::BAD_FORMAT, format!("the sampler's state {what}"))
}

/// Four of a pair's bytes.
fn word(pair: &[u8; 8], at: usize) -> [u8; 4] {
    std::array::from_fn(|i| pair[at + i])
}

/// Bytes that are left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| bad("is shorter than its parts"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(self.take(4)?.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(self.take(8)?.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
    }

    fn text(&mut self) -> Result<&'a str> {
        let length = self.u32()? as usize;
        std::str::from_utf8(self.take(length)?).map_err(|_| bad("has a text that is not UTF-8"))
    }

    /// A count, and as many elements of `N` bytes.
    fn list<const N: usize>(&mut self) -> Result<&'a [[u8; N]]> {
        let count = self.u32()? as usize;
        let size = count.checked_mul(N).ok_or_else(|| bad("is shorter than its parts"))?;
        Ok(self.take(size)?.as_chunks().0)
    }

    fn ids(&mut self) -> Result<Vec<i32>> {
        Ok(self.list()?.iter().map(|id| i32::from_le_bytes(*id)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn logits(step: i32) -> Vec<f32> {
        (0..50).map(|id| ((id * 37 + step * 11) % 23) as f32 * 0.4).collect()
    }

    fn advance(sampler: &mut Sampler, from: i32, to: i32) -> Vec<i32> {
        let mut chosen = Vec::new();
        for step in from..to {
            let choice = sampler.sample(&logits(step), step as u64).unwrap();
            sampler.accept(choice.id).unwrap();
            chosen.push(choice.id);
        }
        chosen
    }

    fn busy() -> Sampler {
        let params = SamplingParams { temperature: 0.9, seed: 7, top_k: 33, ..SamplingParams::default() };
        let chain =
            "bias;penalties=1.3,0.1,0.2,9;dry=0.8,1.75,2;xtc=0.5,0.1;temperature=1.1;mirostat=3.3,0.2";
        let mut sampler = Sampler::with_chain(&params, chain).unwrap();
        sampler.set_bias(&[(3, 2.5), (4, f32::NEG_INFINITY)]).unwrap();
        sampler.set_breakers(&[9, 2]);
        sampler.fork()
    }

    #[test]
    fn a_loaded_sampler_makes_the_choices_that_the_saved_one_makes() {
        let mut sampler = busy();
        advance(&mut sampler, 0, 40);
        let bytes = sampler.save();
        let mut loaded = Sampler::new(&SamplingParams::default()).unwrap().loaded(&bytes).unwrap();
        assert_eq!(loaded.save(), bytes);
        assert_eq!((loaded.params(), loaded.chain()), (sampler.params(), sampler.chain()));
        assert_eq!(advance(&mut loaded, 40, 90), advance(&mut sampler, 40, 90));
        // Children, too, draw from the same streams.
        assert_eq!(advance(&mut loaded.fork(), 90, 99), advance(&mut sampler.fork(), 90, 99));
    }

    #[test]
    fn what_can_be_asked_for_can_be_saved() {
        let most = f32::MAX;
        let params = SamplingParams {
            temperature: most,
            mirostat_tau: most,
            mirostat_eta: most,
            dry_multiplier: most,
            dry_base: most,
            repetition_penalty: f32::MIN_POSITIVE,
            presence_penalty: -most,
            top_k: u32::MAX,
            penalty_window: u32::MAX,
            seed: u64::MAX,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(&params).unwrap();
        for _ in 0..2 {
            let bytes = sampler.save();
            let loaded = sampler.loaded(&bytes).unwrap();
            assert_eq!((loaded.params(), loaded.save()), (&params, bytes));
            advance(&mut sampler, 0, 5);
        }
    }

    #[test]
    fn processors_are_the_loading_samplers_and_must_be_as_many() {
        let ban = |sampler: &mut Sampler| {
            sampler.add_processor(
                Stage::AfterPenalties,
                true,
                Arc::new(|_, row| {
                    row[7] = f32::NEG_INFINITY;
                    Ok(())
                }),
            );
        };
        let mut sampler = busy();
        ban(&mut sampler);
        advance(&mut sampler, 0, 9);
        let mut empty = Sampler::new(&SamplingParams::default()).unwrap();
        assert_eq!(empty.loaded(&sampler.save()).err().unwrap().status(), Status::MISMATCH);
        ban(&mut empty);
        let mut loaded = empty.loaded(&sampler.save()).unwrap();
        assert_eq!(advance(&mut loaded, 9, 30), advance(&mut sampler, 9, 30));
    }

    #[test]
    fn damaged_bytes_are_refused_or_are_some_sampler() {
        let mut sampler = busy();
        advance(&mut sampler, 0, 5);
        let (bytes, plain) = (sampler.save(), Sampler::new(&SamplingParams::default()).unwrap());
        for end in 0..bytes.len() {
            let status = plain.loaded(&bytes[..end]).err().unwrap().status();
            assert!([Status::BAD_FORMAT, Status::MISMATCH].contains(&status), "{end}: {status:?}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                // Bytes without a checksum; in a snapshot they are under its own.
                if let Ok(loaded) = plain.loaded(&damaged) {
                    let saved = loaded.save();
                    assert_eq!(plain.loaded(&saved).unwrap().save(), saved, "byte {at}, bit {bit}");
                }
            }
        }
    }
}
