//! Scheduled equals alone: whatever arrives when, however few pages there are and whoever is cancelled, each request is
//! told what it is told when it runs alone. And nobody waits longer than promised. What becomes of the pages meanwhile is
//! in `pages`.

#[path = "support/lora.rs"]
mod lora;
#[path = "schedule/pages.rs"]
mod pages;
mod support;

use std::collections::HashMap;

use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Event, Generation, GenerationOptions, Kind, Reason};
use llm::session::schedule::{Ended, Request, RequestId, ScheduleOptions, Scheduler, Update};
use llm::session::speculative::{Lengths, Replay, SpecOptions, Speculation};
use llm::session::{Overflow, Session, SessionOptions};
use llm::{Cancel, Status};
use llm_format::quant::Type;
use support::{Reference, model, runtime};

/// A small generator, the same numbers every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// What a request asks for, so that it can be asked twice.
#[derive(Clone)]
struct Asked {
    prompt: Vec<i32>,
    sampling: SamplingParams,
    options: GenerationOptions,
    session: SessionOptions,
    speculates: bool,
    priority: i32,
}

impl Asked {
    fn new(prompt: &[i32], tokens: usize) -> Self {
        Self {
            prompt: prompt.to_vec(),
            sampling: SamplingParams::default(),
            options: GenerationOptions { max_tokens: tokens, ..Default::default() },
            session: SessionOptions { max_tokens: 256, ..Default::default() },
            speculates: false,
            priority: 0,
        }
    }

    fn sampler(&self) -> Sampler {
        let mut sampler = Sampler::new(&self.sampling).unwrap();
        sampler.accept_prompt(&self.prompt).unwrap();
        sampler
    }

    fn request(&self, model: &Model) -> Request {
        let mut generation = Generation::new(None, &self.options).unwrap();
        if self.speculates {
            generation.speculate(SpecOptions::ngram().start(model).unwrap());
        }
        Request {
            prompt: self.prompt.clone(),
            session: None,
            options: self.session.clone(),
            sampler: self.sampler(),
            generation,
            priority: self.priority,
            cancel: None,
        }
    }

    fn alone(&self, model: &Model) -> Told {
        self.alone_in(Session::new(model, self.session.clone()).unwrap())
    }

    fn alone_in(&self, mut session: Session) -> Told {
        session.prefill(&self.prompt, None, None).unwrap();
        let mut generation = Generation::new(None, &self.options).unwrap();
        let (mut told, mut sampler) = (Told::default(), self.sampler());
        while told.reason.is_none() {
            told.event(generation.next(&mut session, &mut sampler, None).unwrap());
        }
        told.held = session.tokens().to_vec();
        told
    }
}

/// What was told of a request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    ids: Vec<i32>,
    log_probabilities: Vec<u32>,
    reason: Option<Reason>,
    held: Vec<i32>,
}

impl Told {
    fn event(&mut self, event: Event) {
        assert!(self.reason.is_none(), "an event behind the last");
        if !event.ids.is_empty() {
            self.log_probabilities.push(event.log_probability.to_bits());
        }
        self.log_probabilities.extend(event.further.iter().map(|place| place.log_probability.to_bits()));
        self.ids.extend(event.ids);
        assert_eq!(event.kind == Kind::Done, event.reason.is_some());
        self.reason = event.reason;
    }
}

/// A scheduler, and what it told.
struct Server {
    scheduler: Scheduler,
    told: HashMap<RequestId, Told>,
    ended: HashMap<RequestId, Ended>,
    /// Whether the sessions that come back keep their pages.
    keeps: bool,
}

impl Server {
    fn new(pool: &KvPool, options: ScheduleOptions) -> Self {
        let scheduler = Scheduler::new(pool, options).unwrap();
        Self { scheduler, told: HashMap::new(), ended: HashMap::new(), keeps: false }
    }

    fn submit(&mut self, request: Request) -> RequestId {
        self.scheduler.submit(request).unwrap()
    }

    /// Returns who was told tokens, and how many.
    fn step(&mut self) -> HashMap<RequestId, usize> {
        let updates = self.scheduler.step(None).unwrap();
        self.take(updates)
    }

