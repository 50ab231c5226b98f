//! What each thread does.

use std::sync::atomic::Ordering;

use llm::Status;
use llm::model::{Model, OpenOptions};
use llm::session::Session;
use llm::session::batch::{Batch, Slot, Want};
use llm::session::generate::{Generation, GenerationOptions, Kind, Reason};
use llm::session::schedule::{Request, ScheduleOptions, Scheduler, Update};
use llm::session::several::Several;
use llm::session::speculative::{DraftOptions, Source, SpecOptions};

use crate::place::{Dice, LENGTH, PROMPT, Place, options};

/// Sessions that do everything a session can.
pub fn sessions(place: &Place, seed: u64) {
    let mut dice = Dice::new(seed);
    for _ in 0..place.rounds {
        let passed = place.passed.lock().expect("no panic").pop();
        let (mut session, mut of) = passed.unwrap_or_else(|| {
            let of = dice.below(2);
            (place.session(of), of)
        });
        while session.len() < LENGTH {
            let (from, ids) = (session.len(), &place.runs[of].ids);
            let n = (1 + dice.below(30)).min(LENGTH - from);
            match session.prefill(&ids[from..from + n], place.cancel(&mut dice).as_ref(), None) {
                Ok(()) => place.check(&session, of),
                Err(e) => {
                    place.expect(&e);
                    assert_eq!(session.len(), from, "as before the call");
                    if e.status() == Status::KV_FULL {
                        session.reset();
                        std::thread::yield_now();
                    }
                }
            }
            something_else(place, &mut session, &mut of, &mut dice);
        }
    }
}

fn something_else(place: &Place, session: &mut Session, of: &mut usize, dice: &mut Dice) {
    match dice.below(14) {
        0 => {
            if let Some(mut fork) = place.or_expected(session.fork()) {
                std::mem::swap(session, &mut fork);
                place.check(&fork, *of);
                if dice.below(2) == 0 {
                    pass_on(place, fork, *of);
                }
            }
        }
        1 => drop(place.or_expected(session.swap_out())),
        2 => session.truncate(dice.below(session.len() + 1)).expect("held"),
        3 => {
            if let Some(bytes) = place.or_expected(session.snapshot(b"beside")) {
                session.reset();
                if let Some(beside) = place.or_expected(session.restore(&bytes)) {
                    assert_eq!(beside, b"beside");
                    place.check(session, *of);
                }
            }
        }
        4 => {
            let fresh = place.session(*of);
            pass_on(place, std::mem::replace(session, fresh), *of);
        }
        5 => {
            let pinned = session.pin();
            place.check(session, *of);
            if pinned > 0 {
                session.unpin();
            }
        }
        6 => drop(place.or_expected(session.reserve(dice.below(20)))),
        7 => {
            session.reset();
            let from = place.runs[*of].ids.len();
            if let Some(reused) = place.or_expected(session.reuse(&place.runs[*of].ids[..from - 1])) {
                assert_eq!(session.len(), reused);
                place.check(session, *of);
            }
        }
        8 => {
            session.reset();
            *of = 1 - *of;
            session.set_adapters(&place.runs[*of].adapters).expect("an empty session");
        }
        _ => {}
    }
}

/// For another thread; the oldest goes where there are many.
fn pass_on(place: &Place, session: Session, of: usize) {
    let mut passed = place.passed.lock().expect("no panic");
    passed.push((session, of));
    if passed.len() > 3 {
        passed.remove(0);
    }
}

/// Steps of sessions that join and leave.
pub fn batches(place: &Place, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut batch = Batch::new(&place.pool).expect("a batch");
    let mut members: Vec<(Session, usize)> = Vec::new();
    for _ in 0..place.rounds * 8 {
        if members.len() < 4 && dice.below(2) == 0 {
            let of = dice.below(2);
            members.push((place.session(of), of));
        }
        let parts: Vec<_> = members
            .iter()
            .map(|(session, of)| {
                let n = (1 + dice.below(9)).min(LENGTH - session.len());
                &place.runs[*of].ids[session.len()..session.len() + n]
            })
            .collect();
        let slots = members.iter_mut().zip(&parts);
        let mut slots: Vec<_> =
            slots.map(|((session, _), ids)| Slot { session, ids, want: Want::Last }).collect();
        let ran = batch.run(&mut slots, place.cancel(&mut dice).as_ref());
        if place.or_expected(ran).is_none() {
            continue;
        }
        for (i, (session, of)) in members.iter_mut().enumerate() {
            match place.or_expected(batch.status(i)) {
                Some(()) => place.check(session, *of),
                None => session.reset(),
            }
        }
        members.retain(|(session, _)| session.len() < LENGTH && dice.below(30) > 0);
    }
}

