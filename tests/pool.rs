//! Where pages come from changes no bit: fresh, forked, found in the pool, truncated and run again, evicted and
//! computed again, swapped, restored from a snapshot; alone and beside others.

mod support;

use llm::Status;
use llm::kv::{Eviction, KvOptions, KvPool};
use llm::model::Model;
use llm::runtime::{Memory, Runtime};
use llm::session::{Control, Progress, Session, SessionOptions};
use llm_format::quant::Type;
use support::{Reference, logits, model, runtime};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// A pool of `pages` pages.
fn pool(model: &Model, pages: u64, options: KvOptions) -> KvPool {
    let pool = KvPool::new(model, &options).unwrap();
    pool.resize(pool.stats().page_bytes * pool.stats().groups * pages).unwrap();
    pool
}

/// A random walk over everything a session can do; after each computation the logits are those of a fresh session.
fn walk(
    name: &str,
    model: &Model,
    sequences: &[Vec<i32>],
    options: &SessionOptions,
    seed: u64,
    steps: usize,
) {
    let mut dice = Dice(seed);
    let vocab = model.spec().vocab as usize;
    let alone: Vec<_> = sequences.iter().map(|ids| logits(model, options, ids)).collect();
    let page = [16, 32, 64][dice.below(3)];
    let longest = sequences.iter().map(Vec::len).max().unwrap();
    let kv = KvOptions {
        page,
        swap_bytes: 1 << 30,
        eviction: [Eviction::LeastRecent, Eviction::Priority][dice.below(2)],
        ..Default::default()
    };
    // Tight: sessions meet the limit, and cached pages go.
    let pool = pool(model, 2 * longest.div_ceil(page) as u64 + 2, kv);
    let options = SessionOptions { chunk: [1, 16, 64, 512][dice.below(4)], ..options.clone() };
    let make = || Session::in_pool(&pool, options.clone()).unwrap();
    let mut sessions: Vec<(usize, Session)> = Vec::new();
    let mut snapshots: Vec<(usize, Vec<u8>)> = Vec::new();
    for step in 0..steps {
        let i = dice.below(sessions.len().max(1));
        match dice.below(16) {
            0 | 1 => sessions.push((dice.below(sequences.len()), make())),
            2 if !sessions.is_empty() => drop(sessions.swap_remove(i)),
            3 if !sessions.is_empty() => {
                if let Ok(fork) = sessions[i].1.fork() {
                    let which = sessions[i].0;
                    sessions.push((which, fork));
                }
            }
            4 if !sessions.is_empty() => {
                let session = &mut sessions[i].1;
                session.truncate(dice.below(session.len() + 1)).unwrap();
            }
            5 if !sessions.is_empty() => sessions[i].1.swap_out().unwrap(),
            6 => {
                pool.evict(pool.stats().page_bytes * dice.below(3) as u64);
            }
            7 => {
                pool.defragment();
            }
            8 if !sessions.is_empty() => {
                let (which, session) = &mut sessions[i];
                if let Ok(snapshot) = session.snapshot(b"beside") {
                    assert_eq!(snapshot.len(), session.snapshot_size(6));
                    snapshots.push((*which, snapshot));
                }
            }
            9 if !snapshots.is_empty() => {
                let (which, snapshot) = &snapshots[dice.below(snapshots.len())];
                let mut session = make();
                match session.restore(snapshot) {
                    Ok(extra) => {
                        assert_eq!(extra, b"beside");
                        sessions.push((*which, session));
                    }
                    Err(e) => assert!(e.status() == Status::KV_FULL && session.is_empty()),
                }
            }
            _ if !sessions.is_empty() => {
                let (which, session) = &mut sessions[i];
                let ids = &sequences[*which];
                let from = session.len();
                let n = (1 + dice.below(40)).min(ids.len() - from);
                if n == 0 {
                    continue;
                }
                let before = session.logits().map(bits).ok();
                match session.prefill(&ids[from..from + n], None, None) {
                    Ok(()) => {
                        let expected = &alone[*which][(from + n - 1) * vocab..(from + n) * vocab];
                        let got = bits(session.logits().unwrap());
                        assert!(
                            got == bits(expected),
                            "{name}, seed {seed}, step {step}, {from} + {n} tokens"
                        );
                    }
                    Err(e) => {
                        assert_eq!(e.status(), Status::KV_FULL);
                        assert_eq!((session.len(), session.logits().map(bits).ok()), (from, before));
                    }
                }
            }
            _ => {}
        }
        let stats = pool.stats();
        assert_eq!(stats.used + stats.cached + stats.free, stats.total);
        for (which, session) in &sessions {
            assert_eq!(session.tokens(), &sequences[*which][..session.len()]);
        }
        if sessions.len() > 6 {
            sessions.remove(0);
        }
        if snapshots.len() > 4 {
            snapshots.remove(0);
        }
    }
    drop(sessions);
    pool.clear_cache();
    let stats = pool.stats();
    assert_eq!((stats.used, stats.cached, stats.swapped_bytes), (0, 0, 0));
    assert_eq!(stats.free, stats.total);
}

