//! Ten thousand random operations against a naive twin: a list of tokens for each sequence.
//!
//! Computing a token is played by writing a hash of everything up to it into its place of its page, so that any page
//! that is shared, found, copied, moved or brought back wrongly shows.

use std::collections::HashSet;

use llm_kernels::Level;

use super::pages::{Pages, TableId};
use super::prefix::NONE;
use super::store::Store;
use super::{Eviction, KvType, PageShape, Root};
use crate::error::Status;
use crate::model::spec::{Attention, Heads};
use crate::runtime::{Memory, Runtime, RuntimeOptions};

const PAGE: usize = 16;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// What a session is to the pool.
struct Sequence {
    id: TableId,
    tokens: Vec<i32>,
    reserved: usize,
    root: Option<Root>,
}

/// The value "computed" at the last of `tokens`.
fn state(root: Option<Root>, tokens: &[i32]) -> u64 {
    let start = root.map_or(1, |root| 2 + u64::from(root.rope));
    tokens.iter().fold(start, |h, &t| (h ^ t as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23))
}

/// Where the value of a token lies in its page.
fn place(position: usize) -> std::ops::Range<usize> {
    let at = position % PAGE * 8;
    at..at + 8
}

/// Appends `ids` as a session does: what the cache has, then the rest in chunks, behind which windows let go; `Err`
/// leaves all as before.
fn append(pages: &mut Pages, s: &mut Sequence, ids: &[i32], reuse: bool) -> Result<(), Status> {
    pages.swap_in(s.id, &s.tokens).map_err(|e| e.status())?;
    let before = s.tokens.len();
    let most = if reuse { ids.len().saturating_sub(1) } else { 0 };
    let reused = pages.adopt(s.id, before, ids, most);
    s.tokens.extend_from_slice(&ids[..reused]);
    let end = before + ids.len();
    for chunk in ids[reused..].chunks(11) {
        let start = s.tokens.len();
        if let Err(e) = pages.room(s.id, start, end, start + chunk.len()) {
            s.tokens.truncate(before);
            assert_eq!(pages.truncate(s.id, before, s.reserved), before);
            return Err(e.status());
        }
        for &id in chunk {
            s.tokens.push(id);
            let position = s.tokens.len() - 1;
            for group in 0..pages.store.shape().groups() {
                let page = pages.table(s.id).pages[group][position / PAGE];
                let value = (state(s.root, &s.tokens) ^ group as u64).to_le_bytes();
                pages.store.page_mut(page)[place(position)].copy_from_slice(&value);
            }
        }
        pages.publish(s.id, &s.tokens);
        pages.let_go(s.id, before, s.tokens.len());
    }
    pages.publish(s.id, &s.tokens);
    pages.let_go(s.id, 0, s.tokens.len());
    Ok(())
}

/// Every sequence has what the twin says, the sums agree, and the numbers are those that counting gives.
fn audit(pages: &Pages, sequences: &[Sequence]) {
    let (stats, shape) = (pages.stats(), pages.store.shape());
    assert_eq!(stats.used + stats.cached + stats.free, stats.total);
    let mut held = HashSet::new();
    let mut shared = HashSet::new();
    for s in sequences {
        assert!(pages.covers(s.id, s.tokens.len()));
        let states: Vec<u64> = (1..=s.tokens.len()).map(|n| state(s.root, &s.tokens[..n])).collect();
        for (group, window) in shape.windows.iter().enumerate() {
            let table = &pages.table(s.id).pages[group];
            if pages.is_out(s.id) {
                assert!(table.is_empty());
                continue;
            }
            assert!(table.len() >= s.tokens.len().div_ceil(PAGE) && table.len() * PAGE >= s.reserved);
            for &page in table.iter().filter(|page| **page != NONE) {
                if !held.insert(page) {
                    shared.insert(page);
                }
            }
            if let Some(window) = window {
                let most = (window + 64 + 11).div_ceil(PAGE) + 2 + s.reserved.div_ceil(PAGE);
                assert!(
                    table.iter().filter(|page| **page != NONE).count() <= most,
                    "a window holds a window"
                );
            }
            let first = window.map_or(0, |window| (s.tokens.len() + 1).saturating_sub(window));
            for position in first..s.tokens.len() {
                let value = &pages.store.page(table[position / PAGE])[place(position)];
                let expected = states[position] ^ group as u64;
                assert_eq!(value, expected.to_le_bytes(), "group {group}, position {position}");
            }
        }
    }
    assert_eq!((stats.used, stats.shared), (held.len() as u64, shared.len() as u64));
    assert!(held.iter().all(|&page| u64::from(page) < stats.total));
}

