//! Pages are scarce: who has them, who gives them up, and what that changes of what anybody is told: nothing.

use llm::Status;
use llm::adapter::Adapter;
use llm::kv::KvOptions;
use llm::sampler::SamplingParams;
use llm::session::schedule::{Request, ScheduleOptions};
use llm::session::speculative::{Lengths, Replay, Speculation};
use llm::session::{Session, SessionOptions};
use llm_convert::adapter::{AdapterOptions, convert_adapter};

use super::lora::Peft;
use super::{Asked, Server, pool, reference};

#[test]
fn pages_that_are_pinned_and_in_use_are_not_missed_twice() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 9, KvOptions::default());
    let make = || Session::in_pool(&pool, SessionOptions { max_tokens: 256, ..Default::default() }).unwrap();
    let mut system = make();
    system.prefill(&text[..64], None, None).unwrap();
    assert_eq!(system.pin(), 64);
    drop(system);
    let reversed: Vec<i32> = text.iter().rev().take(64).copied().collect();
    make().prefill(&reversed, None, None).unwrap();
    assert_eq!((pool.stats().cached, pool.stats().pinned, pool.stats().free), (8, 4, 1));
    let mut server = Server::new(&pool, ScheduleOptions::default());
    let asked = [100, 110].map(|i| Asked::new(&[&text[..64], &text[i..i + 2]].concat(), 10));
    let ids = asked.each_ref().map(|asked| {
        let id = server.submit(asked.request(&model));
        server.step();
        id
    });
    // The second one's page is one of the others' that nobody holds.
    assert_eq!(server.scheduler.stats().running, 2);
    server.run();
    server.told_as_alone(ids, &asked, &model);
}

#[test]
fn guesses_that_find_no_page_end_no_request() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 4, KvOptions::default());
    let mut asked = Asked::new(&text[..50], 30);
    asked.sampling = SamplingParams { temperature: 0.9, seed: 4, ..Default::default() };
    let plain = asked.alone(&model).ids;
    // It ends where its tokens still fit, and its tokens with guesses behind them do not.
    let last = (8..13).rev().find(|&i| !plain[..i].contains(&plain[i])).unwrap();
    (asked.options.max_tokens, asked.options.stop_tokens) = (0, vec![plain[last]]);
    let lengths = Lengths { least: 1, most: 8, adaptive: false, min_gain: 0.0 };
    let replay = Replay::new(50, plain, 0.0, std::time::Duration::ZERO, 1);
    let mut request = asked.request(&model);
    request.generation.speculate(Speculation::new(Box::new(replay), &lengths).unwrap());
    let mut server = Server::new(&pool, ScheduleOptions::default());
    let id = server.submit(request);
    server.run();
    assert_eq!(server.told(id), &asked.alone(&model));
    assert!(server.ended[&id].generation.spec_stats().unwrap().failed > 0);
}

#[test]
fn a_prompt_that_another_request_runs_is_not_run_twice() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 100, KvOptions::default());
    let mut server = Server::new(&pool, ScheduleOptions { chunk: 64, ..Default::default() });
    let asked = Asked::new(&text[..100], 4);
    let first = server.submit(asked.request(&model));
    server.step();
    let second = server.submit(asked.request(&model));
    server.run();
    assert_eq!((server.told(first), server.told(second)), (&asked.alone(&model), &asked.alone(&model)));
    assert!(server.scheduler.stats().prompt_rows <= 100 + 36, "{:?}", server.scheduler.stats());
    let third = server.submit(asked.request(&model));
    let before = server.scheduler.stats().prompt_rows;
    server.run();
    assert_eq!(server.scheduler.stats().prompt_rows - before, 4);
    assert_eq!(server.told(third), &asked.alone(&model));
}

