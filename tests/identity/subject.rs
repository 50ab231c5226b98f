//! A model under test, and its plain runs: one thread, one session, the whole prompt at once, then token by token.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::{Session, SessionOptions};
use llm_format::quant::Type;

use super::bits;
use super::case::{Dice, KV};
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
    plans: Vec<Plan>,
    expected: RefCell<HashMap<(usize, usize), Rc<Expected>>>,
}

impl Subject {
    /// The checkpoint in `dir` as a file of `ty`. `text`, if there is any, begins every second prompt.
    pub fn new(name: &str, dir: &Path, ty: Type, text: &[i32]) -> Self {
        let (_place, path) = converted(dir, ty);
        let models = [1, 2].map(|threads| open(&runtime(threads, None), &path));
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
        Self { models, plans, expected: RefCell::default() }
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

    /// The plain run of a plan with a KV type.
    pub fn expected(&self, plan: usize, kv: usize) -> Rc<Expected> {
        let mut all = self.expected.borrow_mut();
        all.entry((plan, kv)).or_insert_with(|| Rc::new(self.plain(&self.plans[plan], kv))).clone()
    }

    fn plain(&self, plan: &Plan, kv: usize) -> Expected {
        let options = SessionOptions { max_tokens: CAPACITY, kv: KV[kv], ..Default::default() };
        let mut session = Session::new(&self.models[0], options).unwrap();
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
        Expected { tokens, prompt: plan.prompt.len(), rows, sampling: plan.sampling.clone() }
    }
}