fn run(eviction: Eviction, cache: bool, seed: u64, steps: usize, windows: &[Option<usize>]) {
    let runtime = Runtime::new(RuntimeOptions { threads: 1, ..Default::default() }).unwrap();
    let groups = windows.len();
    let shape = PageShape { layers: Vec::new(), windows: windows.to_vec(), tokens: PAGE, bytes: PAGE * 8 };
    let (bytes, start) = (shape.bytes as u64, 24 * groups);
    let store = Store::new(&runtime, shape, start).unwrap();
    let mut pages = Pages::new(store, start as u32, eviction, cache, 12 * groups as u64 * bytes);
    let mut dice = Dice(seed);
    let mut sequences: Vec<Sequence> = Vec::new();
    let roots = [0, 7].map(|rope| Root { rope, level: Level::default(), adapters: [0; 32] });
    let (mut full, mut hits) = (0, 0);
    for _ in 0..steps {
        let pick = if sequences.is_empty() { 0 } else { dice.below(sequences.len()) };
        match dice.below(25) {
            0..=2 if sequences.len() < 8 => {
                let root = [Some(roots[0]), Some(roots[0]), Some(roots[1]), None][dice.below(4)];
                let id = pages.open(root, dice.below(3) as i32);
                sequences.push(Sequence { id, tokens: Vec::new(), reserved: 0, root });
            }
            3 if !sequences.is_empty() => {
                let s = sequences.swap_remove(pick);
                pages.close(s.id);
            }
            4..=11 if !sequences.is_empty() => {
                // Few different tokens, long runs of the same: prefixes meet again and again.
                let s = &mut sequences[pick];
                let n = if dice.below(2) == 0 { 1 } else { dice.below(50) };
                let kind = dice.below(2) as i32;
                let ids: Vec<i32> = (0..n).map(|_| if dice.below(60) == 0 { 9 } else { kind }).collect();
                match append(&mut pages, s, &ids, dice.below(4) > 0) {
                    Ok(()) => {}
                    Err(status) => {
                        assert_eq!(status, Status::KV_FULL);
                        full += 1;
                    }
                }
            }
            12 if !sequences.is_empty() && sequences.len() < 8 => {
                let s = &sequences[pick];
                if pages.swap_in(s.id, &s.tokens).is_ok() {
                    let id = pages.fork(s.id, s.tokens.len());
                    sequences.push(Sequence { id, tokens: s.tokens.clone(), reserved: 0, root: s.root });
                }
            }
            13..=14 if !sequences.is_empty() => {
                let s = &mut sequences[pick];
                let keep = dice.below(s.tokens.len() + 1);
                s.reserved = 0;
                let covered = pages.truncate(s.id, keep, 0);
                assert!(covered == keep || covered == 0 && pages.store.shape().is_windowed());
                let rest = s.tokens[covered..keep].to_vec();
                s.tokens.truncate(covered);
                // What windows let go runs again.
                let _ = append(&mut pages, s, &rest, true);
            }
            15 if !sequences.is_empty() => {
                let s = &mut sequences[pick];
                let (held, more) = (s.tokens.len(), dice.below(40));
                if pages.swap_in(s.id, &s.tokens).is_ok()
                    && pages.room(s.id, held, held + more, held + more).is_ok()
                {
                    s.reserved = s.reserved.max(held + more);
                }
            }
            16 if !sequences.is_empty() => {
                pages.pin(sequences[pick].id, dice.below(2) == 0);
            }
            17 => {
                let before = pages.stats();
                let freed = pages.evict(bytes * dice.below(4) as u64);
                assert_eq!(pages.stats().free, before.free + freed / bytes);
            }
            18 if dice.below(6) == 0 => pages.clear_cache(),
            19 => {
                pages.defragment();
                let stats = pages.stats();
                assert_eq!(stats.longest_free_run, stats.free);
            }
            20 => {
                let before = pages.stats();
                match pages.resize(((8 + dice.below(24)) * groups) as u32) {
                    Ok(()) => {}
                    Err(e) => {
                        assert_eq!(e.status(), Status::KV_FULL);
                        assert_eq!(pages.stats(), before);
                    }
                }
            }
            21 if !sequences.is_empty() => {
                let s = &mut sequences[pick];
                match pages.swap_out(s.id, s.tokens.len()) {
                    Ok(()) => s.reserved = 0,
                    Err(e) => assert_eq!(e.status(), Status::BUDGET),
                }
            }
            22 if !sequences.is_empty() => {
                let s = &sequences[pick];
                let (out, before) = (pages.is_out(s.id), pages.stats().swapped_bytes);
                if pages.swap_in(s.id, &s.tokens).is_err() {
                    assert!(out && pages.is_out(s.id) && pages.stats().swapped_bytes == before);
                }
            }
            23 if !sequences.is_empty() => {
                // Out as bytes and in again elsewhere: nothing of it beyond what was there becomes findable.
                let s = &mut sequences[pick];
                if pages.swap_in(s.id, &s.tokens).is_err() {
                    continue;
                }
                let mut content = Vec::new();
                pages.export(s.id, s.tokens.len(), &mut content);
                assert_eq!(content.len(), pages.content_bytes(s.tokens.len()));
                let known = pages.find(s.id, &s.tokens);
                let id = pages.open(s.root, 0);
                match pages.import(id, &s.tokens, s.tokens.len(), &content) {
                    Ok(()) => {
                        pages.close(std::mem::replace(&mut s.id, id));
                        s.reserved = 0;
                        pages.publish(s.id, &s.tokens);
                        assert!(pages.find(s.id, &s.tokens) <= known);
                    }
                    Err(e) => {
                        assert_eq!(e.status(), Status::KV_FULL);
                        pages.close(id);
                    }
                }
            }
            24 if dice.below(4) == 0 => {
                // What is said to be free or to become so does: a scheduler counts on it.
                let available = pages.available();
                if eviction != Eviction::None {
                    pages.evict(u64::MAX);
                }
                assert_eq!(pages.stats().free, available);
            }
            _ => {}
        }
        audit(&pages, &sequences);
        hits = pages.stats().hit_tokens;
    }
    assert!(full > 0 && (hits > 0) == cache, "{full} refusals, {hits} tokens found");
    for s in sequences.drain(..) {
        pages.close(s.id);
    }
    pages.clear_cache();
    let stats = pages.stats();
    assert_eq!((stats.used, stats.cached, stats.pinned, stats.swapped_bytes), (0, 0, 0, 0));
    assert_eq!(stats.free, stats.total);
    drop(pages);
    assert_eq!(runtime.memory_use(Memory::Kv), 0);
}

