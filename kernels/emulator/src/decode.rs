//! From bytes to instructions: the VEX forms that the kernels use.
//!
//! ```text
//! C4 | R̄ X̄ B̄ 00010 | 0 v̄v̄v̄v̄ 0 pp | opcode | ModRM | SIB | displacement
//!      map 0F38      W=0   L=0  none 66 F3 F2
//! 49  none: ldtilecfg m, tilerelease    66: sttilecfg m    F2: tilezero t
//! 4B  66: tileloaddt1    F3: tilestored    F2: tileloadd     (memory through a SIB)
//! 5C  F3: tdpbf16ps      5E  F2: tdpbssd                      (reg, rm, vvvv)
//! ```

/// Rows of a tile in memory: the first and the distance to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rows {
    /// Address of row 0.
    pub at: u64,
    /// Bytes from a row to the next, modulo 2⁶⁴.
    pub stride: u64,
}

/// One instruction with its addresses worked out; tiles by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// `ldtilecfg` from an address.
    Configure(u64),
    /// `sttilecfg` to an address.
    Configuration(u64),
    /// `tilerelease`
    Release,
    /// `tilezero`
    Zero(usize),
    /// `tileloadd` and `tileloaddt1`
    Load(usize, Rows),
    /// `tilestored`
    Store(usize, Rows),
    /// `tdpbssd` c, a, b
    Int8(usize, usize, usize),
    /// `tdpbf16ps` c, a, b
    Bf16(usize, usize, usize),
}

/// The prefix that a VEX byte stands for.
const NONE: u8 = 0;
const P66: u8 = 1;
const PF3: u8 = 2;
const PF2: u8 = 3;

/// The instruction at `rip` and its length. `byte(i)` is its i-th byte and is asked only for bytes that belong to it;
/// `registers` are rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 .. r15. `None`: not one of ours.
pub fn decode(byte: impl Fn(usize) -> u8, registers: &[u64; 16], rip: u64) -> Option<(Instruction, usize)> {
    if byte(0) != 0xc4 {
        return None;
    }
    let (extend, form) = (byte(1), byte(2));
    if extend & 0x1f != 2 || form & 0x84 != 0 {
        return None;
    }
    // stored inverted
    let (r, x, b) = (extend >> 7 & 1 ^ 1, extend >> 6 & 1 ^ 1, extend >> 5 & 1 ^ 1);
    let (vvvv, prefix) = (!form >> 3 & 15, form & 3);
    let (opcode, modrm) = (byte(3), byte(4));
    let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    let tile = |n: u8| usize::from(n);
    if mode == 3 {
        // tiles are 0..8: a bit that would name more is not allowed
        let instruction = match (opcode, prefix) {
            (0x49, NONE) if modrm == 0xc0 && vvvv == 0 => Instruction::Release,
            (0x49, PF2) if rm == 0 && vvvv == 0 && r == 0 => Instruction::Zero(tile(reg)),
            (0x5e, PF2) if vvvv < 8 && r == 0 && b == 0 => Instruction::Int8(tile(reg), tile(rm), tile(vvvv)),
            (0x5c, PF3) if vvvv < 8 && r == 0 && b == 0 => Instruction::Bf16(tile(reg), tile(rm), tile(vvvv)),
            _ => return None,
        };
        return Some((instruction, 5));
    }
    let little = |at: usize, n: usize| (0..n).fold(0u32, |v, i| v | u32::from(byte(at + i)) << (8 * i));
    let register = |high: u8, low: u8| registers[usize::from(high * 8 + low)];
    let mut length = 5;
    let (mut base, mut index) = (0, None);
    let mut displaced = mode as usize;
    if rm == 4 {
        let sib = byte(5);
        length = 6;
        let (i, at) = (sib >> 3 & 7, sib & 7);
        if x == 1 || i != 4 {
            index = Some(register(x, i) << (sib >> 6));
        }
        if at == 5 && mode == 0 {
            displaced = 2;
        } else {
            base = register(b, at);
        }
    } else if rm == 5 && mode == 0 {
        displaced = 2;
        base = rip.wrapping_add(length as u64 + 4);
    } else {
        base = register(b, rm);
    }
    let displacement = match displaced {
        0 => 0,
        1 => i64::from(byte(length) as i8),
        _ => i64::from(little(length, 4) as i32),
    };
    length += [0, 1, 4][displaced];
    let at = base.wrapping_add_signed(displacement);
    if vvvv != 0 {
        return None;
    }
    let instruction = match (opcode, prefix) {
        (0x49, NONE) if reg == 0 => Instruction::Configure(at.wrapping_add(index.unwrap_or(0))),
        (0x49, P66) if reg == 0 => Instruction::Configuration(at.wrapping_add(index.unwrap_or(0))),
        (0x4b, _) if rm != 4 || r == 1 => return None,
        (0x4b, PF2 | P66) => Instruction::Load(tile(reg), Rows { at, stride: index.unwrap_or(0) }),
        (0x4b, PF3) => Instruction::Store(tile(reg), Rows { at, stride: index.unwrap_or(0) }),
        _ => return None,
    };
    Some((instruction, length))
}
