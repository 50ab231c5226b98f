//! AMX: products of 16 × 64 by 64 × 16 bytes in one instruction, for many vectors at a time. Everything else, and
//! products of few vectors, is AVX-512's.

pub mod tile;

use super::avx512;
use crate::ops::Ops;

/// Whether the machine, its system and this process have AVX-512 and tiles.
pub fn available() -> bool {
    avx512::available() && tile::available()
}

/// AVX-512's, with products of our own.
pub static OPS: Ops = Ops { ..avx512::OPS };
