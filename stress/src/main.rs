//! Sessions, pools, batches, schedulers, generations and cancellation from eight threads at once, over one model: for
//! the thread sanitizer to watch (`stress/run`), and right by itself: whatever has logits has those of a run alone.
//!
//! ```text
//! threads 1-3  sessions of a shared pool: prefill, fork, truncate, swap, snapshot, pin, reserve, pass on to another thread
//! thread  4    steps of a batch of the same pool, whose members come and go
//! thread  5    a scheduler over the same pool
//! threads 6-7  generations with guessed tokens, whose draft models share a pool too
//! thread  8    the pools themselves: numbers, eviction, defragmentation, size; and the file opened once more
//! main         cancels whatever runs
//! ```
//! Each thread's choices follow from its seed; how they meet does not.

mod place;
mod work;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use place::{Dice, Place};

fn main() {
    let usage = "usage: llm-stress DIRECTORY ROUNDS";
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect(usage);
    let rounds = args.next().and_then(|n| n.parse().ok()).expect(usage);
    let place = Place::new(Path::new(&dir), rounds);
    std::thread::scope(|scope| {
        let place = &place;
        let mut threads: Vec<_> =
            (1..4).map(|seed| scope.spawn(move || work::sessions(place, seed))).collect();
        threads.push(scope.spawn(|| work::batches(place, 4)));
        threads.push(scope.spawn(|| work::scheduled(place, 5)));
        threads.extend((6..8).map(|seed| scope.spawn(move || work::generations(place, seed))));
        let last = scope.spawn(|| work::housekeeping(place, 8));
        let mut dice = Dice::new(9);
        while !threads.iter().all(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_micros(200 + dice.below(5000) as u64));
            place.cancel.trigger();
            std::thread::sleep(Duration::from_micros(dice.below(300) as u64));
            place.cancel.reset();
        }
        place.running.store(false, Ordering::Release);
        threads.into_iter().for_each(|thread| thread.join().expect("no thread panicked"));
        last.join().expect("no thread panicked");
    });
    place.passed.lock().expect("no panic").clear();
    for pool in [&place.pool, &place.drafts] {
        pool.clear_cache();
        let stats = pool.stats();
        assert_eq!((stats.used, stats.cached, stats.swapped_bytes), (0, 0, 0), "pages of nobody");
    }
    let [compared, cancelled, refused] =
        [place.compared, place.cancelled, place.refused].map(|count| count.into_inner());
    println!("{compared} results compared, {cancelled} calls cancelled, {refused} refused for want of pages");
    assert!(compared > 0 && cancelled > 0 && refused > 0, "every kind of end was seen");
}