#[test]
fn ten_thousand_random_operations_agree_with_a_naive_twin() {
    for (seed, eviction) in [(1, Eviction::None), (2, Eviction::LeastRecent), (3, Eviction::Priority)] {
        run(eviction, true, seed, 2_000, &[None]);
        run(eviction, true, seed + 10, 1_000, &[None, Some(24), Some(1)]);
        run(eviction, true, seed + 20, 500, &[Some(20)]);
    }
    run(Eviction::LeastRecent, false, 4, 500, &[None]);
    run(Eviction::LeastRecent, false, 5, 500, &[None, Some(24)]);
}

/// A long sequence of a model with windows on half of its layers takes the pages of one half, and those of the other
/// stay cached only while nobody needs their room.
#[test]
fn what_is_behind_a_window_is_not_held() {
    let runtime = Runtime::new(RuntimeOptions { threads: 1, ..Default::default() }).unwrap();
    let windows = vec![None, Some(40)];
    let shape = PageShape { layers: Vec::new(), windows, tokens: PAGE, bytes: PAGE * 8 };
    let (pages, tokens) = (80, 1000);
    let store = Store::new(&runtime, shape, pages).unwrap();
    let mut pages = Pages::new(store, pages as u32, Eviction::LeastRecent, true, 0);
    let root = Some(Root { rope: 0, level: Level::default(), adapters: [0; 32] });
    let ids: Vec<i32> = (0..tokens).collect();
    let id = pages.open(root, 0);
    let mut s = Sequence { id, tokens: Vec::new(), reserved: 0, root };
    append(&mut pages, &mut s, &ids, false).unwrap();
    let stats = pages.stats();
    // 63 pages see everything, and of the others those of 40 + 64 tokens are held.
    assert!((63 + 7..63 + 10).contains(&stats.used), "{stats:?}");
    assert!(stats.evictions > 0 && stats.used + stats.cached <= 80);
    audit(&pages, &[s]);
    // The whole is found again from its end; a beginning whose window is gone is not.
    let root = pages.open(root, 0);
    assert_eq!(pages.find(root, &ids), 992);
    assert_eq!(pages.find(root, &ids[..320]), 0);
}

