//! q6: 6-bit codes times a multiplier per 16 inputs, a scale per (row, 256 inputs): 6.5625 bits.
//!
//! ```text
//! record, 6720 bytes (short, 128 inputs: 4672)
//!   0   .. 63   f16 scale[row 0..31]
//!   64  .. 575  s8 m[row][group 0..15], group g = inputs 16g .. 16g + 15
//!   576 ..      nibble lines (low 4 bits of the code), then two-bit lines (bits 4 and 5)
//! int8 weight = ((2 * code - 71) * m + 32) >> 6
//! ```
//! A product is a tie only where m = 32 (mod 64); the writer leaves those multipliers out. Lines: see [`super::packed`].

use super::packed::{self, Packed, Packing};
use super::search::Search;
use super::{Quant, Type};
use std::sync::LazyLock;

/// The entry of [`super::QUANTS`].
pub const Q6: Quant = packed::entry::<Six>(Type::Q6, "q6", 48);

/// The packing.
pub(super) struct Six;

impl Packing for Six {
    const LAYOUT: Packed = Packed { bits: 6, group: 16, weight: |_, code, m| weight(code, m) as i8 };

    fn search() -> &'static Search {
        static SEARCH: LazyLock<Search> = LazyLock::new(|| {
            let ties = |m: i8| m.unsigned_abs() % 64 == 32;
            Search::new(16, 64, ties, weight)
        });
        &SEARCH
    }
}

/// The decoded weight; an int8 for the multipliers that a writer writes.
fn weight(code: u8, m: i8) -> i32 {
    ((2 * i32::from(code) - 71) * i32::from(m) + 32) >> 6
}