#[test]
fn a_higher_priority_takes_the_pages_of_lower_ones() {
    let Some((model, text)) = reference("llama_untied") else { return };
    for swap_bytes in [0, 1 << 30] {
        let pool = pool(&model, 9, KvOptions { swap_bytes, ..Default::default() });
        let mut server = Server::new(&pool, ScheduleOptions::default());
        let low: Vec<_> = (0..2).map(|i| Asked::new(&text[i * 30..i * 30 + 40], 20)).collect();
        let low_ids: Vec<_> = low.iter().map(|asked| server.submit(asked.request(&model))).collect();
        (0..5).for_each(|_| drop(server.step()));
        assert_eq!(server.scheduler.stats().running, 2);
        let mut high = Asked::new(&text[50..140], 10);
        high.priority = 1;
        let high_id = server.submit(high.request(&model));
        assert_eq!(server.step().get(&high_id), Some(&1), "it runs at once");
        let stats = server.scheduler.stats();
        assert!(stats.waiting > 0 && stats.swapped + stats.dropped > 0, "{stats:?}");
        assert_eq!(stats.swapped > 0, swap_bytes > 0);
        server.run();
        for (id, asked) in low_ids.iter().zip(&low).chain([(&high_id, &high)]) {
            assert_eq!(server.told(*id), &asked.alone(&model));
        }
    }
}

#[test]
fn who_is_of_equal_priority_is_not_sent_away_with_a_lower_one() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 9, KvOptions::default());
    let mut server = Server::new(&pool, ScheduleOptions { sessions: 2, ..Default::default() });
    let mut asked = [&text[..70], &text[80..90], &text[40..110]].map(|prompt| Asked::new(prompt, 8));
    (asked[0].priority, asked[2].priority) = (1, 1);
    let mut ids: Vec<_> = asked[..2].iter().map(|asked| server.submit(asked.request(&model))).collect();
    (0..2).for_each(|_| drop(server.step()));
    assert_eq!(server.scheduler.stats().running, 2);
    // The last is in the place of the second, and finds too few pages beside the first.
    ids.push(server.submit(asked[2].request(&model)));
    assert_eq!(server.step().get(&ids[0]), Some(&1));
    let stats = server.scheduler.stats();
    assert_eq!((stats.running, stats.swapped + stats.dropped), (1, 1), "{stats:?}");
    server.run();
    server.told_as_alone(ids, &asked, &model);
}

#[test]
fn what_windows_have_let_go_of_a_session_runs_again_in_chunks() {
    let Some((model, text)) = reference("mistral_swa") else { return };
    let pool = pool(&model, 60, KvOptions { prefix_cache: false, ..Default::default() });
    let mut server = Server::new(&pool, ScheduleOptions { chunk: 16, ..Default::default() });
    let ids: Vec<i32> = text.iter().cycle().take(250).copied().collect();
    let options = SessionOptions { max_tokens: 256, ..Default::default() };
    let mut session = Session::in_pool(&pool, options).unwrap();
    session.prefill(&ids, None, None).unwrap();
    session.truncate(100).unwrap();
    let asked = Asked::new(&[7, 8], 5);
    let id = server.submit(Request { session: Some(session), ..asked.request(&model) });
    let mut steps = 0;
    while !server.told.contains_key(&id) {
        let before = server.scheduler.stats().prompt_rows;
        server.step();
        assert!(server.scheduler.stats().prompt_rows - before <= 16);
        steps += 1;
    }
    assert_eq!(steps, 7);
    server.run();
    let alone = Asked { prompt: [&ids[..100], &[7, 8]].concat(), ..asked }.alone(&model);
    assert_eq!(server.told(id), &alone);
}

#[test]
fn a_request_that_outgrows_the_pool_ends_with_the_reason_and_others_go_on() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 4, KvOptions::default());
    let mut server = Server::new(&pool, ScheduleOptions::default());
    let large = server.submit(Asked::new(&text[..50], 100).request(&model));
    let asked = Asked::new(&text[3..13], 20);
    let small = server.submit(asked.request(&model));
    server.run();
    let ended = &server.ended[&large];
    assert_eq!(ended.error.as_ref().unwrap().status(), Status::KV_FULL);
    assert_eq!(server.told[&large].held.len(), 64);
    assert_eq!(server.told(small), &asked.alone(&model));
}

