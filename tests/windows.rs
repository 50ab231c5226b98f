//! Layers with a window hold what they see and no more, and nothing that a session does shows it but the memory.

mod support;

use llm::Status;
use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::model::spec::Attention;
use llm::runtime::Memory;
use llm::session::{Control, MemoryPlan, Overflow, Progress, Session, SessionOptions};
use llm_format::quant::Type;
use support::{Reference, logits, model, runtime};

const PAGE: usize = 16;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Models of which some layers, or all, have a window, each with ids far beyond it.
fn windowed() -> Vec<(String, Model, Vec<i32>)> {
    let windowed = |model: &Model| {
        model.spec().layers.iter().any(|l| matches!(&l.attention, Attention::Heads(h) if h.window.is_some()))
    };
    let mut found = Vec::new();
    for reference in Reference::all() {
        let model = model(&runtime(2, None), &reference.dir, Type::Q8);
        if windowed(&model) {
            let run = reference.runs().remove(0);
            let ids = reference.ids(&format!("{run}.input_ids"));
            let length = 300.min(model.spec().context as usize);
            found.push((reference.name, model, ids.into_iter().cycle().take(length).collect()));
        }
    }
    found
}

fn fresh(model: &Model, ids: &[i32]) -> Vec<u32> {
    let options = SessionOptions { max_tokens: 300, ..Default::default() };
    let all = logits(model, &options, ids);
    bits(&all[all.len() - model.spec().vocab as usize..])
}

