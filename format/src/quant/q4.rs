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
//! is int8 like every other type. The steps of the table grow outwards as the density of weights falls. Lines: see [`super::packed`].

use super::packed::{Packed, table_weight};
use super::search::Search;
use super::{HEAD, Quant, Type, integer_row, record_block_bytes};
use std::sync::LazyLock;

/// The entry of [`super::QUANTS`].
pub const Q4: Quant = Quant {
    ty: Type::Q4,
    name: "q4",
    id: 32,
    bits: 4.3125,
    head: HEAD,
    block_bytes: |cols| record_block_bytes(cols, LAYOUT.bytes(2) as u64, LAYOUT.bytes(1) as u64),
    encode_block: |head, values, importance, cols, out| {
        LAYOUT.encode_block(&SEARCH, head, values, importance, cols, out);
    },
    decode_row: |head, block, cols, r, out| {
        integer_row(|h, b, c, r, i, out| LAYOUT.decode_int8(h, b, c, r, i, out), head, block, cols, r, out);
    },
    decode_int8: Some(|h, b, c, r, i, out| LAYOUT.decode_int8(h, b, c, r, i, out)),
};

const LAYOUT: Packed = Packed { bits: 4, group: 32, weight: table_weight };

/// The table written with every q4 matrix: odd, ascending, denser around zero.
pub const TABLE: [i8; 16] = [-127, -101, -81, -63, -47, -33, -21, -9, 3, 15, 27, 39, 53, 69, 91, 123];

static SEARCH: LazyLock<Search> = LazyLock::new(|| {
    let ties = |m: i8| m.unsigned_abs() == 64;
    Search::new(32, 16, ties, |code, m| i32::from(table_weight(&TABLE.map(|t| t as u8), code, m)))
});
