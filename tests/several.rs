//! Several continuations of one prompt are, each, what a run of its own would be.

mod support;

use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Generation, GenerationOptions, Kind, Reason};
use llm::session::several::Several;
use llm::session::{Overflow, Session, SessionOptions};
use llm::{Cancel, Status};
use llm_format::quant::Type;
use support::{Reference, model, runtime};

const PROMPT: usize = 40;

fn case(name: &str) -> Option<(Model, Vec<i32>)> {
    let reference = Reference::all().into_iter().find(|r| r.name == name)?;
    let ids = reference.ids("short.input_ids")[..PROMPT].to_vec();
    Some((model(&runtime(0, None), &reference.dir, Type::Q8), ids))
}

fn options() -> SessionOptions {
    SessionOptions { max_tokens: 96, ..SessionOptions::default() }
}

/// A session in a pool of `pages` pages of 16 tokens, which holds the prompt.
fn prompted(model: &Model, ids: &[i32], pages: u64) -> Session {
    let pool = KvPool::new(model, &KvOptions { page: 16, ..KvOptions::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * pool.stats().groups * pages).unwrap();
    let mut session = Session::in_pool(&pool, options()).unwrap();
    session.prefill(ids, None, None).unwrap();
    session
}

fn sampler(ids: &[i32], temperature: f32, seed: u64) -> Sampler {
    let params = SamplingParams { temperature, seed, repetition_penalty: 1.1, ..SamplingParams::default() };
    let mut sampler = Sampler::new(&params).unwrap();
    sampler.accept_prompt(ids).unwrap();
    sampler
}

/// The ids that a session of its own chooses, and what it holds afterwards.
fn alone(
    model: &Model,
    ids: &[i32],
    temperature: f32,
    seed: u64,
    how: &GenerationOptions,
) -> (Vec<i32>, Vec<i32>) {
    let mut session = Session::new(model, options()).unwrap();
    session.prefill(ids, None, None).unwrap();
    let chosen = run(&mut session, sampler(ids, temperature, seed), how);
    (chosen, session.tokens().to_vec())
}

/// The ids that are chosen behind what the session holds.
fn run(session: &mut Session, mut sampler: Sampler, how: &GenerationOptions) -> Vec<i32> {
    let mut generation = Generation::new(None, how).unwrap();
    let mut chosen = Vec::new();
    loop {
        let event = generation.next(session, &mut sampler, None).unwrap();
        chosen.extend(event.ids);
        if event.kind == Kind::Done {
            return chosen;
        }
    }
}

/// Runs all to their ends: the ids each chose.
fn all(several: &mut Several, count: usize) -> Vec<Vec<i32>> {
    let mut chosen = vec![Vec::new(); count];
    loop {
        let events = several.next(None);
        if events.is_empty() {
            return chosen;
        }
        events.into_iter().for_each(|(i, event)| chosen[i].extend(event.unwrap().ids));
    }
}

#[test]
fn each_continuation_is_the_run_of_its_own_with_its_seed() {
    for name in ["llama_untied", "gemma2", "deepseek_v3"] {
        let Some((model, ids)) = case(name) else { return };
        for temperature in [0.0, 0.9] {
            // They end at different steps: a stop token ends some early.
            let plain = GenerationOptions { max_tokens: 30, ..GenerationOptions::default() };
            let (first, _) = alone(&model, &ids, temperature, 7, &plain);
            let how = GenerationOptions { stop_tokens: vec![first[11]], ..plain };
            let mut session = prompted(&model, &ids, 3 + 7 * 3);
            let mut several = Several::new(&mut session, &sampler(&ids, temperature, 5), 7, &how).unwrap();
            let chosen = all(&mut several, 7);
            for (i, session) in several.into_sessions().iter().enumerate() {
                let (expected, held) = alone(&model, &ids, temperature, 5 + i as u64, &how);
                assert_eq!(chosen[i], expected, "{name} at {temperature}, continuation {i}");
                assert_eq!(session.tokens(), held, "{name} at {temperature}, continuation {i}");
            }
            assert_eq!(chosen.iter().all(|ids| *ids == chosen[0]), temperature == 0.0);
            assert_eq!(session.tokens(), ids, "the prompt's session stays as it was");
        }
    }
}

#[test]
fn the_prompt_is_computed_and_stored_once() {
    let Some((model, ids)) = case("qwen2") else { return };
    let mut session = prompted(&model, &ids, 3 + 4);
    let how = GenerationOptions { max_tokens: 8, ..GenerationOptions::default() };
    let mut several = Several::new(&mut session, &sampler(&ids, 0.8, 0), 4, &how).unwrap();
    assert!(all(&mut several, 4).iter().all(|ids| ids.len() == 8));
    let stats = session.pool().stats();
    // Two full pages of the prompt are shared by all; its third, half full, was copied for each.
    assert_eq!((stats.shared, stats.used), (2, 2 + 1 + 4));
}

#[test]
fn they_go_on_past_the_context_as_a_run_of_its_own_does() {
    let Some((model, ids)) = case("llama_untied") else { return };
    let how = GenerationOptions { max_tokens: 60, ..GenerationOptions::default() };
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..KvOptions::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * 60).unwrap();
    for overflow in [Overflow::Recompute { head: 4 }, Overflow::Shift { head: 4 }] {
        let options = SessionOptions { max_tokens: 56, overflow, ..SessionOptions::default() };
        let mut session = Session::in_pool(&pool, options.clone()).unwrap();
        session.prefill(&ids, None, None).unwrap();
        let mut several = Several::new(&mut session, &sampler(&ids, 0.9, 5), 3, &how).unwrap();
        let chosen = all(&mut several, 3);
        for (i, session) in several.into_sessions().iter().enumerate() {
            let mut own = Session::in_pool(&pool, options.clone()).unwrap();
            own.prefill(&ids, None, None).unwrap();
            let expected = run(&mut own, sampler(&ids, 0.9, 5 + i as u64), &how);
            assert_eq!((&chosen[i], expected.len()), (&expected, 60), "{overflow:?}, continuation {i}");
            assert_eq!(session.tokens(), own.tokens(), "{overflow:?}, continuation {i}");
            assert!(session.dropped() > 0 && session.dropped() == own.dropped());
        }
    }
}

