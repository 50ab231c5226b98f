//! A call ends wherever it is told to: before every layer, while it waits, by flag, deadline or progress function; and
//! the session goes on as if the call had never been, or from its last chunk.

mod support;

use std::time::Duration;

use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::session::batch::{Batch, Slot, Want};
use llm::session::{Control, Overflow, Progress, Session, SessionOptions};
use llm::{Cancel, Result, Status};
use llm_format::quant::Type;
use support::{Reference, logits, model, runtime};

fn tiny() -> Option<(Model, Vec<i32>)> {
    let reference = Reference::all().into_iter().find(|r| r.name == "llama_untied")?;
    let ids = reference.ids("long.input_ids").into_iter().cycle().take(200).collect();
    Some((model(&runtime(2, None), &reference.dir, Type::Q8), ids))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn fresh(model: &Model, tokens: &[i32]) -> Vec<u32> {
    let all = logits(model, &SessionOptions::default(), tokens);
    bits(&all[all.len() - model.spec().vocab as usize..])
}

/// Runs `call` with a flag that sets itself at the first look, at the second, and so on, until the call succeeds.
/// Returns how often a call of this kind looks.
fn at_every_place(mut call: impl FnMut(&Cancel) -> Result<()>, mut cancelled: impl FnMut(u64)) -> u64 {
    for checks in 1.. {
        match call(&Cancel::after(checks)) {
            Ok(()) => return checks - 1,
            Err(e) => {
                assert_eq!(e.status(), Status::CANCELLED);
                cancelled(checks);
            }
        }
    }
    unreachable!("a call ends")
}

#[test]
fn a_call_cancelled_before_any_layer_leaves_the_session_as_it_was() {
    let Some((model, ids)) = tiny() else { return };
    let layers = model.spec().layers.len() as u64;
    let make = |overflow| {
        let options = SessionOptions { chunk: 8, max_tokens: 64, page: 16, overflow, ..Default::default() };
        let mut session = Session::new(&model, options).unwrap();
        session.prefill(&ids[..30], None, None).unwrap();
        session
    };
    // Prefill of three chunks, decoding, and logits of each token.
    type Call<'a> = &'a mut dyn FnMut(&mut Session, &Cancel) -> Result<()>;
    let mut calls: [(u64, Call<'_>); 3] = [
        (3 * layers, &mut |session, cancel| session.prefill(&ids[30..53], Some(cancel), None)),
        (layers, &mut |session, cancel| session.decode(ids[30], Some(cancel))),
        (2 * layers, &mut |session, cancel| {
            session.prefill_each(&ids[30..41], Some(cancel), &mut |_, _| Ok(()))
        }),
    ];
    for (looks, call) in &mut calls {
        let session = std::cell::RefCell::new(make(Overflow::Error));
        let before = bits(session.borrow().logits().unwrap());
        let looked = at_every_place(
            |cancel| call(&mut session.borrow_mut(), cancel),
            |_| {
                let session = session.borrow();
                assert_eq!(session.tokens(), &ids[..30]);
                assert_eq!(bits(session.logits().unwrap()), before);
                assert_eq!(session.pool().stats().used, 2, "pages that only the cancelled call needed");
            },
        );
        assert_eq!(looked, *looks, "once before every layer");
        let session = session.borrow();
        assert_eq!(bits(session.logits().unwrap()), fresh(&model, session.tokens()));
    }
    // An overflow runs the tail again, or looks between the layers it moves.
    for overflow in [Overflow::Recompute { head: 5 }, Overflow::Shift { head: 5 }] {
        let session = std::cell::RefCell::new(make(overflow));
        session.borrow_mut().prefill(&ids[30..60], None, None).unwrap();
        let before = bits(session.borrow().logits().unwrap());
        let looked = at_every_place(
            |cancel| session.borrow_mut().prefill(&ids[60..70], Some(cancel), None),
            |_| {
                let session = session.borrow();
                assert_eq!((session.tokens(), session.dropped()), (&ids[..60], 0));
                assert_eq!(bits(session.logits().unwrap()), before);
                assert_eq!(session.pool().stats().used, 4);
            },
        );
        assert!(looked >= 3 * layers && session.borrow().dropped() > 0);
    }
}

#[test]
fn without_rollback_it_stands_at_the_last_chunk_wherever_it_was_cancelled() {
    let Some((model, ids)) = tiny() else { return };
    let layers = model.spec().layers.len() as u64;
    let options = SessionOptions { chunk: 8, rollback_on_cancel: false, ..Default::default() };
    let mut session = Session::new(&model, options).unwrap();
    session.prefill(&ids[..30], None, None).unwrap();
    for checks in 1..=3 * layers {
        session.truncate(30).unwrap();
        let error = session.prefill(&ids[30..54], Some(&Cancel::after(checks)), None).unwrap_err();
        assert_eq!(error.status(), Status::CANCELLED);
        let held = 30 + (checks as usize - 1) / layers as usize * 8;
        assert_eq!(session.tokens(), &ids[..held]);
        if held > 30 {
            assert_eq!(bits(session.logits().unwrap()), fresh(&model, &ids[..held]));
        }
    }
    // The rest follows as if nothing had happened.
    let held = session.len();
    session.prefill(&ids[held..60], None, None).unwrap();
    assert_eq!(bits(session.logits().unwrap()), fresh(&model, &ids[..60]));
}

#[test]
fn a_step_of_several_sessions_cancelled_before_any_layer_changes_none() {
    let Some((model, ids)) = tiny() else { return };
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    let make = |n: usize| {
        let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
        session.prefill(&ids[n..n + 20], None, None).unwrap();
        session
    };
    let (mut a, mut b) = (make(0), make(40));
    let (in_a, in_b) = (bits(a.logits().unwrap()), bits(b.logits().unwrap()));
    let used = pool.stats().used;
    let mut batch = Batch::new(&pool).unwrap();
    for checks in 1.. {
        let mut slots = [
            Slot { session: &mut a, ids: &ids[20..40], want: Want::Last },
            Slot { session: &mut b, ids: &ids[60..61], want: Want::Last },
        ];
        if batch.run(&mut slots, Some(&Cancel::after(checks))).is_ok() {
            assert_eq!(checks - 1, model.spec().layers.len() as u64);
            break;
        }
        assert!(batch.status(0).is_err() && batch.status(1).is_err());
        assert_eq!((a.tokens(), b.tokens()), (&ids[..20], &ids[40..60]));
        assert_eq!((bits(a.logits().unwrap()), bits(b.logits().unwrap())), (in_a.clone(), in_b.clone()));
        assert_eq!(pool.stats().used, used);
    }
    assert_eq!(bits(a.logits().unwrap()), fresh(&model, &ids[..40]));
    assert_eq!(bits(b.logits().unwrap()), fresh(&model, &ids[40..61]));
}

/// Sessions of one pool on several threads, each cancelled anywhere, computing or waiting for its turn.
#[test]
fn sessions_that_wait_for_each_other_are_cancelled_and_go_on() {
    let Some((model, ids)) = tiny() else { return };
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * 64).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (pool, ids, model) = (&pool, &ids, &model);
            scope.spawn(move || {
                let options =
                    SessionOptions { chunk: 8, rollback_on_cancel: thread % 2 == 0, ..Default::default() };
                let mut session = Session::in_pool(pool, options).unwrap();
                let ids = &ids[thread * 10..];
                let mut held = 0;
                for step in 0..60u64 {
                    let cancel = Cancel::after(1 + (step * 7 + thread as u64) % 23);
                    if step % 5 == 0 {
                        cancel.set_deadline(Some(Duration::from_micros(step * 20)));
                    }
                    let to = (held + 1 + step as usize % 17).min(100);
                    match session.prefill(&ids[held..to], Some(&cancel), None) {
                        Ok(()) => held = to,
                        Err(e) => assert!(matches!(e.status(), Status::CANCELLED | Status::DEADLINE)),
                    }
                    if thread % 2 == 0 {
                        assert_eq!(session.len(), held);
                    }
                    held = session.len();
                    assert_eq!(session.tokens(), &ids[..held]);
                    if held == 100 {
                        session.truncate(step as usize).unwrap();
                        held = step as usize;
                    }
                }
                session.prefill(&ids[held..held + 3], None, None).unwrap();
                assert_eq!(bits(session.logits().unwrap()), fresh(model, session.tokens()));
            });
        }
    });
    pool.clear_cache();
    assert_eq!((pool.stats().used, pool.stats().cached), (0, 0));
}

#[test]
fn progress_tells_what_was_found_what_is_done_and_what_there_is() {
    let Some((model, ids)) = tiny() else { return };
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * 16).unwrap();
    let make = || Session::in_pool(&pool, SessionOptions { chunk: 16, ..Default::default() }).unwrap();
    make().prefill(&ids[..40], None, None).unwrap();
    let mut told = Vec::new();
    let mut tell = |progress: Progress| {
        told.push(progress);
        Control::Continue
    };
    make().prefill(&ids[..70], None, Some(&mut tell)).unwrap();
    let expected = [48, 64, 70].map(|done| Progress { done, reused: 32, total: 70 });
    assert_eq!(told, expected);
}
