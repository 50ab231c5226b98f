//! q3: 3-bit codes into a table, a multiplier per 16 inputs, a scale per (row, 256 inputs): 3.5625 bits.
//!
//! ```text
//! record, 3648 bytes (short, 128 inputs: 3648)
//!   0   .. 63   f16 scale[row 0..31]
//!   64  .. 575  s8 m[row][group 0..15], group g = inputs 16g .. 16g + 15
//!   576 ..      two-bit lines (bits 0 and 1), then one-bit lines (bit 2)
//! int8 weight = (table[code] * m + 64) >> 7           never a tie: the table is odd and m is never +-64
//! ```
//! The multiplier scales the table, not the weights: 8 products per group make a lookup table, and what comes out
//! is int8 like every other type. Lines: see [`super::packed`].

use super::packed::{self, Packed, Packing, table_weight};
use super::search::Search;
use super::{Quant, Type};
use std::sync::LazyLock;

/// The entry of [`super::QUANTS`].
pub const Q3: Quant = packed::entry::<Three>(Type::Q3, "q3", 24);

/// The packing.
pub(super) struct Three;

impl Packing for Three {
    const LAYOUT: Packed = Packed { bits: 3, group: 16, weight: table_weight };

    fn search() -> &'static Search {
        static SEARCH: LazyLock<Search> = LazyLock::new(|| {
            let ties = |m: i8| m.unsigned_abs() == 64;
            Search::new(16, 8, ties, |code, m| i32::from(table_weight(&TABLE.map(|t| t as u8), code, m)))
        });
        &SEARCH
    }
}

/// The table written with every q3 matrix: odd, ascending, denser around zero. It ends well below 127 on purpose:
/// see [`super::search`].
pub const TABLE: [i8; 8] = [-51, -33, -19, -7, 3, 13, 27, 47];
