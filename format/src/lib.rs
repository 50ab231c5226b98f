//! The .llm file: layout, checks, quantized records, reader and writer.
//!
//! `SPEC.md` beside this crate is normative; [`quant`] says what tensors mean.

pub mod quant;
pub mod tokens;
