//! The algorithms, once, over any instruction set ([`crate::simd::Simd`]).
//!
//! Functions here trust their arguments: `cpu/` has proved shapes and split the work. They are inlined into the
//! `#[target_feature]` functions of each instruction set's table.

pub mod attention;
pub mod codes;
pub mod elementwise;
pub mod float;
pub mod math;
pub mod norm;
pub mod panel;
pub mod quantize;
pub mod rows;
pub mod turned;
