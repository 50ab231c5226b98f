//! Loops of x86-64 that only multiply; see [`crate::peak`].

use super::amx::tile::{self, Tiles};
use crate::detect::Isa;
use crate::peak::{Loop, Operands};
use crate::simd::Aligned;
use core::arch::asm;

/// The loop of an instruction set.
pub fn of(isa: Isa, operands: Operands) -> Option<Loop> {
    Some(match (isa, operands) {
        (Isa::Avx2 | Isa::AvxVnni, Operands::F32) => avx2_float,
        (Isa::Avx2, Operands::Int8) => avx2,
        (Isa::AvxVnni, Operands::Int8) => avxvnni,
        (Isa::Avx512 | Isa::Amx, Operands::F32) => avx512_float,
        (Isa::Avx512, Operands::Int8) => avx512,
        (Isa::Avx512, Operands::Bf16) if is_x86_feature_detected!("avx512bf16") => avx512_bf16,
        (Isa::Amx, Operands::Int8) => amx,
        (Isa::Amx, Operands::Bf16) => amx_bf16,
        _ => return None,
    })
}

/// `$rounds` rounds of a body of instructions on registers whose low parts are xmm0 to xmm15, all of them zero at
/// first: sums in 0 to 11, operands in 12 and 13, 14 and 15 free.
macro_rules! rounds {
    ($rounds:expr, $($line:expr),*) => {
        asm!(
            "vzeroall",
            "2:",
            $($line,)*
            "dec {n:e}",
            "jnz 2b",
            n = inout(reg) $rounds => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack, nomem)
        )
    };
}

/// The body of one instruction with three operands: twelve sums.
macro_rules! sums {
    ($rounds:expr, $instruction:literal, $r:literal) => {
        sums!(@ $rounds, $instruction, $r, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $rounds:expr, $instruction:literal, $r:literal, $($sum:literal)*) => {
        rounds!($rounds, $(concat!($instruction, " ", $r, $sum, ", ", $r, "12, ", $r, "13")),*)
    };
}

/// f32 by f32 in 256 bits.
///
/// # Safety
/// The machine has AVX2 and FMA; `rounds` is not 0.
unsafe fn avx2_float(rounds: u32) -> u64 {
    // SAFETY: the caller's promise; registers only
    unsafe { sums!(rounds, "vfmadd231ps", "ymm") };
    12 * 8
}

/// Pairs of bytes to 16 bits, pairs of those to 32, and their sum.
///
/// # Safety
/// The machine has AVX2; `rounds` is not 0.
unsafe fn avx2(rounds: u32) -> u64 {
    macro_rules! body {
        ($($sum:literal)*) => {
            rounds!(rounds, $(
                "vpmaddubsw ymm14, ymm12, ymm13",
                "vpmaddwd ymm14, ymm14, ymm15",
                concat!("vpaddd ymm", $sum, ", ymm", $sum, ", ymm14")
            ),*)
        };
    }
    // SAFETY: the caller's promise; registers only
    unsafe { body!(0 1 2 3 4 5 6 7 8 9 10 11) };
    12 * 32
}

/// Fours of bytes in 256 bits.
///
/// # Safety
/// The machine has AVX-VNNI; `rounds` is not 0.
unsafe fn avxvnni(rounds: u32) -> u64 {
    // SAFETY: the caller's promise; registers only
    unsafe { sums!(rounds, "{{vex}} vpdpbusd", "ymm") };
    12 * 32
}

/// f32 by f32 in 512 bits.
///
/// # Safety
/// The machine has AVX-512 F; `rounds` is not 0.
unsafe fn avx512_float(rounds: u32) -> u64 {
    // SAFETY: the caller's promise; registers only
    unsafe { sums!(rounds, "vfmadd231ps", "zmm") };
    12 * 16
}

/// Fours of bytes in 512 bits.
///
/// # Safety
/// The machine has AVX-512 VNNI; `rounds` is not 0.
unsafe fn avx512(rounds: u32) -> u64 {
    // SAFETY: the caller's promise; registers only
    unsafe { sums!(rounds, "vpdpbusd", "zmm") };
    12 * 64
}

/// Pairs of bf16 in 512 bits.
///
/// # Safety
/// The machine has AVX-512 BF16; `rounds` is not 0.
unsafe fn avx512_bf16(rounds: u32) -> u64 {
    // SAFETY: the caller's promise; registers only
    unsafe { sums!(rounds, "vdpbf16ps", "zmm") };
    12 * 32
}

/// `$rounds` times four products of tiles, of 32 × 32, and the four loads they take.
macro_rules! tiles {
    ($rounds:expr, $multiply:ident) => {{
        let operands = Aligned([1u8; 4 * tile::TILE]);
        let p = operands.0.as_ptr();
        let _tiles = Tiles::configure();
        for _ in 0..$rounds {
            tile::load!("tmm4", p, 64);
            tile::load!("tmm6", p.add(tile::TILE), 64);
            tile::$multiply!("tmm0", "tmm4", "tmm6");
            tile::load!("tmm5", p.add(2 * tile::TILE), 64);
            tile::$multiply!("tmm1", "tmm5", "tmm6");
            tile::load!("tmm7", p.add(3 * tile::TILE), 64);
            tile::$multiply!("tmm2", "tmm4", "tmm7");
            tile::$multiply!("tmm3", "tmm5", "tmm7");
        }
    }};
}

/// 64 bytes of each row.
///
/// # Safety
/// [`tile::available`] is true.
unsafe fn amx(rounds: u32) -> u64 {
    // SAFETY: tiles are configured while the guard lives; four tiles lie at `p`
    unsafe { tiles!(rounds, int8) };
    4 * 16 * 16 * 64
}

/// 32 bf16 of each row.
///
/// # Safety
/// As [`amx`].
unsafe fn amx_bf16(rounds: u32) -> u64 {
    // SAFETY: as above
    unsafe { tiles!(rounds, bf16) };
    4 * 16 * 16 * 32
}
