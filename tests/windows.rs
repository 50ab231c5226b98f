//! Layers with a window hold what they see and no more, and nothing that a session does shows it but the memory.

mod support;

use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::model::spec::Attention;
use llm::session::{Session, SessionOptions};
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
