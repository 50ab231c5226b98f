//! Loops that only multiply: the limit that products of many vectors are measured against.
//!
//! Twelve sums, more than the units need to be busy all the time, and operands that stay in registers; matrix tiles,
//! too few for that, are loaded from the nearest cache for each pair of products, as a product of 32 × 32 does.

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

#[cfg(test)]
mod tests {
    use super::{Operands, multiply};
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
}
