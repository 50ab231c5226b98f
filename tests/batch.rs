//! Batched equals alone: sessions that run together get the bits they get by themselves, and no slot's failure
//! touches another.

mod support;

use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::session::batch::{Batch, Slot, Want};
use llm::session::{Session, SessionOptions};
use llm::{Cancel, Status};
use llm_format::quant::Type;
use support::{Reference, logits, model, runtime};

/// A small generator, the same numbers every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A sequence, the logits it has when it runs alone, and how far the batch is with it.
struct Member {
    session: Session,
    ids: Vec<i32>,
    expected: Vec<f32>,
}

/// Runs `members` in steps of random slots and chunks until all are through, compares every row that is asked for.
fn run_together(pool: &KvPool, members: &mut [Member], dice: &mut Dice, what: &str) {
    let vocab = pool.model().spec().vocab as usize;
    let mut batch = Batch::new(pool).unwrap();
    while members.iter().any(|m| m.session.len() < m.ids.len()) {
        let mut plan = Vec::new();
        for (i, member) in members.iter().enumerate() {
            let left = member.ids.len() - member.session.len();
            if left > 0 && dice.below(4) > 0 {
                let n = if dice.below(2) == 0 { 1 } else { 1 + dice.below(left.min(40)) };
                let verify = Want::Verify(1 + dice.below(n));
                plan.push((i, n, [Want::None, Want::Last, Want::All, verify][dice.below(4)]));
            }
        }
        // Slots in any order.
        for i in (1..plan.len()).rev() {
            plan.swap(i, dice.below(i + 1));
        }
        let mut free: Vec<Option<&mut Member>> = members.iter_mut().map(Some).collect();
        let mut slots = Vec::new();
        let mut expected = Vec::new();
        for &(i, n, want) in &plan {
            let Member { session, ids, expected: alone } = free[i].take().unwrap();
            let (from, to) = (session.len(), session.len() + n);
            expected.push(match want {
                Want::None => &[][..],
                Want::Last => &alone[(to - 1) * vocab..to * vocab],
                Want::All => &alone[from * vocab..to * vocab],
                Want::Verify(rows) => &alone[(to - rows) * vocab..to * vocab],
            });
            slots.push(Slot { session, ids: &ids[from..to], want });
        }
        batch.run(&mut slots, None).unwrap();
        for (i, expected) in expected.iter().enumerate() {
            batch.status(i).unwrap();
            assert_eq!(bits(batch.logits(i).unwrap()), bits(expected), "{what}, slot {i} of {}", slots.len());
            if let Want::Verify(rows) = slots[i].want {
                // Takes back some of what was computed, which comes again with the next step.
                let keep = 1 + dice.below(rows);
                let row = &expected[(keep - 1) * vocab..keep * vocab];
                let held = slots[i].session.len();
                slots[i].session.keep(held - rows + keep, Some(row)).unwrap();
                assert_eq!(bits(slots[i].session.logits().unwrap()), bits(row));
            } else if slots[i].want != Want::None {
                let last = slots[i].session.logits().unwrap();
                assert_eq!(bits(last), bits(&expected[expected.len() - vocab..]));
            }
        }
    }
}

fn check(name: &str, model: &Model, sequences: &[Vec<i32>], options: &SessionOptions) {
    let mut dice = Dice(name.len() as u64);
    let alone: Vec<_> = sequences.iter().map(|ids| logits(model, options, ids)).collect();
    for size in [1, 2, 7, 16] {
        for prefix_cache in [false, true] {
            let page = [16, 32, 64][dice.below(3)];
            let probe = KvPool::new(model, &KvOptions { page, ..Default::default() }).unwrap();
            let pages = size * sequences.iter().map(|ids| ids.len().div_ceil(page)).max().unwrap();
            let budget_bytes = probe.stats().page_bytes * probe.stats().groups * pages as u64;
            let kv = KvOptions { budget_bytes, page, prefix_cache, ..Default::default() };
            let pool = KvPool::new(model, &kv).unwrap();
            let mut members: Vec<Member> = (0..size)
                .map(|_| {
                    let which = dice.below(sequences.len());
                    Member {
                        session: Session::in_pool(&pool, options.clone()).unwrap(),
                        ids: sequences[which].clone(),
                        expected: alone[which].clone(),
                    }
                })
                .collect();
            run_together(&pool, &mut members, &mut dice, &format!("{name}, {size} of pages of {page}"));
            drop(members);
            pool.clear_cache();
            assert_eq!((pool.stats().used, pool.stats().cached), (0, 0));
        }
    }
}

#[test]
fn batched_equals_alone_on_every_reference() {
    let runtime = runtime(0, None);
    for reference in Reference::all() {
        let run = if reference.runs().iter().any(|r| r == "long") { "long" } else { "short" };
        let ids = reference.ids(&format!("{run}.input_ids"));
        let ids = &ids[..ids.len().min(80)];
        let options = reference.options(ids.len(), ids.len());
        let reversed = ids.iter().rev().copied().collect();
        let sequences = [ids.to_vec(), reversed, ids[..ids.len() / 2].to_vec()];
        check(&reference.name, &model(&runtime, &reference.dir, Type::Q8), &sequences, &options);
    }
}

