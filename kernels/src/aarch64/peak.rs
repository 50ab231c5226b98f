//! Loops of aarch64 that only multiply; see [`crate::peak`].

use crate::detect::Isa;
use crate::peak::{Loop, Operands};
use core::arch::asm;

/// The loop of an instruction set.
pub fn of(isa: Isa, operands: Operands) -> Option<Loop> {
    Some(match (isa, operands) {
        (Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm, Operands::F32) => neon_float,
        (Isa::Neon, Operands::Int8) => neon,
        (Isa::NeonDotprod, Operands::Int8) => dotprod,
        (Isa::NeonI8mm, Operands::Int8) => i8mm,
        _ => return None,
    })
}

/// `$rounds` rounds of a body of instructions: sums in v0 to v7 and v16 to v19, operands in v20 and v21, all zero at
/// first; v22 free.
macro_rules! rounds {
    ($rounds:expr, $($line:expr),*) => {
        asm!(
            "movi v0.16b, #0", "movi v1.16b, #0", "movi v2.16b, #0", "movi v3.16b, #0", "movi v4.16b, #0",
            "movi v5.16b, #0", "movi v6.16b, #0", "movi v7.16b, #0", "movi v16.16b, #0", "movi v17.16b, #0",
            "movi v18.16b, #0", "movi v19.16b, #0", "movi v20.16b, #0", "movi v21.16b, #0",
            "2:",
            $($line,)*
            "subs {n:w}, {n:w}, #1",
            "b.ne 2b",
            n = inout(reg) $rounds => _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _,
            options(nostack, nomem)
        )
    };
}

/// The body of one instruction: twelve sums of lanes `$to`, operands of lanes `$from`.
macro_rules! sums {
    ($rounds:expr, $instruction:literal, $to:literal, $from:literal) => {
        sums!(@ $rounds, $instruction, $to, $from, 0 1 2 3 4 5 6 7 16 17 18 19)
    };
    (@ $rounds:expr, $instruction:literal, $to:literal, $from:literal, $($sum:literal)*) => {
        rounds!($rounds, $(concat!($instruction, " v", $sum, $to, ", v20", $from, ", v21", $from)),*)
    };
}

/// f32 by f32.
///
/// # Safety
/// `rounds` is not 0.
#[target_feature(enable = "neon")]
unsafe fn neon_float(rounds: u32) -> u64 {
    // SAFETY: registers only
    unsafe { sums!(rounds, "fmla", ".4s", ".4s") };
    12 * 4
}

/// Bytes to 16 bits, two of those to 32.
///
/// # Safety
/// `rounds` is not 0.
#[target_feature(enable = "neon")]
unsafe fn neon(rounds: u32) -> u64 {
    macro_rules! body {
        ($($sum:literal)*) => {
            rounds!(rounds, $(
                "smull v22.8h, v20.8b, v21.8b",
                "smlal2 v22.8h, v20.16b, v21.16b",
                concat!("sadalp v", $sum, ".4s, v22.8h")
            ),*)
        };
    }
    // SAFETY: registers only
    unsafe { body!(0 1 2 3 4 5 6 7 16 17 18 19) };
    12 * 16
}

/// Fours of bytes.
///
/// # Safety
/// The machine has `sdot`; `rounds` is not 0.
#[target_feature(enable = "neon,dotprod")]
unsafe fn dotprod(rounds: u32) -> u64 {
    // SAFETY: registers only
    unsafe { sums!(rounds, "sdot", ".4s", ".16b") };
    12 * 16
}

/// 2 × 8 by 8 × 2 bytes.
///
/// # Safety
/// The machine has `smmla`; `rounds` is not 0.
#[target_feature(enable = "neon,i8mm")]
unsafe fn i8mm(rounds: u32) -> u64 {
    // SAFETY: registers only
    unsafe { sums!(rounds, "smmla", ".4s", ".16b") };
    12 * 32
}
