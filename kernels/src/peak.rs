//! Loops that only multiply: the limit that products of many vectors are measured against.
//!
//! Twelve sums, more than the units need to be busy all the time, and operands that stay in registers; matrix tiles,
//! too few for that, are loaded from the nearest cache for each pair of products, as a product of 32 × 32 does.

use std::panic::resume_unwind;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use crate::detect::Isa;

#[cfg(target_arch = "aarch64")]
use crate::aarch64::peak::of;
#[cfg(target_arch = "x86_64")]
use crate::x86_64::peak::of;

/// A loop: takes its rounds, not 0, and returns the multiplications of one. The instruction set must be there.
pub(crate) type Loop = unsafe fn(rounds: u32) -> u64;

/// No loops here.
#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
fn of(_: Isa, _: Operands) -> Option<Loop> {
    None
}

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operands {
    /// Bytes, into sums of 32 bits.
    Int8,
    /// f32.
    F32,
    /// bf16, into sums in f32.
    Bf16,
}

/// Multiplies on the calling thread with the instruction that products use on `isa`, `rounds` times round the loop.
/// Returns how many multiplications (each with its addition) that were; `None` where this machine lacks the
/// instruction set, or the instruction set one that multiplies vectors of these.
pub fn multiply(isa: Isa, operands: Operands, rounds: u32) -> Option<u64> {
    if !isa.is_available() || rounds == 0 {
        return None;
    }
    let one = of(isa, operands)?;
    // SAFETY: the instruction set is there; the loop runs at least once
    let of_round = unsafe { one(rounds) };
    Some(u64::from(rounds) * of_round)
}

/// Multiplications (each with its addition) per second of `threads` threads that do nothing else: the faster of two
/// turns, of which the first wakes the cores, in less than a tenth of a second. `None` as for [`multiply`].
pub fn measure(threads: usize, isa: Isa, operands: Operands) -> Option<f64> {
    /// Of a turn.
    const TIME: Duration = Duration::from_millis(30);
    /// Between two looks at the clock: tens of microseconds, of matrix tiles hundreds.
    const ROUNDS: u32 = 1 << 14;
    multiply(isa, operands, 1)?;
    let turn = || {
        let work = |_| {
            let (begun, mut done) = (Instant::now(), 0);
            while begun.elapsed() < TIME {
                done += multiply(isa, operands, ROUNDS).unwrap_or(0);
            }
            done
        };
        let (counts, seconds) = together(threads, work);
        counts.iter().sum::<u64>() as f64 / seconds
    };
    Some(turn().max(turn()))
}

/// What `threads` threads return that do `work(0)` to `work(threads - 1)`, and the seconds that they take for it.
pub fn together<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> (Vec<T>, f64) {
    let gate = RwLock::new(());
    std::thread::scope(|scope| {
        let (gate, work) = (&gate, &work);
        // opens on every way out of here, also where the system gives no more threads
        let closed = gate.write();
        let spawn = |i| {
            scope.spawn(move || {
                drop(gate.read());
                work(i)
            })
        };
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        // until these threads are there, each on a core, and those of a pool no longer wait for work awake
        std::thread::sleep(Duration::from_millis(5));
        let started = Instant::now();
        drop(closed);
        let results = workers.into_iter().map(|w| w.join().unwrap_or_else(|e| resume_unwind(e))).collect();
        (results, started.elapsed().as_secs_f64())
    })
}

#[cfg(test)]
mod tests {
    use super::{Operands, measure, multiply, together};
    use crate::detect::{Isa, available};

    #[test]
    fn every_instruction_set_but_the_scalar_one_has_loops_that_end() {
        for isa in available() {
            for operands in [Operands::Int8, Operands::F32, Operands::Bf16] {
                let (one, five) = (multiply(isa, operands, 1), multiply(isa, operands, 5));
                match (isa, operands) {
                    (Isa::Scalar, _) => assert_eq!(one, None),
                    (Isa::Amx, _) | (_, Operands::Int8 | Operands::F32) => assert!(one.is_some(), "{isa:?}"),
                    // few processors multiply bf16
                    _ => {}
                }
                assert_eq!(five, one.map(|one| 5 * one), "{isa:?}");
            }
        }
        assert_eq!(multiply(Isa::Scalar, Operands::Int8, 1), None);
    }

    #[test]
    fn a_rate_is_measured_wherever_there_is_a_loop() {
        for isa in available() {
            for operands in [Operands::Int8, Operands::F32, Operands::Bf16] {
                let rate = measure(2, isa, operands);
                assert_eq!(rate.is_some(), multiply(isa, operands, 1).is_some(), "{isa:?}, {operands:?}");
                assert!(rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "{isa:?}: {rate:?}");
            }
        }
    }

    #[test]
    fn threads_work_side_by_side_and_what_they_return_keeps_their_order() {
        let here = std::sync::Barrier::new(5);
        let (squares, seconds) = together(5, |i| {
            // the first of threads that came one after the other would wait for ever
            here.wait();
            i * i
        });
        assert_eq!(squares, [0, 1, 4, 9, 16]);
        assert!(seconds > 0.0);
    }
}