/// Requests of a server.
pub fn scheduled(place: &Place, seed: u64) {
    let mut dice = Dice::new(seed);
    let schedule = ScheduleOptions { chunk: 16, sessions: 4, ..Default::default() };
    let mut scheduler = Scheduler::new(&place.pool, schedule).expect("a scheduler");
    let mut told = std::collections::HashMap::new();
    let step = |scheduler: &mut Scheduler, told: &mut std::collections::HashMap<_, usize>| {
        for update in place.or_expected(scheduler.step(None)).unwrap_or_default() {
            match update {
                Update::Progress(..) => {}
                Update::Event(id, event) => {
                    let at = told.entry(id).or_insert(PROMPT);
                    *at = place.runs[0].check_event(*at, &event);
                }
                Update::Ended(_, ended) => {
                    if let Some(error) = &ended.error {
                        place.expect(error);
                    }
                }
            }
        }
    };
    for _ in 0..place.rounds * 2 {
        let generation =
            GenerationOptions { max_tokens: 1 + dice.below(LENGTH - PROMPT), ..Default::default() };
        let run = &place.runs[0];
        let request = Request {
            prompt: run.ids[..PROMPT].to_vec(),
            session: None,
            options: options(),
            sampler: run.sampler(PROMPT),
            generation: Generation::new(None, &generation).expect("possible options"),
            priority: dice.below(2) as i32,
            cancel: place.cancel(&mut dice),
        };
        if let Err(refused) = scheduler.submit(request) {
            place.expect(&refused.error);
        }
        for _ in 0..dice.below(12) {
            step(&mut scheduler, &mut told);
        }
    }
    while !scheduler.is_idle() {
        step(&mut scheduler, &mut told);
    }
}

/// Generations with guesses, and several of one prompt.
pub fn generations(place: &Place, seed: u64) {
    let mut dice = Dice::new(seed);
    for _ in 0..place.rounds {
        let of = dice.below(2);
        let run = &place.runs[of];
        let mut session = place.session(of);
        while session.is_empty() {
            place.or_expected(session.prefill(&run.ids[..PROMPT], None, None));
        }
        let generation = GenerationOptions { max_tokens: LENGTH - PROMPT, ..Default::default() };
        if dice.below(4) == 0 {
            several(place, &mut session, of, &generation, &mut dice);
            continue;
        }
        let mut generation = Generation::new(None, &generation).expect("possible options");
        let mut guess = SpecOptions::ngram();
        if dice.below(3) > 0 {
            let model = place.drafts.model().clone();
            guess.source = Source::Draft(DraftOptions { model, pool: Some(place.drafts.clone()) });
        }
        generation.speculate(guess.start(place.model()).expect("a draft of the same vocabulary"));
        let (mut sampler, mut told) = (run.sampler(PROMPT), PROMPT);
        loop {
            match generation.next(&mut session, &mut sampler, place.cancel(&mut dice).as_ref()) {
                Ok(event) => {
                    told = run.check_event(told, &event);
                    place.check(&session, of);
                    match event.reason {
                        None => {}
                        Some(Reason::Cancelled) => {
                            place.cancelled.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        Some(reason) => {
                            assert_eq!((reason, told), (Reason::Length, LENGTH));
                            break;
                        }
                    }
                }
                // Others have the pages: this one gives its own up.
                Err(e) => {
                    place.expect(&e);
                    break;
                }
            }
        }
    }
}

fn several(place: &Place, session: &mut Session, of: usize, options: &GenerationOptions, dice: &mut Dice) {
    let run = &place.runs[of];
    let several = Several::new(session, &run.sampler(PROMPT), 2, options);
    let Some(mut several) = place.or_expected(several) else { return };
    let mut told = PROMPT;
    loop {
        let events = several.next(place.cancel(dice).as_ref());
        if events.is_empty() {
            return;
        }
        for (i, event) in events {
            let Some(event) = place.or_expected(event) else { return };
            // The other one has another seed.
            if i == 0 {
                told = run.check_event(told, &event);
                assert_eq!(event.kind == Kind::Done, event.reason.is_some());
            }
        }
    }
}

/// The pools' own calls, while others compute.
pub fn housekeeping(place: &Place, seed: u64) {
    let mut dice = Dice::new(seed);
    let stats = place.pool.stats();
    let (page, total) = (stats.page_bytes, stats.total);
    while place.running.load(Ordering::Acquire) {
        let pool = if dice.below(4) == 0 { &place.drafts } else { &place.pool };
        let stats = pool.stats();
        assert_eq!(stats.used + stats.cached + stats.free, stats.total);
        match dice.below(7) {
            0 => drop(pool.defragment()),
            1 => drop(pool.evict(page)),
            2 => pool.clear_cache(),
            3 => drop(place.model().runtime().trim(dice.below(2) == 0)),
            4 => {
                let again =
                    Model::open_path(place.model().runtime(), &place.file, &OpenOptions::default(), None);
                assert_eq!(again.expect("a model's file").fingerprint(), place.model().fingerprint());
            }
            _ => {
                let pages = total - dice.below(4) as u64;
                place.or_expected(place.pool.resize(pages * page));
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(dice.below(2000) as u64));
    }
}