    fn take(&mut self, updates: Vec<Update>) -> HashMap<RequestId, usize> {
        let mut tokens = HashMap::new();
        for update in updates {
            match update {
                Update::Progress(id, progress) => {
                    assert!(
                        progress.done <= progress.total && progress.reused <= progress.done,
                        "{progress:?}"
                    );
                    assert!(!self.ended.contains_key(&id));
                }
                Update::Event(id, event) => {
                    *tokens.entry(id).or_default() += event.ids.len();
                    self.told.entry(id).or_default().event(event);
                }
                Update::Ended(id, mut ended) => {
                    if let (Some(told), Some(session)) = (self.told.get_mut(&id), &ended.session) {
                        told.held = session.tokens().to_vec();
                    }
                    if !self.keeps {
                        ended.session = None;
                    }
                    assert!(self.ended.insert(id, *ended).is_none());
                }
            }
        }
        tokens
    }

    fn run(&mut self) {
        for _ in 0..5_000 {
            if self.scheduler.is_idle() {
                return;
            }
            self.step();
        }
        panic!("{:?} does not end: {:?}", self.scheduler, self.scheduler.stats());
    }

    fn told(&self, id: RequestId) -> &Told {
        let ended = &self.ended[&id];
        assert!(ended.error.is_none(), "{ended:?}");
        &self.told[&id]
    }

    /// Each request was told what it is told alone.
    fn told_as_alone(&self, ids: impl IntoIterator<Item = RequestId>, asked: &[Asked], model: &Model) {
        for (id, asked) in ids.into_iter().zip(asked) {
            assert_eq!(self.told(id), &asked.alone(model));
        }
    }
}

fn pool(model: &Model, pages: u64, options: KvOptions) -> KvPool {
    let pool = KvPool::new(model, &KvOptions { page: 16, ..options }).unwrap();
    pool.resize(pool.stats().page_bytes * pages).unwrap();
    pool
}

fn reference(name: &str) -> Option<(Model, Vec<i32>)> {
    let reference = Reference::all().into_iter().find(|r| r.name == name)?;
    Some((model(&runtime(2, None), &reference.dir, Type::Q4), reference.ids("long.input_ids")))
}

/// Requests that arrive at random, in a pool with room for a few of them, some cancelled, some taken out.
fn arrivals(model: &Model, text: &[i32], seed: u64) -> (u64, u64) {
    let mut dice = Dice(seed);
    let asked: Vec<Asked> = (0..14)
        .map(|i| {
            // Some share a beginning.
            let from = [0, 0, dice.below(40)][dice.below(3)];
            let most = [8, 60, 100][dice.below(3)];
            let length = 1 + dice.below(most);
            let mut asked = Asked::new(&text[from..from + length], 1 + dice.below(40));
            if dice.below(2) == 0 {
                asked.sampling = SamplingParams {
                    temperature: 0.9,
                    top_p: 0.9,
                    repetition_penalty: 1.1,
                    seed: i,
                    ..Default::default()
                };
            }
            if dice.below(6) == 0 {
                asked.session.max_tokens = length + dice.below(20);
            }
            asked.speculates = dice.below(3) == 0;
            asked.priority = dice.below(3) as i32 - 1;
            asked
        })
        .collect();
    let swap_bytes = [0, 1 << 15, 1 << 30][dice.below(3)];
    let kv = KvOptions { prefix_cache: dice.below(3) > 0, swap_bytes, ..Default::default() };
    // The longest takes nine pages of each group of layers; to be let in it must find all of them.
    let groups = pool(model, 16, kv.clone()).stats().groups;
    let pool = pool(model, (10 + dice.below(6) as u64) * groups, kv);
    let chunk = [3, 16, 50][dice.below(3)];
    let sessions = [2, 5, 20][dice.below(3)];
    let mut server =
        Server::new(&pool, ScheduleOptions { chunk, sessions, rows: 40 + sessions, ..Default::default() });
    let mut ids = Vec::new();
    let mut waiting = asked.iter();
    let (mut left, mut steps) = (true, 0);
    while left || !server.scheduler.is_idle() {
        for _ in 0..[0, 0, 0, 1, 3][dice.below(5)] {
            let Some(asked) = waiting.next() else {
                left = false;
                break;
            };
            let cancel = (dice.below(5) == 0).then(Cancel::new);
            let request = Request { cancel: cancel.clone(), ..asked.request(model) };
            ids.push((server.submit(request), cancel));
        }
        steps += 1;
        assert!(steps < 5_000, "seed {seed}: {:?}", server.scheduler.stats());
        server.step();
        match dice.below(30) {
            0 => drop(pool.defragment()),
            1 => pool.clear_cache(),
            2 => {
                if let Some((_, Some(cancel))) = ids.get(dice.below(ids.len().max(1))) {
                    cancel.trigger();
                }
            }
            3 if !ids.is_empty() => {
                let (id, cancel) = &ids[dice.below(ids.len())];
                if cancel.is_some()
                    && let Some(ended) = server.scheduler.remove(*id)
                {
                    assert!(server.ended.insert(*id, ended).is_none());
                }
            }
            _ => {}
        }
        assert!(server.scheduler.stats().running <= sessions);
    }
    for ((id, cancel), asked) in ids.iter().zip(&asked) {
        let alone = asked.alone(model);
        let ended = &server.ended[id];
        assert!(ended.error.is_none(), "seed {seed}, {id:?}: {ended:?}");
        let told = server.told.get(id).cloned().unwrap_or_default();
        if told.reason.is_none() || told.reason == Some(Reason::Cancelled) {
            assert!(cancel.is_some(), "seed {seed}, {id:?}");
            assert_eq!(alone.ids[..told.ids.len()], told.ids, "seed {seed}, {id:?}");
        } else {
            assert_eq!(told, alone, "seed {seed}, {id:?}");
        }
    }
    let stats = server.scheduler.stats();
    drop(server);
    pool.clear_cache();
    let pages = pool.stats();
    assert_eq!((pages.used, pages.cached, pages.swapped_bytes), (0, 0, 0), "seed {seed}");
    (stats.swapped, stats.dropped)
}

