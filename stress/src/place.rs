//! What all threads share, and what must come out: the tokens and the logits of a run by itself.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use llm::adapter::Adapter;
use llm::kv::{KvOptions, KvPool};
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::Event;
use llm::session::{Session, SessionOptions};
use llm::{Cancel, Error, Status};

/// Tokens of each sequence, and those of its prompt.
pub const LENGTH: usize = 96;
pub const PROMPT: usize = 40;

/// A small generator, the same numbers every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// A sequence that many run: without adapters, or with one.
pub struct Run {
    pub adapters: Vec<(Adapter, f32)>,
    pub ids: Vec<i32>,
    /// Logits behind each of `ids`.
    expected: Vec<Vec<f32>>,
}

impl Run {
    /// A random prompt and what the model makes of it, one token at a time.
    fn alone(model: &Model, adapters: Vec<(Adapter, f32)>) -> Self {
        let mut session = Session::new(model, options()).expect("a session");
        session.set_adapters(&adapters).expect("adapters of the model");
        let mut dice = Dice::new(1);
        let prompt: Vec<_> = (0..PROMPT).map(|_| dice.below(model.spec().vocab as usize) as i32).collect();
        let mut run = Run { adapters, ids: prompt, expected: Vec::new() };
        let mut each = |_: usize, row: &[f32]| {
            run.expected.push(row.to_vec());
            Ok(())
        };
        session.prefill_each(&run.ids, None, &mut each).expect("finite logits");
        let mut sampler = run.sampler(PROMPT);
        while session.len() < LENGTH {
            let row = session.logits().expect("behind the last token");
            let id = sampler.sample(row, session.len() as u64).expect("a token").id;
            sampler.accept(id).expect("of the vocabulary");
            session.decode(id, None).expect("room");
            run.ids.push(id);
            run.expected.push(session.logits().expect("behind the last token").to_vec());
        }
        run
    }

    /// The sampler as it stands when `held` tokens are there, at least those of the prompt.
    pub fn sampler(&self, held: usize) -> Sampler {
        let params =
            SamplingParams { temperature: 0.8, seed: 7, repetition_penalty: 1.1, ..Default::default() };
        let mut sampler = Sampler::new(&params).expect("possible parameters");
        sampler.accept_prompt(&self.ids[..PROMPT]).expect("of the vocabulary");
        sampler.accept_all(&self.ids[PROMPT..held]).expect("of the vocabulary");
        sampler
    }

    /// That an event behind `told` tokens goes on with the right ones. Returns how many are told now.
    pub fn check_event(&self, told: usize, event: &Event) -> usize {
        let to = told + event.ids.len();
        assert_eq!(event.ids, self.ids[told..to], "told from {told}");
        to
    }
}

pub fn options() -> SessionOptions {
    SessionOptions { max_tokens: LENGTH + 40, chunk: 16, page: 16, ..Default::default() }
}

pub struct Place {
    pub pool: KvPool,
    /// Pages of draft models.
    pub drafts: KvPool,
    pub file: std::path::PathBuf,
    pub runs: [Run; 2],
    /// Triggered from outside at any moment.
    pub cancel: Cancel,
    /// Sessions on their way from one thread to another, and which of the runs they are of.
    pub passed: Mutex<Vec<(Session, usize)>>,
    pub rounds: usize,
    pub running: AtomicBool,
    pub cancelled: AtomicUsize,
    pub refused: AtomicUsize,
    pub compared: AtomicUsize,
}

impl Place {
    /// `dir` has model.llm, draft.llm and adapter.llm.
    pub fn new(dir: &Path, rounds: usize) -> Self {
        let runtime = Runtime::new(RuntimeOptions { threads: 2, ..Default::default() }).expect("a runtime");
        let open = |name: &str| {
            Model::open_path(&runtime, &dir.join(name), &OpenOptions::default(), None)
                .expect("a model's file")
        };
        let (model, draft) = (open("model.llm"), open("draft.llm"));
        let adapter = Adapter::open_path(&model, &dir.join("adapter.llm")).expect("an adapter's file");
        let kv = KvOptions { page: 16, swap_bytes: 1 << 24, ..Default::default() };
        let pool = |model: &Model, pages: u64| {
            let pool = KvPool::new(model, &kv).expect("a pool");
            let stats = pool.stats();
            pool.resize(stats.page_bytes * stats.groups * pages).expect("room");
            pool
        };
        Self {
            // Not enough for everybody: somebody is always evicted, swapped or refused.
            pool: pool(&model, 12),
            drafts: pool(&draft, 14),
            file: dir.join("model.llm"),
            runs: [Run::alone(&model, Vec::new()), Run::alone(&model, vec![(adapter, 0.5)])],
            cancel: Cancel::new(),
            passed: Mutex::default(),
            rounds,
            running: AtomicBool::new(true),
            cancelled: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            compared: AtomicUsize::new(0),
        }
    }

    pub fn model(&self) -> &Model {
        self.pool.model()
    }

    /// An empty session of run `of`.
    pub fn session(&self, of: usize) -> Session {
        let mut session = Session::in_pool(&self.pool, options()).expect("a session");
        session.set_adapters(&self.runs[of].adapters).expect("adapters of the model");
        session
    }

    /// A handle that is triggered from outside, or has a deadline of its own, or neither.
    pub fn cancel(&self, dice: &mut Dice) -> Option<Cancel> {
        match dice.below(12) {
            0..3 => Some(self.cancel.clone()),
            3 => {
                let own = Cancel::new();
                own.set_deadline(Some(Duration::from_micros(50 + dice.below(50_000) as u64)));
                Some(own)
            }
            4 => Some(Cancel::after(1 + dice.below(60) as u64)),
            _ => None,
        }
    }

    pub fn check(&self, session: &Session, of: usize) {
        let (held, run) = (session.len(), &self.runs[of]);
        assert_eq!(session.tokens(), &run.ids[..held]);
        if let Ok(logits) = session.logits() {
            let same = logits.iter().zip(&run.expected[held - 1]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "logits behind {held} tokens");
            self.compared.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Errors that must come sometimes: the pool is small, and calls are cancelled.
    pub fn expect(&self, error: &Error) {
        match error.status() {
            Status::CANCELLED | Status::DEADLINE => self.cancelled.fetch_add(1, Ordering::Relaxed),
            Status::KV_FULL | Status::BUDGET => self.refused.fetch_add(1, Ordering::Relaxed),
            _ => panic!("{error}"),
        };
    }

    pub fn or_expected<T>(&self, done: Result<T, Error>) -> Option<T> {
        done.map_err(|e| self.expect(&e)).ok()
    }
}