fn pool(model: &Model, pages: u64) -> KvPool {
    let pool =
        KvPool::new(model, &KvOptions { page: PAGE, swap_bytes: 1 << 30, ..Default::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * pages).unwrap();
    pool
}

#[test]
fn pages_behind_a_window_are_let_go_and_bits_stay() {
    for (name, model, ids) in windowed() {
        let windows: Vec<usize> = model
            .spec()
            .layers
            .iter()
            .filter_map(|l| match &l.attention {
                Attention::Heads(h) => h.window.map(|w| w as usize),
                Attention::Latent(_) => None,
            })
            .collect();
        let (layers, most) = (model.spec().layers.len(), windows.iter().max().copied().unwrap_or(0));
        let pool = pool(&model, 400);
        let options = SessionOptions { max_tokens: 300, chunk: 32, ..Default::default() };
        let mut session = Session::in_pool(&pool, options).unwrap();
        session.prefill(&ids, None, None).unwrap();
        assert_eq!(bits(session.logits().unwrap()), fresh(&model, &ids), "{name}");
        // Layers with windows hold those, 64 tokens and a begun page at either end, and the others all.
        let groups = pool.stats().groups as usize;
        let all = ids.len().div_ceil(PAGE);
        let near = (most + 64).div_ceil(PAGE) + 2;
        let share = |layers_of: usize| (groups * layers_of).div_ceil(layers);
        let bound = share(layers - windows.len()) * all + share(windows.len()) * near.min(all);
        let held = session.stats().pages;
        assert!(
            held <= bound && (near >= all || held < groups * all),
            "{name}: {held} pages of {groups} x {all}"
        );
    }
}

#[test]
fn a_step_back_beyond_a_window_runs_what_is_kept_again() {
    for (name, model, ids) in windowed() {
        for cache in [false, true] {
            let pool = pool(&model, 400);
            let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
            for keep in [ids.len() - 1, ids.len() - 40, 100, 33, 16, 1, 0] {
                session.reset();
                session.prefill(&ids[..ids.len() - 7], None, None).unwrap();
                ids[ids.len() - 7..].iter().for_each(|&id| session.decode(id, None).unwrap());
                if !cache {
                    pool.clear_cache();
                }
                session.truncate(keep).unwrap();
                assert_eq!((session.len(), session.logits().is_err()), (keep, true));
                session.prefill(&ids[keep..keep + 1], None, None).unwrap();
                assert_eq!(bits(session.logits().unwrap()), fresh(&model, &ids[..keep + 1]), "{name} {keep}");
            }
        }
    }
}

#[test]
fn forks_snapshots_and_what_was_out_go_on_behind_a_window() {
    for (name, model, ids) in windowed() {
        let pool = pool(&model, 600);
        let make = || Session::in_pool(&pool, SessionOptions::default()).unwrap();
        let mut session = make();
        let (last, ids) = ids.split_last().unwrap();
        session.prefill(ids, None, None).unwrap();
        let snapshot = session.snapshot(&[]).unwrap();
        assert_eq!(snapshot.len(), session.snapshot_size(0));
        let (mut fork, mut restored, mut swapped) =
            (session.fork().unwrap(), make(), session.fork().unwrap());
        restored.restore(&snapshot).unwrap();
        assert_eq!(restored.snapshot(&[]).unwrap(), snapshot, "{name}");
        swapped.swap_out().unwrap();
        // Also from a step back, which what was out or restored does not have whole.
        for keep in [ids.len(), ids.len() - 20, 50] {
            for other in [&mut session, &mut fork, &mut restored, &mut swapped] {
                other.truncate(keep).unwrap();
                other.decode(*last, None).unwrap();
                let expected = fresh(&model, &[&ids[..keep], &[*last]].concat());
                assert_eq!(bits(other.logits().unwrap()), expected, "{name} {keep}");
            }
        }
        drop((session, fork, restored, swapped));
        pool.clear_cache();
        let stats = pool.stats();
        assert_eq!((stats.used, stats.cached, stats.swapped_bytes), (0, 0, 0), "{name}");
    }
}

#[test]
fn a_call_taken_back_behind_its_last_chunk_leaves_what_was_seen_before() {
    for (name, model, ids) in windowed() {
        for cache in [false, true] {
            let pool = pool(&model, 400);
            let options = SessionOptions { chunk: 32, ..Default::default() };
            let mut session = Session::in_pool(&pool, options).unwrap();
            session.prefill(&ids[..100], None, None).unwrap();
            let before = bits(session.logits().unwrap());
            let mut at_the_end =
                |p: Progress| if p.done == p.total { Control::Cancel } else { Control::Continue };
            let error = session.prefill(&ids[100..], None, Some(&mut at_the_end)).unwrap_err();
            assert_eq!(error.status(), Status::CANCELLED);
            assert_eq!((session.len(), bits(session.logits().unwrap())), (100, before));
            if !cache {
                pool.clear_cache();
            }
            session.decode(ids[100], None).unwrap();
            assert_eq!(bits(session.logits().unwrap()), fresh(&model, &ids[..101]), "{name}");
            // With a progress function that lets it end, pages are let go as they are without one.
            let mut goes_on = |_: Progress| Control::Continue;
            session.prefill(&ids[101..], None, Some(&mut goes_on)).unwrap();
            let mut twin =
                Session::in_pool(&pool, SessionOptions { chunk: 32, ..Default::default() }).unwrap();
            twin.prefill(&ids, None, None).unwrap();
            assert_eq!(session.stats().pages, twin.stats().pages, "{name}");
        }
    }
}

#[test]
fn what_is_taken_over_in_parts_holds_no_more_than_at_once() {
    for (name, model, ids) in windowed() {
        let pool = pool(&model, 600);
        let make = || Session::in_pool(&pool, SessionOptions::default()).unwrap();
        make().prefill(&ids, None, None).unwrap();
        let (mut once, mut parts) = (make(), make());
        let whole = ids.len() / PAGE * PAGE;
        assert_eq!(once.reuse(&ids).unwrap(), whole, "{name}");
        assert_eq!(parts.reuse(&ids[..96]).unwrap(), 96, "{name}");
        assert_eq!(parts.reuse(&ids[96..]).unwrap(), whole - 96, "{name}");
        assert_eq!(parts.stats().pages, once.stats().pages, "{name}");
    }
}

#[test]
fn keeping_less_than_a_window_left_runs_what_is_kept_again() {
    for (name, model, ids) in windowed() {
        let pool = pool(&model, 400);
        let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
        for keep in [50, 1] {
            session.reset();
            session.prefill(&ids, None, None).unwrap();
            pool.clear_cache();
            let row: Vec<f32> = fresh(&model, &ids[..keep]).into_iter().map(f32::from_bits).collect();
            session.keep(keep, Some(&row)).unwrap();
            assert_eq!((session.len(), session.logits().unwrap()), (keep, &row[..]));
            // A call that fails takes no logits away, whatever it had to run first.
            assert_eq!(session.prefill(&[-1], None, None).unwrap_err().status(), Status::INVALID_ARG);
            assert_eq!(session.logits().unwrap(), row, "{name} {keep}");
            session.decode(ids[keep], None).unwrap();
            assert_eq!(bits(session.logits().unwrap()), fresh(&model, &ids[..keep + 1]), "{name} {keep}");
        }
    }
}

#[test]
fn a_plan_counts_what_windows_keep_and_is_never_passed() {
    for (name, model, ids) in windowed() {
        let kv = KvOptions { page: PAGE, ..Default::default() };
        let options = SessionOptions { max_tokens: 300, chunk: 32, page: PAGE, ..Default::default() };
        let plan = |options: &SessionOptions| MemoryPlan::new(&model, &kv, options, 1, None).unwrap();
        let most = plan(&options).kv_total;
        let mut session = Session::new(&model, options.clone()).unwrap();
        let mut from = 0;
        for n in [100, 150, 1, 30] {
            let to = (from + n).min(ids.len());
            session.prefill(&ids[from..to], None, None).unwrap();
            from = to;
        }
        let used = model.runtime().memory_use(Memory::Kv);
        assert!(used <= most, "{name}: {used} of {most}");
        let long = SessionOptions { max_tokens: 1 << 20, ..options };
        let (long, groups) = (plan(&long), pool(&model, 16).stats().groups);
        assert!(long.kv_total < long.kv_per_token * (1 << 20), "{name}: {groups} groups");
    }
}

/// Of a tail that moves, only what windows see takes pages beside those that it comes from.
#[test]
fn a_plan_is_never_passed_where_tokens_go() {
    for (name, model, ids) in windowed() {
        for overflow in [Overflow::Shift { head: 5 }, Overflow::Recompute { head: 5 }] {
            let kv = KvOptions { page: PAGE, ..Default::default() };
            let options =
                SessionOptions { max_tokens: 1000, chunk: 32, page: PAGE, overflow, ..Default::default() };
            let most = MemoryPlan::new(&model, &kv, &options, 1, None).unwrap().kv_total;
            let mut session = Session::new(&model, options).unwrap();
            for _ in 0..1100usize.div_ceil(ids.len()) {
                ids.chunks(50).for_each(|chunk| session.prefill(chunk, None, None).unwrap());
            }
            let used = model.runtime().memory_use(Memory::Kv);
            assert!(session.dropped() > 0 && used <= most, "{name}, {overflow:?}: {used} of {most}");
        }
    }
}
