//! A model under test, and its plain runs: one thread, one session, the whole prompt at once, then token by token.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use llm::adapter::Adapter;
use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::speculative::{Lengths, NgramOptions, Replay, Source, SpecOptions, Speculation};
use llm::session::{Session, SessionOptions};
use llm_convert::adapter::{AdapterOptions, convert_adapter};
use llm_format::quant::Type;

use super::bits;
use super::case::{Dice, Guesses, KV};
use super::lora::Peft;
use super::support::{converted, open, runtime};

/// Tokens a session may hold, and the length that rotary scaling is told.
pub const CAPACITY: usize = 128;

/// A prompt and how it goes on.
struct Plan {
    prompt: Vec<i32>,
    sampling: SamplingParams,
    total: usize,
}

/// What must come out: the tokens, and the logits behind each of them.
pub struct Expected {
    pub tokens: Vec<i32>,
    pub prompt: usize,
    /// Which set of adapters it was run with.
    pub adapters: usize,
    rows: Vec<u32>,
    sampling: SamplingParams,
}

impl Expected {
    /// Bits of the logits behind the first `held` tokens.
    pub fn row(&self, held: usize) -> &[u32] {
        let vocab = self.rows.len() / self.tokens.len();
        &self.rows[(held - 1) * vocab..held * vocab]
    }

    /// The sampler as it stands when `held` tokens are there.
    pub fn sampler(&self, held: usize) -> Sampler {
        let mut sampler = Sampler::new(&self.sampling).unwrap();
        sampler.accept_prompt(&self.tokens[..self.prompt.min(held)]).unwrap();
        sampler.accept_all(&self.tokens[self.prompt.min(held)..held]).unwrap();
        sampler
    }
}

pub struct Subject {
    /// The same file with one thread and with two.
    models: [Model; 2],
    /// The adapters of the second set, for each of the models; the first set has none.
    adapters: [Vec<(Adapter, f32)>; 2],
    /// In few bits.
    draft: Model,
    plans: Vec<Plan>,
    expected: RefCell<HashMap<(usize, usize, usize), Rc<Expected>>>,
}

impl Subject {
    /// The checkpoint in `dir` as a file of `ty`. Adapters change matrices that the checkpoint in `base` has. `text`, if
    /// there is any, begins every second prompt.
    pub fn new(name: &str, dir: &Path, base: &Path, ty: Type, text: &[i32]) -> Self {
        let (_place, path) = converted(dir, ty);
        let models = [1, 2].map(|threads| open(&runtime(threads, None), &path));
        let changed = ["q_proj", "o_proj", "query_key_value", "q_b_proj"];
        let files = [(1, 3), (2, 5)].map(|(seed, rank)| {
            let place = tempfile::tempdir().unwrap();
            let takes = |module: &str| changed.iter().any(|end| module.ends_with(end));
            Peft::random(base, seed, rank, takes).write(&place.path().join("peft"));
            let out = place.path().join("adapter.llm");
            convert_adapter(&place.path().join("peft"), dir, &out, &AdapterOptions::default()).unwrap();
            (place, out)
        });
        let adapters = models.each_ref().map(|model| {
            let open = |(_, file): &(_, std::path::PathBuf)| Adapter::open_path(model, file).unwrap();
            files.iter().map(open).zip([0.5, -0.75]).collect()
        });
        let (_place, path) = converted(dir, Type::Q3);
        let draft = open(models[0].runtime(), &path);
        let vocab = models[0].spec().vocab as usize;
        let mut dice = Dice::new(name.len() as u64);
        // Two prompts share 70 tokens; others are short, end with a page, or begin a new one.
        let shared = dice.ids(70, vocab);
        let plan = |dice: &mut Dice, i: usize, length: usize, generated: usize| {
            let mut prompt = if i < 2 { shared.clone() } else { Vec::new() };
            if i.is_multiple_of(2) && prompt.is_empty() {
                prompt.extend(text.iter().take(length));
            }
            prompt.truncate(length);
            let rest = dice.ids(length - prompt.len(), vocab);
            prompt.extend(rest);
            let sampling = match i % 3 {
                0 => SamplingParams::default(),
                1 => SamplingParams { temperature: 0.8, top_k: 40, seed: i as u64, ..Default::default() },
                _ => SamplingParams {
                    temperature: 1.0,
                    top_p: 0.95,
                    min_p: 0.01,
                    repetition_penalty: 1.2,
                    presence_penalty: 0.3,
                    dry_multiplier: 0.8,
                    seed: i as u64,
                    ..Default::default()
                },
            };
            Plan { prompt, sampling, total: length + generated }
        };
        let shapes = [(81, 7), (75, 9), (5, 20), (48, 6), (64, 9), (33, 24), (17, 9)];
        let plans = shapes.iter().enumerate().map(|(i, &(n, g))| plan(&mut dice, i, n, g)).collect();
        Self { models, adapters, draft, plans, expected: RefCell::default() }
    }