#[test]
fn where_pages_come_from_changes_no_bit() {
    let runtime = runtime(0, None);
    for reference in Reference::all() {
        let run = if reference.runs().iter().any(|r| r == "long") { "long" } else { "short" };
        let ids = reference.ids(&format!("{run}.input_ids"));
        let ids = &ids[..ids.len().min(120)];
        let options = reference.options(ids.len(), ids.len());
        // Two that part in the middle, so that they share a prefix.
        let mut other = ids.to_vec();
        let half = ids.len() / 2;
        other[half..].reverse();
        let model = model(&runtime, &reference.dir, Type::Q8);
        for seed in [1, 2] {
            let sequences = [ids.to_vec(), other.clone()];
            walk(&reference.name, &model, &sequences, &options, seed + ids[0] as u64, 60);
        }
    }
    assert_eq!(runtime.memory_use(Memory::Kv), 0);
}

fn tiny() -> Option<(Runtime, Model, Vec<i32>)> {
    let reference = Reference::all().into_iter().find(|r| r.name == "llama_untied")?;
    let runtime = runtime(2, None);
    let model = model(&runtime, &reference.dir, Type::Q4);
    Some((runtime, model, reference.ids("long.input_ids")))
}

#[test]
fn a_prompt_that_was_there_is_not_computed_again() {
    let Some((_runtime, model, ids)) = tiny() else { return };
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    let make = || Session::in_pool(&pool, SessionOptions { chunk: 16, ..Default::default() }).unwrap();
    let mut first = make();
    first.prefill(&ids[..100], None, None).unwrap();
    let expected = bits(first.logits().unwrap());
    drop(first);
    assert_eq!((pool.stats().used, pool.stats().cached), (0, 6));
    let mut second = make();
    assert_eq!(second.match_prefix(&ids[..100]), 96);
    let mut told = Vec::new();
    let mut tell = |p: Progress| {
        told.push((p.reused, p.done, p.total));
        Control::Continue
    };
    second.prefill(&ids[..100], None, Some(&mut tell)).unwrap();
    assert_eq!(told, [(96, 100, 100)]);
    assert_eq!(bits(second.logits().unwrap()), expected);
    assert_eq!(pool.stats().hit_tokens, 96);
    // A whole number of pages: the last token's page is computed, for its logits, and becomes the one that is there.
    let mut third = make();
    third.prefill(&ids[..96], None, None).unwrap();
    assert_eq!(pool.stats().hit_tokens, 96 + 80);
    assert_eq!((pool.stats().shared, pool.stats().used), (6, 7));
    let mut fourth = make();
    assert_eq!(fourth.reuse(&ids[..100]).unwrap(), 96);
    assert_eq!(fourth.logits().unwrap_err().status(), Status::BAD_STATE);
    fourth.prefill(&ids[96..100], None, None).unwrap();
    assert_eq!(bits(fourth.logits().unwrap()), expected);
}

#[test]
fn pinned_prefixes_outlive_their_session_and_evictions() {
    let Some((_runtime, model, ids)) = tiny() else { return };
    let pool = pool(&model, 8, KvOptions { page: 16, ..Default::default() });
    let make = || Session::in_pool(&pool, SessionOptions::default()).unwrap();
    let mut system = make();
    system.prefill(&ids[..40], None, None).unwrap();
    assert_eq!(system.pin(), 32);
    drop(system);
    assert_eq!((pool.stats().pinned, pool.stats().cached), (2, 2));
    let reversed: Vec<i32> = ids.iter().rev().copied().collect();
    for start in 0..4 {
        make().prefill(&reversed[start * 7..][..90], None, None).unwrap();
    }
    assert!(pool.stats().evictions > 0);
    let mut again = make();
    assert_eq!(again.match_prefix(&ids[..40]), 32);
    pool.evict(u64::MAX);
    assert_eq!(again.reuse(&ids[..40]).unwrap(), 32);
    assert_eq!(again.unpin(), 32);
    drop(again);
    assert_eq!(pool.evict(u64::MAX), 2 * pool.stats().page_bytes);
    assert_eq!(pool.stats().free, 8);
}

#[test]
fn what_is_reserved_is_there_and_a_full_pool_says_so() {
    let Some((_runtime, model, ids)) = tiny() else { return };
    let pool = pool(&model, 6, KvOptions { page: 16, ..Default::default() });
    let make = || Session::in_pool(&pool, SessionOptions::default()).unwrap();
    let (mut a, mut b) = (make(), make());
    a.prefill(&ids[..20], None, None).unwrap();
    a.reserve(40).unwrap();
    assert_eq!(pool.stats().used, 4);
    assert_eq!(b.reserve(33).unwrap_err().status(), Status::KV_FULL);
    b.prefill(&ids[100..132], None, None).unwrap(); // other tokens: nothing to share
    assert_eq!(b.decode(1, None).unwrap_err().status(), Status::KV_FULL);
    a.prefill(&ids[20..60], None, None).unwrap();
    assert_eq!(a.decode(1, None).err().map(|e| e.status()), None);
    a.reset();
    b.decode(1, None).unwrap();
    assert_eq!(b.reserve(1 << 29).unwrap_err().status(), Status::CONTEXT_FULL);
    let page = pool.stats().page_bytes;
    assert_eq!(pool.resize(page - 1).unwrap_err().status(), Status::INVALID_ARG);
    assert_eq!(pool.resize(page * 2).unwrap_err().status(), Status::KV_FULL);
    pool.resize(page * 3).unwrap();
    assert_eq!(pool.stats().total, 3);
}

