//! The floating-point control word around calls.
//!
//! Results must not depend on a host that flushes denormals or rounds differently, and a host must not notice
//! ours: a call saves the word, sets the default, and puts the saved one back; while a callback runs, the
//! host's own word is in force. Every call does, because even opening a file (numbers in text, rotary angles) and
//! accepting a token (filters that learn) compute.

use std::cell::Cell;

thread_local! {
    /// The host's word while a call runs on this thread.
    static HOST_WORD: Cell<Option<Word>> = const { Cell::new(None) };
}

type Word = u64;

/// Round to nearest even, denormals on, exceptions masked.
#[cfg(target_arch = "x86_64")]
const DEFAULT: Word = 0x1F80;
#[cfg(not(target_arch = "x86_64"))]
const DEFAULT: Word = 0;

/// The default word until dropped.
pub(super) struct Float {
    saved: Word,
    outer: Option<Word>,
}

impl Float {
    /// Saves this thread's word and sets the default.
    pub(super) fn enter() -> Self {
        let saved = read();
        write(DEFAULT);
        Self { saved, outer: HOST_WORD.replace(Some(saved)) }
    }
}

impl Drop for Float {
    fn drop(&mut self) {
        HOST_WORD.set(self.outer);
        write(self.saved);
    }
}

/// Runs host code with the host's word in force.
pub(super) fn as_host<T>(host_code: impl FnOnce() -> T) -> T {
    match HOST_WORD.get() {
        None => host_code(),
        Some(word) => {
            let ours = read();
            write(word);
            let answer = host_code();
            write(ours);
            answer
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn read() -> Word {
    let mut word = 0u32;
    // SAFETY: stmxcsr writes four bytes to an aligned u32 of ours; SSE is part of x86_64.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
    Word::from(word)
}

#[cfg(target_arch = "x86_64")]
fn write(word: Word) {
    let word = word as u32;
    // SAFETY: ldmxcsr reads four bytes; the value is the default or one that stmxcsr gave, so no reserved bit
    // is set.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(target_arch = "aarch64")]
fn read() -> Word {
    let word: u64;
    // SAFETY: reading FPCR has no effect; it is accessible at user level.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) word, options(nomem, nostack, preserves_flags)) };
    word
}

#[cfg(target_arch = "aarch64")]
fn write(word: Word) {
    // SAFETY: the value is the default or one read from FPCR before.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) word, options(nomem, nostack, preserves_flags)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> Word {
    DEFAULT
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_: Word) {}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::ffi::guard::{self, Host, Kind};
    use crate::sampler::{Sampler, SamplingParams};

    /// Flush to zero, and the flags that are not control.
    #[cfg(target_arch = "x86_64")]
    const BITS: (Word, Word) = (1 << 15, 0x3F);
    #[cfg(target_arch = "aarch64")]
    const BITS: (Word, Word) = (1 << 24, 0);

    #[test]
    fn every_call_runs_under_the_default_word() {
        let before = read();
        write(DEFAULT | BITS.0);
        // SAFETY: there are no pointers but NULL.
        let (host, no_error) = (unsafe { Host::trust() }, std::ptr::null_mut());
        let statuses = [Kind::Plain, Kind::CallbackSafe].map(|kind| {
            guard::run(host, no_error, kind, |_| {
                Ok(if read() & !BITS.1 == DEFAULT { Status::DONE } else { Status::BAD_STATE })
            })
        });
        let after = read();
        write(before);
        assert_eq!(statuses, [Status::DONE.0; 2]);
        assert_eq!(after & !BITS.1, DEFAULT | BITS.0);
    }

    #[test]
    fn a_rust_hosts_rounding_changes_nothing_that_a_sampler_computes() {
        #[cfg(target_arch = "x86_64")]
        const UP: Word = 2 << 13;
        #[cfg(target_arch = "aarch64")]
        const UP: Word = 1 << 22;
        let logits: Vec<f32> = (0..1000u32).map(|i| (i * i % 997) as f32 / 131.0).collect();
        let params = SamplingParams::default();
        let pass = |word| {
            let before = read();
            write(word);
            let mut sampler = Sampler::with_chain(&params, "temperature=0.7;mirostat=5").unwrap();
            sampler.set_bias(&[(3, 0.1), (3, 0.7), (5, -0.3)]).unwrap();
            let mut seen = Vec::new();
            for position in 0..20 {
                let choice = sampler.sample(&logits, position).unwrap();
                sampler.accept(choice.id).unwrap();
                seen.push((choice.id as u32, choice.log_probability.to_bits()));
                let left = sampler.apply(&logits, position).unwrap();
                seen.extend(left.iter().map(|c| (c.id, c.logit.to_bits())));
                let top = crate::sampler::top(&logits, 3).unwrap();
                seen.extend(top.iter().map(|a| (a.id as u32, a.log_probability.to_bits())));
            }
            assert_eq!(read() & !BITS.1, word);
            write(before);
            seen
        };
        assert!(pass(DEFAULT) == pass(DEFAULT | UP));
    }

    #[test]
    fn the_hosts_word_is_restored_and_in_force_in_callbacks() {
        let (flush_to_zero, flags) = (DEFAULT | BITS.0, BITS.1);
        let before = read();
        write(flush_to_zero);
        {
            let _float = Float::enter();
            assert_eq!(read() & !flags, DEFAULT);
            as_host(|| assert_eq!(read() & !flags, flush_to_zero));
            {
                let _nested = Float::enter();
                as_host(|| assert_eq!(read() & !flags, DEFAULT));
            }
            as_host(|| assert_eq!(read() & !flags, flush_to_zero));
        }
        assert_eq!(read() & !flags, flush_to_zero);
        write(before);
    }
}
