//! Whose turn it is: one holder at a time, in the order of asking, and who waits hears of a cancellation.
//!
//! ```text
//! ask ─▶ [ticket 4][ticket 5][ticket 6] ─▶ holder ─▶ ... ─▶ done: the next ticket's turn
//!           └── cancelled: leaves the row
//! ```
//! A holder that asks again stands behind those that wait, so that a long prefill, which asks once for each chunk,
//! lets others in between. Work that need not wait for a turn is left for whoever has the next one. It does not know
//! what is held.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cancel::Cancel;
use crate::error::Result;

/// How often one who waits looks at its cancel flag, which a signal handler may set and so wakes nobody.
const LOOK: Duration = Duration::from_micros(200);

/// Something that one has at a time.
pub(super) struct Turns<T> {
    row: Mutex<Row<T>>,
    changed: Condvar,
    /// Only whose turn it is locks it.
    held: Mutex<T>,
}

type Work<T> = Box<dyn FnOnce(&mut T) + Send>;

struct Row<T> {
    taken: bool,
    waiting: VecDeque<u64>,
    next: u64,
    later: Vec<Work<T>>,
}

/// A turn; it ends when this goes.
pub(crate) struct Turn<'a, T> {
    // Goes before the turn is given on.
    held: MutexGuard<'a, T>,
    _ends: Ends<'a, T>,
}

struct Ends<'a, T>(&'a Turns<T>);

impl<T> Turns<T> {
    /// `held`, nobody's turn.
    pub(super) fn new(held: T) -> Self {
        let row = Row { taken: false, waiting: VecDeque::new(), next: 0, later: Vec::new() };
        Self { row: Mutex::new(row), changed: Condvar::new(), held: Mutex::new(held) }
    }

    /// Waits for a turn, or until `cancel` ends the waiting.
    ///
    /// # Errors
    /// What `cancel` answers.
    pub(super) fn wait(&self, cancel: Option<&Cancel>) -> Result<Turn<'_, T>> {
        let mut row = self.row();
        if row.taken || !row.waiting.is_empty() {
            let ticket = row.next;
            row.next += 1;
            row.waiting.push_back(ticket);
            while row.taken || row.waiting.front() != Some(&ticket) {
                if let Err(e) = cancel.map_or(Ok(()), Cancel::check) {
                    row.waiting.retain(|&other| other != ticket);
                    drop(row);
                    self.changed.notify_all();
                    return Err(e);
                }
                row = match cancel {
                    Some(_) => self.changed.wait_timeout(row, LOOK).unwrap_or_else(PoisonError::into_inner).0,
                    None => self.changed.wait(row).unwrap_or_else(PoisonError::into_inner),
                };
            }
            row.waiting.pop_front();
        }
        Ok(self.begin(row))
    }

    /// A turn, if nobody has one or waits for one.
    pub(super) fn now(&self) -> Option<Turn<'_, T>> {
        let row = self.row();
        let free = !row.taken && row.waiting.is_empty();
        free.then(|| self.begin(row))
    }

    /// Does `work` now, or leaves it to whoever has the next turn: nobody sees what is held without it. Never waits
    /// for a turn.
    pub(super) fn leave(&self, work: Work<T>) {
        self.row().later.push(work);
        drop(self.now());
    }

    fn begin<'a>(&'a self, mut row: MutexGuard<'a, Row<T>>) -> Turn<'a, T> {
        row.taken = true;
        let later = std::mem::take(&mut row.later);
        drop(row);
        let ends = Ends(self);
        // A panic of one who held it leaves it usable: see `KvPool::lock`.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        later.into_iter().for_each(|work| work(&mut held));
        Turn { held, _ends: ends }
    }

    fn row(&self) -> MutexGuard<'_, Row<T>> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Ends<'_, T> {
    fn drop(&mut self) {
        let mut row = self.0.row();
        row.taken = false;
        let waited_for = !row.waiting.is_empty();
        drop(row);
        if waited_for {
            self.0.changed.notify_all();
        }
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    /// Waits until `count` stand in the row.
    fn until(turns: &Turns<Vec<u32>>, count: usize) {
        while turns.row().waiting.len() != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn turns_come_in_the_order_of_asking_and_the_cancelled_leave_the_row() {
        let turns = Turns::new(Vec::new());
        let cancel = Cancel::new();
        let late = Cancel::new();
        std::thread::scope(|scope| {
            let mut first = turns.wait(None).unwrap();
            for i in 0..4 {
                let (turns, cancel) = (&turns, &cancel);
                scope.spawn(move || match turns.wait((i == 1).then_some(cancel)) {
                    Ok(mut turn) => turn.push(i),
                    Err(e) => {
                        assert_eq!((i, e.status()), (1, Status::CANCELLED));
                        turns.leave(Box::new(|held| held.push(100)));
                    }
                });
                until(turns, i as usize + 1);
            }
            // While the first turn lasts, and without its end.
            cancel.trigger();
            until(&turns, 3);
            assert!(turns.now().is_none());
            late.set_deadline(Some(Duration::ZERO));
            assert_eq!(turns.wait(Some(&late)).err().unwrap().status(), Status::DEADLINE);
            assert!(first.is_empty(), "what was left waits for the next turn");
            first.push(9);
        });
        let mut held = turns.now().unwrap();
        held.retain(|v| *v != 100);
        assert_eq!(*held, [9, 0, 2, 3]);
    }

    #[test]
    fn what_is_left_is_done_before_anybody_looks() {
        let turns = Turns::new(Vec::new());
        turns.leave(Box::new(|held| held.push(1)));
        let turn = turns.wait(None).unwrap();
        assert_eq!(*turn, [1]);
        turns.leave(Box::new(|held| held.push(2)));
        assert_eq!(*turn, [1]);
        drop(turn);
        assert_eq!(*turns.wait(None).unwrap(), [1, 2]);
    }

    #[test]
    fn a_panic_gives_the_turn_on() {
        let turns = Turns::new(7);
        let panicked = std::thread::scope(|scope| {
            let hold = || {
                let _turn = turns.wait(None);
                panic!("while it is held");
            };
            scope.spawn(hold).join().is_err()
        });
        assert!(panicked);
        assert_eq!(*turns.wait(None).unwrap(), 7);
    }
}