#[test]
fn what_is_reserved_stays_where_a_restore_is_refused_and_adapters_are_set() {
    let Some((_runtime, model, ids)) = tiny() else { return };
    let pool = pool(&model, 4, KvOptions { page: 16, ..Default::default() });
    let make = || Session::in_pool(&pool, SessionOptions::default()).unwrap();
    let mut whole = Session::new(&model, SessionOptions { page: 16, ..Default::default() }).unwrap();
    whole.prefill(&ids[..40], None, None).unwrap();
    let snapshot = whole.snapshot(&[]).unwrap();
    let (mut session, mut other) = (make(), make());
    session.reserve(20).unwrap();
    other.reserve(32).unwrap();
    assert_eq!(session.restore(&snapshot).unwrap_err().status(), Status::KV_FULL);
    assert_eq!(pool.stats().used, 4);
    session.set_adapters(&[]).unwrap();
    assert_eq!(other.reserve(33).unwrap_err().status(), Status::KV_FULL);
    session.prefill(&ids[..20], None, None).unwrap();
    drop(other);
    session.reset();
    session.restore(&snapshot).unwrap();
    assert_eq!(pool.stats().used, 3);
}

#[test]
fn what_a_snapshot_brings_is_never_found_by_others() {
    let Some((_runtime, model, ids)) = tiny() else { return };
    let make_pool =
        || KvPool::new(&model, &KvOptions { page: 16, swap_bytes: 1 << 30, ..Default::default() }).unwrap();
    let (from, to) = (make_pool(), make_pool());
    let make = |pool| Session::in_pool(pool, SessionOptions::default()).unwrap();
    let mut session = make(&from);
    session.prefill(&ids[..40], None, None).unwrap();
    let snapshot = session.snapshot(&[]).unwrap();
    let mut restored = make(&to);
    restored.restore(&snapshot).unwrap();
    restored.prefill(&ids[40..70], None, None).unwrap();
    let mut fork = restored.fork().unwrap();
    fork.swap_out().unwrap();
    fork.prefill(&ids[70..90], None, None).unwrap();
    assert_eq!(make(&to).match_prefix(&ids[..90]), 0);
    // From the start on it is an ordinary session again.
    fork.reset();
    fork.prefill(&ids[..90], None, None).unwrap();
    assert_eq!(make(&to).match_prefix(&ids[..90]), 80);
    // Where the pool has the pages already, those are taken.
    let mut again = make(&from);
    again.restore(&snapshot).unwrap();
    assert!(from.stats().shared >= 2);
}

#[test]
fn sessions_of_one_pool_on_many_threads_do_not_disturb_each_other() {
    let Some((_runtime, model, ids)) = tiny() else { return };
    let expected = logits(&model, &SessionOptions::default(), &ids[..120]);
    let vocab = model.spec().vocab as usize;
    let pool =
        KvPool::new(&model, &KvOptions { page: 16, swap_bytes: 1 << 30, ..Default::default() }).unwrap();
    pool.resize(pool.stats().page_bytes * 40).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (pool, ids, expected) = (&pool, &ids, &expected);
            scope.spawn(move || {
                let mut dice = Dice(thread);
                for _ in 0..6 {
                    let mut session = Session::in_pool(pool, SessionOptions::default()).unwrap();
                    while session.len() < 120 {
                        let n = (1 + dice.below(50)).min(120 - session.len());
                        let from = session.len();
                        match session.prefill(&ids[from..from + n], None, None) {
                            Ok(()) => {
                                let end = from + n;
                                assert_eq!(
                                    session.logits().unwrap(),
                                    &expected[(end - 1) * vocab..end * vocab]
                                );
                            }
                            Err(e) => {
                                assert_eq!(e.status(), Status::KV_FULL);
                                session.reset();
                            }
                        }
                        match dice.below(6) {
                            0 => session = session.fork().unwrap_or(session),
                            1 => session.swap_out().unwrap(),
                            2 => {
                                pool.defragment();
                            }
                            3 => {
                                pool.evict(1);
                            }
                            4 => pool.clear_cache(),
                            _ => {}
                        }
                    }
                }
            });
        }
    });
    pool.clear_cache();
    assert_eq!((pool.stats().used, pool.stats().cached), (0, 0));
}
