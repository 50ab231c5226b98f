//! Bytes as an assembler makes them decode to what it was told; others are left alone.

use llm_emulator::decode::Instruction::*;
use llm_emulator::decode::{Instruction, Rows, decode};

/// Register n (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 ..) holds 0x1000·(n + 1).
fn run(bytes: &[u8]) -> Option<(Instruction, usize)> {
    let registers = std::array::from_fn(|n| 0x1000 * (n as u64 + 1));
    decode(|i| bytes[i], &registers, 0x10_0000)
}

fn rows(at: u64, stride: u64) -> Rows {
    Rows { at, stride }
}

#[test]
fn every_form_decodes() {
    let cases: [(&[u8], Instruction); 16] = [
        // tileloadd tmm6, [rbp + r14*8 + 0x10000000]
        (&[0xc4, 0xa2, 0x7b, 0x4b, 0xb4, 0xf5, 0, 0, 0, 0x10], Load(6, rows(0x1000_6000, 0xf000 * 8))),
        // tileloadd tmm3, [r8 + rax*4 + 0x123]
        (&[0xc4, 0xc2, 0x7b, 0x4b, 0x9c, 0x80, 0x23, 1, 0, 0], Load(3, rows(0x9123, 0x4000))),
        // tileloaddt1 tmm0, [rbp*2 - 32]
        (&[0xc4, 0xe2, 0x79, 0x4b, 0x04, 0x6d, 0xe0, 0xff, 0xff, 0xff], Load(0, rows(-32i64 as u64, 0xc000))),
        // tileloadd tmm1, [rcx]
        (&[0xc4, 0xe2, 0x7b, 0x4b, 0x0c, 0x21], Load(1, rows(0x2000, 0))),
        // tileloadd tmm2, [r12 + r13]
        (&[0xc4, 0x82, 0x7b, 0x4b, 0x14, 0x2c], Load(2, rows(0xd000, 0xe000))),
        // tileloadd tmm2, [r13 + rcx*2]
        (&[0xc4, 0xc2, 0x7b, 0x4b, 0x54, 0x4d, 0], Load(2, rows(0xe000, 0x4000))),
        // tilestored [rsp + rbx + 16], tmm7
        (&[0xc4, 0xe2, 0x7a, 0x4b, 0x7c, 0x1c, 0x10], Store(7, rows(0x5010, 0x4000))),
        // ldtilecfg [rip + 100]
        (&[0xc4, 0xe2, 0x78, 0x49, 0x05, 0x64, 0, 0, 0], Configure(0x10_0000 + 9 + 100)),
        // ldtilecfg [rax]
        (&[0xc4, 0xe2, 0x78, 0x49, 0x00], Configure(0x1000)),
        // ldtilecfg [r12 + 8]
        (&[0xc4, 0xc2, 0x78, 0x49, 0x44, 0x24, 8], Configure(0xd008)),
        // ldtilecfg [rbp + r14*8 + 0x10000000]
        (&[0xc4, 0xa2, 0x78, 0x49, 0x84, 0xf5, 0, 0, 0, 0x10], Configure(0x1000_6000 + 0xf000 * 8)),
        // sttilecfg [rdi]
        (&[0xc4, 0xe2, 0x79, 0x49, 0x07], Configuration(0x8000)),
        // tilerelease
        (&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Release),
        // tilezero tmm6
        (&[0xc4, 0xe2, 0x7b, 0x49, 0xf0], Zero(6)),
        // tdpbssd tmm6, tmm5, tmm4
        (&[0xc4, 0xe2, 0x5b, 0x5e, 0xf5], Int8(6, 5, 4)),
        // tdpbf16ps tmm1, tmm2, tmm7
        (&[0xc4, 0xe2, 0x42, 0x5c, 0xca], Bf16(1, 2, 7)),
    ];
    for (bytes, instruction) in cases {
        assert_eq!(Some((instruction, bytes.len())), run(bytes), "{bytes:02x?}");
    }
}

#[test]
fn other_instructions_are_left_alone() {
    let cases: [&[u8]; 9] = [
        &[0x0f, 0x0b],                         // ud2
        &[0xc5, 0xf8, 0x28, 0xc1],             // vmovaps, two-byte VEX
        &[0xc4, 0xe2, 0x5a, 0x5e, 0xf5],       // tdpbsud
        &[0xc4, 0xe2, 0x59, 0x5e, 0xf5],       // tdpbusd
        &[0xc4, 0xe2, 0x58, 0x5e, 0xf5],       // tdpbuud
        &[0xc4, 0xe2, 0xdb, 0x5e, 0xf5],       // W = 1
        &[0xc4, 0xe2, 0x5f, 0x5e, 0xf5],       // L = 1
        &[0xc4, 0xe2, 0x1b, 0x5e, 0xf5],       // a tile 12
        &[0xc4, 0xe2, 0x7b, 0x4b, 0x08, 0x00], // a tile load without SIB
    ];
    for bytes in cases {
        assert_eq!(None, run(bytes), "{bytes:02x?}");
    }
}