#[test]
fn batched_equals_alone_on_a_trained_model() {
    let Some(place) = llm_testdata::shared("data/weights/stories260K") else { return };
    let text: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.join("reference.json")).unwrap()).unwrap();
    let ids: Vec<i32> =
        text["greedy"]["ids"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect();
    let sequences = [ids[..150.min(ids.len())].to_vec(), ids[ids.len() / 2..].to_vec(), ids[..70].to_vec()];
    for ty in [Type::F32, Type::Q8, Type::Q4] {
        let model = model(&runtime(0, None), &place.join("hf"), ty);
        check("stories260K", &model, &sequences, &SessionOptions { max_tokens: 300, ..Default::default() });
    }
}

fn tiny() -> Option<(Model, Vec<i32>)> {
    let reference = Reference::all().into_iter().find(|r| r.name == "llama_untied")?;
    Some((model(&runtime(2, None), &reference.dir, Type::Q4), reference.ids("long.input_ids")))
}

#[test]
fn a_slot_that_fails_touches_no_other() {
    let Some((model, ids)) = tiny() else { return };
    let page = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap().stats().page_bytes;
    let options = KvOptions { budget_bytes: 6 * page, page: 16, prefix_cache: false, ..Default::default() };
    let pool = KvPool::new(&model, &options).unwrap();
    let other = KvPool::new(&model, &options).unwrap();
    let session = |pool, max_tokens| {
        Session::in_pool(pool, SessionOptions { max_tokens, ..Default::default() }).unwrap()
    };
    let (mut good, mut bad_id, mut full, mut short, mut foreign, mut late) = (
        session(&pool, 100),
        session(&pool, 100),
        session(&pool, 100),
        session(&pool, 10),
        session(&other, 100),
        session(&pool, 100),
    );
    full.prefill(&ids[..5], None, None).unwrap();
    let before = full.logits().unwrap().to_vec();
    let wrong = [ids[0], -1];
    fn slot<'a>(session: &'a mut Session, ids: &'a [i32]) -> Slot<'a> {
        Slot { session, ids, want: Want::Last }
    }
    let mut slots = [
        slot(&mut good, &ids[..30]),
        slot(&mut bad_id, &wrong),
        slot(&mut full, &ids[..95]),
        slot(&mut short, &ids[..11]),
        slot(&mut foreign, &ids[..3]),
        slot(&mut late, &ids[..20]),
    ];
    let mut batch = Batch::new(&pool).unwrap();
    batch.run(&mut slots, None).unwrap();
    let status = |i| batch.status(i).err().map(|e| e.status());
    assert_eq!(status(0), None);
    assert_eq!(status(1), Some(Status::INVALID_ARG));
    assert_eq!(status(2), Some(Status::KV_FULL));
    assert_eq!(status(3), Some(Status::CONTEXT_FULL));
    assert_eq!(status(4), Some(Status::INVALID_ARG));
    assert_eq!(status(5), None);
    assert_eq!(status(6), Some(Status::INVALID_ARG));
    assert_eq!(
        (good.len(), bad_id.len(), full.len(), short.len(), foreign.len(), late.len()),
        (30, 0, 5, 0, 0, 20)
    );
    assert_eq!(full.logits().unwrap(), before);
    let alone = logits(&model, &SessionOptions::default(), &ids[..30]);
    let vocab = model.spec().vocab as usize;
    assert_eq!(good.logits().unwrap(), &alone[29 * vocab..]);
    assert_eq!(late.logits().unwrap(), &alone[19 * vocab..20 * vocab]);
}

#[test]
fn a_cancelled_step_leaves_every_session_as_it_was() {
    let Some((model, ids)) = tiny() else { return };
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    let make = || Session::in_pool(&pool, SessionOptions::default()).unwrap();
    let (mut a, mut b) = (make(), make());
    a.prefill(&ids[..40], None, None).unwrap();
    let before = a.logits().unwrap().to_vec();
    let mut batch = Batch::new(&pool).unwrap();
    let cancel = Cancel::new();
    cancel.trigger();
    let mut slots = [
        Slot { session: &mut a, ids: &ids[40..50], want: Want::All },
        Slot { session: &mut b, ids: &ids[..60], want: Want::Last },
    ];
    assert_eq!(batch.run(&mut slots, Some(&cancel)).unwrap_err().status(), Status::CANCELLED);
    assert_eq!(batch.status(1).unwrap_err().status(), Status::CANCELLED);
    assert_eq!((a.len(), b.len()), (40, 0));
    assert_eq!(a.logits().unwrap(), before);
    a.prefill(&ids[40..60], None, None).unwrap();
    let alone = logits(&model, &SessionOptions::default(), &ids[..60]);
    assert_eq!(a.logits().unwrap(), &alone[59 * model.spec().vocab as usize..]);
}

#[test]
fn a_step_of_nobody_and_slots_without_ids_do_nothing() {
    let Some((model, ids)) = tiny() else { return };
    let pool = KvPool::new(&model, &KvOptions::default()).unwrap();
    let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
    session.prefill(&ids[..3], None, None).unwrap();
    let mut batch = Batch::new(&pool).unwrap();
    batch.run(&mut [], None).unwrap();
    let mut slots = [Slot { session: &mut session, ids: &[], want: Want::Last }];
    batch.run(&mut slots, None).unwrap();
    batch.status(0).unwrap();
    assert!(session.len() == 3 && session.logits().is_ok());
}