#[test]
fn scheduled_equals_alone_whatever_arrives_and_whoever_is_preempted() {
    for name in ["llama_untied", "mistral_swa", "gpt_oss"] {
        let Some((model, text)) = reference(name) else { return };
        let (mut swapped, mut dropped) = (0, 0);
        for seed in 0..12 {
            let (s, d) = arrivals(&model, &text, seed);
            (swapped, dropped) = (swapped + s, dropped + d);
        }
        assert!(swapped > 5 && dropped > 5, "{name}: {swapped} swapped, {dropped} dropped");
    }
}

#[test]
fn a_joining_prompt_of_2048_tokens_delays_nobody_by_more_than_a_chunk() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 200, KvOptions::default());
    let options = ScheduleOptions { chunk: 64, ..Default::default() };
    let mut server = Server::new(&pool, options);
    let mut talking = Vec::new();
    let mut asked = Vec::new();
    for i in 0..4 {
        let mut one = Asked::new(&text[i..i + 10 + i], 0);
        one.options.max_tokens = 60 + i;
        talking.push(server.submit(one.request(&model)));
        asked.push(one);
    }
    server.step();
    assert_eq!(server.scheduler.stats().prompt_rows, 46);
    let long: Vec<i32> = text.iter().cycle().take(2048).copied().collect();
    let mut joining = Asked::new(&long, 3);
    joining.session.max_tokens = 2100;
    let id = server.submit(joining.request(&model));
    let mut steps = 0;
    loop {
        let before = server.scheduler.stats();
        let tokens = server.step();
        let now = server.scheduler.stats();
        steps += 1;
        assert!(now.prompt_rows - before.prompt_rows <= 64 && now.decode_rows - before.decode_rows == 4);
        for talking in &talking {
            assert_eq!(tokens.get(talking), Some(&1), "step {steps}");
        }
        if tokens.contains_key(&id) {
            break;
        }
    }
    assert_eq!(steps, 2048 / 64);
    server.run();
    for (id, asked) in talking.into_iter().zip(&asked).chain([(id, &joining)]) {
        assert_eq!(server.told(id), &asked.alone(&model));
    }
}

#[test]
fn short_prompts_do_not_wait_behind_a_long_one() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 200, KvOptions { prefix_cache: false, ..Default::default() });
    let mut server = Server::new(&pool, ScheduleOptions { chunk: 64, ..Default::default() });
    let long: Vec<i32> = text.iter().cycle().take(1000).copied().collect();
    let mut first = Asked::new(&long, 3);
    first.session.max_tokens = 1100;
    let first = server.submit(first.request(&model));
    server.step();
    let short: Vec<_> =
        (0..3).map(|i| server.submit(Asked::new(&text[i..i + 30], 5).request(&model))).collect();
    let mut waited = HashMap::new();
    for step in 1..40 {
        for id in server.step().into_keys() {
            waited.entry(id).or_insert(step);
        }
    }
    // A quarter of each step is theirs: 16 and 14 tokens, and the long one goes on meanwhile.
    assert!(short.iter().all(|id| waited[id] == 2), "{waited:?}");
    assert!(waited[&first] < 25, "{waited:?}");
}

