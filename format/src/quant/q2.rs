//! q2: 2-bit codes into a table, a multiplier per 16 inputs, a scale per (row, 256 inputs): 2.5625 bits.
//!
//! ```text
//! record, 2624 bytes (short, 128 inputs: 2624)
//!   0   .. 63   f16 scale[row 0..31]
//!   64  .. 575  s8 m[row][group 0..15], group g = inputs 16g .. 16g + 15
//!   576 ..      two-bit lines
//! int8 weight = (table[code] * m + 64) >> 7           never a tie: the table is odd and m is never +-64
//! ```
//! The multiplier scales the table, not the weights: 4 products per group make a lookup table, and what comes out
//! is int8 like every other type. Lines: see [`super::packed`].

use super::packed::{Packed, table_weight};
use super::search::Search;
use super::{HEAD, Quant, Type, integer_row, record_block_bytes};
use std::sync::LazyLock;

/// The entry of [`super::QUANTS`].
pub const Q2: Quant = Quant {
    ty: Type::Q2,
    name: "q2",
    id: 20,
    bits: 2.5625,
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

const LAYOUT: Packed = Packed { bits: 2, group: 16, weight: table_weight };

/// The table written with every q2 matrix: odd, ascending, denser around zero.
pub const TABLE: [i8; 4] = [-127, -43, 15, 85];

static SEARCH: LazyLock<Search> = LazyLock::new(|| {
    let ties = |m: i8| m.unsigned_abs() == 64;
    Search::new(16, 4, ties, |code, m| i32::from(table_weight(&TABLE.map(|t| t as u8), code, m)))
});
