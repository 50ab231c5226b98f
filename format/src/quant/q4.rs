//! q4: 4-bit codes into a table, a multiplier per 32 inputs, a scale per (row, 256 inputs): 4.3125 bits.
//!
//! ```text
//! record, 4416 bytes (short, 128 inputs: 2368)
//!   0   .. 63   f16 scale[row 0..31]
//!   64  .. 319  s8 m[row][group 0..7], group g = inputs 32g .. 32g + 31
//!   320 ..      nibble lines
//! int8 weight = (table[code] * m + 64) >> 7           never a tie: the table is odd and m is never +-64
//! ```
//! The multiplier scales the table, not the weights: 16 products per group make a lookup table, and what comes out
//! is int8 like every other type. The steps of the table grow outwards as the density of weights falls. Lines: see
//! [`super::packed`].

use super::packed::{self, Packed, Packing, table_weight};
use super::search::Search;
use super::{Quant, Type};
use std::sync::LazyLock;

/// The entry of [`super::QUANTS`].
pub const Q4: Quant = packed::entry::<Four>(Type::Q4, "q4", 32);

/// The packing.
pub(super) struct Four;

impl Packing for Four {
    const LAYOUT: Packed = Packed { bits: 4, group: 32, weight: table_weight };

    fn search() -> &'static Search {
        static SEARCH: LazyLock<Search> = LazyLock::new(|| {
            let ties = |m: i8| m.unsigned_abs() == 64;
            Search::new(32, 16, ties, |code, m| i32::from(table_weight(&TABLE.map(|t| t as u8), code, m)))
        });
        &SEARCH
    }
}

/// The table written with every q4 matrix: odd, ascending, denser around zero. It ends well below 127 on purpose:
/// see [`super::search`].
pub const TABLE: [i8; 16] = [-79, -63, -49, -39, -29, -21, -13, -5, 1, 9, 17, 25, 35, 45, 57, 77];
