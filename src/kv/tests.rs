//! Ten thousand random operations against a naive twin: a list of tokens for each sequence.
//!
//! Computing a token is played by writing a hash of everything up to it into its place of its page, so that any page
//! that is shared, found, copied, moved or brought back wrongly shows.

use std::collections::HashSet;

use llm_kernels::Level;

use super::pages::{Pages, TableId};
use super::store::Store;
use super::{Eviction, PageShape, Root};
use crate::error::Status;
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

fn place(pages: &Pages, id: TableId, position: usize) -> std::ops::Range<usize> {
    let at = position % PAGE * 8;
    assert!(position / PAGE < pages.table(id).pages.len());
    at..at + 8
}

/// Appends `ids` as a session does: what the cache has, then the rest; `Err` leaves all as before.
fn append(pages: &mut Pages, s: &mut Sequence, ids: &[i32], reuse: bool) -> Result<(), Status> {
    pages.swap_in(s.id, &s.tokens).map_err(|e| e.status())?;
    let before = s.tokens.len();
    let most = if reuse { ids.len().saturating_sub(1) } else { 0 };
    let reused = pages.adopt(s.id, before, ids, most);
    s.tokens.extend_from_slice(&ids[..reused]);
    if let Err(e) = pages.room(s.id, before + reused, before + ids.len()) {
        s.tokens.truncate(before);
        pages.truncate(s.id, before, s.reserved);
        return Err(e.status());
    }
    for &id in &ids[reused..] {
        s.tokens.push(id);
        let position = s.tokens.len() - 1;
        let place = place(pages, s.id, position);
        let page = pages.table(s.id).pages[position / PAGE];
        let value = state(s.root, &s.tokens).to_le_bytes();
        pages.store.page_mut(page)[place].copy_from_slice(&value);
    }
    pages.publish(s.id, &s.tokens);
    Ok(())
}

/// Every sequence has what the twin says, the sums agree, and the numbers are those that counting gives.
fn audit(pages: &Pages, sequences: &[Sequence]) {
    let stats = pages.stats();
    assert_eq!(stats.used + stats.cached + stats.free, stats.total);
    let mut held = HashSet::new();
    let mut shared = HashSet::new();
    for s in sequences {
        if pages.is_out(s.id) {
            assert!(pages.table(s.id).pages.is_empty());
            continue;
        }
        let table = &pages.table(s.id).pages;
        let count = table.len();
        assert!(count >= s.tokens.len().div_ceil(PAGE) && count * PAGE >= s.reserved);
        for &page in table {
            if !held.insert(page) {
                shared.insert(page);
            }
        }
        for position in 0..s.tokens.len() {
            let value = &pages.store.page(table[position / PAGE])[place(pages, s.id, position)];
            assert_eq!(value, state(s.root, &s.tokens[..=position]).to_le_bytes(), "position {position}");
        }
    }
    assert_eq!((stats.used, stats.shared), (held.len() as u64, shared.len() as u64));
    assert!(held.iter().all(|&page| u64::from(page) < stats.total));
}

fn run(eviction: Eviction, cache: bool, seed: u64, steps: usize) {
    let runtime = Runtime::new(RuntimeOptions { threads: 1, ..Default::default() }).unwrap();
    let shape = PageShape { layers: Vec::new(), tokens: PAGE, bytes: PAGE * 8 };
    let (bytes, start) = (shape.bytes as u64, 24);
    let store = Store::new(&runtime, shape, start).unwrap();
    let mut pages = Pages::new(store, start as u32, eviction, cache, 12 * bytes);
    let mut dice = Dice(seed);
    let mut sequences: Vec<Sequence> = Vec::new();
    let roots = [0, 7].map(|rope| Root { rope, level: Level::default(), adapters: [0; 32] });
    let (mut full, mut hits) = (0, 0);
    for _ in 0..steps {
        let pick = if sequences.is_empty() { 0 } else { dice.below(sequences.len()) };
        match dice.below(24) {
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
                s.tokens.truncate(keep);
                s.reserved = 0;
                pages.truncate(s.id, keep, 0);
            }
            15 if !sequences.is_empty() => {
                let s = &mut sequences[pick];
                let (held, more) = (s.tokens.len(), dice.below(40));
                if pages.swap_in(s.id, &s.tokens).is_ok() && pages.room(s.id, held, held + more).is_ok() {
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
                match pages.resize(8 + dice.below(24) as u32) {
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
        run(eviction, true, seed, 3_000);
    }
    run(Eviction::LeastRecent, false, 4, 1_000);
}