    pub fn model(&self, threads: usize) -> &Model {
        &self.models[threads - 1]
    }

    /// Tokens of each run.
    pub fn totals(&self) -> Vec<usize> {
        self.plans.iter().map(|plan| plan.total).collect()
    }

    pub fn vocab(&self) -> usize {
        self.models[0].spec().vocab as usize
    }

    /// The adapters of a set, for the model of so many threads.
    pub fn adapters(&self, threads: usize, set: usize) -> &[(Adapter, f32)] {
        if set == 0 { &[] } else { &self.adapters[threads - 1] }
    }

    /// Who can guess for the model.
    pub fn guesses(&self) -> Vec<Guesses> {
        let mut all = vec![Guesses::Off, Guesses::Lookup, Guesses::Replay, Guesses::Draft];
        all.extend(self.models[0].draft().unwrap().map(|_| Guesses::Own));
        all
    }

    /// One who guesses at most `most` tokens of what follows in `expected`.
    pub fn speculation(&self, guesses: Guesses, most: usize, expected: &Expected) -> Option<Speculation> {
        // Of a length that does not follow the clock.
        let lengths = Lengths { most, adaptive: false, ..Default::default() };
        let source = match guesses {
            Guesses::Off => return None,
            Guesses::Lookup => Source::Ngram(NgramOptions { least_match: 1, ..Default::default() }),
            Guesses::Draft => SpecOptions::draft(&self.draft).source,
            Guesses::Own => Source::Own,
            Guesses::Replay => {
                let replay = Replay::new(0, expected.tokens.clone(), 0.7, Duration::ZERO, 1);
                return Some(Speculation::new(Box::new(replay), &lengths).unwrap());
            }
        };
        Some(SpecOptions { source, lengths }.start(&self.models[0]).unwrap())
    }

    /// The plain run of a plan with a KV type and a set of adapters.
    pub fn expected(&self, plan: usize, kv: usize, adapters: usize) -> Rc<Expected> {
        let mut all = self.expected.borrow_mut();
        let plain = || Rc::new(self.plain(&self.plans[plan], kv, adapters));
        all.entry((plan, kv, adapters)).or_insert_with(plain).clone()
    }

    fn plain(&self, plan: &Plan, kv: usize, adapters: usize) -> Expected {
        let options = SessionOptions { max_tokens: CAPACITY, kv: KV[kv], ..Default::default() };
        let mut session = Session::new(&self.models[0], options).unwrap();
        session.set_adapters(self.adapters(1, adapters)).unwrap();
        let mut rows = Vec::new();
        let each = &mut |_: usize, row: &[f32]| {
            rows.extend(bits(row));
            Ok(())
        };
        session.prefill_each(&plan.prompt, None, each).unwrap();
        let mut sampler = Sampler::new(&plan.sampling).unwrap();
        sampler.accept_prompt(&plan.prompt).unwrap();
        while session.len() < plan.total {
            let choice = sampler.sample(session.logits().unwrap(), session.len() as u64).unwrap();
            sampler.accept(choice.id).unwrap();
            session.decode(choice.id, None).unwrap();
            rows.extend(bits(session.logits().unwrap()));
        }
        let tokens = session.tokens().to_vec();
        Expected { tokens, prompt: plan.prompt.len(), adapters, rows, sampling: plan.sampling.clone() }
    }
}