#[test]
fn cancelling_and_a_full_pool_are_told_and_lose_nothing() {
    let Some((model, ids)) = case("qwen2") else { return };
    let mut session = prompted(&model, &ids, 3 + 3 + 1);
    let how = GenerationOptions { max_tokens: 30, ..GenerationOptions::default() };
    let mut several = Several::new(&mut session, &sampler(&ids, 0.8, 0), 3, &how).unwrap();
    let mut chosen = vec![Vec::new(); 3];
    // Behind position 48 each needs another page, and there is one.
    let mut full = 0;
    while full == 0 {
        for (i, event) in several.next(None) {
            match event {
                Ok(event) => chosen[i].extend(event.ids),
                Err(e) => {
                    assert_eq!(e.status(), Status::KV_FULL);
                    full += 1;
                }
            }
        }
    }
    assert_eq!(full, 2);
    session.pool().resize(session.pool().stats().page_bytes * 16).unwrap();
    let cancel = Cancel::new();
    let events = several.next(Some(&cancel));
    assert_eq!(events.len(), 3);
    events.into_iter().for_each(|(i, event)| chosen[i].extend(event.unwrap().ids));
    cancel.trigger();
    for (_, event) in several.next(Some(&cancel)) {
        let event = event.unwrap();
        assert_eq!((event.reason, event.ids), (Some(Reason::Cancelled), vec![]));
    }
    assert!((0..3).all(|i| several.reason(i) == Some(Reason::Cancelled)));
    assert!(several.next(None).is_empty());
    for (i, session) in several.into_sessions().iter().enumerate() {
        let (expected, _) = alone(&model, &ids, 0.8, i as u64, &how);
        let n = chosen[i].len();
        assert_eq!(chosen[i], expected[..n], "continuation {i}");
        assert_eq!(session.tokens()[PROMPT..], expected[..n - 1], "continuation {i}");
    }
}
