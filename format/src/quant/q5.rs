//! q5: 5-bit codes times a multiplier per 16 inputs, a scale per (row, 256 inputs): 5.5625 bits.
//!
//! ```text
//! record, 5696 bytes (short, 128 inputs: 3648)
//!   0   .. 63   f16 scale[row 0..31]
//!   64  .. 575  s8 m[row][group 0..15], group g = inputs 16g .. 16g + 15
//!   576 ..      nibble lines (low 4 bits of the code), then one-bit lines (bit 4)
//! int8 weight = ((4 * code - 69) * m + 32) >> 6
//! ```
//! A product is a tie only where m = 32 (mod 64); the writer leaves those multipliers out. Lines: see [`super::packed`].

use super::packed::{self, Packed, Packing};
use super::search::Search;
use super::{Quant, Type};
use std::sync::LazyLock;

/// The entry of [`super::QUANTS`].
pub const Q5: Quant = packed::entry::<Five>(Type::Q5, "q5", 40);

/// The packing.
pub(super) struct Five;

impl Packing for Five {
    const LAYOUT: Packed = Packed { bits: 5, group: 16, weight: |_, code, m| weight(code, m) as i8 };

    fn search() -> &'static Search {
        static SEARCH: LazyLock<Search> = LazyLock::new(|| {
            let ties = |m: i8| m.unsigned_abs() % 64 == 32;
            Search::new(16, 32, ties, weight)
        });
        &SEARCH
    }
}

/// The decoded weight; an int8 for the multipliers that a writer writes.
fn weight(code: u8, m: i8) -> i32 {
    ((4 * i32::from(code) - 69) * i32::from(m) + 32) >> 6
}