/// A session that drops tokens keeps its head where layers with a window let it go long ago.
#[test]
fn a_tail_moves_behind_a_head_that_a_window_let_go() {
    let runtime = Runtime::new(RuntimeOptions { threads: 1, ..Default::default() }).unwrap();
    // The third time what is seen begins in the page in which the head ends, which is gone.
    for (window, head, tail) in [(20, 5, 100), (20, 16, 100), (20, 5, 25), (90, 5, 100)] {
        let windows = vec![None, Some(window)];
        let shape = PageShape { layers: Vec::new(), windows, tokens: PAGE, bytes: PAGE * 8 };
        let store = Store::new(&runtime, shape, 80).unwrap();
        let mut pages = Pages::new(store, 80, Eviction::LeastRecent, false, 0);
        let id = pages.open(None, 0);
        let mut s = Sequence { id, tokens: Vec::new(), reserved: 0, root: None };
        append(&mut pages, &mut s, &(0..300).collect::<Vec<i32>>(), false).unwrap();
        assert_eq!(pages.table(id).pages[1][0], NONE);
        let moved = pages.moved(id, 300, (head, tail), &[], None).unwrap();
        pages.close(id);
        assert_eq!(moved.is_none(), tail == 25);
        let Some(moved) = moved else { continue };
        let mut tokens = head + tail;
        assert!(pages.covers(moved, tokens));
        for _ in 0..20 {
            pages.room(moved, tokens, tokens + 9, tokens + 9).unwrap();
            tokens += 9;
            pages.let_go(moved, 0, tokens);
            assert!(pages.covers(moved, tokens));
        }
        // Nothing stays that only the head needed.
        let held = pages.store.shape().held(tokens, 0);
        assert_eq!(pages.held_by(moved).0, held, "window {window}, {head} + {tail}");
        pages.close(moved);
        assert_eq!(pages.stats().free, 80);
    }
}

/// 300 tokens take 19 pages and, of a window of 20, 6; moved behind 5 of head, the last 100 take 7 and 2.
#[test]
fn a_tail_that_moves_takes_no_pages_that_its_windows_do_not_see() {
    let runtime = Runtime::new(RuntimeOptions { threads: 1, ..Default::default() }).unwrap();
    for (limit, fits) in [(34, true), (33, false)] {
        let windows = vec![None, Some(20)];
        let shape = PageShape { layers: Vec::new(), windows, tokens: PAGE, bytes: PAGE * 8 };
        let store = Store::new(&runtime, shape, limit).unwrap();
        let mut pages = Pages::new(store, limit as u32, Eviction::LeastRecent, false, 0);
        let id = pages.open(None, 0);
        let mut s = Sequence { id, tokens: Vec::new(), reserved: 0, root: None };
        append(&mut pages, &mut s, &(0..300).collect::<Vec<i32>>(), false).unwrap();
        assert_eq!(pages.stats().used, 25);
        match pages.moved(id, 300, (5, 100), &[], None) {
            Ok(moved) => {
                let moved = moved.unwrap();
                assert!(fits && pages.covers(moved, 105));
                assert_eq!((pages.held_by(moved).0, pages.stats().used), (9, 34));
                pages.close(moved);
            }
            Err(e) => assert!(!fits && e.status() == Status::KV_FULL, "{limit} pages: {e}"),
        }
        audit(&pages, &[s]);
    }
}

/// A layer's part of a page, for widths of heads from 64 on.
#[test]
fn int8_keys_with_f16_values_take_at_most_76_percent_of_f16() {
    for head_dim in [64, 80, 96, 128, 256] {
        for kv_heads in [1, 2, 8] {
            let heads = Heads {
                heads: 8,
                kv_heads,
                head_dim,
                scale: 1.0,
                rope: None,
                window: None,
                softcap: None,
                alibi: Vec::new(),
                sinks: false,
                qk_norm: None,
                qkv_bias: false,
                out_bias: false,
            };
            // Scales of 16 tokens do not fill a cache line, which costs pages of 16 most.
            for (tokens, most) in [(16, 0.77), (32, 0.76), (64, 0.76)] {
                let bytes = |kv| {
                    let attention = Attention::Heads(heads.clone());
                    super::shape::layout(&attention, kv, tokens).page_bytes() as f64
                };
                let share = bytes(KvType::I8F16) / bytes(KvType::F16);
                assert!(share <= most, "heads of {head_dim}, pages of {tokens}: {share}");
            }
        }
    }
}