#[test]
fn a_step_has_no_more_rows_than_it_may_whatever_is_guessed() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 60, KvOptions::default());
    let options = ScheduleOptions { sessions: 4, rows: 7, ..Default::default() };
    let mut server = Server::new(&pool, options);
    let asked = [10, 11, 12, 13].map(|n| Asked::new(&text[..n], 20));
    let ids = asked.each_ref().map(|asked| {
        let (mut request, plain) = (asked.request(&model), asked.alone(&model).ids);
        let replay = Replay::new(asked.prompt.len(), plain, 1.0, std::time::Duration::ZERO, 1);
        let lengths = Lengths { least: 1, most: 8, adaptive: false, min_gain: 0.0 };
        request.generation.speculate(Speculation::new(Box::new(replay), &lengths).unwrap());
        server.submit(request)
    });
    let mut most = 0;
    while !server.scheduler.is_idle() {
        let before = server.scheduler.stats().decode_rows;
        server.step();
        most = most.max(server.scheduler.stats().decode_rows - before);
    }
    assert_eq!(most, 7);
    for (id, asked) in ids.into_iter().zip(&asked) {
        assert_eq!(server.told(id), &asked.alone(&model));
        assert!(server.ended[&id].generation.spec_stats().unwrap().accepted > 0);
    }
}

#[test]
fn where_there_is_less_than_a_token_for_each_prompt_a_long_one_has_its_turns() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 60, KvOptions { prefix_cache: false, ..Default::default() });
    let options = ScheduleOptions { chunk: 1, sessions: 4, ..Default::default() };
    let mut server = Server::new(&pool, options);
    let asked = Asked::new(&text[..24], 2);
    let long = server.submit(asked.request(&model));
    // Short ones come without end.
    let mut short: Vec<RequestId> = Vec::new();
    for _ in 0..400 {
        short.retain(|id| !server.ended.contains_key(id));
        while short.len() < 3 {
            short.push(server.submit(Asked::new(&text[30..36], 1).request(&model)));
        }
        server.step();
        if server.ended.contains_key(&long) {
            break;
        }
    }
    assert_eq!(server.told(long), &asked.alone(&model));
}

#[test]
fn whoever_is_cancelled_waits_runs_or_prefills_and_nobody_else_notices() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 40, KvOptions::default());
    let options = ScheduleOptions { chunk: 16, sessions: 3, ..Default::default() };
    let mut server = Server::new(&pool, options);
    let asked = Asked::new(&text[..20], 30);
    let long = Asked::new(&text[20..120], 5);
    let cancels: Vec<_> = (0..3).map(|_| Cancel::new()).collect();
    let with =
        |asked: &Asked, i: usize| Request { cancel: Some(cancels[i].clone()), ..asked.request(&model) };
    let running = server.submit(with(&asked, 0));
    let prefilling = server.submit(with(&long, 1));
    let stays = server.submit(asked.request(&model));
    let waits = server.submit(with(&asked, 2));
    let removed = server.submit(asked.request(&model));
    (0..4).for_each(|_| drop(server.step()));
    assert!(!server.told[&running].ids.is_empty() && !server.told.contains_key(&prefilling));
    cancels.iter().for_each(Cancel::trigger);
    let gone = server.scheduler.remove(removed).unwrap();
    assert!(gone.session.is_none() && gone.generation.reason().is_none());
    assert!(server.scheduler.remove(removed).is_none());
    server.step();
    for id in [running, prefilling, waits] {
        assert_eq!(server.told(id).reason, Some(Reason::Cancelled), "{id:?}");
    }
    assert!(server.told(prefilling).ids.is_empty() && server.told(waits).ids.is_empty());
    server.run();
    assert_eq!(server.told(stays), &asked.alone(&model));
}

#[test]
fn a_cancelled_step_loses_nothing() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 40, KvOptions::default());
    let mut server = Server::new(&pool, ScheduleOptions { chunk: 16, ..Default::default() });
    let mut asked = [Asked::new(&text[..50], 12), Asked::new(&text[10..40], 12)];
    asked[1].speculates = true;
    let ids = asked.each_ref().map(|asked| server.submit(asked.request(&model)));
    let cancel = Cancel::new();
    cancel.trigger();
    while !server.scheduler.is_idle() {
        assert_eq!(server.scheduler.step(Some(&cancel)).unwrap_err().status(), Status::CANCELLED);
        server.step();
    }
    server.told_as_alone(ids, &asked, &model);
}