#[test]
fn adapters_stay_with_who_is_sent_away() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let Some(base) = llm_testdata::shared("reference/llama_untied") else { return };
    let place = tempfile::tempdir().unwrap();
    let takes = |module: &str| module.ends_with("q_proj") || module.ends_with("o_proj");
    Peft::random(&base, 3, 4, takes).write(&place.path().join("peft"));
    let file = place.path().join("adapter.llm");
    convert_adapter(&place.path().join("peft"), &base, &file, &AdapterOptions::default()).unwrap();
    let adapters = [(Adapter::open_path(&model, &file).unwrap(), 1.0)];
    // The same prompt with and without.
    let low = Asked::new(&text[..40], 20);
    let mut session = Session::new(&model, low.session.clone()).unwrap();
    session.set_adapters(&adapters).unwrap();
    let (plain, adapted) = (low.alone(&model), low.alone_in(session));
    assert_ne!(plain, adapted);
    let mut high = Asked::new(&text[50..140], 10);
    high.priority = 1;
    for swap_bytes in [0, 1 << 30] {
        let pool = pool(&model, 9, KvOptions { swap_bytes, ..Default::default() });
        let mut server = Server::new(&pool, ScheduleOptions::default());
        let first = server.submit(low.request(&model));
        let mut session = Session::in_pool(&pool, low.session.clone()).unwrap();
        session.set_adapters(&adapters).unwrap();
        let second = server.submit(Request { session: Some(session), ..low.request(&model) });
        (0..5).for_each(|_| drop(server.step()));
        let third = server.submit(high.request(&model));
        server.step();
        let stats = server.scheduler.stats();
        assert!(stats.waiting > 0 && stats.swapped + stats.dropped > 0, "{stats:?}");
        server.run();
        assert_eq!((server.told(first), server.told(second)), (&plain, &adapted));
        assert_eq!(server.told(third), &high.alone(&model));
    }
}

/// A conversation is more than its pages: whoever takes its request out has all of it.
#[test]
fn a_session_whose_pages_were_dropped_comes_back_with_its_tokens() {
    let Some((model, text)) = reference("llama_untied") else { return };
    let pool = pool(&model, 9, KvOptions::default());
    let mut server = Server::new(&pool, ScheduleOptions::default());
    let low = Asked::new(&text[30..70], 20);
    let ids = [Asked::new(&text[..40], 20).request(&model), low.request(&model)].map(|r| server.submit(r));
    (0..5).for_each(|_| drop(server.step()));
    let mut high = Asked::new(&text[50..140], 10);
    high.priority = 1;
    server.submit(high.request(&model));
    server.step();
    let told = server.told[&ids[1]].ids.clone();
    let mut session = server.scheduler.remove(ids[1]).unwrap().session.unwrap();
    let stats = server.scheduler.stats();
    assert!(stats.dropped > 0 && session.stats().pages == 0 && told.len() > 1, "{stats:?}, {session:?}");
    let (last, held) = told.split_last().unwrap();
    let tokens = [&low.prompt[..], held].concat();
    assert_eq!(session.tokens(), tokens);
    // Nothing but the time tells that they were gone, whatever is done next.
    let mut fork = session.fork().unwrap();
    server.run();
    for session in [&mut session, &mut fork] {
        session.decode(*last, None).unwrap();
        assert_eq!(session.tokens(), [&tokens[..], &[*last]].concat());
        let mut alone = Session::new(&model, low.session.clone()).unwrap();
        alone.prefill(session.tokens(), None, None).unwrap();
        assert_eq!(session.logits().unwrap(), alone.logits().unwrap());
    }
}

#[test]
fn what_windows_have_let_go_comes_back_with_a_request_that_never_ran() {
    let Some((model, text)) = reference("mistral_swa") else { return };
    let pool = pool(&model, 60, KvOptions { prefix_cache: false, ..Default::default() });
    let mut server = Server::new(&pool, ScheduleOptions::default());
    let ids: Vec<i32> = text.iter().cycle().take(250).copied().collect();
    let options = SessionOptions { max_tokens: 256, ..Default::default() };
    let mut session = Session::in_pool(&pool, options).unwrap();
    session.prefill(&ids, None, None).unwrap();
    session.truncate(100).unwrap();
    let asked = Asked::new(&[7, 8], 5);
    let id = server.submit(Request { session: Some(session), ..asked.request(&model) });
    let session = server.scheduler.remove(id).unwrap().session.unwrap();
    assert_eq!(session.tokens(), &ids[..100]);
}
