//! Tile instructions for machines that have none: so that the kernels written for them, with the bytes they are
//! made of, run in every test.
//!
//! ```text
//! kernel: tdpbssd tmm0, tmm4, tmm6 → no such instruction → SIGILL → handler:
//!     decode the bytes at rip  →  execute on this thread's tiles  →  rip behind them, return
//! ```
//! Only what the kernels use is known; any other unknown instruction ends the process as it would without us.
//! The rules are those of Intel's manual (volume 2), faults included: what would fault on the unit ends the process
//! here. Costs a microsecond or two an instruction. For tests alone: it takes the process's SIGILL.

// A signal handler edits the interrupted thread's registers and copies between its memory and tiles.
#![allow(unsafe_code)]

pub mod decode;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod signal;
pub mod tiles;

/// How tile instructions will be executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// By the processor.
    Native,
    /// By this crate.
    Emulated,
}

/// Makes the kernels' `amx` available: nothing to do where the machine has the unit, else by emulation. `None` where
/// neither can be: another processor or system, or one without the AVX-512 that the kernels need besides.
pub fn install() -> Option<Unit> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use llm_kernels::Isa;
        if Isa::Amx.is_available() {
            return Some(if signal::installed() { Unit::Emulated } else { Unit::Native });
        }
        if Isa::Avx512.is_available() && signal::install() {
            // SAFETY: the handler executes the instructions on every thread
            unsafe { llm_kernels::detect::assume_tiles() };
            return Isa::Amx.is_available().then_some(Unit::Emulated);
        }
    }
    None
}

/// Tile instructions executed here so far, by all threads; none where the machine executes them.
pub fn executed() -> u64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return signal::EXECUTED.load(std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    0
}

/// The calling thread's tile configuration, as `sttilecfg` stores it; zeros after a release.
///
/// # Panics
/// Unless [`install`] returned a unit.
pub fn configuration() -> [u8; 64] {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        assert!(install().is_some(), "no tiles");
        let mut c = [0u8; 64];
        // SAFETY: the instruction is executed, by the machine or the handler, and writes 64 bytes
        unsafe { core::arch::asm!("sttilecfg [{}]", in(reg) &mut c, options(nostack, preserves_flags)) };
        c
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    panic!("no tiles");
}