#[test]
fn what_a_failed_step_had_to_tell_is_something_to_do() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 40, KvOptions::default());
    let mut server = Server::new(&pool, ScheduleOptions::default());
    let (asked, cancel) = (Asked::new(&text[..20], 30), Cancel::new());
    let first = server.submit(Request { cancel: Some(cancel.clone()), ..asked.request(&model) });
    let second = server.submit(asked.request(&model));
    server.step();
    cancel.trigger();
    // The first one ends in this step, and nobody is told yet.
    assert_eq!(server.scheduler.step(Some(&cancel)).unwrap_err().status(), Status::CANCELLED);
    assert!(server.scheduler.remove(second).is_some());
    assert!(!server.scheduler.is_idle());
    server.run();
    assert_eq!(server.told(first).reason, Some(Reason::Cancelled));
}

#[test]
fn a_session_comes_back_and_goes_on() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 40, KvOptions { swap_bytes: 1 << 30, ..Default::default() });
    let mut server = Server::new(&pool, ScheduleOptions::default());
    server.keeps = true;
    let first = Asked::new(&text[..30], 10);
    let id = server.submit(first.request(&model));
    server.run();
    let mut session = server.ended.remove(&id).unwrap().session.unwrap();
    session.swap_out().unwrap();
    let mut whole = session.tokens().to_vec();
    let next = Asked::new(&text[60..80], 10);
    whole.extend(&next.prompt);
    let id = server.submit(Request { session: Some(session), ..next.request(&model) });
    server.run();
    let mut session = server.ended.remove(&id).unwrap().session.unwrap();
    let alone = Asked { prompt: whole, ..next.clone() }.alone(&model);
    assert_eq!((&server.told[&id].ids, session.tokens()), (&alone.ids, &alone.held[..]));
    // And from its logits alone.
    session.decode(7, None).unwrap();
    let prompt = session.tokens().to_vec();
    let request = Request { session: Some(session), prompt: Vec::new(), ..next.request(&model) };
    let id = server.submit(request);
    server.run();
    assert_eq!(server.told(id).ids, Asked { prompt, ..next }.alone(&model).ids);
}

#[test]
fn what_cannot_be_done_is_refused_and_handed_back() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let make = || pool(&model, 6, KvOptions::default());
    let (here, other) = (make(), make());
    let options = ScheduleOptions { waiting: 1, ..Default::default() };
    let mut scheduler = Scheduler::new(&here, options).unwrap();
    let asked = Asked::new(&text[..20], 5);
    let mut refuse = |request: Request, status: Status| {
        let prompt = request.prompt.clone();
        let refused = scheduler.submit(request).unwrap_err();
        assert_eq!(refused.error.status(), status, "{}", refused.error);
        assert_eq!(refused.request.prompt, prompt);
    };
    let request = || asked.request(&model);
    refuse(Request { prompt: Vec::new(), ..request() }, Status::INVALID_ARG);
    refuse(Request { prompt: vec![1, -1], ..request() }, Status::INVALID_ARG);
    refuse(Request { prompt: text[..100].to_vec(), ..request() }, Status::KV_FULL);
    let short = SessionOptions { max_tokens: 19, ..Default::default() };
    refuse(Request { options: short, ..request() }, Status::CONTEXT_FULL);
    for overflow in [Overflow::Recompute { head: 4 }, Overflow::Shift { head: 4 }] {
        let options = || SessionOptions { max_tokens: 64, overflow, ..Default::default() };
        refuse(Request { options: options(), ..request() }, Status::INVALID_ARG);
        let session = Some(Session::in_pool(&here, options()).unwrap());
        refuse(Request { session, ..request() }, Status::INVALID_ARG);
    }
    let session = |pool| Some(Session::in_pool(pool, SessionOptions::default()).unwrap());
    refuse(Request { session: session(&other), ..request() }, Status::INVALID_ARG);
    refuse(Request { session: session(&here), prompt: Vec::new(), ..request() }, Status::INVALID_ARG);
    scheduler.submit(asked.request(&model)).unwrap();
    let refused = scheduler.submit(asked.request(&model)).unwrap_err();
    assert_eq!(refused.error.status(), Status::BUSY);
    for (chunk, sessions, rows) in [(0, 1, 1), (1, 0, 1), (1, 3, 2)] {
        let options = ScheduleOptions { chunk, sessions, rows, ..Default::default() };
        assert_eq!(Scheduler::new(&here, options).unwrap_err().status(), Status::INVALID_ARG);
    }
}
